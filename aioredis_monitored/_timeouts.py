"""Timeouts that tolerate a busy event loop: data that has arrived in time counts, even if it is read late."""

import asyncio
from contextvars import Context
from math import inf, isinf
from types import TracebackType
from typing import Any, Final, Self, cast

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

# The delay of a timer that means that the event loop was busy.
LATE_SECONDS: Final = 0.01


# Written out, as all further context managers that every call on a dedicated connection enters: one that is made of a
# generator costs six times as much.
class LagTolerantTimeout:
    """Limits the time of the block like ``asyncio.timeout``, extended by the delay of a busy event loop.

    If the event loop is late when the time is over, the block gets that delay, but no more than the timeout itself, to
    read what has arrived meanwhile.

    Args:
        seconds: How long the block may take; ``None`` for any time.

    Raises:
        TimeoutError: The block took longer.
    """

    __slots__ = ("_due", "_loop", "_seconds", "_timeout", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        if self._seconds is not None:
            self._timeout = await asyncio.timeout(None).__aenter__()
            self._loop = asyncio.get_running_loop()
            self._due = self._loop.time() + self._seconds
            self._timer = self._loop.call_at(self._due, self._on_due, self._timeout, self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timeout is not None:
            self._timer.cancel()
            await self._timeout.__aexit__(kind, error, traceback)

    def expired(self) -> bool:
        """Whether it has raised."""
        return self._timeout is not None and self._timeout.expired()

    def _on_due(self, timeout: asyncio.Timeout, extension: float) -> None:
        delay = self._loop.time() - self._due
        if delay > LATE_SECONDS:
            self._timer = self._loop.call_later(min(delay, extension), self._expire, timeout)
        else:
            self._expire(timeout)

    def _expire(self, timeout: asyncio.Timeout) -> None:
        timeout.reschedule(self._loop.time())


class ReplyTimeout:
    """Limits the time of all replies in the block together; redis-py limits each of them, by the clock alone.

    Args:
        connection: The connection; without a ``socket_timeout``, there is no limit.
        wait: Seconds that the replies may take in addition to its ``socket_timeout``; ``inf`` for any time.

    Raises:
        redis.exceptions.TimeoutError: The replies took longer.
    """

    __slots__ = ("_connection", "_limit", "_socket_timeout", "_timeout")

    def __init__(self, connection: AbstractConnection, wait: float) -> None:
        self._connection = connection
        self._socket_timeout = connection.socket_timeout
        self._limit = None if self._socket_timeout is None or isinf(wait) else self._socket_timeout + wait
        self._timeout = LagTolerantTimeout(self._limit)

    async def __aenter__(self) -> None:
        self._connection.socket_timeout = None
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.socket_timeout = self._socket_timeout
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise exceptions.TimeoutError(f"no reply in {self._limit:g} s") from None


class DeadlineTimer:
    """Limits the time of blocks like ``LagTolerantTimeout``, in a quarter of its time while no block is late.

    One timer serves all tasks; every acknowledgement of a message has a deadline.
    """

    def __init__(self) -> None:
        # The deadline of each task, and the seconds by which it may be extended.
        self._pending: dict[asyncio.Task[Any], tuple[float, float]] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._when = inf

    def until(self, deadline: float) -> "_Deadline":
        """Limit the time of the block of ``with``; a task is in one such block at a time.

        Args:
            deadline: When the block is cancelled, by the event loop's clock. If the loop is late then, the block gets
                that delay, but no more than it had in total, to read what has arrived meanwhile.

        Raises:
            TimeoutError: The block took longer.
        """
        return _Deadline(self, deadline)

    def enter(self, deadline: float) -> asyncio.Task[Any]:
        """Begin the block of the current task, and return the task."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        self._pending[task] = deadline, deadline - loop.time()
        if deadline < self._when or loop is not self._loop:
            self._arm(loop, deadline)
        return task

    def exit(self, task: asyncio.Task[Any]) -> bool:
        """End the block of the task, and return whether it was cancelled because it was late."""
        self._pending.pop(task, None)
        is_late = task in self._late
        if is_late:
            self._late.discard(task)
            task.uncancel()
        return is_late

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # A timer of an event loop that has ended never fires.
        self._loop, self._when = loop, when
        self._timer = loop.call_at(when, self._cancel_late, loop, context=Context())

    def _cancel_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._when = None, inf
        now = loop.time()
        expired = [
            (task, now - deadline, extension)
            for task, (deadline, extension) in self._pending.items()
            if deadline <= now
        ]
        for task, delay, extension in expired:
            if delay > LATE_SECONDS and extension > 0:
                self._pending[task] = now + min(delay, extension), 0.0
            else:
                del self._pending[task]
                self._late.add(task)
                task.cancel()
        if self._pending:
            self._arm(loop, min(deadline for deadline, _ in self._pending.values()))


class _Deadline:
    """The block of one task (see ``DeadlineTimer.until``)."""

    __slots__ = ("_cancellations", "_deadline", "_task", "_timer")

    def __init__(self, timer: DeadlineTimer, deadline: float) -> None:
        self._timer = timer
        self._deadline = deadline

    def __enter__(self) -> None:
        self._task = self._timer.enter(self._deadline)
        self._cancellations = self._task.cancelling()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        is_late = self._timer.exit(self._task)
        # A cancellation by anything else takes precedence over the timer's.
        if is_late and isinstance(error, asyncio.CancelledError) and self._task.cancelling() <= self._cancellations:
            raise TimeoutError from None
