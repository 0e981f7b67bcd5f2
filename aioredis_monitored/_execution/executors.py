"""Which executor a client gets: that depends on its pool."""

from typing import Any

from redis.asyncio import ConnectionPool

from aioredis_monitored._execution.cluster import ClusterExecutor
from aioredis_monitored._execution.replicas import SentinelExecutor
from aioredis_monitored._execution.routing import CommandExecutor
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.sentinel import MonitoredSentinelPool


def executor_for(connection_pool: ConnectionPool, *arguments: Any, **options: Any) -> CommandExecutor:
    """Make the executor for a client on a pool of any kind; the arguments are those of ``CommandExecutor``."""
    kind = CommandExecutor
    if isinstance(connection_pool, MonitoredClusterPool):
        kind = ClusterExecutor
    elif isinstance(connection_pool, MonitoredSentinelPool) and connection_pool.reads_replicas:
        kind = SentinelExecutor
    return kind(connection_pool, *arguments, **options)
