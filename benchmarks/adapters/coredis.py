"""Adapter of coredis, without and with coredis's telemetry."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import coredis
from coredis.config import Config
from workloads import BATCH, SMALL, Client


@asynccontextmanager
async def connect(variant: str, url: str, _callers: int) -> AsyncIterator[Client]:
    """Connect ``plain``, or with ``telemetry``, which coredis records to the global providers."""
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
    client = coredis.Redis(host=address.hostname, port=address.port)

    async def batch() -> tuple[object, ...]:
        async with client.pipeline(transaction=False) as pipeline:
            for _ in range(BATCH):
                pipeline.get(SMALL)
        return pipeline.results

    async with client:
        yield Client(f"coredis {coredis.__version__}", client.get, client.set, client.incr, batch, finish)
