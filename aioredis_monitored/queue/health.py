"""Whether a queue can be used, and is consumed here: what ``queue.health()`` returns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """Whether a queue can be used, and is consumed by this process; ``await queue.health()`` returns it.

    What the queue holds is in ``QueueStats``.

    Attributes:
        idle: Seconds since this process took a message, or the server said that there was none; ``None`` if neither
            has happened.
        problem: Why it is not ``ok``; empty if it is.
    """

    idle: float | None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the server has answered, and this process has consumed in time, if that was asked for."""
        return not self.problem
