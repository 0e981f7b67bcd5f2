"""For tests: a real server, a proxy that breaks connections, and the telemetry of a block of code."""

from aioredis_monitored.testing.capture import Recording, TelemetryCapture
from aioredis_monitored.testing.proxy import FaultProxy
from aioredis_monitored.testing.server import RedisServer

__all__ = ["FaultProxy", "Recording", "RedisServer", "TelemetryCapture"]
