"""The map from the addresses that servers announce to those at which they are reached."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final, Self

from aioredis_monitored.config.addresses import Address, read_host, read_port

_END: Final = re.compile(r"\s*(?P<host>\*|\[[^\]]*\]|[^:\s]+):(?P<port>\*|[0-9]+)\s*")
_ANY_HOST: Final = "*"
# In place of an announced port any, in place of the other the same.
_ANY_PORT: Final = 0


@dataclass(frozen=True, slots=True)
class AddressMap:
    """Where servers are reached that announce other addresses, because of NAT or a proxy.

    Attributes:
        entries: Pairs of an announced address and the one at which it is reached. The host ``*`` is any host; the port
            0 is any port of the announced address, and the same port of the other.
    """

    entries: frozenset[tuple[Address, Address]]
    _targets: dict[Address, Address] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_targets", dict(self.entries))

    @classmethod
    def read(cls, value: object) -> Self:
        """Make a map from text such as ``10.0.0.1:6379=a.example:7000, *:*=b.example:*``, or from a mapping.

        A mapping has the text before an equals sign as key, and the text after it as value.

        Raises:
            TypeError: The value is no text, and no mapping of text.
            ValueError: It has no entries, two for one address, or one of another form.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            entries = [_read_entry(*entry.partition("=")[::2]) for entry in value.split(",")]
        elif isinstance(value, Mapping):
            entries = [_read_entry(announced, reached) for announced, reached in value.items()]
        else:
            raise TypeError
        if not entries or len(dict(entries)) < len(entries):
            raise ValueError
        return cls(frozenset(entries))

    def resolve(self, host: str, port: int) -> Address:
        """Return where a server is reached; addresses that are not in the map are returned as they are.

        An entry for the host and its port precedes one for the host with any port, and that one for any host.

        Args:
            host: The host that the server has announced; IPv6 addresses without brackets.
            port: The port that it has announced.
        """
        announced = _comparable(host)
        for pattern in ((announced, port), (announced, _ANY_PORT), (_ANY_HOST, _ANY_PORT)):
            if (target := self._targets.get(pattern)) is not None:
                return target[0], target[1] or port
        return host, port


def _read_entry(announced: str, reached: str) -> tuple[Address, Address]:
    (host, port), (target_host, target_port) = _read_end(announced), _read_end(reached)
    # With one port for many addresses, several servers would become one.
    if target_host == _ANY_HOST or (port == _ANY_PORT) != (target_port == _ANY_PORT):
        raise ValueError
    if host == _ANY_HOST and port != _ANY_PORT:
        raise ValueError
    return (_comparable(host), port), (target_host, target_port)


def _read_end(text: str) -> Address:
    match = _END.fullmatch(text)
    if match is None:
        raise ValueError
    host, port = match.group("host", "port")
    return (
        host if host == _ANY_HOST else read_host(host),
        _ANY_PORT if port == "*" else read_port(port),
    )


def _comparable(host: str) -> str:
    """Return a host in the form in which entries hold it: names in lower case, IPv6 addresses shortened."""
    try:
        return str(IPv6Address(host))
    except ValueError:
        return host.lower()
