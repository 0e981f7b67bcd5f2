"""One span and one point per call: ours, or those of tools that patch redis-py, which must not disappear."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import redis.asyncio
import redis.asyncio.observability.recorder
import redis.observability.recorder
from opentelemetry import trace
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError, WatchError
from redis.observability import OTelConfig, get_observability_instance, reset_observability_instance
from redis.observability.config import MetricGroup
from redis.observability.metrics import RedisMetricsCollector

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._telemetry import coexistence as foreign
from aioredis_monitored._telemetry import coexistence as native
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import Server

PROGRAM = Path(__file__).parents[1] / "support" / "doubled.py"
# Without these, ddtrace looks for its agent.
ENVIRONMENT = {"DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false"}
OUR_CLIENTS = ("pool", "single", "plain")
SPANS = {
    "command": 1,
    "error": 1,
    "blocking": 1,
    "pipeline": 1,
    "failing pipeline": 1,
    "watch": 3,
    "publish": 1,
    "script": 1,
    # Acquiring and releasing.
    "lock": 2,
}
# Sentry never ends the span of a failed command, and does not see commands that run at once because of a WATCH.
SENTRYS_SPANS = {**SPANS, "error": 0, "watch": 1}
COMMANDS_BEFORE = 23


@pytest.fixture(scope="module")
def report(server):
    """Return what the program reports; several tests read one run."""

    @cache
    def run(*arguments):
        command = [sys.executable, "-W", "error::ResourceWarning", PROGRAM, server.url, *arguments]
        environment = {**os.environ, **ENVIRONMENT}
        return json.loads(subprocess.check_output(command, text=True, timeout=30, env=environment))  # noqa: S603 - ours

    return run


def by_client(seen, what):
    return {kind: {name: clients[name][what] for name in OUR_CLIENTS} for kind, clients in seen.items()}


def redis_py_by_client(seen, what):
    return {kind: dict.fromkeys(OUR_CLIENTS, clients["redis-py"][what]) for kind, clients in seen.items()}


def counts(spans):
    return {kind: {len(recorded) for recorded in clients.values()} for kind, clients in spans.items()}


@pytest.mark.parametrize(("order", "metrics"), [("before", "measured"), ("after", "unmeasured")])
@pytest.mark.parametrize("tool", ["contrib", "ddtrace", "sentry"])
def test_instrumentor_records_calls_as_for_redis_py_without_own_tracer(report, tool, order, metrics):
    found = report(tool, "off", order, metrics)
    seen, spans = found["seen"], SENTRYS_SPANS if tool == "sentry" else SPANS

    assert redis_py_by_client(seen, "theirs") == by_client(seen, "theirs")
    assert {kind: {count} for kind, count in spans.items()} == counts(by_client(seen, "theirs"))
    assert {kind: {0} for kind in SPANS} == counts(by_client(seen, "ours"))
    assert redis_py_by_client(seen, "result") == by_client(seen, "result")
    assert 1 == found["connections"]
    assert {kind: seen[kind]["redis-py"]["result"] for kind in SPANS} == found["unpatched"]["results"]
    assert [] == found["unpatched"]["theirs"]


@pytest.mark.parametrize("tool", ["contrib", "ddtrace", "sentry"])
def test_own_tracer_records_every_call_once_beside_instrumentor(report, tool):
    found = report(tool, "on", "after", "measured")
    seen = found["seen"]

    assert 1 == len(seen["command"]["redis-py"]["theirs"])
    assert {kind: {0} for kind in SPANS} == counts(by_client(seen, "theirs"))
    assert {kind: {count} for kind, count in SPANS.items()} == counts(by_client(seen, "ours"))
    assert redis_py_by_client(seen, "result") == by_client(seen, "result")
    assert 1 == found["connections"]


@pytest.mark.parametrize(
    ("tool", "tracer", "order"),
    [
        ("nothing", "off", "after"),
        ("contrib", "on", "after"),
        ("contrib", "off", "before"),
        ("ddtrace", "off", "before"),
        ("sentry", "off", "before"),
    ],
)
def test_native_metrics_add_no_second_point_and_warn_once(report, tool, tracer, order):
    found = report(tool, tracer, order, "measured")
    ours = len(OUR_CLIENTS) * sum(SPANS.values()) + COMMANDS_BEFORE

    # redis-py's two points are of its blocking client, which has counted the connections.
    assert {"aioredis_monitored": ours, "redis-py": 2} == found["points"]
    assert [native._NATIVE_METRICS_WARNING] == found["logged"]


@pytest.fixture
def replaced(monkeypatch):
    """Return the calls that a tool sees which replaces redis-py's methods as sentry does."""
    seen = []

    def replace(owner, name):
        method = getattr(owner, name)

        async def spy(self, *args, **options):
            try:
                result = await method(self, *args, **options)
            except BaseException as error:
                seen.append((self, args, options, type(error)))
                raise
            seen.append((self, args, options, result))
            return result

        monkeypatch.setattr(owner, name, spy)

    replace(redis.asyncio.Redis, "execute_command")
    replace(Pipeline, "execute")
    replace(Pipeline, "immediate_execute_command")
    return seen


def outcomes(seen):
    return [(*args, outcome) for _, args, _, outcome in seen]


async def test_patched_method_receives_client_as_self(server, replaced):
    async with MonitoredRedisConnection.from_url(server.url) as client:
        handle = client.in_context("orders", None)
        await handle.set("key", "value")
        ((seen, args, _, result),) = replaced

        assert ("SET", "key", "value", True) == (*args, result)
        assert isinstance(seen, MonitoredRedisConnection)
        assert ("orders", client.connection_pool) == (seen.context_name, seen.connection_pool)


async def test_patched_method_receives_command_options(server, replaced):
    async with MonitoredRedisConnection.from_url(server.url) as client:
        await client.execute_command("GET", "key", NEVER_DECODE=True)

    assert [{"NEVER_DECODE": True}] == [options for _, _, options, _ in replaced]


async def test_patched_method_sees_retried_command_once(proxy, replaced):
    async with MonitoredRedisConnection.from_url(proxy.url) as client:
        await client.ping()
        proxy.cut_replies = 1
        await client.get("key")

    assert [("PING", True), ("GET", "key", None)] == outcomes(replaced)


async def test_command_error_reaches_patched_method_and_caller(server, replaced, inspector, until):
    async with MonitoredRedisConnection.from_url(server.url) as client:
        await client.set("key", "value")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.lpush("key", "value")
        waiting = asyncio.ensure_future(client.blpop("empty"))
        await until(lambda: inspector.info("clients")["blocked_clients"])
        waiting.cancel()
        await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert [True, ResponseError, asyncio.CancelledError] == [outcome for *_, outcome in replaced]


async def test_patched_method_sees_pipelines_as_from_redis_py(server, replaced):
    async with MonitoredRedisConnection.from_url(server.url) as client:
        assert [] == await client.pipeline().execute()
        script = client.register_script("return 1")
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            pipe.multi()
            await script(client=pipe)
            assert [1] == await pipe.execute()

    # A batch's scripts are loaded within its call.
    assert [(True, []), ("WATCH", "key", True), (True, [1])] == outcomes(replaced)


async def test_empty_pipeline_records_point_beside_patched_method(server, replaced, telemetry):
    async with MonitoredRedisConnection.from_url(server.url, meter_provider=telemetry.meter_provider) as client:
        for transaction in (True, False):
            assert [] == await client.pipeline(transaction=transaction).execute()
    # An un-awaited coroutine warns when it is collected.
    gc.collect()

    assert [(True, []), (True, [])] == outcomes(replaced)
    assert {"MULTI": 1, "PIPELINE": 1} == telemetry.tally("db.client.operation.duration", "db.operation.name")


async def test_patched_method_sees_no_call_while_own_tracer_records(client, replaced, telemetry):
    await client.set("key", "value")
    await client.pipeline().get("key").execute()

    assert [[], 2] == [replaced, len(telemetry.spans)]


async def test_native_metrics_are_suppressed_for_calls_of_patched_method(server, replaced, monkeypatch, telemetry):
    config = OTelConfig(metric_groups=[MetricGroup.COMMAND])
    collector = RedisMetricsCollector(telemetry.meter_provider.get_meter("redis-py"), config)
    monkeypatch.setattr(redis.asyncio.observability.recorder, "_async_metrics_collector", collector)
    async with (
        MonitoredRedisConnection.from_url(server.url, meter_provider=telemetry.meter_provider) as client,
        client.client() as single,
        redis.asyncio.Redis.from_url(server.url) as other,
    ):
        await client.get("key")
        await client.pipeline().get("key").execute()
        await single.get("key")
        assert [3] == [point.count for point in telemetry.points("db.client.operation.duration")]

        await other.get("key")
        points = telemetry.points("db.client.operation.duration")

    assert [1, 3] == sorted(point.count for point in points)
    assert [("GET", "key", None), (True, [None]), ("GET", "key", None), ("GET", "key", None)] == outcomes(replaced)


@pytest.mark.parametrize("publish", ["publish", "spublish"])
async def test_native_metrics_count_publish_with_propagation_as_any_publish(server, monkeypatch, telemetry, publish):
    config = OTelConfig(metric_groups=[MetricGroup.PUBSUB])
    collector = RedisMetricsCollector(telemetry.meter_provider.get_meter("redis-py"), config)
    monkeypatch.setattr(redis.observability.recorder, "_metrics_collector", collector)
    async with (
        MonitoredRedisConnection.from_url(server.url) as client,
        redis.asyncio.Redis.from_url(server.url) as other,
    ):
        for calling, options in ((other, {}), (client, {}), (client, {"propagate": True})):
            await getattr(calling, publish)("news", "message", **options)

    # One series for all of them.
    point = telemetry.point("redis.client.pubsub.messages")
    assert (3, publish == "spublish") == (point.value, bool(point.attributes.get("redis.client.pubsub.sharded")))


async def test_pinned_connection_reconnects_after_call_when_marked_by_redis_py(server):
    async with MonitoredRedisConnection.from_url(server.url) as client, client.client() as single:
        first = await single.client_id()
        single.connection.mark_for_reconnect()
        last = await single.client_id()
        new = await single.client_id()

    assert [True, False] == [first == last, last == new]


async def test_plain_pool_keeps_its_retry_policy(proxy):
    retry = Retry(NoBackoff(), 1)
    async with redis.asyncio.ConnectionPool.from_url(proxy.url, retry=retry) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        numbers = []
        for call in (client.incr("key"), client.pipeline().incr("key").execute()):
            await client.ping()
            proxy.cut_replies = 1
            numbers.append(await call)

        async with client.pipeline() as pipe:
            await pipe.watch("key")
            proxy.cut_replies = 1
            with pytest.raises(WatchError):
                await pipe.get("key")

    assert [2, [4]] == numbers


def test_patch_point_distinguishes_original_from_patched_method(replaced):
    methods = {foreign.EXECUTE_COMMAND.original, foreign.EXECUTE.original, foreign.EXECUTE_IMMEDIATELY.original}

    assert {"execute_command", "execute", "immediate_execute_command"} == {method.__name__ for method in methods}
    assert foreign._original(redis.asyncio.Redis.execute_command) is None


async def test_noop_provider_leaves_calls_to_patched_method(server, replaced, monkeypatch):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    async with MonitoredRedisConnection.from_url(server.url) as client:
        # As the SDK does with OTEL_SDK_DISABLED.
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", trace.NoOpTracerProvider())
        await client.get("key")

    assert [("GET", "key", None)] == outcomes(replaced)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [([MetricGroup.COMMAND, MetricGroup.CSC], 1), ([MetricGroup.CONNECTION_BASIC], 0), (None, 0)],
)
def test_native_metrics_warning_covers_command_metrics_only(monkeypatch, caplog, groups, expected):
    monkeypatch.setattr(native, "_warned", [])
    if groups is not None:
        get_observability_instance().init(OTelConfig(metric_groups=groups))
    try:
        first, second = PoolRecorder(Server({}, None)), PoolRecorder(Server({}, None))
        first.command_spec(("GET", "key"))
        second.command_spec(("GET", "key"))
    finally:
        reset_observability_instance()

    assert [native._NATIVE_METRICS_WARNING] * expected == [
        record.message for record in caplog.records if record.name == "aioredis_monitored.telemetry"
    ]
