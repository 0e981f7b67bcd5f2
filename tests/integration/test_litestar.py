"""The integration with Litestar: the plugin, and Litestar's stores and channels on our client."""

import asyncio
from contextlib import asynccontextmanager
from inspect import cleandoc

import pytest
from litestar import Litestar, Request, WebSocket, get, websocket
from litestar.channels import ChannelsPlugin
from litestar.channels.backends.redis import RedisChannelsPubSubBackend, RedisChannelsStreamBackend
from litestar.di import Provide
from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
from litestar.stores.redis import RedisStore
from litestar.testing import TestClient

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.integrations.litestar import RedisDep, RedisPlugin, get_redis


@pytest.fixture
def make_app_pool(server, telemetry):
    """Make pools outside of an event loop, for applications that close them."""

    def make(**arguments):
        return MonitoredConnectionPool.from_url(server.url, **telemetry.providers, **arguments)

    return make


def is_closed(pool):
    return "closed" in repr(pool)


@get("/")
async def count(redis: RedisDep) -> int:
    return await redis.incr("visits")


def test_own_lifespan_runs_while_all_pools_are_open(make_app_pool):
    pools = [make_app_pool(name=name) for name in ("redis", "cache")]
    seen = []

    @asynccontextmanager
    async def lifespan(app):
        await MonitoredRedisConnection(connection_pool=pools[0]).set("visits", 5)
        yield
        seen.append([is_closed(pool) for pool in pools])

    app = Litestar([count], lifespan=[lifespan], plugins=[RedisPlugin(pool, pool.name) for pool in pools])
    for _ in range(2):  # every "with" is another event loop
        with TestClient(app) as web:
            assert 6 == web.get("/").json()
        assert [True, True] == [is_closed(pool) for pool in pools]
    assert [[False, False]] * 2 == seen


def test_handlers_guards_and_websockets_have_the_pools(make_app_pool):
    seen = []

    def guard(connection, handler):
        seen.append(get_redis(connection))

    @get("/names", guards=[guard])
    async def names(request: Request, redis: RedisDep, cache: RedisDep) -> list[str]:
        assert redis is seen[-1] is request.state.redis
        return [redis.context_name, cache.context_name]

    @websocket("/socket")
    async def socket(socket: WebSocket, cache: RedisDep) -> None:
        await socket.accept()
        await socket.send_json(await cache.incr("messages"))
        await socket.close()

    plugins = [RedisPlugin(make_app_pool()), RedisPlugin(make_app_pool(name="cache"), "cache")]
    with TestClient(Litestar([names, socket], plugins=plugins)) as web:
        for number in (1, 2):
            assert ["redis", "cache"] == web.get("/names").json()
            with web.websocket_connect("/socket") as opened:
                assert number == opened.receive_json()
    assert 2 == len(set(map(id, seen)))


def test_spans_are_below_the_request_which_has_its_calls(make_app_pool, telemetry):
    config = OpenTelemetryConfig(tracer_provider=telemetry.tracer_provider, exclude_spans=["receive", "send"])
    app = Litestar([count], plugins=[RedisPlugin(make_app_pool()), OpenTelemetryPlugin(config)])
    with TestClient(app) as web:
        web.get("/")

    expected = """
        GET / kind=SERVER aioredis_monitored.request.calls=1
          INCRBY
    """
    assert cleandoc(expected) == telemetry.tree("aioredis_monitored.request.calls")


def test_request_without_a_pool_gets_clear_error(make_app_pool):
    raised = []

    @get("/")
    async def read(request: Request) -> None:
        try:
            get_redis(request, "cache")
        except LookupError as error:
            raised.append(str(error))

    with TestClient(Litestar([read], plugins=[RedisPlugin(make_app_pool())])) as web:
        web.get("/")

    (text,) = raised
    assert text.startswith("the application has no pool 'cache': add RedisPlugin(pool, 'cache') to its plugins")


def test_plugin_refuses_what_it_cannot_use(make_app_pool):
    with pytest.raises(TypeError, match="connection_pool must be a pool, got str"):
        RedisPlugin("redis://localhost")
    with pytest.raises(ValueError, match="has a dependency 'redis': give this pool another name"):
        Litestar(plugins=[RedisPlugin(make_app_pool()), RedisPlugin(make_app_pool())])
    with pytest.raises(ValueError, match="has a dependency 'redis'"):
        Litestar(dependencies={"redis": Provide(dict, sync_to_thread=False)}, plugins=[RedisPlugin(make_app_pool())])


async def test_store_keeps_renews_and_deletes_values(client, inspector):
    store = RedisStore(client, namespace="shop")
    await store.set("a", "1", expires_in=60)
    await store.set("b", b"2")

    assert [b"1", b"2", None] == [await store.get(key) for key in ("a", "b", "c")]
    assert b"1" == await store.get("a", renew_for=600)
    assert 60 < await store.expires_in("a") <= 600
    assert await store.exists("b")
    await store.delete("b")
    assert not await store.exists("b")
    inspector.set("another", "stays")
    await store.with_namespace("inner").set("c", "3")
    await store.delete_all()
    assert [b"another"] == inspector.keys()


BACKENDS = {
    "pubsub": RedisChannelsPubSubBackend,
    "stream": lambda redis: RedisChannelsStreamBackend(history=10, redis=redis),
}


@pytest.mark.parametrize("kind", BACKENDS)
async def test_channels_deliver_to_subscribers_of_an_application(kind, make_app_pool):
    pool = make_app_pool()
    backend = BACKENDS[kind](redis=MonitoredRedisConnection(connection_pool=pool))
    channels = ChannelsPlugin(backend, arbitrary_channels_allowed=True)
    app = Litestar([count], plugins=[RedisPlugin(pool), channels])
    async with app.lifespan(), channels.start_subscription(["news"]) as subscriber, asyncio.timeout(30):
        received = asyncio.create_task(anext(aiter(subscriber.iter_events())))
        while not received.done():
            # A subscription begins some time after its start.
            await channels.wait_published("hello", ["news"])
            await asyncio.wait([received], timeout=0.05)
        assert b"hello" == received.result()
    assert is_closed(pool)
