"""A queue in a cluster: blocked consumers go on, and lose nothing, when the slot moves or its primary is replaced."""

import asyncio
import time

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, TimedOutError
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.queue.consumer import QueueKeys
from aioredis_monitored.testing import ClusterServers

NAME = "jobs"
SLOT = key_slot(NAME)


@pytest.fixture(scope="module")
def servers():
    with ClusterServers() as running:
        yield running


@pytest.fixture
def faulty(servers):
    """Yield a cluster whose nodes may be killed or frozen: they run again at the test's end, without keys."""
    yield servers
    for node in servers.nodes:
        if node.is_frozen:
            node.thaw()
        elif not node.is_running:
            node.start()
    servers.wait_ok()
    for node in servers.primaries():
        node.call("FLUSHALL")


@pytest.fixture
async def client(faulty, telemetry):
    async with MonitoredConnectionPool.from_url(faulty.url, **telemetry.providers) as pool:
        yield MonitoredRedisConnection(connection_pool=pool)


@pytest.fixture
async def queue(client):
    async with MessageQueue(NAME, client) as queue:
        yield queue


def another_primary(cluster):
    owner = cluster.owner(SLOT)
    return next(node for node in cluster.primaries() if node is not owner)


def migrated(cluster):
    cluster.migrate(SLOT, another_primary(cluster))


def migrated_atomically(cluster):
    try:
        cluster.migrate_atomically([SLOT], another_primary(cluster))
    except NotImplementedError as error:
        pytest.skip(str(error))


def failed_over(cluster):
    cluster.failover(cluster.replica_of(cluster.owner(SLOT)))
    cluster.wait_ok()


def wait_promoted(replica):
    while replica.call("ROLE")[0] != "master":
        time.sleep(0.01)
    return time.monotonic()


async def get(queue, timeout=60):
    return await queue.get(timeout)


async def take(queue, timeout=60):
    async with queue.take(timeout) as message:
        return message


async def blocked_in(cluster, call):
    """Return the task of a call that waits for a message in the server."""
    task = asyncio.create_task(call)
    owner = cluster.owner(SLOT)
    async with asyncio.timeout(30):
        while "blocked_clients:0" in await asyncio.to_thread(owner.call, "INFO", "clients"):
            await asyncio.sleep(0.01)
    return task


async def put_despite_errors(queue, message):
    """Put a message, again if it may not have been put."""
    while True:
        try:
            return await queue.put(message)
        except RedisError:
            continue


def test_keys_of_a_queue_are_in_one_slot():
    for name in (NAME, "{tagged}jobs"):
        keys = QueueKeys(name)
        names = (keys.queue, keys.consumers, keys.deliveries, keys.dead, keys.sweeper, keys.processing("0" * 32))

        assert {key_slot(name)} == set(map(key_slot, names))


async def test_dead_letters_bounds_and_unlink_work_in_a_cluster(client):
    queue = MessageQueue("other", client, max_length=2, max_deliveries=1)
    await queue.put_many([b"1", b"2"])
    with pytest.raises(TimedOutError):
        await queue.put(b"3", timeout=0)
    with pytest.raises(ValueError, match="failed"):
        async with queue.take(5):
            raise ValueError("failed")

    assert [b"1"] == await queue.dead()
    assert 1 == await queue.requeue_dead()
    assert [b"2", b"1"] == await queue.get_many(5, timeout=5)
    await queue.put(b"4")
    await queue.unlink()
    assert 0 == await client.llen("other")


# C7.


@pytest.mark.parametrize("fault", [migrated, migrated_atomically, failed_over])
@pytest.mark.parametrize("call", [get, take])
async def test_blocked_call_goes_on_where_the_slot_is_served_now(faulty, queue, call, fault):
    waiting = await blocked_in(faulty, call(queue))
    await asyncio.to_thread(fault, faulty)
    began = time.monotonic()
    await queue.put(b"message")

    try:
        message = await asyncio.wait_for(waiting, 60)
    except (RedisConnectionError, ResponseError):
        # Redis 7.0 says UNBLOCKED to blocked callers when it becomes a replica, and closes their connections.
        assert fault is failed_over
        message = await call(queue)
    assert b"message" == message
    print(f"{call.__name__}, {fault.__name__}: {time.monotonic() - began:.3f} s after the fault")
    assert time.monotonic() - began <= 1 * 10 + 5
    assert 0 == await queue.client.llen(NAME)


@pytest.mark.parametrize("call", [get, take])
async def test_blocked_call_gets_what_was_put_while_keys_were_moved(faulty, queue, call):
    """A message that is put in the ASK phase goes to the new node, which the blocked call reaches when that ends."""
    target = another_primary(faulty)
    waiting = await blocked_in(faulty, call(queue))
    await asyncio.to_thread(faulty.begin_migration, SLOT, target)
    await queue.put(b"message")
    await asyncio.to_thread(faulty.migrate_keys, SLOT, target, 100)
    await asyncio.to_thread(faulty.end_migration, SLOT, target)

    assert b"message" == await asyncio.wait_for(waiting, 60)
    assert 0 == await queue.client.llen(NAME)


async def test_take_waits_while_keys_of_its_queue_are_at_two_nodes(faulty, queue, client):
    await queue.put_many([b"first", b"second"])
    await take(queue)
    target = another_primary(faulty)
    await asyncio.to_thread(faulty.begin_migration, SLOT, target)
    await asyncio.to_thread(faulty.migrate_keys, SLOT, target, 1)
    tried = asyncio.create_task(take(queue))
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(refusals, faulty, "TRYAGAIN"):
            await asyncio.sleep(0.01)
    await asyncio.to_thread(faulty.migrate_keys, SLOT, target, 100)
    await asyncio.to_thread(faulty.end_migration, SLOT, target)

    assert b"second" == await tried
    assert 0 == await client.llen(NAME)


def refusals(cluster, error):
    """Return how often nodes have replied with an error."""
    statistics = "".join(node.call("INFO", "errorstats") for node in cluster.primaries())
    return statistics.count(f"errorstat_{error}:")


async def get_impatiently(queue, got, dice):
    """Get messages for ever, leaving each call after a moment."""
    while True:
        try:
            async with asyncio.timeout(dice.uniform(0, 0.01)):
                got.append(await queue.get(5))
        except TimeoutError:
            pass


async def test_cancelled_get_restores_its_message_where_the_slot_is(faulty, queue, client, dice):
    """Callers leave at any moment while the slot moves: each message is got once, or still there."""
    got, count = [], 120
    callers = [asyncio.create_task(get_impatiently(queue, got, dice)) for _ in range(4)]
    moving = asyncio.gather(asyncio.to_thread(lambda: [migrated(faulty) for _ in range(4)]))
    for number in range(count):
        await queue.put(number)
        await asyncio.sleep(0.01)
    await moving
    async with asyncio.timeout(60):
        while len(got) < count and await client.llen(NAME):
            await asyncio.sleep(0.01)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    rest = await client.lrange(NAME, 0, -1)

    assert [] == [caller.exception() for caller in callers if not caller.cancelled()]
    assert sorted(map(int, [*got, *rest])) == list(range(count))


# The primary is killed, or freezes.


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("call", [get, take])
async def test_blocked_call_ends_when_its_primary_is_replaced(faulty, queue, call, fault):
    """Whether it has fetched a message is unknown: it raises, as on one server, and the next call goes on elsewhere."""
    victim = faulty.owner(SLOT)
    replica = faulty.replica_of(victim)
    waiting = await blocked_in(faulty, call(queue))
    getattr(victim, fault)()
    promoted = await asyncio.to_thread(wait_promoted, replica)

    with pytest.raises(RedisConnectionError):
        await asyncio.wait_for(waiting, 60)
    print(f"{call.__name__}, {fault}: {time.monotonic() - promoted:.2f} s after the promotion")
    await put_despite_errors(queue, b"message")
    assert b"message" == await call(queue)


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_idle_consume_goes_on_at_the_promoted_replica(faulty, queue, fault):
    handled = asyncio.Queue()

    async def handle(message):
        handled.put_nowait(message)

    victim = faulty.owner(SLOT)
    replica = faulty.replica_of(victim)
    consuming = await blocked_in(faulty, queue.consume(handle))
    getattr(victim, fault)()
    promoted = await asyncio.to_thread(wait_promoted, replica)
    async with MonitoredRedisConnection.from_url(faulty.url) as other:
        await put_despite_errors(MessageQueue(NAME, other), b"message")

        assert b"message" == await asyncio.wait_for(handled.get(), 60)
    print(f"consume, {fault}: {time.monotonic() - promoted:.2f} s after the promotion")
    assert time.monotonic() - promoted <= 4 * 10 + 5
    queue.stop()
    await consuming


async def test_consume_handles_everything_while_slots_move_and_a_primary_is_replaced(faulty, queue):
    handled = []

    async def handle(message):
        await asyncio.sleep(0.005)
        handled.append(int(message))

    consuming = asyncio.create_task(queue.consume(handle))
    faults = [migrated, failed_over, migrated]
    for number in range(300):
        if number % 100 == 50:
            fault = asyncio.create_task(asyncio.to_thread(faults.pop(), faulty))
        await queue.put(number)
        await asyncio.sleep(0.005)
    await fault
    async with asyncio.timeout(60):
        while len(set(handled)) < 300:
            await asyncio.sleep(0.01)
    queue.stop()
    await consuming

    print(f"{len(handled) - 300} of 300 handled twice")
    assert len(handled) - 300 <= 3


async def test_waiting_take_leaves_nothing_at_the_target_of_a_migration(faulty, client, until):
    queue = MessageQueue(NAME, client, lease=3.0)
    await queue.put(b"first")
    # Its delivery count stays behind, and so a key of the queue is where the slot moves from.
    with pytest.raises(ZeroDivisionError):
        async with queue.take(timeout=1):
            raise ZeroDivisionError
    assert await queue.get(timeout=0) == b"first"
    target = another_primary(faulty)

    async def take():
        async with queue.take(timeout=60) as message:
            return message

    taking = asyncio.ensure_future(take())
    await until(lambda: faulty.owner(SLOT).call("EXISTS", QueueKeys(NAME).consumers) == 1)
    faulty.begin_migration(SLOT, target)
    # Longer than a turn of the take, which is a third of the lease.
    await asyncio.wait([taking], timeout=1.5)
    assert target.call("CLUSTER", "COUNTKEYSINSLOT", SLOT) == 0
    while faulty.migrate_keys(SLOT, target, 100):
        pass
    faulty.end_migration(SLOT, target)
    await queue.put(b"second")
    async with asyncio.timeout(30):
        assert await taking == b"second"


async def test_message_that_may_not_be_put_back_in_a_cluster_is_counted(make_pool, telemetry, until):
    with ClusterServers(primaries=1, replicas=0) as servers:
        [node] = servers.nodes
        node.call("ACL", "SETUSER", "taker", "on", "nopass", "~*", "&*", "+@all", "-lpush", "-eval")
        queue = MessageQueue(NAME, make_pool(servers.url, username="taker", password="any"))
        assert [] == await queue.dead()
        node.call("RPUSH", NAME, "message")
        node.call("CLIENT", "PAUSE", 600_000, "WRITE")
        getting = asyncio.ensure_future(queue.get(5))
        await until(lambda: "cmd=lpop" in node.call("CLIENT", "LIST"))
        getting.cancel()
        node.call("CLIENT", "UNPAUSE")
        await asyncio.wait([getting])

        await until(lambda: {1} == set(telemetry.tally("aioredis_monitored.queue.unsettled").values()))
