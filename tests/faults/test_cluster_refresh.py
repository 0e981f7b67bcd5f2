"""Refreshes of a cluster of which no node answers: how long they take, what callers get, and how they end."""

import asyncio
import secrets
import socket
import threading

import pytest
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from support.internals import refresh_topology, set_time_for_asking_nodes
from support.names import replace_name_servers

from aioredis_monitored import ClusterNode, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers, RedisServer
from aioredis_monitored.testing.server import free_ports

# Far beyond the bounds of refreshes, of which none takes more than 6 s.
STALL_SECONDS = 100.0
MAX_REFRESH_SECONDS = 65.0


@pytest.fixture
async def _slow_name_servers(monkeypatch):
    """Let no name that ends with ``.example`` be resolved until the end of the test."""
    ended = threading.Event()

    def answer(_):
        ended.wait(STALL_SECONDS)
        raise socket.gaierror("no name server answers")

    replace_name_servers(monkeypatch, answer)
    yield
    ended.set()


@pytest.fixture
def silent_nodes(monkeypatch):
    """Yield the URL of a name with hundreds of addresses, at all of which connections are accepted, and no more."""
    replace_name_servers(
        monkeypatch, lambda _: [f"127.0.{number // 100 + 1}.{number % 100 + 1}" for number in range(400)]
    )
    with socket.create_server(("0.0.0.0", 0), backlog=1024) as deaf:  # noqa: S104 - for all of them
        yield f"redis+cluster://cluster.example:{deaf.getsockname()[1]}"


async def failure_of(call):
    """Return the error of a call, and the seconds that it has taken."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises((RedisConnectionError, RedisTimeoutError)) as caught:
        await call
    return caught.value, loop.time() - began


# Bounds.


@pytest.mark.usefixtures("_slow_name_servers")
@pytest.mark.parametrize("url", ["redis+cluster://{}", "redis+sentinel://{}/main"])
@pytest.mark.parametrize("timeout", [0.5, 3])
async def test_call_fails_in_time_while_names_are_not_resolved(make_pool, url, timeout):
    # What another test did not wait for would be an answer.
    names = (f"{secrets.token_hex(4)}.example" for _ in range(3))
    pool = make_pool(url.format(",".join(names)), socket_timeout=timeout)
    error, seconds = await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))

    assert "its name is being resolved" in str(error)
    assert seconds < MAX_REFRESH_SECONDS


@pytest.mark.usefixtures("_slow_name_servers")
async def test_name_that_is_not_resolved_keeps_no_other_from_being_asked(cluster, make_pool):
    pool = make_pool(f"redis+cluster://a.example,localhost:{cluster.nodes[0].port},b.example", socket_timeout=30)

    assert await MonitoredRedisConnection(connection_pool=pool).get("key") is None


async def test_start_node_whose_name_cannot_be_resolved_is_named_in_the_log(make_pool, monkeypatch, caplog):
    def answer(_):
        raise socket.gaierror("no such name")

    replace_name_servers(monkeypatch, answer)
    pool = make_pool(f"redis+cluster://nowhere.example,127.0.0.1:{free_ports(1)[0]}", name="mine", retries=0)
    await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))

    assert "pool 'mine': the start node nowhere.example:6379 cannot be resolved: no such name" in caplog.text


async def test_refresh_ends_in_time_however_many_addresses_are_silent(silent_nodes, make_pool):
    pool = make_pool(silent_nodes, socket_timeout=STALL_SECONDS, retries=0)
    error, seconds = await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))

    assert "no node of the cluster says which node serves which slots: asked cluster.example:" in str(error)
    assert seconds < MAX_REFRESH_SECONDS


async def test_refresh_of_a_single_node_that_is_silent_ends_in_time(own_server, make_pool):
    own_server.freeze()
    pool = make_pool(f"redis+cluster://{own_server.host}:{own_server.port}", socket_timeout=STALL_SECONDS, retries=0)
    error, seconds = await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))
    own_server.thaw()

    assert "no node of the cluster says which node serves which slots" in str(error)
    assert seconds < MAX_REFRESH_SECONDS


async def test_call_waits_for_a_refresh_no_longer_than_for_a_reply(silent_nodes, make_pool, monkeypatch):
    set_time_for_asking_nodes(monkeypatch, STALL_SECONDS)
    pool = make_pool(silent_nodes, socket_timeout=0.5)
    error, seconds = await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))

    assert RedisTimeoutError is type(error)
    assert str(error).startswith(
        "no answer in 0.5 s: no node of the cluster says which node serves which slots: asked "
    )
    assert seconds < MAX_REFRESH_SECONDS


# Nodes that serve no slots, or not of this cluster.


@pytest.fixture
def stranger():
    """Yield a node of no cluster, which knows no node that serves a slot."""
    with RedisServer("--cluster-enabled", "yes") as running:
        yield running


async def test_node_outside_the_cluster_that_was_named_is_not_asked_for_the_slots(cluster, make_pool, stranger):
    pool = make_pool(cluster.url, socket_timeout=30)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.get("key")
    known = pool.nodes()
    assert await client.execute_command("PING", target_nodes=ClusterNode(stranger.host, stranger.port))
    for node in known:
        # All others would be asked first.
        pool.cluster_topology.request_refresh(pool.pool_of(node))
    await refresh_topology(pool)

    assert known == pool.nodes()
    assert 0 == stranger.call("INFO", "commandstats").count("cmdstat_cluster")


async def test_start_node_outside_the_cluster_is_passed_over(cluster, make_pool, stranger):
    node = cluster.nodes[0]
    for _ in range(10):  # they are asked in random order
        pool = make_pool(f"redis+cluster://{stranger.host}:{stranger.port},{node.host}:{node.port}", socket_timeout=30)
        await refresh_topology(pool)

        assert 3 == len(pool.primaries())


async def test_node_without_slots_is_not_believed_while_those_with_slots_are_silent(make_pool, stranger):
    with ClusterServers(replicas=0, node_timeout=60) as servers:
        pool = make_pool(f"{servers.url},{stranger.host}:{stranger.port}", socket_timeout=30)
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set("key", "value")
        for node in servers.nodes:
            node.freeze()
        with pytest.raises(RedisConnectionError, match="no node of the cluster says"):
            await refresh_topology(pool)
        for node in servers.nodes:
            node.thaw()

        assert 3 == len(pool.primaries())
        assert b"value" == await client.get("key")


async def test_refresh_that_fails_counts_each_node_once(make_pool):
    with ClusterServers(replicas=0) as servers:
        # One by its address, one by a name, and one that is found.
        given = f"127.0.0.1:{servers.nodes[0].port},localhost:{servers.nodes[1].port}"
        pool = make_pool(f"redis+cluster://{given}", socket_timeout=30)
        await MonitoredRedisConnection(connection_pool=pool).get("key")
        for node in servers.nodes:
            node.kill()
        # The first one finds out what the name stands for.
        for _ in range(2):
            with pytest.raises(RedisConnectionError) as caught:
                await refresh_topology(pool)

    assert f": asked {given.replace(',', ', ')} and 1 others; the last one: " in str(caught.value)


# What callers get.


async def test_each_caller_of_a_refresh_that_fails_gets_an_error_of_its_own(make_pool):
    client = MonitoredRedisConnection(
        connection_pool=make_pool(f"redis+cluster://127.0.0.1:{free_ports(1)[0]}", socket_timeout=1)
    )
    pipelines = [client.pipeline(transaction=False).get(f"key:{number}") for number in range(10)]
    calls = [*(pipeline.execute() for pipeline in pipelines), *(client.get("key") for _ in range(10))]
    errors = await asyncio.gather(*calls, return_exceptions=True)

    assert {RedisConnectionError} == {type(each) for each in errors}
    assert 20 == len({id(each) for each in errors})
    assert all(str(error).count("no node of the cluster") == 1 for error in errors)


class Forgetful(CredentialProvider):
    def get_credentials(self):
        raise LookupError("no credentials today")


async def test_refresh_that_a_credential_provider_fails_says_at_which_node_and_why(cluster, make_pool, caplog):
    pool = make_pool(cluster.url, socket_timeout=1, credential_provider=Forgetful())
    error, _ = await failure_of(MonitoredRedisConnection(connection_pool=pool).get("key"))

    assert RedisConnectionError is type(error)
    assert str(error).startswith("no node of the cluster says which node serves which slots: asked ")
    assert str(error).endswith(": no credentials today")
    assert [] == [each.message for each in caplog.records if each.levelname == "ERROR"]


async def test_readiness_check_that_finds_no_node_names_the_pool(make_pool):
    pool = make_pool(f"redis+cluster://127.0.0.1:{free_ports(1)[0]}", name="main", socket_timeout=1)
    error, _ = await failure_of(pool.ping())

    assert str(error).startswith("pool 'main' (127.0.0.1:")
    assert 1 == str(error).count("pool ")


# Closing.


async def test_topology_that_is_closed_while_nodes_are_silent_waits_for_the_end_of_the_refresh(
    silent_nodes, make_pool, until
):
    before = asyncio.all_tasks()
    pool = make_pool(silent_nodes, socket_timeout=STALL_SECONDS)
    pool.cluster_topology.request_refresh()
    # Its own task, and those that ask nodes.
    await until(lambda: len(asyncio.all_tasks() - before) > 2)
    # Closing the pool goes on for some ticks after that, in which the tasks might end by themselves.
    await pool.cluster_topology.aclose()

    assert set() == asyncio.all_tasks() - before
