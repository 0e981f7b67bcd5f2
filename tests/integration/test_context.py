"""A client for each request, under real frameworks."""

import sys
from collections import Counter
from inspect import cleandoc
from types import SimpleNamespace

import pytest
import redis.asyncio
from fastapi import FastAPI, Request, WebSocket
from fastapi.testclient import TestClient as FastAPITestClient
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from aioredis_monitored import (
    Components,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    RedisContextFactory,
    RedisMiddleware,
    redis_connection,
)


@pytest.fixture
def make_factory(server, telemetry):
    def make(name="redis"):
        return RedisContextFactory(MonitoredConnectionPool.from_url(server.url, **telemetry.providers), name)

    return make


def traced(tracer):
    """A middleware that opens the request's span, as an instrumentation does."""

    class Traced:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] == "lifespan":
                return await self.app(scope, receive, send)
            with tracer.start_as_current_span("request"):
                return await self.app(scope, receive, send)

    return Traced


async def handler(request):
    await request.state.redis.set("key", "value")
    return PlainTextResponse(await request.state.redis.get("key"))


@pytest.mark.parametrize("with_middleware", [True, False])
def test_starlette_handler_gets_a_connection_with_spans_under_the_request(make_factory, telemetry, with_middleware):
    factory = make_factory()
    app = Starlette(
        routes=[Route("/", handler)],
        lifespan=factory.lifespan,
        middleware=[
            Middleware(traced(telemetry.tracer_provider.get_tracer("test"))),
            *([Middleware(RedisMiddleware, factory=factory)] if with_middleware else []),
        ],
    )
    for _ in range(2):  # the same application twice: every "with" is another event loop
        with TestClient(app) as web:
            assert "value" == web.get("/").text
        assert "closed" in repr(factory.connection_pool)

    request = """
        request kind=INTERNAL
          SET
          GET
    """
    assert "\n".join([cleandoc(request)] * 2) == telemetry.tree()


def test_fastapi_serves_handlers_websockets_and_decorated_endpoints(make_factory, telemetry, server):
    factory = make_factory("cache")
    tracer = telemetry.tracer_provider.get_tracer("test")
    app = FastAPI(lifespan=factory.lifespan)
    app.add_middleware(RedisMiddleware, factory=factory)
    app.add_middleware(traced(tracer))
    components = Components({"redis.hits.url": server.url}, **telemetry.providers)

    @app.get("/state/{key}")
    async def state(request: Request, key: str) -> str:
        with tracer.start_as_current_span("inside"):
            await request.state.cache.set(key, "value")
        return request.state.cache.context_name

    @app.get("/decorated/{key}")
    @components.redis_connection("hits")
    async def decorated(conn: MonitoredRedisConnection, key: str, by: int = 1) -> int:
        return await conn.incr(key, by)

    @app.get("/bound/{key}")
    @redis_connection("hits")
    async def bound(conn: MonitoredRedisConnection, key: str) -> int:
        return await conn.incr(key)

    @app.get("/start")
    async def start() -> None:
        components.use()

    @app.get("/stop")
    async def stop() -> None:
        await components.aclose()

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.cache.context_name)
        await websocket.close()

    # Without the lifespan: the middleware alone serves the WebSocket.
    with FastAPITestClient(app).websocket_connect("/socket") as opened:
        assert "cache" == opened.receive_text()
    with FastAPITestClient(app) as web:
        assert "cache" == web.get("/state/key").json()
        web.get("/start")
        assert 5 == web.get("/decorated/counter", params={"by": 5}).json()
        assert 6 == web.get("/bound/counter").json()
        assert 422 == web.get("/decorated/counter", params={"by": "x"}).status_code
        web.get("/stop")
    assert "conn" not in str(app.openapi())

    assert telemetry.span("inside").context.span_id == telemetry.span("SET").parent.span_id


async def test_middleware_serves_applications_without_state(make_factory):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    middleware = RedisMiddleware(app, make_factory())
    await middleware({"type": "http"}, None, None)
    await middleware({"type": "lifespan"}, None, None)

    assert isinstance(seen[0]["state"]["redis"], MonitoredRedisConnection)
    assert {"type": "lifespan"} == seen[1]


def test_context_factory_raises_without_a_pool():
    with pytest.raises(TypeError, match="connection_pool must be a pool, got NoneType"):
        RedisContextFactory(None)


async def test_attach_sets_an_attribute_on_the_context(make_factory):
    factory, context = make_factory("cache"), SimpleNamespace()
    attached = factory.attach(context)
    factory.attach(context, "other")

    assert context.cache is attached
    assert ("cache", "other") == (context.cache.context_name, context.other.context_name)


async def test_context_object_parents_its_spans_to_the_given_span(make_factory, telemetry):
    factory = make_factory()
    span = telemetry.tracer_provider.get_tracer("test").start_span("request")
    async with factory.connection_pool:
        await factory.make_object_for_context("redis", span).get("key")
    span.end()

    assert ["request kind=INTERNAL", "  GET"] == telemetry.tree().splitlines()
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_context_object_costs_under_a_tenth_of_a_client(make_factory):
    factory = make_factory()
    pool = factory.connection_pool

    def cost(make):
        """Return the number of function calls that it takes, Python's and C's."""
        calls = Counter()
        make()
        sys.setprofile(lambda _, event, __: calls.update([event]))
        try:
            make()
        finally:
            sys.setprofile(None)
        return calls["call"] + calls["c_call"]

    assert 10 < cost(lambda: redis.asyncio.Redis(connection_pool=pool)) / cost(
        lambda: factory.make_object_for_context("redis", None)
    )


async def test_context_factory_accepts_a_plain_pool(server):
    pool = redis.asyncio.BlockingConnectionPool.from_url(server.url)
    factory = RedisContextFactory(pool)
    async with factory.lifespan(None) as state:
        assert await state["redis"].ping() is True
