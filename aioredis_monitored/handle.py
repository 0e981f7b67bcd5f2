"""The calls of a client: each is an operation, or several are one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from copy import copy
from functools import partial
from time import perf_counter
from typing import Any, Self, TypeVar

from opentelemetry.trace import Span
from redis.asyncio import Connection, Redis
from redis.asyncio.connection import AbstractConnection

from aioredis_monitored.attempts import Connecting, attempt_on, attempted
from aioredis_monitored.calls import CallsMixin, borrowed, lent, refuse_counting
from aioredis_monitored.commands import LONGEST_WORD, parse, text_of
from aioredis_monitored.errors import undecodable
from aioredis_monitored.fetching import FETCH, Fetch, fetched_at_once, fetched_on, fetched_waiting, in_turns
from aioredis_monitored.foreign import EXECUTE_COMMAND
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.telemetry.attributes import About, Call
from aioredis_monitored.telemetry.observing import begun, recorded
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.telemetry.queues import Delivery
from aioredis_monitored.telemetry.request import RequestView
from aioredis_monitored.telemetry.telemetry import Telemetry
from aioredis_monitored.traits import server_wait, traits_of

T = TypeVar("T")


class Handle(CallsMixin, Redis):  # type: ignore[misc]  # redis-py's own bases disagree
    """A client's calls, its own and those of what it makes.

    Attributes:
        databases: Those, beside its pool's, that SELECT has named on the connection that it keeps to.
        server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
        telemetry: Where its calls are recorded.
    """

    databases: frozenset[str] = frozenset()
    server_span: Span | None
    telemetry: Telemetry
    _request: RequestView | None
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
            return await self.execute_fetch(options.pop(FETCH), args, server_wait(args) or 0)
        pool, telemetry = self._pool, self.telemetry
        operation = begun(telemetry, args, self.server_span, self._request)
        if pool is None:
            calling = self._call_elsewhere(args, options, operation)
        else:
            calling = self._call(pool, args, options, operation)
        if not telemetry.is_traced and Redis.execute_command is not EXECUTE_COMMAND.own:
            return await recorded(operation, calling, telemetry, EXECUTE_COMMAND, self, *args, **options)
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
        operation = begun(self.telemetry, args, self.server_span, self._request)
        return await recorded(operation, call(operation), self.telemetry, EXECUTE_COMMAND, self, *args, **options)

    async def execute_about(
        self, about: About, args: Sequence[Any], call: Callable[[Delivery | None], Coroutine[Any, Any, T]]
    ) -> T:
        """Do what is an operation on messages.

        Args:
            about: What it is.
            args: The command that stands for it.
            call: Does it, and is given the record, if anybody listens.
        """
        telemetry = self.telemetry
        if telemetry.counts_keys:
            telemetry.hot_keys.see(args)
        operation = None
        if telemetry.is_heard():
            operation = Delivery(telemetry, about, args, self.server_span, self._request)
        return await recorded(operation, call(operation), telemetry, EXECUTE_COMMAND, self, *args)

    async def execute_fetch(self, fetch: Fetch, args: Sequence[Any], seconds: float) -> Any:
        """Fetch what is there, or comes within so many seconds; what is on its way to a caller that leaves is put back.

        Args:
            fetch: What to fetch.
            args: The command that stands for it.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            What was found; ``None`` if there is nothing.
        """
        return await self.execute_about(fetch.about, args, partial(self.fetch_within, fetch, seconds))

    def unpinned(self) -> Self:
        """This client, but each call on any connection, for what goes on when the one of this may be lost or closed."""
        client = copy(self)
        client.connection = None
        client.single_connection_client = False
        return client

    def operation_of(self, call: Call, called: Sequence[Any]) -> Operation:
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

    async def fetch_within(self, fetch: Fetch, seconds: float, operation: Delivery | None) -> Any:
        """Fetch as ``execute_fetch`` does, without a record of its own.

        Args:
            fetch: What to fetch.
            seconds: How long to wait.
            operation: Learns how it goes, and what was found.
        """
        found = await self._found(fetch, seconds, operation)
        if operation is not None and found is not None:
            operation.receive(found, is_batch=fetch.is_batch)
        return found

    async def _found(self, fetch: Fetch, seconds: float, operation: Operation | None) -> Any:
        pool = self._pool
        if pool is None:
            own = self.connection_pool
            if isinstance(own, MonitoredConnectionPool):
                connecting = self._attempt_connections(own, (), operation)
                return await in_turns(
                    lambda wait: fetched_waiting(own, fetch, wait, operation, connecting), fetch, seconds
                )
            elsewhere = partial(self._elsewhere, operation, self._closings)
            return await in_turns(lambda wait: fetched_on(elsewhere(), own, fetch, wait), fetch, seconds)
        if pool.multiplexer is not None:
            found = await fetched_at_once(pool, fetch, operation)
            if found is not None:
                return found
            fetch.note_empty()
            if not seconds:
                return None
            if operation is not None:
                operation.goes_on()
        borrowing = partial(borrowed, pool, operation)
        return await in_turns(lambda wait: fetched_waiting(pool, fetch, wait, operation, borrowing), fetch, seconds)

    async def _call_elsewhere(self, args: tuple[Any, ...], options: dict[str, Any], operation: Observer | None) -> Any:
        """On the one connection of this handle, or one for this call; on a plain pool's as redis-py does."""
        pool = self.connection_pool
        if isinstance(pool, MonitoredConnectionPool):
            attempt = partial(self._attempt_on, self._attempt_connections(pool, [args], operation), pool, args, options)
            return await attempted(pool, traits_of(args), attempt, server_wait(args) or 0, operation)
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
            call = parse(args)
            if call.name.upper() == "SELECT" and call.arguments:
                own = str(self.connection_pool.connection_kwargs.get("db") or 0)
                self.databases |= {text_of(call.arguments[0], LONGEST_WORD)} - {own}

    async def parse_response(self, connection: Connection, command_name: str | bytes, **options: Any) -> Any:
        """Read a reply, on a connection of its own, as redis-py does.

        Raises:
            ReplyDecodingError: It is not in the connection's encoding.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except UnicodeDecodeError as error:
            raise undecodable(error) from None

    async def initialize(self) -> Self:
        """Borrow the one connection of a handle that keeps to one, as redis-py does."""
        pool = self.connection_pool
        if self.single_connection_client and self.connection is None:
            if isinstance(pool, MonitoredConnectionPool):
                attempt = partial(self._attempt_to_connect, self._attempt_connections(pool, (), None), pool)
                await attempted(pool, traits_of(("PING",)), attempt, 0, None)
            else:
                # redis-py would keep a connection that comes when the handle has been closed.
                async with self._elsewhere(None, self._closings):
                    pass
        return await super().initialize()

    async def _attempt_to_connect(
        self,
        connecting: Connecting,
        pool: MonitoredConnectionPool,
        seconds: float | None,
        losses: int,  # noqa: ARG002 - nothing is written
    ) -> None:
        async with attempt_on(pool, seconds, connecting()):
            pass

    def _attempt_connections(
        self, pool: MonitoredConnectionPool, commands: Collection[Sequence[Any]], operation: Observer | None
    ) -> Connecting:
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
                refuse_counting(args)
            async with borrowed(pool, operation) as connection:
                yield connection
            return
        pool.check_event_loop()
        async with self._locked(operation), self._pinned(pool, commands, operation, closings) as connection:
            yield connection

    @asynccontextmanager
    async def _locked(self, operation: Observer | None) -> AsyncIterator[None]:
        asked = perf_counter()
        try:
            await self._single_conn_lock.acquire()
        finally:
            if operation is not None:
                operation.waited(perf_counter() - asked, 0)
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
            connection = await lent(pool, operation)
            try:
                yield connection
            finally:
                await pool.release(connection)
            return
        async with self._locked(operation):
            connection = await self._kept_connection(operation, closings)
            if operation is not None:
                operation.reached(connection)
            async with self._in_flight_on(connection, closings):
                try:
                    yield connection
                finally:
                    if connection.should_reconnect():  # type: ignore[no-untyped-call]
                        await connection.disconnect()
                        await connection.connect()  # type: ignore[no-untyped-call]
