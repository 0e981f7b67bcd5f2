"""Addresses of servers as text."""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import unquote

Address = tuple[str, int]

MAX_PORT: Final = 65_535
# What a host and a port must be, as arguments.
HOST: Final = "a name, an IPv4 address or an IPv6 address without brackets"
PORT: Final = f"a whole number from 1 to {MAX_PORT:,}"
_PAIRS: Final = "must be pairs of a host and a port, such as ('cache.example', 6379) or ('::1', 6379)"
_HOST_NAME: Final = re.compile(r"(?=.{1,254}$)[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")
# What looks like an IPv4 address is none with 256 in it; name servers would be asked for it.
_LIKE_IPV4: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3}")


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
        ValueError: The value is something else; the text says what it must be, and repeats nothing of it.
    """
    pairs: list[Any] = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    if not pairs:
        message = f"{_PAIRS}, got none"
        raise ValueError(message)
    addresses: list[Address] = []
    problems: list[str] = []
    for number, each in enumerate(pairs, 1):
        match each:
            case (host, port):
                if not is_host(host):
                    problems.append(f"the host of pair {number} must be {HOST}")
                if not is_port(port):
                    problems.append(f"the port of pair {number} must be {PORT}")
                addresses.append((host, port))
            case _:
                message = f"{_PAIRS}, got {type(each).__name__}"
                raise ValueError(message)
    if problems:
        message = f"{_PAIRS}: {', '.join(problems)}"
        raise ValueError(message)
    return addresses


def is_host(value: object) -> bool:
    """Whether a value may be a host as connections take it, an IPv6 address without brackets."""
    if not isinstance(value, str):
        return False
    if ":" in value or _LIKE_IPV4.fullmatch(value):
        return is_ip_address(value)
    return _HOST_NAME.fullmatch(value) is not None


def is_port(value: object) -> bool:
    """Whether a value is the number of a TCP port."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_PORT


def read_host(text: str) -> str:
    """Return a host's name, its IPv4 address, or its IPv6 address without the brackets.

    Raises:
        ValueError: The text is none of these.
    """
    if text.startswith("["):
        return str(IPv6Address(unquote(text[1:-1])))
    if ":" in text or not is_host(text):
        raise ValueError
    return text


def read_port(text: str) -> int:
    """Return the number of a TCP port.

    Raises:
        ValueError: The text is no number from 1 to 65,535.
    """
    if re.fullmatch("[0-9]{1,5}", text) and is_port(int(text)):
        return int(text)
    raise ValueError
