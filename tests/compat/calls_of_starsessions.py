"""The calls that starsessions makes; its sdist has no tests."""

import os

import pytest
import redis.asyncio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starsessions import SessionAutoloadMiddleware, SessionMiddleware
from starsessions.stores.redis import RedisStore

URL = os.environ["COMPAT_URL"]


class Store(RedisStore):
    """starsessions' store, and its client."""

    @property
    def client(self):
        return self._connection


@pytest.fixture(params=["connection", "pool", "url"])
async def store(request):
    if request.param == "url":
        with pytest.warns(DeprecationWarning, match="url"):
            store = Store(URL)
    else:
        pool = redis.asyncio.ConnectionPool.from_url(URL) if request.param == "pool" else None
        client = redis.asyncio.Redis.from_pool(pool) if pool else redis.asyncio.Redis.from_url(URL)
        store = Store(connection=client)
    await store.client.flushall()
    yield store
    await store.client.aclose()


async def test_a_session_is_written_read_and_removed(store):
    assert await store.write("id", b"data", lifetime=60, ttl=60) == "id"
    assert await store.read("id", lifetime=60) == b"data"
    await store.remove("id")
    assert await store.read("id", lifetime=60) == b""
    await store.remove("id")


async def test_lifetimes(store):
    await store.write("forever", b"data", lifetime=0, ttl=0)
    assert await store.client.ttl("starsessions.forever") > 3600
    await store.write("short", b"data", lifetime=60, ttl=0)
    assert 0 <= await store.client.ttl("starsessions.short") <= 1


async def test_prefixes():
    connection = redis.asyncio.Redis.from_url(URL)
    for prefix in ("mine:", lambda key: f"mine:{key}"):
        store = Store(connection=connection, prefix=prefix)
        await store.write("id", b"data", lifetime=60, ttl=60)
        assert await connection.get("mine:id") == b"data"
        assert await connection.delete("mine:id") == 1
    await connection.aclose()


@pytest.mark.parametrize("rolling", [True, False])
def test_sessions_of_an_application(rolling):
    async def count(request):
        request.session["count"] = request.session.get("count", 0) + 1
        return JSONResponse(request.session["count"])

    async def clear(request):
        request.session.clear()
        return JSONResponse(0)

    store = Store(connection=redis.asyncio.Redis.from_url(URL))
    sessions = Middleware(SessionMiddleware, store=store, lifetime=60, rolling=rolling, cookie_https_only=False)
    app = Starlette(
        routes=[Route("/", count), Route("/clear", clear)],
        middleware=[sessions, Middleware(SessionAutoloadMiddleware)],
    )
    with TestClient(app) as browser:
        assert [browser.get(path).json() for path in ("/", "/", "/clear", "/", "/")] == [1, 2, 0, 1, 2]
        browser.portal.call(store.client.aclose)
