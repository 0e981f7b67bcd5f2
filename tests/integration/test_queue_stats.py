"""What ``queue.stats()`` finds, and dead letters: looked at without a change, requeued and dropped up to a number."""

import asyncio
import time
from uuid import uuid4

import pytest
import redis.asyncio
from redis.exceptions import ResponseError
from support.sharing import UNRECORDED

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, QueueStats
from aioredis_monitored.envelope import seal
from aioredis_monitored.queue.consumer import QueueKeys
from aioredis_monitored.queue.inspection import DeadLetter, QueueInspector

POOLS = {
    "multiplexed": {},
    "pooled": {"multiplex": False},
    "decoding": {"decode_responses": True},
    "RESP2": {"protocol": 2},
}
KEYS = QueueKeys("mail")
NEVER = 2**50  # milliseconds since 1970
SENT_AT = "aioredis-monitored-sent-at"


@pytest.fixture(params=POOLS.values(), ids=POOLS)
def queue(request, make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **request.param, **UNRECORDED), max_deliveries=1)


@pytest.fixture
def one_queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED), max_deliveries=1)


def inspector_of(queue):
    return QueueInspector(queue.client, KEYS)


def sent(seconds_ago, payload=b"message"):
    return seal(payload, {SENT_AT: repr(time.time() - seconds_ago)})


async def fail(queue):
    with pytest.raises(LookupError):
        async with queue.take():
            raise LookupError


async def test_stats_count_what_waits_is_held_and_is_dead_in_all_processes(queue, make_pool, server):
    other = MessageQueue("mail", make_pool(server.url, **UNRECORDED))
    await queue.put_many([b"dies", *[b"held"] * 3, b"waits"])
    await fail(queue)
    async with queue.take(), other.take_many(2):
        assert QueueStats(depth=1, held=3, dead=1, consumers=2, oldest_age=None) == await queue.stats()
    await queue.aclose()
    await other.aclose()

    assert QueueStats(depth=1, held=0, dead=1, consumers=0, oldest_age=None) == await queue.stats()


async def test_stats_of_a_queue_that_does_not_exist_are_zero(queue):
    assert QueueStats(0, 0, 0, 0, None) == await queue.stats()


async def test_dead_consumer_is_not_counted_but_what_it_holds_is(queue, inspector):
    consumer = uuid4().hex
    inspector.zadd(KEYS.consumers, {consumer: time.time() * 1000 - 60_000})
    inspector.rpush(KEYS.processing(consumer), b"1", b"2")

    assert QueueStats(depth=0, held=2, dead=0, consumers=0, oldest_age=None) == await queue.stats()


async def test_stats_count_what_any_number_of_consumers_hold(one_queue, inspector):
    consumers = [uuid4().hex for _ in range(1700)]
    with inspector.pipeline(transaction=False) as pipe:
        pipe.zadd(KEYS.consumers, dict.fromkeys(consumers, NEVER))
        for consumer in consumers:
            pipe.rpush(KEYS.processing(consumer), b"1")
        pipe.execute()

    stats = await one_queue.stats()

    assert (1700, 1700) == (stats.held, stats.consumers)


async def test_member_that_is_no_consumer_does_no_harm(one_queue, inspector):
    inspector.zadd(KEYS.consumers, {b"\xff": NEVER, b"x" * 1000: 1})

    assert 0 == (await one_queue.stats()).held


async def test_oldest_age_is_that_of_the_message_at_the_head(queue, inspector):
    inspector.rpush("mail", sent(1000), sent(5))

    assert 999 < (await queue.stats()).oldest_age < 1000 + 60


async def test_oldest_age_of_put_with_propagate_is_known(make_pool, server):
    queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), propagate=True)
    await queue.put(b"message")

    assert 0 <= (await queue.stats()).oldest_age < 60


@pytest.mark.parametrize(
    "message",
    [
        b"message",
        seal(b"message", {}),
        seal(b"message", {SENT_AT: "yesterday"}),
        seal(b"message", {SENT_AT: "nan"}),
        seal(b"message", {SENT_AT: "0"}),
        b"\x01aioredis_monitored/1{\x02",
        b"\x01",
        b"",
    ],
)
async def test_oldest_age_is_unknown_if_the_message_does_not_say_when(one_queue, inspector, message):
    inspector.rpush("mail", message)

    assert QueueStats(1, 0, 0, 0, None) == await one_queue.stats()


async def test_message_from_the_future_is_new(one_queue, inspector):
    inspector.rpush("mail", sent(-1000))

    assert 0 == (await one_queue.stats()).oldest_age


async def test_looking_changes_nothing(queue, inspector):
    await queue.put_many([b"dies", b"held", b"waits"])
    await fail(queue)
    async with queue.take():
        before = inspector.info("persistence")["rdb_changes_since_last_save"]
        await queue.stats()
        await queue.dead()
        await queue.dead(1)
        await inspector_of(queue).dead_letters(0, 10, with_payloads=True)

        assert before == inspector.info("persistence")["rdb_changes_since_last_save"]


async def test_payloads_do_not_leave_the_server_unless_they_are_asked_for(one_queue, inspector):
    large = b"x" * 3_000_000
    inspector.rpush("mail", sent(10, large))
    inspector.rpush(KEYS.dead, sent(10, large), large)
    before = inspector.info("stats")["total_net_output_bytes"]

    stats = await one_queue.stats()
    total, letters = await inspector_of(one_queue).dead_letters(0, 10, with_payloads=False)

    assert inspector.info("stats")["total_net_output_bytes"] - before < 1_000_000
    assert stats.oldest_age >= 10
    assert (2, [len(large)] * 2, [None] * 2) == (
        total,
        [each.size for each in letters],
        [each.payload for each in letters],
    )
    assert letters[0].age >= 10
    assert letters[1].age is None


async def test_dead_letters_are_read_in_pages(queue, inspector):
    inspector.rpush(KEYS.dead, b"1", sent(10, b"\xff2"), b"\x01\x00three")
    inspect = inspector_of(queue)

    total, [first, second, third] = await inspect.dead_letters(0, 10, with_payloads=True)

    assert 3 == total
    assert DeadLetter(1, None, b"1") == first
    assert (2, b"\xff2", True) == (second.size, second.payload, second.age >= 10)
    assert DeadLetter(7, None, b"\x01\x00three") == third
    assert (3, [DeadLetter(7, None, None)]) == await inspect.dead_letters(2, 10, with_payloads=False)
    assert (3, []) == await inspect.dead_letters(3, 10, with_payloads=False)


async def test_stats_of_a_key_that_is_no_list_raise(queue, inspector):
    inspector.set("mail", "text")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await queue.stats()


async def test_stats_work_with_plain_pools_of_redis_py(server):
    pool = redis.asyncio.ConnectionPool.from_url(server.url)
    queue = MessageQueue("mail", pool)
    await queue.put(b"message")

    assert QueueStats(1, 0, 0, 0, None) == await queue.stats()
    await pool.aclose()


@pytest.mark.parametrize("name", ["mail", "mail{eu}"])
async def test_stats_and_dead_letters_on_a_cluster(cluster, name):
    async with (
        MonitoredConnectionPool.from_url(cluster.url, **UNRECORDED) as pool,
        MessageQueue(name, pool, max_deliveries=1, propagate=True) as queue,
    ):
        await queue.put_many([b"dies", b"dies too", b"held", b"waits"])
        await fail(queue)
        await fail(queue)
        async with queue.take():
            stats = await queue.stats()
        assert (1, 1, 2, 1) == (stats.depth, stats.held, stats.dead, stats.consumers)
        assert 0 <= stats.oldest_age < 60
        assert 1 == await queue.drop_dead(1)
        assert 1 == await queue.requeue_dead()
        assert [b"waits", b"dies too"] == await queue.get_many(10, timeout=0)


# Requeue and drop.


async def test_requeue_and_drop_take_the_oldest_up_to_a_number(queue, inspector):
    inspector.rpush(KEYS.dead, *(b"%d" % number for number in range(7)))

    assert [b"0", b"1"] == await queue.dead(2)
    assert 2 == await queue.requeue_dead(2)
    assert 3 == await queue.drop_dead(3)
    assert [b"5", b"6"] == await queue.dead()
    assert [b"0", b"1"] == await queue.get_many(10, timeout=0)
    assert 2 == await queue.drop_dead(5)
    assert (0, 0) == (await queue.drop_dead(), await queue.requeue_dead())


async def test_any_number_of_dead_letters_is_dropped(one_queue, inspector):
    inspector.rpush(KEYS.dead, *range(1234))

    assert 1234 == await one_queue.drop_dead()
    assert 0 == inspector.exists(KEYS.dead)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1"])
@pytest.mark.parametrize("method", ["dead", "requeue_dead", "drop_dead"])
async def test_number_of_dead_letters_must_be_one(one_queue, method, count):
    with pytest.raises(ValueError, match=r"^count must be an integer of at least 1"):
        await getattr(one_queue, method)(count)


async def test_every_dead_letter_is_dropped_or_requeued_once_while_consumers_make_more(make_pool, server):
    """Each letter that is dropped is gone, each that is requeued comes again: their number is that of the deaths."""
    queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), max_deliveries=1)
    operator = MessageQueue("mail", make_pool(server.url, **UNRECORDED))
    messages = 400
    handled = 0

    async def die(_message):
        nonlocal handled
        handled += 1
        raise LookupError

    consuming = [asyncio.create_task(take_until_cancelled(queue, die)) for _ in range(8)]
    await queue.put_many([b"%d" % number for number in range(messages)])
    requeued = dropped = 0
    async with asyncio.timeout(60):
        while dropped < messages:
            requeued += await operator.requeue_dead(1)
            dropped += await operator.drop_dead(3)
            await operator.stats()
    for task in consuming:
        task.cancel()
    await asyncio.gather(*consuming, return_exceptions=True)

    assert (messages, messages + requeued) == (dropped, handled)
    stats = await queue.stats()
    assert (0, 0, 0) == (stats.depth, stats.held, stats.dead)


async def take_until_cancelled(queue, handle):
    while True:
        try:
            async with queue.take() as message:
                await handle(message)
        except LookupError:
            pass
