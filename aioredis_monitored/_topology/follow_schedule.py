"""When and where to connect next to follow a sentinel; without I/O, the clock given in."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from aioredis_monitored._topology.known_sentinels import Sentinel

# Seconds until credentials that a sentinel has refused are sent again to follow it: too many refusals lock an account.
REFUSED_SECONDS: Final = 30.0
# How many misses there are before the pause between them grows: which sentinel is reached may be random.
_MISSES_PER_BACKOFF: Final = 4


@dataclass(slots=True)
class FollowSchedule:
    """When to connect next to follow one sentinel, and whether to its own address or to one in front of several.

    Each connection to an address in front of several sentinels may reach another one of them. Such an address is tried
    when the own one of the sentinel has failed; a given address may be one itself. A miss is a connection that is made
    to one in front of several, or that has reached another sentinel at its own address.

    Args:
        backoff: Returns the seconds to wait after a number of failures.
        miss_backoff: Returns the seconds to wait after a number of misses, which are counted in fours.

    Attributes:
        pause: Seconds to wait before the next connection.
        failures: How many connections have failed since the sentinel was followed.
    """

    backoff: Callable[[int], float]
    miss_backoff: Callable[[int], float]
    pause: float = 0.0
    failures: int = 0
    _misses: int = 0
    _is_shared: bool = False
    # When an address in front of several may be tried again: its own pauses are longer.
    _shared_at: float = -inf

    def choose(self, own: Sentinel, shared: Sentinel | None, now: float) -> Sentinel:
        """Return where to connect to.

        Args:
            own: The sentinel's own address.
            shared: An address in front of several sentinels; ``None`` if there is none to try.
            now: The time.
        """
        if shared is None or not self.failures or now < self._shared_at:
            self._is_shared = False
            return own
        self._is_shared = True
        self._shared_at = now + self._next_miss()
        return shared

    def _next_miss(self) -> float:
        self._misses += 1
        return self.miss_backoff(self._misses // _MISSES_PER_BACKOFF)

    def on_other(self) -> None:
        """Take that another sentinel was reached."""
        # The address in front of several has a time of its own, until which the sentinel's own address is tried.
        self.pause = self.miss_backoff(0) if self._is_shared else self._next_miss()

    def on_followed_elsewhere(self) -> None:
        """Take that the sentinel was reached, but is followed at another address; connect when it is not any more."""
        self.pause = 0.0

    def on_followed(self) -> None:
        """Take that the sentinel is followed, until its connection ends."""
        self.failures = self._misses = 0
        self.pause = self.backoff(0)

    def on_failure(self, *, is_refused: bool = False) -> None:
        """Take that a connection has failed.

        Args:
            is_refused: Whether the sentinel has refused the credentials; default ``False``.
        """
        self.failures += 1
        self.pause = REFUSED_SECONDS if is_refused else self.backoff(self.failures)
