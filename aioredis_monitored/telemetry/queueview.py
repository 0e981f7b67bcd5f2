"""What a process knows of a queue: what it has seen last, and what it holds."""

from collections.abc import Sized
from time import monotonic
from typing import Any, Final
from weakref import WeakSet

# Seconds after which what was seen is no longer told.
_FRESH: Final = 60.0


class QueueView:
    """What the consumers and producers of one process know of a queue.

    Args:
        attributes: Those of its points.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self._depth: tuple[int, float] | None = None
        self._dead: tuple[int, float] | None = None
        self._holders: WeakSet[Any] = WeakSet()

    def see(self, depth: int, dead: int | None = None) -> None:
        """Take note of how many messages it has, and how many are dead."""
        now = monotonic()
        self._depth = (depth, now)
        if dead is not None:
            self._dead = (dead, now)

    def watch(self, holder: Sized) -> None:
        """Count what it holds, for as long as it is there."""
        self._holders.add(holder)

    def depth(self) -> int | None:
        """How many messages are in it, if that was seen of late."""
        return _fresh(self._depth)

    def dead(self) -> int | None:
        """How many are dead, if that was seen of late."""
        return _fresh(self._dead)

    def in_flight(self) -> int:
        """How many this process holds."""
        # A copy: exporters look from a thread of their own.
        return sum(len(holder) for holder in list(self._holders))


def _fresh(seen: tuple[int, float] | None) -> int | None:
    return seen[0] if seen is not None and monotonic() - seen[1] < _FRESH else None
