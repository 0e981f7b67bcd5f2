"""Scripts at nodes that do not know them, because a slot has just come there: they run all the same, and once."""

import pytest

from aioredis_monitored import MessageQueue, MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

SCRIPT = "return redis.call('INCR', KEYS[1])"
KEY = "{moving}:counter"
SLOT = key_slot(KEY)


class OwnRedis(MonitoredRedisConnection):
    """An application's client, with an ``execute_command`` of its own."""

    async def execute_command(self, *args, **options):
        """Execute a command, as before."""
        return await super().execute_command(*args, **options)


@pytest.fixture(scope="module")
def servers():
    """Yield a cluster whose slots this module moves, and whose uncovered slots stop no others."""
    with ClusterServers("--cluster-require-full-coverage", "no") as running:
        yield running


@pytest.fixture(params=[MonitoredRedisConnection, OwnRedis])
async def client(request, servers, make_pool):
    servers.owner(KEY).call("FLUSHALL")
    return request.param(connection_pool=make_pool(servers.url))


async def _script(client, _lock):
    return await client.register_script(SCRIPT)(keys=[KEY])


async def _batch(client, transaction):
    script = client.register_script(SCRIPT)
    async with client.pipeline(transaction=transaction) as pipe:
        await script(keys=[KEY], client=pipe)
        pipe.get(KEY)
        await script(keys=[KEY], client=pipe)
        first, read, second = await pipe.execute()
    assert (b"1", 2) == (read, second)
    return first


async def _pipeline(client, _lock):
    return await _batch(client, transaction=False)


async def _transaction(client, _lock):
    return await _batch(client, transaction=True)


async def _extend(_client, lock):
    return await lock.extend(30)


async def _release(client, lock):
    await lock.release()
    return not await client.exists(lock.name)


async def _bounded_queue(client, _lock):
    queue = MessageQueue("{moving}:queue", client.connection_pool, max_length=5)
    await queue.put(b"message")
    return await queue.get(timeout=5) == b"message"


CALLS = pytest.mark.parametrize("call", [_script, _pipeline, _transaction, _extend, _release, _bounded_queue])


@CALLS
async def test_script_runs_at_the_node_that_a_failover_has_promoted(servers, client, call):
    lock = client.lock("{moving}:lock", timeout=60)
    assert await lock.acquire()
    for node in servers.nodes:
        node.call("SCRIPT", "FLUSH")
    # No refresh has found the new primary yet.
    servers.failover(servers.replica_of(servers.owner(KEY)))

    assert 1 == await call(client, lock)
    servers.wait_ok()


@CALLS
async def test_script_runs_at_the_node_that_takes_its_slot_over(servers, client, call):
    lock = client.lock("{moving}:lock", timeout=60)
    assert await lock.acquire()
    source = servers.owner(KEY)
    target = next(each for each in servers.primaries() if each is not source)
    servers.begin_migration(SLOT, target)
    servers.migrate_keys(SLOT, target, 100)
    for node in servers.nodes:
        node.call("SCRIPT", "FLUSH")
    try:
        assert 1 == await call(client, lock)
    finally:
        servers.migrate_keys(SLOT, target, 100)
        servers.end_migration(SLOT, target)


async def test_script_that_is_new_needs_no_node_but_that_of_its_keys(make_pool):
    with ClusterServers("--cluster-require-full-coverage", "no", replicas=0) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url))
        await client.ping()
        next(each for each in servers.primaries() if each is not servers.owner(KEY)).kill()
        lock = client.lock("{moving}:lock", timeout=60)
        assert await lock.acquire()

        for call, expected in ((_script, 1), (_extend, True), (_release, True), (_bounded_queue, True)):
            assert expected == await call(client, lock)
        await client.delete(KEY)
        assert 1 == await _transaction(client, lock)
