"""Locks: one span for an acquisition, however long, and metrics of waiting, holding, contention and loss."""

import asyncio
import time
from contextlib import contextmanager
from inspect import cleandoc

import pytest
import redis
import redis.asyncio
import redis.exceptions
from opentelemetry.trace import SpanKind, StatusCode
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.client.lock import MonitoredLock
from aioredis_monitored.config.telemetry import TelemetryOptions

DURATION = "db.client.operation.duration"
WAIT = "aioredis_monitored.lock.wait_time"
HOLD = "aioredis_monitored.lock.hold_time"
CONTENDED = "aioredis_monitored.lock.contended"
LOST = "aioredis_monitored.lock.lost"
ACQUIRED = "aioredis_monitored.lock.acquired"
POLLS = "aioredis_monitored.lock.polls"

LOSSES = {
    "release": lambda lock: lock.release(),
    "extend": lambda lock: lock.extend(5),
    "reacquire": lambda lock: lock.reacquire(),
}


@contextmanager
def refusing_writes(inspector):
    """Have the server refuse writes, as if it had lost its replicas."""
    inspector.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        inspector.config_set("min-replicas-to-write", 0)


@pytest.fixture
def lock_held_elsewhere(inspector):
    """Have another client hold the lock until it is deleted."""
    inspector.set("lock", "another client")


async def test_lock_acquire_records_one_client_span(client, telemetry, server):
    await client.ping()
    await client.lock("lock", timeout=5).acquire()
    _, span = telemetry.spans

    assert ("lock.acquire", SpanKind.CLIENT) == (span.name, span.kind)
    assert StatusCode.UNSET is span.status.status_code
    assert {
        "aioredis_monitored.lock.acquired": True,
        "aioredis_monitored.lock.polls": 1,
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "SET",
        "db.query.summary": "lock.acquire",
        "db.query.text": "SET lock ? NX PX ?",
        "network.peer.address": server.host,
        "network.peer.port": server.port,
        "network.transport": "tcp",
        "server.address": server.host,
        "server.port": server.port,
    } == dict(span.attributes)


@pytest.mark.parametrize("timeout", [None, 0, 5, 0.5])
async def test_lock_acquire_span_has_query_text_of_its_set(client, telemetry, timeout):
    lock = client.lock("lock", timeout=timeout)
    await lock.acquire()
    await lock.do_acquire(b"token")
    whole, one = telemetry.spans

    assert one.attributes["db.query.text"] == whole.attributes["db.query.text"]


async def test_contended_lock_records_one_span_covering_the_wait(
    client, telemetry, lock_held_elsewhere, inspector, until
):
    await client.ping()
    with telemetry.block() as block:
        asked = time.perf_counter()
        acquiring = asyncio.ensure_future(client.lock("lock").acquire())
        await until(lambda: block.tally(CONTENDED) == {"": 1})
        # The acquisition waits now: however slow the machine is, it waits for another second.
        inspector.pexpire("lock", 1_000)
        assert await acquiring
        took = time.perf_counter() - asked
    span, wait = block.span("lock.acquire"), block.point(WAIT)
    polls = span.attributes[POLLS]

    assert (span,) == block.spans
    # The span includes the wait, and is no longer than the call.
    assert 0.99 <= wait.sum <= (span.end_time - span.start_time) / 1e9 <= took
    assert span.attributes[ACQUIRED] is True
    # A pause of 0.1 s before each poll but the first.
    assert 2 <= polls <= 1 + wait.sum / 0.09
    assert {"SET": polls} == block.tally(DURATION, "db.operation.name")
    # The polls do not include the pauses.
    assert block.point(DURATION).sum <= wait.sum - 0.09 * (polls - 1)
    assert {"test": 1} == block.tally(CONTENDED, "db.client.connection.pool.name")


async def test_free_lock_counts_no_contention(client, telemetry):
    async with client.lock("lock"):
        pass

    assert {"test": 0} == telemetry.tally(CONTENDED, "db.client.connection.pool.name")
    assert {"test": 0} == telemetry.tally(LOST, "db.client.connection.pool.name")
    assert {"test": 1} == telemetry.tally(WAIT, "db.client.connection.pool.name")
    assert {"test": 1} == telemetry.tally(HOLD, "db.client.connection.pool.name")


@pytest.mark.parametrize("how", [{"blocking": False}, {"blocking_timeout": 0.05, "sleep": 0.01}])
async def test_unacquired_lock_records_no_error(client, telemetry, lock_held_elsewhere, how):
    with pytest.raises(redis.exceptions.LockError, match="Unable to acquire"):
        async with client.lock("lock", **how):
            pass
    span = telemetry.span("lock.acquire")

    assert StatusCode.UNSET is span.status.status_code
    assert span.attributes[ACQUIRED] is False
    assert "error.type" not in span.attributes
    assert {"SET": span.attributes[POLLS]} == telemetry.tally(DURATION, "db.operation.name", "error.type")
    assert {"": 1} == telemetry.tally(WAIT)
    assert {"": 1} == telemetry.tally(CONTENDED)
    assert {} == telemetry.tally(HOLD)


async def test_lock_acquire_span_has_error_of_failed_poll(client, telemetry, inspector):
    with refusing_writes(inspector), pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
        await client.lock("lock").acquire()
    span = telemetry.span("lock.acquire")

    assert (span,) == telemetry.spans
    assert StatusCode.ERROR is span.status.status_code
    assert ("NOREPLICAS", False, 1) == tuple(span.attributes[name] for name in ("error.type", ACQUIRED, POLLS))
    assert {"SET NOREPLICAS": 1} == telemetry.tally(DURATION, "db.operation.name", "error.type")
    assert {"": 0} == telemetry.tally(CONTENDED)


async def test_cancelled_lock_acquire_records_cancelled_error_type(client, telemetry, lock_held_elsewhere, until):
    acquiring = asyncio.ensure_future(client.lock("lock", sleep=10).acquire())
    await until(lambda: telemetry.tally(CONTENDED) == {"": 1})
    acquiring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    span = telemetry.span("lock.acquire")

    assert StatusCode.UNSET is span.status.status_code
    assert "asyncio.exceptions.CancelledError" == span.attributes["error.type"]
    assert (False, 1) == (span.attributes[ACQUIRED], span.attributes[POLLS])
    assert {"": 1} == telemetry.tally(WAIT)


@pytest.mark.parametrize("detect_loss", LOSSES.values(), ids=LOSSES)
async def test_lost_lock_is_counted_once(client, telemetry, inspector, detect_loss):
    lock = client.lock("lock", timeout=10)
    for _ in range(2):
        await lock.acquire()
        inspector.delete("lock")
        for ask in (detect_loss, detect_loss, LOSSES["release"]):
            with pytest.raises(redis.exceptions.LockError):
                await ask(lock)

    assert {"": 2} == telemetry.tally(LOST)
    assert {"": 2} == telemetry.tally(HOLD)


async def test_expired_lock_counts_as_lost_when_reacquired_by_its_holder(client, inspector, telemetry):
    lock = client.lock("lock", timeout=5)
    for _ in range(2):
        assert await lock.acquire()
        inspector.delete("lock")
    assert await lock.acquire()
    await lock.release()

    assert {"": 2} == telemetry.tally(LOST)
    assert {"": 3} == telemetry.tally(HOLD)


async def test_lock_hold_time_ends_with_release(client, telemetry, until):
    asked = time.perf_counter()
    async with client.lock("lock") as lock:
        had = time.perf_counter()
        await until(lambda: time.perf_counter() > had + 0.05)
        assert {} == telemetry.tally(HOLD)
        kept = time.perf_counter() - had
    at_most = time.perf_counter() - asked
    point = telemetry.point(HOLD)
    with pytest.raises(redis.exceptions.LockError):
        await lock.release()

    assert kept <= point.sum <= at_most
    assert (1, "test") == (point.count, point.attributes["db.client.connection.pool.name"])
    assert {"": 1} == telemetry.tally(HOLD)
    assert {"": 0} == telemetry.tally(LOST)


async def test_failed_lock_release_records_no_hold_time(client, inspector, telemetry):
    lock = client.lock("lock")
    await lock.acquire()
    with refusing_writes(inspector), pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
        await lock.release()
    assert {} == telemetry.tally(HOLD)
    await lock.release()

    assert {"": 1} == telemetry.tally(HOLD)
    assert {"": 0} == telemetry.tally(LOST)


async def test_lock_extend_and_reacquire_record_own_spans(client, telemetry):
    async with client.lock("lock", timeout=10) as lock:
        await lock.extend(10)
        await lock.reacquire()

    extended, reacquired = (f"EVALSHA {script.sha}" for script in (lock.lua_extend, lock.lua_reacquire))
    assert ["lock.acquire", extended, reacquired, "lock.release"] == [span.name for span in telemetry.spans]
    assert {"SET": 1, "EVALSHA": 3} == telemetry.tally(DURATION, "db.operation.name", "error.type")


async def test_request_stats_are_separate_for_context_clients_of_one_pool(
    client, telemetry, lock_held_elsewhere, inspector, until
):
    tracer = telemetry.tracer_provider.get_tracer("test")
    with telemetry.block() as block:
        spans = [tracer.start_span(name) for name in ("first", "second")]
        requests = [RequestStats(span, 20, eager=False) for span in spans]
        handles = [client.in_context("redis", span, view) for span, view in zip(spans, requests, strict=True)]
        acquiring = asyncio.ensure_future(handles[0].lock("lock", sleep=0.01).acquire())
        await until(lambda: block.tally(CONTENDED) == {"": 1})
        await handles[1].lock("free", sleep=0.01).acquire()
        # More often than a request may repeat a command.
        await until(lambda: sum(block.tally(DURATION).values()) > 30)
        inspector.delete("lock")
        await acquiring
        for request, span in zip(requests, spans, strict=True):
            request.close()
            span.end()

    # However often it polled: a request counts only calls with spans. Waiting for a lock is not time in Redis.
    calls = "aioredis_monitored.request.calls"
    expected = """
        first kind=INTERNAL aioredis_monitored.request.calls=1
          lock.acquire aioredis_monitored.lock.acquired=True
        second kind=INTERNAL aioredis_monitored.request.calls=1
          lock.acquire aioredis_monitored.lock.acquired=True
    """
    assert cleandoc(expected) == block.tree(calls, ACQUIRED)
    durations = [block.span(name).attributes["aioredis_monitored.request.duration"] for name in ("first", "second")]
    assert sum(durations) == pytest.approx(sum(point.sum for point in block.points(DURATION)), abs=1e-6)
    assert not block.span("first").events
    assert {"": 1} == block.tally(CONTENDED)
    assert {"": 2} == block.tally(WAIT)


async def test_lock_polls_are_counted_per_task(client, telemetry):
    lock = client.lock("lock", timeout=0.1, sleep=0.01)
    await asyncio.gather(lock.acquire(), lock.acquire())
    first, second = (span.attributes[POLLS] for span in telemetry.spans)

    assert 1 == first < second
    assert {"SET": first + second} == telemetry.tally(DURATION, "db.operation.name")
    assert {"": 1} == telemetry.tally(CONTENDED)


@pytest.mark.parametrize("thread_local", [True, False])
async def test_lock_token_is_shared_with_threads_only_without_thread_local(client, telemetry, thread_local):
    lock = client.lock("lock", thread_local=thread_local)
    await lock.acquire(token="mine")

    def look():
        return [getattr(lock.local, name, None) for name in ("token", "held_since")]

    assert [b"mine", lock.local.held_since] == look()
    assert ([None, None] if thread_local else look()) == await asyncio.to_thread(look)
    await lock.release()
    assert [None, None] == look()


@pytest.mark.parametrize(
    ("options", "text", "template"),
    [
        ({"show_keys": False}, "SET ? ? NX", None),
        ({"key_template": lambda _: "lock:{id}"}, "SET lock:{id} ? NX", "lock:{id}"),
    ],
)
async def test_lock_span_applies_key_options(make_pool, server, telemetry, options, text, template):
    pool = make_pool(server.url, telemetry=TelemetryOptions(**options))
    await MonitoredRedisConnection(connection_pool=pool).lock("lock:7").acquire()
    attributes = telemetry.span("lock.acquire").attributes

    assert (text, template) == (
        attributes["db.query.text"],
        attributes.get("aioredis_monitored.key.template"),
    )


async def test_lock_span_is_filtered_by_slow_only(make_pool, server, telemetry, lock_held_elsewhere, inspector, until):
    # Long enough for a stalling machine to acquire a free lock.
    pool = make_pool(server.url, telemetry=TelemetryOptions(slow_only=2))
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.lock("free").acquire()
    acquiring = asyncio.ensure_future(client.lock("lock", sleep=0.01).acquire())
    await until(lambda: telemetry.tally(CONTENDED) == {"": 1})
    since = time.perf_counter()
    await until(lambda: time.perf_counter() > since + 2)
    inspector.delete("lock")
    await acquiring

    assert "lock.acquire" == telemetry.tree()
    assert {"": 2} == telemetry.tally(WAIT)


async def test_lock_works_while_telemetry_is_disabled(make_pool, server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    async with client.lock("lock") as lock:
        assert await client.lock("lock", blocking=False).acquire() is False
        assert lock.local.held_since is None

    assert await client.exists("lock") == 0
    assert () == telemetry.spans


async def test_lock_works_on_redis_py_client(server, inspector):
    async with redis.asyncio.Redis.from_url(server.url) as plain:
        async with plain.lock("lock", timeout=10, lock_class=MonitoredLock) as lock:
            assert await lock.extend(5) is True
        await lock.acquire()
        inspector.delete("lock")
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await lock.release()


@pytest.mark.parametrize("pool_class", [redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool])
async def test_lock_works_on_plain_pool_and_pinned_client(server, pool_class, client, telemetry):
    async with pool_class.from_url(server.url) as pool, MonitoredRedisConnection(connection_pool=pool).lock("plain"):
        pass
    async with client.client() as single, single.lock("single"):
        pass

    assert {"test": 1} == telemetry.tally(HOLD, "db.client.connection.pool.name")


async def test_lock_pauses_between_polls_are_not_wire_time(make_pool, own_server, telemetry, until):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    with redis.Redis.from_url(own_server.url) as holder:
        holder.set("lock", "another client")
    # The first poll connects for so long that the span shows its parts.
    async with frozen(own_server):
        (acquiring,) = await begun(client.lock("lock", sleep=60).acquire())
        since = time.perf_counter()
        await until(lambda: time.perf_counter() > since + 0.1)
    await until(lambda: telemetry.tally(CONTENDED) == {"": 1})
    since = time.perf_counter()
    await until(lambda: time.perf_counter() > since + 0.1)
    acquiring.cancel()
    await asyncio.wait([acquiring])

    span = telemetry.span("lock.acquire")
    wait, connect, wire = (
        span.attributes[f"aioredis_monitored.{name}.duration"] for name in ("wait", "connect", "wire")
    )
    polling = telemetry.point(DURATION).sum
    # uvloop's clock may be one or two milliseconds behind
    assert connect >= 0.09
    assert polling == pytest.approx(wait + connect + wire, abs=1e-6)
    assert (span.end_time - span.start_time) / 1e9 >= polling + 0.09
