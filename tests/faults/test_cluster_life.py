"""The life of a cluster's pool: closed and opened, forgotten, in two event loops, and ended with calls in flight."""

import asyncio
import gc
import subprocess
import sys
import warnings

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from support.internals import set_suspicion_of_servers
from support.sharing import warnings_of_forgetting

from aioredis_monitored import (
    ClusterNode,
    EventLoopError,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolClosedError,
)
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers
from aioredis_monitored.testing.server import free_ports

# A pool is used in two event loops, the first of which is closed while tasks are pending; in the end by itself.
LEFT_TASKS = """
import asyncio, os, sys
from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection

pool = MonitoredConnectionPool.from_url(sys.argv[1])
client = MonitoredRedisConnection(connection_pool=pool)
loop = asyncio.new_event_loop()
loop.run_until_complete(client.ping())
if "closing" in sys.argv:
    pool.background_tasks.add(loop.create_future())
    closing = loop.create_task(pool.aclose())
    loop.run_until_complete(asyncio.sleep(0))
loop.close()

async def use_again():
    if "closing" in sys.argv:
        async with pool:
            pass
    await pool.aclose()
    async with pool:
        pass
    async with pool:
        answer = await client.ping()
    return answer

print(asyncio.run(asyncio.wait_for(use_again(), 60)), flush=True)
os._exit(0)
"""
KEYS = [f"key:{number}" for number in range(30)]


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


async def test_pool_that_is_closed_during_a_refresh_ends_the_refresh_and_the_calls(on_cluster):
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
    assert set(warned) <= {
        f"pool 'forgotten' (connections to {node.host}:{node.port}) was never closed: use 'async with' or aclose()"
        for node in cluster.nodes
    }


def test_pool_of_a_cluster_refuses_a_second_event_loop(cluster):
    client = MonitoredRedisConnection(connection_pool=MonitoredConnectionPool.from_url(cluster.url, name="mine"))
    owner = cluster.owner("key:0")
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.set("key:0", 1))
        for call, title in (
            (client.get, rf"pool 'mine' \(connections to {owner.host}:{owner.port}\)"),
            (client.blpop, "pool 'mine'"),
        ):
            with pytest.raises(EventLoopError, match=f"^{title} belongs to another .* make one pool for each loop$"):
                second.run(call("key:0"))
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


@pytest.mark.parametrize("ticks", range(5))
@pytest.mark.parametrize("servers", ["cluster", "sentinels"])
def test_pool_whose_closing_is_cancelled_by_the_end_of_the_event_loop_leaves_no_connection(request, servers, ticks):
    url = request.getfixturevalue(servers).url

    async def use_and_leave():
        pool = MonitoredConnectionPool.from_url(f"{url}?read_from=replica")
        client = MonitoredRedisConnection(connection_pool=pool)
        for _ in range(2):
            await asyncio.gather(client.ping(), *(client.get(key) for key in KEYS))
        closing.append(asyncio.ensure_future(pool.aclose()))
        for _ in range(ticks):
            await asyncio.sleep(0)

    closing = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(use_and_leave())
        closing.clear()
        gc.collect()

    assert [] == [str(each.message) for each in caught]


@pytest.mark.parametrize("servers", ["cluster", "sentinels"])
@pytest.mark.parametrize("is_closing", [True, False])
def test_pool_of_an_event_loop_that_was_closed_with_its_tasks_is_used_in_another_one(request, servers, is_closing):
    url = request.getfixturevalue(servers).url
    # In a process of its own: what is left of those tasks is reported when they are garbage.
    command = [sys.executable, "-c", LEFT_TASKS, url, *["closing"][:is_closing]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603

    assert ended.stdout == "True\n", ended.stderr


async def test_readiness_check_fails_at_most_once_for_a_node_that_has_died(make_pool, monkeypatch):
    set_suspicion_of_servers(monkeypatch, 3600)
    with ClusterServers(replicas=0, node_timeout=60) as servers:
        pool = make_pool(servers.url)
        await pool.ping()
        servers.nodes[0].kill()
        outcomes = [await asyncio.gather(pool.ping(), return_exceptions=True) for _ in range(60)]

    assert 1 == sum(outcome != [None] for outcome in outcomes)


async def test_acquiring_reports_how_long_it_has_waited_when_no_node_answers(make_pool):
    pool = make_pool(f"redis+cluster://127.0.0.1:{free_ports(1)[0]}", socket_timeout=1)
    reported = []
    with pytest.raises(RedisConnectionError):
        await pool.acquire(lambda *seconds: reported.append(seconds))
    [(total, connecting)] = reported

    assert total > 0
    assert 0 == connecting


async def test_redirect_that_arrives_while_the_pool_closes_leaves_it_closed(make_pool):
    with ClusterServers("--enable-debug-command", "yes", replicas=0) as servers:
        pool = make_pool(servers.url)
        client = MonitoredRedisConnection(connection_pool=pool)
        assert await client.set(KEYS[0], 1)
        source = servers.owner(KEYS[0])
        servers.migrate(key_slot(KEYS[0]), next(each for each in servers.primaries() if each is not source))
        sleeping = asyncio.create_task(asyncio.to_thread(source.call, "DEBUG", "SLEEP", "0.5"))
        calling = asyncio.create_task(client.get(KEYS[0]))
        await asyncio.sleep(0)
        await pool.aclose()
        (outcome,) = await asyncio.gather(calling, return_exceptions=True)
        await sleeping

        # The reply may have come before the server slept.
        assert outcome == b"1" or isinstance(outcome, PoolClosedError)
        with pytest.raises(PoolClosedError):
            await client.get(KEYS[0])
        with pytest.raises(PoolClosedError):
            pool.pool_of(ClusterNode(source.host, source.port))
        assert ([], {}) == (pool.cluster_topology.all_pools(), pool.cluster_topology.pools)


async def test_node_without_slots_that_is_busy_for_a_second_is_waited_for(make_pool):
    with ClusterServers("--enable-debug-command", "yes", replicas=0) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=60))
        target = servers.add_node()
        servers.begin_migration(key_slot("{moving}"), target)
        assert 1 == await client.incr("{moving}")
        sleeping = asyncio.create_task(asyncio.to_thread(target.call, "DEBUG", "SLEEP", "1.5"))
        pipe = client.pipeline(transaction=False).incr("{moving}:1").incr("{moving}:2")
        calls = await asyncio.gather(client.incr("{moving}"), client.blpop(["{moving}:list"], 0.5), pipe.execute())
        await sleeping

        assert [2, None, [1, 1]] == calls
