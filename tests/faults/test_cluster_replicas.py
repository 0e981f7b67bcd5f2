"""Reads that go to replicas of a cluster: a replica that freezes, dies or refuses them fails none."""

import asyncio

import pytest

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

# Half of it is the replica's, and the other half leaves a slow machine the time to ask the primary.
DEADLINE = 6.0
# Far beyond the end of a test.
STALL_SECONDS = 100.0


@pytest.fixture(scope="module")
def _shard():
    # The nodes take none for failed.
    with ClusterServers(primaries=1, replicas=1, node_timeout=60) as running:
        yield running


@pytest.fixture
async def shard(_shard, until):
    """Return a primary and its replica, which a test may break, and which has a key that the primary has as well."""
    primary, replica = _shard.nodes
    primary.call("SET", "key", "value")
    await until(lambda: replica.call("DBSIZE") == 1)
    await until(lambda: all(len(each) > 3 for each in primary.call("CLUSTER", "SLOTS")))
    yield primary, replica
    if replica.is_frozen:
        replica.thaw()
    elif not replica.is_running:
        replica.start()
    replica.call("ACL", "SETUSER", "default", "+@all")
    _shard.wait_ok()
    primary.call("FLUSHALL")


@pytest.fixture
def make_reader(shard, make_pool, until):
    """Make a client that has read from the replica."""
    primary, replica = shard

    async def make(**arguments):
        url = f"redis+cluster://{primary.host}:{primary.port}?read_from=replica"
        client = MonitoredRedisConnection(connection_pool=make_pool(url, **arguments))
        assert b"value" == await client.get("key")
        assert "cmdstat_get" in replica.call("INFO", "commandstats")
        return client

    return make


async def read_by_command(client):
    return await client.get("key")


async def read_by_pipeline(client):
    return (await client.pipeline(transaction=False).get("key").execute())[0]


async def read_by_splitting(client):
    return (await client.mget("key", "other"))[0]


READS = pytest.mark.parametrize("read", [read_by_command, read_by_pipeline, read_by_splitting])


@READS
async def test_read_leaves_the_primary_half_of_the_deadline(shard, make_reader, multiplex, read):
    client = await make_reader(socket_timeout=DEADLINE, multiplex=multiplex)
    shard[1].freeze()

    assert b"value" == await read(client)


@READS
async def test_read_goes_to_the_primary_when_a_replica_has_died(shard, make_reader, read):
    client = await make_reader(socket_timeout=STALL_SECONDS, retries=0)
    shard[1].kill()

    assert b"value" == await read(client)


@READS
async def test_read_that_a_replica_refuses_goes_to_the_primary(shard, make_reader, multiplex, read):
    client = await make_reader(socket_timeout=STALL_SECONDS, multiplex=multiplex)
    shard[1].call("ACL", "SETUSER", "default", "-get", "-mget")

    assert b"value" == await read(client)


async def test_replica_that_is_silent_gets_no_further_reads(shard, make_reader, until):
    client = await make_reader(socket_timeout=STALL_SECONDS)
    shard[1].freeze()
    waiting = asyncio.ensure_future(client.get("key"))
    topology = client.connection_pool.cluster_topology
    await until(lambda: topology.replica_pool_of_slot(key_slot("key")) is None)

    assert b"value" == await client.get("key")
    assert not waiting.done()
    waiting.cancel()


async def test_replica_that_has_failed_is_tried_again_by_one_read(shard, make_reader, until):
    client = await make_reader(socket_timeout=STALL_SECONDS)
    replica = client.connection_pool.cluster_topology.replica_pool_of_slot(key_slot("key"))
    replica.retry_policy.server_unreachable = True
    shard[1].freeze()
    reads = [asyncio.ensure_future(client.get("key")) for _ in range(20)]
    await until(lambda: sum(each.done() for each in reads) == 19)
    shard[1].thaw()

    assert [b"value"] * 20 == await asyncio.gather(*reads)
    assert not replica.retry_policy.server_unreachable
