"""Writes on connections that redis-py has made can be cancelled, on Python 3.11 too, and fail as documented."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager

import pytest
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection
from support.consuming import blocked
from support.internals import replace_write
from support.listening import listening
from support.sharing import UNRECORDED

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored._redispy.connections import with_safe_send

KINDS = ["shared", "unshared", "one connection", "plain", "blocking"]
# More ticks than any operation takes before it waits for a reply.
TICKS = range(40)


@pytest.fixture(params=KINDS)
async def client(request, make_pool, server):
    """Yield our client on every kind of pool; on our own, with a health check before every call."""
    if request.param in {"plain", "blocking"}:
        kind = redis.asyncio.BlockingConnectionPool if request.param == "blocking" else redis.asyncio.ConnectionPool
        pool = kind.from_url(server.url, socket_timeout=600)
    else:
        pool = make_pool(
            server.url,
            multiplex=request.param != "unshared",
            socket_timeout=600,
            health_check_interval=1e-9,
            **UNRECORDED,
        )
    client = MonitoredRedisConnection(connection_pool=pool)
    if request.param == "one connection":
        client = client.client()
    yield client
    await client.aclose()
    await pool.aclose()


async def _watch(client):
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        await pipe.unwatch()
        await pipe.watch("key")


async def _subscribe(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.ping()
        await pubsub.unsubscribe("channel")


async def _monitor(client):
    async with client.monitor():
        pass


async def _take(client):
    async with MessageQueue("mail", client).take(0):
        pass


async def _lock(client):
    async with client.lock("lock"):
        pass


OPERATIONS = {
    "command": lambda client: client.set("key", 1),
    "blocking": lambda client: client.blpop("list", 0.01),
    "script": lambda client: client.eval("return 1", 0),
    "pipeline": lambda client: client.pipeline().set("key", 1).get("key").execute(),
    "watch": _watch,
    "put": lambda client: MessageQueue("mail", client).put(b"message"),
    "put in bounds": lambda client: MessageQueue("mail", client, max_length=1).put(b"message", 0),
    "take": _take,
    "lock": _lock,
}


# On a plain pool, these are redis-py's.
OPERATIONS_ON_OWN_POOLS = {"subscribe": _subscribe, "monitor": _monitor}


@pytest.mark.parametrize("name", [*OPERATIONS, *OPERATIONS_ON_OWN_POOLS])
async def test_cancellation_is_never_swallowed_at_any_tick(client, name):
    if name in OPERATIONS_ON_OWN_POOLS and not isinstance(client.connection_pool, MonitoredConnectionPool):
        pytest.skip("redis-py's own")
    operation = {**OPERATIONS, **OPERATIONS_ON_OWN_POOLS}[name]
    for ticks in TICKS:
        calling = asyncio.ensure_future(operation(client))
        for _ in range(ticks):
            await asyncio.sleep(0)
        is_cancelled = calling.cancel()
        await asyncio.wait([calling])
        assert is_cancelled == calling.cancelled(), ticks
        if not is_cancelled:
            # This late, the call may have found no message, or no room.
            calling.exception()


async def test_ping_propagates_cancellation_at_any_tick(make_pool, server, multiplex):
    pool = make_pool(server.url, multiplex=multiplex, socket_timeout=600, **UNRECORDED)
    for ticks in TICKS:
        pinging = asyncio.ensure_future(pool.ping())
        for _ in range(ticks):
            await asyncio.sleep(0)
        is_cancelled = pinging.cancel()
        await asyncio.wait([pinging])
        assert is_cancelled == pinging.cancelled(), ticks


@asynccontextmanager
async def resetting_proxy(port):
    """Yield a relay to a server, and a function that resets its connections, as a firewall does."""
    writers = []

    async def relay(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async def accept(reader, writer):
        there, further = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        try:
            await asyncio.gather(relay(reader, further), relay(there, writer))
        except OSError:
            pass
        finally:
            further.close()
            writer.close()

    def reset():
        for writer in writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        writers.clear()

    async with listening(accept) as (_, bound):
        yield bound, reset


@pytest.mark.parametrize("pooled", [redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool])
async def test_consumer_on_a_plain_pool_survives_reset_connections(server, inspector, until, pooled):
    handled, goes_on = [], asyncio.Event()

    async def handle(message):
        handled.append(message)
        if message == b"first":
            await goes_on.wait()

    async with resetting_proxy(inspector.connection_pool.connection_kwargs["port"]) as (port, reset):
        pool = pooled(host="127.0.0.1", port=port)
        queue = MessageQueue("mail", pool, lease=5)
        working = asyncio.create_task(queue.consume(handle, concurrency=2))
        inspector.rpush("mail", "first")
        await until(lambda: handled and blocked(inspector))
        reset()
        goes_on.set()
        inspector.rpush("mail", "second")
        await until(lambda: b"second" in handled)
        queue.stop()
        await working
        await queue.aclose()
        await pool.aclose()


async def test_with_safe_send_replaces_only_redis_py_own_send_method():
    class OwnWay(redis.asyncio.Connection):
        async def send_packed_command(self, command, check_health=True):
            await super().send_packed_command(command, check_health)

    assert type(with_safe_send(OwnWay())) is OwnWay
    pretending = object()
    assert pretending is with_safe_send(pretending)

    connection = redis.asyncio.Connection(host="127.0.0.1")
    before = repr(connection)
    assert connection is with_safe_send(connection)
    assert isinstance(connection, AbstractConnection)
    assert before == repr(connection)
    kind = type(connection)
    assert kind is type(with_safe_send(connection))


async def test_slow_write_raises_timeout_error(server, monkeypatch):
    arguments = redis.connection.parse_url(server.url)
    connection = with_safe_send(redis.asyncio.Connection(**arguments, socket_timeout=600))
    await connection.connect()
    connection.socket_timeout = 0.01
    # On Python 3.12 and 3.13, asyncio's transports accept any number of lines without a pause.
    replace_write(monkeypatch, connection, lambda _: asyncio.sleep(600))
    with pytest.raises(redis.exceptions.TimeoutError, match="Timeout writing to socket"):
        await connection.send_packed_command("x")
    assert not connection.is_connected
