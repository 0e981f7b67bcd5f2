"""The integration with FastAPI: pools, lifespans, dependencies and their errors."""

from contextlib import asynccontextmanager
from typing import Annotated
from unittest.mock import AsyncMock

import pytest
from anyio import from_thread
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, TelemetryOptions
from aioredis_monitored.integrations.fastapi import RedisDep, get_redis, redis_dependency, setup

CacheDep = Annotated[MonitoredRedisConnection, Depends(redis_dependency("cache"))]


@pytest.fixture
def make_app_pool(server, telemetry):
    """Make pools outside of an event loop, for applications that close them."""

    def make(**arguments):
        return MonitoredConnectionPool.from_url(server.url, **telemetry.providers, **arguments)

    return make


def is_closed(pool):
    return "closed" in repr(pool)


def test_own_lifespan_runs_while_all_pools_are_open(make_app_pool):
    pool, cache_pool = make_app_pool(), make_app_pool(name="cache")
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        await MonitoredRedisConnection(connection_pool=pool).set("key", "value")
        yield {"greeting": "hello"}
        await MonitoredRedisConnection(connection_pool=cache_pool).get("key")
        seen.append([is_closed(each) for each in (pool, cache_pool)])

    app = FastAPI(lifespan=lifespan)
    setup(app, pool)
    setup(app, cache_pool, "cache")

    @app.get("/")
    async def read(request: Request, redis: RedisDep, cache: CacheDep) -> list[str]:
        return [request.state.greeting, (await redis.get("key")).decode(), cache.context_name]

    for _ in range(2):  # every "with" is another event loop
        with TestClient(app) as web:
            assert ["hello", "value", "cache"] == web.get("/").json()
        assert [True, True] == [is_closed(pool), is_closed(cache_pool)]
    assert [[False, False]] * 2 == seen


def test_lifespans_of_routers_run_also_if_they_are_included_later(make_app_pool):
    ran = []

    @asynccontextmanager
    async def lifespan(app):
        ran.append("router")
        yield

    app = FastAPI()
    setup(app, make_app_pool())
    router = APIRouter(lifespan=lifespan)

    @router.get("/")
    async def count(redis: RedisDep) -> int:
        return await redis.incr("visits")

    app.include_router(router)
    with TestClient(app) as web:
        assert 1 == web.get("/").json()
    assert ["router"] == ran


@pytest.mark.parametrize("fails", ["start", "end"])
def test_pools_are_closed_when_own_lifespan_fails(make_app_pool, fails):
    pool = make_app_pool()

    @asynccontextmanager
    async def lifespan(app):
        await MonitoredRedisConnection(connection_pool=pool).get("key")
        if fails == "start":
            raise LookupError(fails)
        yield
        raise LookupError(fails)

    app = FastAPI(lifespan=lifespan)
    setup(app, pool)
    with pytest.raises(LookupError, match=fails), TestClient(app):
        assert "end" == fails
    assert is_closed(pool)


def test_each_request_and_websocket_gets_its_own_object(make_app_pool):
    app = FastAPI()
    setup(app, make_app_pool())
    seen = []

    async def note(redis: RedisDep) -> None:
        seen.append(redis)

    @app.get("/", dependencies=[Depends(note)])
    async def read(redis: RedisDep) -> None:
        assert redis is seen[-1]

    @app.websocket("/socket", dependencies=[Depends(note)])
    async def socket(websocket: WebSocket, redis: RedisDep) -> None:
        await websocket.accept()
        await websocket.send_json(await redis.incr("messages"))
        await websocket.close()

    with TestClient(app) as web:
        for _ in range(2):
            web.get("/")
            with web.websocket_connect("/socket") as opened:
                opened.receive_json()

    assert 4 == len(set(map(id, seen)))
    assert all(isinstance(each, MonitoredRedisConnection) for each in seen)
    assert "redis" not in str(app.openapi())


def test_endpoint_in_a_thread_calls_redis_in_the_event_loop(make_app_pool):
    app = FastAPI()
    setup(app, make_app_pool())

    @app.get("/")
    def count(redis: RedisDep) -> int:
        return from_thread.run(redis.incr, "visits")

    with TestClient(app) as web:
        assert [1, 2] == [web.get("/").json() for _ in range(2)]


def test_dependencies_are_overridden_by_name(make_app_pool):
    app = FastAPI()
    setup(app, make_app_pool())
    setup(app, make_app_pool(name="cache"), "cache")

    @app.get("/")
    async def read(redis: RedisDep, cache: CacheDep) -> list[str]:
        return [await redis.get("key"), await cache.get("key")]

    fakes = {name: AsyncMock() for name in ("redis", "cache")}
    for name, fake in fakes.items():
        fake.get.return_value = name
    app.dependency_overrides = {
        get_redis: lambda: fakes["redis"],
        redis_dependency("cache"): lambda: fakes["cache"],
    }

    # Without a lifespan, and so without a server.
    assert ["redis", "cache"] == TestClient(app).get("/").json()
    assert redis_dependency(name="redis") is get_redis
    assert redis_dependency(name="cache") is redis_dependency("cache")


def test_mounted_application_and_middleware_around_setup_have_the_pool(make_app_pool):
    app, mounted = FastAPI(), FastAPI()
    setup(app, make_app_pool())
    app.mount("/mounted", mounted)

    @app.middleware("http")
    async def count(request, call_next):
        await request.state.redis.incr("requests")
        return await call_next(request)

    @mounted.get("/")
    async def read(redis: RedisDep) -> bytes:
        return await redis.get("requests")

    with TestClient(app) as web:
        assert "1" == web.get("/mounted/").json()


@pytest.mark.parametrize("name", ["redis", "cache"])
async def test_request_without_a_pool_gets_clear_error(name):
    connection = HTTPConnection({"type": "websocket", "state": {"other": None}})

    with pytest.raises(LookupError, match=rf"no pool '{name}': call setup\(app, pool, '{name}'\)"):
        await redis_dependency(name)(connection)


async def test_setup_refuses_what_it_cannot_use(make_app_pool):
    app, pool = FastAPI(), make_app_pool()
    setup(app, pool)

    with pytest.raises(ValueError, match="the application has a pool 'redis': give this one another name"):
        setup(app, make_app_pool())
    with pytest.raises(TypeError, match="connection_pool must be a pool, got str"):
        setup(app, "redis://localhost", "cache")
    with pytest.raises(TypeError, match="app must be a Starlette or FastAPI application, got APIRouter"):
        setup(APIRouter(), pool)
    with TestClient(app), pytest.raises(RuntimeError, match="after an application has started"):
        setup(app, pool, "late")


def test_span_of_a_request_counts_the_calls_on_all_pools(make_app_pool, telemetry):
    app = FastAPI(telemetry=telemetry.providers)
    setup(app, make_app_pool(telemetry=TelemetryOptions(repeated_calls=5)))
    setup(app, make_app_pool(name="cache"), "cache")

    @app.get("/")
    async def read(redis: RedisDep, cache: CacheDep) -> None:
        for _ in range(3):
            await redis.get("key")
            await cache.get("key")
        await cache.ping()

    with TestClient(app) as web:
        assert 200 == web.get("/").status_code

    attributes = telemetry.span("GET /").attributes
    assert 7 == attributes["aioredis_monitored.request.calls"]
    assert attributes["aioredis_monitored.request.duration"] > 0
    assert ("GET",) == attributes["aioredis_monitored.request.repeated"]


def test_name_that_the_own_lifespan_yields_is_refused(make_app_pool):
    @asynccontextmanager
    async def lifespan(app):
        yield {"cache": {}}

    app = FastAPI(lifespan=lifespan)
    setup(app, make_app_pool(), "cache")

    with pytest.raises(ValueError, match=r"^the application's lifespan yields 'cache'"), TestClient(app):
        pass


@pytest.mark.parametrize("name", ["", "cache-x", None, 5])
def test_name_that_is_no_identifier_is_refused(make_app_pool, name):
    with pytest.raises(ValueError, match=r"^name must be an identifier such as 'redis', got "):
        setup(FastAPI(), make_app_pool(), name)


def test_pool_that_an_event_loop_has_left_open_serves_the_next_one(make_app_pool):
    app = FastAPI()
    setup(app, make_app_pool())

    @app.get("/")
    async def count(redis: RedisDep) -> int:
        return await redis.incr("count")

    assert 1 == TestClient(app).get("/").json()  # without the lifespan
    with TestClient(app) as web:
        assert 2 == web.get("/").json()
