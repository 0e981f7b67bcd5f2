"""Adapter of coredis, without and with coredis's telemetry, and of its cluster client."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import coredis
from coredis.config import Config
from workloads import Client

DEFAULT_CONNECTIONS = 32


@asynccontextmanager
async def connect(variant: str, url: str, callers: int) -> AsyncIterator[Client]:
    """Connect ``plain``, ``cluster``, or with ``telemetry``, which coredis records to the global providers."""
    finish = dict
    if variant == "telemetry":
        from opentelemetry import metrics, trace  # noqa: PLC0415 - importing it costs time and memory
        from telemetry import Recorder  # noqa: PLC0415

        recorder = Recorder(metrics=True, spans=True)
        metrics.set_meter_provider(recorder.meter_provider)
        trace.set_tracer_provider(recorder.tracer_provider)
        Config.otel_enabled = True
        finish = recorder.finish
    address = urlsplit(url)
    if variant == "cluster":
        # Callers wait for a connection of their own each.
        client = coredis.RedisCluster(address.hostname, address.port, max_connections=max(DEFAULT_CONNECTIONS, callers))
    else:
        client = coredis.Redis(host=address.hostname, port=address.port)

    async def batch(keys: Sequence[str]) -> tuple[object, ...]:
        async with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(key)
        return pipeline.results

    async with client:
        yield Client(f"coredis {coredis.__version__}", client.get, client.set, client.incr, batch, finish)
