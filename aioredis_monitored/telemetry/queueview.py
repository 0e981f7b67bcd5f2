"""What a process knows of a queue: what it has seen last, and what it holds."""

from collections.abc import Sized
from time import monotonic
from typing import Any, Final
from weakref import WeakSet

# Seconds after which what was seen is no longer told, at least.
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
        self._fresh = _FRESH
        self._holders: WeakSet[Any] = WeakSet()

    def see(self, *, depth: int | None = None, dead: int | None = None) -> None:
        """Take note of how many messages there are in it, or in the list of the dead."""
        now = monotonic()
        if depth is not None:
            self._depth = (depth, now)
        if dead is not None:
            self._dead = (dead, now)

    def watch(self, holder: Sized, lease: float) -> None:
        """Count what it holds, for as long as it is there.

        Args:
            holder: Its length is how many it holds.
            lease: In seconds; it looks several times in that.
        """
        self._holders.add(holder)
        self._fresh = max(self._fresh, lease)

    def depth(self) -> int | None:
        """How many messages are in it, if that was seen of late."""
        return self._told(self._depth)

    def dead(self) -> int | None:
        """How many are dead, if that was seen of late."""
        return self._told(self._dead)

    def in_flight(self) -> int:
        """How many this process holds."""
        # A copy: exporters look from a thread of their own.
        return sum(len(holder) for holder in list(self._holders))

    def _told(self, seen: tuple[int, float] | None) -> int | None:
        return seen[0] if seen is not None and monotonic() - seen[1] < self._fresh else None
