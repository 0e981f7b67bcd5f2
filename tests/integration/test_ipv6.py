"""Servers with IPv6 addresses, and names that have addresses of both kinds of which one alone is listened on."""

import asyncio
import os
import socket

import pytest
import redis.exceptions
from support.internals import refresh_topology

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisCluster, MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers, RedisServer
from aioredis_monitored.testing.server import free_ports

KEYS = [f"key:{number}" for number in range(30)]
BOTH = ("--bind", "127.0.0.1", "::1")


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
names_in_python = pytest.mark.skipif(
    "AIOREDIS_MONITORED_UVLOOP" in os.environ, reason="uvloop does not resolve names in Python"
)


def hosts_of(node):
    return {host for entry in node.call("CLUSTER", "SLOTS") for host, *_ in entry[2:]}


@pytest.fixture
async def ipv6_cluster(until):
    """Yield a cluster whose nodes announce ::1, and listen there alone."""
    with ClusterServers("--cluster-announce-ip", "::1", *BOTH, node_timeout=60) as servers:
        await until(lambda: all({"::1"} == hosts_of(node) for node in servers.nodes))
        for node in servers.nodes:
            node.call("CONFIG", "SET", "bind", "::1")
        yield servers


@pytest.fixture
def _localhost_of_both_kinds(monkeypatch):
    """Let ``localhost`` have an address of each kind."""
    resolve = socket.getaddrinfo

    def resolve_to_both(host, *arguments, **options):
        if host != "localhost":
            return resolve(host, *arguments, **options)
        return [each for address in ("::1", "127.0.0.1") for each in resolve(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_to_both)


async def use(client):
    """Write and read keys at all nodes."""
    assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, key) for key in KEYS))
    assert [key.encode() for key in KEYS] == await client.mget(KEYS)
    await client.delete(*KEYS)


@needs_ipv6
async def test_cluster_that_announces_ipv6_alone_is_used_and_its_redirects_are_followed(
    ipv6_cluster, make_pool, telemetry
):
    ports = {node.port for node in ipv6_cluster.nodes}
    pool = make_pool(f"redis+cluster://[::1]:{ipv6_cluster.nodes[0].port}", name="main")
    client = MonitoredRedisConnection(connection_pool=pool)
    await use(client)

    assert {("::1", port) for port in ports} == set(pool.cluster_topology.pools)
    slot = key_slot("moving")
    target = next(node for node in ipv6_cluster.primaries() if node is not ipv6_cluster.owner(slot))
    ipv6_cluster.begin_migration(slot, target)
    assert await client.set("moving", "asked")
    ipv6_cluster.end_migration(slot, target)
    assert b"asked" == await client.get("moving")
    redirects = telemetry.tally("aioredis_monitored.cluster.redirects", "aioredis_monitored.cluster.redirect")
    assert redirects["ask"] >= 1


@needs_ipv6
async def test_names_and_messages_have_ipv6_addresses_in_brackets_and_attributes_have_not(
    ipv6_cluster, make_pool, telemetry
):
    first = ipv6_cluster.nodes[0]
    pool = make_pool(f"redis+cluster://[::1]:{first.port}")
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.get("key")
    owner = ipv6_cluster.owner("key")

    assert f"[::1]:{first.port}/0" == pool.name
    node = pool.nodes_of_slot(key_slot("key"))[0]
    assert f"[::1]:{owner.port}" == node.name
    assert f"[::1]:{first.port}/0@[::1]:{owner.port}" == pool.pool_of(node).name
    span = telemetry.span("GET")
    assert f"GET [::1]:{owner.port}" == span.name
    assert ("::1", owner.port) == (span.attributes["server.address"], span.attributes["server.port"])
    async with MonitoredRedisCluster(connection_pool=pool) as cluster:
        assert node == cluster.get_node("::1", owner.port) == cluster.get_node(node_name=node.name)

    ipv6_cluster.stop()
    with pytest.raises(redis.exceptions.ConnectionError, match=rf"\[::1\]:{owner.port}"):
        await pool.pool_of(node).ping()
    with pytest.raises(redis.exceptions.ConnectionError, match=rf"asked \[::1\]:{first.port} and"):
        await refresh_topology(pool)


@needs_ipv6
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
async def test_error_of_an_address_where_no_server_is_has_it_in_brackets(scheme):
    [port] = free_ports(1)
    service = "/mymaster" if scheme == "redis+sentinel" else ""
    async with MonitoredConnectionPool.from_url(f"{scheme}://[::1]:{port}{service}", socket_timeout=3) as pool:
        with pytest.raises((redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)) as caught:
            await MonitoredRedisConnection(connection_pool=pool).get("key")

        assert f"[::1]:{port}" in str(caught.value)
        assert f"connecting to [::1]:{port}." in str(caught.value)
        assert f"[::1]:{port}" in repr(pool)


@needs_ipv6
async def test_single_server_with_an_ipv6_address_is_used(telemetry):
    with RedisServer(*BOTH) as server:
        url = f"redis://[::1]:{server.port}"
        async with MonitoredConnectionPool.from_url(url, **telemetry.providers) as pool:
            await use(MonitoredRedisConnection(connection_pool=pool))

            assert f"[::1]:{server.port}/0" == pool.name


# Names with addresses of both kinds.


@names_in_python
@needs_ipv6
@pytest.mark.usefixtures("_localhost_of_both_kinds")
async def test_cluster_that_listens_on_ipv4_alone_is_found_by_a_name_of_both_kinds(cluster, make_pool, caplog):
    # Which address is asked first is random.
    for _ in range(10):
        # A timeout shorter than the cluster takes to replace a node is warned of.
        pool = make_pool(f"redis+cluster://localhost:{cluster.nodes[0].port}", socket_timeout=100)
        await use(MonitoredRedisConnection(connection_pool=pool))

    assert [] == caplog.messages


@names_in_python
@needs_ipv6
@pytest.mark.usefixtures("_localhost_of_both_kinds")
async def test_cluster_that_listens_on_ipv6_alone_is_found_by_a_name_of_both_kinds(ipv6_cluster, make_pool, caplog):
    for _ in range(10):
        pool = make_pool(f"redis+cluster://localhost:{ipv6_cluster.nodes[0].port}", socket_timeout=100)
        await use(MonitoredRedisConnection(connection_pool=pool))

    assert [] == caplog.messages


@names_in_python
@needs_ipv6
@pytest.mark.usefixtures("_localhost_of_both_kinds")
async def test_sentinels_that_listen_on_ipv4_alone_are_found_by_a_name_of_both_kinds(sentinels, make_pool):
    hosts = ",".join(f"localhost:{each.port}" for each in sentinels.sentinels)
    pool = make_pool(f"redis+sentinel://{hosts}/mymaster")
    await use(MonitoredRedisConnection(connection_pool=pool))


@names_in_python
@needs_ipv6
@pytest.mark.usefixtures("_localhost_of_both_kinds")
async def test_single_server_that_listens_on_ipv4_alone_is_found_by_a_name_of_both_kinds(server, make_pool):
    await use(MonitoredRedisConnection(connection_pool=make_pool(f"redis://localhost:{server.port}")))
