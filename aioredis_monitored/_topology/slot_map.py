"""The map of a cluster as a value, without I/O: which node serves which slots, as ``CLUSTER SLOTS`` says it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from aioredis_monitored.config.addresses import Address

# What a server says in place of a host that it does not know, or is told not to tell.
_UNKNOWN_HOSTS: Final = ("", "?")
# An entry is the first slot, the last slot, the primary, and its replicas.
_FIRST_NODE: Final = 2
_METADATA: Final = 3


class SlotRange(NamedTuple):
    """Slots that one primary serves.

    Attributes:
        first: The first one.
        last: The last one.
        primary: The address of the primary.
        replicas: The addresses of its replicas.
    """

    first: int
    last: int
    primary: Address
    replicas: tuple[Address, ...]


class SlotMap:
    """Which node serves which slots; it never changes.

    Args:
        ranges: The slots that are served.
        names: The names that certificates of nodes are for, by address.

    Attributes:
        ranges: The slots that are served.
        primaries: The addresses of all nodes that serve slots, in the order of their first slots.
        replicas: The addresses of the replicas, by that of their primary.
        names: The names that certificates of nodes are for, by address: those that nodes have announced beside their
            address, or that ``with_name`` has given them.
    """

    __slots__ = ("names", "primaries", "ranges", "replicas")

    def __init__(self, ranges: Sequence[SlotRange], names: Mapping[Address, str] | None = None) -> None:
        self.ranges = tuple(sorted(ranges))
        self.primaries = tuple(dict.fromkeys(each.primary for each in self.ranges))
        self.replicas: dict[Address, tuple[Address, ...]] = {}
        for each in self.ranges:
            known = self.replicas.get(each.primary, ())
            self.replicas[each.primary] = tuple(dict.fromkeys((*known, *each.replicas)))
        self.names: Mapping[Address, str] = names or {}

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of all nodes, the primaries first."""
        replicas = (address for each in self.replicas.values() for address in each)
        return tuple(dict.fromkeys((*self.primaries, *replicas)))

    def failovers_until(self, later: Self) -> int:
        """Return how many primaries have lost their place to one of their replicas until a later map."""
        return sum(
            any(each in later.primaries for each in self.replicas[primary])
            for primary in self.primaries
            if primary not in later.primaries
        )

    def with_name(self, host: str, name: str) -> Self:
        """Return the map in which the nodes at a host that have announced no name have this one."""
        names = {address: name for address in self.addresses if address[0] == host}
        return type(self)(self.ranges, {**names, **self.names})

    @classmethod
    def parse(cls, reply: Any, asked_host: str, resolve: Callable[[str, int], Address]) -> Self:
        """Parse the reply to ``CLUSTER SLOTS``.

        Args:
            reply: The reply as hiredis has parsed it, in RESP2 or RESP3.
            asked_host: The host that was asked, which stands for a host that the server does not know.
            resolve: Maps what the server says to what is connected to (``address_map``).

        Raises:
            ValueError: The reply is none of ``CLUSTER SLOTS``.
        """
        names: dict[Address, str] = {}

        def address(fields: Sequence[Any]) -> Address:
            said = host_of(fields[0], asked_host)
            where = resolve(said, int(fields[1]))
            name = _hostname(fields[_METADATA]) if len(fields) > _METADATA else None
            if name is not None and where[0] == said:
                names[where] = name
            return where

        try:
            ranges = [
                SlotRange(
                    int(entry[0]),
                    int(entry[1]),
                    address(entry[_FIRST_NODE]),
                    tuple(address(fields) for fields in entry[_FIRST_NODE + 1 :]),
                )
                for entry in reply
            ]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError("not a reply to CLUSTER SLOTS") from error
        return cls(ranges, names)


def host_of(said: object, asked_host: str) -> str:
    """Return the host that a server names; the one that was asked if it names none."""
    host = said.decode() if isinstance(said, bytes) else said
    return asked_host if host is None or host in _UNKNOWN_HOSTS else str(host)


def _hostname(metadata: Any) -> str | None:
    """Return the host name among what a server adds to a node's address: a list in RESP2, a map in RESP3."""
    pairs = metadata if isinstance(metadata, dict) else dict(zip(metadata[::2], metadata[1::2], strict=False))
    name = pairs.get(b"hostname", pairs.get("hostname"))
    return host_of(name, "") or None
