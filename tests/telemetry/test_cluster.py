"""Spans and metrics of a cluster: each call is one point and one span, both with the node that answered."""

import asyncio
from contextlib import contextmanager

import pytest
import redis.exceptions
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from support.internals import refresh_topology
from support.sharing import frozen

from aioredis_monitored import (
    CrossSlotError,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisCluster,
    MonitoredRedisConnection,
    RedisContextFactory,
    TelemetryOptions,
)
from aioredis_monitored._telemetry.spans import server_at
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers, TelemetryCapture

DURATION = "db.client.operation.duration"
POOL = "db.client.connection.pool.name"
KIND = "aioredis_monitored.cluster.redirect"
REDIRECTED = "aioredis_monitored.cluster.redirects"
REFRESHES = "aioredis_monitored.cluster.refreshes"
NODES = "aioredis_monitored.cluster.nodes"
FAILOVERS = "aioredis_monitored.failovers"
REDIRECTS = "aioredis_monitored.redirects"
FURTHER = (REDIRECTS, "error.type", "db.operation.batch.size")
WAIT = "aioredis_monitored.wait.duration"
CALLS = "aioredis_monitored.request.calls"


@pytest.fixture
def pool(make_pool, cluster):
    return make_pool(cluster.url, name="test")


@pytest.fixture
async def client(pool):
    """Return a client whose pool knows the nodes, so that tests see what follows."""
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    return client


@pytest.fixture(autouse=True)
def empty(cluster):
    yield
    for node in cluster.primaries():
        node.call("FLUSHALL")
        node.call("SCRIPT", "FLUSH")


def keys_of(cluster, count=3):
    """Return a key for each of some nodes, in the order of the nodes."""
    keys = {}
    for number in range(1000):
        keys.setdefault(cluster.owner(f"key-{number}"), f"key-{number}")
        if len(keys) == count:
            break
    return dict(sorted(keys.items(), key=lambda pair: pair[0].port))


def other_node(cluster, node):
    return next(each for each in cluster.primaries() if each is not node)


@contextmanager
def moved(cluster, key):
    """Move the slot of a key to another node, and back; yield the former node and the latter."""
    slot, source = key_slot(key), cluster.owner(key)
    target = other_node(cluster, source)
    cluster.migrate(slot, target)
    try:
        yield source, target
    finally:
        cluster.migrate(slot, source)


@contextmanager
def moving(cluster, key):
    """Let the slot of a key move, whose keys are at the new node already; yield the former node and the latter."""
    slot, source = key_slot(key), cluster.owner(key)
    target = other_node(cluster, source)
    cluster.begin_migration(slot, target)
    while cluster.migrate_keys(slot, target, 10):
        pass
    try:
        yield source, target
    finally:
        cluster.end_migration(slot, target)
        cluster.migrate(slot, source)


def at(node):
    """Return the attributes of the server of spans and points."""
    return {"server.address": node.host, "server.port": node.port}


def addresses(attributes):
    return {name: value for name, value in attributes.items() if name.startswith("server.")}


def check(recorded, *expected):
    """Check that there is one span and one point for each call: its name, its node or none, and further attributes."""
    shown = []
    for span in sorted(recorded.spans, key=lambda span: span.start_time):
        attributes = span.attributes
        peer = attributes.get("network.peer.address"), attributes.get("network.peer.port")
        if "server.port" in attributes:
            assert (attributes["server.address"], attributes["server.port"]) == peer
        else:
            assert (None, None) == peer
        assert "0" == attributes["db.namespace"]
        further = {name: attributes[name] for name in FURTHER if name in attributes}
        shown.append((span.name, addresses(attributes), further))
    assert [named(name, node, *rest) for name, node, *rest in expected] == shown
    points = recorded.points(DURATION)
    assert len(expected) == sum(point.count for point in points)
    assert sorted(map(str, (at(node) if node else {} for _, node, *_ in expected))) == sorted(
        str(addresses(point.attributes)) for point in points for _ in range(point.count)
    )


def named(name, node, further=None):
    return (f"{name} {node.host}:{node.port}" if node else name, at(node) if node else {}, further or {})


# One node.


async def test_command_span_and_point_have_node_of_key(client, cluster, telemetry):
    keys = keys_of(cluster)
    with telemetry.block() as block:
        for key in keys.values():
            await client.set(key, 1)

    check(block, *(("SET", node) for node in keys))


async def test_commands_of_one_name_keep_their_nodes_apart_when_concurrent(client, cluster, telemetry):
    keys = keys_of(cluster)
    with telemetry.block() as block:
        await asyncio.gather(*(client.get(key) for key in keys.values() for _ in range(10)))

    assert 30 == len(block.spans)
    assert {f"{node.host} {node.port}": 10 for node in keys} == block.tally(DURATION, "server.address", "server.port")


async def test_command_without_keys_has_node_that_answered(client, cluster, telemetry):
    with telemetry.block() as block:
        info = await client.info("server")
    (node,) = (node for node in cluster.nodes if node.port == info["tcp_port"])

    check(block, ("INFO", node))


async def test_dedicated_and_pinned_commands_have_node_of_key(client, cluster, telemetry):
    (node, key), *_ = keys_of(cluster).items()
    await client.rpush(key, 1, 2)
    with telemetry.block() as block:
        await client.blpop(key, 1)
        async with client.client() as handle:
            await handle.lpop(key)
            await handle.ping()

    check(block, ("BLPOP", node), ("LPOP", node), ("PING", node))


async def test_command_after_moved_has_new_node_and_number_of_redirects(client, cluster, telemetry):
    await client.set("key", 1)
    with moved(cluster, "key") as (source, target):
        with telemetry.block() as block:
            assert b"1" == await client.get("key")
            await client.get("key")
        assert {"test moved": 1, "test ask": 0} == telemetry.tally(REDIRECTED, POOL, KIND)

    assert source is not target
    check(block, ("GET", target, {REDIRECTS: 1}), ("GET", target))


@pytest.mark.parametrize("command", ["GET", "BLPOP"])
async def test_command_after_ask_has_importing_node_and_number_of_redirects(client, cluster, telemetry, command):
    await (client.set("key", 1) if command == "GET" else client.rpush("key", 1, 2, 3))
    with moving(cluster, "key") as (_, target):
        with telemetry.block() as block:
            for _ in range(2):
                assert await (client.get("key") if command == "GET" else client.blpop("key", 1))
        assert {"test moved": 0, "test ask": 2} == telemetry.tally(REDIRECTED, POOL, KIND)

    # The slot has not moved yet: each call is asked to go on.
    check(block, *2 * [(command, target, {REDIRECTS: 1})])


async def test_failed_command_after_moved_has_new_node_and_error_type(client, cluster, telemetry):
    await client.set("key", 1)
    with (
        moved(cluster, "key") as (_, target),
        telemetry.block() as block,
        pytest.raises(redis.exceptions.ResponseError),
    ):
        await client.lpush("key", 1)

    check(block, ("LPUSH", target, {REDIRECTS: 1, "error.type": "WRONGTYPE"}))


async def test_transaction_after_moved_and_ask_is_one_span_with_new_node(client, cluster, telemetry):
    await client.set("key", 1)
    for redirected in (moving, moved):
        with redirected(cluster, "key") as (_, target), telemetry.block() as block:
            assert [b"1", True] == await client.pipeline().get("key").set("key", 1).execute()

        check(block, ("MULTI", target, {REDIRECTS: 1, "db.operation.batch.size": 2}))


async def test_watching_transaction_spans_have_node_of_keys(client, cluster, telemetry):
    (node, key), *_ = keys_of(cluster).items()

    async def increment(pipe):
        pipe.multi()
        pipe.incr(key)
        pipe.incr(key)

    with telemetry.block() as block:
        await client.transaction(increment, key)

    check(block, ("WATCH", node), ("MULTI INCRBY", node, {"db.operation.batch.size": 2}))


# Several nodes.


async def test_pipeline_over_several_nodes_is_one_span_without_server(client, cluster, telemetry):
    keys = keys_of(cluster)
    pipe = client.pipeline(transaction=False)
    for key in keys.values():
        pipe.get(key)
    with telemetry.block() as block:
        await pipe.execute()

    check(block, ("PIPELINE GET", None, {"db.operation.batch.size": 3}))
    assert "; ".join(f"GET {key}" for key in keys.values()) == block.spans[0].attributes["db.query.text"]


async def test_pipeline_at_one_node_has_its_server(client, cluster, telemetry):
    (node, key), *_ = keys_of(cluster).items()
    with telemetry.block() as block:
        await client.pipeline(transaction=False).get(key).set(key, 1).execute()

    check(block, ("PIPELINE", node, {"db.operation.batch.size": 2}))


async def test_pipeline_that_one_node_redirects_in_part_is_at_both(client, cluster, telemetry):
    (node, stays), *_ = keys_of(cluster).items()
    goes = next(key for key in (f"other-{number}" for number in range(1000)) if cluster.owner(key) is node)
    with moved(cluster, goes) as (_, target), telemetry.block() as block:
        await client.pipeline(transaction=False).get(stays).get(goes).execute()
        await client.pipeline(transaction=False).get(goes).get(goes).execute()

    assert target is not node
    check(
        block,
        ("PIPELINE GET", None, {REDIRECTS: 1, "db.operation.batch.size": 2}),
        ("PIPELINE GET", target, {"db.operation.batch.size": 2}),
    )


async def test_pipeline_whose_parts_meet_at_one_node_after_moved_has_its_server(client, cluster, telemetry):
    goes = "key"
    target = other_node(cluster, cluster.owner(goes))
    stays = next(key for key in (f"key-{number}" for number in range(1000)) if cluster.owner(key) is target)
    with moved(cluster, goes), telemetry.block() as block:
        await client.pipeline(transaction=False).get(stays).get(goes).execute()

    check(block, ("PIPELINE GET", target, {REDIRECTS: 1, "db.operation.batch.size": 2}))


async def test_redirected_commands_of_a_pipeline_each_count(client, cluster, telemetry):
    pipe = client.pipeline(transaction=False)
    for _ in range(100):
        pipe.get("key")
    with moved(cluster, "key") as (_, target), telemetry.block() as block:
        await pipe.execute()

    check(block, ("PIPELINE GET", target, {REDIRECTS: 100, "db.operation.batch.size": 100}))
    assert {"test moved": 100, "test ask": 0} == telemetry.tally(REDIRECTED, POOL, KIND)


async def test_failed_commands_of_split_pipeline_are_counted(client, cluster, telemetry):
    keys = keys_of(cluster)
    pipe = client.pipeline("named", transaction=False)
    for key in keys.values():
        pipe.set(key, 1).lpush(key, 1)
    with telemetry.block() as block:
        await pipe.execute(raise_on_error=False)

    check(block, ("named", None, {"error.type": "WRONGTYPE", "db.operation.batch.size": 6}))
    assert 3 == block.spans[0].attributes["aioredis_monitored.batch.failed"]


@pytest.mark.parametrize("name", ["DBSIZE", "FLUSHALL", "SCRIPT EXISTS", "CONFIG SET"])
async def test_command_for_all_nodes_is_one_span_without_server(client, telemetry, name):
    call = {
        "DBSIZE": client.dbsize,
        "FLUSHALL": client.flushall,
        "SCRIPT EXISTS": lambda: client.script_exists("0" * 40),
        "CONFIG SET": lambda: client.config_set("slowlog-max-len", 128),
    }[name]
    with telemetry.block() as block:
        await call()

    check(block, (name, None))


async def test_split_command_is_one_span_without_server_unless_it_goes_to_one_node(client, cluster, telemetry):
    keys = keys_of(cluster)
    (node, key), *_ = keys.items()
    other = next(each for each in (f"other-{number}" for number in range(1000)) if cluster.owner(each) is node)
    with telemetry.block() as block:
        await client.mget(keys.values())
        await client.mget(key, key)
        await client.delete(key, other)

    # Two keys of one node in two slots are two commands, and one call.
    check(block, ("MGET", None), ("MGET", node), ("DEL", node))
    assert f"MGET {' '.join(keys.values())}" == block.spans[0].attributes["db.query.text"]


async def test_scan_spans_each_have_the_node_that_was_scanned(client, cluster, telemetry):
    for key in keys_of(cluster).values():
        await client.set(key, 1)
    with telemetry.block() as block:
        found = [key async for key in client.scan_iter(count=1000)]

    assert 3 == len(found)
    assert {node.port for node in cluster.primaries()} == {span.attributes["server.port"] for span in block.spans}
    assert len(block.spans) == sum(point.count for point in block.points(DURATION))


# Locks, queues and scripts.


async def test_lock_spans_have_node_and_each_command_is_a_point(client, cluster, telemetry):
    (node, key), *_ = keys_of(cluster).items()
    with telemetry.block() as block:
        async with client.lock(key, timeout=5):
            pass

    assert "lock.acquire\nlock.release" == block.tree()
    assert [at(node)] * 2 == [addresses(span.attributes) for span in block.spans]
    assert {str(node.port)} == block.tally(DURATION, "server.port").keys()
    for name in ("wait_time", "hold_time"):
        assert 1 == block.point(f"aioredis_monitored.lock.{name}", {POOL: "test"}).count


async def test_queue_spans_and_points_have_node_of_queue(client, cluster, telemetry):
    (node, name), *_ = keys_of(cluster).items()
    async with MessageQueue(name, client) as queue:
        with telemetry.block() as block:
            await queue.put(b"first")
            await queue.put_many([b"second", b"third"])
            assert b"first" == await queue.get(timeout=1)
            async with queue.take():
                pass

    # Processing a message is no call.
    calls = [span for span in block.spans if span.kind is not trace.SpanKind.CONSUMER]
    assert [at(node)] * 5 == [addresses(span.attributes) for span in calls]
    assert {"0"} == {span.attributes["db.namespace"] for span in calls}
    for metric in (DURATION, "messaging.client.operation.duration", "messaging.client.sent.messages"):
        assert {f"{node.host} {node.port}"} == block.tally(metric, "server.address", "server.port").keys()
    operations = block.tally("messaging.client.operation.duration", "messaging.operation.name")
    assert {"send": 2, "receive": 2, "ack": 1} == operations
    assert {f"test {name}"} == telemetry.tally(
        "aioredis_monitored.queue.depth", POOL, "messaging.destination.name"
    ).keys()


async def test_queue_spans_have_new_node_after_moved(client, cluster, telemetry):
    async with MessageQueue("key", client) as queue:
        with moved(cluster, "key") as (_, target), telemetry.block() as block:
            await queue.put(b"message")
            await queue.get(timeout=1)

    assert [at(target)] * 2 == [addresses(span.attributes) for span in block.spans]
    assert [1, None] == [span.attributes.get(REDIRECTS) for span in block.spans]
    assert {str(target.port): 2} == block.tally(DURATION, "server.port")


async def test_unknown_script_is_one_span_with_its_node(client, cluster, telemetry):
    (node, key), *_ = keys_of(cluster).items()
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    with telemetry.block() as block:
        assert [1, 2] == [await script(keys=[key]) for _ in range(2)]

    expected = {"db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": script.sha}
    assert [f"EVALSHA {script.sha}"] * 2 == [span.name for span in block.spans]
    for span in block.spans:
        assert expected.items() | at(node).items() <= span.attributes.items()
        assert "error.type" not in span.attributes
        assert node.port == span.attributes["network.peer.port"]
    assert {f"EVALSHA {node.port}": 2} == block.tally(DURATION, "db.operation.name", "server.port", "error.type")


# Failures.


async def test_refused_command_is_one_span_with_error_type_and_without_server(client, cluster, telemetry):
    first, second, _ = keys_of(cluster).values()
    with telemetry.block() as block:
        with pytest.raises(CrossSlotError):
            await client.mset({first: 1, second: 2})
        with pytest.raises(CrossSlotError):
            await client.pipeline().set(first, 1).set(second, 2).execute()

    error = {"error.type": "aioredis_monitored.CrossSlotError"}
    check(block, ("MSET", None, error), ("MULTI SET", None, {**error, "db.operation.batch.size": 2}))


async def test_command_of_uncovered_slot_is_one_span_with_error_type_and_without_server(make_pool, telemetry):
    with ClusterServers(primaries=3, replicas=0, node_timeout=60) as cluster:
        client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, socket_timeout=0.5))
        for node in cluster.nodes:
            node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
            node.call("CLUSTER", "DELSLOTS", key_slot("key"))
        await client.ping()
        with telemetry.block() as block, pytest.raises(redis.exceptions.ClusterDownError):
            await client.get("key")

        check(block, ("GET", None, {"error.type": "redis.exceptions.ClusterDownError"}))


@pytest.mark.slow
async def test_calls_after_a_node_was_killed_have_the_new_primary(make_pool, telemetry, until):
    with ClusterServers() as cluster:
        client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, name="test", socket_timeout=20))
        node, key = next(iter(keys_of(cluster).items()))
        await client.set(key, 1)
        replica = cluster.replica_of(node)
        node.kill()
        with telemetry.block() as block:
            await client.get(key)

        (span,) = block.spans
        assert (f"GET {replica.host}:{replica.port}", at(replica)) == (span.name, addresses(span.attributes))
        assert replica.port == span.attributes["network.peer.port"]
        assert {str(replica.port): 1} == block.tally(DURATION, "server.port", "error.type")
        # The pauses between its attempts.
        assert 0 < span.attributes[WAIT] < (span.end_time - span.start_time) / 1e9
        await until(lambda: telemetry.tally(FAILOVERS, POOL) == {"test": 1})
        assert telemetry.tally(REFRESHES, POOL)["test"] > 1


async def test_failed_call_has_the_node_that_did_not_answer(make_pool, telemetry):
    with ClusterServers(primaries=3, replicas=0, node_timeout=60) as cluster:
        client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, socket_timeout=0.5))
        node, key = next(iter(keys_of(cluster).items()))
        await client.set(key, 1)
        async with frozen(node):
            with telemetry.block() as block, pytest.raises(redis.exceptions.TimeoutError):
                await client.get(key)

        check(block, ("GET", node, {"error.type": "redis.exceptions.TimeoutError"}))


# Metrics of the pool.


async def test_refreshes_are_counted_and_make_neither_span_nor_point(make_pool, cluster, telemetry):
    pool = make_pool(cluster.url, name="test")
    assert {"test": 0} == telemetry.tally(REFRESHES, POOL)
    assert {} == telemetry.tally(NODES, POOL)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    assert {"test": 1} == telemetry.tally(REFRESHES, POOL)
    assert {"test": 6} == telemetry.tally(NODES, POOL)
    with telemetry.block() as block:
        await refresh_topology(pool)

    assert {"test": 2} == telemetry.tally(REFRESHES, POOL)
    assert () == block.spans
    assert [] == block.points(DURATION)


async def test_connection_gauges_are_those_of_the_nodes(make_pool, cluster, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, name="test", max_connections=7))
    keys = keys_of(cluster)
    for key in keys.values():
        await client.get(key)
    names = {f"test@{node.host}:{node.port}" for node in cluster.nodes}
    asked = {f"test@{node.host}:{node.port}" for node in keys}

    for limit, value in (("max", 7), ("idle.max", 7), ("idle.min", 0), ("pending_requests", 0)):
        assert dict.fromkeys(names, value) == telemetry.tally(f"db.client.connection.{limit}", POOL)
    counts = telemetry.tally("db.client.connection.count", POOL, "db.client.connection.state")
    assert {f"{name} {state}" for name in names for state in ("used", "idle")} == counts.keys()
    assert {name: int(name in asked) for name in names} == {name: counts[f"{name} used"] for name in names}
    assert dict.fromkeys(names, 0) == telemetry.tally("aioredis_monitored.connection.in_flight", POOL)
    for histogram in ("create_time", "wait_time"):
        assert asked == telemetry.tally(f"db.client.connection.{histogram}", POOL).keys()
    stats = client.connection_pool.stats()
    assert ("test", 6 * 7, 3) == (stats.name, stats.max_connections, stats.used)


TIMEOUTS = "db.client.connection.timeouts"
LOCKS = ("aioredis_monitored.lock.contended", "aioredis_monitored.lock.lost")
RECONNECTS = "aioredis_monitored.pubsub.reconnects"


def names_of_pools(telemetry, metric):
    return telemetry.tally(metric, POOL).keys()


async def test_each_counter_is_that_of_the_pool_on_which_it_counts(client, cluster, telemetry):
    nodes = {f"test@{node.host}:{node.port}" for node in cluster.nodes}
    async with client.lock("lock", timeout=60), client.pubsub() as pubsub:
        await pubsub.subscribe("channel")

    # Without what it can never count: each series of each node of each process costs.
    assert nodes == names_of_pools(telemetry, TIMEOUTS)
    for counter in (*LOCKS, RECONNECTS, REFRESHES, REDIRECTED, FAILOVERS):
        assert {"test"} == names_of_pools(telemetry, counter)


async def test_counters_begin_with_zero_on_a_nodes_pool_that_is_used_itself(client, cluster, telemetry):
    pool = client.connection_pool
    first, second, _ = pool.primaries()
    async with MonitoredRedisCluster(connection_pool=pool) as redis_cluster:
        async with redis_cluster.pubsub(node=first) as pubsub:
            await pubsub.subscribe("channel")
        assert {"test": 0, f"test@{first.name}": 0} == telemetry.tally(RECONNECTS, POOL)
    key = next(key for node, key in keys_of(cluster).items() if node.port == second.port)
    on_node = MonitoredRedisConnection(connection_pool=pool.pool_of(second))
    async with on_node.lock(key, timeout=60):
        for counter in LOCKS:
            assert {"test": 0, f"test@{second.name}": 0} == telemetry.tally(counter, POOL)
        assert not await on_node.lock(key, timeout=60, blocking=False).acquire()
    assert {"test": 0, f"test@{second.name}": 1} == telemetry.tally(LOCKS[0], POOL)


@pytest.mark.slow
async def test_gauges_of_a_removed_node_end(make_pool, telemetry, until):
    with ClusterServers(primaries=3, replicas=0, node_timeout=60) as cluster:
        added = cluster.add_node()
        pool = make_pool(cluster.url, name="test")
        cluster.migrate(1, added)
        await MonitoredRedisConnection(connection_pool=pool).ping()
        assert {"test": 4} == telemetry.tally(NODES, POOL)
        cluster.migrate(1, cluster.nodes[0])
        cluster.remove_node(added)
        await refresh_topology(pool)

        await until(lambda: telemetry.tally(NODES, POOL) == {"test": 3})
        assert f"test@{added.host}:{added.port}" not in telemetry.tally("db.client.connection.max", POOL)


async def test_hot_keys_are_counted_for_the_whole_cluster(make_pool, cluster, telemetry):
    pool = make_pool(cluster.url, name="test", telemetry=TelemetryOptions(hot_keys=1.0))
    client = MonitoredRedisConnection(connection_pool=pool)
    first, second, _ = keys_of(cluster).values()
    for _ in range(3):
        await client.get(first)
    await client.mget(first, second)

    assert [(first, "read"), (second, "read")] == [(each.key, each.access) for each in pool.telemetry.hot_keys.top(10)]
    rates = telemetry.points("aioredis_monitored.hot_keys.rate")
    assert {"test"} == {point.attributes[POOL] for point in rates}
    assert {first, second} == {point.attributes["aioredis_monitored.key"] for point in rates}


# Requests, options and sampling.


async def test_request_counts_a_split_or_redirected_call_once(client, cluster, telemetry):
    keys = keys_of(cluster)
    tracer = telemetry.tracer_provider.get_tracer("test")
    with moved(cluster, "key"), tracer.start_as_current_span("request") as span:
        handle = RedisContextFactory(client.connection_pool).make_object_for_context("redis", span)
        await handle.mget(keys.values())
        await handle.get("key")
        await handle.dbsize()
        await handle.pipeline(transaction=False).get("key").get(next(iter(keys.values()))).execute()

    assert 4 == telemetry.span("request").attributes[CALLS]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"slow_only": 60}, []),
        ({"require_parent": True}, []),
        ({"include_commands": {"MGET"}}, ["MGET"]),
        ({"exclude_commands": {"MGET"}}, ["GET", "DBSIZE", "PIPELINE"]),
    ],
)
async def test_options_leave_out_spans_and_no_points(make_pool, cluster, telemetry, options, expected):
    pool = make_pool(cluster.url, telemetry=TelemetryOptions(**options))
    client = MonitoredRedisConnection(connection_pool=pool)
    first, second, third = keys_of(cluster).values()
    await client.get(first)
    await client.mget(first, second)
    await client.dbsize()
    await client.pipeline(transaction=False).get(first).set(second, 1).get(third).execute()

    assert expected == [span.attributes["db.operation.name"] for span in telemetry.spans]
    assert {"GET": 1, "MGET": 1, "DBSIZE": 1, "PIPELINE": 1} == telemetry.tally(DURATION, "db.operation.name")


async def test_span_name_of_the_application_is_kept(make_pool, cluster, telemetry):
    options = TelemetryOptions(span_name=lambda attributes: f"redis {attributes['db.operation.name']}")
    client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, telemetry=options))
    (node, key), *_ = keys_of(cluster).items()
    await client.get(key)

    (span,) = telemetry.spans
    assert ("redis GET", at(node)) == (span.name, addresses(span.attributes))


class _Seeing(Sampler):
    def __init__(self):
        self.seen = []

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, *arguments, **options):
        self.seen.append((name, dict(attributes)))
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, kind, attributes, *arguments, **options)

    def get_description(self):
        return "sees"


async def test_sampler_sees_node_and_query_text(cluster):
    (node, key), *_ = keys_of(cluster).items()
    sampler = _Seeing()
    with TelemetryCapture(sampler=sampler) as telemetry:
        async with MonitoredConnectionPool.from_url(cluster.url, **telemetry.providers) as pool:
            await MonitoredRedisConnection(connection_pool=pool).get(key)

    ((name, attributes),) = sampler.seen
    assert f"GET {node.host}:{node.port}" == name
    assert {"db.query.text": f"GET {key}", **at(node)}.items() <= attributes.items()


# Times.


@pytest.mark.slow
async def test_wait_of_a_call_that_was_retried_is_exact(make_pool, telemetry, until):
    """Nothing listens at first, so that the call's time is pauses between attempts, and connecting."""
    with ClusterServers(primaries=3, replicas=0, node_timeout=60) as cluster:
        node, key = next(iter(keys_of(cluster).items()))
        client = MonitoredRedisConnection(connection_pool=make_pool(cluster.url, socket_timeout=30))
        await client.set(key, 1)
        node.kill()
        with telemetry.block() as block:
            calling = asyncio.ensure_future(client.get(key))
            await asyncio.wait([calling], timeout=0.3)
            node.start()
            await calling

        (span,) = block.spans
        parts = [span.attributes[f"aioredis_monitored.{name}.duration"] for name in ("wait", "connect", "wire")]
        assert parts[0] > 0.1
        assert sum(parts) == pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-6)


async def test_suppressed_call_makes_neither_span_nor_point(client, cluster, telemetry):
    with telemetry.block() as block, suppress_instrumentation():
        await client.mget(keys_of(cluster).values())

    assert () == block.spans
    assert [] == block.points(DURATION)


async def test_exemplar_of_a_split_call_leads_to_its_span(client, cluster, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    with telemetry.block() as block, tracer.start_as_current_span("request"):
        await client.mget(keys_of(cluster).values())

    (exemplar,) = block.point(DURATION).exemplars
    assert block.span("MGET").context.span_id == exemplar.span_id
    assert trace.INVALID_SPAN_ID != exemplar.span_id


# What is kept for calls.


async def test_specs_of_a_command_are_kept_for_a_bounded_number_of_servers(pool):
    command = pool.telemetry.command_spec(("GET", "key"))
    before = first = command.served_by(server_at("10.0.0.0", 7000))
    for number in range(2_000):
        host = f"10.0.{number // 250}.{number % 250}"
        # From the command, and from an attempt before, at a server that may be forgotten by now.
        for spec in (command, before, first):
            served = spec.served_by(server_at(host, 7000))
            assert {"server.address": host, "server.port": 7000} == served.address()
            assert f"GET {host}:7000" == served.span_name
            assert served is command.served[f"{host}:7000"]
        before = served
        assert len(command.served) <= 100
