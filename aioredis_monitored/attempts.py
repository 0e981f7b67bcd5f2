"""Trying again: the pauses between the attempts of one call, and the deadline over all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from math import isinf
from time import monotonic
from typing import TypeVar

from redis.exceptions import TimeoutError  # noqa: A004

from aioredis_monitored.multiplexer import Late, Lost
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.traits import Traits

T = TypeVar("T")


async def persist(
    pool: MonitoredConnectionPool,
    traits: Traits,
    attempt: Callable[[float | None], Awaitable[T]],
    failure: Lost,
    started: float,
    wait: float,
    operation: Observer | None,
) -> T:
    """Go on after a first attempt has failed, for as long as the policy allows.

    Args:
        pool: Whose policy it is.
        traits: Those of the command, or of a whole pipeline.
        attempt: Tries once more, for so many seconds at most; raises ``Lost``, or ``Late`` when they are over.
        failure: Of the first attempt.
        started: The monotonic clock's time when the call began.
        wait: Seconds for which the server may hold the reply back, beside what it may take anyway.
        operation: Told of the pauses, in which it waits.

    Raises:
        redis.exceptions.RedisError: The error of the last attempt, or of the one before it if the deadline has cut the
            last one short; of a write that was sent by then, it is a ``TimeoutError``, as it may have run.
    """
    policy = pool.retry_policy
    deadline = policy.deadline
    bound = None if deadline is None or isinf(wait) else deadline + wait
    failures = 1
    late: Late | None = None
    while late is None:
        pause = policy.pause(
            failure.error, written=failure.written, traits=traits, failures=failures, elapsed=monotonic() - started
        )
        if pause is None:
            break
        paused = monotonic()
        try:
            await asyncio.sleep(pause)
        finally:
            if operation is not None:
                operation.waited(monotonic() - paused, 0)
        elapsed = monotonic() - started
        if deadline is not None and elapsed >= deadline:
            # The event loop was busy; the policy notes that all attempts were in vain.
            continue
        try:
            return await attempt(None if bound is None else bound - elapsed)
        except Late as cut:
            late = cut
        except Lost as lost:
            failure = lost
            failures += 1
    if late is not None:
        if late.written and not traits.repeatable:
            # The error of the attempt before would deny what this one may have done.
            raise TimeoutError(f"no reply in {bound} s") from failure.error
        if not (late.written or pool.is_connected()):
            policy.is_out_of_reach = True
    raise failure.error
