"""Adapter of valkey-glide, whose core is written in Rust, without and with its telemetry."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from glide import (
    Batch,
    GlideClient,
    GlideClientConfiguration,
    NodeAddress,
    OpenTelemetry,
    OpenTelemetryConfig,
    OpenTelemetryMetricsConfig,
    OpenTelemetryTracesConfig,
)
from workloads import BATCH, SMALL, Client

DEFAULT_IN_FLIGHT = 1000
TIMEOUT_MS = 10_000


@asynccontextmanager
async def connect(variant: str, url: str, callers: int) -> AsyncIterator[Client]:
    """Connect ``plain``, or with ``telemetry``, which valkey-glide's core writes to files."""
    # The core may still write while the files are removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        if variant == "telemetry":
            OpenTelemetry.init(
                OpenTelemetryConfig(
                    OpenTelemetryTracesConfig(f"file://{directory}/traces.json", sample_percentage=100),
                    OpenTelemetryMetricsConfig(f"file://{directory}/metrics.json"),
                )
            )
        address = urlsplit(url)
        client = await GlideClient.create(
            GlideClientConfiguration(
                [NodeAddress(address.hostname, address.port)],
                # The default timeout of 250 ms fails on a busy machine; beyond the default of 1,000 calls in flight,
                # valkey-glide raises instead of waiting.
                request_timeout=TIMEOUT_MS,
                inflight_requests_limit=max(DEFAULT_IN_FLIGHT, callers),
            )
        )

        async def batch() -> list[object]:
            gets = Batch(is_atomic=False)
            for _ in range(BATCH):
                gets.get(SMALL)
            return await client.exec(gets, raise_on_error=True)

        yield Client(f"valkey-glide {version('valkey-glide')}", client.get, client.set, client.incr, batch)
        await client.close()
