"""The Redis client for asyncio web services that shows everything in OpenTelemetry and loses nothing."""

from aioredis_monitored._version import __version__
from aioredis_monitored.client import MonitoredRedisConnection
from aioredis_monitored.components import Components, redis_connection
from aioredis_monitored.config import RedisConfig, config_from_env
from aioredis_monitored.configstore import ConfigStore
from aioredis_monitored.context import RedisContextFactory, RedisMiddleware
from aioredis_monitored.errors import (
    ConfigurationError,
    EventLoopError,
    LeaseLostError,
    MonitoredRedisError,
    NoComponentsError,
    OwnConnectionError,
    PinnedConnectionLostError,
    PoolClosedError,
    PoolExhaustedError,
    ReplyDecodingError,
    TimedOutError,
)
from aioredis_monitored.pipeline import MonitoredRedisPipeline
from aioredis_monitored.pool import MonitoredConnectionPool, pool_from_config
from aioredis_monitored.pubsub import MonitoredPubSub
from aioredis_monitored.queue import MessageQueue
from aioredis_monitored.telemetry.options import TelemetryOptions

__all__ = [
    "Components",
    "ConfigStore",
    "ConfigurationError",
    "EventLoopError",
    "LeaseLostError",
    "MessageQueue",
    "MonitoredConnectionPool",
    "MonitoredPubSub",
    "MonitoredRedisConnection",
    "MonitoredRedisError",
    "MonitoredRedisPipeline",
    "NoComponentsError",
    "OwnConnectionError",
    "PinnedConnectionLostError",
    "PoolClosedError",
    "PoolExhaustedError",
    "RedisConfig",
    "RedisContextFactory",
    "RedisMiddleware",
    "ReplyDecodingError",
    "TelemetryOptions",
    "TimedOutError",
    "__version__",
    "config_from_env",
    "pool_from_config",
    "redis_connection",
]
