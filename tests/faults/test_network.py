"""Faults of the network between client and server: reset, cut, slow and half-open connections."""

import asyncio
from functools import partial

import pytest
import redis.exceptions
from redis.asyncio import Connection

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._execution.fetch import side_channel_of


@pytest.fixture
def make_client(make_client, proxy):
    return partial(make_client, proxy.url, retry_backoff=0.001)


# 4: reset while idle


async def test_connection_resets_raise_only_redis_errors(make_client, proxy, dice, inspector):
    client = make_client()
    raised = []
    for number in range(100):
        await client.ping()
        proxy.cut()
        # Any moment between the reset and the client's reading of it.
        for _ in range(dice.randrange(12)):
            await asyncio.sleep(0)
        try:
            await client.rpush("list", number)
        except redis.exceptions.RedisError as error:
            raised.append(error)

    stored = inspector.lrange("list", 0, -1)
    assert 100 == len({*stored}) + len(raised) == len(stored) + len(raised)


async def test_commands_succeed_after_reset_of_idle_connection(make_client, proxy, until):
    client = make_client(max_connections=3)
    for number in range(20):
        await client.ping()
        pool = client.connection_pool
        (connection,) = (c for c in (*pool._in_use_connections, *pool._available_connections) if c.is_connected)
        transport = connection._writer.transport
        proxy.cut()
        await until(transport.is_closing)

        assert number + 1 == await client.rpush("list", number)


async def raised(reply):
    """Raise an error that is a value."""
    raise await reply


@pytest.mark.parametrize("kind", ["command", "pipeline", "pinned", "watching", "subscription", "aside"])
async def test_reset_before_write_raises_connection_error(make_pool, proxy, until, monkeypatch, kind):
    client = MonitoredRedisConnection(connection_pool=make_pool(proxy.url, multiplex=False))
    # Without a second attempt, so that a failed read is visible.
    monkeypatch.setattr(client.connection_pool.retry_policy, "next_delay", lambda *_, **__: None)
    send = Connection._send_packed_command

    async def reset_and_send(connection, command):
        if b"last" in b"".join(command):
            transport = connection._writer.transport
            proxy.cut()
            await until(lambda: transport.is_closing() and "closed=False" not in repr(transport))
        await send(connection, command)

    monkeypatch.setattr(Connection, "_send_packed_command", reset_and_send)
    async with client.client() as pinned, client.pipeline() as watching, client.pubsub() as subscription:
        if kind == "watching":
            await watching.watch("key")
        if kind == "subscription":
            await subscription.subscribe("news")
        call = {
            "command": lambda: client.echo("last"),
            "pipeline": lambda: client.pipeline().echo("last").execute(),
            "pinned": lambda: pinned.echo("last"),
            "watching": lambda: watching.get("last"),
            "subscription": lambda: subscription.subscribe("last"),
            "aside": lambda: raised(side_channel_of(client.connection_pool)("ECHO", "last")),
        }[kind]
        with pytest.raises((redis.exceptions.ConnectionError, redis.exceptions.WatchError)):
            await call()
        monkeypatch.setattr(Connection, "send_packed_command", send)


# 9: cut in the middle of a reply


@pytest.mark.slow
async def test_truncated_reply_is_never_taken_for_complete(make_client, proxy, dice, inspector):
    client = make_client(max_connections=4)
    value = b"v" * 1_000
    reply_size = len(b"$1000\r\n\r\n") + len(value)
    inspector.set("key", value)
    offsets = dice.sample(range(reply_size), 1_000)
    outcomes = []
    for number, offset in enumerate(offsets):
        await client.ping()
        accepted = proxy.accepted
        proxy.cut_after, proxy.cut_replies = offset, 1
        if number % 2:
            outcomes.append(value == await client.get("key"))
        else:
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.getset("key", value)
            outcomes.append(await client.ping())
        # The cut connection is never used again.
        assert await client.ping()
        assert accepted < proxy.accepted

    assert [True] * 1_000 == outcomes


# 10: cut after the execution


@pytest.mark.slow
async def test_write_with_cut_reply_runs_once(make_client, proxy, inspector):
    client = make_client(max_connections=4)
    for number in range(1_000):
        await client.ping()
        proxy.cut_replies = 1
        write = client.rpush(f"list:{number}", "once") if number % 2 else client.incr(f"counter:{number}")
        with pytest.raises(redis.exceptions.ConnectionError):
            await write

    with inspector.pipeline(transaction=False) as pipe:
        for number in range(1_000):
            (pipe.llen(f"list:{number}") if number % 2 else pipe.get(f"counter:{number}"))
        assert [1] * 1_000 == [int(times) for times in pipe.execute()]


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_with_cut_reply_runs_once(make_client, proxy, inspector, transaction):
    client = make_client(max_connections=4)
    for number in range(100):
        await client.ping()
        proxy.cut_replies = 1
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.pipeline(transaction).incr(f"counter:{number}").get("key").execute()

    assert [b"1"] * 100 == inspector.mget(f"counter:{number}" for number in range(100))


async def test_read_with_cut_reply_is_retried(make_client, proxy, inspector):
    client = make_client(max_connections=4)
    inspector.set("key", "value")
    for number in range(200):
        await client.ping()
        proxy.cut_replies = 1 + number % 10 // 9 * 2
        if number % 2:
            assert b"value" == await client.get("key")
        else:
            assert [b"value", 1] == await client.pipeline(transaction=False).get("key").exists("key").execute()
        assert 0 == proxy.cut_replies


# 11: slow bytes


@pytest.mark.slow
async def test_replies_arriving_byte_by_byte_are_complete(make_client, proxy, inspector):
    clients = [
        make_client(protocol=2 + number % 2, max_connections=2, socket_timeout=100, timeout=100) for number in range(50)
    ]
    inspector.hset("hash", "field", "value")
    inspector.zadd("sorted", {"member": 0.5})
    inspector.sadd("set", "member")
    inspector.rpush("list", "a", "b")
    calls = [
        (lambda client: client.hgetall("hash"), {b"field": b"value"}),
        (lambda client: client.zscore("sorted", "member"), 0.5),
        (lambda client: client.smembers("set"), {b"member"}),
        (lambda client: client.lrange("list", 0, -1), [b"a", b"b"]),
        (lambda client: client.get("missing"), None),
        (lambda client: client.exists("set"), 1),
        (lambda client: client.execute_command("OBJECT", "ENCODING", "missing"), None),
        (lambda client: client.ping(), True),
    ]
    await asyncio.gather(*(client.ping() for client in clients))
    proxy.reply_pause = 0.005

    async def serve(number, client):
        own = [client.echo(f"{number}"), client.pipeline().echo(f"{number}").get("missing").execute()]
        replies = await asyncio.gather(*own, *(call(client) for call, _ in calls))
        expected = [b"%d" % number, [b"%d" % number, None], *(reply for _, reply in calls)]
        return replies == expected

    assert [True] * 50 == await asyncio.gather(*(serve(number, client) for number, client in enumerate(clients)))


# 12: half-open


@pytest.mark.slow
async def test_half_open_connections_time_out_and_are_replaced(make_client, multiplex, proxy):
    client = make_client(socket_timeout=2, max_connections=10, timeout=60)
    pool = client.connection_pool

    async def fail():
        # Without a timeout, they would wait forever.
        async with asyncio.timeout(25):
            with pytest.raises(redis.exceptions.TimeoutError):
                await client.get("key")

    await asyncio.gather(*(client.ping() for _ in range(10)))
    proxy.silent = True
    for _ in range(2):
        await asyncio.gather(*(fail() for _ in range(10)))
    proxy.silent = False

    assert await asyncio.gather(*(client.ping() for _ in range(10))) == [True] * 10
    assert multiplex == len(pool._in_use_connections)
