"""Which connection a command is sent on, and the client's calls: each is an operation, or several are one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from inspect import isawaitable
from math import isinf
from time import monotonic, perf_counter
from typing import Any, Self, TypeVar, cast

from opentelemetry.trace import Span
from redis._parsers.helpers import bool_ok, parse_set_result
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
)
from redis.himport import parse_himport_set_args

from aioredis_monitored._commands.table import MAX_WORD_LENGTH, argument_text, parse_command
from aioredis_monitored._commands.traits import blocking_timeout, counts_connection_writes, traits_of
from aioredis_monitored._execution.attempts import (
    AcquireConnection,
    _in_use,
    acquire_from,
    dedicated_attempt,
    dedicated_connection,
    is_lost,
    leave_refusing_server,
    reject_write_counting,
    retry,
    retry_failed,
)
from aioredis_monitored._execution.fetch import FETCH, Fetch, fetch_blocking, fetch_in_turns, fetch_on, fetch_shared
from aioredis_monitored._multiplexer import ISOLATE_AFTER, AttemptFailed
from aioredis_monitored._telemetry.coexistence import EXECUTE_COMMAND
from aioredis_monitored._telemetry.messaging import MessagingOperation
from aioredis_monitored._telemetry.operation import Observer, Operation, observe_call, start_operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, MessagingSpec
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.errors import PinnedConnectionLostError, decoding_error
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_error_reply
from aioredis_monitored.pool.slots import PINNED_CONNECTION_LOST

T = TypeVar("T")

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
            if multiplexer is None or not traits.shareable:
                return await self._call_borrowed(pool, args, options, seconds, operation)
            if losses is not None and losses >= ISOLATE_AFTER:
                async with multiplexer.isolated(seconds) as left:
                    return await self._call_borrowed(pool, args, options, left, operation)
            # Past the look-up of redis-py's own dict, which is in Python.
            callback = dict.get(self.response_callbacks, args[0].upper())
            decodes = pool.decodes_replies and NEVER_DECODE not in options
            if operation is not None and (callback is None or (not options and id(callback) in _NEVER_FAIL)):
                operation.record_on_reply = pool.is_decodable if decodes else True
            reply = multiplexer.send(args, None, operation, losses)
            reply = await (reply if seconds is None else reply.wait_for(seconds))
            if isinstance(reply, Exception):
                return _in_place_of_error(pool, reply, options, started)
            pool.retry_policy.server_unreachable = False
            if decodes:
                reply = pool.decode_reply(reply)
            if callback is None:
                return reply
            parsed = _parsed(callback, reply, options)
            return await parsed if isawaitable(parsed) else parsed
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None
        except AttemptFailed as lost:
            if losses is not None:
                raise
            failure = lost
        attempt = partial(self._call, pool, args, options, operation)
        return await retry_failed(pool, traits, attempt, failure, started, blocking_timeout(args) or 0, operation)

    async def _call_borrowed(
        self,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        seconds: float | None,
        operation: Observer | None,
    ) -> Any:
        reject_write_counting(args)
        decoding = {NEVER_DECODE: True} if NEVER_DECODE in options else {}
        async with dedicated_attempt(
            pool, seconds, dedicated_connection(pool, operation), blocking_timeout(args) or 0
        ) as connection:
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
        connecting: AcquireConnection,
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
        async with dedicated_attempt(pool, seconds, connecting(), blocking_timeout(args) or 0) as connection:
            return await self._send_command_parse_response(connection, args[0], *args, **options)

    async def _send_command_parse_response(
        self, conn: AbstractConnection, command_name: str | bytes, *args: Any, **options: Any
    ) -> Any:
        if traits_of(args).shareable:
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
        wait = sum(blocking_timeout(args) or 0 for args in commands)
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
                    if counts_connection_writes(args):
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
                if leaves and not pool.will_discard(connection):
                    await connection.disconnect(nowait=True)

    async def _kept_connection(self, operation: Observer | None, closings: int) -> Connection:
        """The one connection of this handle, on any pool; its first call borrows it.

        Raises:
            PinnedConnectionLostError: The handle was closed since the call began.
        """
        self._refuse_if_closed(closings)
        if self.connection is None:
            connection = await acquire_from(self.connection_pool, operation)
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
            is_lost = isinstance(error, ConnectionError | TimeoutError) and not is_error_reply(error)
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
        if not pool.is_acquired(connection):
            raise pool.closed_error()
        if is_lost(pool, connection):
            if pool.will_discard(connection):
                raise PinnedConnectionLostError(PINNED_CONNECTION_LOST)
            asked = perf_counter()
            try:
                await pool.reconnect(connection)
            finally:
                if operation is not None:
                    seconds = perf_counter() - asked
                    operation.add_wait(seconds, seconds)
        if operation is not None:
            operation.set_connection(connection)

    def _note_altered(self, connection: AbstractConnection, commands: Collection[Sequence[Any]]) -> None:
        pool = self.connection_pool
        if any(traits_of(args).alters_connection for args in commands) and isinstance(pool, MonitoredConnectionPool):
            pool.discard_on_release(connection)


def _parsed(callback: Callable[..., Any], reply: Any, options: dict[str, Any]) -> Any:
    return callback(reply, **{option: options[option] for option in options.keys() - _NOT_FOR_PARSING})


def _in_place_of_error(pool: MonitoredConnectionPool, error: Exception, options: dict[str, Any], since: float) -> Any:
    """What a call returns for an error of the shared connection.

    Raises:
        Lost: It is the call's own.
    """
    if EMPTY_RESPONSE in options and isinstance(error, ResponseError):
        return options[EMPTY_RESPONSE]
    leave_refusing_server(pool, error, since=since)
    raise error if isinstance(error, AttemptFailed) else AttemptFailed(error, written=True)


class Handle(CallsMixin, Redis):  # type: ignore[misc]  # redis-py's own bases disagree
    """A client's calls, its own and those of what it makes.

    Attributes:
        databases: Those, beside its pool's, that SELECT has named on the connection that it keeps to.
        server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
        telemetry: Where its calls are recorded.
    """

    databases: frozenset[str] = frozenset()
    server_span: Span | None
    telemetry: PoolRecorder
    _request: RequestStats | None
    _pool: MonitoredConnectionPool | None

    @property
    def is_replaced(self) -> bool:
        """Whether a subclass has replaced ``execute_command``: then it sees every command, as in redis-py."""
        return type(self).execute_command is not Handle.execute_command

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command and return its parsed reply, as redis-py does.

        Raises:
            OwnConnectionError: The command is about its own connection, and this handle keeps to none.
        """
        if options and FETCH in options:
            return await self.execute_fetch(options.pop(FETCH), args, blocking_timeout(args) or 0)
        pool, telemetry = self._pool, self.telemetry
        operation = start_operation(telemetry, args, self.server_span, self._request)
        if pool is None:
            calling = self._call_elsewhere(args, options, operation)
        else:
            calling = self._call(pool, args, options, operation)
        if not telemetry.tracing_enabled and Redis.execute_command is not EXECUTE_COMMAND.original:
            return await observe_call(operation, calling, telemetry, EXECUTE_COMMAND, self, *args, **options)
        return await (calling if operation is None else operation.observe(calling))

    async def execute_as(
        self,
        args: Sequence[Any],
        options: dict[str, Any],
        call: Callable[[Operation | None], Coroutine[Any, Any, T]],
    ) -> T:
        """Do what stands for one command, recorded as ``execute_command`` records that.

        Args:
            args: The command.
            options: Those of ``execute_command``.
            call: Does it, and is given the record, if anybody listens.
        """
        operation = start_operation(self.telemetry, args, self.server_span, self._request)
        return await observe_call(operation, call(operation), self.telemetry, EXECUTE_COMMAND, self, *args, **options)

    async def execute_about(
        self,
        about: MessagingSpec,
        args: Sequence[Any],
        call: Callable[[MessagingOperation | None], Coroutine[Any, Any, T]],
    ) -> T:
        """Do what is an operation on messages.

        Args:
            about: What it is.
            args: The command that stands for it.
            call: Does it, and is given the record, if anybody listens.
        """
        telemetry = self.telemetry
        if telemetry.counts_hot_keys:
            telemetry.hot_keys.count(args)
        operation = None
        if telemetry.is_enabled():
            operation = MessagingOperation(telemetry, about, args, self.server_span, self._request)
        return await observe_call(operation, call(operation), telemetry, EXECUTE_COMMAND, self, *args)

    async def execute_fetch(self, fetch: Fetch, args: Sequence[Any], seconds: float) -> Any:
        """Fetch what is there, or comes within so many seconds; what is on its way to a caller that leaves is put back.

        Args:
            fetch: What to fetch.
            args: The command that stands for it.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            What was found; ``None`` if there is nothing.
        """
        return await self.execute_about(fetch.messaging, args, partial(self.fetch_within, fetch, seconds))

    def unpinned(self) -> Self:
        """This client, but each call on any connection, for what goes on when the one of this may be lost or closed."""
        client = copy(self)
        client.connection = None
        client.single_connection_client = False
        return client

    def operation_of(self, call: CallSpec, called: Sequence[Any]) -> Operation:
        """The record of something that takes several calls.

        Args:
            call: What it is.
            called: The arguments of the command that stands for all of them.
        """
        return Operation(self.telemetry, call, called, self.server_span, self._request)

    async def execute_within(self, operation: Observer | None, *args: Any, **options: Any) -> Any:
        """Run one command without a record of its own, as redis-py's ``execute_command`` does otherwise.

        Args:
            operation: Learns of the connection, and is ended with the reply; ``None`` if more calls are to follow.
            args: The command.
            options: Those of ``execute_command``.
        """
        if self._pool is None:
            return await self._call_elsewhere(args, options, operation)
        return await self._call(self._pool, args, options, operation)

    async def fetch_within(self, fetch: Fetch, seconds: float, operation: MessagingOperation | None) -> Any:
        """Fetch as ``execute_fetch`` does, without a record of its own.

        Args:
            fetch: What to fetch.
            seconds: How long to wait.
            operation: Learns how it goes, and what was found.
        """
        found = await self._found(fetch, seconds, operation)
        if operation is not None and found is not None:
            operation.set_received(found, is_batch=fetch.is_batch)
        return found

    async def _found(self, fetch: Fetch, seconds: float, operation: Operation | None) -> Any:
        pool = self._pool
        if pool is None:
            own = self.connection_pool
            if isinstance(own, MonitoredConnectionPool):
                connecting = self._attempt_connections(own, (), operation)
                return await fetch_in_turns(
                    lambda wait: fetch_blocking(own, fetch, wait, operation, connecting), fetch, seconds
                )
            elsewhere = partial(self._elsewhere, operation, self._closings)
            return await fetch_in_turns(lambda wait: fetch_on(elsewhere(), own, fetch, wait), fetch, seconds)
        if pool.multiplexer is not None:
            found = await fetch_shared(pool, fetch, operation)
            if found is not None:
                return found
            fetch.on_empty()
            if not seconds:
                return None
            if operation is not None:
                operation.expect_more()
        borrowing = partial(dedicated_connection, pool, operation)
        return await fetch_in_turns(
            lambda wait: fetch_blocking(pool, fetch, wait, operation, borrowing), fetch, seconds
        )

    async def _call_elsewhere(self, args: tuple[Any, ...], options: dict[str, Any], operation: Observer | None) -> Any:
        """On the one connection of this handle, or one for this call; on a plain pool's as redis-py does."""
        pool = self.connection_pool
        if isinstance(pool, MonitoredConnectionPool):
            attempt = partial(self._attempt_on, self._attempt_connections(pool, [args], operation), pool, args, options)
            return await retry(pool, traits_of(args), attempt, blocking_timeout(args) or 0, operation)
        # See ``foreign``.
        return await self._retried_elsewhere(
            operation, lambda connection: self._send_command_parse_response(connection, args[0], *args, **options)
        )

    async def _retried_elsewhere(self, operation: Observer | None, attempt: Callable[[Connection], Awaitable[T]]) -> T:
        """Make a call on a plain pool, and retry it as redis-py does.

        Args:
            operation: Learns of the connection.
            attempt: Makes the call on a connection.
        """
        closings = self._closings
        async with self._elsewhere(operation, closings) as connection:
            return await self._retried_on_plain(connection, attempt, self._close_connection, closings)

    def _note_altered(self, connection: AbstractConnection, commands: Collection[Sequence[Any]]) -> None:
        super()._note_altered(connection, commands)
        if not self.single_connection_client:
            return
        for args in commands:
            call = parse_command(args)
            if call.name.upper() == "SELECT" and call.arguments:
                own = str(self.connection_pool.connection_kwargs.get("db") or 0)
                self.databases |= {argument_text(call.arguments[0], MAX_WORD_LENGTH)} - {own}

    async def parse_response(self, connection: Connection, command_name: str | bytes, **options: Any) -> Any:
        """Read a reply, on a connection of its own, as redis-py does.

        Raises:
            ReplyDecodingError: It is not in the connection's encoding.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None

    async def initialize(self) -> Self:
        """Borrow the one connection of a handle that keeps to one, as redis-py does."""
        pool = self.connection_pool
        if self.single_connection_client and self.connection is None:
            if isinstance(pool, MonitoredConnectionPool):
                attempt = partial(self._attempt_to_connect, self._attempt_connections(pool, (), None), pool)
                await retry(pool, traits_of(("PING",)), attempt, 0, None)
            else:
                # redis-py would keep a connection that comes when the handle has been closed.
                async with self._elsewhere(None, self._closings):
                    pass
        return await super().initialize()

    async def _attempt_to_connect(
        self,
        connecting: AcquireConnection,
        pool: MonitoredConnectionPool,
        seconds: float | None,
        losses: int,  # noqa: ARG002 - nothing is written
    ) -> None:
        async with dedicated_attempt(pool, seconds, connecting()):
            pass

    def _attempt_connections(
        self, pool: MonitoredConnectionPool, commands: Collection[Sequence[Any]], operation: Observer | None
    ) -> AcquireConnection:
        """What gives each attempt of a call, which begins now, the one connection of this handle, or one of its own.

        Args:
            pool: The pool of this handle.
            commands: What is to be sent.
            operation: Learns of the connections, and of the time that it takes to get them.
        """
        return partial(self._dedicated, pool, commands, operation, self._closings)

    @asynccontextmanager
    async def _dedicated(
        self,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
        operation: Observer | None,
        closings: int,
    ) -> AsyncIterator[AbstractConnection]:
        if not self.single_connection_client:
            for args in commands:
                reject_write_counting(args)
            async with dedicated_connection(pool, operation) as connection:
                yield connection
            return
        pool.bind_event_loop()
        async with self._locked(operation), self._pinned(pool, commands, operation, closings) as connection:
            yield connection

    @asynccontextmanager
    async def _locked(self, operation: Observer | None) -> AsyncIterator[None]:
        asked = perf_counter()
        try:
            await self._single_conn_lock.acquire()
        finally:
            if operation is not None:
                operation.add_wait(perf_counter() - asked, 0)
        try:
            yield
        finally:
            self._single_conn_lock.release()

    @asynccontextmanager
    async def _elsewhere(self, operation: Observer | None, closings: int) -> AsyncIterator[Connection]:
        """The one connection of this handle, or one for this call, of a plain pool.

        Args:
            operation: Learns of the connection.
            closings: How often the handle was closed when the call began.
        """
        pool = self.connection_pool
        if not self.single_connection_client:
            connection = await acquire_from(pool, operation)
            try:
                yield connection
            finally:
                await pool.release(connection)
            return
        async with self._locked(operation):
            connection = await self._kept_connection(operation, closings)
            if operation is not None:
                operation.set_connection(connection)
            async with self._in_flight_on(connection, closings):
                try:
                    yield connection
                finally:
                    if connection.should_reconnect():  # type: ignore[no-untyped-call]
                        await connection.disconnect()
                        await connection.connect()  # type: ignore[no-untyped-call]
