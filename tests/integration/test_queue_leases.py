"""Leases: living consumers keep their messages; those of dead ones are delivered again, up to a number of times."""

import asyncio
import gc
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis.asyncio
from redis.crc import key_slot
from support.consuming import POISON, blocked, consumer, held, hold_and_die, living
from support.internals import renewal_task_of, renewal_timer_of
from support.sharing import UNRECORDED, begun

from aioredis_monitored import (
    LeaseLostError,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    TimedOutError,
)

# The bound is 1.5 leases of one second; recovery by other means takes half a minute, the default.
RECOVERY_SECONDS = 15


@pytest.fixture
def make_queue(make_pool, server):
    """Make queues with one name, each with its own pool."""

    def make(name="mail", url=server.url, lease=1, **arguments):
        return MessageQueue(name, make_pool(url, **UNRECORDED), lease=lease, **arguments)

    return make


@pytest.fixture
def queue(make_queue):
    return make_queue()


async def wait_seconds(until, seconds):
    """Hold a message for a while; the event loop runs."""
    ends = time.monotonic() + seconds
    await until(lambda: time.monotonic() > ends, 10 * seconds)


async def _take_one(queue, timeout=None):
    async with queue.take(timeout) as message:
        return message


async def test_take_registers_its_consumer_with_the_message_after_a_flush(make_client, server, inspector, until):
    # So long that no renewal makes the consumer known.
    queue = MessageQueue("mail", make_client(server.url), lease=600)
    is_seen = asyncio.Event()

    async def hold():
        async with queue.take():
            await is_seen.wait()

    (holding,) = await begun(hold())
    await until(lambda: blocked(inspector))
    inspector.flushall()
    inspector.rpush("mail", "message")
    await until(lambda: held(inspector))
    await until(lambda: living(inspector), 15)
    (key,) = inspector.scan_iter("{mail}:p:*")
    assert key.decode().rpartition(":")[2].encode() in living(inspector)
    is_seen.set()
    await holding


@pytest.mark.slow
async def test_lease_is_renewed_while_a_message_is_processed(make_queue, until):
    queue = make_queue(lease=2)
    await queue.put(b"message")
    async with queue.take():
        (waiting,) = await begun(_take_one(make_queue(lease=2)))
        await wait_seconds(until, 8)
        assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    with pytest.raises(TimedOutError):
        await queue.get(0)


async def test_message_of_a_killed_consumer_is_redelivered_after_its_lease(queue, server, inspector):
    inspector.rpush("mail", "message")
    hold_and_die(server, 1)

    async with asyncio.timeout(RECOVERY_SECONDS):
        assert b"message" == await _take_one(queue)
    assert [] == held(inspector)


async def test_messages_of_a_dead_consumer_are_requeued_in_order(queue, server, inspector, until):
    inspector.rpush("mail", *range(1_001))
    hold_and_die(server, 1_000)
    # A consumer that holds a message recovers those of dead consumers, and takes no others meanwhile.
    async with queue.take():
        await until(lambda: inspector.llen("mail") == 1_000)
    async with queue.take_many(2_000) as messages:
        assert [str(number).encode() for number in range(1_000)] == messages

    assert [] == held(inspector)


@pytest.mark.slow
async def test_take_raises_lease_lost_error_after_its_event_loop_was_blocked(queue, server, inspector):
    async def elsewhere():
        async with MonitoredConnectionPool.from_url(server.url, **UNRECORDED) as pool:
            return await _take_one(MessageQueue("mail", pool, lease=1), 60)

    await queue.put(b"message")
    with ThreadPoolExecutor() as executor:
        text = "queue 'mail': 1 of 1 messages were no longer held: another consumer got them"
        with pytest.raises(LeaseLostError, match=text):
            async with queue.take():
                other = executor.submit(asyncio.run, elsewhere())
                while not other.done():
                    time.sleep(0.01)  # noqa: ASYNC251 - the loop must stand still
        assert b"message" == other.result()
    assert [0, []] == [inspector.llen("mail"), held(inspector)]


async def test_message_in_a_lost_reply_is_redelivered_to_the_same_consumer(make_queue, proxy, inspector):
    queue = make_queue(url=proxy.url)
    await queue.put(b"message")
    # The server must know the script; otherwise, the lost reply would be NOSCRIPT.
    await _take_one(queue)
    await queue.put(b"message")
    proxy.cut_replies = 1
    with pytest.raises(redis.exceptions.ConnectionError):
        await _take_one(queue, 0)
    assert [b"message"] == held(inspector)

    async with asyncio.timeout(RECOVERY_SECONDS):
        assert b"message" == await _take_one(queue)


async def test_message_is_dead_lettered_after_max_deliveries_of_any_failure(make_queue, server, inspector):
    queue = make_queue(max_deliveries=3)
    await queue.put_many([b"bad", b"good"])
    with pytest.raises(asyncio.CancelledError):
        async with queue.take():
            raise asyncio.CancelledError
    hold_and_die(server, 1)
    async with queue.take():
        # This message was behind the dead letter.
        assert [] == await queue.dead()
        with pytest.raises(ValueError, match="bad"):
            async with queue.take(5) as message:
                assert b"bad" == message
                raise ValueError("bad")

    assert [b"bad"] == await queue.dead()
    assert [0, []] == [inspector.llen("mail"), held(inspector)]


async def _fail(queue):
    with pytest.raises(ValueError, match="failed"):
        async with queue.take(0):
            raise ValueError("failed")


async def test_ack_resets_the_delivery_count(make_queue, inspector):
    queue = make_queue(max_deliveries=2)
    for _ in range(3):
        await queue.put(b"frequent")
        await _fail(queue)
        assert b"frequent" == await _take_one(queue, 0)

    assert [[], 0] == [await queue.dead(), inspector.exists("{mail}:n")]


async def test_delivery_to_a_cancelled_take_does_not_count(make_queue, until, inspector):
    queue = make_queue(max_deliveries=1)
    for _ in range(5):
        (waiting,) = await begun(_take_one(queue))
        await until(lambda: blocked(inspector))
        # The reply is on its way, or does not exist yet.
        waiting.cancel()
        inspector.rpush("mail", "message")
        await asyncio.gather(waiting, return_exceptions=True)
        assert b"message" == await queue.get(0)

    assert [] == await queue.dead()


async def test_dead_letters_are_listed_and_requeued_in_order(make_queue, make_pool, server):
    queue = make_queue(max_deliveries=1)
    messages = [b"\xff%d" % number for number in range(250)]
    assert [[], 0] == [await queue.dead(), await queue.requeue_dead()]
    await queue.put_many(messages)
    for _ in messages:
        await _fail(queue)
    decoding = MessageQueue("mail", make_pool(server.url, decode_responses=True, **UNRECORDED))
    assert messages == await decoding.dead() == await queue.dead()
    await queue.put(b"before")

    assert 250 == await decoding.requeue_dead()
    assert [] == await queue.dead()
    assert [b"before", *messages] == await queue.get_many(1_000, 0)


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_message_that_kills_its_consumers_is_dead_lettered_and_others_are_handled(
    queue, server, inspector, until, concurrency
):
    others = [str(number).encode() for number in range(999)]
    inspector.rpush("mail", *others[:500], POISON, *others[500:])

    def is_over():
        return inspector.llen("{mail}:dead") + inspector.scard("done") >= 1_000

    while not is_over():
        with consumer(server, "handle", concurrency) as process:
            await until(lambda process=process: process.poll() is not None or is_over(), 100)

    assert [POISON] == await queue.dead()
    assert set(others) == inspector.smembers("done")


@pytest.mark.parametrize("name", ["mail", "{mail}", "a{mail}b", "{a}b}", "a{b", "{", "ma il", "ü"])
async def test_queue_keys_share_the_hash_slot_of_its_name(make_queue, inspector, name):
    queue = make_queue(name, max_deliveries=1)
    await queue.put_many([1, 2, 3])
    await _fail(queue)
    async with queue.take(), queue.take():
        keys = inspector.keys()

    assert {key_slot(name.encode())} == set(map(key_slot, keys))
    assert len(keys) >= 4


@pytest.mark.parametrize("name", ["a}b", "{}x", "}", "{}", "a}", "x{}{y}"])
def test_queue_name_raises_when_its_keys_cannot_share_a_hash_slot(pool, name):
    with pytest.raises(ValueError, match="the braces in a queue's name must be those of a hash tag"):
        MessageQueue(name, pool)


async def test_queue_requeues_held_messages_on_aclose(queue, inspector):
    await queue.put_many([1, 2])
    async with queue:
        taking = queue.take()
        assert b"1" == await taking.__aenter__()

    assert [[b"1", b"2"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]
    # Another consumer holds the message, or soon will.
    with pytest.raises(LeaseLostError):
        await taking.__aexit__(None, None, None)
    assert [b"1", b"2"] == [await _take_one(queue, 0), await _take_one(queue, 0)]


async def test_lease_renewal_stops_on_aclose(queue, until):
    await queue.put(b"message")
    for is_keeping in (True, False):
        async with queue:
            async with queue.take():
                await until(lambda is_keeping=is_keeping: is_keeping is (renewal_task_of(queue) is not None))
            await queue.put(b"message")

        assert [None, None] == [renewal_timer_of(queue), renewal_task_of(queue)]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while it waits"])
async def test_lease_is_renewed_for_messages_taken_after_aclose(make_queue, inspector, until, when):
    queue, other = make_queue(lease=2), make_queue(lease=2)

    async def hold():
        async with queue.take():
            await wait_seconds(until, 5)

    await queue.put(b"first")
    await _take_one(queue)
    if when == "before":
        await queue.aclose()
    (holding,) = await begun(hold())
    await until(lambda: blocked(inspector))
    if when != "before":
        await queue.aclose()
    await other.put(b"message")
    await until(lambda: held(inspector))
    (waiting,) = await begun(_take_one(other))
    await holding
    waiting.cancel()

    assert [asyncio.CancelledError] == [type(each) for each in await asyncio.gather(waiting, return_exceptions=True)]


@pytest.mark.slow
async def test_lease_is_renewed_in_the_next_event_loop_without_log_messages(server, inspector, caplog):
    pool = MonitoredConnectionPool.from_url(server.url, **UNRECORDED)
    queue = MessageQueue("mail", pool, lease=2)
    inspector.rpush("mail", 1, 2)

    async def take(seconds):
        async with pool, queue.take():
            ends = time.monotonic() + seconds
            while time.monotonic() < ends and living(inspector):
                await asyncio.sleep(0.01)
            return len(living(inspector))

    with caplog.at_level(logging.WARNING):
        assert 1 == await asyncio.to_thread(asyncio.run, take(0), debug=True)
        inspector.delete("{mail}:c")
        assert 1 == await asyncio.to_thread(asyncio.run, take(3), debug=True)

    assert [] == caplog.messages


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "unshared", "plain"])
async def test_lease_is_renewed_while_all_connections_of_the_pool_are_in_use(make_pool, server, inspector, kind):
    pool = redis.asyncio.BlockingConnectionPool.from_url(server.url, max_connections=1)
    if kind != "plain":
        pool = make_pool(server.url, max_connections=1 if kind == "one" else 2, multiplex=kind == "one", **UNRECORDED)
    queue = MessageQueue("mail", MonitoredRedisConnection(connection_pool=pool), lease=2)
    elsewhere = MessageQueue("mail", make_pool(server.url, **UNRECORDED), lease=2)
    await queue.put(b"message")
    async with queue.take():
        waiting = [asyncio.create_task(MessageQueue("other", queue.client).get()) for _ in range(2)]
        with pytest.raises(TimedOutError):
            await _take_one(elsewhere, 5)
        inspector.rpush("other", 1, 2)
    await asyncio.gather(*waiting)
    await pool.aclose()

    assert [] == held(inspector)
    assert 0 == inspector.llen("mail")


def test_end_of_the_event_loop_leaves_no_renewal(server, caplog):
    pool = MonitoredConnectionPool.from_url(server.url, **UNRECORDED)
    queue = MessageQueue("mail", pool, lease=1)
    kept = []

    async def outlast_timer():
        try:
            yield
        finally:
            # Other generators, and threads, keep a loop alive that has cancelled its tasks.
            async with asyncio.timeout(60):
                while (timer := renewal_timer_of(queue)) is not None and not timer.cancelled():
                    await asyncio.sleep(0.001)

    async def use():
        await queue.put(b"message")
        await _take_one(queue)
        kept.append(outlast_timer())
        await anext(kept[0])

    asyncio.run(use())
    asyncio.run(pool.aclose())
    gc.collect()

    assert [] == caplog.messages
