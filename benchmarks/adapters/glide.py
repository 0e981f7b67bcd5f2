"""Adapter of valkey-glide, whose core is written in Rust, without and with its telemetry, and of its cluster client."""

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from glide import (
    Batch,
    ClusterBatch,
    GlideClient,
    GlideClientConfiguration,
    GlideClusterClient,
    GlideClusterClientConfiguration,
    NodeAddress,
    OpenTelemetry,
    OpenTelemetryConfig,
    OpenTelemetryMetricsConfig,
    OpenTelemetryTracesConfig,
)
from workloads import Client

DEFAULT_IN_FLIGHT = 1000
TIMEOUT_MS = 10_000


@asynccontextmanager
async def connect(variant: str, url: str, callers: int) -> AsyncIterator[Client]:
    """Connect ``plain``, ``cluster``, or with ``telemetry``, which valkey-glide's core writes to files."""
    kind, configuration, batch_kind = GlideClient, GlideClientConfiguration, Batch
    if variant == "cluster":
        kind, configuration, batch_kind = GlideClusterClient, GlideClusterClientConfiguration, ClusterBatch
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
        client = await kind.create(
            configuration(
                [NodeAddress(address.hostname, address.port)],
                # The default timeout of 250 ms fails on a busy machine; beyond the default of 1,000 calls in flight,
                # valkey-glide raises instead of waiting.
                request_timeout=TIMEOUT_MS,
                inflight_requests_limit=max(DEFAULT_IN_FLIGHT, callers),
            )
        )

        async def batch(keys: Sequence[str]) -> list[object]:
            gets = batch_kind(is_atomic=False)
            for key in keys:
                gets.get(key)
            return await client.exec(gets, raise_on_error=True)

        yield Client(f"valkey-glide {version('valkey-glide')}", client.get, client.set, client.incr, batch)
        await client.close()
