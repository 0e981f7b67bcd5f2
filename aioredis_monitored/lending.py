"""Lending connections of their own: first come, first served, one event loop, and nothing outlives a close."""

import asyncio
import os
from collections import deque
from types import TracebackType
from typing import Any, Self, cast
from weakref import finalize

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.event import AsyncAfterConnectionReleasedEvent, EventDispatcher
from redis.exceptions import ConnectionError, RedisError  # noqa: A004

from aioredis_monitored.errors import EventLoopError, PoolClosedError, PoolExhaustedError
from aioredis_monitored.sockets import Held, is_readable


class LendingPool(BlockingConnectionPool):
    """redis-py's blocking pool, whose waiting callers are served in the order in which they came.

    redis-py's own lets a caller that asks again and again overtake those that wait.
    """

    name: str

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()
        self._altered: set[AbstractConnection] = set()
        self._connecting: set[AbstractConnection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whether one place is kept for the shared connection, who has it, and who waits for it.
        self._reserves = False
        self._holder: AbstractConnection | None = None
        self._first: deque[asyncio.Future[AbstractConnection]] = deque()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._held = Held(self._available_connections, self._in_use_connections)
        # Not __del__: in a reference cycle, that of asyncio's transports might come first, with warnings of their own.
        finalize(self, self._held.forget)

    def check_usable(self) -> None:
        """See that a call may begin.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: It is bound to another event loop.
        """
        if self._closed:
            raise self.closed_error()
        self.check_event_loop()

    def check_event_loop(self) -> None:
        """Bind the pool to the running event loop, if it is not yet bound.

        Raises:
            EventLoopError: It is bound to another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._held.loop, self._held.process, self._held.name = loop, os.getpid(), self.name
        elif self._loop is not loop:
            message = f"pool {self.name!r} belongs to another event loop: make one pool for each loop"
            raise EventLoopError(message)

    def closed_error(self) -> PoolClosedError:
        """What a call on a closed pool raises."""
        return PoolClosedError(f"pool {self.name!r} {'is' if self._closed else 'was'} closed")

    def make_connection(self) -> AbstractConnection:
        """Make a connection that asks this pool whether it may connect."""
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.register_connect_callback(self._on_connect)  # type: ignore[no-untyped-call]
        return connection

    async def _on_connect(self, connection: AbstractConnection) -> None:
        # redis-py reconnects whenever it is asked to send. A connection that was out when the pool closed would come
        # back to life: a WATCH would be forgotten, a subscription would outlive the pool.
        if connection not in self._in_use_connections and connection not in self._available_connections:
            await connection.disconnect(nowait=True)
            raise self.closed_error()

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:  # noqa: ARG002 - redis-py's signature
        """Borrow a connection; give it back with ``release``.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
            PoolExhaustedError: No connection became free in time.
            redis.exceptions.ConnectionError: The server cannot be reached.
        """
        self.check_usable()
        return await self._connected(await self._next_connection())

    def has_free_connection(self) -> bool:
        """Whether borrowing would not have to wait."""
        return not self._waiting and self._has_place()

    def _has_place(self) -> bool:
        return len(self._in_use_connections) + self.keeps_place() < self.max_connections

    def keeps_place(self) -> bool:
        """Whether a place is kept, and nobody has it."""
        return self._reserves and self._holder is None

    def lends(self, connection: AbstractConnection) -> bool:
        """Whether a connection is borrowed from this pool, which was not closed since."""
        return connection in self._in_use_connections

    def is_connected(self) -> bool:
        """Whether there is a connection on which the server has answered, whoever has it."""
        connections = {*self._in_use_connections, *self._available_connections} - self._connecting
        return any(connection.is_connected for connection in connections)

    def reserve(self) -> None:
        """Keep a place for ``get_fresh_connection``."""
        self._reserves = True

    async def get_fresh_connection(self, *, reserved: bool) -> AbstractConnection:
        """Borrow a connection that is connected anew: who had it before may have altered it unseen.

        Args:
            reserved: Whether it takes the place that ``reserve`` keeps, or, if that is taken, the next that is free.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        self.check_usable()
        if not reserved:
            connection = await self._next_connection()
        elif len(self._in_use_connections) < self.max_connections:
            connection = self._holder = self.get_available_connection()  # type: ignore[no-untyped-call]
        else:
            # A retired one still has the place that is kept.
            connection = self._holder = await self._wait_for_turn(self._first)
        self._serve()
        return await self._connected(connection, anew=True)

    async def _next_connection(self) -> AbstractConnection:
        if self.has_free_connection():
            return cast("AbstractConnection", self.get_available_connection())  # type: ignore[no-untyped-call]
        return await self._wait_for_turn(self._waiting)

    async def _connected(self, connection: AbstractConnection, *, anew: bool = False) -> AbstractConnection:
        self._connecting.add(connection)
        try:
            if anew:
                await connection.disconnect(nowait=True)
            await self.ensure_connection(connection)
            if anew:
                # Credentials that have changed while it was being connected.
                await connection.re_auth()  # type: ignore[no-untyped-call]
        except BaseException as error:
            is_closed = not self.lends(connection)
            await self.release(connection)
            if is_closed and isinstance(error, Exception):
                raise self.closed_error() from error
            raise
        finally:
            self._connecting.discard(connection)
        return connection

    async def _wait_for_turn(self, queue: deque[asyncio.Future[AbstractConnection]]) -> AbstractConnection:
        turn: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(self.timeout):
                return await turn
        except BaseException as error:
            if turn in queue:
                queue.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                # The connection came when its caller was no longer there.
                await self.release(turn.result())
            if isinstance(error, TimeoutError):
                message = f"pool {self.name!r}: no connection became free in {self.timeout} s"
                raise PoolExhaustedError(message) from error
            raise

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, and leave nothing half-connected behind: without its AUTH and SELECT, for instance."""
        if connection.is_connected and is_readable(connection):
            # Nothing is owed on an idle connection: this is its end, or a reply that is nobody's.
            await connection.disconnect(nowait=True)
        try:
            await super().ensure_connection(connection)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if type(error) is RuntimeError and "closed" in str(error):
                # What uvloop raises when it writes to a socket that was reset.
                raise ConnectionError(f"Error while connecting: {error}") from error
            raise

    def alter(self, connection: AbstractConnection) -> None:
        """Note that a borrowed connection is no longer as it was made: it is closed when it is given back."""
        self._altered.add(connection)

    async def release(self, connection: AbstractConnection) -> None:
        """Give a borrowed connection back."""
        if not self.lends(connection):
            # The pool was closed meanwhile.
            self._altered.discard(connection)
            await connection.disconnect(nowait=True)
            return
        try:
            if connection in self._altered or connection.should_reconnect():  # type: ignore[no-untyped-call]
                await connection.disconnect(nowait=True)
            # Credentials that have changed while it was out.
            released = AsyncAfterConnectionReleasedEvent(connection)  # type: ignore[no-untyped-call]
            await cast("EventDispatcher", self._event_dispatcher).dispatch_async(released)
        except RedisError:
            await connection.disconnect(nowait=True)
        finally:
            self._altered.discard(connection)
            self.discard(connection)

    def discard(self, connection: AbstractConnection) -> None:
        """Take back a borrowed connection that is closed."""
        if self.lends(connection):
            self._in_use_connections.remove(connection)
            if connection is self._holder:
                self._holder = None
            connection.set_re_auth_token(None)  # type: ignore[arg-type]  # connecting uses the newest
            # The last one is lent first: one that is connected, if there is any.
            last = len(self._available_connections) if connection.is_connected else 0
            self._available_connections.insert(last, connection)
            self._serve()

    def _serve(self) -> None:
        while self._first and len(self._in_use_connections) < self.max_connections:
            self._serve_next(self._first)
        while self._waiting and self._has_place():
            self._serve_next(self._waiting)

    def _serve_next(self, queue: deque[asyncio.Future[AbstractConnection]]) -> None:
        turn = queue.popleft()
        if not turn.done():
            # With the connection: whoever comes between now and then would take it.
            turn.set_result(self.get_available_connection())  # type: ignore[no-untyped-call]

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._loop is not None and self._loop.is_closed():
            self._held.abandon()
            self._forget()
            self._closing = None
            return
        self.check_event_loop()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_connections())
            self._closing.add_done_callback(self._is_closed)
        await asyncio.shield(self._closing)

    def _is_closed(self, closing: asyncio.Task[None]) -> None:
        self._closing = None
        if not closing.cancelled():
            # Whoever has waited for it has been told.
            closing.exception()

    async def _close_connections(self) -> None:
        idle, lent, waiting = self._available_connections, self._in_use_connections, (*self._first, *self._waiting)
        self._forget()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(self.closed_error())
        for connection in lent:
            # Waiting for the end of what another task may be reading from could take as long as that task does.
            await connection.disconnect(nowait=True)
        closing = (connection.disconnect() for connection in idle)
        errors = [error for error in await asyncio.gather(*closing, return_exceptions=True) if error is not None]
        if errors:
            raise errors[0]

    def _forget(self) -> None:
        """Close the pool to all calls, without what is lent or bound to the loop: opened again, it is like new."""
        self._closed = True
        self._available_connections, self._in_use_connections = [], set()
        self._waiting, self._first, self._altered = deque(), deque(), set()
        self._reserves, self._holder = False, None
        self._lock, self._loop = asyncio.Lock(), None
        self._held.idle, self._held.lent, self._held.loop = self._available_connections, self._in_use_connections, None

    async def __aenter__(self) -> Self:
        if self._closing is not None:
            # An earlier one, whose caller was cancelled, would close what is opened now.
            await asyncio.wait([self._closing])
        self._closed = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
