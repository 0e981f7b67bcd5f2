"""What to fetch, and how to put it back."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

from aioredis_monitored.telemetry.attributes import About

# The option of execute_command that holds what a command fetches.
FETCH: Final = "FETCH"
# Seconds that the server may be asked to wait, so that one finds out when it is gone. Then the connection is given
# back: whoever else needs it, to acknowledge for instance, need not wait for ever.
LONGEST_WAIT: Final = 15.0
# Seconds that a caller which leaves waits until what was on its way is put back.
SETTLE_SECONDS: Final = 1.0


class Fetch(Protocol):
    """What to fetch, and how to put it back.

    Attributes:
        longest_wait: Seconds that the server may be asked to wait; it is asked again and again.
        about: What operation it is.
        is_batch: Whether it may be any number of messages.
    """

    longest_wait: float
    about: About
    is_batch: bool

    def at_once(self) -> tuple[Any, ...]:
        """The command that fetches what is there."""

    def found(self, reply: Any) -> Any:
        """What that has fetched; ``None`` if nothing was there."""

    def waiting(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """Commands of which one waits for so many seconds."""

    def arrived(self, replies: Sequence[Any]) -> Any:
        """What these have fetched, ``None`` standing for errors; ``None`` if nothing came."""

    def putting_back(self, found: Any) -> Sequence[tuple[Any, ...]]:
        """The commands that put it back, each of them if the server refuses those before it."""

    def note_empty(self) -> None:
        """Take note that nothing was there."""

    def note_unsettled(self) -> None:
        """Take note of something that may be lost."""
