"""Named components: their configuration, their pools, and the connection as a function's first argument."""

from aioredis_monitored.components.registry import Components, redis_connection
from aioredis_monitored.components.store import ConfigStore

__all__ = ["Components", "ConfigStore", "redis_connection"]
