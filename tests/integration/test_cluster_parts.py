"""Locks, the configuration store, components and the middleware on a cluster, each made from its URL alone."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from aioredis_monitored import (
    Components,
    ConfigStore,
    MessageQueue,
    MonitoredClusterPool,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    RedisContextFactory,
    RedisMiddleware,
    config_from_env,
    pool_from_config,
    redis_connection,
)
from aioredis_monitored._topology.hash_slots import key_slot


@pytest.fixture
async def client(cluster, telemetry):
    async with MonitoredConnectionPool.from_url(cluster.url, **telemetry.providers) as pool:
        yield MonitoredRedisConnection(connection_pool=pool)
        await MonitoredRedisConnection(connection_pool=pool).flushall()


async def test_lock_is_acquired_extended_and_released_at_any_node(client):
    for name in ("a", "b", "c", "d"):
        async with client.lock(name, timeout=10) as lock:
            assert await lock.extend(10)
            assert not await client.lock(name, timeout=10).acquire(blocking=False)
        assert not await client.exists(name)


async def test_lock_whose_slot_moves_is_released_at_its_new_node(cluster, client):
    slot = key_slot("lock")
    home = cluster.owner(slot)
    target = next(node for node in cluster.primaries() if node is not home)
    async with client.lock("lock", timeout=60) as lock:
        await asyncio.to_thread(cluster.migrate, slot, target)
        assert await lock.extend(60)
        waiting = asyncio.create_task(client.lock("lock", timeout=60).acquire())

    assert await asyncio.wait_for(waiting, 30)
    await client.delete("lock")
    await asyncio.to_thread(cluster.migrate, slot, home)
    await asyncio.to_thread(cluster.wait_ok)


async def test_cancelled_acquisition_leaves_no_lock(client, dice):
    cancelled = 0
    for number in range(30):
        acquiring = asyncio.create_task(client.lock(f"lock:{number}", timeout=60).acquire())
        await asyncio.wait([acquiring], timeout=dice.uniform(0, 0.003))
        acquiring.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            continue
        cancelled += 1
        # The caller has left at once; its acquisition is undone behind it.
        async with asyncio.timeout(30):
            while await client.exists(f"lock:{number}"):
                await asyncio.sleep(0.005)
    assert cancelled


@redis_connection("main", wait=0)
async def count(conn, key):
    return conn.connection_pool, await conn.incr(key)


async def test_decorated_function_gets_a_client_on_the_cluster(cluster, client):
    async with Components({"redis.main.url": cluster.url}):
        pools, counts = zip(*[await count("counted") for _ in range(3)], strict=True)

    assert (1, 2, 3) == counts
    assert isinstance(pools[0], MonitoredClusterPool)
    assert b"3" == await client.get("counted")


async def test_component_moves_to_a_cluster_when_its_configuration_in_a_cluster_changes(cluster, server, client):
    store = ConfigStore(client)
    await store.set("redis", "main", {"url": server.url})
    async with Components(store):
        pool, _ = await count("counted")
        assert not isinstance(pool, MonitoredClusterPool)
        await store.set("redis", "main", {"url": cluster.url})
        pool, counted = await count("counted")

    assert isinstance(pool, MonitoredClusterPool)
    assert 1 == counted


async def test_store_reads_what_was_written_at_any_node(client):
    store = ConfigStore(client)
    for name in ("a", "b", "c", "d"):
        await store.set("redis", name, {"db": 1})

        assert {"db": 1} == await store.get("redis", name)


def test_request_gets_a_client_on_the_cluster(cluster):
    factory = RedisContextFactory(pool_from_config(config_from_env({"REDIS_URL": cluster.url})))

    async def handler(request):
        queue = MessageQueue("requests", request.state.redis)
        await queue.put(b"seen")
        return PlainTextResponse(await queue.get(5))

    app = Starlette(
        routes=[Route("/", handler)],
        lifespan=factory.lifespan,
        middleware=[Middleware(RedisMiddleware, factory=factory)],
    )
    with TestClient(app) as web:
        assert "seen" == web.get("/").text
    assert isinstance(factory.connection_pool, MonitoredClusterPool)
