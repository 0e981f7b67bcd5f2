"""Pipelines on a cluster that loses a node."""

import asyncio
import time

import pytest
from redis.exceptions import ClusterDownError, DataError, MovedError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support.internals import refresh_topology

from aioredis_monitored import ClusterNode, ClusterRoutingError, MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

LOST, KEPT = "a", "b"  # at different nodes


@pytest.fixture
def lonely_primaries():
    """Yield a cluster of primaries without replicas, of which a test may kill some."""
    with ClusterServers(replicas=0) as running:
        yield running


@pytest.mark.parametrize("raise_on_error", [True, False])
async def test_pipeline_shows_the_error_of_a_node_that_was_lost_in_flight(lonely_primaries, until, raise_on_error):
    async with MonitoredConnectionPool.from_url(lonely_primaries.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [0, 0] == [await client.exists(LOST), await client.exists(KEPT)]
        node = lonely_primaries.owner(LOST)
        assert node is not lonely_primaries.owner(KEPT)
        node.freeze()

        executing = asyncio.ensure_future(
            client.pipeline(transaction=False).incr(LOST).incr(KEPT).execute(raise_on_error=raise_on_error)
        )
        await until(lambda: pool.stats().in_flight == 1)
        node.kill()

        if raise_on_error:
            with pytest.raises(RedisConnectionError, match=r"Command # 1 \(INCRBY a \?\) of pipeline"):
                await executing
        else:
            assert [RedisConnectionError, int] == [type(result) for result in await executing]
        assert await client.get(KEPT) == b"1"


async def test_pipeline_with_an_argument_that_cannot_be_sent_sends_nothing(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        with pytest.raises(DataError):
            await client.pipeline(transaction=False).set(KEPT, 1).set(LOST, None).execute()

        assert await client.exists(KEPT, LOST) == 0


async def test_pipeline_with_text_that_cannot_be_encoded_sends_nothing(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [0, 0] == [await client.exists(LOST), await client.exists(KEPT)]
        with pytest.raises(UnicodeEncodeError):
            await client.pipeline(transaction=False).set(KEPT, 1).set(LOST, "\ud800").execute()
        with pytest.raises(UnicodeEncodeError):
            await client.mget(KEPT, LOST, "\ud800")

        assert await client.exists(KEPT, LOST) == 0


@pytest.mark.parametrize(
    "refused", [("MSET", KEPT, 1, LOST, 1), ("SCAN", 0), ("CLUSTER", "FAILOVER"), ("SWAPDB", 0, 1)]
)
async def test_pipeline_with_a_command_that_is_refused_sends_nothing(cluster, refused):
    async with MonitoredConnectionPool.from_url(cluster.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        for raise_on_error in (True, False):
            with pytest.raises(ClusterRoutingError):
                await client.pipeline(transaction=False).set(KEPT, 1).execute_command(*refused).execute(raise_on_error)

        assert await client.exists(KEPT) == 0


async def test_commands_for_one_key_keep_their_order_while_its_slot_moves(lonely_primaries, make_pool, until):
    first, second = "{moving}:first", "{moving}:second"
    client = MonitoredRedisConnection(connection_pool=make_pool(lonely_primaries.url, socket_timeout=60))
    await client.set(second, "old")
    source = lonely_primaries.owner(first)
    target = next(each for each in lonely_primaries.primaries() if each is not source)
    # The first key is at neither node, and the other one at the source: TRYAGAIN for both together, ASK for the first.
    lonely_primaries.begin_migration(key_slot(first), target)
    pipe = client.pipeline(transaction=False).mset({first: "1", second: "1"})
    executing = asyncio.ensure_future(pipe.set(first, "2").append(first, "3").execute())
    await until(lambda: "TRYAGAIN" in source.call("INFO", "errorstats"))
    lonely_primaries.migrate_keys(key_slot(first), target, 10)
    lonely_primaries.end_migration(key_slot(first), target)

    assert [True, True, 2] == await executing
    assert [b"23", b"1"] == await client.mget(first, second)


async def test_slot_that_no_node_serves_takes_no_retries_from_pipelines_for_others(make_pool, until):
    with ClusterServers("--cluster-require-full-coverage", "no") as servers:
        for node in servers.nodes:
            node.call("CLUSTER", "DELSLOTS", key_slot(LOST))
        keys = [f"{{{KEPT}}}:{number}" for number in range(3)]
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=2))
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(ClusterDownError):
                await client.get(LOST)
            # It waits for a node each time, not only the first one: one attempt would take a millisecond.
            assert time.monotonic() - began > 0.5
        pool = make_pool(servers.url, socket_timeout=60)
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [None] * 3 == await client.mget(keys)
        waiting = asyncio.ensure_future(client.get(LOST))
        servers.owner(KEPT).kill()

        pipe = client.pipeline(transaction=False)
        assert [None] * 3 == await pipe.get(keys[0]).get(keys[1]).get(keys[2]).execute()
        waiting.cancel()


async def test_commands_that_a_node_does_not_serve_fail_and_the_others_have_their_replies(make_pool):
    with ClusterServers("--cluster-require-full-coverage", "no", replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=1))
        pipe = client.pipeline(transaction=False)
        assert [None, None] == await client.mget(LOST, KEPT)
        lost = servers.owner(LOST)

        lost.freeze()
        results = await pipe.get(LOST).get(KEPT).execute(raise_on_error=False)
        assert [RedisTimeoutError, type(None)] == [type(result) for result in results]
        lost.thaw()
        for node in servers.nodes:
            node.call("CLUSTER", "DELSLOTS", key_slot(LOST))
        await refresh_topology(client.connection_pool)
        results = await pipe.get(LOST).get(KEPT).execute(raise_on_error=False)
        assert [ClusterDownError, type(None)] == [type(result) for result in results]


async def test_pipeline_to_a_node_that_takes_no_connection_times_out_and_a_later_one_runs(make_pool):
    with ClusterServers(primaries=2, replicas=0, node_timeout=60) as servers:
        pool = make_pool(servers.url, socket_timeout=1, socket_connect_timeout=0.6)
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        frozen = servers.owner(LOST)
        frozen.freeze()
        with pytest.raises(RedisTimeoutError):
            await client.pipeline(transaction=False).get(LOST).execute()
        frozen.thaw()

        assert [None] == await client.pipeline(transaction=False).get(LOST).execute()


async def test_pipeline_whose_connections_are_lost_twice_is_sent_on_one_that_no_other_call_uses(make_pool, until):
    with ClusterServers(primaries=1, replicas=0) as servers:
        [node] = servers.nodes
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=60))
        await client.pfadd("log", 1)
        # These only read, and wait for the end of the pause all the same.
        node.call("CLIENT", "PAUSE", 60_000, "WRITE")
        pipes = [client.pipeline(transaction=False).pfcount("log").get(KEPT) for _ in range(2)]

        async def executing_after(losses, pipe):
            executing = asyncio.ensure_future(pipe.execute())
            for _ in range(losses):
                await until(lambda: is_paused(node))
                node.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until(lambda: not is_paused(node) or executing.done())
            return executing

        # The pipeline itself may be what the server cannot survive.
        with pytest.raises(RedisConnectionError):
            await (await executing_after(3, pipes[0]))
        executing = await executing_after(2, pipes[1])
        await until(lambda: is_paused(node))
        # The shared connection is for others.
        assert 0 == client.connection_pool.stats().in_flight
        assert await client.get(KEPT) is None
        node.call("CLIENT", "UNPAUSE")

        assert [1, None] == await executing


def is_paused(node):
    return any("cmd=pfcount" in line for line in node.call("CLIENT", "LIST").splitlines())


@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_cancelled_pipeline_that_blocks_leaves_its_replies_to_no_later_call(cluster, make_pool, until, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, multiplex=multiplex))
    owner = cluster.owner(KEPT)
    executing = asyncio.ensure_future(client.pipeline(transaction=False).blpop(f"{{{KEPT}}}list", 0).execute())
    await until(lambda: "blocked_clients:0" not in owner.call("INFO", "clients"))
    executing.cancel()
    await asyncio.wait([executing])

    await until(lambda: "blocked_clients:0" in owner.call("INFO", "clients"))
    assert [1, b"element"] == await client.pipeline(transaction=False).rpush(f"{{{KEPT}}}list", "element").lpop(
        f"{{{KEPT}}}list"
    ).execute()


async def test_command_for_a_slot_without_a_node_fails_although_another_node_is_removed_meanwhile(make_pool, until):
    with ClusterServers("--cluster-require-full-coverage", "no") as servers:
        pool = make_pool(servers.url, socket_timeout=3)
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set(LOST, "value")
        removed = servers.replica_of(servers.owner(KEPT))
        for node in servers.nodes:
            node.call("CLUSTER", "DELSLOTS", key_slot(LOST))
        removed.kill()
        pipe = client.pipeline(transaction=False).config_set("maxmemory-samples", 5).get(LOST)
        executing = asyncio.ensure_future(pipe.execute(raise_on_error=False))
        await until(lambda: len(pool.nodes()) == len(servers.nodes))
        for node in servers.nodes:
            if node is not removed:
                node.call("CLUSTER", "FORGET", removed.id)

        _, error = await executing
        assert isinstance(error, ClusterDownError)


async def test_calls_go_on_when_the_node_that_should_take_their_slot_over_has_died(lonely_primaries, make_pool, until):
    source, target = lonely_primaries.owner(LOST), lonely_primaries.owner(KEPT)
    for node in lonely_primaries.nodes:
        node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
    elsewhere = next(f"{{{tag}}}" for tag in range(999) if lonely_primaries.owner(f"{{{tag}}}") not in {source, target})
    pool = make_pool(lonely_primaries.url, socket_timeout=20)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.set(elsewhere, "value")
    lonely_primaries.begin_migration(key_slot(LOST), target)
    target.kill()
    calls = (client.get(LOST), client.mget(LOST, elsewhere), client.pipeline(transaction=False).incr(LOST).execute())
    asking = asyncio.gather(*calls)
    await until(lambda: "ASK" in source.call("INFO", "errorstats"))
    source.call("CLUSTER", "SETSLOT", key_slot(LOST), "STABLE")

    found, (lost, kept), [count] = await asking
    assert {None, b"1"} >= {found, lost}
    assert (b"value", 1) == (kept, count)


async def test_command_that_was_redirected_does_not_run_after_those_called_later(lonely_primaries, make_pool):
    client = MonitoredRedisConnection(connection_pool=make_pool(lonely_primaries.url))
    await client.get(LOST)
    server = lonely_primaries.owner(KEPT)
    node = ClusterNode(server.host, server.port)
    # The node becomes the one that serves the slot while it runs the pipeline.
    pipe = client.pipeline(transaction=False)
    for command in (
        ("SET", LOST, "first"),
        ("CLUSTER", "SETSLOT", key_slot(LOST), "NODE", server.id),
        ("SET", LOST, "second"),
    ):
        pipe.execute_command(*command, target_nodes=node)
    first, *others = await pipe.execute(raise_on_error=False)

    assert isinstance(first, MovedError)
    assert ["OK", True] == [other.decode() if isinstance(other, bytes) else other for other in others]
    assert "second" == server.call("GET", LOST)


async def test_shared_connection_leaves_a_node_that_refuses_writes(cluster, make_pool, until):
    def shared():
        clients = replica.call("CLIENT", "LIST").splitlines()
        return {line.split()[0] for line in clients if "name=mine" in line}

    replica = cluster.replica_of(cluster.owner(KEPT))
    node = ClusterNode(replica.host, replica.port)
    client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, retries=0, client_name="mine"))
    await client.pipeline(transaction=False).execute_command("DBSIZE", target_nodes=node).execute()
    left = shared()
    assert len(left) == 1
    pipe = client.pipeline(transaction=False).execute_command("FUNCTION", "FLUSH", target_nodes=node)
    (error,) = await pipe.execute(raise_on_error=False)

    assert isinstance(error, ReadOnlyError)
    await until(lambda: left.isdisjoint(shared()))
