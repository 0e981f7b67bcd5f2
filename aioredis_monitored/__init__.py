"""The Redis client for asyncio web services that shows everything in OpenTelemetry and loses nothing.

For pytest, PYTEST_DONT_REWRITE: it would warn programs that import the package before they call ``pytest.main()``.
"""

from aioredis_monitored._telemetry.stats import PoolStats
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored._version import __version__
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.cluster import MonitoredRedisCluster
from aioredis_monitored.client.cluster_pubsub import MonitoredClusterPubSub
from aioredis_monitored.client.pipeline import MonitoredRedisPipeline
from aioredis_monitored.client.pubsub import MonitoredPubSub
from aioredis_monitored.components.registry import Components, redis_connection
from aioredis_monitored.components.store import ConfigStore
from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.config.schema import RedisConfig
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.errors import (
    ClusterRoutingError,
    ConfigurationError,
    CrossSlotError,
    DedicatedConnectionError,
    EventLoopError,
    LeaseLostError,
    MonitoredRedisError,
    NoComponentsError,
    PinnedConnectionLostError,
    PoolClosedError,
    PoolExhaustedError,
    ReplyDecodingError,
    TimedOutError,
)
from aioredis_monitored.integrations.asgi import RedisContextFactory, RedisMiddleware
from aioredis_monitored.integrations.health import HealthEndpoints
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.health import PoolHealth, ServerHealth
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config
from aioredis_monitored.pool.sentinel import MonitoredSentinelPool
from aioredis_monitored.queue.health import QueueHealth
from aioredis_monitored.queue.inspection import QueueStats
from aioredis_monitored.queue.queue import MessageQueue

__all__ = [
    "ClusterNode",
    "ClusterRoutingError",
    "Components",
    "ConfigStore",
    "ConfigurationError",
    "CrossSlotError",
    "DedicatedConnectionError",
    "EventLoopError",
    "HealthEndpoints",
    "LeaseLostError",
    "MessageQueue",
    "MonitoredClusterPool",
    "MonitoredClusterPubSub",
    "MonitoredConnectionPool",
    "MonitoredPubSub",
    "MonitoredRedisCluster",
    "MonitoredRedisConnection",
    "MonitoredRedisError",
    "MonitoredRedisPipeline",
    "MonitoredSentinelPool",
    "NoComponentsError",
    "PinnedConnectionLostError",
    "PoolClosedError",
    "PoolExhaustedError",
    "PoolHealth",
    "PoolStats",
    "QueueHealth",
    "QueueStats",
    "RedisConfig",
    "RedisContextFactory",
    "RedisMiddleware",
    "ReplyDecodingError",
    "ServerHealth",
    "TelemetryOptions",
    "TimedOutError",
    "__version__",
    "config_from_env",
    "pool_from_config",
    "redis_connection",
]

# Tracebacks, reprs and the documentation show the module from which users import a class or function.
for _name in __all__:
    if hasattr(globals()[_name], "__module__"):
        globals()[_name].__module__ = __name__
del _name
