"""Adapter of redis-py: its two kinds of pools, the blocking one also with contrib spans and native metrics."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from redis.asyncio import BlockingConnectionPool, Redis
from telemetry import Recorder
from workloads import BATCH, SMALL, Client

DEFAULT_CONNECTIONS = 100


@asynccontextmanager
async def connect(variant: str, url: str, callers: int) -> AsyncIterator[Client]:
    """Connect ``redis`` (its plain ``Redis``), or ``pool``, ``contrib``, ``native`` and ``both`` on a blocking pool."""
    recorder = Recorder(spans=variant in {"contrib", "both"}, metrics=variant in {"native", "both"})
    if variant in {"contrib", "both"}:
        from opentelemetry.instrumentation.redis import RedisInstrumentor  # noqa: PLC0415 - importing it is a cost

        RedisInstrumentor().instrument(tracer_provider=recorder.tracer_provider)
    if variant in {"native", "both"}:
        use_native_metrics(recorder)
    if variant == "redis":
        # With more callers than connections, this pool raises instead of waiting.
        client = Redis.from_url(url, max_connections=max(DEFAULT_CONNECTIONS, callers))
    else:
        client = Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=50))
    async with client:
        yield redis_like(f"redis-py {version('redis')}", client, recorder)


def use_native_metrics(recorder: Recorder) -> None:
    """Let redis-py record the metric groups that a service's operator needs."""
    from opentelemetry.metrics import set_meter_provider  # noqa: PLC0415 - importing it is a cost
    from redis.observability import MetricGroup, OTelConfig, get_observability_instance  # noqa: PLC0415

    set_meter_provider(recorder.meter_provider)
    groups = [
        MetricGroup.COMMAND,
        MetricGroup.RESILIENCY,
        MetricGroup.CONNECTION_BASIC,
        MetricGroup.CONNECTION_ADVANCED,
    ]
    get_observability_instance().init(OTelConfig(metric_groups=groups))


def redis_like(name: str, client: Redis, recorder: Recorder) -> Client:
    """Wrap a client that has redis-py's API: redis-py's or this package's."""

    async def batch() -> list[object]:
        pipeline = client.pipeline(transaction=False)
        for _ in range(BATCH):
            pipeline.get(SMALL)
        return await pipeline.execute()

    return Client(name, client.get, client.set, client.incr, batch, recorder.finish)
