"""The request's statistics: the number of calls, their time, and whether one command was repeated often."""

import asyncio
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry._logs import NoOpLoggerProvider
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from support.internals import set_logger_provider

from aioredis_monitored import (
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    RedisContextFactory,
    RedisMiddleware,
    TelemetryOptions,
)
from aioredis_monitored.testing import TelemetryCapture

CALLS, SECONDS = "aioredis_monitored.request.calls", "aioredis_monitored.request.duration"
REPEATED, LIMIT = "aioredis_monitored.request.repeated", "aioredis_monitored.request.repeated_limit"


@pytest.fixture
def tracer(telemetry):
    return telemetry.tracer_provider.get_tracer("test")


async def test_request_span_has_count_and_duration_of_its_commands(pool, telemetry, tracer):
    factory = RedisContextFactory(pool)
    with tracer.start_as_current_span("first") as first, tracer.start_as_current_span("second") as second:
        one, other = factory.make_object_for_context("a", first), factory.make_object_for_context("b", second)
        await asyncio.gather(*(one.get("key") for _ in range(3)))
        await one.pipeline().get("a").set("b", 1).execute()
        async with one.client() as alone:
            await alone.get("key")
        await other.get("key")

    assert [5, 1] == [telemetry.span(name).attributes[CALLS] for name in ("first", "second")]
    durations = [
        (span.end_time - span.start_time) / 1e9 for span in telemetry.spans if span.name not in {"first", "second"}
    ]
    assert sum(durations) == pytest.approx(
        sum(telemetry.span(name).attributes[SECONDS] for name in ("first", "second")), abs=1e-4
    )


async def test_request_stats_ignore_commands_after_span_has_ended(pool, telemetry, tracer, caplog):
    span = tracer.start_span("request")
    client = RedisContextFactory(pool).make_object_for_context("redis", span)
    await client.get("key")
    span.end()
    for _ in range(30):
        await client.get("key")

    assert 1 == telemetry.span("request").attributes[CALLS]
    assert "" == caplog.text


async def test_request_span_has_no_attributes_without_commands(pool, telemetry, tracer):
    with tracer.start_as_current_span("request") as span:
        RedisContextFactory(pool).make_object_for_context("redis", span)

    assert {} == dict(telemetry.span("request").attributes)


async def test_request_stats_ignore_suppressed_commands(pool, telemetry, tracer):
    with tracer.start_as_current_span("some") as some, tracer.start_as_current_span("none") as none:
        factory = RedisContextFactory(pool)
        first, second = (factory.make_object_for_context("redis", span) for span in (some, none))
        await first.get("key")
        with suppress_instrumentation():
            for client in (first, second):
                await client.get("key")
                await client.pipeline().get("a").set("b", 1).execute()
                await client.blpop("list", timeout=0.01)
                async with client.client() as alone:
                    await alone.get("key")
                async with client.lock("lock"):
                    pass

    assert 1 == telemetry.span("some").attributes[CALLS]
    assert {} == dict(telemetry.span("none").attributes)


@pytest.fixture
def logs():
    """Yield the log events that arrive at a provider, and the provider as a pool's keyword argument."""
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    yield SimpleNamespace(provider={"logger_provider": provider}, events=exporter.get_finished_logs)
    provider.shutdown()


async def call_repeatedly(client):
    """Call GET seven times, SET five times, and EXISTS six times."""
    for number in range(7):
        await client.get(f"key:{number}")
    for number in range(5):
        await client.set(f"key:{number}", 1)
    for number in range(6):
        await client.exists(f"key:{number}")


async def test_repeated_commands_are_attribute_of_request_span(make_pool, server, telemetry, tracer):
    pool = make_pool(server.url, telemetry=TelemetryOptions(repeated_calls=5))
    with tracer.start_as_current_span("request") as span:
        await call_repeatedly(RedisContextFactory(pool).make_object_for_context("redis", span))

    request = telemetry.span("request")
    assert (("GET", "EXISTS"), 18) == (request.attributes[REPEATED], request.attributes[CALLS])
    assert [] == list(request.events)


async def test_repeated_commands_emit_log_events_in_request_span(make_pool, server, telemetry, tracer, logs):
    pool = make_pool(server.url, telemetry=TelemetryOptions(repeated_calls=5), **logs.provider)
    with tracer.start_as_current_span("request") as span:
        client = RedisContextFactory(pool).make_object_for_context("redis", span)
        with tracer.start_as_current_span("inner"):
            await call_repeatedly(client)

    records = [event.log_record for event in logs.events()]
    assert [{"db.operation.name": name, LIMIT: 5} for name in ("GET", "EXISTS")] == [
        dict(record.attributes) for record in records
    ]
    context = span.get_span_context()
    assert {(REPEATED, context.trace_id, context.span_id, "WARN")} == {
        (record.event_name, record.trace_id, record.span_id, record.severity_number.name) for record in records
    }
    assert {"aioredis_monitored"} == {event.instrumentation_scope.name for event in logs.events()}
    assert all(span.start_time <= record.timestamp <= span.end_time for record in records)


async def test_raising_logger_does_not_affect_commands_and_request_span(make_pool, server, telemetry, tracer):
    class Broken(NoOpLoggerProvider):
        def get_logger(self, *_, **__):
            return SimpleNamespace(emit=self.emit)

        def emit(self, **_):
            emitted.append(True)
            raise RuntimeError

    emitted = []
    options = TelemetryOptions(repeated_calls=1)
    pool = make_pool(server.url, telemetry=options, logger_provider=Broken())
    with tracer.start_as_current_span("request") as span:
        client = RedisContextFactory(pool).make_object_for_context("redis", span)
        assert [None] * 3 == [await client.get("key") for _ in range(3)]

    assert [True] == emitted
    attributes = telemetry.span("request").attributes
    assert (("GET",), 3) == (attributes[REPEATED], attributes[CALLS])


async def test_repeated_commands_emit_no_log_event_to_global_provider(make_pool, server, tracer, logs, monkeypatch):
    set_logger_provider(monkeypatch, logs.provider["logger_provider"])
    pool = make_pool(server.url, telemetry=TelemetryOptions(repeated_calls=1))
    with tracer.start_as_current_span("request") as span:
        client = RedisContextFactory(pool).make_object_for_context("redis", span)
        for _ in range(3):
            await client.get("key")

    assert span.attributes[REPEATED] == ("GET",)
    assert () == logs.events()


def test_middleware_reports_request_stats_on_outer_span(server, telemetry, tracer):
    pool = MonitoredConnectionPool.from_url(server.url, **telemetry.providers)
    factory = RedisContextFactory(pool)
    seen = []

    async def handler(request):
        redis: MonitoredRedisConnection = request.state.redis
        with tracer.start_as_current_span("inner"):
            for _ in range(25):
                await redis.get("key")
        seen.append(dict(trace.get_current_span().attributes))
        return PlainTextResponse("ok")

    class Traced:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] == "lifespan":
                return await self.app(scope, receive, send)
            with tracer.start_as_current_span("request"):
                return await self.app(scope, receive, send)

    app = Starlette(
        routes=[Route("/", handler)],
        middleware=[Middleware(Traced), Middleware(RedisMiddleware, factory=factory)],
        lifespan=factory.lifespan,
    )
    with TestClient(app) as browser:
        browser.get("/")

    assert 25 == telemetry.span("request").attributes[CALLS]
    assert CALLS not in telemetry.span("inner").attributes
    assert ("GET",) == telemetry.span("request").attributes[REPEATED]
    # The attribute is set without the number of calls, which is set when the request ends.
    assert [{REPEATED: ("GET",)}] == seen


def test_middleware_works_without_current_span(server, telemetry):
    factory = RedisContextFactory(MonitoredConnectionPool.from_url(server.url, **telemetry.providers))

    async def handler(request):
        await request.state.redis.get("key")
        return PlainTextResponse("ok")

    app = Starlette(
        routes=[Route("/", handler)],
        middleware=[Middleware(RedisMiddleware, factory=factory)],
        lifespan=factory.lifespan,
    )
    with TestClient(app) as browser:
        assert "ok" == browser.get("/").text

    assert "GET" == telemetry.tree()


async def test_raising_request_span_does_not_affect_commands(pool):
    class Broken(trace.NonRecordingSpan):
        def is_recording(self):
            return True

        def set_attributes(self, attributes):
            raise RuntimeError

        def set_attribute(self, key, value):
            raise RuntimeError

    span = Broken(trace.INVALID_SPAN_CONTEXT)
    client = RedisContextFactory(pool).make_object_for_context("redis", span)

    assert [None] * 30 == [await client.get("key") for _ in range(30)]


async def test_request_span_with_raising_is_recording_does_not_affect_commands(pool):
    class Broken(trace.NonRecordingSpan):
        def is_recording(self):
            raise RuntimeError

    span = Broken(trace.INVALID_SPAN_CONTEXT)
    factory = RedisContextFactory(pool)
    client = factory.make_object_for_context("redis", span)
    with trace.use_span(span):
        middle, request = factory.make_object_for_request("redis")

    assert [None, None, None] == [request, await client.get("key"), await middle.get("key")]


async def test_spans_with_the_same_ids_are_counted_apart(make_pool, server):
    spans = []
    for _ in range(2):
        with TelemetryCapture() as capture:  # whose ids count from 1
            factory = RedisContextFactory(make_pool(server.url, **capture.providers))
            with capture.tracer_provider.get_tracer("test").start_as_current_span("request") as span:
                client = factory.make_object_for_context("redis", span)
                await client.get("key")
            spans.append((span, client))

    assert [1, 1] == [span.attributes[CALLS] for span, _ in spans]
