"""Clients on a cluster: where calls go, and what several nodes reply to one."""

import asyncio

import pytest
from redis.exceptions import MovedError, ResponseError
from support.internals import refresh_topology

from aioredis_monitored import (
    ClusterRoutingError,
    ConfigStore,
    CrossSlotError,
    DedicatedConnectionError,
    MessageQueue,
    MonitoredClusterPool,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolClosedError,
)
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

KEYS = [f"key:{number}" for number in range(60)]


@pytest.fixture
async def cluster_pool(cluster, telemetry):
    async with MonitoredConnectionPool.from_url(cluster.url, **telemetry.providers) as pool:
        yield pool
        await MonitoredRedisConnection(connection_pool=pool).flushall()


@pytest.fixture
def on_cluster(cluster_pool):
    return MonitoredRedisConnection(connection_pool=cluster_pool)


def calls_of(node, command):
    statistics = node.call("INFO", "commandstats")
    text = statistics.decode() if isinstance(statistics, bytes) else statistics
    lines = (line.partition(":") for line in text.splitlines())
    return sum(
        int(values.partition("calls=")[2].partition(",")[0])
        for name, _, values in lines
        if name == f"cmdstat_{command}"
    )


async def test_url_of_a_cluster_makes_a_pool_that_is_one_for_every_check(cluster):
    pool = MonitoredConnectionPool.from_url(cluster.url)

    assert isinstance(pool, MonitoredClusterPool)


async def test_commands_go_to_the_nodes_of_their_keys_without_a_redirect(cluster, on_cluster, telemetry):
    for key in KEYS:
        assert await on_cluster.set(key, key) is True
    assert [await on_cluster.get(key) for key in KEYS] == [key.encode() for key in KEYS]

    assert sum(node.call("DBSIZE") for node in cluster.primaries()) == len(KEYS)
    assert all(node.call("DBSIZE") > 0 for node in cluster.primaries())
    assert set(telemetry.tally("aioredis_monitored.cluster.redirects").values()) == {0}


async def test_keys_in_several_slots_are_split_and_their_values_come_in_order(on_cluster):
    await asyncio.gather(*(on_cluster.set(key, key) for key in KEYS[1:]))

    assert await on_cluster.mget(KEYS) == [None, *(key.encode() for key in KEYS[1:])]
    assert await on_cluster.exists(*KEYS) == len(KEYS) - 1
    assert await on_cluster.delete(*KEYS) == len(KEYS) - 1


async def test_command_that_must_be_atomic_is_refused_before_it_is_sent(on_cluster):
    with pytest.raises(CrossSlotError, match="MSET has keys in several slots"):
        await on_cluster.mset(dict.fromkeys(KEYS, "value"))

    assert await on_cluster.dbsize() == 0


async def test_pipeline_is_split_and_its_replies_keep_their_order(on_cluster):
    pipe = on_cluster.pipeline(transaction=False)
    for key in KEYS:
        pipe.set(key, key).get(key)
    pipe.mget(KEYS[:5]).dbsize()

    *replies, values, size = await pipe.execute()

    assert replies == [reply for key in KEYS for reply in (True, key.encode())]
    assert values == [key.encode() for key in KEYS[:5]]
    assert size == len(KEYS)


async def test_error_in_a_split_pipeline_is_in_its_place(on_cluster):
    await on_cluster.set("text", "x")
    pipe = on_cluster.pipeline(transaction=False).incr("number").incr("text").incr("number")

    first, error, last = await pipe.execute(raise_on_error=False)

    assert (first, last) == (1, 2)
    assert "not an integer" in str(error)


async def test_transaction_in_one_slot_runs_and_one_in_two_is_refused(on_cluster):
    async with on_cluster.pipeline() as pipe:
        assert await pipe.set("{tag}1", "a").incr("{tag}2").execute() == [True, 1]
    async with on_cluster.pipeline() as pipe:
        with pytest.raises(CrossSlotError, match=r"command 1 \(SET\) and command 2 \(SET\)"):
            await pipe.set("a", 1).set("b", 2).execute()

    assert await on_cluster.exists("a", "b") == 0


async def test_watch_sees_a_change_and_refuses_keys_of_other_slots(on_cluster):
    async with on_cluster.pipeline() as pipe:
        await pipe.watch("{tag}1")
        with pytest.raises(CrossSlotError, match="watches keys"):
            await pipe.get("other")

    changes = 0

    async def increase(pipe):
        nonlocal changes
        value = int(await pipe.get("{tag}1") or 0)
        if not changes:
            changes += await on_cluster.incr("{tag}1", 10)
        pipe.multi()
        pipe.set("{tag}1", value + 1)

    assert await on_cluster.transaction(increase, "{tag}1") == [True]
    assert await on_cluster.get("{tag}1") == b"11"


@pytest.mark.parametrize("cursor_type", [int, str, lambda cursor: str(cursor).encode()], ids=["int", "str", "bytes"])
async def test_scan_loop_of_any_library_sees_every_key(on_cluster, cursor_type):
    await asyncio.gather(*(on_cluster.set(key, key) for key in KEYS))
    seen, cursor, calls = set(), cursor_type(0), 0
    while calls == 0 or int(cursor):
        cursor, keys = await on_cluster.scan(cursor_type(int(cursor)), count=5)
        seen.update(keys)
        calls += 1

    assert seen == {key.encode() for key in KEYS}
    assert seen == {key async for key in on_cluster.scan_iter()}


async def test_handle_binds_to_the_node_of_its_first_key(cluster, on_cluster):
    there = [key for key in KEYS if cluster.owner(key) is cluster.owner(KEYS[0])]
    (elsewhere, *_) = [key for key in KEYS if cluster.owner(key) is not cluster.owner(KEYS[0])]
    async with on_cluster.client() as handle:
        await handle.set(there[0], 1)
        number = await handle.client_id()
        assert await handle.get(there[1]) is None
        assert await handle.client_id() == number
        with pytest.raises(DedicatedConnectionError, match="make a handle"):
            await handle.get(elsewhere)


async def test_handle_whose_id_is_known_keeps_to_its_node(on_cluster):
    async with on_cluster.client() as handle:
        await handle.client_id()
        with pytest.raises(DedicatedConnectionError, match="call a command with a key first"):
            for key in KEYS:
                await handle.exists(key)


async def test_unblocking_by_the_id_of_a_handle_reaches_its_node(on_cluster):
    async with on_cluster.client() as handle:
        await handle.exists("{empty}")
        number = await handle.client_id()
        waiting = asyncio.ensure_future(handle.blpop("{empty}", 20))
        async with asyncio.timeout(15):
            while not await on_cluster.client_unblock(number):
                await asyncio.sleep(0)
        assert await waiting is None


async def test_lock_queue_and_configuration_work_on_a_cluster(on_cluster):
    async with on_cluster.lock("lock", timeout=20) as lock:
        assert await lock.owned()
    queue = MessageQueue("queue", on_cluster)
    await queue.put(b"message")
    assert await queue.get(timeout=1) == b"message"
    store = ConfigStore(on_cluster)
    await store.set("redis", "sessions", {"url": "redis://h"})
    assert await store.get("redis", "sessions", wait=0) == {"url": "redis://h"}


async def test_script_is_loaded_where_it_runs(on_cluster):
    script = on_cluster.register_script("return redis.call('GET', KEYS[1])")
    await asyncio.gather(*(on_cluster.set(key, key) for key in KEYS))

    assert [await script(keys=[key]) for key in KEYS] == [key.encode() for key in KEYS]


async def test_reads_go_to_replicas_where_that_is_wanted(cluster, on_cluster, until):
    await asyncio.gather(*(on_cluster.set(key, key) for key in KEYS))
    for node in cluster.primaries():
        await until(lambda node=node: cluster.replica_of(node).call("DBSIZE") == node.call("DBSIZE"))
    # A node leaves replicas out of its reply until it has heard of what they have replicated.
    await until(lambda: all(len(each) > 3 for node in cluster.nodes for each in node.call("CLUSTER", "SLOTS")))
    before = [calls_of(node, "get") for node in cluster.primaries()]
    async with MonitoredConnectionPool.from_url(f"{cluster.url}?read_from=replica") as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [await client.get(key) for key in KEYS] == [key.encode() for key in KEYS]
        assert [calls_of(node, "get") for node in cluster.primaries()] == before
        async with client.lock("lock", timeout=20) as lock:
            assert await lock.owned()
        assert sum(calls_of(node, "get") for node in cluster.primaries()) > sum(before)


async def test_pool_works_again_after_it_was_closed(cluster):
    pool = MonitoredConnectionPool.from_url(cluster.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    async with pool:
        await client.set("key", 1)
    with pytest.raises(PoolClosedError):
        await client.get("key")
    async with pool:
        assert await client.delete("key") == 1


async def test_ping_of_the_pool_returns_if_a_node_answers(cluster_pool):
    await cluster_pool.ping()


async def test_redirects_that_confirm_the_map_start_no_refresh(cluster, on_cluster, telemetry, until):
    slot, (target, *_) = key_slot("{moved}"), cluster.primaries()
    if cluster.owner(slot) is target:
        _, target, *_ = cluster.primaries()
    await on_cluster.set("{moved}", 1)
    refreshes = telemetry.tally("aioredis_monitored.cluster.refreshes")
    cluster.migrate(slot, target)

    assert await asyncio.gather(*(on_cluster.get("{moved}") for _ in range(50))) == [b"1"] * 50
    await until(lambda: telemetry.tally("aioredis_monitored.cluster.refreshes") != refreshes)
    redirects = telemetry.tally("aioredis_monitored.cluster.redirects", "aioredis_monitored.cluster.redirect")
    assert redirects["moved"] == 50
    (now,), (before,) = telemetry.tally("aioredis_monitored.cluster.refreshes").values(), refreshes.values()
    assert now == before + 1


async def test_redirected_call_is_sent_to_the_node_that_imports_the_slot(cluster, on_cluster, telemetry):
    source, slot = cluster.owner("{moving}"), key_slot("{moving}")
    (target, *_) = [node for node in cluster.primaries() if node is not source]
    await on_cluster.set("{moving}before", 1)
    cluster.begin_migration(slot, target)
    try:
        assert await on_cluster.set("{moving}new", 2) is True
        assert await on_cluster.get("{moving}before") == b"1"
        async with on_cluster.pipeline() as pipe:
            assert await pipe.set("{moving}newer", 3).get("{moving}newer").execute() == [True, b"3"]
        replies = await on_cluster.pipeline(transaction=False).get("{moving}before").get("{moving}new").execute()
        assert replies == [b"1", b"2"]
    finally:
        cluster.migrate_keys(slot, target, 100)
        cluster.end_migration(slot, target)
    assert await on_cluster.get("{moving}before") == b"1"
    assert await on_cluster.get("{moving}newer") == b"3"


def set_node_timeout(cluster, seconds):
    for node in cluster.nodes:
        node.call("CONFIG", "SET", "cluster-node-timeout", round(seconds * 1000))


@pytest.fixture
def slow_failover(cluster):
    """Let the cluster take as long to replace a node as by Redis' default."""
    set_node_timeout(cluster, 15)
    yield
    set_node_timeout(cluster, 1)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.usefixtures("slow_failover")
async def test_deadline_that_is_over_before_a_failed_node_is_replaced_is_logged_once(cluster, caplog, protocol):
    async with MonitoredConnectionPool.from_url(cluster.url, name="short", protocol=protocol) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        await refresh_topology(pool)

    (message,) = caplog.messages
    assert message.startswith(
        "pool 'short': calls are retried for socket_timeout, 5 s, and it takes the cluster about 17 s"
    )
    assert "Set socket_timeout to 17 s or more, or lower cluster-node-timeout" in message


@pytest.mark.parametrize("socket_timeout", [17, None])
@pytest.mark.usefixtures("slow_failover")
async def test_deadline_that_covers_a_failover_is_not_logged(cluster, caplog, socket_timeout):
    async with MonitoredConnectionPool.from_url(cluster.url, socket_timeout=socket_timeout) as pool:
        await MonitoredRedisConnection(connection_pool=pool).ping()

    assert [] == caplog.messages


@pytest.mark.usefixtures("slow_failover")
async def test_nodes_are_found_by_a_user_who_may_not_ask_for_settings(cluster, caplog):
    for node in cluster.nodes:
        node.call("ACL", "SETUSER", "modest", "on", ">secret", "~*", "+@all", "-config")
    url = cluster.url.replace("://", "://modest:secret@")
    async with MonitoredConnectionPool.from_url(url) as pool:
        assert await MonitoredRedisConnection(connection_pool=pool).get("key") is None
    for node in cluster.nodes:
        node.call("ACL", "DELUSER", "modest")

    assert [] == caplog.messages


async def test_handle_that_was_entered_counts_what_it_writes_at_any_node(cluster, on_cluster):
    """Entering connects it, to whichever node: the first key names the one that it keeps to."""
    for key in KEYS[:10]:
        async with on_cluster.client() as handle:
            await handle.set(key, 1)
            assert 1 == await handle.wait(1, 60_000)


async def test_queue_on_a_handle_goes_on_when_its_slot_has_moved(cluster, on_cluster):
    slot, source = key_slot("handled"), cluster.owner("handled")
    (target, *_) = [node for node in cluster.primaries() if node is not source]
    async with on_cluster.client() as handle:
        queue = MessageQueue("handled", handle)
        await queue.put(b"1")
        assert await queue.get(timeout=1) == b"1"
        cluster.migrate(slot, target)
        await on_cluster.llen("handled")
        await queue.put(b"2")
        assert await queue.get(timeout=1) == b"2"


@pytest.mark.parametrize("command", [("SCAN",), ("SCAN", "x"), ("SCAN 0",)], ids=["none", "word", "in the name"])
async def test_scan_with_odd_arguments_is_answered_by_a_server(on_cluster, command):
    if command == ("SCAN 0",):
        cursor, keys = await on_cluster.execute_command(*command)
        assert (int(cursor) > 0, keys) == (True, [])
        return
    with pytest.raises(ResponseError):
        await on_cluster.execute_command(*command)


@pytest.mark.parametrize("has_key", [True, False], ids=["bound", "not bound"])
async def test_commands_for_several_nodes_mean_the_same_on_a_handle(on_cluster, has_key):
    await asyncio.gather(*(on_cluster.set(key, key) for key in KEYS))
    async with on_cluster.client() as handle:
        if has_key:
            await handle.get(KEYS[0])
        assert {key async for key in handle.scan_iter()} == {key.encode() for key in KEYS}
        assert await handle.dbsize() == len(KEYS)
        assert len(await handle.keys()) == len(KEYS)
        assert await handle.mget(KEYS) == [key.encode() for key in KEYS]
        assert await handle.flushall() is True
    assert await on_cluster.dbsize() == 0


async def test_commands_for_several_nodes_are_refused_on_a_handle_that_is_altered(on_cluster):
    async with on_cluster.client() as handle:
        await handle.get(KEYS[0])
        await handle.client_setname("named")
        with pytest.raises(ClusterRoutingError, match="use the client that made it"):
            await handle.dbsize()


async def test_pool_of_one_server_at_a_node_of_a_cluster_says_which_url_it_needs(cluster, make_client):
    node = next(each for each in cluster.primaries() if each is not cluster.owner("key"))
    async with make_client(node.url) as client:
        for call in (client.get("key"), client.pipeline(transaction=False).get("key").execute()):
            with pytest.raises(MovedError, match=r"the server is a node of a cluster: use a redis\+cluster://"):
                await call


async def test_clusters_pool_at_a_single_server_says_which_url_it_needs(server, make_pool):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url.replace("redis://", "redis+cluster://")))
    with pytest.raises(ResponseError, match="cluster support disabled: use redis://"):
        await client.get("key")


async def test_command_that_the_table_does_not_know_is_found_by_its_redirect(make_pool):
    with ClusterServers("--rename-command", "BITOP", "MYBITOP", replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url))
        elsewhere = [f"{{{number}}}" for number in range(20)]
        elsewhere = [tag for tag in elsewhere if servers.owner(tag) is not servers.owner("AND")]
        for tag in elsewhere:
            await client.set(f"{tag}from", "a")
            command = ("MYBITOP", "AND", f"{tag}to", f"{tag}from")
            assert 1 == await client.execute_command(*command)
            assert [1] == await client.pipeline(transaction=False).execute_command(*command).execute()
            assert [1] == await client.pipeline().execute_command(*command).execute()
