"""Configuration from environment variables, mappings, URLs and keyword arguments: checked strictly, and typed."""

from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.config.schema import RedisConfig
from aioredis_monitored.config.telemetry import TelemetryOptions

__all__ = ["RedisConfig", "TelemetryOptions", "config_from_env"]
