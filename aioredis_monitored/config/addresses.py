"""Addresses of servers as text."""

import re
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import unquote

Address = tuple[str, int]

MAX_PORT: Final = 65_535
_HOST_NAME: Final = re.compile(r"[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")


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
