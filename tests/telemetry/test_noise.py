"""Which calls get spans: the users' options, and calls that never get one; all calls have points."""

import json
import subprocess
import sys
import time

import pytest
import redis.exceptions
from opentelemetry import context
from support import idle
from support.sharing import begun, frozen

from aioredis_monitored import ConfigurationError, MonitoredRedisConnection, TelemetryOptions

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


@pytest.mark.parametrize(
    "key", ["suppress_instrumentation", context._SUPPRESS_INSTRUMENTATION_KEY], ids=["by name", "by key"]
)
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
