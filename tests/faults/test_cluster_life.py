"""The life of a cluster's pool: closed and opened, forgotten, in two event loops, and ended with calls in flight."""

import asyncio
import gc
import warnings

import pytest
from support.sharing import warnings_of_forgetting

from aioredis_monitored import EventLoopError, MonitoredConnectionPool, MonitoredRedisConnection, PoolClosedError

KEYS = [f"key:{number}" for number in range(30)]


@pytest.fixture(autouse=True)
def _leaves_no_key(cluster):
    yield
    for node in cluster.primaries():
        node.call("FLUSHALL")


@pytest.fixture
def on_cluster(cluster, make_pool):
    return MonitoredRedisConnection(connection_pool=make_pool(cluster.url))


async def test_pool_of_a_cluster_works_again_after_it_was_closed(on_cluster):
    pool = on_cluster.connection_pool
    for _ in range(3):
        async with pool:
            assert [True] * len(KEYS) == await asyncio.gather(*(on_cluster.set(key, 1) for key in KEYS))
        with pytest.raises(PoolClosedError):
            await on_cluster.get("key:0")

        assert ([], {}) == (pool.cluster_topology.all_pools(), pool.cluster_topology.pools)


async def test_pool_that_is_closed_while_it_looks_at_its_nodes_ends_the_look_and_the_calls(on_cluster):
    before = asyncio.all_tasks()
    calls = [asyncio.create_task(on_cluster.get(key)) for key in KEYS]
    await asyncio.sleep(0)
    await on_cluster.connection_pool.aclose()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(0)

    assert {PoolClosedError} == {type(each) for each in outcomes}
    assert before == asyncio.all_tasks()


def test_forgotten_pool_of_a_cluster_warns_for_each_node(cluster):
    def make_pool():
        return MonitoredConnectionPool.from_url(cluster.url, name="forgotten")

    warned = warnings_of_forgetting(make_pool, asyncio.new_event_loop)

    assert warned
    assert all(
        text.startswith("pool 'forgotten@") and text.endswith("was never closed: use 'async with' or aclose()")
        for text in warned
    ), warned


def test_pool_of_a_cluster_refuses_a_second_event_loop(cluster):
    client = MonitoredRedisConnection.from_url(cluster.url)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.set("key:0", 1))
        with pytest.raises(EventLoopError, match="make one pool for each loop"):
            second.run(client.get("key:0"))
        first.run(client.aclose())
        first.run(client.connection_pool.aclose())


def test_event_loop_that_ends_with_calls_in_flight_leaves_nothing(cluster, caplog):
    async def begin_and_leave():
        client = MonitoredRedisConnection.from_url(cluster.url)
        await client.ping()
        tasks = [asyncio.create_task(client.blpop(f"empty:{number}", 60)) for number in range(5)]
        tasks += [asyncio.create_task(client.get(key)) for key in KEYS]
        await asyncio.sleep(0.05)
        pools.append(client.connection_pool)
        return tasks

    pools = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = asyncio.run(begin_and_leave())
        assert all(task.done() for task in tasks)
        # The pool whose event loop has ended can be closed, and used in another one.
        asyncio.run(pools.pop().aclose())
        gc.collect()

    assert [] == [str(each.message) for each in caught]
    assert [] == [each.message for each in caplog.records if each.levelname == "ERROR"]
