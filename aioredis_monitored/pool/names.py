"""Names of servers, which are resolved at the same time, and for no longer than a given time."""

import asyncio
from collections.abc import Iterable
from socket import SOCK_STREAM

from aioredis_monitored.config.addresses import Address, is_ip_address


async def resolve_names(given: Iterable[Address], seconds: float) -> dict[Address, list[Address] | str]:
    """Return all addresses of each name, in the order of the names; the address of an IP address is itself.

    Args:
        given: The names or IP addresses, each with a port.
        seconds: How long resolving may take.

    Returns:
        For each that is given its addresses, or why there are none.
    """
    names = list(dict.fromkeys(given))
    resolving = (_addresses_of(host, port, seconds) for host, port in names)
    outcomes = await asyncio.gather(*resolving, return_exceptions=True)
    return {
        name: str(found) if isinstance(found, BaseException) else found
        for name, found in zip(names, outcomes, strict=True)
    }


async def _addresses_of(host: str, port: int, seconds: float) -> list[Address]:
    if is_ip_address(host):
        return [(host, port)]
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    except TimeoutError:
        message = f"its name was not resolved in {seconds:g} s"
        raise TimeoutError(message) from None
    return list(dict.fromkeys((str(address[0]), port) for *_, address in found))
