"""Deadlines of many calls, kept by one timer."""

import asyncio
from collections.abc import Awaitable
from contextvars import Context
from math import inf
from typing import Any, TypeVar, cast

from aioredis_monitored.deadline import LATE

T = TypeVar("T")


class Deadlines:
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

    async def before(self, deadline: float, attempt: Awaitable[T]) -> T:
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
                raise TimeoutError from None
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
            if late > LATE and spare > 0:
                self._pending[task] = now + min(late, spare), 0.0
            else:
                del self._pending[task]
                self._late.add(task)
                task.cancel()
        if self._pending:
            self._arm(loop, min(deadline for deadline, _ in self._pending.values()))
