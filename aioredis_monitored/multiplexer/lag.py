"""How long callers take to go on once their replies are read: the event loop's share of what seems slow."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from time import perf_counter
from typing import Final

# Seconds for which only the longest is told.
_PAUSE: Final = 0.1


class Lag:
    """Measures every batch of replies, and tells the longest lag at most ten times a second.

    Args:
        tell: Is told of a lag in seconds, and returns whether anybody wants to know of them.

    Attributes:
        is_wanted: Whether every batch is to be measured.
        due: When one is to be measured in any case, by the performance counter.
    """

    def __init__(self, tell: Callable[[float], bool]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._longest = 0.0
        self.due = 0.0
        self.is_wanted = True

    def replies_read(self, now: float) -> None:
        """Measure from this time of the performance counter until all callers have gone on that wake up now."""
        self._loop.call_soon(self._gone_on, now, context=self._context)

    def _gone_on(self, read: float) -> None:
        now = perf_counter()
        self._longest = max(self._longest, now - read)
        if now >= self.due:
            self.due = now + _PAUSE
            longest, self._longest = self._longest, 0.0
            self.is_wanted = self._tell(longest)
