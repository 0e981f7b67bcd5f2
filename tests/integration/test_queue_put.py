"""``MessageQueue.put`` and ``put_many``: all or none, in one round trip, and never more than ``max_length``."""

import asyncio
import time

import pytest
import redis.exceptions
from support.sharing import UNRECORDED, begun

from aioredis_monitored import MessageQueue, TimedOutError


@pytest.fixture
def queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED))


@pytest.fixture
def bounded(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED), max_length=3)


@pytest.mark.parametrize(("most", "sent"), [(None, ["RPUSH"]), (100, ["send"])])
async def test_put_many_sends_one_command_for_messages_of_any_type(pool, inspector, telemetry, most, sent):
    queue = MessageQueue("mail", pool, max_length=most)
    await queue.put(b"")
    for messages in ([b"\xff", "ü", 3, 0.5, bytearray(b"array"), memoryview(b"view")], (b"tuple",), {"key": 1}):
        with telemetry.block() as block:
            await queue.put_many(messages)
        assert sent == [line.split()[0] for line in block.tree().splitlines()]
    await queue.put_many(number for number in range(2))

    expected = [b"", b"\xff", "ü".encode(), b"3", b"0.5", b"array", b"view", b"tuple", b"key", b"0", b"1"]
    assert expected == inspector.lrange("mail", 0, -1)


@pytest.mark.parametrize("most", [None, 3])
async def test_put_many_sends_nothing_without_messages(pool, telemetry, most):
    queue = MessageQueue("mail", pool, max_length=most)
    for messages in ([], (), iter(()), {}):
        await queue.put_many(messages, timeout=0)

    assert () == telemetry.spans


@pytest.mark.parametrize(
    "messages", [b"one", "one", bytearray(b"one"), memoryview(b"one"), 1, None], ids=lambda value: type(value).__name__
)
async def test_put_many_raises_on_a_single_message(queue, inspector, messages):
    with pytest.raises(TypeError):
        await queue.put_many(messages)

    assert 0 == inspector.llen("mail")


@pytest.mark.parametrize("most", [None, 3])
async def test_put_many_puts_nothing_when_one_message_is_invalid(make_pool, server, inspector, most):
    queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), max_length=most)
    for bad in (None, {"a": "dict"}, True, ["a list"]):
        with pytest.raises(redis.exceptions.DataError):
            await queue.put_many([b"good", bad, b"good"])

    assert 0 == inspector.llen("mail")


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "1"])
async def test_put_raises_on_invalid_timeout_before_sending(bounded, inspector, timeout):
    with pytest.raises(ValueError, match="timeout must be None or a number of seconds"):
        await bounded.put_many([b"message"], timeout)

    assert 0 == inspector.llen("mail")


async def test_put_raises_without_retrying_when_its_reply_is_lost(make_pool, proxy, inspector):
    for most in (None, 100):
        queue = MessageQueue("mail", make_pool(proxy.url, **UNRECORDED), max_length=most)
        await queue.put(b"first")
        proxy.cut_replies = 1
        with pytest.raises(redis.exceptions.ConnectionError):
            await queue.put_many([b"second", b"third"])

        assert [b"first", b"second", b"third"] == inspector.lrange("mail", 0, -1)
        inspector.delete("mail")


async def test_full_queue_raises_timed_out_error_and_stays_unchanged(bounded, inspector):
    await bounded.put_many([1, 2])
    for messages, timeout in (([3, 4], 0), ([3, 4, 5], 0.0), ([3, 4], 0.1)):
        started = time.monotonic()
        with pytest.raises(TimedOutError, match="Timed out waiting for room in the message queue"):
            await bounded.put_many(messages, timeout)
        assert (0.99 if timeout else 0) <= time.monotonic() - started < 15
        assert [b"1", b"2"] == inspector.lrange("mail", 0, -1)
    await bounded.put(3, 0)
    with pytest.raises(TimeoutError):
        await bounded.put(4, 0)

    assert [b"1", b"2", b"3"] == inspector.lrange("mail", 0, -1)


async def test_put_many_raises_on_more_messages_than_max_length(bounded, inspector):
    with pytest.raises(ValueError, match="4 messages exceed the queue's max_length of 3"):
        await bounded.put_many(range(4))
    await bounded.put_many(range(3))

    assert 3 == inspector.llen("mail")


@pytest.mark.parametrize("timeout", [20, None])
async def test_put_waits_until_the_queue_has_room(bounded, inspector, until, timeout):
    await bounded.put_many([1, 2, 3])
    (putting,) = await begun(bounded.put(4, timeout))
    calls = inspector.info("commandstats")["cmdstat_evalsha"]["calls"]
    # The put has polled in vain.
    await until(lambda: inspector.info("commandstats")["cmdstat_evalsha"]["calls"] > calls + 2)
    assert not putting.done()
    assert b"1" == await bounded.get()
    await putting

    assert [b"2", b"3", b"4"] == inspector.lrange("mail", 0, -1)


async def test_put_cancelled_while_waiting_puts_nothing(bounded, inspector, until):
    await bounded.put_many([1, 2, 3])
    (putting,) = await begun(bounded.put(4))
    calls = inspector.info("commandstats")["cmdstat_evalsha"]["calls"]
    await until(lambda: inspector.info("commandstats")["cmdstat_evalsha"]["calls"] > calls + 2)
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    inspector.delete("mail")
    await bounded.put(5)

    assert putting.cancelled()
    assert [b"5"] == inspector.lrange("mail", 0, -1)


async def test_nacked_message_returns_to_a_full_queue(bounded, inspector):
    await bounded.put_many([1, 2, 3])
    with pytest.raises(ValueError, match="failed"):
        async with bounded.take():
            await bounded.put(4, 0)
            raise ValueError("failed")

    assert [b"2", b"3", b"4", b"1"] == inspector.lrange("mail", 0, -1)


@pytest.mark.parametrize("multiplex", [True, False])
async def test_concurrent_put_and_get_never_exceed_max_length(make_pool, server, client, inspector, multiplex):
    queue = MessageQueue("mail", make_pool(server.url, multiplex=multiplex, **UNRECORDED), max_length=5)
    lengths, received = [], []

    async def put(putter):
        for number in range(10):
            first = 100 * putter + 3 * number
            await queue.put_many(range(first, first + number % 3 + 1))

    async def get():
        while True:
            received.append(int(await queue.get()))

    async def watch():
        while True:
            lengths.append(await client.llen("mail"))

    others = [asyncio.create_task(each) for each in (get(), get(), watch())]
    await asyncio.gather(*(put(putter) for putter in range(10)))
    while inspector.llen("mail"):
        await asyncio.sleep(0)
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    received += map(int, inspector.lrange("mail", 0, -1))

    assert max(lengths) <= 5
    put_in = [100 * putter + 3 * n + more for putter in range(10) for n in range(10) for more in range(n % 3 + 1)]
    assert put_in == sorted(received)
