"""Connecting the connections of a pool: which may connect, which are being connected, and how closing ends that."""

import asyncio
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Final

from redis import exceptions
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError

from aioredis_monitored._redispy.attributes import is_between_replies
from aioredis_monitored._redispy.overrides import connect, forget_re_auth_token, re_auth
from aioredis_monitored._redispy.sockets import is_closed_by_peer, is_readable
from aioredis_monitored.errors import PinnedConnectionLostError, PoolClosedError, decoding_error
from aioredis_monitored.pool.metrics import PoolMetrics
from aioredis_monitored.pool.slots import Slots

PINNED_CONNECTION_LOST: Final = (
    "the connection of this handle is lost, and with it what was set there, such as the database: "
    "make a new handle (client() or pipeline()), and set it again"
)


class Connector:
    """Connects the connections of a pool, and leaves none half-connected.

    Args:
        slots: The connections of the pool.
        metrics: Where the time of each connect is recorded.
        closed_error: Makes the error of a call that the closing of the pool has ended.
    """

    def __init__(
        self, slots: Slots[AbstractConnection], metrics: PoolMetrics, closed_error: Callable[[], PoolClosedError]
    ) -> None:
        self._slots = slots
        self._metrics = metrics
        self._closed_error = closed_error
        self.reset()

    def reset(self) -> None:
        """Begin anew: the connections that there were belong to the pool no longer."""
        # New objects: a call that began before goes on with the old ones.
        self._connecting: set[AbstractConnection] = set()
        # For each, a future that is done when the connection has been made, or has not.
        self._interrupts: dict[asyncio.Timeout, asyncio.Future[None]] = {}

    async def connect(self, connection: AbstractConnection, pool: ConnectionPool, *, anew: bool = False) -> None:
        """Connect a connection that a caller has just got a slot for; if that fails, it is released.

        Args:
            connection: The connection.
            pool: Its pool, of which ``ensure_connection`` and ``release`` are called.
            anew: Whether a connected one is connected anew, with the newest credentials; default ``False``.

        Raises:
            PoolClosedError: The pool was closed meanwhile.
            redis.exceptions.RedisError: The connection cannot be made.
        """
        if connection not in self._slots.acquired:
            # The pool was closed after its slot had become free, and before this caller went on.
            raise self._closed_error()
        connecting = self._connecting
        connecting.add(connection)
        try:
            if anew:
                await connection.disconnect(nowait=True)
            await pool.ensure_connection(connection)
            if anew:
                await _re_authenticate(connection, pool)
        except BaseException as error:
            is_closed = connection not in self._slots.acquired
            await pool.release(connection)
            if is_closed and isinstance(error, Exception):
                raise self._closed_error() from error
            raise
        finally:
            connecting.discard(connection)

    async def reconnect(self, connection: AbstractConnection) -> None:
        """Connect an acquired connection anew; it stays acquired, also if that fails.

        Raises:
            PoolClosedError: It is not acquired, as the pool was closed.
            redis.exceptions.RedisError: The connection cannot be made.
        """
        if connection not in self._slots.acquired:
            raise self._closed_error()
        connecting = self._connecting
        self._slots.mark_reconnected(connection)
        connecting.add(connection)
        try:
            await connection.disconnect(nowait=True)
            await self.ensure(connection, connect)
        except Exception as error:
            if connection not in self._slots.acquired:
                raise self._closed_error() from error
            raise
        finally:
            connecting.discard(connection)

    async def ensure(
        self, connection: AbstractConnection, connect: Callable[[AbstractConnection], Coroutine[Any, Any, None]]
    ) -> None:
        """Connect, and leave no connection half-connected, such as one without its AUTH and SELECT.

        Args:
            connection: The connection.
            connect: Connects it; called as well if it is connected.
        """
        if connection.is_connected and (is_readable(connection) or not is_between_replies(connection)):
            # No reply is due on an idle connection: this is its end, or a reply that no call awaits, or a part of one.
            await connection.disconnect(nowait=True)
        try:
            if connection.is_connected:
                await connect(connection)
                return
            started = perf_counter()
            await self._unless_closed(connection, connect)
            _check_not_closed(connection)
            self._metrics.on_created(perf_counter() - started)
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, UnicodeDecodeError):
                raise decoding_error(error) from None
            raise

    async def _unless_closed(
        self, connection: AbstractConnection, connect: Callable[[AbstractConnection], Coroutine[Any, Any, None]]
    ) -> None:
        """Await what connects; closing the pool ends that at once."""
        interrupts, interrupt = self._interrupts, asyncio.timeout(None)
        ended = interrupts[interrupt] = asyncio.get_running_loop().create_future()
        try:
            async with interrupt:
                await connect(connection)
        except TimeoutError:
            if not interrupt.expired():
                raise
            raise self._closed_error() from None
        finally:
            del interrupts[interrupt]
            ended.set_result(None)

    async def check_connectable(self, connection: AbstractConnection) -> None:
        """Check that a connection may connect, and close it if not.

        redis-py reconnects whenever it is asked to send. A connection that was acquired when the pool closed would come
        back to life: a WATCH would be forgotten, a subscription would outlive the pool. An altered one would lose what
        its caller has set.

        Raises:
            PoolClosedError: It does not belong to the pool any more.
            PinnedConnectionLostError: It is altered.
        """
        if connection not in self._slots.acquired and connection not in self._slots.idle:
            await connection.disconnect(nowait=True)
            raise self._closed_error()
        if self._slots.will_discard(connection):
            await connection.disconnect(nowait=True)
            raise PinnedConnectionLostError(PINNED_CONNECTION_LOST)

    def interrupt(self) -> list[asyncio.Future[None]]:
        """End the making of connections at once; those who asked for them get the ``closed_error``.

        Returns:
            A future of each, which is done when that has ended.
        """
        # They may have no socket yet that could be closed.
        now = asyncio.get_running_loop().time()
        for each in self._interrupts:
            each.reschedule(now)
        return list(self._interrupts.values())

    def is_connected(self) -> bool:
        """Whether there is a connection on which the server has answered, acquired or idle."""
        connections = {*self._slots.acquired, *self._slots.idle} - self._connecting
        return any(connection.is_connected for connection in connections)


async def _re_authenticate(connection: AbstractConnection, pool: ConnectionPool) -> None:
    """Send credentials that have changed while the connection was being connected."""
    try:
        await re_auth(connection)
    except AuthenticationError:
        # The credentials that it was connected with may still be good; redis-py has closed it.
        forget_re_auth_token(connection)
        await pool.ensure_connection(connection)


def _check_not_closed(connection: AbstractConnection) -> None:
    """Raise if the server has closed a connection since it was connected.

    redis-py has read that, and would look at it only after it has written; a shared connection would wait in vain.
    """
    if is_closed_by_peer(connection):
        raise exceptions.ConnectionError("Connection closed by server.")
