"""The connection pool: made from configuration, bound to one event loop, closed by its owner."""

from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config

__all__ = ["MonitoredConnectionPool", "pool_from_config"]
