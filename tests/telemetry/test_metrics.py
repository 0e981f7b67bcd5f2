"""The metrics of a pool's connections: gauges that look at it, and histograms."""

import asyncio
import gc
import sys
import threading
import time

import pytest
import redis.exceptions
from opentelemetry.sdk.metrics import MeterProvider
from support.internals import set_lag_report_interval
from support.sharing import begun, client_of, connections, frozen

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, PoolExhaustedError, TelemetryOptions
from aioredis_monitored._multiplexer.connection import LoopLagMonitor
from aioredis_monitored._telemetry.instruments import Instruments

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
COUNT = "db.client.connection.count"
PENDING = "db.client.connection.pending_requests"
IN_FLIGHT = "aioredis_monitored.connection.in_flight"
CREATE, WAIT, USE = (f"db.client.connection.{name}_time" for name in ("create", "wait", "use"))
TIMEOUTS = "db.client.connection.timeouts"
LAG = "aioredis_monitored.event_loop.lag"
HOT = "aioredis_monitored.hot_keys.rate"


def used_and_idle(telemetry, name="test"):
    counts = telemetry.tally(COUNT, POOL, STATE)
    return counts[f"{name} used"], counts[f"{name} idle"]


async def test_pool_gauges_are_separate_per_pool(make_pool, server, telemetry):
    first, second = make_pool(server.url, name="first", max_connections=3), make_pool(server.url, name="second")
    await first.release(await first.get_connection())
    acquired = await second.get_connection()

    assert {"first used": 0, "first idle": 1, "second used": 1, "second idle": 0} == telemetry.tally(COUNT, POOL, STATE)
    for limit, of_first, of_second in (("max", 3, 50), ("idle.max", 3, 50), ("idle.min", 0, 0)):
        gauges = telemetry.tally(f"db.client.connection.{limit}", POOL)
        assert {"first": of_first, "second": of_second} == gauges

    await second.release(acquired)


async def test_shared_connection_counts_as_one_used_with_commands_in_flight(make_pool, own_server, telemetry, until):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, name="test"))
    await client.ping()
    async with frozen(own_server):
        calls = [asyncio.ensure_future(client.get("key")) for _ in range(100)]
        await until(lambda: telemetry.tally(IN_FLIGHT, POOL) == {"test": 100})

        assert (1, 0) == used_and_idle(telemetry)
        assert {"test": 0} == telemetry.tally(PENDING, POOL)

    await asyncio.gather(*calls)
    assert {"test": 0} == telemetry.tally(IN_FLIGHT, POOL)


async def test_pool_waiters_count_as_pending_requests(make_pool, server, telemetry, until):
    pool = make_pool(server.url, name="test", max_connections=2, multiplex=False)
    held = [await pool.get_connection() for _ in range(2)]
    waiting = [asyncio.create_task(pool.get_connection()) for _ in range(3)]
    await until(lambda: telemetry.tally(PENDING, POOL) == {"test": 3})
    waiting[0].cancel()
    await until(lambda: telemetry.tally(PENDING, POOL) == {"test": 2})
    for connection in held:
        await pool.release(connection)
    for connection in await asyncio.gather(*waiting[1:]):
        await pool.release(connection)

    assert {"test": 0} == telemetry.tally(PENDING, POOL)
    assert (0, 2) == used_and_idle(telemetry)


async def test_commands_queued_for_shared_connection_count_as_pending(make_pool, own_server, telemetry, until):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, name="test"))
    async with frozen(own_server):
        calls = [asyncio.ensure_future(client.get("key")) for _ in range(10)]
        await until(lambda: telemetry.tally(PENDING, POOL) == {"test": 10})
        calls[0].cancel()
        await until(lambda: telemetry.tally(PENDING, POOL) == {"test": 9})

    await asyncio.gather(*calls[1:])
    assert {"test": 0} == telemetry.tally(PENDING, POOL)
    # All calls had to wait until the pool was connected.
    assert telemetry.point(WAIT, {POOL: "test"}).count == 9


@pytest.mark.parametrize("multiplex", [True, False])
@pytest.mark.slow  # and the same on every Python, server and event loop
async def test_pool_gauges_are_exact_after_errors_and_cancellations(
    make_pool, server, telemetry, inspector, dice, until, multiplex
):
    client = client_of(make_pool, server.url, name="test", multiplex=multiplex, max_connections=8, timeout=60)
    inspector.set("string", "value")
    outcomes = []

    async def call():
        kind = dice.randrange(4)
        calling = {
            0: lambda: client.get("string"),
            1: lambda: client.lpush("string", "value"),
            2: lambda: client.blpop("nothing", timeout=1),
            3: lambda: client.execute_command("BLPOP", "string", 1),
        }[kind]()
        task = asyncio.ensure_future(calling)
        if kind == 2 or dice.random() < 0.2:
            for _ in range(dice.randrange(20)):
                await asyncio.sleep(0)
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        outcomes.append(type(outcome))

    for _ in range(10):
        await asyncio.gather(*(call() for _ in range(100)))

    used, idle = used_and_idle(telemetry)
    await until(lambda: len(connections(inspector)) == used + idle)
    assert 1_000 == len(outcomes)
    assert {asyncio.CancelledError, redis.exceptions.ResponseError, bytes} <= set(outcomes)
    assert int(multiplex) == used
    assert {"test": 0} == telemetry.tally(PENDING, POOL) == telemetry.tally(IN_FLIGHT, POOL)


async def test_connection_closed_by_server_is_not_counted_idle(make_pool, server, telemetry, inspector, until):
    pool = make_pool(server.url, name="test", multiplex=False, client_name="tested")
    for connection in [await pool.get_connection() for _ in range(3)]:
        await pool.release(connection)
    assert (0, 3) == used_and_idle(telemetry)

    ids = sorted(connections(inspector))
    for remaining, killed in ((2, ids[:1]), (0, ids[1:])):
        for number in killed:
            inspector.client_kill_filter(_id=number)
        await until(lambda remaining=remaining: used_and_idle(telemetry) == (0, remaining))

    assert await MonitoredRedisConnection(connection_pool=pool).ping()
    assert (0, 1) == used_and_idle(telemetry)


async def test_pool_names_are_unique_and_reusable_after_close(make_pool, server, telemetry):
    first, second, third = (make_pool(server.url, name="cache") for _ in range(3))
    assert {"cache", "cache-2", "cache-3"} == telemetry.tally("db.client.connection.max", POOL).keys()
    assert ["cache"] * 3 == [first.name, second.name, third.name]
    await second.aclose()

    assert {"cache", "cache-3"} == telemetry.tally("db.client.connection.max", POOL).keys()
    assert "cache-2" == make_pool(server.url, name="cache").stats().name
    async with second:
        assert {"cache", "cache-2", "cache-3", "cache-4"} == telemetry.tally("db.client.connection.max", POOL).keys()


async def test_pool_reopened_while_closing_stays_in_gauges(make_pool, server, telemetry):
    pool = make_pool(server.url, name="test")
    await pool.ping()
    (closing,) = await begun(pool.aclose())
    async with pool:
        await closing
        await pool.ping()

        assert {"test": 50} == telemetry.tally("db.client.connection.max", POOL)


def test_collected_pool_leaves_gauges_and_frees_its_name(server, telemetry):
    MonitoredConnectionPool.from_url(server.url, name="forgotten", **telemetry.providers)
    gc.collect()

    assert {} == telemetry.tally("db.client.connection.max", POOL)
    assert "forgotten" == MonitoredConnectionPool.from_url(server.url, name="forgotten").stats().name


async def test_acquired_connection_records_create_wait_and_use_time(make_pool, server, telemetry):
    pool = make_pool(server.url, name="test", multiplex=False)
    client = MonitoredRedisConnection(connection_pool=pool)
    for _ in range(3):
        await client.get("key")

    assert [1, 3, 3] == [telemetry.point(name, {POOL: "test"}).count for name in (CREATE, WAIT, USE)]
    assert (0.0001, 10.0) == (telemetry.point(USE).explicit_bounds[0], telemetry.point(USE).explicit_bounds[-1])


async def test_shared_connection_command_records_only_operation_duration(make_pool, server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, name="test"))
    await client.ping()
    with telemetry.block() as block:
        for _ in range(10):
            await client.get("key")

    assert {"GET": 10} == block.tally("db.client.operation.duration", "db.operation.name")
    assert {} == {name: count for name in (CREATE, WAIT, USE) for count in block.tally(name).values() if count}


async def test_use_time_spans_acquire_to_release(make_pool, server, telemetry, until):
    pool = make_pool(server.url, name="test", multiplex=False)
    acquired, since = await pool.get_connection(), time.perf_counter()
    await until(lambda: time.perf_counter() > since + 0.05)
    await pool.release(acquired)

    assert telemetry.point(USE).sum >= 0.05


async def test_pool_timeouts_start_at_zero_and_count_exhaustion(make_pool, server, telemetry):
    pool = make_pool(server.url, name="test", max_connections=1, timeout=0.01)
    assert {"test": 0} == telemetry.tally(TIMEOUTS, POOL)
    client = MonitoredRedisConnection(connection_pool=pool)
    held = await pool.get_connection()
    with pytest.raises(PoolExhaustedError):
        await client.get("key")
    await pool.release(held)

    assert {"test": 1} == telemetry.tally(TIMEOUTS, POOL)
    assert "aioredis_monitored.PoolExhaustedError" == telemetry.span("GET").attributes["error.type"]
    assert issubclass(PoolExhaustedError, redis.exceptions.MaxConnectionsError)


async def test_pool_timeouts_count_full_shared_connection(make_pool, own_server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, name="test", timeout=0.05))
    await client.ping()
    async with frozen(own_server):
        # As many bytes as fit, and one call more.
        filling = [asyncio.ensure_future(client.set("key", b"x" * 60_000)) for _ in range(300)]
        refused = await asyncio.gather(*filling[290:], return_exceptions=True)

    await asyncio.gather(*filling, return_exceptions=True)
    assert {PoolExhaustedError} == {type(outcome) for outcome in refused}
    assert telemetry.tally(TIMEOUTS, POOL)["test"] >= 10


def sdk_log_messages(caplog):
    """Return the SDK's log messages: it logs a gauge's exception, and exports the other gauges."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.fixture
def frequent_thread_switches():
    """Have threads switch as often as possible, so that state is read while it changes."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.slow
async def test_gauges_are_readable_from_another_thread_under_load(
    make_pool, server, telemetry, frequent_thread_switches, dice, caplog
):
    pool = make_pool(server.url, name="test", max_connections=30, telemetry=TelemetryOptions(hot_keys=1.0))
    client = MonitoredRedisConnection(connection_pool=pool)
    is_over, reads, most = threading.Event(), [], dict.fromkeys(("used", "idle", PENDING, IN_FLIGHT, HOT), 0)

    def export():
        # An exception in this thread fails the test.
        while not is_over.is_set():
            counts = telemetry.tally(COUNT, POOL, STATE)
            values = {state: counts.get(f"test {state}", 0) for state in ("used", "idle")}
            values |= {name: telemetry.tally(name, POOL).get("test", 0) for name in (PENDING, IN_FLIGHT)}
            values[HOT] = sum(telemetry.tally(HOT).values())
            most.update({name: max(value, most[name]) for name, value in values.items()})
            reads.append(values)

    async def borrow():
        # Some callers wait, and towards the end fewer and fewer acquire.
        for _ in range(5):
            connection = await pool.get_connection()
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            await pool.release(connection)

    exporter = threading.Thread(target=export)
    await client.ping()
    exporter.start()
    deadline = time.monotonic() + 120
    try:
        # Until every gauge has been above zero.
        while len(reads) < 100 or not all(most.values()):
            assert time.monotonic() < deadline, most
            pools = [make_pool(server.url) for _ in range(5)]
            await asyncio.gather(
                *(client.get(f"key:{number}") for number in range(300)), *(borrow() for _ in range(60))
            )
            for each in pools:
                await each.aclose()
    finally:
        is_over.set()
        exporter.join()

    assert [] == sdk_log_messages(caplog)
    assert most["used"] <= 30 >= most["idle"]


def test_gauges_are_readable_while_pool_is_constructed(server, telemetry, monkeypatch, caplog):
    watch = Instruments.add_pool

    def watch_and_read(instruments, pool):
        watch(instruments, pool)
        # As an exporter's thread may, as soon as the instruments know the pool.
        assert {"made": 0} == telemetry.tally(PENDING, POOL) == telemetry.tally(IN_FLIGHT, POOL)

    monkeypatch.setattr(Instruments, "add_pool", watch_and_read)
    MonitoredConnectionPool.from_url(server.url, name="made", **telemetry.providers)

    assert [] == sdk_log_messages(caplog)


def test_instruments_are_shared_by_pools_of_one_meter_provider(server, telemetry):
    names = [MonitoredConnectionPool.from_url(server.url, **telemetry.providers) for _ in range(3)]

    assert 1 == len({id(pool.telemetry.instruments) for pool in names})
    assert 3 == len(telemetry.tally("db.client.connection.max", POOL))


def test_instruments_are_collected_with_their_meter_provider(server):
    from weakref import ref

    provider = MeterProvider()
    pool = MonitoredConnectionPool.from_url(server.url, meter_provider=provider)
    instruments = ref(pool.telemetry.instruments)
    provider.shutdown()
    del pool, provider
    gc.collect()

    assert instruments() is None


# "Is it Redis or is it me?"


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get("key"),
        # redis-py converts this reply.
        lambda client: client.smembers("set"),
        lambda client: client.pipeline().get("key").smembers("set").execute(),
        lambda client: client.pipeline(transaction=False).get("key").smembers("set").execute(),
        lambda client: client.lpush("key", "value"),
        lambda client: client.connection_pool.ping(),
    ],
    ids=["command", "callback", "transaction", "pipeline", "error", "ping"],
)
async def test_event_loop_lag_is_recorded_apart_from_operation_duration(make_pool, server, telemetry, inspector, call):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, name="test"))
    inspector.set("key", "value")
    await client.ping()
    began = []

    async def busy():
        await client.get("key")
        began.append(time.time_ns())
        until = time.perf_counter() + 0.2
        while time.perf_counter() < until:
            pass

    with telemetry.block() as block:
        await asyncio.gather(busy(), call(client), return_exceptions=True)
        await client.get("key")

    assert block.point(LAG).sum >= 0.2
    # The call whose caller had to wait for the busy task had ended before.
    assert 2 == sum(span.end_time <= began[0] for span in block.spans)
    assert sum((span.end_time - span.start_time) / 1e9 for span in block.spans) == pytest.approx(
        sum(point.sum for point in block.points("db.client.operation.duration")), abs=1e-6
    )


async def test_event_loop_lag_is_measured_once_per_batch(make_pool, server, telemetry, monkeypatch):
    set_lag_report_interval(monkeypatch, 0.0)
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, name="test"))
    for _ in range(20):
        await asyncio.gather(*(client.get("key") for _ in range(100)))
    await client.get("key")

    # Concurrent calls may be answered in a few parts, but not in a hundred.
    assert 20 <= telemetry.point(LAG).count <= 20 * 10


async def test_event_loop_lag_reports_are_limited_per_second(make_pool, server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, name="test"))
    await client.ping()
    started = time.perf_counter()
    while time.perf_counter() < started + 0.55:
        await asyncio.gather(*(client.get("key") for _ in range(10)))
    await client.get("key")
    seconds = time.perf_counter() - started

    assert 2 <= telemetry.point(LAG).count <= 2 + seconds * 10


def test_event_loop_lag_reports_maximum_since_previous_report(monkeypatch):
    now, reported = [100.0], []
    monkeypatch.setattr("aioredis_monitored._multiplexer.connection.perf_counter", lambda: now[0])
    measured = LoopLagMonitor(reported.append)
    for lagged, after in ((0.01, 0.0), (0.05, 0.0), (0.02, 0.2), (0.03, 0.2), (0.04, 0.2)):
        read_at = now[0]
        now[0] += lagged
        measured.on_resumed(read_at)
        now[0] += after

    # Nothing is reported in the tenth of a second after the first lag; the fourth is the first after that.
    assert [0.01, 0.05, 0.04] == pytest.approx(reported)
