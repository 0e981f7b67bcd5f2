"""Commands of an ordinary client on a cluster's pool: without keys, with keys in several slots, and bound to a node."""

import asyncio

import pytest
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.crc import key_slot
from redis.exceptions import NoScriptError, ResponseError
from support.sharing import UNRECORDED

from aioredis_monitored import (
    ClusterNode,
    ClusterRoutingError,
    CrossSlotError,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    ReplyDecodingError,
)
from aioredis_monitored.testing import ClusterServers

KEYS = [f"key-{number}" for number in range(200)]
FUNCTION = "#!lua name=lib\nredis.register_function('one', function() return 1 end)"
# The bits of a client's id that are the server's.
RAW_ID = (1 << 48) - 1


def knows_all(pool, cluster):
    """Refresh until a node shows all replicas: it does when it has heard from them."""
    pool.cluster_topology.request_refresh()
    return len(pool.nodes()) == len(cluster.nodes)


@pytest.fixture(scope="module")
def cluster():
    with ClusterServers(node_timeout=60) as running:
        yield running


@pytest.fixture
async def client(cluster, until):
    async with MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        await until(lambda: knows_all(pool, cluster))
        await client.flushall()
        yield client


async def fill(client):
    async with client.pipeline(transaction=False) as pipe:
        for key in KEYS:
            pipe.set(key, key)
        await pipe.execute()


def replies_of_nodes(cluster, *command):
    """Return what each node replies to a command of an administrator."""
    return [node.call(*command) for node in cluster.nodes]


async def is_valkey(client):
    return "valkey_version" in await client.info("server")


# Commands without keys: for one node.


@pytest.mark.parametrize(
    ("call", "is_expected"),
    [
        pytest.param(lambda client: client.ping(), lambda reply: reply is True, id="ping"),
        pytest.param(lambda client: client.echo("hi"), lambda reply: reply == b"hi", id="echo"),
        pytest.param(lambda client: client.info(), lambda reply: reply["cluster_enabled"] == 1, id="info"),
        pytest.param(
            lambda client: client.config_get("maxmemory"), lambda reply: reply == {"maxmemory": "0"}, id="config_get"
        ),
        pytest.param(lambda client: client.time(), lambda reply: isinstance(reply, tuple), id="time"),
        pytest.param(lambda client: client.lastsave(), lambda reply: reply is not None, id="lastsave"),
        pytest.param(lambda client: client.role(), lambda reply: reply[0] == b"master", id="role"),
        pytest.param(lambda client: client.client_info(), lambda reply: "addr" in reply, id="client_info"),
        pytest.param(lambda client: client.client_getname(), lambda reply: reply is None, id="client_getname"),
        pytest.param(lambda client: client.acl_whoami(), lambda reply: reply == "default", id="acl_whoami"),
        pytest.param(lambda client: client.acl_cat(), lambda reply: "keyspace" in reply, id="acl_cat"),
        pytest.param(lambda client: client.command_count(), lambda reply: reply > 200, id="command_count"),
        pytest.param(lambda client: client.memory_stats(), lambda reply: "keys.count" in reply, id="memory_stats"),
        pytest.param(lambda client: client.module_list(), lambda reply: isinstance(reply, list), id="module_list"),
        pytest.param(lambda client: client.function_list(), lambda reply: reply == [], id="function_list"),
        pytest.param(lambda client: client.publish("channel", "message"), lambda reply: reply == 0, id="publish"),
        pytest.param(lambda client: client.spublish("channel", "message"), lambda reply: reply == 0, id="spublish"),
        pytest.param(lambda client: client.eval("return 1", 0), lambda reply: reply == 1, id="eval"),
        pytest.param(lambda client: client.select(0), lambda reply: reply is True, id="select"),
        pytest.param(
            lambda client: client.execute_command("CLUSTER KEYSLOT", "foo"), lambda reply: reply == 12182, id="keyslot"
        ),
    ],
)
async def test_command_for_one_node_replies_as_one_server_does(client, call, is_expected):
    assert is_expected(await call(client))


async def test_random_key_is_one_of_some_node(client):
    await fill(client)
    assert (await client.randomkey()).decode() in KEYS


async def test_database_of_the_pool_is_sent_or_refused_with_the_servers_word(cluster):
    async with MonitoredConnectionPool.from_url(f"{cluster.url}/1", retries=0, **UNRECORDED) as pool:
        with pytest.raises(ResponseError, match=r"DB index is out of range|SELECT is not allowed in cluster mode"):
            await MonitoredRedisConnection(connection_pool=pool).get("key")


# Commands without keys: for all nodes, or all primaries.


async def test_settings_and_users_are_changed_at_every_node(client, cluster):
    assert await client.config_set("maxmemory-samples", 6) is True
    assert [["maxmemory-samples", "6"]] * 6 == replies_of_nodes(cluster, "CONFIG", "GET", "maxmemory-samples")
    assert await client.acl_setuser("bob", enabled=True) is True
    assert all("bob" in users for users in replies_of_nodes(cluster, "ACL", "USERS"))
    assert (await client.acl_getuser("bob"))["flags"][0] == "on"
    assert await client.acl_deluser("bob") == 1
    assert not any("bob" in users for users in replies_of_nodes(cluster, "ACL", "USERS"))
    assert isinstance(await client.acl_log(), list)
    assert await client.acl_log_reset() is True
    assert await client.config_resetstat() is True


async def test_keys_are_counted_listed_and_flushed_at_all_primaries(client):
    await fill(client)
    assert len(KEYS) == await client.dbsize()
    assert sorted(map(str.encode, KEYS)) == sorted(await client.keys())
    assert [b"key-7"] == await client.keys("key-7")
    assert await client.flushall() is True
    assert 0 == await client.dbsize()


async def test_clients_of_every_node_are_listed_and_killed(client, cluster):
    shown = {each["laddr"] for each in await client.client_list()}
    # Replicas also show their links to primaries.
    assert {f"{node.host}:{node.port}" for node in cluster.nodes} <= shown
    assert 0 == await client.client_kill_filter(_type="pubsub")
    assert await client.client_pause(1)
    assert await client.client_unpause()


async def test_scripts_are_loaded_at_every_primary(client, cluster):
    sha = await client.script_load("return {KEYS[1], ARGV[1]}")
    for key in KEYS[:20]:
        assert [key.encode(), b"value"] == await client.evalsha(sha, 1, key, "value")
    assert [True, False] == await client.script_exists(sha, "0" * 40)
    cluster.owner(0).call("SCRIPT", "FLUSH")
    assert [False] == await client.script_exists(sha)
    assert await client.script_flush() is True
    with pytest.raises(NoScriptError):
        await client.evalsha(sha, 1, "key", "value")
    with pytest.raises(ResponseError, match="NOTBUSY"):
        await client.script_kill()


async def test_functions_are_loaded_at_every_primary(client):
    assert b"lib" == await client.function_load(FUNCTION, replace=True)
    assert {1} == {await client.fcall("one", 1, key) for key in KEYS[:20]}
    assert 1 == await client.fcall("one", 0)
    assert 1 == len(await client.function_list())
    assert await client.function_delete("lib") is True
    with pytest.raises(ResponseError, match="Function not found"):
        await client.fcall("one", 0)


async def test_subscribers_of_every_node_are_counted(client, cluster):
    subscriptions = [client.pubsub() for _ in range(6)]
    for each in subscriptions:
        await each.subscribe("channel")
        assert (await each.get_message(timeout=30))["type"] == "subscribe"
    assert [(b"channel", 6), (b"other", 0)] == await client.pubsub_numsub("channel", "other")
    assert [b"channel"] == await client.pubsub_channels()
    assert 0 == await client.pubsub_numpat()
    for each in subscriptions:
        await each.aclose()


async def test_logs_of_every_node_are_read_and_reset(client):
    await client.config_set("slowlog-log-slower-than", 0)
    await client.ping()
    assert await client.slowlog_len() >= 6
    assert len(await client.slowlog_get()) >= 6
    assert await client.slowlog_reset() is True
    await client.config_set("slowlog-log-slower-than", 10_000)
    assert isinstance(await client.latency_reset(), int)
    assert await client.memory_purge() is True


# Commands that are refused, with the reason.


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        pytest.param(lambda client: client.wait(1, 1), "use it on a client\\(\\) handle", id="wait"),
        pytest.param(lambda client: client.waitaof(0, 1, 1), "use it on a client\\(\\) handle", id="waitaof"),
        pytest.param(lambda client: client.swapdb(0, 1), "each node would swap its own", id="swapdb"),
        pytest.param(lambda client: client.replicaof("NO", "ONE"), "use CLUSTER REPLICATE", id="replicaof"),
        pytest.param(lambda client: client.client_id(), "ids repeat across nodes", id="client_id"),
        pytest.param(lambda client: client.client_unblock(1), "ids repeat across nodes", id="client_unblock"),
        pytest.param(
            lambda client: client.client_kill_filter(_id="1"), "ids repeat across nodes", id="client_kill_filter"
        ),
        pytest.param(lambda client: client.execute_command("SHUTDOWN"), "ends the node", id="execute_command-2"),
    ],
)
async def test_command_that_no_node_could_run_alone_is_refused(client, call, reason):
    with pytest.raises(ClusterRoutingError, match=reason):
        await call(client)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda client: client.mset({"a": 1, "b": 1}), id="mset"),
        pytest.param(lambda client: client.msetnx({"a": 1, "b": 1}), id="msetnx"),
        pytest.param(lambda client: client.rename("a", "b"), id="rename"),
        pytest.param(lambda client: client.copy("a", "b"), id="copy"),
        pytest.param(lambda client: client.bitop("AND", "a", "b"), id="bitop"),
        pytest.param(lambda client: client.sunion("a", "b"), id="sunion"),
        pytest.param(lambda client: client.sinterstore("a", "b", "c"), id="sinterstore"),
        pytest.param(lambda client: client.smove("a", "b", 1), id="smove"),
        pytest.param(lambda client: client.zunion(["a", "b"]), id="zunion"),
        pytest.param(lambda client: client.pfcount("a", "b"), id="pfcount"),
        pytest.param(lambda client: client.lmove("a", "b"), id="lmove"),
        pytest.param(lambda client: client.blpop(["a", "b"], 1), id="blpop"),
        pytest.param(lambda client: client.blmove("a", "b", 1), id="blmove"),
        pytest.param(lambda client: client.bzpopmin(["a", "b"], 1), id="bzpopmin"),
        pytest.param(lambda client: client.xread({"a": 0, "b": 0}), id="xread"),
        pytest.param(lambda client: client.xreadgroup("group", "consumer", {"a": ">", "b": ">"}), id="xreadgroup"),
        pytest.param(
            lambda client: client.geosearchstore("a", "b", longitude=1, latitude=1, radius=1), id="geosearchstore"
        ),
        pytest.param(lambda client: client.sort("a", store="b"), id="sort"),
        pytest.param(lambda client: client.eval("return 1", 2, "a", "b"), id="eval-2"),
        pytest.param(lambda client: client.fcall("one", 2, "a", "b"), id="fcall"),
    ],
)
async def test_keys_in_several_slots_are_refused_before_anything_is_sent(client, call):
    with pytest.raises(CrossSlotError, match="keys in several slots"):
        await call(client)


# Commands with keys that are in one slot, or are split.


async def test_commands_with_several_keys_in_one_slot(client):
    assert await client.mset({"{s}a": 1, "{s}b": 2}) is True
    assert await client.copy("{s}a", "{s}c") is True
    assert await client.rename("{s}c", "{s}d") is True
    assert 1 == await client.bitop("AND", "{s}e", "{s}a", "{s}b")
    assert await client.xadd("{s}x", {"a": 1})
    assert await client.xadd("{s}y", {"a": 1})
    assert 2 == len(await client.xread({"{s}x": 0, "{s}y": 0}))
    await client.geoadd("{s}geo", [13.0, 38.0, "place"])
    assert 1 == await client.geosearchstore("{s}near", "{s}geo", longitude=13, latitude=38, radius=1, unit="km")
    await client.rpush("{s}list", 2, 1)
    assert 2 == await client.sort("{s}list", store="{s}sorted")
    assert [b"{s}list", b"2"] == list(await client.blpop(["{s}none", "{s}list"], 1))
    assert await client.memory_usage("{s}a") > 0
    assert b"int" == await client.object("encoding", "{s}a")
    assert b"v" == await client.eval(
        "redis.call('SET', KEYS[1], ARGV[1]) return redis.call('GET', KEYS[1])", 1, "k", "v"
    )


async def test_sort_by_patterns_needs_them_in_the_slot(client):
    await client.rpush("{s}list", 2, 1)
    await client.mset({"{s}w_1": 5, "{s}w_2": 4, "{s}v_1": "one", "{s}v_2": "two"})
    if await is_valkey(client):
        assert [b"two", b"one"] == await client.sort("{s}list", by="{s}w_*", get="{s}v_*")
    with pytest.raises(ResponseError, match="luster mode"):
        await client.sort("{s}list", by="w_*")


async def test_keys_in_many_slots_are_split(client):
    await fill(client)
    assert [*map(str.encode, KEYS), None] == await client.mget([*KEYS, "nothing"])
    assert len(KEYS) == await client.exists(*KEYS)
    assert len(KEYS) == await client.touch(*KEYS)
    assert 100 == await client.delete(*KEYS[:100])
    assert 100 == await client.unlink(*KEYS)


# SCAN, whose cursor names the node.


@pytest.mark.parametrize("passed_as", [int, str, lambda cursor: str(cursor).encode()], ids=["int", "str", "bytes"])
async def test_loop_of_scan_sees_every_key_once(client, passed_as):
    await fill(client)
    cursor, seen, rounds = 0, [], 0
    while cursor or not rounds:
        cursor, keys = await client.scan(passed_as(cursor), count=10)
        seen += keys
        rounds += 1
    assert sorted(map(str.encode, KEYS)) == sorted(set(seen))
    assert rounds > 3


async def test_scan_refuses_what_is_no_cursor(client):
    with pytest.raises(ResponseError, match="invalid cursor"):
        await client.scan("nonsense")


@pytest.fixture
async def changing(make_pool):
    """Yield a cluster that the test changes, and a client on it."""
    with ClusterServers(node_timeout=60) as running:
        pool = make_pool(running.url)
        yield running, MonitoredRedisConnection(connection_pool=pool)
        await pool.aclose()


async def test_scan_sees_every_key_while_a_replica_takes_over(changing):
    cluster, client = changing
    await fill(client)
    cursor, keys = await client.scan(count=10)
    seen = set(keys)
    for key in (KEYS[0], next(key for key in KEYS if cluster.owner(key) is not cluster.owner(KEYS[0]))):
        async with client.client() as handle:
            await handle.set(key, key)
            assert await handle.wait(1, 60_000) == 1
        await asyncio.to_thread(cluster.failover, cluster.replica_of(cluster.owner(key)))
    while cursor:
        cursor, keys = await client.scan(cursor, count=10)
        seen.update(keys)
    assert set(map(str.encode, KEYS)) == seen


@pytest.mark.slow
async def test_scan_sees_every_key_while_slots_move_to_a_new_node(changing):
    cluster, client = changing
    await fill(client)
    cursor, keys = await client.scan(count=10)
    seen = set(keys)
    node = await asyncio.to_thread(cluster.add_node)
    for key in KEYS[:20]:
        await asyncio.to_thread(cluster.migrate, key_slot(key.encode()), node)
    while cursor:
        cursor, keys = await client.scan(cursor, count=10)
        seen.update(keys)
    assert set(map(str.encode, KEYS)) == seen
    assert KEYS[0].encode() == await client.get(KEYS[0])


# Ids of clients, which repeat across nodes.


async def handle_on(client, key):
    """Return a handle that keeps to the node of a key, and its id."""
    handle = client.client()
    await handle.get(key)
    return handle, await handle.client_id()


def raw_ids(handles):
    return sorted(client_id & RAW_ID for _, client_id in handles.values())


async def test_unblock_reaches_the_node_of_the_id(client, cluster, until):
    mine = "key-0"
    other = next(key for key in KEYS if cluster.owner(key) is not cluster.owner(mine))
    handles = {mine: await handle_on(client, mine), other: await handle_on(client, other)}
    opened = [handle for handle, _ in handles.values()]
    # Until both nodes have given the same id: each connection takes the next one, also those of cluster.owner().
    owners = {key: cluster.owner(key) for key in handles}
    while behind := raw_ids(handles)[1] - raw_ids(handles)[0]:
        key = min(handles, key=lambda key: handles[key][1] & RAW_ID)
        for _ in range(behind - 1):
            owners[key].call("PING")
        handles[key] = await handle_on(client, key)
        opened.append(handles[key][0])
    (blocked, blocked_id), (innocent, innocent_id) = handles[mine], handles[other]
    assert blocked_id != innocent_id
    tag, other_tag = f"{{{mine}}}list", f"{{{other}}}list"
    waiting = asyncio.ensure_future(blocked.blpop(tag, 60))
    untouched = asyncio.ensure_future(innocent.blpop(other_tag, 60))
    for key in (mine, other):
        await until(lambda key=key: "blocked_clients:1" in owners[key].call("INFO", "clients"))
    assert 1 == await client.client_unblock(blocked_id)
    assert await waiting is None
    assert 0 == await client.client_unblock(blocked_id)
    assert "blocked_clients:1" in owners[other].call("INFO", "clients")
    assert not untouched.done()
    assert 1 == await client.client_unblock(innocent_id, error=True)
    with pytest.raises(ResponseError, match="UNBLOCKED"):
        await untouched
    for handle in opened:
        await handle.aclose()


async def test_kill_by_id_reaches_the_node_of_the_id(client, cluster):
    handle, client_id = await handle_on(client, "key")
    assert 1 == await client.client_kill_filter(_id=str(client_id))
    assert 0 == await client.client_kill_filter(_id=str(client_id))
    assert await handle.get("key") is None
    assert client_id != await handle.client_id()
    await handle.aclose()


@pytest.mark.parametrize(
    "filters",
    [
        {"_type": "normal"},
        {"_type": "normal", "skipme": True},
        {"skipme": False, "user": "default"},
        pytest.param({"user": "id"}, id="a user who is called as the option"),
    ],
)
async def test_kill_by_id_and_other_filters_reaches_the_node_of_the_id(client, cluster, filters):
    if user := filters.get("user"):
        for node in cluster.nodes:
            node.call("ACL", "SETUSER", user, "on", "nopass", "+@all", "~*")
    handle, client_id = await handle_on(client, "key")
    assert int(user != "id") == await client.client_kill_filter(_id=client_id, **filters)
    await handle.aclose()


async def test_list_by_id_reaches_the_node_of_the_id(client, cluster):
    (handle, client_id), (second, second_id) = await handle_on(client, "key"), await handle_on(client, "key")
    elsewhere = next(key for key in KEYS if cluster.owner(key) is not cluster.owner("key"))
    other, other_id = await handle_on(client, elsewhere)
    raw = {str(each & RAW_ID) for each in (client_id, second_id)}

    for caller in (client, handle, other):
        assert raw == {each["id"] for each in await caller.client_list(client_id=[client_id, second_id])}
        with pytest.raises(ClusterRoutingError, match="clients of several nodes"):
            await caller.client_list(client_id=[client_id, other_id])
    # Named nodes take the number as well, and the one of them that it is about finds the client.
    listed = await client.execute_command("CLIENT LIST", "ID", client_id, target_nodes="primaries")
    assert [1, 0, 0] == sorted((len(clients) for clients in listed.values()), reverse=True)
    for each in (handle, second, other):
        await each.aclose()


async def test_tracking_is_redirected_to_a_client_of_the_same_node_alone(client, cluster):
    receiver, receiver_id = await handle_on(client, "key")
    elsewhere = next(key for key in KEYS if cluster.owner(key) is not cluster.owner("key"))
    async with client.client() as handle:
        tracking = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "redirect", "REDIRECT", receiver_id, "NOLOOP")
        await handle.get("key")
        assert b"OK" == await handle.execute_command(*tracking)
        assert receiver_id & RAW_ID == await handle.client_getredir()
    async with client.client() as handle:
        await handle.get(elsewhere)
        with pytest.raises(ClusterRoutingError, match="keeps to no connection there"):
            await handle.execute_command(*tracking)
    await receiver.aclose()


async def test_raw_id_works_at_a_named_node(client, cluster):
    handle, client_id = await handle_on(client, "key")
    owner = cluster.owner("key")
    node = ClusterNode(owner.host, owner.port)
    call = client.execute_command("CLIENT KILL", "ID", client_id & RAW_ID, target_nodes=node)
    assert 1 == await call
    await handle.aclose()


async def test_handle_keeps_to_the_node_of_its_first_key(client, cluster):
    async with client.client() as handle:
        await handle.set("key", 1)
        assert (await handle.info("server"))["tcp_port"] == cluster.owner("key").port
        assert await handle.wait(0, 1) >= 0


@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_pipeline_takes_commands_that_any_node_answers(cluster, multiplex):
    async with MonitoredRedisConnection.from_url(cluster.url, multiplex=multiplex, **UNRECORDED) as client:
        pipe = client.pipeline(transaction=False)
        pipe.ping().set("a", 1).spublish("channel", "message").publish("channel", "message").get("a")

        assert [True, True, 0, 0, b"1"] == await pipe.execute()


async def test_handle_unblocks_a_client_of_another_node(client, cluster, until):
    blocked, blocked_id = await handle_on(client, "key-0")
    elsewhere = next(key for key in KEYS if cluster.owner(key) is not cluster.owner("key-0"))
    owner = cluster.owner("key-0")
    async with client.client() as handle:
        await handle.get(elsewhere)
        waiting = asyncio.ensure_future(blocked.blpop("{key-0}list", 60))
        await until(lambda: "blocked_clients:1" in owner.call("INFO", "clients"))

        assert 1 == await handle.client_unblock(blocked_id)
        assert await waiting is None
    await blocked.aclose()


async def test_clients_are_killed_by_their_address_and_by_other_filters(client):
    async with client.client() as handle:
        await handle.get("key")
        address = (await handle.client_info())["addr"]

        assert await client.client_kill(address) is True
        assert await handle.get("key") is None
        assert 1 <= await client.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize("filters", [("ID", "text"), ("ID", "-1"), ("USER", str(1 << 48), "ID", "1")])
async def test_filter_that_names_no_client_of_a_node_is_refused(client, filters):
    with pytest.raises(ClusterRoutingError, match="ids repeat across nodes"):
        await client.execute_command("CLIENT", "KILL", *filters)


async def test_scan_ends_where_there_is_no_further_node_and_raises_the_error_of_a_node(client):
    await client.set("key", 1)

    assert (0, []) == await client.scan(10_000)
    with pytest.raises(ResponseError, match="syntax error"):
        await client.execute_command("SCAN", 0, "NONSENSE", 1)


@pytest.mark.usefixtures("client")
async def test_reply_of_several_nodes_that_is_no_text_is_refused_or_returned_as_it_is(cluster):
    async with MonitoredRedisConnection.from_url(cluster.url, decode_responses=True, **UNRECORDED) as client:
        await client.set(b"\xff", 1)
        with pytest.raises(ReplyDecodingError):
            await client.keys()
        assert [b"\xff"] == await client.execute_command("KEYS", "*", **{NEVER_DECODE: True})
        assert [] == await client.execute_command("SCRIPT EXISTS", **{EMPTY_RESPONSE: []})


async def test_command_names_its_nodes_on_a_pool_without_shared_connections(cluster):
    async with MonitoredRedisConnection.from_url(cluster.url, multiplex=False, **UNRECORDED) as client:
        assert len(cluster.primaries()) == len(await client.echo("hi", target_nodes="primaries"))


async def test_pool_names_no_node_for_keys_of_several(client):
    of = client.connection_pool.of
    assert of(("GET", "key")) is of(("SET", "key", 1))
    with pytest.raises(CrossSlotError, match="MGET has keys in several slots, and is to go to one node"):
        of(("MGET", "a", "b"))
    with pytest.raises(ClusterRoutingError, match="FLUSHALL"):
        of(("FLUSHALL",))
