"""Operations bounded by a second, by five or by a lease take no longer on a frozen server, at any timeout."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
import redis.exceptions
from support.consuming import blocked, held
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import LeaseLostError, MessageQueue, MonitoredRedisConnection
from aioredis_monitored._execution import fetch as waiting

# The documented bound is a second or two; without it, ten minutes.
BOUND = 15
FOR_EVER = 600
PAYLOAD = bytes(20_000_000)  # more than socket buffers take


@pytest.fixture
def operator(own_server):
    with redis.Redis.from_url(own_server.url) as operator:
        yield operator


@pytest.fixture(params=["shared", "unshared", "plain", "one connection"])
async def queue(request, make_pool, own_server):
    """Yield a queue on each kind of client, which has loaded its scripts."""
    if request.param == "plain":
        client = redis.asyncio.Redis.from_url(own_server.url, socket_timeout=FOR_EVER)
    else:
        pool = make_pool(
            own_server.url,
            multiplex=request.param != "unshared",
            socket_timeout=FOR_EVER,
            timeout=FOR_EVER,
            **UNRECORDED,
        )
        client = MonitoredRedisConnection(connection_pool=pool)
    if request.param == "one connection":
        client = client.client()
    queue = MessageQueue("mail", client, lease=1)
    for error in (None, ValueError()):
        await queue.put(b"message")
        try:
            async with queue.take(0):
                if error is not None:
                    raise error
        except ValueError:
            await queue.get(0)
    await queue.unlink()
    yield queue
    await queue.aclose()
    await client.aclose()


@asynccontextmanager
async def within_bound(own_server):
    """Freeze the server while the block runs, and check that it ends in time."""
    async with frozen(own_server):
        started = time.monotonic()
        yield
        assert time.monotonic() - started < BOUND


async def test_ack_gives_up_in_time_on_frozen_server(queue, own_server, operator):
    operator.rpush("mail", 1, 2)
    taking = queue.take_many(2, 0)
    await taking.__aenter__()
    async with within_bound(own_server):
        with pytest.raises(redis.exceptions.TimeoutError, match="no reply from the server in time"):
            await taking.__aexit__(None, None, None)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_nack_gives_up_in_time_on_frozen_server(queue, own_server, operator, until, error):
    operator.rpush("mail", "message")
    taking = queue.take(0)
    await taking.__aenter__()
    async with within_bound(own_server):
        await taking.__aexit__(error, error(), None)

    # The message is delivered again when its lease ends.
    async with queue.take(10) as message:
        assert b"message" == message


@pytest.mark.parametrize("error", [None, ValueError()])
async def test_cancelled_take_exit_ends_in_time_on_frozen_server(queue, own_server, operator, error):
    operator.rpush("mail", "message")
    taking = queue.take(0)
    await taking.__aenter__()
    async with within_bound(own_server):
        (leaving,) = await begun(taking.__aexit__(error and ValueError, error, None))
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()


async def test_queue_close_gives_up_in_time_on_frozen_server(queue, own_server, operator):
    operator.rpush("mail", *range(4))
    # One of the queue's consumers is free, others hold messages.
    async with queue.take(0):
        pass
    for _ in range(3):
        await queue.take(0).__aenter__()
    async with within_bound(own_server):
        await queue.aclose()
    async with within_bound(own_server):
        await queue.aclose()


@pytest.mark.parametrize("way", ["get", "take"])
@pytest.mark.parametrize("timeout", [0, None])
async def test_cancelled_fetch_ends_in_time_on_frozen_server(queue, own_server, operator, until, way, timeout):
    async def take():
        async with queue.take(timeout):
            pass

    calling = []
    if timeout is None:
        calling = await begun(queue.get() if way == "get" else take())
        await until(lambda: blocked(operator))
    async with within_bound(own_server):
        calling = calling or await begun(queue.get(0) if way == "get" else take())
        calling[0].cancel()
        await asyncio.wait(calling)
        assert calling[0].cancelled()


@pytest.mark.parametrize("keeps_one", [False, True])
async def test_cancelled_connect_of_plain_pool_ends_in_time(own_server, operator, until, keeps_one):
    # On Python 3.11, redis-py's handshake swallows a cancellation in the tick in which it has written.
    async with redis.asyncio.Redis.from_url(own_server.url, socket_timeout=FOR_EVER) as plain:
        for ticks in range(60):
            client = MonitoredRedisConnection(connection_pool=plain.connection_pool)
            if keeps_one:
                client = client.client()
                await client.ping()
            queue = MessageQueue("mail", client)
            await plain.connection_pool.disconnect()
            async with within_bound(own_server):
                calling = await begun(queue.get(0), *([] if keeps_one else [client.get("key")]))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                for call in calling:
                    call.cancel()
                await asyncio.wait(calling)
                assert all(call.cancelled() for call in calling)
            await client.aclose()
        # No connection is lost either.
        operator.rpush("mail", "message")
        assert b"message" == await MessageQueue("mail", plain).get(BOUND)


async def test_cancelled_get_gives_up_restoring_large_message_on_frozen_server(
    queue, own_server, operator, until, caplog
):
    putting_back = queue._pop.restore_commands

    def put_back(found):
        own_server.freeze()
        return putting_back(found)

    queue._pop.restore_commands = put_back
    (getting,) = await begun(queue.get())
    await until(lambda: blocked(operator))
    operator.rpush("mail", PAYLOAD)
    getting.cancel()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await asyncio.wait([getting])
    own_server.thaw()

    assert getting.cancelled()
    assert time.monotonic() - started < BOUND
    assert 1 == caplog.messages.count("queue 'mail': a message that a cancelled get() was receiving may be lost")


async def test_cancelled_get_restores_message_when_event_loop_is_busy(queue, operator, until, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.3)
    loop = asyncio.get_running_loop()

    def stand_still():
        # Far longer than settling takes.
        time.sleep(1)

    def after(ticks):
        if ticks:
            loop.call_soon(after, ticks - 1)
        else:
            stand_still()

    for ticks in range(8):
        (getting,) = await begun(queue.get())
        await until(lambda: blocked(operator))
        operator.rpush("mail", "message")
        getting.cancel()
        after(ticks)
        await asyncio.wait([getting])
        assert getting.cancelled()
        await until(lambda: operator.lrange("mail", 0, -1) == [b"message"])
        operator.delete("mail")
    assert not any("may be lost" in message for message in caplog.messages)


@pytest.mark.parametrize("outcome", ["succeeds", "fails", "waits"])
async def test_consume_drains_in_time_on_frozen_server(queue, own_server, operator, until, outcome):
    started_messages, may_end = [], asyncio.Event()

    async def handle(message):
        started_messages.append(message)
        await may_end.wait()
        if outcome == "fails":
            raise ValueError

    if outcome != "waits":
        operator.rpush("mail", *range(3))
    working = asyncio.create_task(queue.consume(handle, concurrency=4))
    await until(lambda: (outcome == "waits" or len(started_messages) == 3) and blocked(operator))
    async with within_bound(own_server):
        working.cancel()
        may_end.set()
        await asyncio.wait([working])
        assert working.cancelled()


async def test_consume_cancels_handlers_in_time_on_frozen_server(queue, own_server, operator, until):
    started_messages = []

    async def handle(message):
        started_messages.append(message)
        await asyncio.Event().wait()

    operator.rpush("mail", *range(3))
    working = asyncio.create_task(queue.consume(handle, concurrency=4))
    await until(lambda: len(started_messages) == 3 and blocked(operator))
    async with within_bound(own_server):
        for _ in range(2):
            working.cancel()
            await begun()
        await asyncio.wait([working])
        assert working.cancelled()


async def test_consume_drains_in_time_while_reading_delivery_counts(make_pool, own_server, operator, until):
    pool = make_pool(own_server.url, socket_timeout=FOR_EVER, **UNRECORDED)
    queue = MessageQueue("mail", pool, lease=1)
    operator.hset("{mail}:n", "other", 1)
    operator.rpush("mail", "message")
    looking = asyncio.Event()
    original_delivery_counts = queue._leases.delivery_counts

    async def handle(message):
        pytest.fail("nothing is known of it")

    async def look(consumer):
        own_server.freeze()
        looking.set()
        return await original_delivery_counts(consumer)

    queue._leases.delivery_counts = look
    working = asyncio.create_task(queue.consume(handle, concurrency=1))
    await looking.wait()
    started = time.monotonic()
    working.cancel()
    await asyncio.wait([working])
    own_server.thaw()

    assert working.cancelled()
    assert time.monotonic() - started < BOUND


async def test_cancelled_pool_acquire_ends_in_time_on_frozen_server(make_pool, own_server):
    pool = make_pool(own_server.url, multiplex=False, socket_timeout=FOR_EVER, **UNRECORDED)
    async with within_bound(own_server):
        for turns in range(60):
            connecting = asyncio.ensure_future(pool.get_connection())
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            assert connecting.cancelled()


async def test_lease_lost_error_mentions_deletion_of_messages(queue, operator):
    for delete in (operator.flushall, lambda: operator.delete(*operator.keys("{mail}:p:*"))):
        operator.rpush("mail", "message")
        with pytest.raises(LeaseLostError) as raised:
            async with queue.take(0):
                delete()
        assert (
            "queue 'mail': 1 of 1 messages were no longer held: another consumer got them, as this process had not "
            "renewed its lease in time, or they were deleted (FLUSHALL, eviction)"
        ) == str(raised.value)
    assert [] == held(operator)
