"""Nodes that announce no address, a name or one that cannot be reached; names with several addresses; new addresses."""

import asyncio
import socket
from contextlib import AsyncExitStack

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from support import cluster_chaos as chaos
from support.internals import redirect

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers, FaultProxy
from aioredis_monitored.testing.server import free_ports

CALLS = 1_000
KEYS = [f"key:{number}" for number in range(30)]


@pytest.fixture
def seed(dice):
    return dice.randrange(2**32)


async def use(client):
    """Write and read keys at all nodes."""
    assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, key) for key in KEYS))
    assert [key.encode() for key in KEYS] == await client.mget(KEYS)


@pytest.mark.parametrize("kind", ["unknown-endpoint", "hostname"])
@pytest.mark.slow
async def test_redirects_are_followed_when_nodes_announce_no_address(seed, kind):
    arguments = ("--cluster-preferred-endpoint-type", kind)
    with ClusterServers(*arguments, replicas=0, node_timeout=60, hostnames=lambda _: "localhost") as servers:
        figures = await chaos.migrate(servers, seed, calls=CALLS)

    assert [] == chaos.failures(figures), figures
    assert 0 < figures.asked


async def test_all_addresses_of_a_start_name_are_tried(cluster, make_pool, monkeypatch):
    resolve = socket.getaddrinfo

    def resolve_to_two(host, *arguments, **options):
        if host != "cluster.example":
            return resolve(host, *arguments, **options)
        return [each for address in ("127.0.0.2", "127.0.0.1") for each in resolve(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve_to_two)
    # Which one is asked first is random.
    for _ in range(5):
        client = MonitoredRedisConnection(
            connection_pool=make_pool(f"redis+cluster://cluster.example:{cluster.nodes[0].port}")
        )
        await use(client)
        await client.delete(*KEYS)


async def test_nodes_behind_address_translation_are_reached_and_their_redirects_followed(seed):
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(ClusterServers(replicas=0, node_timeout=60))
        proxies = {
            node.port: await stack.enter_async_context(FaultProxy(node.host, node.port)) for node in servers.nodes
        }
        address_map = {f"127.0.0.1:{port}": f"localhost:{proxy.port}" for port, proxy in proxies.items()}
        url = f"redis+cluster://localhost:{proxies[servers.nodes[0].port].port}"
        pool = chaos.CountingPool.from_url(url, address_map=address_map)
        async with pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            load = chaos.Load(client, chaos.tags_in([0], 10), seed, callers=8)
            async with load.running():
                await load.reach(100)
                await asyncio.to_thread(servers.migrate, 0, servers.nodes[1], batch=1)
                await load.reach(100)
            known = set(pool.cluster_topology.pools)
        found = await chaos.account(load, servers.url)

    assert {} == load.errors
    assert (0, 0, 0, 0) == found
    assert 0 < pool.counts["moved"]
    assert {("localhost", proxy.port) for proxy in proxies.values()} == known


@pytest.mark.slow
async def test_cluster_that_has_started_on_other_ports_is_found_behind_its_endpoint(make_pool):
    with ClusterServers(replicas=0, node_timeout=60) as before, ClusterServers(replicas=0, node_timeout=60) as after:
        async with FaultProxy(before.nodes[0].host, before.nodes[0].port) as endpoint:
            pool = make_pool(f"redis+cluster://{endpoint.host}:{endpoint.port}", socket_timeout=30)
            client = MonitoredRedisConnection(connection_pool=pool)
            await use(client)
            redirect(endpoint, after.nodes[0].host, after.nodes[0].port)
            for node in before.nodes:
                node.kill()
            # Connections that have just ended may have been written to.
            await client.get("key:0")
            await use(client)

            assert len(KEYS) == sum(node.call("DBSIZE") for node in after.nodes)
            assert {node.port for node in after.nodes} == {port for _, port in pool.cluster_topology.pools}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_error_names_the_nodes_that_were_asked_when_none_answers(host, caplog):
    ports = free_ports(2)
    asked = [f"{host}:{port}" for port in ports]
    loop = asyncio.get_running_loop()
    url = f"redis+cluster://{','.join(asked)}"
    async with MonitoredConnectionPool.from_url(url, name="mine", socket_timeout=1) as pool:
        began = loop.time()
        with pytest.raises(RedisConnectionError) as caught:
            await MonitoredRedisConnection(connection_pool=pool).get("key")

        assert all(address in str(caught.value) for address in asked)
        [warning] = caplog.messages
        assert warning.startswith("pool 'mine': a topology refresh failed: ")
        assert all(address in warning for address in asked)
        # Not at once: a cluster may start later than its clients.
        assert loop.time() - began >= 0.4
