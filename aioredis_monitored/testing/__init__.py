"""Tools for tests: real servers, a proxy that breaks connections, and captured telemetry."""

from aioredis_monitored.testing.capture import Recording, TelemetryCapture
from aioredis_monitored.testing.cluster import ClusterServers, NodeServer
from aioredis_monitored.testing.proxy import FaultProxy
from aioredis_monitored.testing.sentinel import SentinelServers
from aioredis_monitored.testing.server import RedisServer, TlsFiles

__all__ = [
    "ClusterServers",
    "FaultProxy",
    "NodeServer",
    "Recording",
    "RedisServer",
    "SentinelServers",
    "TelemetryCapture",
    "TlsFiles",
]
