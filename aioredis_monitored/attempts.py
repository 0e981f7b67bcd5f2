"""Trying again: one loop for every caller, and the deadline over all attempts of one call."""

import builtins
from asyncio import sleep  # as redis-py does: applications' tests replace asyncio.sleep, for their own pauses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf, isinf
from time import monotonic
from typing import Generic, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    RedisError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from aioredis_monitored.deadline import patient_timeout, replies_in_time
from aioredis_monitored.multiplexer import Late, Lost
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.retry import is_hang_up, may_pass
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.traits import Traits

T = TypeVar("T")

# One attempt of a call. It gets the seconds that it may take (``None`` for no bound but that of each reply), and the
# number of connections that the call has been written to and lost. It raises ``Lost``, or ``Late`` when the seconds are
# over.
Attempt = Callable[[float | None, int], Awaitable[T]]
# Gives each attempt a connection that no other call uses, and takes it back.
Connecting = Callable[[], AbstractAsyncContextManager[AbstractConnection]]


@asynccontextmanager
async def attempt_on(
    pool: MonitoredConnectionPool,
    seconds: float | None,
    connecting: AbstractAsyncContextManager[AbstractConnection],
    wait: float | None = None,
) -> AsyncIterator[AbstractConnection]:
    """One attempt of a call on a connection of its own.

    Args:
        pool: Whose connection it is.
        seconds: How long the attempt may take; ``None`` for no bound but that of the replies.
        connecting: Gives the connection, before which nothing of the call is written.
        wait: Seconds that all replies together may take beside ``socket_timeout``; default ``None``, if the block
            bounds them itself.

    Raises:
        Lost: The attempt failed.
    """
    is_usable = False
    try:
        async with patient_timeout(seconds) as limit, connecting as connection:
            is_usable = True
            if wait is None:
                yield connection
            else:
                async with replies_in_time(connection, wait):
                    yield connection
    except WatchError:
        # The caller's to begin anew.
        raise
    except RedisError as error:
        raise Lost(error, written=is_usable) from error
    except builtins.TimeoutError:
        if not limit.expired():
            # A pipeline's response callback's own.
            raise
        raise Late(written=is_usable) from None
    pool.retry_policy.is_out_of_reach = False


async def attempted(
    pool: MonitoredConnectionPool, traits: Traits, attempt: Attempt[T], wait: float, operation: Observer | None
) -> T:
    """Make a call, in as many attempts as the pool's policy allows; the arguments are those of ``retried``."""
    started = monotonic()
    try:
        return await attempt(None, 0)
    except Lost as lost:
        failure = lost
    return await retried(pool, traits, attempt, failure, started, wait, operation)


async def retried(
    pool: MonitoredConnectionPool,
    traits: Traits,
    attempt: Attempt[T],
    failure: Lost,
    started: float,
    wait: float,
    operation: Observer | None,
) -> T:
    """Go on with a call after its first attempt has failed, for as long as the pool's policy allows.

    Args:
        pool: Whose policy it is.
        traits: Those of the command, or of a whole pipeline.
        attempt: Tries once more.
        failure: Of the first attempt.
        started: The monotonic clock's time when the call began.
        wait: Seconds for which the server may hold the reply back, beside what it may take anyway.
        operation: Learns of the pauses, in which it waits.

    Raises:
        redis.exceptions.RedisError: The error of the last attempt, or of the one before it if the deadline has cut the
            last one short; of a write that was sent by then, it is a ``TimeoutError``, as it may have run.
    """
    call = _Call(pool, traits, attempt, started, wait, operation)
    try:
        return await repeated(call.attempt_again, failure, call.next_delay, call.pause)
    except Late as late:
        if late.written and not traits.repeatable:
            # The error of the attempt before would deny what this one may have done.
            raise TimeoutError(f"no reply in {call.bound} s") from call.failure.error
        if not (late.written or pool.is_connected()):
            pool.retry_policy.is_out_of_reach = True
    except Lost:
        pass
    raise call.failure.error


class _Call(Generic[T]):
    """A call that has failed before, as the loop asks about it; the arguments are those of ``retried``.

    Attributes:
        bound: Seconds that the call may take in all; ``None`` for any time.
        failure: The last one that is not the deadline's.
    """

    failure: Lost

    def __init__(
        self,
        pool: MonitoredConnectionPool,
        traits: Traits,
        attempt: Attempt[T],
        started: float,
        wait: float,
        operation: Observer | None,
    ) -> None:
        self._policy = pool.retry_policy
        self._traits = traits
        self._attempt = attempt
        self._started = started
        self._operation = operation
        self._losses = 0
        self._was_too_late = False
        deadline = self._policy.deadline
        self.bound = None if deadline is None or isinf(wait) else deadline + wait

    def next_delay(self, failure: Exception, failures: int) -> float | None:
        if isinstance(failure, Late) or not isinstance(failure, Lost):
            return None
        if not self._was_too_late:
            self._losses += failure.written and is_hang_up(failure.error)
        self.failure = failure
        return self._policy.pause(
            failure.error,
            written=failure.written,
            traits=self._traits,
            failures=failures - self._was_too_late,
            losses=self._losses,
            elapsed=monotonic() - self._started,
        )

    async def pause(self, seconds: float) -> None:
        paused = monotonic()
        try:
            await sleep(seconds)
        finally:
            if self._operation is not None:
                self._operation.waited(monotonic() - paused, 0)

    async def attempt_again(self) -> T:
        elapsed = monotonic() - self._started
        if self._policy.deadline is not None and elapsed >= self._policy.deadline:
            # The event loop was busy, and no attempt begins; the policy takes note that all were in vain.
            self._was_too_late = True
            raise self.failure
        return await self._attempt(None if self.bound is None else self.bound - elapsed, self._losses)


async def until_answered(
    attempt: Callable[[], Awaitable[T]],
    delays: Callable[[int], float],
    *,
    seconds: float = inf,
    after_refusal: Callable[[int], float] | None = None,
    on_failure: Callable[[RedisError], object] | None = None,
    pause: Callable[[float], Awaitable[object]] = sleep,
) -> T:
    """Repeat what may be repeated in any case while its errors may pass by themselves (see ``retry.may_pass``).

    Args:
        attempt: Tries once.
        delays: Gives the seconds to wait, of the number of failures.
        seconds: How long after the first attempt's beginning a further one may follow a failure; default ``inf``.
        after_refusal: Seconds to wait, as ``delays``, after credentials were refused; default ``None``: that is raised.
        on_failure: Called with each error that is followed by another attempt.
        pause: Waits for the seconds that it is given, or less.

    Raises:
        redis.exceptions.RedisError: One that does not pass, or the last one.
    """
    deadline = monotonic() + seconds

    def next_delay(error: Exception, failures: int) -> float | None:
        delay = after_refusal if isinstance(error, AuthenticationError) else delays if may_pass(error) else None
        if not isinstance(error, RedisError) or delay is None or monotonic() > deadline:
            return None
        if on_failure is not None:
            on_failure(error)
        return delay(failures)

    try:
        return await attempt()
    except RedisError as error:
        failure = error
    return await repeated(attempt, failure, next_delay, pause)


async def repeated(
    attempt: Callable[[], Awaitable[T]],
    failure: Exception,
    next_delay: Callable[[Exception, int], float | None],
    pause: Callable[[float], Awaitable[object]],
) -> T:
    """Repeat an attempt that has failed until one succeeds or is the last: the loop under all that is tried again.

    Args:
        attempt: Tries once more.
        failure: What the first attempt has raised.
        next_delay: Gives the seconds before the next attempt, of the last failure and the number of failures; ``None``
            if there is none, and the failure is raised.
        pause: Waits for the seconds that it is given.
    """
    failures = 1
    while (delay := next_delay(failure, failures)) is not None:
        await pause(delay)
        try:
            return await attempt()
        except (Lost, RedisError) as error:
            failure = error
        failures += 1
    raise failure
