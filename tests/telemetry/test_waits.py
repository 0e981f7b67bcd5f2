"""The parts of a call's time: waiting for a connection, connecting, and on the wire."""

import asyncio
from time import perf_counter

import pytest
import redis
import redis.exceptions
from redis.asyncio.sentinel import Sentinel
from support.sharing import begun, frozen, line_of, until_answered

from aioredis_monitored import MonitoredRedisConnection, PoolExhaustedError
from aioredis_monitored._multiplexer.connection import LARGE_BYTES
from aioredis_monitored._multiplexer.inflight import MAX_BYTES
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import server_of
from aioredis_monitored.client.client import _plain_recorders
from aioredis_monitored.testing import RedisServer

DURATION = "db.client.operation.duration"
WAIT, CONNECT, WIRE = (f"aioredis_monitored.{name}.duration" for name in ("wait", "connect", "wire"))


def times(span):
    return [span.attributes.get(name) for name in (WAIT, CONNECT, WIRE)]


def seconds(span):
    return (span.end_time - span.start_time) / 1e9


@pytest.fixture
def a_while(until):
    """Return a coroutine function that keeps callers waiting, and returns for how many seconds at least."""

    async def wait():
        since = perf_counter()
        await until(lambda: perf_counter() > since + 0.1)
        # uvloop's clock may be one or two milliseconds behind
        return perf_counter() - since - 0.01

    return wait


@pytest.mark.parametrize("multiplex", [True, False])
async def test_most_calls_have_nothing_to_tell(make_pool, server, telemetry, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=multiplex))
    await client.ping()
    await client.set("list", "")
    for _ in range(200):
        await client.get("key")

    told = [times(span) for span in telemetry.spans[1:]]
    # On a busy machine, acquiring may take longer than the rest.
    assert told.count([None] * 3) >= 100


@pytest.mark.parametrize("kind", ["shared", "borrowed", "kept"])
async def test_the_first_call_connects(make_pool, own_server, telemetry, a_while, kind):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, multiplex=kind == "shared"))
    # Entering the client's context would connect it.
    calling = client.client() if kind == "kept" else client
    began = perf_counter()
    async with frozen(own_server):
        (call,) = await begun(calling.get("key"))
        kept = await a_while()
    await call
    rest = perf_counter() - began - kept
    await calling.aclose()

    span = telemetry.span("GET")
    wait, connect, wire = times(span)
    assert connect >= kept
    assert 0 <= wait <= rest
    assert 0 <= wire <= rest
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)


@pytest.mark.parametrize("call", ["command", "pipeline"])
async def test_a_call_that_waits_for_a_connection_tells_how_long(make_pool, server, telemetry, until, a_while, call):
    pool = make_pool(server.url, max_connections=1)
    client = MonitoredRedisConnection(connection_pool=pool)
    held = await pool.get_connection()
    began = perf_counter()
    waiting = asyncio.ensure_future(client.get("key") if call == "command" else client.pipeline().get("key").execute())
    await until(lambda: pool.stats().pending == 1)
    kept = await a_while()
    await pool.release(held)
    await waiting
    rest = perf_counter() - began - kept

    wait, connect, wire = times(telemetry.span("GET"))
    assert wait >= kept
    # The connection was open already.
    assert connect + wire <= rest


@pytest.mark.parametrize("call", ["command", "pipeline", "pipeline with a script"])
async def test_a_call_that_waits_for_the_shared_connection_tells_how_long(
    make_pool, own_server, telemetry, a_while, call
):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    pipe = client.pipeline("named").get("key")
    if call == "pipeline with a script":
        # Whether the server has the script is asked first.
        await client.register_script("return 1")(client=pipe)
    began = perf_counter()
    async with frozen(own_server):
        (task,) = await begun(client.get("key") if call == "command" else pipe.execute())
        kept = await a_while()
    await task

    (span,) = telemetry.spans
    wait, connect, wire = times(span)
    # Connecting took the time.
    assert connect >= kept
    assert wait <= perf_counter() - began - kept
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)
    assert own_server.port == span.attributes["network.peer.port"]


async def test_a_long_wait_is_told_even_if_the_rest_was_longer(make_pool, server, telemetry, inspector, until, a_while):
    pool = make_pool(server.url, max_connections=1)
    held = await pool.get_connection()
    began = perf_counter()
    waiting = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).blpop("list"))
    await until(lambda: pool.stats().pending == 1)
    kept = await a_while()
    await pool.release(held)
    await until(lambda: inspector.info("clients")["blocked_clients"])
    since = perf_counter()
    await until(lambda: perf_counter() > since + 2 * (since - began))
    inspector.rpush("list", "value")
    await waiting

    span = telemetry.span("BLPOP")
    wait, connect, wire = times(span)
    assert kept <= wait < wire
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)


async def test_exhaustion_is_all_waiting(make_pool, server, telemetry):
    pool = make_pool(server.url, max_connections=1, timeout=0.05)
    held = await pool.get_connection()
    with pytest.raises(PoolExhaustedError):
        await MonitoredRedisConnection(connection_pool=pool).get("key")
    await pool.release(held)

    span = telemetry.span("GET")
    wait, connect, wire = times(span)
    assert wait >= 0.045  # uvloop counts in milliseconds
    assert [0, None] == [connect, wire]


@pytest.mark.parametrize("multiplex", [True, False])
async def test_a_server_that_cannot_be_reached_is_all_connecting(make_pool, own_server, telemetry, multiplex):
    # A server that refuses would take less than uvloop's clock can measure.
    pool = make_pool(own_server.url, multiplex=multiplex, retries=0, socket_timeout=0.1)
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await MonitoredRedisConnection(connection_pool=pool).get("key")

    wait, connect, wire = times(telemetry.span("GET"))
    assert connect >= 0.09
    assert wait + connect <= seconds(telemetry.span("GET")) + 0.01
    # Nothing was on the wire.
    assert wire is None


@pytest.mark.parametrize("multiplex", [True, False])
async def test_pauses_between_attempts_are_waiting(make_pool, proxy, server, telemetry, until, multiplex):
    pool = make_pool(proxy.url, multiplex=multiplex, retry_backoff=0.1)
    proxy._upstream, upstream = ("127.0.0.1", 1), proxy._upstream
    call = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).get("key"))
    await until(lambda: proxy.accepted)
    proxy._upstream = upstream
    await call

    wait, connect, wire = times(telemetry.span("GET"))
    assert wait >= 0.045  # uvloop counts in milliseconds
    assert wait + connect + wire <= seconds(telemetry.span("GET")) + 1e-6


@pytest.mark.parametrize("multiplex", [True, False])
async def test_a_call_that_is_cancelled_in_a_pause_between_attempts_tells_its_wait(
    make_pool, proxy, telemetry, monkeypatch, until, a_while, multiplex
):
    pool, paused = make_pool(proxy.url, multiplex=multiplex), []
    proxy._upstream = ("127.0.0.1", 1)
    monkeypatch.setattr(pool.retry_policy, "next_delay", lambda *_, **__: paused.append(perf_counter()) or 60.0)
    call = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).get("key"))
    await until(lambda: paused)
    kept = await a_while()
    call.cancel()
    await asyncio.wait([call])

    span = telemetry.span("GET")
    wait, connect, wire = times(span)
    assert "asyncio.exceptions.CancelledError" == span.attributes["error.type"]
    assert kept <= wait <= seconds(span) - connect + 1e-6
    # Nothing was on the wire.
    assert wire is None


@pytest.mark.parametrize("multiplex", [True, False])
async def test_the_peer_is_the_sockets(make_pool, server, telemetry, multiplex):
    # The host's name is not its address.
    client = MonitoredRedisConnection(
        connection_pool=make_pool(f"redis://localhost:{server.port}", multiplex=multiplex)
    )
    await client.get("key")
    await client.pipeline().get("key").get("key").execute()
    await client.blpop("list", timeout=0.01)
    await client.set("key", "value")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.lpush("key", "value")
    await client.connection_pool.ping()

    for span in telemetry.spans:
        assert "localhost" == span.attributes["server.address"]
        assert span.attributes["network.peer.address"] in {"127.0.0.1", "::1"}
        assert server.port == span.attributes["network.peer.port"]
    assert ["GET", "MULTI", "SET", "LPUSH", "PING"] == [span.name.split()[0] for span in telemetry.spans]


async def test_a_unix_socket_is_a_peer_without_a_port(make_pool, server, telemetry):
    await MonitoredRedisConnection(connection_pool=make_pool(f"unix://{server.unix_socket_path}")).get("key")

    attributes = telemetry.span("GET").attributes
    assert server.unix_socket_path == attributes["network.peer.address"] == attributes["server.address"]
    assert "network.peer.port" not in attributes


@pytest.mark.parametrize("multiplex", [True, False])
async def test_a_call_without_a_reply_tells_whom_it_has_asked(make_pool, own_server, telemetry, multiplex):
    # Long enough for connecting.
    pool = make_pool(own_server.url, multiplex=multiplex, socket_timeout=0.7, retries=0)
    client = MonitoredRedisConnection(connection_pool=pool)
    await until_answered(client.ping)
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.get("key")

    span = telemetry.span("GET")
    assert "redis.exceptions.TimeoutError" == span.attributes["error.type"]
    assert own_server.port == span.attributes["network.peer.port"]


async def test_a_sentinel_made_pool_tells_the_server_that_it_has_found(server, telemetry):
    monitor = ("--sentinel", "monitor", "mymaster", server.host, str(server.port), "1")
    with RedisServer(*monitor) as watcher:
        sentinel = Sentinel([(watcher.host, watcher.port)])
        pool = sentinel.master_for("mymaster").connection_pool
        _plain_recorders[pool] = PoolRecorder(server_of(pool), **telemetry.providers)
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set("key", "value")
        await client.pipeline("named", transaction=False).get("key").get("key").execute()
        await client.pipeline().get("key").get("key").execute()
        await client.lock("lock").acquire()
        await pool.disconnect()
        for asked in sentinel.sentinels:
            await asked.aclose()

    address = f"{server.host}:{server.port}"
    names = [f"SET {address}", "named", f"MULTI GET {address}", "lock.acquire"]
    assert names == [span.name for span in telemetry.spans]
    for attributes in (
        *(span.attributes for span in telemetry.spans),
        *(p.attributes for p in telemetry.points(DURATION)),
    ):
        assert (server.host, server.port) == (attributes["server.address"], attributes["server.port"])
    assert {server.port} == {span.attributes["network.peer.port"] for span in telemetry.spans}


async def test_calls_on_one_connection_wait_for_each_other(client, telemetry, inspector, a_while):
    async with client.client() as single:
        await single.ping()
        began = perf_counter()
        calls = await begun(single.blpop("list"), single.get("key"), single.llen("list"))
        kept = await a_while()
        calls[2].cancel()
        inspector.rpush("list", "value")
        await asyncio.wait(calls)
        rest = perf_counter() - began - kept

    wait, _, wire = times(telemetry.span("GET"))
    assert wait >= kept
    assert wire <= rest
    wait, connect, wire = times(telemetry.span("LLEN"))
    assert wait >= kept
    assert [0, None] == [connect, wire]


async def test_what_runs_while_watching_tells_its_peer_and_the_first_of_it_its_wait(
    make_pool, own_server, telemetry, a_while
):
    async with MonitoredRedisConnection(connection_pool=make_pool(own_server.url)).pipeline() as pipe:
        async with frozen(own_server):
            (watching,) = await begun(pipe.watch("key"))
            kept = await a_while()
        await watching
        await pipe.get("key")
        pipe.multi()
        await pipe.set("key", 1).get("key").execute()

    assert ["WATCH", "GET", "MULTI"] == telemetry.tree().splitlines()
    assert {own_server.port} == {span.attributes["network.peer.port"] for span in telemetry.spans}
    assert times(telemetry.span("WATCH"))[1] >= kept


async def waits_for_room(make_pool, own_server, until, then, *calls):
    """Have calls wait for at least 50 ms while the shared connection is full, and call ``then`` when it has room."""
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, max_connections=2))
    await client.ping()

    async def fill():
        await client.set("large", bytes(MAX_BYTES))
        # In the tick in which the reply has made room, before queued calls are written.
        then(client)

    async with frozen(own_server):
        filling, *waiting = await begun(fill(), *(call(client) for call in calls))
        since = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > since + 0.05)
    await filling
    return waiting


@pytest.mark.parametrize("size", [1, MAX_BYTES], ids=["both are put back", "the second waits on"])
async def test_calls_whose_connection_ends_before_they_are_written_tell_their_wait_once(
    make_pool, own_server, telemetry, until, size
):
    waiting = await waits_for_room(
        make_pool,
        own_server,
        until,
        lambda client: line_of(client).close(lambda: ConnectionError("cut")),
        lambda client: client.mset({"key": bytes(size)}),
        lambda client: client.get("key"),
    )
    await asyncio.gather(*waiting)

    for span in (telemetry.span("MSET"), telemetry.span("GET")):
        wait, connect, wire = times(span)
        assert wait >= 0.05
        assert connect > 0 < wire
        assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)


async def test_a_large_call_that_gets_no_connection_of_its_own_tells_how_long_it_tried(
    make_pool, own_server, telemetry, a_while
):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    await client.ping()
    with redis.Redis.from_url(own_server.url) as limiting:
        limiting.config_set("maxclients", 1)
    began = perf_counter()
    async with frozen(own_server):
        (call,) = await begun(client.set("large", bytes(LARGE_BYTES + 1)))
        kept = await a_while()
    assert await call
    rest = perf_counter() - began - kept

    span = telemetry.span("SET")
    wait, connect, wire = times(span)
    assert connect >= kept
    assert 0 <= wait <= rest
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)


async def test_a_call_that_is_cancelled_while_it_waits_tells_how_long_it_has(
    make_pool, own_server, telemetry, until, a_while
):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, max_connections=2))
    began = perf_counter()
    async with frozen(own_server):
        (connecting,) = await begun(client.get("key"))
        kept = await a_while()
        connecting.cancel()
        await asyncio.wait([connecting])
    rest = perf_counter() - began - kept
    await client.ping()
    async with frozen(own_server):
        filling, waiting = await begun(client.set("large", bytes(MAX_BYTES)), client.get("key"))
        since = asyncio.get_running_loop().time()
        await until(lambda: asyncio.get_running_loop().time() > since + 0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
    await filling

    first, second = [times(span) for span in telemetry.spans if "GET" == span.attributes["db.operation.name"]]
    assert first[1] >= kept
    assert first[0] <= rest
    assert second[0] >= 0.05
    assert [0, None, None] == [second[1], first[2], second[2]]
