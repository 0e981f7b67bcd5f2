"""The futures that callers of the shared connection await, what replaces a missing reply, and what cancelling does."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Protocol, TypeAlias

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._redispy.sockets import Peer
from aioredis_monitored._timeouts import LagTolerantTimeout


class AttemptFailed(Exception):  # noqa: N818 - wraps the error
    """An attempt failed with ``error``; ``may_have_run`` is whether the server may have received the call.

    It replaces a reply that will not come. Only the code that decides about the next attempt raises it.
    """

    def __init__(self, error: Exception, *, may_have_run: bool) -> None:
        super().__init__(error, may_have_run)
        self.error = error
        self.may_have_run = may_have_run

    def __repr__(self) -> str:
        # The repr of redis-py's errors lacks their text.
        return f"{type(self).__name__}({type(self.error).__name__}: {self.error}, may_have_run={self.may_have_run})"


class DeadlineExceeded(AttemptFailed):
    """The deadline over all attempts ended this one."""

    def __init__(self, *, may_have_run: bool) -> None:
        super().__init__(RedisTimeoutError("no reply in time"), may_have_run=may_have_run)


class ReplyBatch(Protocol):
    """What has noted a batch of replies: ``flush`` is called when it ends, before any caller resumes."""

    def flush(self) -> object:
        """Record what was noted."""


class ReplyObserver(Protocol):
    """Learns the outcome of a call before its caller resumes.

    Attributes:
        on_resumed: To be called with the time of the reply when its caller resumes, if it is set.
    """

    on_resumed: Callable[[float], object] | None

    def add_wait(self, seconds: float, connecting: float) -> object:
        """Add the seconds that the call waited before it could be written, and how many of them were connecting."""

    def set_connection(self, connection: AbstractConnection) -> object:
        """Take the connection before the reply, of a pool whose server is known only by its connections."""

    def on_reply(self, reply: object, now: float, peer: Peer | None) -> ReplyBatch | None:
        """Take the reply or ``AttemptFailed``, the performance counter when it was read, and the server's address.

        Returns:
            What to tell when the batch of replies ends.
        """


class _ReplyFuture(asyncio.Future[Any]):
    """The reply to a call; errors are values too, so that none is reported as never retrieved.

    The code that makes one sets its slots: a constructor in Python would cost one call more. Rare attributes have no
    slot: until they are set, they take neither memory nor time.

    Cancelling it, as asyncio does when its caller is cancelled, returns at once. The call itself goes on: it is skipped
    while it is queued, and once it is written, its reply is dropped, or given to ``on_orphan``.

    Attributes:
        size: The bytes of the packed call.
        observer: Learns the outcome; ``None`` for none.
        packed: The packed call, if it is queued and its arguments are mutable, or if its connection closed before it
            was written.
        on_orphan: Takes the reply if the caller no longer awaits it.
        is_internal: Whether the connection itself sent it.
        is_queued: Whether it waits for a connection, or for room on one.
        queued_at: When it was queued first, by the performance counter; 0 if it never was.
        wait_reported_at: Up to when its wait was reported to its observer; -1 if it was not.
        on_cancel: Called with it when the caller leaves.
    """

    __slots__ = ("is_queued", "observer", "on_cancel", "queued_at", "size")

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
        """Leave the call, as asyncio does when its caller is cancelled."""
        has_left = super().cancel(msg)
        # A done callback would take memory in each of many calls, and run a tick later.
        if has_left and self.on_cancel is not None:
            self.on_cancel(self)
        return has_left

    async def wait_for(self, seconds: float | None) -> Any:
        """Return the reply, or ``DeadlineExceeded`` after ``seconds``.

        A caller that is cancelled in the tick in which its reply was read makes it an orphan.
        """
        try:
            if seconds is None:
                return await self
            async with LagTolerantTimeout(seconds):
                return await self
        except asyncio.CancelledError:
            if not self.cancelled() and not isinstance(self.result(), AttemptFailed):
                self.deliver_orphan(self.result())
            raise
        except TimeoutError:
            return DeadlineExceeded(may_have_run=not self.is_queued) if self.cancelled() else self.result()

    def deliver_orphan(self, reply: Any) -> None:
        """Give a reply that the caller no longer awaits to ``on_orphan``, in the next tick."""
        if self.on_orphan is not None:
            # What it raises must not reach the code that reads replies.
            self.get_loop().call_soon(self.on_orphan, reply, context=Context())


class CommandFuture(_ReplyFuture):
    """The reply to one command.

    Attributes:
        args: The command, which is packed again if it was queued.
    """

    __slots__ = ("args",)

    args: tuple[Any, ...]


class BatchFuture(_ReplyFuture):
    """The replies to several commands that are sent in one piece.

    Attributes:
        commands: The commands, which are packed again if the batch was queued.
        replies: The replies read so far.
    """

    commands: Sequence[tuple[Any, ...]]
    replies: list[Any]

    def deliver(self, reply: Any, completed: list[tuple[ReplyObserver, Any]]) -> bool:
        """Take the next reply and return whether it is the last one; then add the observer to ``completed``."""
        # Without a caller, only their number counts.
        self.replies.append(None if self.done() else reply)
        if len(self.replies) < len(self.commands):
            return False
        if not self.done():
            self.set_result(self.replies)
            if self.observer is not None:
                completed.append((self.observer, self.replies))
        return True


class AskingFuture(BatchFuture):
    """The reply to a command that is sent together with ASKING, whose own reply is dropped."""

    def deliver(self, reply: Any, completed: list[tuple[ReplyObserver, Any]]) -> bool:
        """Take the next reply and return whether it is that of the command."""
        self.replies.append(None)
        if len(self.replies) < len(self.commands):
            return False
        if self.done():
            self.deliver_orphan(reply)
        else:
            self.set_result(reply)
            if self.observer is not None:
                completed.append((self.observer, reply))
        return True


CallFuture: TypeAlias = CommandFuture | BatchFuture
