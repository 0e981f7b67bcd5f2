"""A cluster whose slots move and whose nodes die, freeze, come and go: nothing is lost, and nothing runs twice."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.exceptions import ClusterDownError, TryAgainError, WatchError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support import cluster_chaos as chaos
from support.internals import let_refresh_be_old, let_refreshes_take, number_pools_from, refresh_topology

from aioredis_monitored import (
    ClusterNode,
    ClusterRoutingError,
    MonitoredRedisConnection,
    PinnedConnectionLostError,
)
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

# Longer than a promotion takes on any machine: only the writes in flight may fail.
LONG_DEADLINE = 30.0
MAX_LATE_SECONDS = 15.0
CALLS = 3_000

HERE, THERE = "{moving}:here", "{moving}:there"
SLOT = key_slot(HERE)
SCRIPT = "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}"


@pytest.fixture(scope="module")
def _broken():
    with ClusterServers() as running:
        yield running


@pytest.fixture
def servers(_broken):
    """Return a cluster that the tests of this module break, and mend."""
    for node in _broken.nodes:
        if node.is_frozen:
            node.thaw()
        elif not node.is_running:
            node.start()
    try:
        _broken.wait_ok()
    except TimeoutError as error:
        # What one test has left must not fail the next one.
        print(f"the cluster is started anew: {error}")
        _broken.stop()
        _broken.start()
    for node in _broken.primaries():
        node.call("FLUSHALL")
    return _broken


@pytest.fixture
async def on_cluster(servers, make_pool):
    return MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=LONG_DEADLINE))


@pytest.fixture
def seed(dice):
    return dice.randrange(2**32)


def passes(figures, **bounds):
    assert [] == chaos.failures(figures, **bounds), figures
    return True


def wait_replicated(servers):
    """Return when each replica has what its primary has."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        sizes = {node.id: node.call("DBSIZE") for node in servers.nodes}
        if all(sizes[node.id] == sizes[servers.replica_of(node).id] for node in servers.primaries()):
            return
        time.sleep(0.01)
    raise AssertionError(sizes)


# The load and the faults of ``nox -s chaos_cluster``, in short.


async def test_writes_are_neither_lost_nor_repeated_while_slots_migrate(servers, seed):
    figures = await chaos.migrate(servers, seed, calls=CALLS)

    assert passes(figures)
    assert 0 < figures.asked


async def test_writes_are_neither_lost_nor_repeated_while_slots_migrate_atomically(servers, seed):
    try:
        assert passes(await chaos.migrate(servers, seed, calls=CALLS, atomic=True))
    except NotImplementedError as error:
        pytest.skip(str(error))


@pytest.mark.slow
async def test_transactions_are_applied_as_a_whole_or_not_at_all_while_slots_migrate(servers, seed):
    figures = await chaos.migrate(servers, seed, calls=CALLS, transactions=True)

    assert passes(figures)
    assert 0 < figures.lost_watches


async def test_only_writes_in_flight_fail_when_a_primary_is_killed(servers, seed):
    figures = await chaos.kill(servers, seed, rounds=1, deadline=LONG_DEADLINE)

    assert passes(figures, loses=True, late=MAX_LATE_SECONDS, redirects=False)


@pytest.mark.slow
async def test_only_writes_in_flight_fail_when_a_primary_freezes(servers, seed):
    figures = await chaos.freeze(servers, seed, rounds=1, deadline=LONG_DEADLINE)

    assert passes(figures, loses=True, late=MAX_LATE_SECONDS, redirects=False)


async def test_nothing_fails_in_planned_failovers(servers, seed):
    assert passes(await chaos.fail_over(servers, seed, rounds=3))


@pytest.mark.slow
async def test_nothing_fails_and_no_socket_is_left_when_a_node_comes_and_goes(servers, seed):
    assert passes(await chaos.add_and_remove(servers, seed, rounds=1))


# What a node answers while a slot is at two nodes, or at none.


def target_of(servers):
    source = servers.owner(SLOT)
    return next(node for node in servers.primaries() if node is not source)


def refusals(servers, error):
    return sum(f"errorstat_{error}:" in node.call("INFO", "errorstats") for node in servers.primaries())


def forget_refusals(servers):
    for node in servers.primaries():
        node.call("CONFIG", "RESETSTAT")


async def transaction(client):
    return await client.pipeline().incr(HERE).incr(THERE).execute()


async def script(client):
    return await client.eval(SCRIPT, 2, HERE, THERE)


async def script_in_pipeline(client):
    return (await client.pipeline(transaction=False).eval(SCRIPT, 2, HERE, THERE).execute())[0]


SEVERAL_KEYS = pytest.mark.parametrize("write", [transaction, script, script_in_pipeline])


@SEVERAL_KEYS
async def test_keys_at_two_nodes_are_written_once_when_the_slot_has_moved(servers, on_cluster, until, write):
    await on_cluster.set(HERE, 1)
    target = target_of(servers)
    servers.begin_migration(SLOT, target)
    forget_refusals(servers)
    writing = asyncio.create_task(write(on_cluster))
    try:
        await until(lambda: refusals(servers, "TRYAGAIN") > 0)
    finally:
        servers.migrate_keys(SLOT, target, 10)
        servers.end_migration(SLOT, target)

    assert [2, 1] == await writing
    assert [b"2", b"1"] == await on_cluster.mget(HERE, THERE)


@SEVERAL_KEYS
async def test_writes_wait_until_their_slot_is_served(servers, on_cluster, until, write):
    await on_cluster.set(HERE, 1)
    owner = servers.owner(SLOT)
    forget_refusals(servers)
    owner.call("CLUSTER", "DELSLOTS", SLOT)
    writing = asyncio.create_task(write(on_cluster))
    try:
        await until(lambda: refusals(servers, "CLUSTERDOWN") > 0)
    finally:
        owner.call("CLUSTER", "ADDSLOTS", SLOT)

    assert [2, 1] == await writing
    await asyncio.to_thread(servers.wait_ok)


async def test_script_in_a_pipeline_runs_once_whatever_error_it_returns(on_cluster):
    written = "redis.call('INCR', KEYS[1]) return redis.error_reply('LOADING not yet')"
    [error] = await on_cluster.pipeline(transaction=False).eval(written, 1, HERE).execute(raise_on_error=False)

    assert "not yet" in str(error)
    assert b"1" == await on_cluster.get(HERE)


async def test_watching_transaction_is_not_sent_again_without_its_watch(servers, on_cluster):
    await on_cluster.set(HERE, 1)
    target = target_of(servers)
    async with on_cluster.pipeline() as pipe:
        await pipe.watch(HERE)
        servers.begin_migration(SLOT, target)
        pipe.multi()
        pipe.incr(HERE).incr(THERE)
        with pytest.raises(WatchError, match="begin again with watch"):
            await pipe.execute()
    servers.migrate_keys(SLOT, target, 10)
    servers.end_migration(SLOT, target)

    assert [b"1", None] == await on_cluster.mget(HERE, THERE)


async def test_call_follows_to_a_node_without_slots(servers, on_cluster):
    await on_cluster.set(HERE, 1)
    node = await asyncio.to_thread(servers.add_node)
    source = servers.owner(SLOT)
    servers.begin_migration(SLOT, node)

    assert 1 == await on_cluster.incr(THERE)
    assert 1 == node.call("DBSIZE")

    servers.migrate_keys(SLOT, node, 10)
    servers.end_migration(SLOT, node)
    assert [b"1", b"1"] == await on_cluster.mget(HERE, THERE)
    await asyncio.to_thread(servers.migrate, SLOT, source)
    await asyncio.to_thread(servers.remove_node, node)


async def test_handle_of_a_node_that_is_gone_goes_on_unless_it_was_altered(servers, on_cluster, until):
    topology = on_cluster.connection_pool.cluster_topology
    async with on_cluster.client() as plain, on_cluster.client() as altered:
        for handle in (plain, altered):
            await handle.set(HERE, 1)
        await altered.client_setname("altered")
        node = servers.owner(SLOT)
        node.freeze()
        address = (node.host, node.port)
        await on_cluster.get(HERE)
        await until(lambda: address not in topology.pools)

        assert b"1" == await plain.get(HERE)
        with pytest.raises(PinnedConnectionLostError, match="set it again"):
            await altered.get(HERE)
    node.thaw()


def test_chaos_check_rejects_each_wrong_figure():
    late = chaos.Figures(calls=1, slowest=3, promotion=1, moved=1)

    assert [] == chaos.failures(late, late=2)
    assert ["slowest: 3, more than 2"] == chaos.failures(late, late=1)
    for name in ("duplicates", "lost", "stale", "torn", "wrong", "hung", "errors", "unacknowledged", "pools_left"):
        assert [f"{name}: 1, more than 0"] == chaos.failures(chaos.Figures(**{"calls": 1, "moved": 1, name: 1}))
    assert ["calls: 0, less than 1", "moved: 0, less than 1"] == chaos.failures(chaos.Figures())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_chaos_program_exits_with_0_if_every_figure_passes():
    words = ["--calls=5000", "--rounds=1", "--failovers=3", "--late=15", "--only", "C1", "C4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(chaos.__file__).parents[1])}
    command = [sys.executable, "-m", "support.cluster_chaos", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - this Python

    assert 0 == done.returncode, done.stdout + done.stderr
    assert done.stdout.startswith("| figure | C1 migration |")


@pytest.mark.parametrize("fault", ["twice", "lost", "torn"])
async def test_chaos_account_detects_what_is_stored_wrongly(servers, on_cluster, seed, fault):
    load = chaos.Load(on_cluster, ["tag"], seed, transactions=True)
    for way in load.ways:
        await way("tag")
    match fault:
        case "twice":
            await on_cluster.incr(load.key("tag", "count"), 5)
            await on_cluster.rpush(load.key("tag", "list"), next(iter(load.pushed)))
        case "lost":
            await on_cluster.delete(load.key("tag", "list"))
        case "torn":
            await on_cluster.set(load.key("tag", "left"), 0)
    found = await chaos.account(load, servers.url)

    assert {"twice": (6, 0, 0), "lost": (0, 2, 0), "torn": (0, 1, 1)}[fault] == (
        found.duplicates,
        found.lost,
        found.torn,
    )


async def test_pool_of_a_cluster_without_slots_waits_until_these_are_given(make_pool, until):
    with ClusterServers(primaries=1, replicas=0) as servers:
        [node] = servers.nodes
        node.call("CLUSTER", "FLUSHSLOTS")
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=LONG_DEADLINE))
        calls = [asyncio.create_task(call) for call in (client.set("key", 1), client.ping(), client.dbsize())]
        topology = client.connection_pool.cluster_topology
        await until(lambda: topology.is_known)
        named = ClusterNode(node.host, node.port)
        assert await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383, target_nodes=named)

        assert [True, True] == (await asyncio.gather(*calls))[:2]


async def test_cluster_without_slots_raises_when_none_are_given_in_time(make_pool):
    with ClusterServers(primaries=1, replicas=0) as servers:
        servers.nodes[0].call("CLUSTER", "FLUSHSLOTS")
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=1))
        for call in (client.get("key"), client.flushall(), client.config_set("hz", 10), client.publish("channel", "m")):
            with pytest.raises(ClusterDownError, match="serves"):
                await call
        with pytest.raises(ClusterRoutingError, match="no node for target_nodes='random'"):
            await client.execute_command("PING", target_nodes="random")


# Commands for several nodes.


async def test_commands_for_all_primaries_succeed_when_one_is_killed(servers, on_cluster):
    keys = [f"key:{number}" for number in range(60)]
    await asyncio.gather(*(on_cluster.set(key, 1) for key in keys))
    assert await on_cluster.dbsize() == len(keys)
    killed = servers.owner(keys[0])
    await asyncio.to_thread(wait_replicated, servers)
    killed.kill()

    async def scanned():
        return {key async for key in on_cluster.scan_iter(count=5)}

    size, found, seen, digest = await asyncio.gather(
        on_cluster.dbsize(), on_cluster.keys(), scanned(), on_cluster.script_load("return 1")
    )

    assert (size, len(found), len(seen)) == (len(keys), len(keys), len(keys))
    assert await on_cluster.script_exists(digest) == [True]
    assert await on_cluster.flushall() is True
    assert await on_cluster.dbsize() == 0


async def test_commands_for_all_primaries_succeed_when_one_was_replaced_unseen(servers, on_cluster):
    await on_cluster.set("key", 1)
    await asyncio.to_thread(servers.failover, servers.replica_of(servers.owner("key")))

    assert await on_cluster.flushall() is True
    assert await on_cluster.dbsize() == 0


async def scanned_keys(client):
    return [key async for key in client.scan_iter()]


@pytest.mark.parametrize(("protocol", "multiplex"), [(2, False), (3, True)])
@pytest.mark.parametrize(
    "count",
    [
        lambda client: client.dbsize(),
        lambda client: call_len(client.keys()),
        lambda client: call_len(scanned_keys(client)),
        lambda client: call_first(client.pipeline(transaction=False).dbsize().set("key:0", 1).execute()),
    ],
    ids=["dbsize", "keys", "scan", "pipeline"],
)
async def test_keys_are_not_counted_at_a_primary_that_has_become_a_replica_unseen(
    make_pool, count, protocol, multiplex
):
    keys = [f"key:{number}" for number in range(40)]
    with ClusterServers(primaries=2, replicas=1) as servers:
        pool = make_pool(servers.url, protocol=protocol, multiplex=multiplex, socket_timeout=LONG_DEADLINE)
        client = MonitoredRedisConnection(connection_pool=pool)
        await asyncio.gather(*(client.set(key, 1) for key in keys))
        await asyncio.to_thread(wait_replicated, servers)
        demoted = servers.owner(keys[0])
        promoted = servers.replica_of(demoted)
        await asyncio.to_thread(servers.failover, promoted)
        # The demoted node has no key for that long, and redirects only calls with keys.
        promoted.call("CONFIG", "SET", "repl-diskless-sync-delay", 60)
        demoted.kill()
        await asyncio.to_thread(demoted.start)
        assert demoted.call("DBSIZE") == 0

        assert await count(client) == len(keys)


async def call_len(call):
    return len(await call)


async def call_first(call):
    return (await call)[0]


async def test_keys_of_a_node_that_has_taken_the_place_of_another_count_once(make_pool):
    with ClusterServers(primaries=2, replicas=0) as servers:
        pool = make_pool(servers.url, socket_timeout=LONG_DEADLINE)
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.mset({HERE: 1, THERE: 1})
        owner, removed = servers.owner(SLOT), servers.add_node()
        servers.migrate(SLOT, removed)
        await refresh_topology(pool)
        servers.migrate(SLOT, owner)
        servers.remove_node(removed)

        assert await client.dbsize() == 2
        assert len(await client.keys()) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.dbsize(),
        lambda client: client.keys(),
        lambda client: client.config_set("maxmemory-samples", 5),
        lambda client: client.pipeline(transaction=False).dbsize().execute(),
        lambda client: anext(client.scan_iter(match="none"), None),
    ],
    ids=["dbsize", "keys", "config_set", "pipeline", "scan"],
)
async def test_commands_for_all_nodes_leave_out_one_that_is_removed_meanwhile(make_pool, call):
    with ClusterServers(primaries=2, replicas=0) as servers:
        pool = make_pool(servers.url, socket_timeout=LONG_DEADLINE)
        client = MonitoredRedisConnection(connection_pool=pool)
        owner, removed = servers.owner(SLOT), servers.add_node()
        servers.migrate(SLOT, removed)
        await refresh_topology(pool)
        servers.migrate(SLOT, owner)
        # The node that redirects has no slot any more, and is a primary until the next refresh.
        await client.set(THERE, 1)
        servers.remove_node(removed)

        async with asyncio.timeout(LONG_DEADLINE / 2):
            await call(client)


async def test_pipeline_does_not_undo_what_was_called_later_in_it(servers, on_cluster):
    await on_cluster.mset({HERE: 0, THERE: 0})
    source = servers.owner(SLOT)
    (target, *_) = [node for node in servers.primaries() if node is not source]
    servers.begin_migration(SLOT, target)
    assert source.call("MIGRATE", target.host, target.port, "", 0, 5_000, "KEYS", THERE) == "OK"
    try:
        pipe = on_cluster.pipeline(transaction=False).mset({HERE: 1, THERE: 1}).set(HERE, 2).set(THERE, 2)
        first, *others = await pipe.execute(raise_on_error=False)
        assert isinstance(first, TryAgainError)
        assert others == [True, True]
        assert [await on_cluster.get(HERE), await on_cluster.get(THERE)] == [b"2", b"2"]
    finally:
        servers.migrate_keys(SLOT, target, 100)
        servers.end_migration(SLOT, target)
    assert await on_cluster.mget(HERE, THERE) == [b"2", b"2"]


@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_call_that_is_redirected_to_a_frozen_node_times_out(servers, make_pool, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=1, multiplex=multiplex))
    await client.get(HERE)
    source = servers.owner(SLOT)
    (target, *_) = [node for node in servers.primaries() if node is not source]
    await asyncio.to_thread(servers.migrate, SLOT, target)
    target.freeze()
    try:
        with pytest.raises(RedisTimeoutError):
            await client.get(HERE)
        with pytest.raises(RedisTimeoutError):
            await client.transaction(lambda pipe: pipe.get(HERE), HERE)
    finally:
        target.thaw()


async def read_by_command(client):
    return await client.get(HERE)


async def read_by_pipeline(client):
    return (await client.pipeline(transaction=False).get(HERE).execute())[0]


@pytest.mark.parametrize("read", [read_by_command, read_by_pipeline])
async def test_reads_without_a_shared_connection_outlive_a_frozen_primary(servers, make_pool, read):
    # Some wait for a connection when the pool of the node is closed.
    pool = make_pool(servers.url, socket_timeout=LONG_DEADLINE, multiplex=False, max_connections=4)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.set(HERE, 1)
    await asyncio.to_thread(wait_replicated, servers)
    frozen = servers.owner(SLOT)
    frozen.freeze()
    began = time.monotonic()
    try:
        assert await asyncio.gather(*(read(client) for _ in range(8))) == [b"1"] * 8
        assert time.monotonic() - began < LONG_DEADLINE - 5
    finally:
        frozen.thaw()


# Redirects that lead nowhere.


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.incr(THERE),
        lambda client: client.pipeline().incr(THERE).execute(),
        lambda client: client.pipeline(transaction=False).incr(THERE).execute(),
    ],
    ids=["command", "transaction", "pipeline"],
)
async def test_call_that_is_redirected_for_ever_says_so(servers, make_pool, call):
    pool = make_pool(servers.url, socket_timeout=LONG_DEADLINE, retries=0, retry_backoff=0.001)
    client = MonitoredRedisConnection(connection_pool=pool)
    source, target = servers.owner(SLOT), target_of(servers)
    # The target does not know that it takes the slot over, and redirects back.
    source.call("CLUSTER", "SETSLOT", SLOT, "MIGRATING", target.id)
    try:
        with pytest.raises(ClusterDownError, match="the nodes do not agree on the slot"):
            await call(client)
    finally:
        source.call("CLUSTER", "SETSLOT", SLOT, "STABLE")
    assert 1 == await client.incr(THERE)


async def test_handle_waits_until_a_slot_has_moved(servers, on_cluster, until):
    target = target_of(servers)
    async with on_cluster.client() as handle:
        await handle.set(HERE, 1)
        servers.begin_migration(SLOT, target)
        forget_refusals(servers)
        writing = asyncio.create_task(handle.incr(THERE))
        try:
            await until(lambda: refusals(servers, "ASK") > 0)
        finally:
            servers.migrate_keys(SLOT, target, 10)
            servers.end_migration(SLOT, target)

        assert 1 == await writing
        assert b"1" == await handle.get(HERE)


async def test_watch_ends_when_its_slot_has_moved(servers, on_cluster):
    await on_cluster.set(HERE, 1)
    async with on_cluster.pipeline() as pipe:
        await pipe.watch(HERE)
        await asyncio.to_thread(servers.migrate, SLOT, target_of(servers))
        # This call learns where the slot is.
        assert b"1" == await on_cluster.get(HERE)
        with pytest.raises(WatchError, match="has moved to another node: begin again with watch"):
            await pipe.get(HERE)
        await pipe.watch(HERE)
        pipe.multi()
        assert [2] == await pipe.incr(HERE).execute()


async def test_node_that_takes_a_slot_over_and_freezes_keeps_no_connection(servers, make_pool):
    pool = make_pool(servers.url, socket_timeout=1, multiplex=False)
    client = MonitoredRedisConnection(connection_pool=pool)
    target = target_of(servers)
    key = next(key for key in map(str, range(100)) if servers.owner(key) is target)
    assert [None, None] == [await client.get(key), await client.get(HERE)]
    servers.begin_migration(SLOT, target)
    target.freeze()
    try:
        # ASKING is sent on the idle connection.
        with pytest.raises(RedisTimeoutError):
            await client.incr(THERE)
        assert 0 == pool.stats().used
    finally:
        target.thaw()
        servers.end_migration(SLOT, target)
    assert 1 == await client.incr(THERE)


async def test_slots_are_refreshed_regularly_without_any_call(servers, make_pool, until):
    pool = make_pool(servers.url, topology_refresh=0.1)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.get(HERE)
    target = target_of(servers)
    await asyncio.to_thread(servers.migrate, SLOT, target)

    await until(lambda: target.port in [node.port for node in pool.nodes_of_slot(SLOT)])


async def test_scan_ends_with_nodes_that_have_become_primaries_meanwhile(make_pool):
    with ClusterServers("--cluster-require-full-coverage", "no", primaries=2, replicas=0) as servers:
        empty = servers.nodes[1]
        empty.call("CLUSTER", "FLUSHSLOTS")
        keys = [key for key in (f"key:{number}" for number in range(200)) if key_slot(key) < 8192]
        pool = make_pool(servers.url)
        client = MonitoredRedisConnection(connection_pool=pool)
        await asyncio.gather(*(client.set(key, 1) for key in keys))
        cursor, found = await client.scan(count=5)
        seen = set(found)
        moved = next(key for key in keys if key.encode() not in seen)
        await asyncio.to_thread(servers.migrate, key_slot(moved), empty)
        let_refresh_be_old(pool)
        while cursor:
            cursor, found = await client.scan(cursor, count=50)
            seen.update(found)

        assert set(map(str.encode, keys)) == seen


def is_probing():
    """Whether a node that owes nothing is asked whether it lives."""
    return any(each.get_coro().__qualname__.endswith(".answers_within") for each in asyncio.all_tasks())


async def test_scan_does_not_wait_for_a_refresh_beyond_its_deadline(make_pool, monkeypatch, caplog):
    with ClusterServers(primaries=2, replicas=0, node_timeout=60) as servers:
        # A refresh takes twice that: as long for the nodes that are known as for the start nodes.
        pool = make_pool(servers.url, socket_timeout=4)
        client = MonitoredRedisConnection(connection_pool=pool)
        cursor, _ = await client.scan(count=100)
        # In the order in which they are scanned.
        ports = [pool.cluster_topology.address_of(each)[1] for each in pool.cluster_topology.primary_pools]
        frozen, last = sorted(servers.nodes, key=lambda node: ports.index(node.port))
        # Neither says which nodes there are.
        last.call("ACL", "SETUSER", "default", "-cluster|slots")
        frozen.freeze()
        let_refreshes_take(monkeypatch, 100)
        let_refresh_be_old(pool)

        assert (0, []) == await client.scan(cursor)
        assert "a topology refresh failed" not in caplog.text
        frozen.thaw()


async def test_scan_sees_every_key_however_many_pools_there_were(servers, make_pool):
    pool = make_pool(servers.url, socket_timeout=LONG_DEADLINE)
    number_pools_from(pool, 2**20)
    client = MonitoredRedisConnection(connection_pool=pool)
    keys = {b"%d" % number for number in range(100)}
    for key in keys:
        await client.set(key, 1)

    async with asyncio.timeout(LONG_DEADLINE + 60):
        assert keys == {key async for key in client.scan_iter()}


@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_call_that_blocks_at_a_living_node_is_left_alone(servers, make_pool, telemetry, until, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, multiplex=multiplex))
    waiting = asyncio.create_task(client.blpop([HERE], 60))
    # A refresh would follow the first one before the second one.
    for _ in range(2):
        await until(is_probing)
        await until(lambda: not is_probing())
    assert 1 == await client.rpush(HERE, "element")

    assert (HERE.encode(), b"element") == tuple(await waiting)
    assert {1} == set(telemetry.tally("aioredis_monitored.cluster.refreshes").values())


async def test_pool_that_is_closed_while_it_asks_whether_a_node_lives_leaves_no_task(servers, make_pool, until, caplog):
    before = asyncio.all_tasks()
    pool = make_pool(servers.url, multiplex=False)
    waiting = asyncio.create_task(MonitoredRedisConnection(connection_pool=pool).blpop([HERE], 60))
    owner = servers.owner(SLOT)
    await until(lambda: "blocked_clients:1" in owner.call("INFO", "clients"))
    owner.freeze()
    try:
        await until(is_probing)
        await pool.aclose()
        (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    finally:
        owner.thaw()

    # It may have taken an element.
    assert isinstance(outcome, RedisConnectionError)
    await until(lambda: asyncio.all_tasks() <= before)
    assert [] == [each.message for each in caplog.records if each.name == "asyncio"]
