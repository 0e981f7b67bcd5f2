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
def hold(until):
    """Return a coroutine function that keeps callers waiting, and returns for how many seconds at least."""

    async def wait():
        since = perf_counter()
        await until(lambda: perf_counter() > since + 0.1)
        # uvloop's clock may be one or two milliseconds behind
        return perf_counter() - since - 0.01

    return wait


@pytest.mark.parametrize("multiplex", [True, False])
async def test_quick_command_span_has_no_time_attributes(make_pool, server, telemetry, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=multiplex))
    await client.ping()
    await client.set("list", "")
    for _ in range(200):
        await client.get("key")

    recorded_times = [times(span) for span in telemetry.spans[1:]]
    # On a busy machine, acquiring may take longer than the rest.
    assert recorded_times.count([None] * 3) >= 100


@pytest.mark.parametrize("kind", ["shared", "borrowed", "kept"])
async def test_first_command_span_has_connect_duration(make_pool, own_server, telemetry, hold, kind):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, multiplex=kind == "shared"))
    # Entering the client's context would connect it.
    calling = client.client() if kind == "kept" else client
    began = perf_counter()
    async with frozen(own_server):
        (call,) = await begun(calling.get("key"))
        kept = await hold()
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
async def test_command_span_has_wait_duration_when_pool_is_exhausted(make_pool, server, telemetry, until, hold, call):
    pool = make_pool(server.url, max_connections=1)
    client = MonitoredRedisConnection(connection_pool=pool)
    held = await pool.get_connection()
    began = perf_counter()
    waiting = asyncio.ensure_future(client.get("key") if call == "command" else client.pipeline().get("key").execute())
    await until(lambda: pool.stats().pending == 1)
    kept = await hold()
    await pool.release(held)
    await waiting
    rest = perf_counter() - began - kept

    wait, connect, wire = times(telemetry.span("GET"))
    assert wait >= kept
    # The connection was open already.
    assert connect + wire <= rest


@pytest.mark.parametrize("call", ["command", "pipeline", "pipeline with a script"])
async def test_command_span_has_connect_duration_of_shared_connection(make_pool, own_server, telemetry, hold, call):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    pipe = client.pipeline("named").get("key")
    if call == "pipeline with a script":
        # Whether the server has the script is asked first.
        await client.register_script("return 1")(client=pipe)
    began = perf_counter()
    async with frozen(own_server):
        (task,) = await begun(client.get("key") if call == "command" else pipe.execute())
        kept = await hold()
    await task

    (span,) = telemetry.spans
    wait, connect, wire = times(span)
    # Connecting took the time.
    assert connect >= kept
    assert wait <= perf_counter() - began - kept
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)
    assert own_server.port == span.attributes["network.peer.port"]


async def test_wait_duration_is_recorded_when_wire_time_is_longer(make_pool, server, telemetry, inspector, until, hold):
    pool = make_pool(server.url, max_connections=1)
    held = await pool.get_connection()
    began = perf_counter()
    waiting = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).blpop("list"))
    await until(lambda: pool.stats().pending == 1)
    kept = await hold()
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


async def test_pool_exhausted_error_counts_all_time_as_wait(make_pool, server, telemetry):
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
async def test_unreachable_server_span_has_connect_but_no_wire_duration(make_pool, own_server, telemetry, multiplex):
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
async def test_backoff_between_attempts_counts_as_wait(make_pool, proxy, server, telemetry, until, multiplex):
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
async def test_command_cancelled_during_backoff_has_wait_duration(
    make_pool, proxy, telemetry, monkeypatch, until, hold, multiplex
):
    pool, paused = make_pool(proxy.url, multiplex=multiplex), []
    proxy._upstream = ("127.0.0.1", 1)
    monkeypatch.setattr(pool.retry_policy, "next_delay", lambda *_, **__: paused.append(perf_counter()) or 60.0)
    call = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).get("key"))
    await until(lambda: paused)
    kept = await hold()
    call.cancel()
    await asyncio.wait([call])

    span = telemetry.span("GET")
    wait, connect, wire = times(span)
    assert "asyncio.exceptions.CancelledError" == span.attributes["error.type"]
    assert kept <= wait <= seconds(span) - connect + 1e-6
    # Nothing was on the wire.
    assert wire is None


@pytest.mark.parametrize("multiplex", [True, False])
async def test_network_peer_is_address_of_socket(make_pool, server, telemetry, multiplex):
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


async def test_network_peer_has_no_port_on_unix_socket(make_pool, server, telemetry):
    await MonitoredRedisConnection(connection_pool=make_pool(f"unix://{server.unix_socket_path}")).get("key")

    attributes = telemetry.span("GET").attributes
    assert server.unix_socket_path == attributes["network.peer.address"] == attributes["server.address"]
    assert "network.peer.port" not in attributes


@pytest.mark.parametrize("multiplex", [True, False])
async def test_timed_out_command_span_has_network_peer(make_pool, own_server, telemetry, multiplex):
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


async def test_sentinel_pool_spans_have_address_of_master(server, telemetry):
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


async def test_pinned_client_commands_count_queueing_as_wait(client, telemetry, inspector, hold):
    async with client.client() as single:
        await single.ping()
        began = perf_counter()
        calls = await begun(single.blpop("list"), single.get("key"), single.llen("list"))
        kept = await hold()
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


async def test_watching_pipeline_spans_have_peer_and_first_has_connect_duration(make_pool, own_server, telemetry, hold):
    async with MonitoredRedisConnection(connection_pool=make_pool(own_server.url)).pipeline() as pipe:
        async with frozen(own_server):
            (watching,) = await begun(pipe.watch("key"))
            kept = await hold()
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
async def test_requeued_commands_count_wait_once_after_connection_loss(make_pool, own_server, telemetry, until, size):
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


async def test_large_command_has_connect_duration_when_bulk_connection_is_refused(
    make_pool, own_server, telemetry, hold
):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    await client.ping()
    with redis.Redis.from_url(own_server.url) as limiting:
        limiting.config_set("maxclients", 1)
    began = perf_counter()
    async with frozen(own_server):
        (call,) = await begun(client.set("large", bytes(LARGE_BYTES + 1)))
        kept = await hold()
    assert await call
    rest = perf_counter() - began - kept

    span = telemetry.span("SET")
    wait, connect, wire = times(span)
    assert connect >= kept
    assert 0 <= wait <= rest
    assert seconds(span) == pytest.approx(wait + connect + wire, abs=1e-6)


async def test_command_cancelled_while_waiting_has_partial_durations(make_pool, own_server, telemetry, until, hold):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, max_connections=2))
    began = perf_counter()
    async with frozen(own_server):
        (connecting,) = await begun(client.get("key"))
        kept = await hold()
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
