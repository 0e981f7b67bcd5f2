"""``MessageQueue.get``: a message on its way to a caller that leaves is neither lost nor delivered twice."""

import asyncio
import logging
import time
from collections import Counter

import pytest
import redis.asyncio
from support.internals import BLOCKING_COROUTINE, SETTLING_COROUTINES, awaited_future_of
from support.sharing import UNRECORDED, begun, frozen, until_blocked

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, TimedOutError
from aioredis_monitored._multiplexer.futures import CommandFuture

MESSAGES = 10_000
CANCELS = 10_000
MIN_CANCELS_PER_MOMENT = 1_000
MOMENTS = ["LPOP pending", "LPOP read", "BLPOP", "settling"]


@pytest.fixture
def queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED))


def moment_of(task):
    """Return where in a ``get`` a task is."""
    names, waits_in = [], task.get_coro()
    while hasattr(waits_in, "cr_await"):
        names.append(waits_in.cr_code.co_name)
        waits_in = waits_in.cr_await
    waits_for = awaited_future_of(task)
    if SETTLING_COROUTINES & set(names):
        return "settling"
    if isinstance(waits_for, CommandFuture):
        return "LPOP read" if waits_for.done() else "LPOP pending"
    return "BLPOP" if BLOCKING_COROUTINE in names else "elsewhere"


class Storm:
    """Eight consumers that are cancelled repeatedly, and what happened to the messages."""

    def __init__(self, queue, dice):
        self.queue, self.dice = queue, dice
        self.received, self.cancels = Counter(), Counter()
        self.consumers = set()

    async def run_until(self, produce, is_over):
        deadline = time.monotonic() + 100
        while not is_over(self) and time.monotonic() < deadline:
            await produce()
            while len(self.consumers) < 8:
                self.consumers.add(asyncio.create_task(self._consume()))
            for _ in range(self.dice.choice([0, 1, 1, 2, 3, 5])):
                await asyncio.sleep(0)
            if self.dice.random() < 0.1:
                await asyncio.sleep(self.dice.random() * 0.002)
            running = [consumer for consumer in self.consumers if not consumer.done()]
            for consumer in self.dice.sample(running, min(len(running), self.dice.randrange(6))):
                self.cancels[moment_of(consumer)] += 1
                consumer.cancel()
            self._reap()
        for consumer in self.consumers:
            consumer.cancel()
        await asyncio.gather(*self.consumers, return_exceptions=True)
        self._reap()

    async def _consume(self):
        self.received[int(await self.queue.get())] += 1

    def _reap(self):
        for consumer in [each for each in self.consumers if each.done()]:
            self.consumers.remove(consumer)
            if not consumer.cancelled():
                consumer.result()


@pytest.mark.slow
async def test_get_loses_no_message_under_random_cancellation(queue, client, inspector, dice):
    opened = inspector.info("stats")["total_connections_received"]
    connecting = await begun(*(queue.get() for _ in range(8)))
    await until_blocked(inspector, 8)
    inspector.rpush("mail", *range(8))
    await asyncio.gather(*connecting)
    storm = Storm(queue, dice)
    produced = 0

    async def keep_filled():
        nonlocal produced
        # Cancelled messages are fetched again, so that every moment takes more cancellations than there are messages.
        if produced < MESSAGES // 2:
            await client.rpush("mail", *range(produced, MESSAGES // 2))
            produced = MESSAGES // 2

    async def trickle():
        nonlocal produced
        if produced < MESSAGES and dice.random() < 0.6:
            more = min(MESSAGES, produced + dice.randrange(1, 4))
            await client.rpush("mail", *range(produced, more))
            produced = more

    def has_seen(total, messages, moments):
        def is_over(storm):
            enough = storm.cancels.total() >= total and all(
                storm.cancels[moment] >= MIN_CANCELS_PER_MOMENT for moment in moments
            )
            return enough and storm.received.total() >= messages

        return is_over

    await storm.run_until(keep_filled, has_seen(CANCELS // 2, MESSAGES // 2, []))
    await storm.run_until(trickle, has_seen(CANCELS, MESSAGES, []))
    extra = MESSAGES
    while not has_seen(CANCELS, MESSAGES, MOMENTS)(storm):
        # Until each moment has occurred often enough.
        await client.rpush("mail", *range(extra, extra + 500))
        extra += 500
        await storm.run_until(trickle, has_seen(CANCELS, extra, []))
    left = list(map(int, inspector.lrange("mail", 0, -1)))
    storm.received.update(left)
    opened = inspector.info("stats")["total_connections_received"] - opened
    print(f"{storm.cancels.total()} cancels {dict(storm.cancels)}, {extra} messages, {opened} connections opened")

    assert dict.fromkeys(range(extra), 1) == dict(storm.received)
    assert all(storm.cancels[moment] >= MIN_CANCELS_PER_MOMENT for moment in MOMENTS)
    assert opened <= 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unshared", "plain", "one connection"])
@pytest.mark.parametrize("is_filled", [True, False])
async def test_get_loses_no_message_under_random_cancellation_without_shared_connection(
    server, client, dice, inspector, kind, is_filled
):
    pool = MonitoredConnectionPool.from_url(server.url, multiplex=False, **UNRECORDED)
    if kind == "plain":
        pool = redis.asyncio.BlockingConnectionPool.from_url(server.url)
    connection = MonitoredRedisConnection(connection_pool=pool)
    storm = Storm(MessageQueue("mail", connection.client() if kind == "one connection" else connection), dice)
    produced = 0

    async def produce():
        nonlocal produced
        more = min(300, 300 if is_filled else produced + dice.randrange(1, 4))
        if more > produced:
            await client.rpush("mail", *range(produced, more))
            produced = more

    await storm.run_until(produce, lambda storm: storm.received.total() >= 300)
    await storm.queue.client.aclose()
    await pool.aclose()
    storm.received.update(map(int, inspector.lrange("mail", 0, -1)))

    assert dict.fromkeys(range(300), 1) == dict(storm.received)
    assert storm.cancels.total() > 100


async def test_connection_is_reused_after_a_cancelled_get(queue, inspector):
    opened = inspector.info("stats")["total_connections_received"]
    for _ in range(20):
        (waiting,) = await begun(queue.get())
        await until_blocked(inspector)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await queue.put(b"message")

    assert b"message" == await queue.get()
    assert 2 == inspector.info("stats")["total_connections_received"] - opened


async def test_requeued_messages_keep_their_order(make_pool, own_server):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED))
    await queue.put_many([1, 2, 3, 4])
    async with frozen(own_server):
        (waiting,) = await begun(queue.get_many(3))
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    assert [b"1", b"2", b"3", b"4"] == await queue.get_many(5)


async def test_get_continues_after_client_unblock(queue, inspector):
    (waiting,) = await begun(queue.get(5))
    await until_blocked(inspector)
    (blocked,) = [each for each in inspector.client_list() if each["cmd"] == "blpop"]
    inspector.client_unblock(blocked["id"])
    inspector.client_unblock(blocked["id"], error=False)
    await until_blocked(inspector)
    inspector.rpush("mail", "late")

    assert b"late" == await waiting


async def test_get_raises_on_client_unblock_with_error(queue, inspector):
    (waiting,) = await begun(queue.get(5))
    await until_blocked(inspector)
    (blocked,) = [each for each in inspector.client_list() if each["cmd"] == "blpop"]
    inspector.client_unblock(blocked["id"], error=True)

    with pytest.raises(redis.exceptions.ResponseError, match="UNBLOCKED"):
        await waiting


async def test_get_can_be_cancelled_when_the_pool_is_exhausted(make_pool, server, inspector):
    for multiplex in (True, False):
        queue = MessageQueue("mail", make_pool(server.url, max_connections=3, multiplex=multiplex, **UNRECORDED))
        count = 2 if multiplex else 3
        waiting = await begun(*(queue.get() for _ in range(count)))
        await until_blocked(inspector, count)
        for each in waiting:
            each.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)

        assert [asyncio.CancelledError] * count == list(map(type, outcomes))
        await queue.client.connection_pool.aclose()


@pytest.mark.parametrize("timeout", [0, 1, None])
async def test_get_loses_no_message_when_the_event_loop_ends(server, inspector, timeout):
    # asyncio.run cancels every task, including those that put messages back.
    inspector.rpush("mail", *range(100))

    async def main():
        pool = MonitoredConnectionPool.from_url(server.url, **UNRECORDED)
        queue = MessageQueue("mail", pool)
        await pool.ping()
        received.extend(await asyncio.gather(queue.get(), queue.get()))
        for _ in range(30):
            asyncio.get_running_loop().create_task(consume(queue))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        pools.append(pool)

    async def consume(queue):
        while True:
            received.append(await queue.get(timeout))

    received, pools = [], []
    await asyncio.to_thread(asyncio.run, main())
    await pools[0].aclose()

    assert set(map(str, range(100))) == {m.decode() for m in (*received, *inspector.lrange("mail", 0, -1))}
    assert 100 == len(received) + inspector.llen("mail")


async def test_cancelled_get_warns_within_a_second_when_its_outcome_is_unknown(make_pool, own_server, caplog):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=600, **UNRECORDED))
    await queue.put(b"message")
    for timeout in (0, None):
        async with frozen(own_server):
            (waiting,) = await begun(queue.get(timeout))
            waiting.cancel()
            loop = asyncio.get_running_loop()
            started = loop.time()
            with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
                await asyncio.gather(waiting, return_exceptions=True)
            assert 0.9 <= loop.time() - started < 15
    assert ["queue 'mail': a message that a cancelled get() was receiving may be lost"] * 2 == caplog.messages

    # The message was not lost: the reply came later, and the message went back.
    assert b"message" == await queue.get(5)


async def test_message_is_requeued_when_its_reply_arrives_after_the_timeout(make_pool, own_server, until, inspector):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=8, retries=0, **UNRECORDED))
    await queue.put(b"message")
    async with frozen(own_server):
        calls = await begun(queue.get(0))
        started = time.monotonic()
        await until(lambda: time.monotonic() - started > 6)
        # The connection stays busy, and is therefore not closed when the call is given up.
        calls += await begun(queue.client.ping())
        with pytest.raises(redis.exceptions.TimeoutError):
            await calls[0]
    await asyncio.gather(*calls, return_exceptions=True)

    assert b"message" == await queue.get(5)


async def test_get_many_returns_up_to_count_messages(queue):
    await queue.put_many(range(5))

    assert [b"0", b"1", b"2"] == await queue.get_many(3)
    assert [b"3", b"4"] == await queue.get_many(3, 0)
    with pytest.raises(TimedOutError):
        await queue.get_many(3, 0)
    (waiting,) = await begun(queue.get_many(3))
    await queue.put_many(["a", "b"])
    assert [b"a"] == (await waiting)[:1]


@pytest.mark.parametrize("count", [0, -1, 1.5, "1", True, None])
async def test_get_many_and_take_many_raise_on_invalid_count(queue, count):
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got"):
        await queue.get_many(count)
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got"):
        queue.take_many(count)
