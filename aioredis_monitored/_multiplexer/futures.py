"""What a caller of the shared connection awaits, and what stands in the place of a missing reply."""

import asyncio
import builtins
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError  # noqa: A004

from aioredis_monitored._redispy.sockets import Peer
from aioredis_monitored._timeouts import lag_tolerant_timeout


class AttemptFailed(Exception):  # noqa: N818 - the error is inside
    """An attempt has failed with ``error``; ``written`` tells whether the server may have got the call.

    It stands in the place of a reply that will not come, and is raised only to whoever decides about the next attempt.
    """

    def __init__(self, error: Exception, *, written: bool) -> None:
        super().__init__(error, written)
        self.error = error
        self.written = written

    def __repr__(self) -> str:
        # redis-py's errors leave their text out of theirs.
        return f"{type(self).__name__}({type(self.error).__name__}: {self.error}, written={self.written})"


class DeadlineExceeded(AttemptFailed):
    """The deadline over all attempts has cut this one short."""

    def __init__(self, *, written: bool) -> None:
        super().__init__(TimeoutError("no reply in time"), written=written)


class ReplyObserver(Protocol):
    """Who wants to know what becomes of a call, before the caller goes on."""

    def add_wait(self, seconds: float, connecting: float) -> object:
        """Take note of how long the call waited before it could be written, and how much of that was connecting."""

    def on_reply(self, reply: object, now: float, peer: Peer | None) -> object:
        """Take the reply or ``Lost``, the performance counter's time of its reading, and the connection's other end."""


class _ReplyFuture(asyncio.Future[Any]):
    """What a caller awaits; errors are values too, so that nobody has to fetch what its caller has left.

    Whoever makes one sets its slots, past a constructor in Python, which would be one call more. What few have is in no
    slot: until it is set, it takes neither memory nor time.

    Attributes:
        size: Its bytes when packed.
        listener: Told what becomes of it.
        packed: These bytes, if it waits and what its arguments refer to may change, or was sent to a line that ended.
        orphan: Gets the reply if the caller no longer awaits it.
        is_own: Whether it is nobody's but the connection's.
        waits: Whether it is yet to be sent.
        since: When it began to wait, by the performance counter; 0 if it never did.
        told: Until when its listener knows how long it waited, if it does.
        on_leaving: Called with it when the caller leaves, while somebody has to know.
    """

    __slots__ = ("observer", "on_cancel", "queued_at", "size", "is_queued")

    observer: ReplyObserver | None
    size: int
    is_queued: bool
    queued_at: float
    on_cancel: Callable[[Any], None] | None
    wait_reported_at = -1.0
    packed: bytes | None = None
    on_orphan: Callable[[Any], object] | None = None
    is_internal = False

    def cancel(self, msg: Any = None) -> bool:
        """Leave, as asyncio does when the caller is cancelled."""
        has_left = super().cancel(msg)
        # Not a done callback: a hundred thousand of them take memory, and come a tick later.
        if has_left and self.on_cancel is not None:
            self.on_cancel(self)
        return has_left

    async def wait_for(self, seconds: float | None) -> Any:
        """The reply, or ``Late`` in its place; if the caller is cancelled in the tick in which it came, an orphan's."""
        try:
            if seconds is None:
                return await self
            async with lag_tolerant_timeout(seconds):
                return await self
        except asyncio.CancelledError:
            if not self.cancelled() and not isinstance(self.result(), AttemptFailed):
                self.deliver_orphan(self.result())
            raise
        except builtins.TimeoutError:
            return DeadlineExceeded(written=not self.is_queued) if self.cancelled() else self.result()

    def deliver_orphan(self, reply: Any) -> None:
        """Hand over a reply that the caller no longer awaits."""
        if self.on_orphan is not None:
            # Not here: what it raises is not the reader's.
            self.get_loop().call_soon(self.on_orphan, reply, context=Context())


class CommandFuture(_ReplyFuture):
    """The reply to one command.

    Attributes:
        args: The command, which is packed again if it has to wait.
    """

    __slots__ = ("args",)

    args: tuple[Any, ...]


class BatchFuture(_ReplyFuture):
    """The replies to several commands that are sent in one piece.

    Attributes:
        commands: The commands, which are packed again if they have to wait.
        replies: What came so far.
    """

    commands: Sequence[tuple[Any, ...]]
    replies: list[Any]

    def deliver(self, reply: Any, completed: list[tuple[ReplyObserver, Any]]) -> bool:
        """Take the next reply; return whether it is the last one, of which the listener is to hear."""
        # Nobody will read what a caller has left behind.
        self.replies.append(None if self.done() else reply)
        if len(self.replies) < len(self.commands):
            return False
        if not self.done():
            self.set_result(self.replies)
            if self.observer is not None:
                completed.append((self.observer, self.replies))
        return True


class ConnectionSource(Protocol):
    """Where the connections come from."""

    timeout: float | None

    def check_open(self) -> None:
        """Raise if it cannot be used in the running event loop."""

    async def acquire_fresh(self, *, reserved: bool) -> AbstractConnection:
        """Borrow a connection on which nothing was sent yet; ``reserved`` if a place is kept for it."""

    def has_free_connection(self) -> bool:
        """Whether borrowing would not have to wait."""

    def return_closed(self, connection: AbstractConnection) -> None:
        """Take back a borrowed connection that is closed."""

    def on_acquired(self, seconds: float) -> None:
        """Take note of how long a call waited for the connection, or for room on it."""

    def on_timeout(self) -> None:
        """Take note of a call that has waited in vain."""

    def on_lag(self, seconds: float) -> bool:
        """Take note of how long callers took to go on once their replies were read; return whether that is wanted."""
