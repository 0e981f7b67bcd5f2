"""One attempt of a call on a dedicated connection, and the loop over attempts under everything that is retried."""

from asyncio import sleep  # as redis-py does: an application's tests replace asyncio.sleep for its own delays
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf, isinf
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._commands.traits import Traits, counts_connection_writes
from aioredis_monitored._multiplexer import AttemptFailed, DeadlineExceeded, is_protocol_error
from aioredis_monitored._redispy.overrides import check_health
from aioredis_monitored._redispy.sockets import is_closed_by_peer, is_readable
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._timeouts import LagTolerantTimeout, ReplyTimeout
from aioredis_monitored.errors import DedicatedConnectionError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_connection_loss, is_transient
from aioredis_monitored.pool.routes import FailureRoute

T = TypeVar("T")

# One attempt of a call. Its arguments are the seconds that it may take (``None`` for no bound but each reply's), and
# the number of connections that the call was written to and that were lost. It raises ``AttemptFailed``, or
# ``DeadlineExceeded`` when the seconds are over.
Attempt = Callable[[float | None, int], Awaitable[T]]
# Gives each attempt a connection of the pool that it goes to, which no other call uses, and takes it back.
AcquireConnection = Callable[[MonitoredConnectionPool], AbstractAsyncContextManager[AbstractConnection]]


# One attempt on a dedicated connection.


@asynccontextmanager
async def dedicated_attempt(
    pool: MonitoredConnectionPool,
    seconds: float | None,
    acquired: AbstractAsyncContextManager[AbstractConnection],
    wait: float | None = None,
) -> AsyncIterator[AbstractConnection]:
    """Make one attempt of a call in the block.

    Args:
        pool: The connection's pool.
        seconds: How long the attempt may take; ``None`` for no bound but the replies'.
        acquired: Gives the connection, before which nothing of the call is written.
        wait: Seconds that all replies together may take in addition to ``socket_timeout``; default ``None``, if the
            block bounds them itself.

    Raises:
        AttemptFailed: The attempt failed.
        DeadlineExceeded: It took longer than ``seconds``.
    """
    is_acquired = False
    try:
        async with LagTolerantTimeout(seconds) as limit, acquired as connection:
            is_acquired = True
            if wait is None:
                yield connection
            else:
                async with ReplyTimeout(connection, wait):
                    yield connection
    except WatchError:
        # The caller begins anew.
        raise
    except RedisError as error:
        raise AttemptFailed(error, may_have_run=is_acquired) from error
    except TimeoutError:
        if not limit.expired():
            # Raised by a response callback of a pipeline.
            raise
        raise DeadlineExceeded(may_have_run=is_acquired) from None
    pool.retry_policy.server_unreachable = False


async def acquire_from(pool: MonitoredConnectionPool, observer: Observer | None) -> AbstractConnection:
    """Acquire a connection that ``release`` gives back, and report it to the observer of the call."""
    connection = await pool.acquire(None if observer is None else observer.add_wait)
    if observer is not None:
        observer.set_connection(connection)
    return connection


class ConnectionInUse:
    """Checks an acquired connection's health before the block, and explains an error that closing the pool causes."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: MonitoredConnectionPool, connection: AbstractConnection) -> None:
        self._pool = pool
        self._connection = connection

    async def __aenter__(self) -> None:
        try:
            # redis-py would check while it sends; a failure here means that nothing was sent.
            await check_health(self._connection)
            self._pool.write_pending()
        except AttributeError as error:
            self._explain(error)
            raise

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if isinstance(error, AttributeError):
            self._explain(error)

    def _explain(self, error: AttributeError) -> None:
        if error.obj is None and not self._pool.is_acquired(self._connection):
            # The pool was closed while redis-py was about to write, and the connection has no writer any more.
            raise self._pool.closed_error() from error


class DedicatedConnection:
    """Acquires a connection for one attempt (see ``dedicated_attempt``), and gives it back.

    Commands that were called earlier are written earlier: the shared connection writes at once what it would write at
    the end of this tick. Nothing waits for that, and a server may run what arrives on one connection before what
    arrived on another one.
    """

    __slots__ = ("_connection", "_observer", "_pool", "_use")

    def __init__(self, pool: MonitoredConnectionPool, observer: Observer | None) -> None:
        self._pool = pool
        self._observer = observer

    async def __aenter__(self) -> AbstractConnection:
        connection = self._connection = await acquire_from(self._pool, self._observer)
        self._use = ConnectionInUse(self._pool, connection)
        try:
            await self._use.__aenter__()
        except BaseException as error:
            await self._give_back(error)
            raise
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._use.__aexit__(kind, error, traceback)
        finally:
            await self._give_back(error)

    async def _give_back(self, error: BaseException | None) -> None:
        try:
            if isinstance(error, ResponseError):
                leave_refusing_server(self._pool, error, self._connection)
        finally:
            await self._pool.release(self._connection)


def leave_refusing_server(
    pool: MonitoredConnectionPool, outcome: object, connection: AbstractConnection | None = None, *, since: float = inf
) -> None:
    """Leave a connection whose server refuses writes, or has refused a request and hangs up.

    Another server may answer behind the name of one that refuses writes; and the end of a connection may arrive after
    its next user.

    Args:
        pool: The connection's pool.
        outcome: An error, or the results of a pipeline.
        connection: An acquired connection; default: the shared one.
        since: When the attempt began, by the monotonic clock: a shared connection that was made later stays; default:
            none stays.
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


def is_lost(pool: MonitoredConnectionPool, connection: AbstractConnection) -> bool:
    """Whether an acquired connection that owes no reply has ended, or cannot be used for another reason."""
    # An altered connection may receive messages that no call asked for.
    has_ended = is_closed_by_peer if pool.will_discard(connection) else is_readable
    return not connection.is_connected or has_ended(connection) or not pool.is_current(connection)


def reject_write_counting(args: Sequence[Any]) -> None:
    """Reject a command that counts the writes of its connection, where each call may get another connection.

    Raises:
        DedicatedConnectionError: The command is one of these.
    """
    if counts_connection_writes(args):
        message = f"{args[0]} counts the writes of its own connection: use pipeline() or client()"
        raise DedicatedConnectionError(message)


# The loop over attempts.


async def retry(route: FailureRoute, traits: Traits, attempt: Attempt[T], wait: float, observer: Observer | None) -> T:
    """Make a call, in as many attempts as the route's policy allows; the arguments are those of ``retry_failed``."""
    started = monotonic()
    try:
        return await attempt(None, 0)
    except AttemptFailed as failed:
        failure = failed
    return await retry_failed(route, traits, attempt, failure, started, wait, observer)


async def retry_failed(
    route: FailureRoute,
    traits: Traits,
    attempt: Attempt[T],
    failure: AttemptFailed,
    started: float,
    wait: float,
    observer: Observer | None,
) -> T:
    """Retry a call whose first attempt has failed, for as long as the policy allows.

    Args:
        route: Where the attempts go: a pool, or what a cluster's pool returns for the call. Its policy decides.
        traits: Those of the command, or of a whole pipeline.
        attempt: Makes a further attempt.
        failure: The first attempt's failure.
        started: The monotonic clock's time at which the call began.
        wait: Seconds for which the server may hold the reply back, in addition to ``socket_timeout``.
        observer: Is given the delays between attempts, as waiting.

    Raises:
        redis.exceptions.RedisError: The error of the last attempt, or of the one before it if the deadline has cut the
            last one short. If that one was written and running it twice could do harm, it is a ``TimeoutError``: it
            may have run.
    """
    call = _RetriedCall(route, traits, attempt, started, wait, observer)
    try:
        return await _repeat(call.attempt_again, failure, call.next_delay, call.pause)
    except DeadlineExceeded as late:
        if late.may_have_run and not traits.retry_safe:
            # The error of the attempt before would deny what this one may have done.
            raise RedisTimeoutError(f"no reply in {call.bound} s") from call.failure.error
        if not (late.may_have_run or route.is_connected()):
            route.retry_policy.server_unreachable = True
    except AttemptFailed:
        pass
    if call.was_redirected:
        # To a server that has not answered; the redirect is none of the caller's business.
        raise RedisTimeoutError(f"no reply in {call.bound} s") from call.failure.error
    raise call.failure.error


class _RetriedCall(Generic[T]):
    """A call that has failed before, as the loop asks about it; the arguments are those of ``retry_failed``.

    Attributes:
        bound: Seconds that the whole call may take; ``None`` for any time.
        failure: The last failure that is not the deadline's.
        was_redirected: Whether that was a redirect to another server.
    """

    failure: AttemptFailed

    def __init__(
        self,
        route: FailureRoute,
        traits: Traits,
        attempt: Attempt[T],
        started: float,
        wait: float,
        observer: Observer | None,
    ) -> None:
        self._route = route
        self._traits = traits
        self._attempt = attempt
        self._started = started
        self._observer = observer
        self._losses = 0
        self._redirects = 0
        self.was_redirected = self._was_too_late = False
        deadline = route.retry_policy.deadline
        self.bound = None if deadline is None or isinf(wait) else deadline + wait

    def next_delay(self, failure: Exception, failures: int) -> float | None:
        if isinstance(failure, DeadlineExceeded) or not isinstance(failure, AttemptFailed):
            return None
        if not self._was_too_late:
            self._losses += failure.may_have_run and is_connection_loss(failure.error)
        self.failure = failure
        elapsed = monotonic() - self._started
        delay = self._route.follow(failure)
        self.was_redirected = delay is not None
        if delay is not None:
            self._redirects += 1
            return delay if self.bound is None or elapsed + delay < self.bound else None
        return self._route.retry_policy.next_delay(
            failure.error,
            may_have_run=failure.may_have_run,
            traits=self._traits,
            failures=failures - self._redirects - self._was_too_late,
            losses=self._losses,
            elapsed=elapsed,
        )

    async def pause(self, seconds: float) -> None:
        if not seconds:
            return
        started = monotonic()
        try:
            await sleep(seconds)
        finally:
            if self._observer is not None:
                self._observer.add_wait(monotonic() - started, 0)

    async def attempt_again(self) -> T:
        elapsed = monotonic() - self._started
        deadline = self._route.retry_policy.deadline
        if not self.was_redirected and deadline is not None and elapsed >= deadline:
            # The event loop was busy, and no attempt begins; the policy learns that all attempts failed.
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
    """Repeat an attempt that is safe to repeat while its errors are transient (see ``pool.retry.is_transient``).

    Args:
        attempt: Makes one attempt.
        delays: Returns the seconds to wait after a number of failures.
        seconds: For how long after the first attempt's beginning a further one may follow a failure; default ``inf``.
        after_refusal: As ``delays``, after credentials were refused; default ``None``: that error is raised.
        on_failure: Called with each error that is followed by another attempt.
        pause: Waits for the given seconds, or less.
        failure: What the first attempt has raised; default ``None``: it is still to be made.

    Raises:
        redis.exceptions.RedisError: An error that is not transient, or the last one.
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
    """Repeat an attempt that has failed until one succeeds or no further one may follow.

    Args:
        attempt: Makes a further attempt.
        failure: What the first attempt has raised.
        next_delay: Returns the seconds before the next attempt, from the last failure and the number of failures;
            ``None`` raises the failure.
        pause: Waits for the given seconds.
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
