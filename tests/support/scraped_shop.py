"""The demo's shop for a Prometheus to scrape: print the port of its metrics, and trade until stdin is closed."""

import asyncio
import sys
from contextlib import suppress

from opentelemetry import trace
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from redis.exceptions import LockError

from aioredis_monitored import (
    Components,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolExhaustedError,
    RedisContextFactory,
    TimedOutError,
    pool_from_config,
)
from aioredis_monitored.cli.shop import Shop, Visits
from aioredis_monitored.testing import ClusterServers, RedisServer


async def trade(url, cluster_url, provider):
    """Serve the demo's requests, one of which fails with WRONGTYPE, and cause every other trouble, again and again."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, closed.set)
    small = MonitoredConnectionPool.from_url(
        url, name="small", max_connections=1, timeout=0.05, meter_provider=provider
    )
    async with (
        pool_from_config({"redis.url": url}, meter_provider=provider) as pool,
        MonitoredConnectionPool.from_url(cluster_url, name="sharded", meter_provider=provider) as sharded,
        small,
        MessageQueue("mail", pool, lease=1, max_deliveries=1, max_length=2, propagate=True) as mail,
    ):
        redis = MonitoredRedisConnection(connection_pool=pool)
        tracer = trace.get_tracer("web shop")
        visits = Visits(Shop(pool, tracer), RedisContextFactory(pool), tracer)
        while not closed.is_set():
            await visits.run(Components({"redis.statistics.url": url}, meter_provider=provider))
            await asyncio.gather(
                exhaust(MonitoredRedisConnection(connection_pool=small)),
                cancel(redis),
                buy(redis),
                buy(redis),
                hold_too_long(redis),
                deliver(mail),
                MonitoredRedisConnection(connection_pool=sharded).mget("letters", "parcels"),
            )


async def exhaust(redis):
    """Use one connection for two callers: the second gives up before the first does, unless the machine is slow."""
    _, outcome = await asyncio.gather(redis.blpop("nothing", 0.1), redis.get("views"), return_exceptions=True)
    assert outcome is None or isinstance(outcome, PoolExhaustedError | bytes), outcome


async def cancel(redis):
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await redis.blpop("nothing", 1)


async def buy(redis):
    """Make two purchases at a time: one has the lock, the other waits for it."""
    async with redis.lock("lock:last bicycle", timeout=5, sleep=0.005):
        await asyncio.sleep(0.01)


async def hold_too_long(redis):
    with suppress(LockError):
        async with redis.lock("lock:parcel", timeout=0.005):
            await asyncio.sleep(0.02)


async def deliver(mail):
    """Have one message handled, one become a dead letter, and one rejected for lack of room; then wait in vain."""
    await mail.put_many([b"letter", b"torn letter"])
    with suppress(TimedOutError):
        await mail.put(b"one too many", 0)
    async with mail.take():
        pass
    with suppress(ValueError):
        async with mail.take():
            raise ValueError("torn")
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01), mail.take():
            pass


if __name__ == "__main__":
    metrics, _ = start_http_server(0, "127.0.0.1")
    print(metrics.server_port, flush=True)
    with RedisServer() as server, ClusterServers(replicas=0) as cluster:
        asyncio.run(trade(server.url, cluster.url, MeterProvider([PrometheusMetricReader()])))
