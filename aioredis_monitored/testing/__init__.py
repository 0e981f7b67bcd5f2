"""Tools for tests: a real server, a proxy that breaks connections, and captured telemetry."""

from aioredis_monitored.testing.capture import Recording, TelemetryCapture
from aioredis_monitored.testing.proxy import FaultProxy
from aioredis_monitored.testing.server import RedisServer

__all__ = ["FaultProxy", "Recording", "RedisServer", "TelemetryCapture"]
