"""Timeouts that judge by what has arrived, not by the clock alone."""

import asyncio
import builtins
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import Context
from math import inf, isinf
from typing import Any, Final, TypeVar, cast

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


T = TypeVar("T")


class DeadlineTimer:
    """Does what ``patient_timeout`` does, for a quarter of the time while nothing is late.

    Every message is acknowledged within one.
    """

    def __init__(self) -> None:
        # The deadline of each, and the seconds by which that may be put off.
        self._pending: dict[asyncio.Task[Any], tuple[float, float]] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._when = inf

    async def run_until(self, deadline: float, attempt: Awaitable[T]) -> T:
        """Await an attempt; one at a time in each task.

        Args:
            deadline: When it is cancelled, by the event loop's clock. If the loop was busy then, it gets the time by
                which that is noticed late to read what came meanwhile, and no more than it had anyway.
            attempt: What to await.

        Raises:
            TimeoutError: It took longer.
        """
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        cancellations = task.cancelling()
        self._pending[task] = deadline, deadline - loop.time()
        if deadline < self._when or loop is not self._loop:
            self._arm(loop, deadline)
        try:
            return await attempt
        except asyncio.CancelledError:
            if task in self._late and task.cancelling() - 1 <= cancellations:
                raise builtins.TimeoutError from None
            raise
        finally:
            self._pending.pop(task, None)
            if task in self._late:
                self._late.discard(task)
                task.uncancel()

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
