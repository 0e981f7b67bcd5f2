"""Adapter of this package, with the telemetry that the variant names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from adapters.redis_py import redis_like
from telemetry import Recorder
from workloads import Client

from aioredis_monitored import MonitoredRedisConnection

RECORDED = {
    "no-sdk": {},
    "alone": {},
    "unshared": {},
    "metrics": {"metrics": True},
    "sampled": {"metrics": True, "spans": True, "ratio": 0.01},
    "everything": {"metrics": True, "spans": True},
    "otlp": {"metrics": True, "spans": True, "otlp": True},
}


@asynccontextmanager
async def connect(variant: str, url: str, _callers: int) -> AsyncIterator[Client]:
    """Connect with the telemetry that ``RECORDED`` lists; ``unshared`` has no shared connection."""
    recorder = Recorder(**RECORDED[variant])
    options = {"multiplex": False} if variant == "unshared" else {}
    client = MonitoredRedisConnection.from_url(
        url, tracer_provider=recorder.tracer_provider, meter_provider=recorder.meter_provider, **options
    )
    async with client:
        yield redis_like(f"aioredis_monitored {version('aioredis_monitored')}", client, recorder)
