"""The types that users see; mypy and pyright check this file, which is never run."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import assert_type

from opentelemetry.trace import Span
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioredis_monitored import (
    Components,
    ConfigStore,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    MonitoredRedisPipeline,
    RedisContextFactory,
    config_from_env,
    pool_from_config,
    redis_connection,
)


async def pools_and_clients(span: Span) -> None:
    async with pool_from_config(config_from_env(), prefix="redis.", max_connections=3) as pool:
        assert_type(pool, MonitoredConnectionPool)
        await pool.ping()
    async with MonitoredRedisConnection("redis", span, pool) as client:
        assert_type(client, MonitoredRedisConnection)
    as_redis: Redis = client
    assert_type(client.client(), MonitoredRedisConnection)
    assert_type(MonitoredRedisConnection.from_url("redis://localhost"), MonitoredRedisConnection)
    assert_type(MonitoredRedisConnection(host="localhost", ssl=False, retry=None), MonitoredRedisConnection)
    MonitoredRedisConnection("localhost", 6379)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.set_retry(Retry(NoBackoff(), 3))
    assert_type(client.get_retry(), Retry | None)
    assert_type(pool.get_retry(), Retry)
    assert_type(await client.get("key"), bytes | str | None)
    assert_type(await as_redis.exists("key"), int)
    factory = RedisContextFactory(pool, name="redis")
    assert_type(factory.make_object_for_context("redis", span), MonitoredRedisConnection)


async def pipelines(client: MonitoredRedisConnection) -> None:
    assert_type(client.pipeline("cart"), MonitoredRedisPipeline)
    assert_type(client.pipeline("cart", transaction=False), MonitoredRedisPipeline)
    assert_type(client.pipeline(False), MonitoredRedisPipeline)
    assert_type(client.pipeline(transaction=False), MonitoredRedisPipeline)
    async with client.pipeline() as pipe:
        assert_type(pipe, MonitoredRedisPipeline)


async def queues(client: MonitoredRedisConnection, pool: MonitoredConnectionPool) -> None:
    async with MessageQueue("mail", pool) as queue:
        await queue.put(b"message", timeout=1.5)
        assert_type(await queue.get(timeout=1.5), bytes)
        async for message in queue:
            assert_type(message, bytes)
        async with queue.take(timeout=5) as message:
            assert_type(message, bytes)
        async with queue.take_many(100) as messages:
            assert_type(messages, list[bytes])
        assert_type(await queue.get_many(100, 0), list[bytes])
        assert_type(await queue.dead(), list[bytes])
        assert_type(await queue.requeue_dead(), int)
        await queue.put_many([b"bytes", "text", 3], timeout=5)
        await queue.put_many(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bounded = MessageQueue("mail", client, lease=5, max_deliveries=3, max_length=100, propagate=True)

    async def handle(message: bytes) -> None: ...

    def plain(message: bytes) -> None: ...

    if await client.exists("mail"):
        await bounded.consume(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await bounded.consume(handle, concurrency=3)
    bounded.stop()


@redis_connection("logs")
async def log(conn: MonitoredRedisConnection, text: str, *, level: int = 0) -> int:
    return await conn.rpush("log", text) + level


@redis_connection("logs", wait=5)
async def lines(conn: MonitoredRedisConnection, count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield str(await conn.lpop("log"))


@redis_connection("logs")
@asynccontextmanager
async def access_time(conn: MonitoredRedisConnection, context: str) -> AsyncGenerator[float]:
    yield float(len(context))
    await conn.incr(context)


class Service:
    @redis_connection("logs")
    async def method(self, conn: MonitoredRedisConnection, key: str) -> bool:
        return bool(await conn.exists(key))


async def decorated() -> None:
    assert_type(await log("text", level=3), int)
    assert_type(await Service().method("key"), bool)
    async for line in lines(3):
        assert_type(line, str)
    async with access_time("checkout") as value:
        assert_type(value, float)
    await log(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await Service().method()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def stored(client: MonitoredRedisConnection) -> None:
    store = ConfigStore(client)
    await store.set("redis", "logs", {"url": "redis://localhost"})
    async with Components(store) as components:

        @components.redis_connection("logs")
        async def count(conn: MonitoredRedisConnection, key: str) -> int:
            return await conn.incr(key)

        assert_type(await count("key"), int)
        assert_type(await store.is_under_maintenance(), bool)


@redis_connection("logs")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]
def plain(conn: MonitoredRedisConnection) -> int:
    return 1
