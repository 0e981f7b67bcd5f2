"""Popping messages for good, which is at most once, but not lost when the caller leaves."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")


class Pop:
    """Fetches the messages at the head of a list (see ``Fetch``).

    Args:
        queue: The key of the list.
        count: How many at most.
    """

    longest_wait = 60.0

    def __init__(self, queue: str, count: int = 1) -> None:
        self._queue = queue
        self._count = count
        self.is_several = count > 1

    def at_once(self) -> tuple[Any, ...]:
        """See ``Fetch``."""
        return ("LPOP", self._queue) if self._count == 1 else ("LPOP", self._queue, self._count)

    def found(self, reply: Any) -> Any:
        """See ``Fetch``."""
        return [reply] if isinstance(reply, bytes) else reply

    def waiting(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; older servers take no fractions of seconds."""
        return (("BLPOP", self._queue, math.ceil(seconds)),)

    def arrived(self, reply: Any) -> Any:
        """See ``Fetch``."""
        return None if reply is None else [reply[1]]

    def putting_back(self, found: Any) -> tuple[Any, ...]:
        """See ``Fetch``."""
        return ("LPUSH", self._queue, *reversed(found))

    def note_unsettled(self) -> None:
        """See ``Fetch``."""
        _LOGGER.warning("queue %r: what was on its way to a get that was cancelled may be lost", self._queue)
