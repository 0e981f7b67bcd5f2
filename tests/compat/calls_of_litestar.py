"""The calls that Litestar's stores and channels make; its sdist has no tests."""

import asyncio
import os
from datetime import timedelta

import httpx
import pytest
import redis.asyncio
from litestar import Litestar, Request, get
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend, RedisChannelsStreamBackend
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.stores.redis import RedisStore

URL = os.environ["COMPAT_URL"]


@pytest.fixture(params=["from_url", "arguments", "pool"])
async def client(request):
    host, port = os.environ["COMPAT_HOST"], int(os.environ["COMPAT_PORT"])
    client = {
        "from_url": lambda: redis.asyncio.Redis.from_url(URL),
        "arguments": lambda: redis.asyncio.Redis(host=host, port=port),
        "pool": lambda: redis.asyncio.Redis.from_pool(redis.asyncio.connection.ConnectionPool.from_url(URL)),
    }[request.param]()
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def store(client):
    return RedisStore(client)


async def test_set_get_delete(store):
    assert await store.get("key") is None
    await store.set("key", "text")
    assert await store.get("key") == b"text"
    await store.set("key", b"bytes")
    assert await store.get("key") == b"bytes"
    await store.delete("key")
    await store.delete("key")
    assert await store.get("key") is None


@pytest.mark.parametrize("ttl", [30, timedelta(seconds=30)])
async def test_expiry_and_renewal(store, ttl):
    await store.set("key", b"value", expires_in=ttl)
    assert 29 <= await store.expires_in("key") <= 30
    assert await store.get("key", renew_for=60) == b"value"
    assert 59 <= await store.expires_in("key") <= 60
    await store.set("lasting", b"value")
    assert await store.get("lasting", renew_for=timedelta(seconds=60)) == b"value"
    assert await store.expires_in("lasting") == -1
    assert await store.expires_in("absent") is None
    assert await store.get("absent", renew_for=5) is None


async def test_exists(store):
    assert await store.exists("key") is False
    await store.set("key", b"value")
    assert await store.exists("key") is True


async def test_delete_all_keeps_to_its_namespace(store, client):
    await client.set("other", 1)
    inner = store.with_namespace("inner")
    for each in (store, inner):
        for number in range(25):
            await each.set(f"key-{number}", b"value")
    await inner.delete_all()
    assert await inner.get("key-1") is None
    assert await store.get("key-1") == b"value"
    await store.delete_all()
    assert await store.get("key-1") is None
    assert await client.get("other") == b"1"


@pytest.mark.parametrize("arguments", [{}, {"db": 1}, {"db": 0, "port": None, "username": None, "password": None}])
async def test_with_client(arguments):
    store = RedisStore.with_client(URL, **arguments)
    async with store:
        await store.set("key", b"value")
        assert await store.get("key") == b"value"
        await store.delete_all()


async def test_concurrent_use(store):
    await asyncio.gather(*(store.set(f"key-{number}", str(number)) for number in range(50)))
    values = await asyncio.gather(*(store.get(f"key-{number}", renew_for=9) for number in range(50)))
    assert values == [str(number).encode() for number in range(50)]


@get("/")
async def count(request: Request) -> int:
    request.session["count"] = request.session.get("count", 0) + 1
    return request.session["count"]


async def test_rate_limit_and_sessions_of_an_application(client):
    store = RedisStore(client)
    app = Litestar(
        [count],
        stores={"sessions": store, "rate_limit": store.with_namespace("limit")},
        middleware=[ServerSideSessionConfig().middleware, RateLimitConfig(("minute", 3)).middleware],
    )
    browsing = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")
    async with app.lifespan(), browsing as browser:
        seen = [await browser.get("/") for _ in range(4)]
    assert [200, 200, 200, 429] == [response.status_code for response in seen]
    assert [1, 2, 3] == [response.json() for response in seen[:3]]


@pytest.fixture(params=["pubsub", "stream"])
def backend(request, client):
    if request.param == "pubsub":
        return RedisChannelsPubSubBackend(redis=client)
    return RedisChannelsStreamBackend(history=10, redis=client, cap_streams_approximate=False)


async def _events(backend, count):
    stream = backend.stream_events()
    try:
        async with asyncio.timeout(20):
            return [await anext(stream) for _ in range(count)]
    finally:
        await stream.aclose()


async def test_events_are_published_and_received(backend):
    await backend.on_startup()
    await backend.subscribe(["foo", "bar"])
    receiving = asyncio.create_task(_events(backend, 3))
    await asyncio.sleep(0.2)
    await backend.publish(b"one", ["foo"])
    await backend.publish(b"two", ["foo", "bar"])
    assert sorted(await receiving) == [("bar", b"two"), ("foo", b"one"), ("foo", b"two")]
    await backend.on_shutdown()


async def test_unsubscribed_channels_are_silent(backend):
    await backend.on_startup()
    await backend.subscribe(["foo", "bar"])
    receiving = asyncio.create_task(_events(backend, 1))
    await asyncio.sleep(0.2)
    await backend.unsubscribe(["foo"])
    await asyncio.sleep(0.1)
    await backend.publish(b"missed", ["foo"])
    await backend.publish(b"heard", ["bar"])
    assert await receiving == [("bar", b"heard")]
    await backend.on_shutdown()


async def test_a_stream_that_waits_can_be_cancelled(backend):
    await backend.on_startup()
    waiting = asyncio.create_task(_events(backend, 1))
    await asyncio.sleep(0.1)
    await backend.subscribe(["foo"])
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await backend.on_shutdown()


async def test_history_of_streams(client):
    backend = RedisChannelsStreamBackend(history=5, redis=client, cap_streams_approximate=False)
    for number in range(8):
        await backend.publish(str(number).encode(), ["foo"])
    assert await backend.get_history("foo") == [b"3", b"4", b"5", b"6", b"7"]
    assert await backend.get_history("foo", limit=2) == [b"6", b"7"]
    assert await backend.get_history("bar") == []
    assert await backend.flush_all() == 1
    assert await backend.get_history("foo") == []


# On Python 3.11, redis-py swallows the cancellation with which the application stops a stream, which then never ends.
@pytest.mark.timeout(10)
async def test_channels_of_an_application(backend):
    plugin = ChannelsPlugin(backend, arbitrary_channels_allowed=True)
    app = Litestar(plugins=[plugin])
    async with app.lifespan(), plugin.start_subscription(["news"]) as subscriber:
        await asyncio.sleep(0.2)
        await plugin.wait_published("hello", ["news"])
        async with asyncio.timeout(20):
            async for event in subscriber.iter_events():
                assert event == b"hello"
                break
