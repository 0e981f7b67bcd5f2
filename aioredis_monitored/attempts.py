"""Trying again: the pauses between the attempts of one call, and the deadline over all of them."""

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from math import isinf
from time import monotonic
from typing import TypeVar

from redis.exceptions import ReadOnlyError, TimeoutError  # noqa: A004

from aioredis_monitored.multiplexer import Lost
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.traits import Traits

T = TypeVar("T")


async def persist(
    pool: MonitoredConnectionPool,
    traits: Traits,
    attempt: Callable[[], Awaitable[T]],
    failure: Lost,
    started: float,
    wait: float,
) -> T:
    """Go on after a first attempt has failed, for as long as the policy allows.

    Args:
        pool: Whose policy it is.
        traits: Those of the command, or of a whole pipeline.
        attempt: Tries once more; raises ``Lost``.
        failure: Of the first attempt.
        started: The monotonic clock's time when the call began.
        wait: Seconds for which the server may hold the reply back, beside what it may take anyway.

    Raises:
        redis.exceptions.RedisError: The error of the last attempt, or of the one before it if the deadline has cut the
            last one short; of a write, that is a ``TimeoutError`` then, as it may have run.
    """
    policy = pool.retry_policy
    bound = None if policy.deadline is None or isinf(wait) else policy.deadline + wait
    outcome = failure.error
    failures = 1
    attempted = started
    while True:
        if isinstance(failure.error, ReadOnlyError):
            # Behind the same name there may be another server by now.
            pool.renew(attempted)
        pause = policy.pause(
            failure.error, written=failure.written, traits=traits, failures=failures, elapsed=monotonic() - started
        )
        if pause is None:
            raise outcome
        await asyncio.sleep(pause)
        attempted = monotonic()
        try:
            async with asyncio.timeout(None if bound is None else started + bound - monotonic()) as limit:
                return await attempt()
        except Lost as lost:
            failure = lost
            outcome = lost.error
        except builtins.TimeoutError:
            if not limit.expired():
                # A response callback's own.
                raise
            # What came of the attempt before tells more, unless it would deny what this one may have done.
            if not traits.repeatable:
                outcome = TimeoutError(f"no reply in {bound} s")
                outcome.__cause__ = failure.error
        failures += 1
