"""Trying again: one loop for every caller, and the deadline over all attempts of one call."""

import asyncio
import builtins
from asyncio import sleep  # as redis-py does: applications' tests replace asyncio.sleep, for their own pauses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf, isinf
from time import monotonic, perf_counter
from typing import Any, Final, Generic, TypeVar, cast

from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    AuthenticationError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    WatchError,
)

from aioredis_monitored._cancellation import wait_shielded
from aioredis_monitored._commands.traits import Traits, counts_connection_writes
from aioredis_monitored._multiplexer import AttemptFailed, DeadlineExceeded, is_protocol_error
from aioredis_monitored._redispy.connections import with_safe_send
from aioredis_monitored._redispy.sockets import is_closed_by_peer, is_readable
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._timeouts import lag_tolerant_timeout, reply_timeout
from aioredis_monitored.errors import DedicatedConnectionError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_connection_loss, is_transient

# Seconds in which the connection of a plain pool whose caller has left goes back; later, it does so unwatched.
_RELEASE_SECONDS: Final = 1.0

T = TypeVar("T")

# One attempt of a call. It gets the seconds that it may take (``None`` for no bound but that of each reply), and the
# number of connections that the call has been written to and lost. It raises ``Lost``, or ``Late`` when the seconds are
# over.
Attempt = Callable[[float | None, int], Awaitable[T]]
# Gives each attempt a connection that no other call uses, and takes it back.
AcquireConnection = Callable[[], AbstractAsyncContextManager[AbstractConnection]]


@asynccontextmanager
async def dedicated_attempt(
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
        async with lag_tolerant_timeout(seconds) as limit, connecting as connection:
            is_usable = True
            if wait is None:
                yield connection
            else:
                async with reply_timeout(connection, wait):
                    yield connection
    except WatchError:
        # The caller's to begin anew.
        raise
    except RedisError as error:
        raise AttemptFailed(error, written=is_usable) from error
    except builtins.TimeoutError:
        if not limit.expired():
            # A pipeline's response callback's own.
            raise
        raise DeadlineExceeded(written=is_usable) from None
    pool.retry_policy.server_unreachable = False


async def retry(
    pool: MonitoredConnectionPool, traits: Traits, attempt: Attempt[T], wait: float, operation: Observer | None
) -> T:
    """Make a call, in as many attempts as the pool's policy allows; the arguments are those of ``retried``."""
    started = monotonic()
    try:
        return await attempt(None, 0)
    except AttemptFailed as lost:
        failure = lost
    return await retry_failed(pool, traits, attempt, failure, started, wait, operation)


async def retry_failed(
    pool: MonitoredConnectionPool,
    traits: Traits,
    attempt: Attempt[T],
    failure: AttemptFailed,
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
    call = _RetriedCall(pool, traits, attempt, started, wait, operation)
    try:
        return await _repeat(call.attempt_again, failure, call.next_delay, call.pause)
    except DeadlineExceeded as late:
        if late.written and not traits.retry_safe:
            # The error of the attempt before would deny what this one may have done.
            raise TimeoutError(f"no reply in {call.bound} s") from call.failure.error
        if not (late.written or pool.is_connected()):
            pool.retry_policy.server_unreachable = True
    except AttemptFailed:
        pass
    raise call.failure.error


class _RetriedCall(Generic[T]):
    """A call that has failed before, as the loop asks about it; the arguments are those of ``retried``.

    Attributes:
        bound: Seconds that the call may take in all; ``None`` for any time.
        failure: The last one that is not the deadline's.
    """

    failure: AttemptFailed

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
        if isinstance(failure, DeadlineExceeded) or not isinstance(failure, AttemptFailed):
            return None
        if not self._was_too_late:
            self._losses += failure.written and is_connection_loss(failure.error)
        self.failure = failure
        return self._policy.next_delay(
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
                self._operation.add_wait(monotonic() - paused, 0)

    async def attempt_again(self) -> T:
        elapsed = monotonic() - self._started
        if self._policy.deadline is not None and elapsed >= self._policy.deadline:
            # The event loop was busy, and no attempt begins; the policy takes note that all were in vain.
            self._was_too_late = True
            raise self.failure
        return await self._attempt(None if self.bound is None else self.bound - elapsed, self._losses)


async def retry_until_answered(
    attempt: Callable[[], Awaitable[T]],
    delays: Callable[[int], float],
    *,
    seconds: float = inf,
    after_refusal: Callable[[int], float] | None = None,
    on_failure: Callable[[RedisError], object] | None = None,
    pause: Callable[[float], Awaitable[object]] = sleep,
    failure: RedisError | None = None,
) -> T:
    """Repeat what may be repeated in any case while its errors may pass by themselves (see ``retry.may_pass``).

    Args:
        attempt: Tries once.
        delays: Gives the seconds to wait, of the number of failures.
        seconds: How long after the first attempt's beginning a further one may follow a failure; default ``inf``.
        after_refusal: Seconds to wait, as ``delays``, after credentials were refused; default ``None``: that is raised.
        on_failure: Called with each error that is followed by another attempt.
        pause: Waits for the seconds that it is given, or less.
        failure: What the first attempt has raised; default ``None``: it is still to be made.

    Raises:
        redis.exceptions.RedisError: One that does not pass, or the last one.
    """
    deadline = monotonic() + seconds

    def next_delay(error: Exception, failures: int) -> float | None:
        delay = after_refusal if isinstance(error, AuthenticationError) else delays if is_transient(error) else None
        if not isinstance(error, RedisError) or delay is None or monotonic() > deadline:
            return None
        if on_failure is not None:
            on_failure(error)
        return delay(failures)

    if failure is None:
        try:
            return await attempt()
        except RedisError as error:
            failure = error
    return await _repeat(attempt, failure, next_delay, pause)


async def _repeat(
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
        except (AttemptFailed, RedisError) as error:
            failure = error
        failures += 1
    raise failure


def is_lost(pool: MonitoredConnectionPool, connection: AbstractConnection) -> bool:
    """Whether a borrowed connection that owes nothing has ended, or cannot be used for another reason."""
    # One that was altered may get messages unasked.
    ended = is_closed_by_peer if pool.will_discard(connection) else is_readable
    return not connection.is_connected or ended(connection)


def reject_write_counting(args: Sequence[Any]) -> None:
    """Refuse a command that counts the writes of a connection, where each call may get another one.

    Raises:
        OwnConnectionError: It is one.
    """
    if counts_connection_writes(args):
        message = f"{args[0]} counts the writes of its own connection: use pipeline() or client()"
        raise DedicatedConnectionError(message)


async def acquire_from(pool: ConnectionPool, operation: Observer | None) -> Connection:
    """A connection of any pool, whose operation is told of it; give it back with ``release``."""
    if isinstance(pool, MonitoredConnectionPool):
        connection = await pool.acquire(None if operation is None else operation.add_wait)
    else:
        asked = perf_counter()
        try:
            connection = await _lent_elsewhere(pool)
        finally:
            if operation is not None:
                # It does not tell how much of that was connecting.
                operation.add_wait(perf_counter() - asked, 0)
    if operation is not None:
        operation.set_connection(connection)
    return cast("Connection", connection)


async def _lent_elsewhere(pool: ConnectionPool) -> AbstractConnection:
    """A connection of a plain pool, which is borrowed in a task of its own.

    It may have to be made, and what makes it may swallow a cancellation: see ``sending_soundly``.
    """
    borrowing: asyncio.Future[AbstractConnection] = asyncio.ensure_future(pool.get_connection())  # type: ignore[no-untyped-call]
    try:
        await asyncio.wait([borrowing])
    except asyncio.CancelledError:
        borrowing.cancel()
        giving_back = asyncio.ensure_future(_give_back(pool, borrowing))
        await wait_shielded(giving_back, asyncio.get_running_loop().time() + _RELEASE_SECONDS)
        raise
    return with_safe_send(borrowing.result())


async def _give_back(pool: ConnectionPool, borrowing: "asyncio.Future[AbstractConnection]") -> None:
    await asyncio.wait([borrowing])
    if not borrowing.cancelled() and borrowing.exception() is None:
        connection = borrowing.result()
        # The pool may be closed by now.
        await connection.disconnect(nowait=True)
        await pool.release(connection)


@asynccontextmanager
async def dedicated_connection(
    pool: MonitoredConnectionPool, operation: Observer | None
) -> AsyncIterator[AbstractConnection]:
    """A connection for one attempt (see ``attempt_on``).

    What was called before is sent before: the shared connection writes what it would write at the end of this tick. It
    is not waited for, and a server may still run what comes on one connection before what came on another one.
    """
    connection = await acquire_from(pool, operation)
    try:
        async with _in_use(pool, connection):
            yield connection
    except ResponseError as error:
        leave_refusing_server(pool, error, connection)
        raise
    finally:
        await pool.release(connection)


@asynccontextmanager
async def _in_use(pool: MonitoredConnectionPool, connection: AbstractConnection) -> AsyncIterator[None]:
    try:
        # redis-py would do it on sending; but if it fails, nothing was sent.
        await connection.check_health()  # type: ignore[no-untyped-call]
        pool.write_pending()
        yield
    except AttributeError as error:
        if error.obj is not None or pool.is_acquired(connection):
            raise
        # Closed while redis-py was about to write to it, and found no writer any more.
        raise pool.closed_error() from error


def leave_refusing_server(
    pool: MonitoredConnectionPool, outcome: object, connection: AbstractConnection | None = None, *, since: float = 0.0
) -> None:
    """Leave the connection if its server refuses writes, or has refused what was sent and hangs up.

    Behind the name of a server that refuses writes there may be another one by now; and the end of a connection may
    arrive after its next user.

    Args:
        pool: Whose connection it is.
        outcome: An error, or the results of a pipeline.
        connection: A borrowed one; default the shared one.
        since: When the attempt began, by the monotonic clock.
    """
    results = outcome if isinstance(outcome, list) else (outcome,)
    if not any(
        isinstance(each, ReadOnlyError) or (isinstance(each, ResponseError) and is_protocol_error(each))
        for each in results
    ):
        return
    if connection is not None:
        pool.discard_on_release(connection)
    else:
        pool.retire_connections(since)
