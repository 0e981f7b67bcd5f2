"""The shared connection's limits: too many calls, too large values, and its ends."""

import asyncio
import gc
import socket
import struct
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import redis
from redis.asyncio import Connection
from redis.asyncio.connection import Encoder
from redis.maint_notifications import MaintNotificationsConfig
from support.internals import (
    ATTRIBUTES_OF_SHAREABLE_CONNECTION,
    PYTHON_PARSER,
    bulk_connection_of,
    call_counts_of,
    shared_connection_of,
)
from support.listening import listening
from support.sharing import begun, client_of, connections, frozen, until_answered

from aioredis_monitored import (
    EventLoopError,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolClosedError,
    PoolExhaustedError,
)
from aioredis_monitored._multiplexer import inflight, supports_multiplexing
from aioredis_monitored._redispy.connections import with_safe_send

# The largest size for requests on the main connection.
VALUE = b"x" * 60_000
LARGE = b"x" * 200_000


# Backpressure.


@pytest.mark.parametrize(("count", "value"), [(300, VALUE), (1500, b"")], ids=["bytes", "calls"])
async def test_inflight_calls_are_bounded_and_queued_calls_are_sent_in_order(
    make_pool, own_server, monkeypatch, count, value
):
    monkeypatch.setattr(inflight, "MAX_PENDING", 1000)
    client = client_of(make_pool, own_server.url)
    await client.ping()
    multiplexer = client.connection_pool.multiplexer
    async with frozen(own_server):
        calls = await begun(*(client.rpush("list", b"%05d" % number + value) for number in range(count)))
        in_flight = multiplexer.in_flight()
        assert count == in_flight + multiplexer.queued()
        assert (1000 if not value else inflight.MAX_BYTES // len(VALUE)) - 1 <= in_flight <= 1000
        assert shared_connection_of(client).inflight.size < inflight.MAX_BYTES + len(VALUE) + 100

    assert list(range(1, count + 1)) == await asyncio.gather(*calls)
    assert [b"%05d" % number for number in range(count)] == [item[:5] for item in await client.lrange("list", 0, -1)]
    assert (0, 0) == (multiplexer.in_flight(), multiplexer.queued())


async def test_queued_call_raises_pool_exhausted_error_after_timeout(make_pool, own_server):
    client = client_of(make_pool, own_server.url, socket_timeout=600, timeout=0.1)
    await client.ping()
    async with frozen(own_server):
        calls = await begun(*(client.set("key", VALUE) for _ in range(300)))
        written = client.connection_pool.multiplexer.in_flight()
        async with asyncio.timeout(15):
            with pytest.raises(PoolExhaustedError, match=r"no room on the shared connection in 0\.1 s"):
                await calls[-1]
        assert [PoolExhaustedError] * (300 - written) == [type(call.exception()) for call in calls[written:]]

    assert [True] * written == await asyncio.gather(*calls[:written])


async def test_call_larger_than_all_room_is_sent_alone(client):
    value = b"x" * (inflight.MAX_BYTES + 1)

    replies = await asyncio.gather(*(client.echo(value) for _ in range(2)), client.echo(1))

    assert [len(value), len(value), 1] == list(map(len, replies))


MEMORY_PROGRAM = """
import asyncio, gc, os, sys
from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection

async def main(url, size):
    client = MonitoredRedisConnection(connection_pool=MonitoredConnectionPool.from_url(url, socket_timeout=60))
    await client.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    value = b"x" * size
    gc.collect()
    before = memory("VmRSS")
    tasks = [asyncio.ensure_future(client.set("key", value)) for _ in range(100_000)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert client.connection_pool.multiplexer.in_flight() + client.connection_pool.multiplexer.queued() == len(tasks)
    print(memory("VmRSS") - before, memory("VmHWM") - before, flush=True)
    os._exit(0)

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_values_of_100_000_calls_to_a_frozen_server_use_bounded_memory(own_server):
    processes = [
        subprocess.Popen(  # noqa: S603 - this Python
            [sys.executable, "-c", MEMORY_PROGRAM, own_server.url, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for size in (1, 10_000)
    ]
    assert ["ready\n"] * 2 == [process.stdout.readline() for process in processes]
    own_server.freeze()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    (least, least_peak), (resident, peak) = [map(int, process.communicate()[0].split()) for process in processes]

    assert resident - least <= 1.2 * inflight.MAX_BYTES
    assert peak - least_peak <= 1.2 * inflight.MAX_BYTES


# Large values.


async def test_large_request_uses_the_bulk_connection(make_pool, server, inspector):
    client = client_of(make_pool, server.url)
    identity = await client.client_id()

    await client.set("key", LARGE)
    await client.pipeline().set("key", LARGE).execute()

    assert 2 == len(connections(inspector))
    assert identity == await client.client_id()


async def test_large_reply_moves_the_next_call_for_its_key_to_the_bulk_connection(make_pool, server, inspector):
    client = client_of(make_pool, server.url)
    inspector.set("large", LARGE)
    inspector.set("small", VALUE)
    for key in ("small", "small", "large"):
        await client.get(key)
    assert 1 == len(connections(inspector))

    async with frozen(server):
        calls = await begun(client.get("large"), client.get("small"), client.mget("large"))
        assert {"bulk": 1, "main": 2} == call_counts_of(client)

    assert [len(LARGE), len(VALUE)] == [len(value) for value in (await asyncio.gather(*calls))[:2]]
    assert 2 == len(connections(inspector))


async def test_large_values_use_the_main_connection_when_the_server_refuses_a_second(make_pool, own_server):
    client = client_of(make_pool, own_server.url)
    with redis.Redis.from_url(own_server.url) as admin:
        await client.ping()
        admin.config_set("maxclients", 2)

        assert await client.set("key", LARGE)
        assert [LARGE] * 3 == [await client.get("key") for _ in range(3)]
        assert [True] == await client.pipeline().set("key", LARGE).execute()

        admin.config_set("maxclients", 20)
        assert await client.set("key", LARGE)
        assert bulk_connection_of(client) is not None


@pytest.mark.parametrize(("most", "expected"), [(2, 1), (3, 2)])
async def test_shared_connections_leave_a_slot_for_dedicated_ones(make_pool, server, inspector, most, expected):
    client = client_of(make_pool, server.url, max_connections=most)

    await asyncio.gather(client.echo(LARGE), client.echo("small"))
    assert expected == len(connections(inspector))

    assert None is await client.blpop("list", 0.01)


# Ends.


async def test_closing_pool_finishes_written_calls_and_rejects_queued_ones(make_pool, own_server, until):
    client = client_of(make_pool, own_server.url, socket_timeout=600)
    pool = client.connection_pool
    await asyncio.gather(client.ping(), client.echo(LARGE))
    async with frozen(own_server):
        # On both connections.
        calls = await begun(*(client.set("key", value) for value in [VALUE, LARGE] for _ in range(300)))
        written, waiting = pool.multiplexer.in_flight(), pool.multiplexer.queued()
        assert min(written, waiting) > 20
        closing = asyncio.ensure_future(pool.aclose())
        await until(lambda: sum(call.done() for call in calls) == waiting)
        with pytest.raises(PoolClosedError, match="closed"):
            await client.get("key")
        assert not closing.done()

    await closing
    outcomes = Counter(type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True))
    assert {bool: written, PoolClosedError: waiting} == outcomes
    assert 1 == len(asyncio.all_tasks())


async def test_pool_closing_takes_at_most_socket_timeout(make_pool, own_server):
    client = client_of(make_pool, own_server.url, socket_timeout=0.3)
    await asyncio.gather(until_answered(client.ping), until_answered(lambda: client.echo(LARGE)))
    async with frozen(own_server), asyncio.timeout(15):
        calls = await begun(client.incr("key"), client.set("key", LARGE), client.pipeline().incr("key").execute())
        await client.connection_pool.aclose()

    for call in calls:
        with pytest.raises((redis.TimeoutError, redis.ConnectionError)):
            await call


async def test_pool_closing_while_connecting_rejects_queued_calls_and_leaves_no_task(make_pool, own_server):
    client = client_of(make_pool, own_server.url)
    async with frozen(own_server):
        calls = await begun(client.get("key"), client.echo(LARGE), client.pipeline().get("key").execute())
        await client.connection_pool.aclose()
        assert [PoolClosedError] * 3 == [type(e) for e in await asyncio.gather(*calls, return_exceptions=True)]
    await asyncio.sleep(0)

    assert 1 == len(asyncio.all_tasks())


async def test_reopened_pool_uses_a_new_shared_connection(make_pool, server):
    client = client_of(make_pool, server.url)
    identity = await client.client_id()
    await client.connection_pool.aclose()

    async with client.connection_pool:
        assert identity != await client.client_id()


def run_until_complete(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


def open_sockets():
    paths = Path("/proc/self/fd").iterdir()
    return sum(path.is_socket() for path in paths)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
@pytest.mark.parametrize("run", [asyncio.run, run_until_complete])
@pytest.mark.parametrize("in_flight", [False, True])
def test_unclosed_pool_warns_once_and_leaves_no_task_or_socket(server, run, in_flight):
    gc.collect()
    before = open_sockets()

    async def forget():
        pool = MonitoredConnectionPool.from_url(server.url, name="forgotten")
        client = MonitoredRedisConnection(connection_pool=pool)
        await asyncio.gather(client.get("key"), client.echo(LARGE), client.blpop("list", 0.01))
        if in_flight:
            for call in await begun(client.get("key"), client.echo(LARGE), client.pipeline().get("key").execute()):
                call.cancel()
            await asyncio.sleep(0)
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = run(forget())
        gc.collect()

    assert [] == tasks
    assert ["pool 'forgotten' was never closed: use 'async with' or aclose()"] == [str(each.message) for each in caught]
    assert before == open_sockets()


@pytest.mark.parametrize("run", [asyncio.run, run_until_complete])
def test_pool_raises_event_loop_error_in_another_event_loop(server, run):
    pool = MonitoredConnectionPool.from_url(server.url, name="mine")
    client = MonitoredRedisConnection(connection_pool=pool)

    async def refused():
        pipeline = client.pipeline().get("key")
        for call in (client.get, client.blpop, lambda _: pipeline.execute()):
            with pytest.raises(EventLoopError, match=r"^pool 'mine' belongs to another event loop"):
                await call("key")

    run(client.set("key", LARGE))
    run(refused())
    run(pool.aclose())


async def test_connection_reset_while_many_calls_are_written_is_replaced(make_pool):
    connections = count(1)

    async def serve(reader, writer):
        connection = next(connections)
        with suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                arguments = [
                    await reader.readuntil(b"\r\n") and await reader.readuntil(b"\r\n") for _ in range(int(line[1:]))
                ]
                writer.write(b"+PONG\r\n" if arguments[0] == b"PING\r\n" else b"+OK\r\n")
                if connection == 1 and b"LIB-VER\r\n" in arguments:
                    # At the handshake's end: queued calls are written to a socket that is being reset.
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                    return

    async with listening(serve) as (host, port):
        client = client_of(make_pool, f"redis://{host}:{port}", protocol=2, socket_timeout=60)
        calls = await begun(*(client.set(f"key:{number}", b"x" * 10_000) for number in range(200)))

        done, _ = await asyncio.wait(calls, timeout=30)

        assert 200 == len(done)
        failed = [call.exception() for call in done if call.exception()]
        assert {redis.ConnectionError} >= set(map(type, failed))
        assert len(failed) < 100
        assert await client.set("later", 1)
        await client.connection_pool.aclose()


class OwnEncoder(Connection):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.encoder = type("Own", (Encoder,), {})("utf-8", "strict", False)


class OwnReading(Connection):
    async def read_response(self, *arguments, **options):
        return await super().read_response(*arguments, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"connection_class": OwnEncoder},
        {"connection_class": OwnReading},
        {"parser_class": PYTHON_PARSER},
        {"protocol": 3, "maint_notifications_config": MaintNotificationsConfig(enabled="auto")},
    ],
    ids=["encoder", "reading", "parser", "notifications"],
)
async def test_connection_with_custom_parts_is_not_multiplexed(make_pool, server, arguments):
    pool = make_pool(server.url, **arguments)
    client = MonitoredRedisConnection(connection_pool=pool)

    assert pool.multiplexer is None
    assert [True, b"value"] == [await client.set("key", "value"), await client.get("key")]


@pytest.mark.parametrize("attribute", ATTRIBUTES_OF_SHAREABLE_CONNECTION)
def test_connection_without_redis_py_private_attributes_is_not_multiplexed(attribute):
    connection = with_safe_send(Connection())
    assert supports_multiplexing(connection)
    delattr(connection, attribute)

    assert not supports_multiplexing(connection)
