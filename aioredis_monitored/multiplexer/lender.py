"""What a shared connection asks of the pool that it belongs to."""

from typing import Protocol

from redis.asyncio.connection import AbstractConnection


class Lender(Protocol):
    """Where the connections come from."""

    timeout: float | None

    def check_usable(self) -> None:
        """Raise if it cannot be used in the running event loop."""

    async def get_fresh_connection(self, *, reserved: bool) -> AbstractConnection:
        """Borrow a connection on which nothing was sent yet; ``reserved`` if a place is kept for it."""

    def has_free_connection(self) -> bool:
        """Whether borrowing would not have to wait."""

    def discard(self, connection: AbstractConnection) -> None:
        """Take back a borrowed connection that is closed."""

    def note_wait(self, seconds: float) -> None:
        """Take note of how long a call waited for the connection, or for room on it."""

    def note_refusal(self) -> None:
        """Take note of a call that has waited in vain."""

    def note_lag(self, seconds: float) -> bool:
        """Take note of how long callers took to go on once their replies were read; return whether that is wanted."""
