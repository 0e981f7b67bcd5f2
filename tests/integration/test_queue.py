"""The message queue: what it delivers, when it gives up, and what never deletes a message."""

import asyncio
import math

import pytest
import redis.asyncio
import redis.exceptions

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, TimedOutError


@pytest.fixture
def queue(pool):
    return MessageQueue("mail", pool)


async def test_queue_delivers_first_in_first_out(queue):
    await queue.put(b"one")
    await queue.put("two")
    await queue.put(3, timeout=5.0)

    assert [b"one", b"two", b"3"] == [await queue.get(), await queue.get(1), await queue.get(0)]


async def test_get_returns_an_empty_message(queue):
    for timeout in (0, 1, None):
        await queue.put(b"")
        assert b"" == await queue.get(timeout)


async def test_get_with_timeout_0_returns_immediately(queue, telemetry):
    with pytest.raises(TimedOutError, match="Timed out"):
        await queue.get(0)
    with pytest.raises(TimeoutError):
        await queue.get(0.0)

    assert ["LPOP", "LPOP"] == telemetry.tree().split()


async def test_get_rounds_timeout_up_to_whole_seconds(queue, telemetry, monkeypatch):
    waits = []
    monkeypatch.setattr(MonitoredRedisConnection, "execute_command", _record(waits))
    for timeout in (0.001, 1, 1.0, 1.001, None):
        with pytest.raises(TimedOutError):
            await queue.get(timeout)

    assert [1, 1, 1, 2, 0] == waits


def _record(waits):
    async def execute_command(self, *args, **options):
        waits.append(args[-1])

    return execute_command


@pytest.mark.slow
async def test_get_raises_timed_out_error_after_at_least_a_second(queue):
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(TimedOutError):
        await queue.get(0.2)

    assert 1.0 <= loop.time() - started < 15


@pytest.mark.slow
async def test_get_without_timeout_outlasts_the_socket_timeout(queue, client):
    waiting = asyncio.create_task(queue.get(None))
    loop = asyncio.get_running_loop()
    loop.call_later(7, lambda: asyncio.ensure_future(client.rpush("mail", "late")))

    assert b"late" == await waiting


@pytest.mark.parametrize("timeout", [-1, -0.1, math.nan, math.inf, 10**400, 1e300, True, False, "1", []])
async def test_queue_raises_on_invalid_timeout_before_sending(queue, telemetry, timeout):
    with pytest.raises(ValueError, match="timeout must be None or a number of seconds from 0 to 1000000000"):
        await queue.get(timeout)
    with pytest.raises(ValueError, match="timeout"):
        await queue.put(b"message", timeout)

    assert () == telemetry.spans


async def test_put_raises_on_invalid_message(queue):
    with pytest.raises(redis.exceptions.DataError):
        await queue.put({"a": "dict"})


def test_queue_raises_without_a_name(pool):
    with pytest.raises(ValueError, match="needs a name"):
        MessageQueue("", pool)


@pytest.mark.parametrize("client", [None, 5, "redis://localhost"])
def test_queue_raises_without_a_pool_or_client(client):
    with pytest.raises(TypeError, match="client must be a pool or a client, got"):
        MessageQueue("mail", client)


async def test_queue_never_decodes_payloads(make_pool, server):
    queue = MessageQueue("mail", make_pool(server.url, decode_responses=True))
    for message in (b"\xff\xfe", "text"):
        await queue.put(message)
        await queue.put(message)

    assert [b"\xff\xfe", b"\xff\xfe", b"text", b"text"] == [await queue.get(t) for t in (0, 1, None, 0)]


async def test_close_and_unlink_delete_the_list_and_keep_the_queue_usable(queue, client):
    for delete in (queue.close, queue.unlink):
        await queue.put(b"gone")
        await delete()
        assert not await client.exists("mail")
    await queue.put(b"new")

    assert b"new" == await queue.get()


async def test_aclose_never_deletes_messages(queue, client):
    async with queue as same:
        assert same is queue
        await queue.put(b"kept")
    await queue.aclose()

    assert [b"kept"] == await client.lrange("mail", 0, -1)
    assert b"kept" == await queue.get()


async def test_queue_iterates_without_end(queue, client):
    await client.rpush("mail", "one", "two")
    received = []
    async for message in queue:
        received.append(message)
        if len(received) == 2:
            await client.rpush("mail", "three")
        if len(received) == 3:
            break

    assert [b"one", b"two", b"three"] == received


async def test_get_raises_connection_error_on_a_dead_server(own_server, make_pool):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=2))
    waiting = asyncio.create_task(queue.get())
    await queue.client.ping()
    own_server.kill()

    with pytest.raises(redis.exceptions.ConnectionError):
        await waiting
    for timeout in (0, 1, None):
        with pytest.raises(redis.exceptions.ConnectionError):
            await queue.get(timeout)


async def test_queue_accepts_a_pool_or_any_client(client, server):
    assert MessageQueue("mail", client).client is client
    async with redis.asyncio.Redis.from_url(server.url) as plain:
        queue = MessageQueue("mail", plain)
        await queue.put(b"message")

        assert isinstance(queue.client, MonitoredRedisConnection)
        assert b"message" == await queue.get()


async def test_queue_commands_are_recorded_without_payloads(queue, telemetry):
    await queue.put(b"secret-message")
    await queue.get()

    assert [
        "RPUSH db.query.text=RPUSH mail ?",
        "BLPOP db.query.text=BLPOP mail ?",
    ] == telemetry.tree("db.query.text").splitlines()
    assert "<MessageQueue 'mail' on <MonitoredConnectionPool 'test'" in repr(queue)


@pytest.mark.parametrize("name", [b"mail", 1])
def test_queue_name_must_be_text(pool, name):
    with pytest.raises(TypeError, match=f"name must be text, got {type(name).__name__}"):
        MessageQueue(name, pool)
