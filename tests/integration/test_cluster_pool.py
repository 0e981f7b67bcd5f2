"""The pool of a cluster as applications and redis-py use it: connections, their closing, and new credentials."""

import asyncio

import pytest
from redis.auth.token import SimpleToken
from redis.credentials import StreamingCredentialProvider
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisCluster, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers

KEYS = [f"key-{number}" for number in range(30)]
USER = "app"


@pytest.fixture
async def pool(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED) as pool:
        yield pool
        await MonitoredRedisConnection(connection_pool=pool).flushall()


async def id_of(connection):
    await connection.send_command("CLIENT", "ID")
    return await connection.read_response()


async def use_all(client):
    assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, 1) for key in KEYS))


async def test_acquired_connection_is_reconnected_to_its_node_and_stays_acquired(pool):
    assert not pool.is_connected()
    connection = await pool.get_connection()
    place = (connection.host, connection.port)
    before = await id_of(connection)
    assert not pool.was_reconnected(connection)

    await pool.reconnect(connection)

    assert pool.is_connected()
    assert pool.is_acquired(connection)
    assert pool.was_reconnected(connection)
    assert place == (connection.host, connection.port)
    assert before != await id_of(connection)
    await pool.release(connection)
    assert not pool.is_acquired(connection)


async def test_altered_connection_is_closed_when_it_is_released_and_not_later(pool):
    connection = await pool.get_connection()
    pool.discard_on_release(connection)
    assert pool.will_discard(connection)
    await pool.release(connection)

    assert not connection.is_connected
    other = await pool.get_connection()
    await pool.release(other)
    # It is idle, and may be anybody's next.
    pool.discard_on_release(other)
    assert not pool.will_discard(other)
    assert other.is_connected


def connections_named(cluster, name):
    return sum(node.call("CLIENT", "LIST").count(f"name={name} ") for node in cluster.primaries())


async def test_disconnected_pool_has_no_connection_and_connects_again(cluster, until):
    async with MonitoredRedisConnection.from_url(cluster.url, client_name="leaving", **UNRECORDED) as client:
        await use_all(client)
        assert connections_named(cluster, "leaving") >= len(cluster.primaries())

        await client.connection_pool.disconnect()
        assert not client.connection_pool.is_connected()
        await until(lambda: connections_named(cluster, "leaving") == 0)

        await use_all(client)
        assert client.connection_pool.is_connected()
        await client.flushall()


class Streaming(StreamingCredentialProvider):
    """A provider that pushes new passwords, as redis-entraid does."""

    def __init__(self, password):
        self.password, self.callbacks = password, []

    def on_next(self, callback):
        self.callbacks.append(callback)

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    async def get_credentials_async(self):
        return (USER, self.password)

    async def push(self, password):
        self.password = password
        for callback in self.callbacks:
            await callback(SimpleToken(password, 2**62, 0, {"oid": USER}))


def counted(node, *names):
    """Return how often these commands were called, and how often they have failed."""
    lines = [line for line in node.call("INFO", "commandstats").splitlines() if line.startswith(names)]
    return [
        sum(int(line.split(f"{what}=")[1].partition(",")[0]) for line in lines) for what in ("calls", "failed_calls")
    ]


async def test_pushed_credentials_reach_the_connections_to_every_node():
    with ClusterServers(primaries=2, replicas=0, node_timeout=60) as servers:
        for node in servers.nodes:
            node.call("ACL", "SETUSER", USER, "on", ">fresh", "~*", "&*", "+@all")
        provider, [node, _] = Streaming("fresh"), servers.nodes
        async with MonitoredRedisCluster(
            host=node.host, port=node.port, credential_provider=provider, **UNRECORDED
        ) as client:
            await use_all(client)
            for node in servers.nodes:
                node.call("ACL", "SETUSER", USER, "resetpass", ">newer")
                node.call("CONFIG", "RESETSTAT")
            await provider.push("newer")
            await use_all(client)

        for node in servers.nodes:
            calls, failed = counted(node, "cmdstat_auth:", "cmdstat_hello:")
            assert calls > 0
            assert 0 == failed
