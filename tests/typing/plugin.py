"""A user's tests with the pytest plugin's fixtures; mypy and pyright check this file, test_fresh_project.py runs it."""

import asyncio
from typing import Any, assert_type

import pytest

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, pool_from_config
from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer, SentinelServers, TelemetryCapture


async def add_to_cart(redis: MonitoredRedisConnection, user: str, product: str) -> int:
    async with redis.pipeline("add-to-cart") as pipe:
        count: int = (await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute())[0]
    return count


def test_client(redis_client: MonitoredRedisConnection, redis_telemetry: TelemetryCapture) -> None:
    assert asyncio.run(add_to_cart(redis_client, "ada", "42")) == 1
    assert redis_telemetry.tree() == "add-to-cart"


def test_keys_are_gone(redis_client: MonitoredRedisConnection) -> None:
    assert asyncio.run(add_to_cart(redis_client, "ada", "42")) == 1


@pytest.mark.redis_calls(max=1)
def test_calls(redis_client: MonitoredRedisConnection) -> None:
    assert asyncio.run(add_to_cart(redis_client, "grace", "42")) == 1


def test_faults(redis_client: MonitoredRedisConnection, redis_faults: FaultProxy) -> None:
    async def main() -> bytes | str | None:
        await redis_client.set("greeting", "hello")
        redis_faults.cut()
        return await redis_client.get("greeting")

    assert asyncio.run(main()) == b"hello"


def test_own_pool(redis_server: RedisServer, redis_config: dict[str, Any], redis_telemetry: TelemetryCapture) -> None:
    async def main() -> None:
        async with pool_from_config(redis_config, **redis_telemetry.providers) as pool:
            await pool.ping()

    asyncio.run(main())
    assert redis_config == {"redis.url": redis_server.url}
    assert redis_telemetry.tree() == "PING"


def test_cluster(redis_pool: MonitoredConnectionPool, redis_cluster: ClusterServers) -> None:
    asyncio.run(redis_pool.ping())
    assert_type(redis_cluster.url, str)


def test_sentinel(redis_pool: MonitoredConnectionPool, redis_sentinel: SentinelServers) -> None:
    asyncio.run(redis_pool.ping())
    assert_type(redis_sentinel.primary(), RedisServer)
