"""``MonitoredRedisCluster``: what only clusters have."""

import asyncio
import re

import pytest
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as RedisPyNode
from redis.exceptions import DataError, ResponseError, SlotNotCoveredError
from support.sharing import UNRECORDED

from aioredis_monitored import (
    ClusterNode,
    ClusterRoutingError,
    ConfigurationError,
    CrossSlotError,
    MonitoredConnectionPool,
    MonitoredRedisCluster,
    MonitoredRedisConnection,
    MonitoredRedisPipeline,
)
from aioredis_monitored.testing import ClusterServers, RedisServer

KEYS = [f"key-{number}" for number in range(60)]


def knows_all(pool, cluster):
    """Refresh until a node shows all replicas: it does when it has heard from them."""
    pool.cluster_topology.request_refresh()
    return len(pool.nodes()) == len(cluster.nodes)


@pytest.fixture(scope="module")
def cluster():
    # A node that is frozen for a moment keeps its slots.
    with ClusterServers(node_timeout=60) as running:
        yield running


@pytest.fixture
async def client(cluster, until):
    async with MonitoredRedisCluster.from_url(cluster.url, **UNRECORDED) as client:
        await until(lambda: knows_all(client.connection_pool, cluster))
        await client.flushall()
        yield client


def names(nodes):
    return {node.name for node in nodes}


def shape(reply):
    """Return the types of a reply, and the keys of its dictionaries that are no addresses."""
    if isinstance(reply, dict):
        keys = {key for key in reply if not str(key).count(":")}
        return dict, sorted(map(repr, keys)), {repr(shape(value)) for value in reply.values()}
    if isinstance(reply, list | tuple):
        return type(reply), {repr(shape(element)) for element in reply}
    return type(reply)


def addresses(servers):
    return {f"{each.host}:{each.port}" for each in servers}


# Making one.


@pytest.mark.parametrize("form", ["host", "nodes", "redis-py's nodes", "url", "cluster url", "pool"])
async def test_client_finds_the_cluster_from_one_node(cluster, form):
    host, port = cluster.nodes[0].host, cluster.nodes[0].port
    pool = MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED)
    make = {
        "host": lambda: MonitoredRedisCluster(host=host, port=str(port), **UNRECORDED),
        "nodes": lambda: MonitoredRedisCluster(startup_nodes=[ClusterNode(host, port)], **UNRECORDED),
        "redis-py's nodes": lambda: MonitoredRedisCluster(startup_nodes=[RedisPyNode(host, port)], **UNRECORDED),
        "url": lambda: MonitoredRedisCluster.from_url(f"redis://{host}:{port}/0", **UNRECORDED),
        "cluster url": lambda: MonitoredRedisCluster.from_url(cluster.url, **UNRECORDED),
        "pool": lambda: MonitoredRedisCluster(connection_pool=pool),
    }
    async with pool, make[form]() as client:
        assert isinstance(client, redis.asyncio.Redis)
        assert addresses(cluster.nodes[:3]) == names(client.get_primaries())
        assert client.auto_close_connection_pool is (form != "pool")


async def test_awaited_client_knows_its_nodes(cluster):
    client = MonitoredRedisCluster.from_url(cluster.url, **UNRECORDED)
    assert [] == client.get_nodes()
    assert client.get_default_node() is None
    with pytest.raises(SlotNotCoveredError, match=re.escape("initialize() finds the nodes")):
        client.get_node_from_key("key")
    await client
    assert client.get_default_node() in client.get_primaries()
    await client.aclose()


def test_client_needs_a_node_or_a_clusters_pool():
    with pytest.raises(TypeError, match=r"give host=, startup_nodes= or connection_pool="):
        MonitoredRedisCluster()
    with pytest.raises(TypeError, match="must be the pool of a cluster, got MonitoredConnectionPool"):
        MonitoredRedisCluster(connection_pool=MonitoredConnectionPool())
    with pytest.raises(ConfigurationError, match=re.escape("redis+cluster")):
        MonitoredRedisCluster.from_url("redis+sentinel://host/service")
    with pytest.raises(ConfigurationError, match=re.escape("redis+cluster")):
        MonitoredRedisCluster.from_url("unix:///run/redis.sock")


@pytest.mark.parametrize(
    ("argument", "shown"), [({"host": "a"}, "host"), ({"ssl": True}, "ssl"), ({"username": "a"}, "username")]
)
def test_client_refuses_arguments_beside_a_pool(cluster, argument, shown):
    pool = MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED)
    with pytest.raises(TypeError, match=f"cannot be combined with connection_pool: {shown}"):
        MonitoredRedisCluster(connection_pool=pool, **argument)


async def test_client_with_ssl_makes_a_pool_of_encrypted_connections(cluster):
    host, port = cluster.nodes[0].host, cluster.nodes[0].port
    client = MonitoredRedisCluster(host=host, port=port, ssl=True, retries=0, **UNRECORDED)
    assert client.connection_pool.connection_class is redis.asyncio.SSLConnection
    await client.aclose()


async def test_missing_cluster_raises_on_entering():
    client = MonitoredRedisCluster(host="127.0.0.1", port=1, retries=0, **UNRECORDED)
    with pytest.raises(redis.exceptions.ConnectionError, match=r"no node of the cluster says .* 127\.0\.0\.1:1: .*111"):
        async with client:
            pass
    with pytest.raises(redis.exceptions.ConnectionError, match=r"no node of the cluster says .* 127\.0\.0\.1:1: .*111"):
        await client.dbsize()
    await client.aclose()


# Nodes.


async def test_nodes_are_found_by_name_address_and_key(client, cluster):
    owner, replica = cluster.owner("key"), cluster.replica_of(cluster.owner("key"))
    assert addresses(cluster.nodes) == names(client.get_nodes())
    assert addresses(cluster.nodes[3:]) == names(client.get_replicas())
    assert {"primary"} == {node.server_type for node in client.get_primaries()}
    assert {"replica"} == {node.server_type for node in client.get_replicas()}
    assert client.get_random_node() in client.get_nodes()
    assert ClusterNode(owner.host, owner.port) == client.get_node_from_key("key")
    assert ClusterNode(replica.host, replica.port) == client.get_node_from_key("key", replica=True)
    assert client.get_node(owner.host, owner.port) == client.get_node(node_name=f"{owner.host}:{owner.port}")
    assert client.get_node("127.0.0.1", 1) is None
    with pytest.raises(DataError):
        client.get_node()


@pytest.mark.parametrize(("key", "slot"), [("foo", 12182), (b"{foo}bar", 12182), (1, 9842)])
def test_slot_of_a_key(key, slot):
    assert slot == MonitoredRedisCluster(host="a", **UNRECORDED).keyslot(key)


# Commands at named nodes.


async def test_command_at_several_nodes_returns_replies_by_name(client, cluster):
    assert dict.fromkeys(addresses(cluster.nodes), b"hi") == await client.echo("hi", target_nodes="all")
    assert addresses(cluster.nodes[:3]) == (await client.echo("hi", target_nodes="primaries")).keys()
    assert addresses(cluster.nodes[3:]) == (await client.echo("hi", target_nodes=client.REPLICAS)).keys()
    nodes = client.get_nodes()[:2]
    assert names(nodes) == (await client.echo("hi", target_nodes=nodes)).keys()
    assert names(nodes) == (await client.echo("hi", target_nodes=dict(enumerate(nodes)))).keys()


@pytest.mark.parametrize("flag", ["random", "default-node"])
async def test_command_at_one_node_returns_its_reply(client, flag):
    node = client.get_replicas()[1]
    assert await client.echo("hi", target_nodes=flag) == b"hi"
    assert node.port == (await client.info("server", target_nodes=node))["tcp_port"]
    assert node.port == (await client.info("server", target_nodes=[RedisPyNode(node.host, node.port)]))["tcp_port"]


async def test_replies_of_nodes_are_joined_as_redis_py_does(client):
    await client.mset_nonatomic(dict.fromkeys(KEYS, 1))
    assert len(KEYS) == await client.dbsize(target_nodes="primaries")
    assert set(map(str.encode, KEYS)) == set(await client.keys(target_nodes="primaries"))
    assert await client.ping(target_nodes="all") is True
    sha = await client.script_load("return 1")
    assert [True, False] == await client.execute_command("SCRIPT EXISTS", sha, "0" * 40, target_nodes="primaries")
    cursors, keys = await client.scan(target_nodes="primaries", count=1000)
    assert dict.fromkeys(names(client.get_primaries()), 0) == cursors
    assert set(map(str.encode, KEYS)) == set(keys)


async def test_nodes_are_asked_at_the_same_time(client, cluster, until):
    frozen, *others = cluster.nodes[:3]
    targets = [ClusterNode(each.host, each.port) for each in (frozen, *others)]
    frozen.freeze()
    try:
        setting = asyncio.ensure_future(client.config_set("maxmemory-samples", 7, target_nodes=targets))
        await until(lambda: all(each.call("CONFIG", "GET", "maxmemory-samples")[1] == "7" for each in others))
        assert not setting.done()
    finally:
        frozen.thaw()
    assert await setting is True


async def test_key_of_another_node_is_followed(client):
    await client.set("key", "value")
    others = [node for node in client.get_primaries() if node != client.get_node_from_key("key")]
    assert dict.fromkeys(names(others), b"value") == await client.execute_command("GET", "key", target_nodes=others)


async def test_error_of_a_named_node_is_raised(client):
    with pytest.raises(ResponseError, match="wrong number"):
        await client.execute_command("ECHO", target_nodes="all")


@pytest.mark.parametrize("target", ["primary", 5, [5]])
async def test_target_that_names_no_node_is_refused(client, target):
    with pytest.raises(TypeError, match="target_nodes must be"):
        await client.ping(target_nodes=target)


async def test_no_node_for_a_target_is_an_error(client):
    with pytest.raises(ClusterRoutingError, match="the cluster has no node"):
        await client.ping(target_nodes=[])


async def test_command_that_needs_a_node_runs_at_the_named_one(client, cluster):
    with pytest.raises(ClusterRoutingError, match="name the node by target_nodes="):
        await client.execute_command("CLUSTER MYID")
    node = client.get_primaries()[0]
    assert cluster.nodes[0].id.encode() == await client.cluster_myid(node)


async def test_node_without_slots_can_be_named(client):
    with ClusterServers(primaries=1, replicas=0, node_timeout=60) as other:
        alone = ClusterNode(other.nodes[0].host, other.nodes[0].port)
        assert alone.port == (await client.info("server", target_nodes=alone))["tcp_port"]


async def test_client_on_a_clusters_pool_takes_target_nodes(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert addresses(cluster.nodes[:3]) == (await client.echo("hi", target_nodes="primaries")).keys()
        async with client.client() as handle:
            await handle.get("key")
            with pytest.raises(ClusterRoutingError, match="a handle keeps to the node of its first key"):
                await handle.echo("hi", target_nodes="all")


async def test_none_names_no_node(client):
    assert await client.ping(target_nodes=None) is True
    async with client.client() as handle:
        assert await handle.ping(target_nodes=None) is True


# Several keys.


async def test_keys_in_many_slots_are_set_and_read(client):
    assert {True} == set(await client.mset_nonatomic({key: index for index, key in enumerate(KEYS)}))
    expected = [str(index).encode() for index in range(len(KEYS))]
    assert [*expected, None] == await client.mget_nonatomic(KEYS, "nothing")
    assert len(KEYS) == await client.exists(*KEYS)
    with pytest.raises(CrossSlotError, match="mset_nonatomic"):
        await client.mset({"a": 1, "b": 2})


@pytest.mark.parametrize("target", [None, "primaries", "replicas"])
async def test_iterating_sees_every_key(client, target, until):
    await client.mset_nonatomic(dict.fromkeys(KEYS, 1))
    for primary in client.get_primaries():
        async with client.client() as handle:
            key = next(key for key in KEYS if client.get_node_from_key(key) == primary)
            await handle.set(key, 1)
            assert await handle.wait(1, 30_000) >= 1
    found = [key async for key in client.scan_iter(count=7, target_nodes=target)]
    assert sorted(map(str.encode, KEYS)) == sorted(found)
    assert [b"key-7"] == [key async for key in client.scan_iter("key-7", target_nodes=target)]


# What the client makes.


async def test_pipeline_crosses_slots(client):
    async with client.pipeline() as pipe:
        assert isinstance(pipe, MonitoredRedisPipeline)
        for key in KEYS:
            pipe.set(key, key)
        assert [True] * len(KEYS) == await pipe.execute()
    async with client.pipeline(transaction=True) as pipe:
        pipe.get("a").get("b")
        with pytest.raises(CrossSlotError):
            await pipe.execute()
    async with client.pipeline("named", True) as pipe:
        pipe.set("{a}1", 1).get("{a}1")
        assert [True, b"1"] == await pipe.execute()


async def test_command_of_a_pipeline_names_its_node(client):
    node = client.get_replicas()[0]
    async with client.pipeline() as pipe:
        pipe.set("key", 1).execute_command("INFO", "server", target_nodes=node).get("key")
        _, found, value = await pipe.execute()
    assert (node.port, b"1") == (found["tcp_port"], value)
    async with client.pipeline() as pipe:
        pipe.execute_command("INFO", target_nodes="all")
        with pytest.raises(ClusterRoutingError, match="must name one node here, got 6"):
            await pipe.execute()
    async with client.pipeline(transaction=True) as pipe:
        pipe.execute_command("INFO", target_nodes=node)
        with pytest.raises(ClusterRoutingError, match="no place in a transaction"):
            await pipe.execute()


async def test_transaction_lock_script_and_handle_are_those_of_any_client(client):
    async def increment(pipe):
        value = int(await pipe.get("count") or 0)
        pipe.multi()
        pipe.set("count", value + 1)

    for _ in range(2):
        assert [True] == await client.transaction(increment, "count")
    async with client.lock("lock", timeout=30):
        assert await client.exists("lock")
    assert b"2" == await client.register_script("return redis.call('GET', KEYS[1])")(keys=["count"])
    async with client.client() as handle:
        assert isinstance(handle, MonitoredRedisCluster)
        await handle.set("key", 1)
        assert await handle.wait(0, 10) >= 0
    assert await client.in_context("other", None).get("count") == b"2"


async def test_node_is_named_before_the_cluster_has_slots():
    with RedisServer("--cluster-enabled", "yes") as server:
        node = ClusterNode(server.host, server.port)
        async with MonitoredRedisCluster.from_url(server.url, **UNRECORDED) as client:
            assert [True] == await client.pipeline().execute_command("PING", target_nodes=node).execute()
            assert [] == [key async for key in client.scan_iter(target_nodes=node)]
            async with client.monitor(target_node=node) as monitor:
                await client.echo("seen", target_nodes=node)
                async with asyncio.timeout(30):
                    while "ECHO seen" not in (await monitor.next_command())["command"]:
                        pass
            with pytest.raises(ClusterRoutingError, match="serves slots"):
                client.pubsub(node=node)


# Subscriptions at one node.


async def test_subscription_without_a_node_is_at_any_of_them(client):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        assert await pubsub.get_sharded_message() is None
        await client.publish("news", "hello")
        while (message := await pubsub.get_message(timeout=30)) is None:
            pass
        assert b"hello" == message["data"]


@pytest.mark.parametrize("form", ["node", "redis-py's node", "host and port"])
async def test_subscription_keeps_to_the_node_that_is_named(client, form):
    for node in client.get_nodes():
        named = {
            "node": {"node": node},
            "redis-py's node": {"node": RedisPyNode(node.host, node.port)},
            "host and port": {"host": node.host, "port": node.port},
        }[form]
        async with client.pubsub(ignore_subscribe_messages=True, **named) as pubsub:
            await pubsub.subscribe("news")
            await pubsub.get_message(timeout=30)
            counted = {each.name: await client.pubsub_numsub("news", target_nodes=each) for each in client.get_nodes()}
            assert {each: [(b"news", int(each == node.name))] for each in counted} == counted
            await client.publish("news", "hello")
            assert b"hello" == (await pubsub.get_message(timeout=30))["data"]


async def test_notifications_about_keys_arrive_from_each_primary(client):
    await client.config_set("notify-keyspace-events", "KEA")
    seen = {}
    for node in client.get_primaries():
        async with client.pubsub(node=node, ignore_subscribe_messages=True) as pubsub:
            await pubsub.psubscribe("__keyspace@0__:*")
            await pubsub.get_message(timeout=30)
            await client.mset_nonatomic(dict.fromkeys(KEYS, 1))
            expected = {key for key in KEYS if client.get_node_from_key(key) == node}
            for _ in expected:
                message = await pubsub.get_message(timeout=30)
                seen.setdefault(message["channel"].decode().partition(":")[2], []).append(node)
    assert {key: [client.get_node_from_key(key)] for key in KEYS} == seen


@pytest.mark.parametrize("named", [{"node": ClusterNode("127.0.0.1", 1)}, {"host": "nowhere", "port": 6379}])
async def test_subscription_at_an_unknown_node_is_refused(client, named):
    with pytest.raises(ClusterRoutingError, match="not known to have a node"):
        client.pubsub(**named)


@pytest.mark.parametrize("named", [{"host": "127.0.0.1"}, {"port": 6379}])
async def test_subscription_needs_host_and_port_of_its_node(client, named):
    with pytest.raises(DataError, match="both host and port"):
        client.pubsub(**named)


async def test_handle_has_its_connection_tracked_as_on_one_server(client):
    async with client.client() as handle:
        await handle.get("key")
        with pytest.warns(DeprecationWarning, match="client_tracking"):
            assert b"OK" == await handle.client_tracking_on(bcast=True, prefix=["{key}"])
        assert {b"on", b"bcast"} == set((await handle.client_trackinginfo())[1])
        with pytest.warns(DeprecationWarning, match="client_tracking"):
            assert b"OK" == await handle.client_tracking_off()
        assert [b"off"] == (await handle.client_trackinginfo())[1]


# Commands about the cluster.


async def test_commands_about_the_cluster_have_the_types_of_redis_py(client, cluster):
    primary, replica = client.get_primaries()[0], client.get_replicas()[0]
    await client.set("key", 1)
    slot = client.keyslot("key")
    assert (await client.cluster_info())["cluster_state"] == "ok"
    assert addresses(cluster.nodes) == (await client.cluster_nodes()).keys()
    assert {(0, 5460), (5461, 10922), (10923, 16383)} == (await client.cluster_slots()).keys()
    assert 3 == len(await client.cluster_shards())
    assert slot == await client.cluster_keyslot("key")
    assert 1 == await client.cluster_countkeysinslot(slot)
    assert ["key"] == await client.cluster_get_keys_in_slot(slot, 5)
    assert replica.name in {each.name for each in client.get_replicas()}
    assert 1 == len(await client.cluster_replicas(await client.cluster_myid(primary)))
    assert isinstance(await client.cluster_links(primary), list)
    assert await client.cluster_save_config("all")
    assert 0 == await client.cluster_count_failure_report(cluster.nodes[1].id)


@pytest.mark.parametrize("legacy_responses", [True, False])
@pytest.mark.parametrize("protocol", [None, 2, 3])
async def test_replies_about_the_cluster_have_the_form_of_redis_py(cluster, protocol, legacy_responses):
    arguments = {"protocol": protocol, "legacy_responses": legacy_responses}
    first = cluster.nodes[0]
    async with (
        MonitoredRedisCluster(host=first.host, port=first.port, **arguments, **UNRECORDED) as client,
        redis.asyncio.RedisCluster(host=first.host, port=first.port, **arguments) as theirs,
    ):
        node = client.get_node(first.host, first.port)
        for command in ("CLUSTER SHARDS", "CLUSTER SLOTS", "CLUSTER LINKS", "CLUSTER NODES"):
            ours = await client.execute_command(command, target_nodes=node)
            expected = await theirs.execute_command(command, target_nodes=theirs.get_node(first.host, first.port))
            assert shape(expected) == shape(ours), command


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ({"address_remap": str}, "use address_map="),
        ({"read_from_replicas": True}, "use read_from="),
        ({"reinitialize_steps": 5}, "leave it out"),
        ({"url": "redis://host"}, "use from_url"),
    ],
)
def test_argument_of_redis_pys_cluster_client_is_refused_with_advice(argument, advice):
    (name,) = argument
    with pytest.raises(TypeError, match=f"{name}= is redis-py's: {advice}"):
        MonitoredRedisCluster(host="host", **argument)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_encoding_on_which_slots_would_depend_is_refused(encoding):
    with pytest.raises(ConfigurationError, match="encoding: must be utf-8 in a cluster"):
        MonitoredRedisCluster(host="host", encoding=encoding)
    assert MonitoredRedisCluster(host="host", encoding="UTF8")


async def test_notifications_are_subscribed_one_after_the_other(client, cluster):
    await client.config_set("notify-keyspace-events", "KEA")
    async with client.keyspace_notifications() as notifications:
        for prefix in ("a", "b"):
            await notifications.subscribe_keyspace(f"{prefix}:*")
        keys = {f"{prefix}:{number}" for prefix in ("a", "b") for number in range(6)}
        await asyncio.gather(*(client.set(key, 1) for key in keys))
        seen = set()
        async with asyncio.timeout(30):
            while seen != keys:
                if (notification := await notifications.get_message(timeout=1)) is not None:
                    seen.add(notification.key)
        # One connection for each node.
        assert [1, 1, 1] == [
            node.call("CLIENT", "LIST", "TYPE", "pubsub").count("psub=2 ") for node in cluster.nodes[:3]
        ]


async def test_client_that_parses_replies_itself_names_nodes(cluster):
    class Own(MonitoredRedisCluster):
        async def parse_response(self, connection, command_name, **options):
            return await super().parse_response(connection, command_name, **options)

    async with Own.from_url(cluster.url, **UNRECORDED) as client:
        assert addresses(cluster.nodes[:3]) == (await client.echo("hi", target_nodes="primaries")).keys()
