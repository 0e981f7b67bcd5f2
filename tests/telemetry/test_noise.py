"""Which calls get spans: the users' options, and calls that never get one; all calls have points."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from random import Random

import pytest
import redis.exceptions
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from support import idle
from support.internals import SUPPRESS_INSTRUMENTATION_KEY
from support.sharing import begun, frozen

from aioredis_monitored import (
    ConfigurationError,
    MessageQueue,
    MonitoredRedisConnection,
    TelemetryOptions,
    config_from_env,
    pool_from_config,
)

DURATION = "db.client.operation.duration"


@pytest.fixture
def make(make_pool, server):
    """Make clients with telemetry options."""

    def make_client(**options):
        return MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=TelemetryOptions(**options)))

    return make_client


def points(telemetry):
    return telemetry.tally(DURATION, "db.operation.name")


async def test_require_parent_drops_spans_without_parent(make, telemetry):
    client = make(require_parent=True)
    await client.get("orphan")
    await client.pipeline("orphans").get("a").get("b").execute()
    with telemetry.tracer_provider.get_tracer("test").start_as_current_span("request") as request:
        await client.get("child")
    await client.in_context("redis", request).get("given")

    assert ["GET child", "GET given"] == [
        span.attributes["db.query.text"] for span in telemetry.spans if span.name != "request"
    ]
    assert {"GET": 3, "MULTI GET": 1} == points(telemetry)


@pytest.mark.parametrize(
    ("options", "operations"),
    [
        ({}, ["GET", "set", "CONFIG GET", "MULTI", "PING"]),
        ({"include_commands": {"get", "Set"}}, ["GET", "set", "MULTI"]),
        ({"include_commands": ["config  get"]}, ["CONFIG GET"]),
        ({"include_commands": ["CONFIG"]}, ["CONFIG GET"]),
        ({"include_commands": ()}, []),
        ({"exclude_commands": {"SET", "CONFIG", "PING"}}, ["GET", "MULTI"]),
        ({"exclude_commands": {"SET", "GET"}}, ["CONFIG GET", "PING"]),
        ({"include_commands": {"GET", "SET"}, "exclude_commands": {"SET"}}, ["GET", "MULTI"]),
    ],
)
async def test_command_filters_select_spans_and_keep_points(make, telemetry, options, operations):
    client = make(**options)
    await client.get("key")
    await client.execute_command("set", "key", "value")
    await client.config_get("maxmemory")
    await client.pipeline().get("key").set("key", "value").execute()
    await client.ping()

    assert operations == [span.attributes["db.operation.name"] for span in telemetry.spans]
    assert 5 == sum(points(telemetry).values())


async def test_slow_only_keeps_slow_and_failed_spans(make_pool, own_server, telemetry, until):
    # Long enough for a quick call on a stalling machine.
    options = TelemetryOptions(slow_only="2 s")
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, telemetry=options))
    await client.set("key", "value")
    await client.get("key")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.lpush("key", "value")
    async with frozen(own_server):
        (slow,) = await begun(client.get("slow"))
        since = time.perf_counter()
        await until(lambda: time.perf_counter() > since + 2)
    await slow

    assert "LPUSH status=ERROR db.query.text=LPUSH key ?\nGET db.query.text=GET slow" == telemetry.tree("db.query.text")
    assert {"SET": 1, "GET": 2, "LPUSH": 1} == points(telemetry)


@pytest.mark.parametrize("key", ["suppress_instrumentation", SUPPRESS_INSTRUMENTATION_KEY], ids=["by name", "by key"])
async def test_suppressed_instrumentation_records_nothing(client, telemetry, key):
    token = context.attach(context.set_value(key, True))
    await client.get("key")
    await client.pipeline().get("key").execute()
    context.detach(token)
    await client.ping()

    assert "PING" == telemetry.tree()
    assert {"PING": 1} == points(telemetry)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_empty_consumer_poll_records_point_without_span(make_pool, server, telemetry, protocol):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, protocol=protocol))
    await client.xgroup_create("stream", "group", mkstream=True)
    with telemetry.block() as block:
        assert await client.blpop("list", timeout=0.01) is None
        assert await client.blmove("list", "other", 0.01) is None
        assert await client.bzpopmin("sorted", timeout=0.01) is None
        assert not await client.xread({"stream": "$"}, block=1)
        assert not await client.xreadgroup("group", "me", {"stream": ">"}, block=1)
        assert not await client.xreadgroup("group", "me", {"stream": ">"})
        # Unacknowledged messages that this consumer has read before; the reply names each stream.
        assert "stream" in str(await client.xreadgroup("group", "me", {"stream": "0"}))
        assert "stream" in str(await client.pipeline().xreadgroup("group", "me", {"stream": "0"}).execute())
        assert not any(await client.pipeline().xreadgroup("group", "me", {"stream": ">"}).execute())
        assert not any(await client.pipeline(transaction=False).xread({"stream": "$"}).execute())

    assert "" == block.tree()
    assert 10 == sum(block.tally(DURATION).values())


async def test_consumer_command_records_span_of_message_or_error(client, telemetry):
    await client.rpush("list", "", "value")
    with telemetry.block() as block:
        assert b"" == await client.blmove("list", "other", 1)
        assert (b"list", b"value") == await client.blpop("list", timeout=1)
        with pytest.raises(redis.exceptions.ResponseError):
            await client.execute_command("BLPOP", "list", "soon")

    assert "BLMOVE\nBLPOP\nBLPOP status=ERROR" == block.tree()


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_idle_consumers_record_no_span_for_a_minute():
    command = [sys.executable, idle.__file__, "60"]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, timeout=600, check=True).stdout)  # noqa: S603 - this Python

    assert "" == found["spans"]
    # About 190 on an idle machine.
    assert found["looks"] >= 10
    cancelled = {f"{name} asyncio.exceptions.CancelledError" for name in ("BLPOP", "BLMOVE")}
    assert {"BLPOP", "BLMOVE", *cancelled} == found["points"].keys()


BAD = [
    ({"include_commands": "GET"}, "include_commands"),
    ({"exclude_commands": [1]}, "exclude_commands"),
    ({"exclude_commands": 1}, "exclude_commands"),
    ({"slow_only": -1}, "slow_only"),
    ({"slow_only": "soon"}, "slow_only"),
    ({"slow_only": True}, "slow_only"),
    ({"require_parent": "yes"}, "require_parent"),
    ({"show_keys": None}, "show_keys"),
    ({"key_template": "user:{id}"}, "key_template"),
    ({"span_name": "GET"}, "span_name"),
    ({"repeated_calls": 0}, "repeated_calls"),
    ({"repeated_calls": 2.5}, "repeated_calls"),
    ({"hot_keys": 1.5}, "hot_keys"),
    ({"hot_keys": float("nan")}, "hot_keys"),
    ({"hot_keys": True}, "hot_keys"),
    ({"hot_keys": 1e-300}, "hot_keys"),
    ({"hot_keys": 1.0, "show_keys": False}, "hot_keys"),
]


@pytest.mark.parametrize(("options", "name"), BAD)
def test_telemetry_options_reject_invalid_value(options, name):
    with pytest.raises(ConfigurationError, match=f"^{name}: ") as refused:
        TelemetryOptions(**options)

    assert 1 == len(refused.value.problems)


def test_telemetry_options_report_all_problems_together():
    with pytest.raises(ConfigurationError) as refused:
        TelemetryOptions(slow_only=-1, hot_keys=2, show_keys=1)

    assert ["slow_only", "show_keys", "hot_keys"] == [name for name, _ in refused.value.problems]


# --- A share of the calls ---


def in_trace(trace_id, *, is_sampled=True):
    """Return a parent span in a trace."""
    flags = trace.TraceFlags(int(is_sampled))
    return trace.NonRecordingSpan(trace.SpanContext(trace_id, 1, is_remote=True, trace_flags=flags))


async def test_keep_records_what_failed_and_a_share_of_all_other_calls(make, telemetry):
    client = make(keep=0)
    await client.set("key", "value")
    await client.get("key")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.lpush("key", "value")

    assert "LPUSH status=ERROR" == telemetry.tree()
    assert "aioredis_monitored.adjusted_count" not in telemetry.spans[0].attributes
    assert {"SET": 1, "GET": 1, "LPUSH": 1} == points(telemetry)


async def test_kept_spans_say_how_many_calls_they_stand_for(make, telemetry):
    client = make(keep=0.25)
    for _ in range(40):
        await asyncio.gather(*(client.get("key") for _ in range(100)))

    counts = [span.attributes["aioredis_monitored.adjusted_count"] for span in telemetry.spans]
    assert {4.0} == set(counts)
    # Seven standard deviations of the number of spans.
    assert sum(counts) == pytest.approx(4000, abs=4 * 7 * (4000 * 0.25 * 0.75) ** 0.5)


async def test_failed_call_whose_message_carries_its_context_stands_for_itself(make, telemetry):
    client = make(keep=0.5)
    queue = MessageQueue("key", client, propagate=True)
    await client.set("key", "no list")
    for _ in range(100):
        with pytest.raises(redis.exceptions.ResponseError):
            await queue.put(b"message")

    # Before the outcome was known, the share had decided about the spans.
    failed = [span.attributes for span in telemetry.spans if "error.type" in span.attributes]
    assert [1] * 100 == [attributes.get("aioredis_monitored.adjusted_count", 1) for attributes in failed]


async def test_keep_takes_all_calls_of_a_trace_or_none(make, telemetry):
    client = make(keep=0.5)
    for trace_id in range(1, 41):
        bound = client.in_context("redis", in_trace(trace_id))
        await bound.get("a")
        await bound.pipeline().get("b").get("c").execute()
        await bound.incr("d")

    kept = Counter(span.context.trace_id for span in telemetry.spans)
    assert {3} == set(kept.values())
    assert 5 < len(kept) < 35


@pytest.mark.parametrize("rate", [0.01, 0.5])
async def test_keep_is_independent_of_a_sampler_by_trace_id(make_pool, server, telemetry, rate):
    provider = TracerProvider(TraceIdRatioBased(rate), shutdown_on_exit=False)
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = TelemetryOptions(keep=0.5)
    client = MonitoredRedisConnection(
        connection_pool=make_pool(server.url, tracer_provider=provider, telemetry=options)
    )
    chosen = Random(17)
    # Those that the sampler takes: their low 64 bits are small.
    limit = int(rate * 2**64)
    for _ in range(20):
        spans = [in_trace(chosen.getrandbits(64) << 64 | chosen.randrange(1, limit)) for _ in range(100)]
        await asyncio.gather(*(client.in_context("redis", span).get("key") for span in spans))

    kept = len(exporter.get_finished_spans())
    assert kept == pytest.approx(1000, abs=7 * (2000 * 0.25) ** 0.5)


async def test_keep_adds_to_what_was_slow(make_pool, own_server, telemetry, until):
    options = TelemetryOptions(slow_only="2 s", keep=0.000_001)
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, telemetry=options))
    await client.get("quick")
    async with frozen(own_server):
        (slow,) = await begun(client.get("slow"))
        since = time.perf_counter()
        await until(lambda: time.perf_counter() > since + 2)
    await slow

    assert "GET db.query.text=GET slow" == telemetry.tree("db.query.text", "aioredis_monitored.adjusted_count")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("require_parent", "true", ""),
        ("include_commands", "GET, config", "GET"),
        ("exclude_commands", "get", "SET"),
        ("slow_only", "10 s", ""),
        ("keep", "0", ""),
        ("keep", "1", "SET\nGET"),
    ],
)
async def test_operator_decides_by_keys_which_calls_get_spans(server, telemetry, name, text, expected):
    keys = config_from_env({"REDIS_URL": server.url, f"REDIS_TELEMETRY_{name.upper()}": text})
    # What the application has chosen.
    options = TelemetryOptions(slow_only="20 s" if name == "slow_only" else None, exclude_commands={"PING"})
    async with pool_from_config(keys, telemetry=options, **telemetry.providers) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set("key", "value")
        await client.get("key")
        if name != "exclude_commands":
            await client.ping()

    assert expected == telemetry.tree()


async def test_operator_hides_keys_and_has_them_counted(server, telemetry):
    keys = {"redis.url": server.url, "redis.telemetry_show_keys": "off", "redis.telemetry_hot_keys": "1"}
    template = TelemetryOptions(key_template=lambda _: "all")
    async with pool_from_config(keys, telemetry=template, **telemetry.providers) as pool:
        await MonitoredRedisConnection(connection_pool=pool).get("secret")

        assert "GET db.query.text=GET ?" == telemetry.tree("db.query.text")
        assert pool.telemetry.hot_keys.rates(1)
    with pytest.raises(ConfigurationError, match=r"^redis\.telemetry_hot_keys: shows keys, which"):
        pool_from_config(keys)
