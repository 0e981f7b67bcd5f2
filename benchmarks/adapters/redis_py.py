"""Adapter of redis-py: both kinds of pools, the blocking one also with contrib spans and native metrics; clusters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from telemetry import Recorder
from workloads import Client

DEFAULT_CONNECTIONS = 100
# For each node: with the default of 100, 1,024 callers get MaxConnectionsError.
CLUSTER_CONNECTIONS = 3000


@asynccontextmanager
async def connect(variant: str, url: str, callers: int) -> AsyncIterator[Client]:
    """Connect ``redis`` (its ``Redis``), ``pool``, ``contrib``, ``native``, ``both`` on a pool, or ``cluster``."""
    recorder = Recorder(spans=variant in {"contrib", "both"}, metrics=variant in {"native", "both"})
    if variant in {"contrib", "both"}:
        from opentelemetry.instrumentation.redis import RedisInstrumentor  # noqa: PLC0415 - importing it is a cost

        RedisInstrumentor().instrument(tracer_provider=recorder.tracer_provider)
    if variant in {"native", "both"}:
        use_native_metrics(recorder)
    if variant == "cluster":
        address = urlsplit(url)
        client = RedisCluster(host=address.hostname, port=address.port, max_connections=CLUSTER_CONNECTIONS)
    elif variant == "redis":
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


def redis_like(name: str, client: Redis | RedisCluster, recorder: Recorder) -> Client:
    """Wrap a client that has redis-py's API: redis-py's or this package's."""

    async def batch(keys: Sequence[str]) -> list[object]:
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(key)
        return await pipeline.execute()

    return Client(name, client.get, client.set, client.incr, batch, recorder.finish)
