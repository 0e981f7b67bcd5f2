"""The integration with Starlette: typed state, lifespans, spans."""

from contextlib import asynccontextmanager
from inspect import cleandoc

import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from aioredis_monitored import MonitoredConnectionPool, RedisContextFactory, RedisMiddleware
from aioredis_monitored.integrations.starlette import get_redis, setup


@pytest.fixture
def make_app_pool(server, telemetry):
    """Make pools outside of an event loop, for applications that close them."""

    def make(**arguments):
        return MonitoredConnectionPool.from_url(server.url, **telemetry.providers, **arguments)

    return make


async def visits(request):
    assert request.state["redis"] is request.state.redis is get_redis(request)
    return PlainTextResponse(str(await request.state["redis"].incr("visits")))


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text(get_redis(websocket, "cache").context_name)
    await websocket.close()


def test_requests_and_websockets_have_the_pools(make_app_pool):
    app = Starlette(routes=[Route("/", visits), WebSocketRoute("/socket", socket)])
    setup(app, make_app_pool())
    setup(app, make_app_pool(name="cache"), "cache")

    with TestClient(app) as web:
        assert "1" == web.get("/").text
        with web.websocket_connect("/socket") as opened:
            assert "cache" == opened.receive_text()


def test_own_lifespan_may_yield_state_or_nothing(make_app_pool):
    @asynccontextmanager
    async def lifespan(app):
        yield {"greeting": "hello"}

    async def read(request):
        return PlainTextResponse(f"{request.state['greeting']} {get_redis(request).context_name}")

    app = Starlette(routes=[Route("/", read)], lifespan=lifespan)
    setup(app, make_app_pool())

    with TestClient(app) as web:
        assert "hello redis" == web.get("/").text


def test_spans_are_below_the_request_which_has_its_calls(make_app_pool, telemetry):
    app = Starlette(routes=[Route("/", visits)])
    setup(app, make_app_pool())
    traced = OpenTelemetryMiddleware(app, tracer_provider=telemetry.tracer_provider, exclude_spans=["receive", "send"])
    with TestClient(traced) as web:
        web.get("/")

    expected = """
        GET / kind=SERVER aioredis_monitored.request.calls=1
          INCRBY
    """
    assert cleandoc(expected) == telemetry.tree("aioredis_monitored.request.calls")


def test_setup_notices_a_pool_that_the_middleware_gives(make_app_pool):
    factory = RedisContextFactory(make_app_pool())

    for middleware in (Middleware(RedisMiddleware, factory), Middleware(RedisMiddleware, factory=factory)):
        app = Starlette(middleware=[middleware])
        with pytest.raises(ValueError, match="has a pool 'redis'"):
            setup(app, make_app_pool())
        setup(app, make_app_pool(), "cache")


def test_request_without_a_pool_gets_clear_error():
    app = Starlette(routes=[Route("/", visits)])

    with (
        TestClient(app) as web,
        pytest.raises(KeyError, match="redis"),
    ):
        web.get("/")
