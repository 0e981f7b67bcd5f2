"""Whether a pool's servers take calls, as ``health()`` finds it out: on servers that do, and on those that do not."""

import asyncio
import time

import pytest
from redis.credentials import CredentialProvider
from redis.exceptions import ResponseError
from support.internals import move_clock_of_health
from support.relaying import hang_up, no_protocol, redis_5, relay

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, PoolHealth, ServerHealth
from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer

BOUND = 30.0
# Rights of an application, without EVAL and INFO.
FEW_RIGHTS = ("on", ">secret", "~shop:*", "resetchannels", "-@all", "+@connection", "+@read", "+@write")


@pytest.fixture
async def admin(own_server):
    async with MonitoredRedisConnection.from_url(own_server.url) as client:
        yield client


@pytest.fixture
def own_pool(make_pool, own_server, multiplex):
    return make_pool(own_server.url, multiplex=multiplex)


async def test_health_of_a_primary(make_pool, server, multiplex):
    pool = make_pool(f"{server.url}/3", multiplex=multiplex)

    health = await pool.health()

    assert health.ok
    assert (health.topology, health.role, health.writable, health.replicas) == ("standalone", "primary", True, 0)
    assert 0 < health.latency < BOUND
    assert health.problem == ""
    assert health.servers == (ServerHealth(f"{server.host}:{server.port}/3", health.latency, "primary", True, 0),)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode_responses", [False, True])
async def test_health_does_not_depend_on_how_replies_are_read(make_pool, server, multiplex, protocol, decode_responses):
    pool = make_pool(server.url, multiplex=multiplex, protocol=protocol, decode_responses=decode_responses)

    health = await pool.health()

    assert (health.ok, health.role, health.writable, health.replicas) == (True, "primary", True, 0)


async def test_health_writes_nothing_and_leaves_one_span(client, inspector, telemetry):
    await client.connection_pool.health()

    assert inspector.dbsize() == 0
    assert telemetry.tree() == "PING"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"maxmemory": 1}, "OOM"),
        ({"min-replicas-to-write": 1}, "NOREPLICAS"),
    ],
)
async def test_health_of_a_primary_that_refuses_writes(own_pool, admin, settings, problem):
    for name, value in settings.items():
        await admin.config_set(name, value)

    health = await own_pool.health()

    assert (health.ok, health.role, health.writable) == (False, "primary", False)
    assert health.problem.startswith(f"writes are refused: {problem} ")
    assert health.latency is not None

    for name in settings:
        await admin.config_set(name, 0)
    assert (await own_pool.health()).ok


async def test_health_of_a_primary_that_cannot_save(tmp_path, make_pool, multiplex):
    with RedisServer("--dir", str(tmp_path), "--dbfilename", "x.rdb") as server:
        (tmp_path / "x.rdb").mkdir()
        server.call("CONFIG", "SET", "save", "1000 1000")
        server.call("BGSAVE")
        async with asyncio.timeout(BOUND):
            while "rdb_last_bgsave_status:err" not in server.call("INFO", "persistence"):
                await asyncio.sleep(0.01)
        health = await make_pool(server.url, multiplex=multiplex).health()

    assert health.problem.startswith("writes are refused: MISCONF ")


async def test_health_of_a_replica(own_pool, admin):
    await admin.replicaof("127.0.0.1", 1)

    health = await own_pool.health()

    assert (health.ok, health.role, health.writable, health.replicas) == (False, "replica", False, 0)
    assert health.problem.startswith("writes are refused: READONLY ")


async def test_health_of_a_replica_that_accepts_writes(own_pool, admin):
    await admin.config_set("replica-read-only", "no")
    await admin.replicaof("127.0.0.1", 1)

    health = await own_pool.health()

    assert (health.ok, health.role, health.writable) == (True, "replica", True)


async def test_what_a_user_may_not_know_is_unknown_and_asked_for_once(admin, own_server, make_pool, multiplex):
    await admin.execute_command("ACL", "SETUSER", "shop", *FEW_RIGHTS)
    await admin.acl_log_reset()
    pool = make_pool(own_server.url, username="shop", password="secret", multiplex=multiplex)

    for _ in range(3):
        health = await pool.health()

        assert (health.ok, health.role, health.writable, health.replicas) == (True, "primary", None, None)
    assert sorted(each["object"] for each in await admin.acl_log()) == ["eval", "info"]
    assert {each["count"] for each in await admin.acl_log()} == {1}


async def test_replica_is_not_ok_for_a_user_that_may_not_try_to_write(admin, own_server, make_pool):
    await admin.execute_command("ACL", "SETUSER", "shop", *FEW_RIGHTS)
    await admin.replicaof("127.0.0.1", 1)

    health = await make_pool(own_server.url, username="shop", password="secret").health()

    assert (health.ok, health.role, health.writable) == (False, "replica", False)
    assert health.problem == "writes are refused: it is a replica"


async def test_replicas_are_counted(make_pool):
    with RedisServer() as primary, RedisServer("--replicaof", primary.host, str(primary.port)):
        pool = make_pool(primary.url)
        async with asyncio.timeout(BOUND):
            while (await pool.health()).replicas != 1:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("multiplex", [True, False])
async def test_health_of_a_server_out_of_reach_says_so(multiplex):
    async with MonitoredConnectionPool.from_url("redis://127.0.0.1:1", name="gone", multiplex=multiplex) as pool:
        health = await pool.health()

    assert (health.ok, health.latency, health.role, health.writable, health.replicas) == (False, None, None, None, None)
    assert health.problem.startswith("Error 111 connecting to 127.0.0.1:1")


async def test_health_of_a_silent_server_takes_no_longer_than_socket_timeout(make_pool, server, multiplex):
    async with FaultProxy(server.host, server.port) as proxy:
        pool = make_pool(proxy.url, multiplex=multiplex, socket_timeout=0.2)
        assert (await pool.health()).ok
        proxy.silent = True
        began = time.monotonic()

        health = await pool.health()

        assert not health.ok
        assert time.monotonic() - began < 7


async def test_health_of_a_server_that_holds_back_writes_says_so(make_pool, own_server, admin, multiplex):
    pool = make_pool(own_server.url, multiplex=multiplex, socket_timeout=0.2)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    await admin.execute_command("CLIENT", "PAUSE", 1000 * int(BOUND), "WRITE")

    asking = asyncio.create_task(pool.health())
    while not asking.done():
        # Reads are not held back behind the question.
        assert await client.get("key") is None
    health = asking.result()

    await admin.execute_command("CLIENT", "UNPAUSE")
    assert (health.ok, health.writable) == (False, None)
    assert health.latency is not None
    assert health.problem in {"no reply in 0.2 s", f"Timeout reading from {own_server.host}:{own_server.port}"}
    assert (await pool.health()).ok


async def test_health_with_a_wrong_password_says_so(own_server, admin, make_pool, multiplex):
    await admin.config_set("requirepass", "right")

    health = await make_pool(own_server.url, password="wrong", name="locked", multiplex=multiplex).health()

    assert not health.ok
    assert "invalid username-password pair" in health.problem
    assert "wrong" not in health.problem.replace("wrong number", "")


async def test_health_of_a_closed_pool_says_so(server):
    async with MonitoredConnectionPool.from_url(server.url, name="closed") as pool:
        assert (await pool.health()).ok

    health = await pool.health()

    assert health == PoolHealth("standalone", health.servers, "pool 'closed' is closed")


async def test_health_reports_what_a_credential_provider_raises(server, make_pool, multiplex):
    class Broken(CredentialProvider):
        async def get_credentials_async(self):
            raise LookupError("no vault")

    pool = make_pool(server.url, credential_provider=Broken(), multiplex=multiplex)

    # Not the text, which may quote secrets.
    assert (await pool.health()).problem == "LookupError"


async def test_health_of_an_exhausted_pool_says_so(make_pool, server):
    pool = make_pool(server.url, name="full", max_connections=1, timeout=0.05)
    held = await pool.get_connection()

    health = await pool.health()

    await pool.release(held)
    assert health.problem == "pool 'full': no connection became free in 0.05 s"
    assert (await pool.health()).ok


async def test_cancelled_health_leaves_no_reply_to_others(make_pool, server, multiplex):
    pool = make_pool(server.url, multiplex=multiplex, max_connections=2)
    client = MonitoredRedisConnection(connection_pool=pool)
    for turns in range(30):
        asking = asyncio.create_task(pool.health())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        assert await client.echo("mine") == b"mine"


async def test_health_under_sentinel_is_that_of_the_primary(sentinels):
    async with MonitoredConnectionPool.from_url(sentinels.url) as pool:
        health = await pool.health()

    primary = sentinels.primary()
    assert (health.ok, health.topology, health.role, health.writable) == (True, "sentinel", "primary", True)
    assert health.replicas == 2
    assert [each.server for each in health.servers] == [f"{primary.host}:{primary.port}"]


async def test_health_under_sentinels_out_of_reach_says_so():
    async with MonitoredConnectionPool.from_url("redis+sentinel://127.0.0.1:1/mymaster", socket_timeout=0.5) as pool:
        health = await pool.health()

    assert not health.ok
    assert "sentinel" in health.problem


async def test_health_of_a_cluster_is_that_of_its_primaries(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url) as pool:
        health = await pool.health()

    assert (health.ok, health.topology, health.role, health.writable) == (True, "cluster", "primary", True)
    assert health.replicas == 3
    assert len(health.servers) == 3
    assert health.latency == max(each.latency for each in health.servers)


async def test_health_of_a_cluster_names_the_node_that_is_gone_and_slots_that_no_node_serves():
    with ClusterServers(primaries=3, replicas=0) as servers:
        async with MonitoredConnectionPool.from_url(servers.url, socket_timeout=2.0) as pool:
            assert (await pool.health()).ok
            killed, other, _ = servers.primaries()
            killed.kill()

            health = await pool.health()

            assert (health.ok, health.latency) == (False, None)
            assert f"{killed.host}:{killed.port}" in health.problem
            assert f"{other.host}:{other.port}" not in health.problem
            assert [each.ok for each in health.servers].count(False) == 1

    with ClusterServers(primaries=2, replicas=0) as servers:
        owner = servers.owner(0)
        for node in servers.nodes:
            node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
        owner.call("CLUSTER", "DELSLOTS", 0)
        async with MonitoredConnectionPool.from_url(f"redis+cluster://{owner.host}:{owner.port}") as pool:
            health = await pool.health()

    assert health.problem == "no node serves 1 of 16384 slots"
    assert health.writable


async def test_health_of_a_cluster_out_of_reach_says_so():
    async with MonitoredConnectionPool.from_url("redis+cluster://127.0.0.1:1", socket_timeout=1.0) as pool:
        health = await pool.health()

    assert (health.ok, health.servers, health.latency, health.role) == (False, (), None, None)
    assert (health.writable, health.replicas) == (None, None)
    assert health.problem


@pytest.mark.parametrize("reply_to", [redis_5, no_protocol, hang_up])
async def test_health_in_resp2_asks_nothing_at_which_a_proxy_hangs_up(make_pool, own_server, reply_to, multiplex):
    async with relay(own_server, reply_to) as port:
        health = await make_pool(f"redis://127.0.0.1:{port}", protocol=2, multiplex=multiplex).health()

    assert (health.ok, health.role, health.writable, health.replicas) == (True, "primary", True, 0)


async def test_handshake_that_a_server_repeats_is_in_no_error(make_pool, multiplex):
    with RedisServer(password="hunter2") as server:
        async with relay(server, redis_5) as port:
            pool = make_pool(f"redis://:hunter2@127.0.0.1:{port}", multiplex=multiplex)
            client = MonitoredRedisConnection(connection_pool=pool)
            with pytest.raises(ResponseError) as caught:
                await client.get("key")
            health = await pool.health()

    assert str(caught.value) == health.problem == "unknown command `HELLO`"
    assert "hunter2" not in repr(caught.value.args)


async def test_unknown_right_is_asked_for_again_later(admin, own_server, make_pool, multiplex, monkeypatch):
    await admin.execute_command("ACL", "SETUSER", "shop", *FEW_RIGHTS)
    pool = make_pool(own_server.url, username="shop", password="secret", multiplex=multiplex)
    assert (await pool.health()).writable is None
    await admin.execute_command("ACL", "SETUSER", "shop", "+eval", "+info")
    assert (await pool.health()).writable is None

    move_clock_of_health(monkeypatch, 601)

    assert ((await pool.health()).writable, (await pool.health()).replicas) == (True, 0)


async def test_error_that_passes_does_not_end_the_questions(own_server, admin, make_pool, multiplex):
    pool = make_pool(own_server.url, multiplex=multiplex, socket_timeout=BOUND)
    await admin.config_set("min-replicas-to-write", 1)
    assert not (await pool.health()).ok
    await admin.config_set("min-replicas-to-write", 0)
    assert (await pool.health()).writable


async def test_health_of_an_exhausted_pool_takes_no_longer_than_that_of_a_silent_server(make_pool, server):
    pool = make_pool(server.url, max_connections=1, timeout=1000.0, socket_timeout=0.1, socket_connect_timeout=0.1)
    held = await pool.get_connection()

    health = await pool.health()

    await pool.release(held)
    assert health.problem == "no connection became free in 0.2 s"


async def test_sentinel_that_is_taken_for_a_server_is_named(sentinels):
    sentinel = sentinels.sentinels[0]
    async with MonitoredConnectionPool.from_url(f"redis://{sentinel.host}:{sentinel.port}") as pool:
        health = await pool.health()

    assert (health.ok, health.problem) == (False, "it is a sentinel: use a redis+sentinel:// URL")


async def test_health_of_a_cluster_that_takes_no_calls_says_so():
    with ClusterServers(primaries=3, replicas=0) as servers:
        async with MonitoredConnectionPool.from_url(servers.url) as pool:
            assert (await pool.health()).ok
            owner = servers.owner("a")
            slot = owner.call("CLUSTER", "KEYSLOT", "a")
            for node in servers.nodes:
                node.call("CLUSTER", "DELSLOTS", slot)
            async with asyncio.timeout(BOUND):
                while "cluster_state:fail" not in servers.nodes[0].call("CLUSTER", "INFO"):
                    await asyncio.sleep(0.01)
            health = await pool.health()

    assert not health.ok
    assert "the cluster's state is fail" in health.problem
