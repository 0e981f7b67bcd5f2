"""The types that users see; mypy and pyright check this file, which is never run."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from decimal import Decimal
from typing import Any, assert_type

from opentelemetry.trace import Span
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioredis_monitored import (
    Components,
    ConfigStore,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredPubSub,
    MonitoredRedisConnection,
    MonitoredRedisPipeline,
    QueueStats,
    RedisContextFactory,
    config_from_env,
    pool_from_config,
    redis_connection,
)
from aioredis_monitored.client.pipeline_commands import PipelineCommand


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
        assert_type(pipe.incr("visits").expire("visits", 3600), PipelineCommand[bool])
        assert_type(pipe.execute_command("GET", "key").execute_command("GET", "key").get("key").name, str | None)
        assert_type(pipe.publish("channel", "message").spublish("channel", "message"), PipelineCommand[int])
        assert_type(
            await pipe.hset("key", mapping={"field": 1}).smembers("set").zadd("key", {"x": 1}).execute(), list[Any]
        )
        assert_type(len(pipe), int)
        pipe.incr(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pipe.incr("visits").incrr("visits")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


def chained(pipe: MonitoredRedisPipeline) -> Pipeline:
    pipe = pipe.set("key", "value", ex=60)
    return pipe.incr("visits")


async def watching(client: MonitoredRedisConnection) -> None:
    async with client.pipeline("cart") as pipe:
        assert_type(await pipe.watch("key", b"key"), bool)
        assert_type(await pipe.get("key"), bytes | str | None)
        assert_type(await pipe.hgetall("key"), dict[bytes | str, bytes | str])
        assert_type(await pipe.smembers("key"), set[bytes | str])
        awaitable: Awaitable[int] = pipe.exists("key")
        assert_type(await awaitable, int)
        assert_type(await pipe.unwatch(), bool)
        pipe.multi()
        assert_type(await pipe.decr("key").execute(raise_on_error=False), list[Any])
        await pipe.discard()
        await pipe.reset()


async def transactions(client: MonitoredRedisConnection, flag: bool) -> None:
    async def reserve(pipe: MonitoredRedisPipeline) -> float:
        return float(await pipe.get("stock") or 0)

    def count(pipe: Pipeline) -> int:
        return len(pipe.command_stack)

    assert_type(await client.transaction(reserve, "stock", watch_delay=0.1), list[Any])
    assert_type(await client.transaction(lambda pipe: pipe.decr("stock").get("stock"), "stock"), list[Any])
    assert_type(await client.transaction(reserve, "stock", value_from_callable=True), float)
    assert_type(await client.transaction(count, "stock", value_from_callable=True), int)
    await client.transaction(count, "stock", value_from_callable=flag)
    await client.transaction(int, "stock")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def iterators(client: MonitoredRedisConnection, flag: bool) -> None:
    assert_type([key async for key in client.scan_iter("user:*", count=100)], list[bytes | str])
    assert_type([member async for member in client.sscan_iter("key")], list[bytes | str])
    assert_type([item async for item in client.hscan_iter("key")], list[tuple[bytes | str, bytes | str]])
    assert_type([field async for field in client.hscan_iter("key", no_values=True)], list[bytes | str])
    async for item in client.hscan_iter("key", no_values=flag):
        assert_type(item, tuple[bytes | str, bytes | str] | bytes | str)
    async for pair in client.zscan_iter("key"):
        assert_type(pair, tuple[bytes | str, float] | list[bytes | str | float])
    async for decimal in client.zscan_iter("key", None, None, Decimal):
        assert_type(decimal, tuple[bytes | str, Decimal] | list[bytes | str | Decimal])


async def subscriptions(client: MonitoredRedisConnection) -> None:
    async with client.pubsub() as pubsub:
        assert_type(pubsub, MonitoredPubSub)
        await pubsub.subscribe("news", orders=print)
        assert_type(await pubsub.get_message(timeout=5), dict[str, Any] | None)
        async with aclosing(pubsub.listen()) as messages:
            async for message in messages:
                assert_type(message, dict[str, Any])
                with pubsub.process(message):
                    assert_type(pubsub.subscribed, bool)
        await pubsub.unsubscribe("news")
        await pubsub.run(poll_timeout=1)


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
        assert_type(await queue.drop_dead(count=3), int)
        stats = await queue.stats()
        assert_type(stats, QueueStats)
        assert_type((stats.depth, stats.oldest_age), tuple[int, float | None])
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
