"""What the server does for all its clients, as MONITOR shows it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, cast

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._execution.attempts import acquire_from, dedicated_attempt, retry
from aioredis_monitored._execution.targets import resolve_target_pool
from aioredis_monitored._redispy.overrides import TypedMonitor
from aioredis_monitored._topology.node import TargetNodes
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool

if TYPE_CHECKING:
    from redis.asyncio import Connection, ConnectionPool

# MONITOR changes nothing but its connection, which is not used again if it fails.
_MONITOR = traits_of(("MONITOR",))._replace(retry_safe=True)


class MonitoredMonitor(TypedMonitor):
    """redis-py's ``Monitor``; on a ``MonitoredConnectionPool``, entering it is retried as any call.

    Once its connection is lost, it raises: it has missed commands.

    Args:
        connection_pool: The pool.
        target_node: On the pool of a cluster, the node, as ``target_nodes=`` takes it; default ``None``, for a server
            that is alone.
    """

    def __init__(self, connection_pool: "ConnectionPool", target_node: TargetNodes | None = None) -> None:
        super().__init__(connection_pool)
        self._target_node = target_node

    async def __aenter__(self) -> Self:
        pool = self.connection_pool
        if isinstance(pool, MonitoredClusterPool):
            pool = await resolve_target_pool(pool, self._target_node, None)
        if isinstance(pool, MonitoredConnectionPool):
            await retry(pool, _MONITOR, partial(self._enter_once, pool), 0, None)
        else:
            await super().__aenter__()
        return self

    async def _enter_once(
        self,
        pool: MonitoredConnectionPool,
        seconds: float | None,
        _losses: int,
    ) -> None:
        async with dedicated_attempt(pool, seconds, self._kept_connection(pool), 0):
            await super().__aenter__()

    @asynccontextmanager
    async def _kept_connection(self, pool: MonitoredConnectionPool) -> AsyncIterator[AbstractConnection]:
        # redis-py gives it back only if entering succeeds.
        connection = await acquire_from(pool, None)
        self.connection = cast("Connection", connection)
        try:
            yield connection
        except BaseException:
            self.connection = None
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
