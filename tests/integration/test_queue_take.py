"""``MessageQueue.take``: a message is deleted when its block succeeds, and delivered again otherwise."""

import asyncio
import time
from collections import Counter

import pytest
import redis.asyncio
import redis.exceptions
from support.consuming import blocked, held
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import DedicatedConnectionError, MessageQueue, MonitoredRedisConnection, TimedOutError

KINDS = {
    "shared": {},
    "unshared": {"multiplex": False},
    "RESP2": {"protocol": 2},
    "decoding": {"decode_responses": True},
    "decoding, unshared": {"decode_responses": True, "multiplex": False},
}


@pytest.fixture
def queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED))


@pytest.fixture(params=[*KINDS, "plain", "one connection"])
async def queue_of_any_kind(request, make_pool, server):
    """Yield a queue on each kind of client."""
    if request.param == "plain":
        client = redis.asyncio.Redis.from_url(server.url)
    else:
        pool = make_pool(server.url, **UNRECORDED, **KINDS.get(request.param, {}))
        client = MonitoredRedisConnection(connection_pool=pool)
    if request.param == "one connection":
        client = client.client()
    async with client, MessageQueue("mail", client) as queue:
        yield queue


async def test_take_holds_a_message_during_its_block_and_deletes_it_afterwards(queue_of_any_kind, inspector):
    queue = queue_of_any_kind
    for timeout in (0, 1, None):
        for message in (b"", b"\xff\xfe", b"text"):
            inspector.rpush("mail", message)
            async with queue.take(timeout) as taken:
                assert message == taken
                assert [message] == held(inspector)
                assert 0 == inspector.llen("mail")
            assert [] == held(inspector)


async def test_take_returns_a_message_that_arrives_later(queue_of_any_kind, inspector, until):
    async def take():
        async with queue_of_any_kind.take() as message:
            return message, held(inspector)

    (waiting,) = await begun(take())
    await until(lambda: blocked(inspector))
    inspector.rpush("mail", "late")

    assert (b"late", [b"late"]) == await waiting
    assert [] == held(inspector)


async def test_take_requeues_at_tail_on_error_and_at_head_on_cancellation(queue_of_any_kind, inspector):
    ends = [(ValueError, [b"2", b"1"]), (asyncio.CancelledError, [b"1", b"2"]), (GeneratorExit, [b"1", b"2"])]
    for kind, expected in ends:
        inspector.delete("mail")
        inspector.rpush("mail", 1, 2)
        with pytest.raises(kind):
            async with queue_of_any_kind.take():
                raise kind

        assert expected == inspector.lrange("mail", 0, -1)
        assert [] == held(inspector)


async def test_take_many_acks_and_requeues_its_messages_together(queue_of_any_kind, inspector):
    queue = queue_of_any_kind
    for timeout in (0, 1, None):
        await queue.put_many(range(7))
        with pytest.raises(ValueError, match="tail"):
            async with queue.take_many(3, timeout) as messages:
                raise ValueError("tail")
        assert [b"0", b"1", b"2"] == messages
        with pytest.raises(asyncio.CancelledError):
            async with queue.take_many(2, timeout):
                raise asyncio.CancelledError
        async with queue.take_many(10, timeout) as messages:
            assert messages == held(inspector)
        assert [b"3", b"4", b"5", b"6", b"0", b"1", b"2"] == messages
        assert [0, []] == [inspector.llen("mail"), held(inspector)]


async def test_take_raises_timed_out_error_on_an_empty_queue(queue_of_any_kind, inspector):
    for timeout in (0, 0.0, 0.2):
        started = time.monotonic()
        with pytest.raises(TimedOutError, match="Timed out waiting for the message queue"):
            async with queue_of_any_kind.take(timeout):
                pytest.fail("there was nothing")
        assert (0.99 if timeout else 0) <= time.monotonic() - started < 15


@pytest.mark.parametrize("timeout", [-1, float("nan"), True, "1"])
async def test_take_raises_on_invalid_timeout_before_sending(queue, timeout):
    with pytest.raises(ValueError, match="timeout must be None or a number of seconds"):
        queue.take(timeout)
    with pytest.raises(ValueError, match="timeout must be None or a number of seconds"):
        queue.take_many(2, timeout)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"lease": value} for value in (0, 0.5, -1, float("nan"), float("inf"), "1", True, None)),
        *({name: value} for name in ("max_deliveries", "max_length") for value in (0, -1, 1.5, "1", True)),
    ],
    ids=repr,
)
def test_queue_raises_on_invalid_argument(pool, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} must be a"):
        MessageQueue("mail", pool, **arguments)


async def test_take_get_and_lpop_share_one_list(queue, inspector):
    inspector.rpush("mail", 1, 2, 3)
    async with queue.take() as one:
        assert b"2" == await queue.get()
        assert b"3" == inspector.lpop("mail")

    assert b"1" == one


async def test_nested_take_holds_another_message(queue, inspector):
    await queue.put_many([1, 2])
    with pytest.raises(ValueError, match="outer"):
        async with queue.take() as one:
            async with queue.take() as two:
                assert [b"1", b"2"] == sorted(held(inspector))
            assert [one] == held(inspector)
            raise ValueError("outer")

    assert [[b"1"], b"2"] == [inspector.lrange("mail", 0, -1), two]


async def test_queue_reloads_its_scripts_after_a_script_flush(queue, inspector):
    for _ in range(2):
        inspector.script_flush()
        await queue.put(b"message")
        async with queue.take(0):
            inspector.script_flush()
    assert [] == held(inspector)


async def test_take_cancelled_while_waiting_takes_nothing(queue_of_any_kind, inspector, until):
    for _ in range(3):
        (waiting,) = await begun(_take_messages(queue_of_any_kind))
        await until(lambda: blocked(inspector))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
    await queue_of_any_kind.put(b"message")

    assert b"message" == await queue_of_any_kind.get(0)


@pytest.mark.parametrize("timeout", [0, None])
async def test_take_cancelled_before_its_reply_arrives_requeues_messages(make_pool, own_server, timeout):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=30)
    await queue.put_many([1, 2, 3, 4])
    async with frozen(own_server):
        (taking,) = await begun(_take_messages(queue, timeout, 3))
        taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)

    assert taking.cancelled()
    assert [b"1", b"2", b"3", b"4"] == await queue.get_many(5, 0)


@pytest.mark.parametrize(("error", "expected"), [(None, [b"2"]), (ValueError(), [b"2", b"1"])])
async def test_ack_or_requeue_completes_despite_cancellation(make_pool, own_server, until, error, expected):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=30)
    await queue.put_many([1, 2])
    holds, may_end = asyncio.Event(), asyncio.Event()

    async def take():
        async with queue.take():
            holds.set()
            await may_end.wait()
            if error is not None:
                raise error

    taking = asyncio.create_task(take())
    await holds.wait()
    async with frozen(own_server):
        may_end.set()
        await begun()
        for _ in range(3):
            taking.cancel()
            await begun()
    await asyncio.gather(taking, return_exceptions=True)

    assert taking.cancelled()
    assert expected == await queue.get_many(3, 0)


async def _take_messages(queue, timeout=None, count=1):
    async with queue.take_many(count, timeout) as messages:
        return messages


async def test_take_acks_each_message_once_under_random_cancellation(queue_of_any_kind, client, inspector, dice):
    queue, handled, running = queue_of_any_kind, Counter(), set()
    await client.rpush("mail", *range(300))
    deadline = time.monotonic() + 120

    async def work():
        async with queue.take() as message:
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            handled[message] += 1

    while sum(handled.values()) < 300 and time.monotonic() < deadline:
        running |= {asyncio.create_task(work()) for _ in range(8 - len(running))}
        for _ in range(dice.randrange(20)):
            await asyncio.sleep(0)
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.003)
        for task in dice.sample(sorted(running, key=id), dice.randrange(3)):
            task.cancel()
        running = {task for task in running if not task.done() or (not task.cancelled() and task.result())}
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)

    assert {str(number).encode(): 1 for number in range(300)} == handled
    assert [0, []] == [inspector.llen("mail"), held(inspector)]


@pytest.mark.parametrize("is_answered", [True, False])
async def test_ack_is_retried_when_its_connection_is_lost(make_pool, proxy, inspector, is_answered):
    queue = MessageQueue("mail", make_pool(proxy.url, **UNRECORDED), lease=30)
    for number in range(5):
        await queue.put(number)
        async with queue.take():
            if is_answered:
                proxy.cut_replies = 1
            else:
                proxy.cut()

    assert [0, []] == [inspector.llen("mail"), held(inspector)]


async def test_unanswered_ack_raises_timeout_error_and_redelivers_the_message(make_pool, server, proxy):
    queue = MessageQueue("mail", make_pool(server.url, **UNRECORDED), lease=1)
    cut_off = MessageQueue("mail", make_pool(proxy.url, socket_timeout=1, **UNRECORDED), lease=1)
    await queue.put(b"message")
    async with asyncio.timeout(20):
        with pytest.raises(redis.exceptions.TimeoutError):
            async with cut_off.take():
                proxy.silent = True

    async with queue.take(30) as again:
        assert b"message" == again


async def test_ack_to_a_dead_server_raises_in_bounded_time(make_pool, own_server):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=1, **UNRECORDED), lease=1)
    await queue.put(b"message")
    async with asyncio.timeout(20):
        # The second one if the time ends while an attempt is being made.
        with pytest.raises((redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)):
            async with queue.take():
                own_server.kill()


async def test_block_error_is_raised_although_requeueing_fails(make_pool, own_server):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=1, **UNRECORDED), lease=1)
    await queue.put(b"message")
    with pytest.raises(ValueError, match="my own"):
        async with queue.take():
            own_server.kill()
            raise ValueError("my own")


async def ignore(message):
    pass


async def test_queue_works_after_select_on_a_pool_client(make_client, server):
    client = make_client(server.url)
    await client.select(1)
    async with MessageQueue("mail", client) as queue:
        await queue.put(b"message")
        async with queue.take(0) as message:
            assert b"message" == message


@pytest.mark.parametrize("select", [("SELECT", 1), ("select 1",)])
async def test_queue_raises_on_a_client_that_selected_another_database(make_client, server, inspector, select):
    async with make_client(server.url).client() as client, MessageQueue("mail", client) as queue:
        await client.select(0)
        inspector.rpush("mail", 1)
        assert b"1" == await queue.get(0)
        await client.execute_command(*select)
        reason = "this client has selected database 1: give the queue a pool with that db"
        for call in (
            queue.get(0),
            queue.get_many(2, 0),
            queue.consume(ignore),
            queue.put(b"2"),
            queue.put_many([b"2"]),
        ):
            with pytest.raises(DedicatedConnectionError, match=reason):
                await call
        for take in (queue.take, lambda: queue.take_many(2)):
            with pytest.raises(DedicatedConnectionError, match=reason):
                take()
