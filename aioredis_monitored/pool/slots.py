"""Lending connections of their own: first come, first served."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from math import inf
from time import perf_counter
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, ConnectionError, RedisError  # noqa: A004

from aioredis_monitored._redispy.attributes import is_between_replies
from aioredis_monitored._redispy.connections import with_safe_send
from aioredis_monitored._redispy.overrides import (
    announce_release,
    forget_re_auth_token,
    re_auth,
    register_connect_callback,
    should_reconnect,
)
from aioredis_monitored._redispy.sockets import is_closed_by_peer, is_readable
from aioredis_monitored._timeouts import lag_tolerant_timeout
from aioredis_monitored.errors import PinnedConnectionLostError, PoolExhaustedError, decoding_error
from aioredis_monitored.pool.lifecycle import LivingPool

PINNED_CONNECTION_LOST: Final = (
    "the connection of this handle is lost, and with it what was set there, such as the database: "
    "make a new handle (client() or pipeline()), and set it again"
)


class LendingPool(LivingPool):
    """A pool whose waiting callers are served in the order in which they came.

    redis-py's own lets a caller that asks again and again overtake those that wait.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiters: deque[asyncio.Future[AbstractConnection]] = deque()
        self._discarded: set[AbstractConnection] = set()
        self._connecting: set[AbstractConnection] = set()
        # Those that are borrowed and were connected anew since.
        self._reconnected: set[AbstractConnection] = set()
        self._acquired_at: dict[AbstractConnection, float] = {}
        # Whether one place is kept for the shared connection, who has it, and who waits for it.
        self._has_reservation = False
        self._reserved_connection: AbstractConnection | None = None
        self._reserved_waiters: deque[asyncio.Future[AbstractConnection]] = deque()

    # What happens, for a subclass to report; in seconds.

    def on_created(self, seconds: float) -> None:
        """A connection was made."""

    def on_acquired(self, seconds: float) -> None:
        """A call has got a connection, or room on the shared one if it had to wait for that."""

    def on_released(self, seconds: float) -> None:
        """A connection was given back."""

    def on_timeout(self) -> None:
        """A call has waited in vain."""

    def make_connection(self) -> AbstractConnection:
        """Make a connection that asks this pool whether it may connect."""
        connection = with_safe_send(super().make_connection())
        register_connect_callback(connection, self._on_connect)
        return connection

    async def _on_connect(self, connection: AbstractConnection) -> None:
        # redis-py reconnects whenever it is asked to send. A connection that was out when the pool closed would come
        # back to life: a WATCH would be forgotten, a subscription would outlive the pool. One that was altered would
        # be another one, without its caller's knowledge.
        if connection not in self._in_use_connections and connection not in self._available_connections:
            await connection.disconnect(nowait=True)
            raise self.closed_error()
        if connection in self._discarded:
            await connection.disconnect(nowait=True)
            raise PinnedConnectionLostError(PINNED_CONNECTION_LOST)

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:  # noqa: ARG002 - redis-py's signature
        """Borrow a connection; give it back with ``release``.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
            PoolExhaustedError: No connection became free in time.
            redis.exceptions.ConnectionError: The server cannot be reached.
        """
        return await self.acquire()

    async def acquire(self, on_waited: Callable[[float, float], object] | None = None) -> AbstractConnection:
        """As ``get_connection``.

        Args:
            told: Told in the end how many seconds it took, also in vain, and how many of them it was connecting.
        """
        self.check_open()
        asked = perf_counter()
        given = inf
        try:
            connection = await self._next_available()
            given = perf_counter()
            await self._connect(connection)
        finally:
            now = perf_counter()
            if on_waited is not None:
                on_waited(now - asked, max(0.0, now - given))
        self._acquired_at[connection] = now
        self.on_acquired(now - asked)
        return connection

    def has_free_connection(self) -> bool:
        """Whether borrowing would not have to wait."""
        return not self._waiters and self._has_free_slot()

    def _has_free_slot(self) -> bool:
        return len(self._in_use_connections) + self.has_reserved_slot() < self.max_connections

    def has_reserved_slot(self) -> bool:
        """Whether a place is kept, and nobody has it."""
        return self._has_reservation and self._reserved_connection is None

    def waiter_count(self) -> int:
        """How many callers wait for a connection."""
        return sum(not turn.done() for turn in (*self._reserved_waiters, *self._waiters))

    def is_acquired(self, connection: AbstractConnection) -> bool:
        """Whether a connection is borrowed from this pool, which was not closed since."""
        return connection in self._in_use_connections

    def is_connected(self) -> bool:
        """Whether there is a connection on which the server has answered, whoever has it."""
        connections = {*self._in_use_connections, *self._available_connections} - self._connecting
        return any(connection.is_connected for connection in connections)

    def reserve_slot(self) -> None:
        """Keep a place for ``get_fresh_connection``."""
        self._has_reservation = True

    async def acquire_fresh(self, *, reserved: bool) -> AbstractConnection:
        """Borrow a connection that is connected anew: who had it before may have altered it unseen.

        Args:
            reserved: Whether it takes the place that ``reserve`` keeps, or, if that is taken, the next that is free.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        self.check_open()
        if not reserved:
            connection = await self._next_available()
        elif len(self._in_use_connections) < self.max_connections:
            connection = self._reserved_connection = self.get_available_connection()
        else:
            # A retired one still has the place that is kept.
            connection = self._reserved_connection = await self._wait_for_slot(self._reserved_waiters)
        self._wake_waiters()
        await self._connect(connection, anew=True)
        return connection

    async def _next_available(self) -> AbstractConnection:
        if self.has_free_connection():
            return self.get_available_connection()
        return await self._wait_for_slot(self._waiters)

    async def _connect(self, connection: AbstractConnection, *, anew: bool = False) -> None:
        self._connecting.add(connection)
        try:
            if anew:
                await connection.disconnect(nowait=True)
            await self.ensure_connection(connection)
            if anew:
                await self._re_authenticate(connection)
        except BaseException as error:
            is_closed = not self.is_acquired(connection)
            await self.release(connection)
            if is_closed and isinstance(error, Exception):
                raise self.closed_error() from error
            raise
        finally:
            self._connecting.discard(connection)

    async def _re_authenticate(self, connection: AbstractConnection) -> None:
        """Send credentials that have changed while it was being connected."""
        try:
            await re_auth(connection)
        except AuthenticationError:
            # Those that it was connected with may do; redis-py has closed it.
            forget_re_auth_token(connection)
            await self.ensure_connection(connection)

    async def _wait_for_slot(self, queue: deque[asyncio.Future[AbstractConnection]]) -> AbstractConnection:
        turn: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with lag_tolerant_timeout(self.timeout):
                return await turn
        except BaseException as error:
            if turn in queue:
                queue.remove(turn)
            elif not turn.cancelled() and turn.exception() is None:
                # The connection came when its caller was no longer there.
                await self.release(turn.result())
            if isinstance(error, TimeoutError):
                self.on_timeout()
                message = f"pool {self.name!r}: no connection became free in {self.timeout} s"
                raise PoolExhaustedError(message) from error
            raise

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, and leave nothing half-connected behind: without its AUTH and SELECT, for instance."""
        if connection.is_connected and (is_readable(connection) or not is_between_replies(connection)):
            # Nothing is owed on an idle connection: this is its end, or a reply that no call is owed, or a part of one.
            await connection.disconnect(nowait=True)
        await self._connect_with(connection, partial(super().ensure_connection, connection))

    async def reconnect(self, connection: AbstractConnection) -> None:
        """Connect a borrowed connection anew; it stays borrowed, also if that fails.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        if not self.is_acquired(connection):
            raise self.closed_error()
        self._reconnected.add(connection)
        self._connecting.add(connection)
        try:
            await connection.disconnect(nowait=True)
            await self._connect_with(connection, connection.connect)
        except Exception as error:
            if not self.is_acquired(connection):
                raise self.closed_error() from error
            raise
        finally:
            self._connecting.discard(connection)

    async def _connect_with(
        self, connection: AbstractConnection, connect: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        began = None if connection.is_connected else perf_counter()
        try:
            await connect()
            if began is not None:
                _check_not_closed(connection)
                self.on_created(perf_counter() - began)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, UnicodeDecodeError):
                raise decoding_error(error) from None
            raise

    def discard_on_release(self, connection: AbstractConnection) -> None:
        """Note that a borrowed connection is no longer as it was made: it is closed when it is given back."""
        self._discarded.add(connection)

    def will_discard(self, connection: AbstractConnection) -> bool:
        """Whether a borrowed connection is no longer as it was made."""
        return connection in self._discarded

    def was_reconnected(self, connection: AbstractConnection) -> bool:
        """Whether a borrowed connection was connected anew since it was borrowed."""
        return connection in self._reconnected

    async def release(self, connection: AbstractConnection) -> None:
        """Give a borrowed connection back."""
        if not self.is_acquired(connection):
            # The pool was closed meanwhile.
            self._discarded.discard(connection)
            await connection.disconnect(nowait=True)
            return
        try:
            if connection in self._discarded or should_reconnect(connection):
                await connection.disconnect(nowait=True)
            # Credentials that have changed while it was out.
            await announce_release(self, connection)
        except RedisError:
            await connection.disconnect(nowait=True)
        finally:
            self._discarded.discard(connection)
            self.return_closed(connection)

    def return_closed(self, connection: AbstractConnection) -> None:
        """Take back a borrowed connection that is closed."""
        if self.is_acquired(connection):
            self._in_use_connections.remove(connection)
            self._reconnected.discard(connection)
            if (since := self._acquired_at.pop(connection, None)) is not None:
                self.on_released(perf_counter() - since)
            if connection is self._reserved_connection:
                self._reserved_connection = None
            forget_re_auth_token(connection)  # connecting uses the newest
            # The last one is lent first: one that is connected, if there is any.
            last = len(self._available_connections) if connection.is_connected else 0
            self._available_connections.insert(last, connection)
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        while self._reserved_waiters and len(self._in_use_connections) < self.max_connections:
            self._wake_next(self._reserved_waiters)
        while self._waiters and self._has_free_slot():
            self._wake_next(self._waiters)

    def _wake_next(self, queue: deque[asyncio.Future[AbstractConnection]]) -> None:
        turn = queue.popleft()
        if not turn.done():
            # With the connection: whoever comes between now and then would take it.
            turn.set_result(self.get_available_connection())

    def _reset(self) -> None:
        waiting = (*self._reserved_waiters, *self._waiters)
        super()._reset()
        self._waiters, self._reserved_waiters = deque(), deque()
        self._discarded, self._reconnected = set(), set()
        self._has_reservation, self._reserved_connection, self._acquired_at = False, None, {}
        for turn in waiting:
            # Without an event loop, nobody waits.
            if not turn.done() and not turn.get_loop().is_closed():
                turn.set_exception(self.closed_error())


def _check_not_closed(connection: AbstractConnection) -> None:
    """Raise if it has ended since it was connected.

    redis-py has read that, and would look at it after it has written; a shared connection would wait for it in vain.
    """
    if is_closed_by_peer(connection):
        raise ConnectionError("Connection closed by server.")
