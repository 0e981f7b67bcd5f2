"""The request's view: how many calls, how much time, and whether one command was called over and over."""

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from aioredis_monitored import (
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    RedisContextFactory,
    RedisMiddleware,
    TelemetryOptions,
)

CALLS, SECONDS = "aioredis_monitored.request.calls", "aioredis_monitored.request.duration"
REPEATED = "aioredis_monitored.repeated"


@pytest.fixture
def tracer(telemetry):
    return telemetry.tracer_provider.get_tracer("test")


async def test_the_span_that_the_factory_was_given_tells_of_its_calls(pool, telemetry, tracer):
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


async def test_a_span_that_has_ended_is_left_alone(pool, telemetry, tracer, caplog):
    span = tracer.start_span("request")
    client = RedisContextFactory(pool).make_object_for_context("redis", span)
    await client.get("key")
    span.end()
    for _ in range(30):
        await client.get("key")

    assert 1 == telemetry.span("request").attributes[CALLS]
    assert "" == caplog.text


async def test_a_request_without_calls_is_as_it_was(pool, telemetry, tracer):
    with tracer.start_as_current_span("request") as span:
        RedisContextFactory(pool).make_object_for_context("redis", span)

    assert {} == dict(telemetry.span("request").attributes)


async def test_calls_that_are_not_to_be_recorded_are_not_counted(pool, telemetry, tracer):
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


async def test_one_command_over_and_over_is_an_event_once(make_pool, server, telemetry, tracer):
    pool = make_pool(server.url, telemetry=TelemetryOptions(repeated_calls=5))
    with tracer.start_as_current_span("request") as span:
        client = RedisContextFactory(pool).make_object_for_context("redis", span)
        for number in range(20):
            await client.get(f"key:{number}")
        for number in range(5):
            await client.set(f"key:{number}", 1)

    (event,) = telemetry.span("request").events
    assert REPEATED == event.name
    assert {"db.operation.name": "GET", "aioredis_monitored.repeated.more_than": 5} == dict(event.attributes)
    assert 25 == telemetry.span("request").attributes[CALLS]


def test_the_middleware_tells_the_span_that_it_has_seen(server, telemetry, tracer):
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
    assert [REPEATED] == [event.name for event in telemetry.span("request").events]
    # Only once, when the request ends.
    assert [{}] == seen


def test_without_a_span_the_middleware_tells_nobody(server, telemetry):
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


async def test_a_span_that_raises_harms_no_call(pool):
    class Broken(trace.NonRecordingSpan):
        def is_recording(self):
            return True

        def set_attributes(self, attributes):
            raise RuntimeError

        def add_event(self, *args, **kwargs):
            raise RuntimeError

    span = Broken(trace.INVALID_SPAN_CONTEXT)
    client = RedisContextFactory(pool).make_object_for_context("redis", span)

    assert [None] * 30 == [await client.get("key") for _ in range(30)]


async def test_a_span_that_cannot_tell_whether_it_records_harms_no_request(pool):
    class Broken(trace.NonRecordingSpan):
        def is_recording(self):
            raise RuntimeError

    span = Broken(trace.INVALID_SPAN_CONTEXT)
    factory = RedisContextFactory(pool)
    client = factory.make_object_for_context("redis", span)
    with trace.use_span(span):
        middle, request = factory.make_object_for_request("redis")

    assert [None, None, None] == [request, await client.get("key"), await middle.get("key")]
