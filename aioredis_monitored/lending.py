"""Lending connections of their own: first come, first served, one event loop, and nothing outlives a close."""

import asyncio
import os
import warnings
from collections import deque
from types import TracebackType
from typing import Any, Self, cast

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.event import AsyncAfterConnectionReleasedEvent, EventDispatcher
from redis.exceptions import RedisError

from aioredis_monitored.errors import EventLoopError, PoolClosedError, PoolExhaustedError
from aioredis_monitored.sockets import abandon, is_readable


class LendingPool(BlockingConnectionPool):
    """redis-py's blocking pool, whose waiting callers are served in the order in which they came.

    redis-py's own lets a caller that asks again and again overtake those that wait.
    """

    name: str

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()
        self._altered: set[AbstractConnection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._closed = False

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
            self._loop, self._process = loop, os.getpid()
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
        if self._waiting or not self.can_get_connection():
            connection = await self._wait_for_turn()
        else:
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException as error:
            is_closed = connection not in self._in_use_connections
            await self.release(connection)
            if is_closed and isinstance(error, Exception):
                raise self.closed_error() from error
            raise
        return connection

    async def _wait_for_turn(self) -> AbstractConnection:
        turn: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self.timeout):
                return await turn
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
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
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    def alter(self, connection: AbstractConnection) -> None:
        """Note that a borrowed connection is no longer as it was made: it is closed when it is given back."""
        self._altered.add(connection)

    async def release(self, connection: AbstractConnection) -> None:
        """Give a borrowed connection back."""
        if connection not in self._in_use_connections:
            # The pool was closed meanwhile.
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
        if connection in self._in_use_connections:
            self._in_use_connections.remove(connection)
            # The last one is lent first: one that is connected, if there is any.
            last = len(self._available_connections) if connection.is_connected else 0
            self._available_connections.insert(last, connection)
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self.can_get_connection():
            turn = self._waiting.popleft()
            if turn.done():
                continue
            # With the connection: whoever comes between now and then would take it.
            turn.set_result(self.get_available_connection())  # type: ignore[no-untyped-call]

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._loop is not None and self._loop.is_closed():
            self._abandon_connections()
            self._forget()
            return
        self.check_event_loop()
        await asyncio.shield(self._close_connections())

    async def _close_connections(self) -> None:
        idle, lent, waiting = self._available_connections, self._in_use_connections, self._waiting
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
        self._waiting, self._altered = deque(), set()
        self._lock, self._loop = asyncio.Lock(), None

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # An instance whose constructor raised has no connections.
        if hasattr(self, "_waiting") and self._abandon_connections():
            _warn(f"pool {self.name!r} was never closed: use 'async with' or aclose()", ResourceWarning, source=self)
        super().__del__()

    def _abandon_connections(self) -> int:
        connected = [c for c in (*self._available_connections, *self._in_use_connections) if c.is_connected]
        for connection in connected:
            abandon(connection, self._loop, forked=os.getpid() != self._process)
        return len(connected)
