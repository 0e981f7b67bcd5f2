"""When and where a call on the shared connection is recorded: before its caller resumes, in the caller's context."""

import asyncio
import subprocess
import sys
import threading
import time
from contextvars import ContextVar
from inspect import cleandoc
from types import SimpleNamespace

import pytest
import redis.exceptions
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from redis.asyncio import Connection

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._redispy.sockets import is_readable
from aioredis_monitored._telemetry import guard as trouble
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import Server
from aioredis_monitored.testing import TelemetryCapture

DURATION = "db.client.operation.duration"
OUTCOMES = (DURATION, "db.operation.name", "error.type")


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"decode_responses": True, "encoding": "latin-1"}])
async def test_replies_read_together_are_recorded_before_first_caller_resumes(make_pool, server, telemetry, options):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **options))
    await client.set("key", "value")
    seen = []

    async def caller(call):
        await call
        seen.append(len(telemetry.spans))

    async with asyncio.TaskGroup() as group:
        for call in (
            client.get("key"),
            client.get("none"),
            client.incr("number"),
            client.set("key", 1),
            client.ttl("a"),
        ):
            group.create_task(caller(call))

    assert [6] * 5 == seen
    assert {"SET": 2, "GET": 2, "INCRBY": 1, "TTL": 1} == telemetry.tally(*OUTCOMES)


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}])
async def test_command_is_recorded_once_for_each_kind_of_reply(make_pool, server, telemetry, options):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **options))
    await client.hset("hash", "field", "value")
    await client.set("string", "naïve")
    for call in (client.get("string"), client.get("string"), client.hgetall("hash"), client.expire("hash", 10)):
        await call
    for call in (client.get("hash"), client.hgetall("string")):
        with pytest.raises(redis.exceptions.ResponseError):
            await call

    assert 8 == len(telemetry.spans)
    assert {
        "HSET": 1,
        "SET": 1,
        "GET": 2,
        "HGETALL": 1,
        "EXPIRE": 1,
        "GET WRONGTYPE": 1,
        "HGETALL WRONGTYPE": 1,
    } == telemetry.tally(*OUTCOMES)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"decode_responses": True}, b"\xff"),
        ({"decode_responses": True, "encoding": "utf-16"}, b"odd"),
        ({"decode_responses": True, "encoding": "ascii"}, b"\xff"),
    ],
)
async def test_undecodable_reply_records_decoding_error(make_pool, server, telemetry, options, value):
    writer = MonitoredRedisConnection(connection_pool=make_pool(server.url))
    await writer.set("key", value)
    reader = MonitoredRedisConnection(connection_pool=make_pool(server.url, **options))
    with pytest.raises(UnicodeDecodeError):
        await reader.get("key")

    assert {"SET": 1, "GET aioredis_monitored.ReplyDecodingError": 1} == telemetry.tally(*OUTCOMES)


async def test_raising_response_callback_records_its_error_type(client, telemetry):
    def callback(reply, **_):
        raise LookupError

    client.set_response_callback("GET", callback)
    with pytest.raises(LookupError):
        await client.get("key")

    assert {"GET LookupError": 1} == telemetry.tally(*OUTCOMES)


async def test_span_processor_sees_context_of_caller(client, telemetry):
    request = ContextVar("request", default="none")
    seen = []

    class Curious(SpanProcessor):
        def on_start(self, span, parent_context=None):
            seen.append((request.get(), trace.get_current_span()))

    telemetry.tracer_provider.add_span_processor(Curious())
    tracer = telemetry.tracer_provider.get_tracer("test")

    async def handle(number):
        request.set(number)
        with tracer.start_as_current_span(f"request {number}") as span:
            await client.get("key")
            await client.hgetall("hash")
            return span

    await client.get("key")
    parents = await asyncio.gather(handle(1), handle(2))

    assert [("none", trace.INVALID_SPAN)] == seen[:1]
    of_redis = [each for each in seen[1:] if each[1] is not trace.INVALID_SPAN]
    assert {(1, parents[0]): 2, (2, parents[1]): 2} == {each: of_redis.count(each) for each in of_redis}
    expected = """
        GET
        request 1 kind=INTERNAL
          GET
          HGETALL
        request 2 kind=INTERNAL
          GET
          HGETALL
    """
    assert cleandoc(expected) == telemetry.tree()


async def test_span_starts_when_command_is_called(telemetry, proxy, make_pool):
    slow = MonitoredRedisConnection(connection_pool=make_pool(proxy.url))
    await slow.get("key")
    proxy.reply_pause = 0.2
    with telemetry.block() as block:
        await slow.get("key")
    span = block.span("GET")

    assert 0.2e9 <= span.end_time - span.start_time < 5e9
    assert 0.2 <= block.point(DURATION).sum < 5


async def test_unexpected_command_option_records_type_error(client, telemetry):
    with pytest.raises(TypeError):
        await client.execute_command("EXPIRE", "key", 1, unexpected=True)

    assert {"EXPIRE TypeError": 1} == telemetry.tally(*OUTCOMES)


async def test_command_cancelled_after_its_reply_is_recorded_without_error(client, telemetry):
    await client.ping()
    call = asyncio.ensure_future(client.get("key"))
    await asyncio.sleep(0)
    listener = SimpleNamespace(on_reply=lambda *_: call.cancel())
    reply = client.connection_pool.multiplexer.send(("PING",), observer=listener)
    await asyncio.wait([call])

    assert await reply == b"PONG"
    assert call.cancelled()
    assert {"PING": 1, "GET": 1} == telemetry.tally(*OUTCOMES)


PROVIDERS_LATER = """
import asyncio, sys
from opentelemetry import metrics, trace
from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import TelemetryCapture

async def main():
    async with MonitoredConnectionPool.from_url(sys.argv[1]) as pool:
        with TelemetryCapture() as capture:
            # A pool that got the provider before it became the global one shares its gauges with pools without one.
            explicit = MonitoredConnectionPool.from_url(sys.argv[1], name="explicit", **capture.providers)
            trace.set_tracer_provider(capture.tracer_provider)
            metrics.set_meter_provider(capture.meter_provider)
            {call}
            durations, pools = capture.point("db.client.operation.duration"), capture.points("db.client.connection.max")
            print(len(capture.spans), durations.count, len(pools), explicit.name)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "call",
    [
        "await pool.ping()",
        "await MonitoredRedisConnection(connection_pool=pool).ping()",
        "await MonitoredRedisConnection(connection_pool=pool).pipeline().ping().execute()",
        "await MonitoredRedisConnection(connection_pool=pool).pipeline().watch('key')",
    ],
)
def test_pool_records_with_sdk_that_is_set_after_its_creation(server, call):
    command = [sys.executable, "-c", PROVIDERS_LATER.format(call=call), server.url]

    assert "1 1 2 explicit" == subprocess.check_output(command, text=True, timeout=60).strip()  # noqa: S603 - this Python


async def test_span_duration_excludes_recording_of_other_commands(client, telemetry):
    recorded = []

    class Slow(SpanProcessor):
        def on_end(self, span):
            recorded.append((time.time_ns(), span))
            threading.Event().wait(0.001)

    await client.ping()
    telemetry.tracer_provider.add_span_processor(Slow())
    await asyncio.gather(*(client.get("key") for _ in range(50)))

    assert 50 == len(recorded)
    assert recorded[0][0] >= max(span.end_time for _, span in recorded)


class Strange:
    """A callback with an unusual ``__eq__``."""

    __hash__ = None

    def __init__(self, equal):
        self.equal = equal

    def __eq__(self, other):
        if self.equal is None:
            raise RuntimeError("not to be compared")
        return self.equal

    def __call__(self, reply, **options):
        raise LookupError


@pytest.mark.parametrize("equal", [None, True, False])
async def test_response_callback_is_never_compared(client, telemetry, equal):
    client.set_response_callback("GET", Strange(equal))
    with pytest.raises(LookupError):
        await client.get("key")

    assert {"GET LookupError": 1} == telemetry.tally(*OUTCOMES)


async def test_sampler_changes_to_attributes_do_not_reach_next_span(server):
    names, seen = iter(["alice"]), []

    class Writing(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, *_):
            if user := next(names, None):
                attributes["user.name"] = user
            seen.append(attributes.get("user.name"))
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

        def get_description(self):
            return "writing"

    telemetry = TelemetryCapture(sampler=Writing())
    async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
        await client.get("key")
        await client.get("key")

    assert ["alice", None] == seen


@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError, GeneratorExit])
async def test_raising_log_filter_does_not_affect_commands(client, telemetry, monkeypatch, error):
    class Broken(SpanProcessor):
        def on_end(self, span):
            raise RuntimeError

    def refuse(record):
        raise error

    monkeypatch.setattr(trouble, "_logged", set())
    telemetry.tracer_provider.add_span_processor(Broken())
    monkeypatch.setattr(trouble.LOGGER, "filters", [refuse])
    identity, *replies = await asyncio.gather(client.client_id(), client.incr("key"), client.incr("key"))

    assert [[1, 2], identity] == [replies, await client.client_id()]


def test_recorder_follows_change_of_global_providers(monkeypatch, telemetry):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    recorder = PoolRecorder(Server({}, None))
    assert [False, False, False] == [recorder.is_enabled(), recorder.tracing_enabled, recorder.metrics_enabled]

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", telemetry.tracer_provider)
    assert [True, True, False] == [recorder.is_enabled(), recorder.tracing_enabled, recorder.metrics_enabled]

    monkeypatch.setattr(recorder.instruments.operation_duration, "_real_instrument", object())
    assert [True, True, True] == [recorder.is_enabled(), recorder.tracing_enabled, recorder.metrics_enabled]


async def test_is_decodable_accepts_only_certain_replies(make_pool, server):
    pool = make_pool(server.url, decode_responses=True)

    assert [True, True, True, False, False] == [
        pool.is_decodable(reply) for reply in (None, 1, b"text", b"\xff", [b"text"])
    ]


async def test_is_readable_is_false_for_unconnected_connection():
    assert not is_readable(Connection())
