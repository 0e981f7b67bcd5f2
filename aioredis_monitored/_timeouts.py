"""Timeouts that judge by what has arrived, not by the clock alone."""

import asyncio
import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from math import inf, isinf
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError  # noqa: A004

# Seconds by which a timer is late if the event loop was busy with something else.
LATE_SECONDS: Final = 0.01


@asynccontextmanager
async def lag_tolerant_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """As ``asyncio.timeout``, but an event loop that was busy when the time was over reads what came meanwhile.

    For that, it gets the time by which it is late, and no more than the timeout itself.

    Args:
        seconds: How long the block may take; ``None`` for any time.

    Raises:
        builtins.TimeoutError: It took longer; ``expired()`` of what is yielded is true then.
    """
    async with asyncio.timeout(None) as limit:
        if seconds is None:
            yield limit
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timers: list[asyncio.TimerHandle] = []

        def expire() -> None:
            late = loop.time() - due
            if late > LATE_SECONDS and len(timers) == 1:
                timers.append(loop.call_later(min(late, seconds), expire))
            else:
                limit.reschedule(loop.time())

        timers.append(loop.call_at(due, expire))
        try:
            yield limit
        finally:
            timers[-1].cancel()


@asynccontextmanager
async def reply_timeout(connection: AbstractConnection, wait: float) -> AsyncIterator[None]:
    """Bound the time of all replies together, which redis-py bounds one by one, and by the clock alone.

    Args:
        connection: Whose ``socket_timeout`` counts; ``None`` bounds nothing.
        wait: Seconds that they may take beside that; ``inf`` for any time.

    Raises:
        redis.exceptions.TimeoutError: They took longer.
    """
    socket_timeout = connection.socket_timeout
    if socket_timeout is None:
        yield
        return
    bound = socket_timeout + wait
    connection.socket_timeout = None
    try:
        async with lag_tolerant_timeout(None if isinf(bound) else bound) as limit:
            yield
    except builtins.TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"no reply in {bound:g} s") from None
    finally:
        connection.socket_timeout = socket_timeout


class DeadlineTimer:
    """Bounds blocks as ``lag_tolerant_timeout`` does, in a quarter of its time while nothing is late.

    One timer serves all tasks; each acknowledgement of a message has a deadline.
    """

    def __init__(self) -> None:
        # The deadline of each, and the seconds by which that may be put off.
        self._pending: dict[asyncio.Task[Any], tuple[float, float]] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._when = inf

    def until(self, deadline: float) -> "_Deadline":
        """Bound the block of ``with``; each task is in one such block at a time.

        Args:
            deadline: When the block is cancelled, by the event loop's clock. If the loop was busy then, the block gets
                the time by which that is noticed late to read what came meanwhile, and no more than it had anyway.

        Raises:
            TimeoutError: The block took longer.
        """
        return _Deadline(self, deadline)

    def enter(self, deadline: float) -> asyncio.Task[Any]:
        """Begin the current task's block, and return the task."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        self._pending[task] = deadline, deadline - loop.time()
        if deadline < self._when or loop is not self._loop:
            self._arm(loop, deadline)
        return task

    def exit(self, task: asyncio.Task[Any]) -> bool:
        """End the task's block, and return whether it was cancelled because it was late."""
        self._pending.pop(task, None)
        is_late = task in self._late
        if is_late:
            self._late.discard(task)
            task.uncancel()
        return is_late

    def _arm(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # A timer of an event loop that has ended never comes.
        self._loop, self._when = loop, when
        self._timer = loop.call_at(when, self._cancel_late, loop, context=Context())

    def _cancel_late(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._when = None, inf
        now = loop.time()
        over = [(task, now - deadline, spare) for task, (deadline, spare) in self._pending.items() if deadline <= now]
        for task, late, spare in over:
            if late > LATE_SECONDS and spare > 0:
                self._pending[task] = now + min(late, spare), 0.0
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
        # Another cancellation than the timer's counts more.
        if is_late and isinstance(error, asyncio.CancelledError) and self._task.cancelling() <= self._cancellations:
            raise builtins.TimeoutError from None
