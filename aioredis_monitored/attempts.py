"""Trying again: the pauses between the attempts of one call, and the deadline over all of them."""

import asyncio
import builtins
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from redis.exceptions import ReadOnlyError, TimeoutError  # noqa: A004

from aioredis_monitored.multiplexer import Lost
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.traits import Traits

T = TypeVar("T")


async def persist(
    pool: MonitoredConnectionPool, traits: Traits, attempt: Callable[[], Awaitable[T]], failure: Lost, started: float
) -> T:
    """Go on after a first attempt has failed, for as long as the policy allows.

    Args:
        pool: Whose policy it is.
        traits: Those of the command, or of a whole pipeline.
        attempt: Tries once more; raises ``Lost``.
        failure: Of the first attempt.
        started: The monotonic clock's time when the call began.

    Raises:
        redis.exceptions.RedisError: The error of the last attempt.
    """
    policy = pool.retry_policy
    failures = 1
    attempted = started
    while True:
        pause = policy.pause(
            failure.error, written=failure.written, traits=traits, failures=failures, elapsed=monotonic() - started
        )
        if pause is None:
            raise failure.error
        if isinstance(failure.error, ReadOnlyError):
            # Behind the same name there may be another server by now.
            pool.renew(attempted)
        await asyncio.sleep(pause)
        attempted = monotonic()
        try:
            async with asyncio.timeout(policy.deadline and started + policy.deadline - monotonic()):
                result = await attempt()
        except Lost as lost:
            failure = lost
        except builtins.TimeoutError:
            cut = TimeoutError(f"No reply in {policy.deadline} s, with {failures + 1} attempts")
            cut.__cause__ = failure.error
            failure = Lost(cut, written=failure.written)
        else:
            return result
        failures += 1
