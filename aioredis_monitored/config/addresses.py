"""Addresses of servers as text."""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Final
from urllib.parse import unquote

Address = tuple[str, int]

MAX_PORT: Final = 65_535
_HOST_NAME: Final = re.compile(r"[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")


def is_ip_address(host: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def address_text(host: str, port: int) -> str:
    """Return a host and a port as text, an IPv6 address in brackets: ``[::1]:6379``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_addresses(value: object) -> list[Address]:
    """Return the addresses of servers that are given as pairs of a host and a port, of which there is at least one.

    Raises:
        ValueError: The value is something else; the text says what it must be.
    """
    pairs = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    addresses: list[Address] = []
    for each in pairs:
        match each:
            case (str(host), int(port)) if host and 0 < port <= MAX_PORT:
                addresses.append((host, port))
            case _:
                message = f"must be pairs of a host and a port from 1 to {MAX_PORT:,}, got {type(each).__name__}"
                raise ValueError(message)
    if not addresses:
        raise ValueError("must be pairs of a host and a port, got none")
    return addresses


def read_host(text: str) -> str:
    """Return a host's name, its IPv4 address, or its IPv6 address without the brackets.

    Raises:
        ValueError: The text is none of these.
    """
    if text.startswith("["):
        return str(IPv6Address(unquote(text[1:-1])))
    if not _HOST_NAME.fullmatch(text):
        raise ValueError
    return text


def read_port(text: str) -> int:
    """Return the number of a TCP port.

    Raises:
        ValueError: The text is no number from 1 to 65,535.
    """
    if re.fullmatch("[0-9]{1,5}", text) and 0 < int(text) <= MAX_PORT:
        return int(text)
    raise ValueError
