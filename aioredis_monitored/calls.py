"""How a command gets to the server: on the shared connection or a borrowed one, once or, where that is safe, again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import isawaitable
from math import isinf
from time import monotonic, perf_counter
from typing import Any, Final, TypeVar, cast

from redis._parsers.helpers import bool_ok, parse_set_result
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from redis.himport import parse_himport_set_args

from aioredis_monitored.attempts import Connecting, attempt_on, retried
from aioredis_monitored.errors import OwnConnectionError, PinnedConnectionLostError, undecodable
from aioredis_monitored.lending import ALTERED_LOST
from aioredis_monitored.multiplexer import ALONE, Lost, is_refusal
from aioredis_monitored.patience import patiently
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.retry import is_answer
from aioredis_monitored.sending import sending_soundly
from aioredis_monitored.sockets import has_ended, is_readable
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.traits import counts_own_writes, server_wait, traits_of

T = TypeVar("T")

# Seconds in which the connection of a plain pool whose caller has left goes back; later, it does so unwatched.
_GOODBYE: Final = 1.0
# These raise for no reply.
_NEVER_FAIL = frozenset(map(id, (bool, bool_ok, parse_set_result)))
# What redis-py takes out of the options before it parses a reply; "keys" is for its client-side cache.
_NOT_FOR_PARSING = frozenset({NEVER_DECODE, EMPTY_RESPONSE, "keys"})


class CallsMixin:
    """Replaces redis-py's way of sending one command, in its client and its pipeline, where the pool is ours."""

    connection: Connection | None
    connection_pool: ConnectionPool
    response_callbacks: dict[str | bytes, Callable[..., Any]]
    # How often it was closed, or reset: a call that began before that must not borrow a connection after it, as no one
    # would give that back.
    _closings = 0
    # The connection of its own on which a call is in flight.
    _busy: AbstractConnection | None = None

    async def _call(
        self,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        operation: Observer | None = None,
        seconds: float | None = None,
        losses: int | None = None,
    ) -> Any:
        """Run one command.

        All in one coroutine: every further one costs a call some 3 %.

        Args:
            pool: The pool of this handle.
            args: The command.
            options: Those of redis-py's ``execute_command``.
            operation: Ended as soon as the reply has come, if it is certain by then that the call will succeed.
            seconds: How long the attempt may take; default ``None``, for no bound but the pool's.
            losses: Of a further attempt, how many connections the call was written to and lost. Default ``None``: this
                is the first attempt, and others follow where that is safe.

        Raises:
            Lost: A further attempt has failed.
        """
        started = monotonic()
        traits = traits_of(args)
        multiplexer = pool.multiplexer
        try:
            if multiplexer is None or not traits.shares:
                return await self._call_borrowed(pool, args, options, seconds, operation)
            if losses is not None and losses >= ALONE:
                async with multiplexer.alone(seconds) as left:
                    return await self._call_borrowed(pool, args, options, left, operation)
            # Past the look-up of redis-py's own dict, which is in Python.
            callback = dict.get(self.response_callbacks, args[0].upper())
            decodes = pool.decodes and NEVER_DECODE not in options
            if operation is not None and (callback is None or (not options and id(callback) in _NEVER_FAIL)):
                operation.certain = pool.surely_decodes if decodes else True
            reply = multiplexer.send(args, None, operation, losses)
            reply = await (reply if seconds is None else reply.within(seconds))
            if isinstance(reply, Exception):
                return _in_place_of_error(pool, reply, options, started)
            pool.retry_policy.is_out_of_reach = False
            if decodes:
                reply = pool.decode(reply)
            if callback is None:
                return reply
            parsed = _parsed(callback, reply, options)
            return await parsed if isawaitable(parsed) else parsed
        except UnicodeDecodeError as error:
            raise undecodable(error) from None
        except Lost as lost:
            if losses is not None:
                raise
            failure = lost
        attempt = partial(self._call, pool, args, options, operation)
        return await retried(pool, traits, attempt, failure, started, server_wait(args) or 0, operation)

    async def _call_borrowed(
        self,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        seconds: float | None,
        operation: Observer | None,
    ) -> Any:
        refuse_counting(args)
        decoding = {NEVER_DECODE: True} if NEVER_DECODE in options else {}
        async with attempt_on(pool, seconds, borrowed(pool, operation), server_wait(args) or 0) as connection:
            try:
                # Under a name without a callback: what one raises is neither the server's nor the connection's.
                reply = await self._send_command_parse_response(connection, "", *args, **decoding)
            except ResponseError:
                if EMPTY_RESPONSE in options:
                    return options[EMPTY_RESPONSE]
                raise
        callback = dict.get(self.response_callbacks, args[0].upper())
        # redis-py sends more for HIMPORT SET, and has parsed its reply.
        if callback is None or parse_himport_set_args(args):  # type: ignore[no-untyped-call]
            return reply
        parsed = _parsed(callback, reply, options)
        return await parsed if isawaitable(parsed) else parsed

    async def _attempt_on(
        self,
        connecting: Connecting,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        seconds: float | None,
        losses: int,  # noqa: ARG002 - no other call uses this connection
    ) -> Any:
        """Run one command on a connection of its caller's own (see ``attempts.Attempt``).

        Args:
            connecting: Gives the connection, and gives it back.
            pool: The pool of this handle.
            args: The command.
            options: Those of redis-py's ``execute_command``.
            seconds: How long it may take.
            losses: How many connections the call was written to and lost.
        """
        async with attempt_on(pool, seconds, connecting(), server_wait(args) or 0) as connection:
            return await self._send_command_parse_response(connection, args[0], *args, **options)

    async def _send_command_parse_response(
        self, conn: AbstractConnection, command_name: str | bytes, *args: Any, **options: Any
    ) -> Any:
        if traits_of(args).shares:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]
        async with self._heeded(conn, [args]):
            return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]

    @asynccontextmanager
    async def _heeded(self, connection: AbstractConnection, commands: Collection[Sequence[Any]]) -> AsyncIterator[None]:
        """Heed what the commands do to a connection that is the caller's alone, which redis-py does not.

        It reads with a five-second ``socket_timeout`` whatever the command, so that every BLPOP that waits longer
        fails; and it lends a connection that saw SELECT to the next caller as it is.
        """
        self._note_altered(connection, commands)
        wait = sum(server_wait(args) or 0 for args in commands)
        if not wait or connection.socket_timeout is None:
            yield
            return
        socket_timeout = connection.socket_timeout
        # Connecting, if it comes to that, gets no more time than ever.
        await connection.connect()  # type: ignore[no-untyped-call]
        connection.socket_timeout = None if isinf(wait) else socket_timeout + wait
        try:
            yield
        finally:
            connection.socket_timeout = socket_timeout

    @asynccontextmanager
    async def _pinned(
        self,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
        operation: Observer | None,
        closings: int,
    ) -> AsyncIterator[AbstractConnection]:
        """The one connection of this handle, for one attempt (see ``attempt_on``).

        It is made anew only while nothing was sent on it that alters a connection.

        Args:
            pool: The pool of this handle.
            commands: What is to be sent.
            operation: Learns of the connection, and of the time that it takes to get it.
            closings: How often the handle was closed when the call began.

        Raises:
            PinnedConnectionLostError: It was lost, and with it what earlier calls have changed or counted there; or the
                handle was closed since the call began.
        """
        is_kept = self.connection is not None
        connection = await self._kept_connection(operation, closings)
        async with self._in_flight_on(connection, closings):
            if is_kept:
                await self._make_usable(pool, connection, operation)
            if pool.was_reconnected(connection):
                for args in commands:
                    if counts_own_writes(args):
                        message = (
                            f"{args[0]} would not count what was written on the connection that this handle has lost"
                        )
                        raise PinnedConnectionLostError(f"{message}: make a new handle (client()), and write again")
            leaves = False
            try:
                async with _in_use(pool, connection):
                    yield connection
            except ReadOnlyError:
                # Behind the same name there may be another server by now.
                leaves = True
                raise
            finally:
                leaves |= connection.should_reconnect()  # type: ignore[no-untyped-call]
                if leaves and not pool.is_altered(connection):
                    await connection.disconnect(nowait=True)

    async def _kept_connection(self, operation: Observer | None, closings: int) -> Connection:
        """The one connection of this handle, on any pool; its first call borrows it.

        Raises:
            PinnedConnectionLostError: The handle was closed since the call began.
        """
        self._refuse_if_closed(closings)
        if self.connection is None:
            connection = await lent(self.connection_pool, operation)
            if self.connection is None and closings == self._closings:
                self.connection = connection
            else:
                await self.connection_pool.release(connection)
                self._refuse_if_closed(closings)
        return cast("Connection", self.connection)

    @asynccontextmanager
    async def _in_flight_on(self, connection: AbstractConnection, closings: int) -> AsyncIterator[None]:
        """A call of this handle on its connection, which is given back by this if the handle is closed meanwhile.

        Whatever closes the handle closes the connection, too (see ``_leave_busy``).

        Raises:
            PinnedConnectionLostError: The handle was closed before the answer came.
        """
        self._busy = connection
        try:
            yield
        except Exception as error:
            is_lost = isinstance(error, ConnectionError | TimeoutError) and not is_answer(error)
            # Or redis-py was about to write to it, and found no writer any more.
            if is_lost or (isinstance(error, AttributeError) and error.obj is None):
                self._refuse_if_closed(closings)
            raise
        finally:
            self._busy = None
            if connection is not self.connection:
                await self.connection_pool.release(connection)

    async def _retried_on_plain(
        self,
        connection: Connection,
        attempt: Callable[[Connection], Awaitable[T]],
        on_failure: Callable[[Connection, Exception], Awaitable[object]],
        closings: int,
    ) -> T:
        """Make a call on the connection of a plain pool, and retry it as redis-py does.

        Args:
            connection: Where it is made, each time.
            attempt: Makes it.
            on_failure: What redis-py does after an attempt has failed.
            closings: How often the handle was closed when the call began.

        Raises:
            PinnedConnectionLostError: The handle was closed since the call began.
        """

        async def attempt_unless_closed() -> T:
            self._refuse_if_closed(closings)
            return await attempt(connection)

        return await connection.retry.call_with_retry(
            attempt_unless_closed,
            partial(on_failure, connection),
            is_retryable=lambda _: closings == self._closings,
        )

    def _refuse_if_closed(self, closings: int) -> None:
        if closings != self._closings:
            raise PinnedConnectionLostError("this handle was closed, or reset, while the call was in flight")

    async def _leave_busy(self) -> None:
        """Close the connection of this handle if a call is in flight on it, which gives it back then."""
        connection = self.connection
        if connection is not None and connection is self._busy:
            self.connection = None
            await connection.disconnect(nowait=True)

    async def _make_usable(
        self, pool: MonitoredConnectionPool, connection: AbstractConnection, operation: Observer | None
    ) -> None:
        if not pool.lends(connection):
            raise pool.closed_error()
        if has_lost(pool, connection):
            if pool.is_altered(connection):
                raise PinnedConnectionLostError(ALTERED_LOST)
            asked = perf_counter()
            try:
                await pool.reconnect(connection)
            finally:
                if operation is not None:
                    seconds = perf_counter() - asked
                    operation.waited(seconds, seconds)
        if operation is not None:
            operation.reached(connection)

    def _note_altered(self, connection: AbstractConnection, commands: Collection[Sequence[Any]]) -> None:
        pool = self.connection_pool
        if any(traits_of(args).alters for args in commands) and isinstance(pool, MonitoredConnectionPool):
            pool.alter(connection)


def has_lost(pool: MonitoredConnectionPool, connection: AbstractConnection) -> bool:
    """Whether a borrowed connection that owes nothing has ended, or cannot be used for another reason."""
    # One that was altered may get messages unasked.
    ended = has_ended if pool.is_altered(connection) else is_readable
    return not connection.is_connected or ended(connection)


def refuse_counting(args: Sequence[Any]) -> None:
    """Refuse a command that counts the writes of a connection, where each call may get another one.

    Raises:
        OwnConnectionError: It is one.
    """
    if counts_own_writes(args):
        message = f"{args[0]} counts the writes of its own connection: use pipeline() or client()"
        raise OwnConnectionError(message)


async def lent(pool: ConnectionPool, operation: Observer | None) -> Connection:
    """A connection of any pool, whose operation is told of it; give it back with ``release``."""
    if isinstance(pool, MonitoredConnectionPool):
        connection = await pool.borrow(None if operation is None else operation.waited)
    else:
        asked = perf_counter()
        try:
            connection = await _lent_elsewhere(pool)
        finally:
            if operation is not None:
                # It does not tell how much of that was connecting.
                operation.waited(perf_counter() - asked, 0)
    if operation is not None:
        operation.reached(connection)
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
        await patiently(giving_back, asyncio.get_running_loop().time() + _GOODBYE)
        raise
    return sending_soundly(borrowing.result())


async def _give_back(pool: ConnectionPool, borrowing: "asyncio.Future[AbstractConnection]") -> None:
    await asyncio.wait([borrowing])
    if not borrowing.cancelled() and borrowing.exception() is None:
        connection = borrowing.result()
        # The pool may be closed by now.
        await connection.disconnect(nowait=True)
        await pool.release(connection)


def _parsed(callback: Callable[..., Any], reply: Any, options: dict[str, Any]) -> Any:
    return callback(reply, **{option: options[option] for option in options.keys() - _NOT_FOR_PARSING})


def _in_place_of_error(pool: MonitoredConnectionPool, error: Exception, options: dict[str, Any], since: float) -> Any:
    """What a call returns for an error of the shared connection.

    Raises:
        Lost: It is the call's own.
    """
    if EMPTY_RESPONSE in options and isinstance(error, ResponseError):
        return options[EMPTY_RESPONSE]
    leave_if_refused(pool, error, since=since)
    raise error if isinstance(error, Lost) else Lost(error, written=True)


@asynccontextmanager
async def borrowed(pool: MonitoredConnectionPool, operation: Observer | None) -> AsyncIterator[AbstractConnection]:
    """A connection for one attempt (see ``attempt_on``).

    What was called before is sent before: the shared connection writes what it would write at the end of this tick. It
    is not waited for, and a server may still run what comes on one connection before what came on another one.
    """
    connection = await lent(pool, operation)
    try:
        async with _in_use(pool, connection):
            yield connection
    except ResponseError as error:
        leave_if_refused(pool, error, connection)
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
        if error.obj is not None or pool.lends(connection):
            raise
        # Closed while redis-py was about to write to it, and found no writer any more.
        raise pool.closed_error() from error


def leave_if_refused(
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
        isinstance(each, ReadOnlyError) or (isinstance(each, ResponseError) and is_refusal(each)) for each in results
    ):
        return
    if connection is not None:
        pool.alter(connection)
    else:
        pool.renew(since)
