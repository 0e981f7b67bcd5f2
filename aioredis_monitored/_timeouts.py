"""Timeouts that tolerate a busy event loop: data that has arrived in time counts, even if it is read late."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from math import inf, isinf
from typing import Any, Final, cast

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

# The delay of a timer that means that the event loop was busy.
LATE_SECONDS: Final = 0.01


@asynccontextmanager
async def lag_tolerant_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """Limit the time of the block like ``asyncio.timeout``, extended by the delay of a busy event loop.

    If the event loop is late when the time is over, the block gets that delay, but no more than the timeout itself, to
    read what has arrived meanwhile.

    Args:
        seconds: How long the block may take; ``None`` for any time.

    Yields:
        The timeout; its ``expired()`` is true after it has raised.

    Raises:
        TimeoutError: The block took longer.
    """
    async with asyncio.timeout(None) as timeout:
        if seconds is None:
            yield timeout
            return
        expiry = _Expiry(timeout, seconds)
        try:
            yield timeout
        finally:
            expiry.timer.cancel()


class _Expiry:
    """Expires a timeout when its time is over, later by the delay of a busy event loop."""

    # No closure that names itself: it would be a reference cycle for each call on a dedicated connection.
    __slots__ = ("_due", "_loop", "_seconds", "_timeout", "timer")

    def __init__(self, timeout: asyncio.Timeout, seconds: float) -> None:
        self._timeout = timeout
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + seconds
        self.timer = self._loop.call_at(self._due, self._on_due)

    def _on_due(self) -> None:
        delay = self._loop.time() - self._due
        if delay > LATE_SECONDS:
            self.timer = self._loop.call_later(min(delay, self._seconds), self._expire)
        else:
            self._expire()

    def _expire(self) -> None:
        self._timeout.reschedule(self._loop.time())


@asynccontextmanager
async def reply_timeout(connection: AbstractConnection, wait: float) -> AsyncIterator[None]:
    """Limit the time of all replies in the block together; redis-py limits each of them, by the clock alone.

    Args:
        connection: The connection; without a ``socket_timeout``, there is no limit.
        wait: Seconds that the replies may take in addition to its ``socket_timeout``; ``inf`` for any time.

    Raises:
        redis.exceptions.TimeoutError: The replies took longer.
    """
    socket_timeout = connection.socket_timeout
    if socket_timeout is None:
        yield
        return
    limit = socket_timeout + wait
    connection.socket_timeout = None
    try:
        async with lag_tolerant_timeout(None if isinf(limit) else limit) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise exceptions.TimeoutError(f"no reply in {limit:g} s") from None
    finally:
        connection.socket_timeout = socket_timeout


class DeadlineTimer:
    """Limits the time of blocks like ``lag_tolerant_timeout``, in a quarter of its time while no block is late.

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
