"""The connection pool: made from configuration, bound to one event loop, closed by its owner."""

from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config
from aioredis_monitored.pool.sentinel import MonitoredSentinelPool

__all__ = ["MonitoredClusterPool", "MonitoredConnectionPool", "MonitoredSentinelPool", "pool_from_config"]
