"""Named components: their configuration, their pools, and a decorator that passes a connection."""

from aioredis_monitored.components.registry import Components, redis_connection
from aioredis_monitored.components.store import ConfigStore

__all__ = ["Components", "ConfigStore", "redis_connection"]
