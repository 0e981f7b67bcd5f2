"""A server with full memory: operations that free memory work, and no living holder counts as dead."""

import asyncio
import logging
import time
from collections import Counter
from contextlib import contextmanager

import pytest
import redis.asyncio
import redis.exceptions
from support.consuming import blocked, die, held, hold_and_die, living
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, TimedOutError
from aioredis_monitored._execution import fetch as fetched
from aioredis_monitored._execution import fetch as waiting


@pytest.fixture
def operator(own_server):
    """Return redis-py's blocking client of a server that the test may fill."""
    with redis.Redis.from_url(own_server.url) as operator:
        yield operator


@pytest.fixture(params=["shared", "unshared", "plain", "one connection"])
async def queue(request, make_pool, own_server):
    """Yield a queue on each kind of client."""
    if request.param == "plain":
        client = redis.asyncio.Redis.from_url(own_server.url)
    else:
        pool = make_pool(own_server.url, multiplex=request.param != "unshared", **UNRECORDED)
        client = MonitoredRedisConnection(connection_pool=pool)
    if request.param == "one connection":
        client = client.client()
    async with client, MessageQueue("mail", client, lease=1, max_deliveries=2) as queue:
        yield queue


@contextmanager
def memory_kept_full(operator):
    """Keep the server's memory full, also when acknowledgements have freed some."""
    for number in range(100):
        operator.set(f"filler:{number}", bytes(10_000))
    operator.config_set("maxmemory", 1)
    assert_memory_full(operator)
    yield
    assert_memory_full(operator)


def assert_memory_full(operator):
    """Check that the server refuses writes for want of memory."""
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        operator.rpush("refused", "message")


def push(operator, message):
    """Push a message although memory is full."""
    operator.eval("redis.call('PERSIST', KEYS[1]) redis.call('RPUSH', KEYS[1], ARGV[1])", 1, "mail", message)


def count_rejected_waits(operator):
    """Return how often the server has refused to wait."""
    return operator.info("commandstats").get("cmdstat_blmove", {}).get("rejected_calls", 0)


async def wait_for_sweep(inspector, until):
    """Wait until the messages of dead consumers were checked once, from beginning to end."""
    for _ in range(3):
        inspector.delete("{mail}:sweeper")
        await until(lambda: inspector.exists("{mail}:sweeper"))


async def consumed(queue, handler, is_over, until):
    """Consume until a condition is true."""
    working = asyncio.create_task(queue.consume(handler))
    await until(lambda: is_over() or working.done(), 30)
    working.cancel()
    await asyncio.wait([working])
    assert working.cancelled(), working.exception()


async def test_consume_empties_queue_while_memory_is_full(queue, operator, until):
    operator.rpush("mail", *range(500))
    handled = []

    async def handle(message):
        handled.append(message)

    with memory_kept_full(operator):
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await queue.put(b"refused")
        await consumed(queue, handle, lambda: len(handled) == 500, until)

    assert [str(number).encode() for number in range(500)] == sorted(handled, key=int)
    assert [0, []] == [operator.llen("mail"), held(operator)]


async def test_waiting_take_receives_message_while_memory_is_full(queue, operator, until):
    # The server refuses to wait for a message; Redis does so even for an empty queue.
    with memory_kept_full(operator):
        (waiting,) = await begun(_take_one(queue, None))
        for _ in range(3):
            asked = count_rejected_waits(operator)
            await until(lambda asked=asked: count_rejected_waits(operator) > asked)
        push(operator, "back")
        assert b"back" == await waiting

        with pytest.raises(TimedOutError):
            await _take_one(queue, 1)


async def test_waiting_take_backs_off_while_memory_is_full(queue, operator):
    queue = MessageQueue("mail", queue.client)
    with memory_kept_full(operator):
        before = count_rejected_waits(operator)
        with pytest.raises(TimedOutError):
            await _take_one(queue, 2)

        # The pauses start at 10 ms and double.
        assert 2 <= count_rejected_waits(operator) - before <= 20


async def test_blocked_take_continues_when_memory_becomes_full(queue, operator, until):
    (waiting,) = await begun(_take_one(queue, None))
    await until(lambda: blocked(operator))
    with memory_kept_full(operator):
        push(operator, "message")
        assert b"message" == await waiting
        assert [] == held(operator)


async def test_failed_and_cancelled_takes_requeue_while_memory_is_full(queue, operator):
    operator.rpush("mail", *range(6))
    with memory_kept_full(operator):
        for error in (ValueError, asyncio.CancelledError):
            with pytest.raises(error):
                async with queue.take(0):
                    raise error
        with pytest.raises(asyncio.CancelledError):
            async with queue.take_many(2, 0):
                raise asyncio.CancelledError

        assert [b"2", b"3", b"4", b"5", b"0"] == operator.lrange("mail", 0, -1)
        with pytest.raises(ValueError, match="again"):
            async with queue.take(0):
                raise ValueError("again")

    assert [b"1", b"2"] == await queue.dead()
    assert [[b"3", b"4", b"5", b"0"], []] == [operator.lrange("mail", 0, -1), held(operator)]


async def test_failing_messages_become_dead_letters_while_memory_is_full(queue, operator, until):
    operator.rpush("mail", *range(100))
    failed = Counter()

    async def fail(message):
        failed[message] += 1
        raise ValueError(message)

    with memory_kept_full(operator):
        await consumed(queue, fail, lambda: operator.llen("{mail}:dead") == 100, until)
        assert {str(number).encode(): 2 for number in range(100)} == failed
        assert 100 == len(await queue.dead())
        assert 100 == await queue.requeue_dead()
    assert [100, [], []] == [operator.llen("mail"), held(operator), await queue.dead()]


@pytest.fixture
def long_settle_time(monkeypatch):
    """Give messages as much time to be put back as a slow machine needs."""
    for module in (fetched, waiting):
        monkeypatch.setattr(module, "SETTLE_SECONDS", 60)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.usefixtures("long_settle_time")
async def test_cancelled_gets_lose_no_message_while_memory_is_full(queue, operator, until, dice, count):
    operator.rpush("mail", *range(250))
    received = []

    async def get(timeout):
        received.extend(await (queue.get_many(count, timeout) if count else _get_one(queue, timeout)))

    with memory_kept_full(operator):
        for number in range(250):
            getting = asyncio.ensure_future(get(dice.choice([0, None])))
            for _ in range(dice.randrange(8)):
                await asyncio.sleep(0)
            if number % 5 == 0:
                await asyncio.sleep(dice.random() * 0.002)
            getting.cancel()
            await asyncio.gather(getting, return_exceptions=True)

        # Messages whose callers had left go back to the queue, behind the others.
        await until(lambda: len(received) + operator.llen("mail") == 250, 30)
    assert [str(number).encode() for number in range(250)] == sorted(
        [*received, *operator.lrange("mail", 0, -1)], key=int
    )


@pytest.mark.usefixtures("long_settle_time")
async def test_cancelled_blocked_gets_lose_no_message_while_memory_is_full(queue, operator, until):
    with memory_kept_full(operator):
        for _ in range(25):
            (getting,) = await begun(queue.get(None))
            await until(lambda: blocked(operator))
            getting.cancel()
            push(operator, "message")
            (outcome,) = await asyncio.gather(getting, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)
            assert b"message" == operator.lpop("mail")


async def test_messages_of_dead_consumer_are_recovered_while_memory_is_full(queue, operator, own_server, until):
    operator.rpush("mail", *range(251))
    hold_and_die(own_server, 250)
    with memory_kept_full(operator):
        # A consumer that holds a message recovers those of dead consumers, and takes no others meanwhile.
        async with queue.take(0):
            await until(lambda: operator.llen("mail") == 250, 30)
        async with queue.take_many(1_000, 0) as messages:
            assert [str(number).encode() for number in range(250)] == messages
            assert sorted(messages) == sorted(held(operator))

    assert [0, []] == [operator.llen("mail"), held(operator)]


async def test_lease_renewal_works_while_memory_is_full(queue, operator, until):
    operator.rpush("mail", "message")
    with memory_kept_full(operator):
        async with queue.take(0):
            operator.config_set("maxmemory", 0)
            die(operator, *operator.zrange("{mail}:c", 0, -1))
            operator.config_set("maxmemory", 1)
            await until(lambda: living(operator))
    assert [] == held(operator)


async def _take_one(queue, timeout):
    async with queue.take(timeout) as message:
        return message


async def _get_one(queue, timeout):
    return [await queue.get(timeout)]


POLICIES = ["volatile-ttl", "volatile-lru", "volatile-lfu", "volatile-random"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_lease_keys_of_live_consumer_are_not_evictable(make_pool, own_server, operator, until, policy):
    # The lease does not end while this process fills the server.
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=60, max_deliveries=10)
    operator.rpush("mail", "failed", "message")
    with pytest.raises(ValueError, match="failed"):
        async with queue.take(0):
            raise ValueError("failed")
    async with queue.take(0) as message:
        assert b"message" == message
        assert b"failed" == await queue.get(0)
        (consumer,) = living(operator)
        operator.config_set("maxmemory-policy", policy)
        operator.config_set("maxmemory", operator.info("memory")["used_memory"] + 500_000)
        evicted = operator.info("stats")["evicted_keys"]
        for number in range(100_000):
            operator.set(f"filler:{number}", bytes(1_000), ex=3_600)
            if operator.info("stats")["evicted_keys"] - evicted > 2_000:
                break
        of_queue = {key.decode() for key in operator.keys("*mail*")}
        assert {"{mail}:c", "{mail}:n"} == {key for key in of_queue if ":p:" not in key}
        assert {-1} == {operator.ttl(key) for key in of_queue}

        # Other consumers look for messages of dead ones.
        other = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=1)
        (waiting,) = await begun(_take_one(other, None))
        looks = operator.info("commandstats").get("cmdstat_zrangebyscore", {}).get("calls", 0)
        await until(lambda: operator.info("commandstats")["cmdstat_zrangebyscore"]["calls"] > looks + 2)
        assert [[b"message"], 1] == [held(operator), len(living(operator) & {consumer})]
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert [] == held(operator)


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "allkeys-lru", "allkeys-random"])
async def test_queue_warns_once_about_evicting_maxmemory_policy(make_pool, own_server, operator, until, caplog, policy):
    operator.config_set("maxmemory-policy", policy)
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=1)
    operator.rpush("mail", "message")
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        async with queue.take():
            await wait_for_sweep(operator, until)

    expected = (
        f"queue 'mail': the server's maxmemory-policy is {policy}, which deletes messages when memory is short: "
        "set noeviction or one of volatile-*"
    )
    assert ([expected] if policy.startswith("allkeys") else []) == caplog.messages


async def test_leases_work_for_user_without_info_permission(make_pool, own_server, operator, until):
    operator.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    queue = MessageQueue("mail", make_pool(own_server.url, username="limited", **UNRECORDED), lease=1)
    operator.rpush("mail", "message")
    async with queue.take():
        await wait_for_sweep(operator, until)
        die(operator, *operator.zrange("{mail}:c", 0, -1))
        await until(lambda: living(operator))


@pytest.fixture
def counting(make_pool, server, inspector):
    """Return a function that makes a queue with the count of a message that failed, and that others then popped."""

    async def make():
        queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), lease=1)
        await queue.put(b"failed")
        with pytest.raises(ValueError, match="failed"):
            async with queue.take(0):
                raise ValueError("failed")
        assert [b"failed", 1] == [inspector.lpop("mail"), inspector.hlen("{mail}:n")]
        return queue

    return make


async def test_stale_delivery_counts_are_deleted_when_queue_is_empty(counting, inspector, until):
    queue = await counting()
    await queue.put_many([b"held", b"waiting"])
    async with queue.take(0):
        await wait_for_sweep(inspector, until)
        assert 1 == inspector.hlen("{mail}:n")
        assert b"waiting" == await queue.get(0)
        await wait_for_sweep(inspector, until)
        # The message is held.
        assert 1 == inspector.hlen("{mail}:n")
    (waiting,) = await begun(_take_one(queue, None))
    await until(lambda: not inspector.exists("{mail}:n"))
    inspector.rpush("mail", "last")
    assert b"last" == await waiting


async def test_excess_delivery_counts_are_deleted(counting, inspector, until):
    queue = await counting()
    await queue.put(b"held")
    excess = 10_000 + 2
    async with queue.take(0):
        inspector.hset("{mail}:n", mapping=dict.fromkeys(range(excess - 1), 1))
        await wait_for_sweep(inspector, until)
        assert excess == inspector.hlen("{mail}:n")
        inspector.hset("{mail}:n", "one more", 1)
        await until(lambda: not inspector.exists("{mail}:n"))


async def test_delivery_counts_are_kept_when_processing_list_is_invalid(counting, inspector, until):
    queue = await counting()
    die(inspector, "broken")
    inspector.set("{mail}:p:broken", "no list")
    (waiting,) = await begun(_take_one(queue, None))
    await wait_for_sweep(inspector, until)
    assert 1 == inspector.hlen("{mail}:n")
    inspector.rpush("mail", "last")
    assert b"last" == await waiting


async def _recovery_delay_ms(queue, inspector, until, has_lapsed):
    """Return the server's milliseconds from the leases' end to the recovery of a dead consumer's messages."""

    def now():
        seconds, microseconds = inspector.time()
        return seconds * 1e3 + microseconds / 1e3

    await queue.put(b"held")
    async with queue.take(0):
        await until(lambda: inspector.exists("{mail}:sweeper"))
        await has_lapsed()
        # As late as all other consumers that the server did not answer.
        lapsed = now()
        inspector.rpush("{mail}:p:other", "other's")
        die(inspector, "other")
        await until(lambda: inspector.exists("mail"), 20)
        return now() - lapsed


async def test_recovery_waits_one_lease_after_outage(make_pool, own_server, operator, until):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=0.1, **UNRECORDED), lease=1)

    async def outage():
        async with frozen(own_server):
            started = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > started + 1.2)

    assert 900 <= await _recovery_delay_ms(queue, operator, until, outage)


async def test_recovery_waits_one_lease_after_event_loop_standstill(make_pool, server, inspector, until):
    queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), lease=1)

    async def stand_still():
        time.sleep(1.2)  # noqa: ASYNC251 - this must block the loop

    assert 900 <= await _recovery_delay_ms(queue, inspector, until, stand_still)


@pytest.mark.slow
async def test_outage_of_two_leases_redelivers_no_message_of_live_consumer(make_pool, own_server, operator, until):
    queues = [
        MessageQueue("mail", make_pool(own_server.url, socket_timeout=0.1 * n, **UNRECORDED), lease=1)
        for n in range(1, 9)
    ]
    operator.rpush("mail", *range(8))
    taken, may_end = [], asyncio.Event()

    async def hold(queue):
        async with queue.take() as message:
            taken.append(message)
            await may_end.wait()

    holding = [asyncio.create_task(hold(queue)) for queue in queues]
    await until(lambda: len(taken) == 8)
    async with frozen(own_server):
        started = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > started + 2)
    with pytest.raises(TimedOutError):
        await _take_one(MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=1), 4)
    may_end.set()
    await asyncio.gather(*holding)

    assert [8, []] == [len(taken), held(operator)]
