"""Whether a queue can be used, and is consumed here: what ``queue.health()`` returns."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """Whether a queue can be used, and is consumed by this process; ``await queue.health()`` returns it.

    Attributes:
        depth: How many messages wait in the queue; ``None`` if the server did not say it.
        dead: How many dead letters there are; ``None`` as well.
        held: How many messages this process holds in ``take`` and ``consume``.
        idle: Seconds since this process took a message, or the server said that there was none; ``None`` if neither
            has happened.
        problem: Why it is not ``ok``; empty if it is.
    """

    depth: int | None
    dead: int | None
    held: int
    idle: float | None
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the server has answered, and this process has consumed in time, if that was asked for."""
        return not self.problem
