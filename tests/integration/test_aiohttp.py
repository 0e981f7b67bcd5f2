"""The integration with aiohttp: keys, lifespans, parts of applications, spans."""

from inspect import cleandoc

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.trace import SpanKind

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.integrations.aiohttp import get_redis, redis_key, setup


def is_closed(pool):
    return "closed" in repr(pool)


async def count(request):
    return web.json_response(await get_redis(request).incr("visits"))


@pytest.fixture
def app():
    app = web.Application()
    app.router.add_get("/", count)
    return app


async def test_own_contexts_run_while_all_pools_are_open(app, make_pool, server):
    pools = [make_pool(server.url, name=name) for name in ("redis", "cache")]
    seen = []

    async def own_context(app):
        await app[redis_key()].set("visits", 5)
        yield
        seen.append(await app[redis_key("cache")].get("visits"))
        seen.append([is_closed(pool) for pool in pools])

    app.cleanup_ctx.append(own_context)
    for pool in pools:
        setup(app, pool, pool.name)
    async with TestClient(TestServer(app)) as client:
        assert 6 == await (await client.get("/")).json()

    assert [b"6", [False, False]] == seen
    assert [True, True] == [is_closed(pool) for pool in pools]


async def test_each_request_gets_its_own_objects(app, make_pool, server):
    seen = []

    async def note(request):
        seen.extend([get_redis(request), get_redis(request), get_redis(request, "cache")])
        return web.Response()

    app.router.add_get("/note", note)
    setup(app, make_pool(server.url))
    setup(app, make_pool(server.url, name="cache"), "cache")
    async with TestClient(TestServer(app)) as client:
        for _ in range(2):
            await client.get("/note")

    assert ["redis", "redis", "cache"] * 2 == [each.context_name for each in seen]
    assert 4 == len(set(map(id, seen)))


async def test_parts_of_an_application_have_its_pools_and_their_own(make_pool, server):
    app, part = web.Application(), web.Application()

    async def read(request):
        names = [get_redis(request, name).context_name for name in ("redis", "cache")]
        return web.json_response([*names, await get_redis(request, "cache").incr("visits")])

    part.router.add_get("/", read)
    setup(part, make_pool(server.url, name="cache"), "cache")
    setup(app, make_pool(server.url))
    app.add_subapp("/part", part)
    async with TestClient(TestServer(app)) as client:
        assert ["redis", "cache", 1] == await (await client.get("/part/")).json()


async def test_middleware_before_that_of_setup_gets_the_applications_object(make_pool, server):
    @web.middleware
    async def authenticate(request, handler):
        await get_redis(request).incr("visits")
        return await handler(request)

    app = web.Application(middlewares=[authenticate])
    app.router.add_get("/", count)
    setup(app, make_pool(server.url))
    async with TestClient(TestServer(app)) as client:
        assert 2 == await (await client.get("/")).json()


async def test_spans_are_below_the_request_which_has_its_calls(make_pool, server, telemetry):
    @web.middleware
    async def traced(request, handler):
        tracer = telemetry.tracer_provider.get_tracer("test")
        with tracer.start_as_current_span(request.path, kind=SpanKind.SERVER):
            return await handler(request)

    async def fail(request):
        await get_redis(request).get("key")
        raise web.HTTPConflict

    app = web.Application(middlewares=[traced])
    app.router.add_get("/", count)
    app.router.add_get("/fails", fail)
    setup(app, make_pool(server.url))
    async with TestClient(TestServer(app)) as client:
        await client.get("/")
        assert 409 == (await client.get("/fails")).status

    expected = """
        / kind=SERVER aioredis_monitored.request.calls=1
          INCRBY
        /fails kind=SERVER status=ERROR aioredis_monitored.request.calls=1
          GET
    """
    assert cleandoc(expected) == telemetry.tree("aioredis_monitored.request.calls")


@pytest.mark.parametrize("name", ["redis", "cache"])
async def test_request_without_a_pool_gets_clear_error(name):
    raised = []

    async def read(request):
        try:
            get_redis(request, name)
        except LookupError as error:
            raised.append(str(error))
        return web.Response()

    app = web.Application()
    app.router.add_get("/", read)
    async with TestClient(TestServer(app)) as client:
        await client.get("/")

    assert [f"the application has no pool {name!r}: call setup(app, pool, {name!r})"] == raised


async def test_setup_refuses_what_it_cannot_use(app, make_pool, server):
    pool = make_pool(server.url)
    setup(app, pool)

    with pytest.raises(ValueError, match="the application has a pool 'redis': give this one another name"):
        setup(app, pool)
    with pytest.raises(TypeError, match="connection_pool must be a pool, got MonitoredRedisConnection"):
        setup(app, MonitoredRedisConnection(connection_pool=pool), "cache")
    with pytest.raises(TypeError, match="app must be an aiohttp application, got RouteTableDef"):
        setup(web.RouteTableDef(), pool)
    async with TestClient(TestServer(app)):
        with pytest.raises(RuntimeError, match="frozen"):
            setup(app, pool, "late")
