"""The decorator: what it can decorate, which pool it finds, and how configuration changes at run time."""

import asyncio
import functools
import inspect
import logging
from contextlib import asynccontextmanager

import pytest
import redis.exceptions

from aioredis_monitored import (
    Components,
    ConfigStore,
    ConfigurationError,
    MonitoredRedisConnection,
    NoComponentsError,
    redis_connection,
)
from aioredis_monitored.testing import RedisServer


@pytest.fixture
async def components(server):
    async with Components({"redis.logs.url": server.url, "redis.other.url": f"{server.url}/1"}) as running:
        yield running


@pytest.fixture
def store(client):
    return ConfigStore(client)


@redis_connection("logs")
async def log(conn, key, value="default", *, repeat=1):
    """Write a log line."""
    for _ in range(repeat):
        await conn.rpush(key, value)
    return conn


@redis_connection("logs")
async def pool_of(conn):
    return conn.connection_pool


async def test_redis_connection_passes_the_connection_as_first_argument(components, client):
    conn = await log("list", "value", repeat=2)

    assert isinstance(conn, MonitoredRedisConnection)
    assert ("logs", "redis.logs") == (conn.context_name, conn.connection_pool.name)
    assert [b"value", b"value"] == await client.lrange("list", 0, -1)


async def test_redis_connection_decorates_async_generator_functions(components, client):
    @redis_connection("logs")
    async def keys(conn, count):
        try:
            for number in range(count):
                sent = yield await conn.incr("counter")
                if sent:
                    await conn.set("sent", sent)
                del number
        except KeyError:
            yield "thrown"
        finally:
            await conn.set("finished", 1)

    assert inspect.isasyncgenfunction(keys)
    assert [1, 2, 3] == [value async for value in keys(3)]
    generator = keys(count=9)
    await anext(generator)
    await generator.asend("message")
    assert "thrown" == await generator.athrow(KeyError())
    with pytest.raises(StopAsyncIteration):
        await anext(generator)
    await client.delete("finished")
    closed = keys(9)
    await anext(closed)
    await closed.aclose()
    finished = await client.get("finished")

    assert (b"1", b"message") == (finished, await client.get("sent"))


async def test_redis_connection_decorates_async_context_manager_functions(components):
    @redis_connection("logs")
    @asynccontextmanager
    async def swallowing(conn, key):
        try:
            yield await conn.incr(key)
        except KeyError:
            await conn.incr(key)

    async with swallowing("counter") as value:
        assert 1 == value
        raise KeyError
    async with swallowing("counter") as value:
        assert 3 == value
    with pytest.raises(ValueError, match="not swallowed"):
        async with swallowing("counter"):
            raise ValueError("not swallowed")


async def test_redis_connection_passes_the_connection_after_self_in_methods(components):
    class Service:
        @redis_connection("logs")
        async def method(self, conn, key):
            return self, await conn.incr(key)

        @classmethod
        @redis_connection("logs")
        async def of_class(cls, conn, key):
            return cls, await conn.incr(key)

        @staticmethod
        @redis_connection("logs")
        async def static(conn, key):
            return await conn.incr(key)

        @redis_connection("logs")
        @asynccontextmanager
        async def context(self, conn):
            yield self, conn

    service = Service()

    assert (service, 1) == await service.method("key")
    assert (service, 2) == await Service.method(service, key="key")
    assert (Service, 3) == await service.of_class("key")
    assert 4 == await service.static("key")
    async with service.context() as (owner, conn):
        assert (service, True) == (owner, isinstance(conn, MonitoredRedisConnection))


async def test_redis_connection_can_be_applied_twice_for_two_components(components):
    @redis_connection("logs")
    @redis_connection("other")
    async def both(other, logs, key):
        return other.context_name, logs.context_name, key

    assert ("other", "logs", "key") == await both("key")


@pytest.mark.parametrize("function", [lambda conn: conn, int, "text", print])
def test_redis_connection_raises_on_plain_functions(function):
    with pytest.raises(TypeError, match="must be a coroutine function"):
        redis_connection("logs")(function)


def test_redis_connection_raises_on_functions_without_a_connection_parameter():
    async def nothing(): ...

    async def only_self(self): ...

    async def keywords(*, conn): ...

    for function in (nothing, only_self, keywords):
        with pytest.raises(TypeError, match="has no parameter for the connection"):
            redis_connection("logs")(function)


def test_redis_connection_signature_omits_the_connection():
    assert "(key, value='default', *, repeat=1)" == str(inspect.signature(log))
    assert ("log", "Write a log line.") == (log.__name__, log.__doc__)
    assert inspect.iscoroutinefunction(log)


async def test_redis_connection_error_says_what_to_do_without_components():
    with pytest.raises(NoComponentsError, match=r"async with Components\(source\).*use\(\)"):
        await log("key")


async def test_components_redis_connection_works_without_use(server):
    components = Components({"redis.logs.url": server.url})

    @components.redis_connection("logs")
    async def ping(conn):
        return await conn.ping()

    assert await ping() is True
    await components.aclose()


async def test_redis_connection_uses_the_latest_open_components(server):
    first, second, third = (Components({"redis.logs.url": f"{server.url}/{db}"}) for db in (1, 2, 3))
    async with first:
        second.use()
        second.use()
        third.use()
        await second.aclose()
        assert 3 == (await pool_of()).connection_kwargs["db"]
        await third.aclose()
        assert 1 == (await pool_of()).connection_kwargs["db"]


async def test_closed_components_raise_and_make_no_pools(server, store):
    components = Components(store)
    await store.set("redis", "logs", {"url": server.url})

    @components.redis_connection("logs", wait=0)
    async def call(conn):
        return await conn.ping()

    async with components:
        await call()
        late = asyncio.create_task(call())
        await asyncio.sleep(0)
    for closed in (late, call()):
        with pytest.raises(NoComponentsError, match="are closed"):
            await closed
    async with components:
        assert await call() is True


@pytest.mark.slow
async def test_hanging_config_server_does_not_delay_configured_components(own_server, make_pool, server):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=600)))
    await store.set("redis", "logs", {"url": server.url})

    @redis_connection("logs", wait=0)
    async def call(conn):
        return await conn.ping()

    async with Components(store):
        await call()
        own_server.freeze()
        async with asyncio.timeout(15):
            assert [True] * 20 == await asyncio.gather(*(call() for _ in range(20)))
            for _ in range(20):
                assert await call() is True
        own_server.thaw()


async def test_redis_connection_fills_positional_only_and_variable_parameters(components):
    @redis_connection("logs")
    async def positional(conn, /, key):
        return await conn.incr(key)

    @redis_connection("logs")
    async def variable(*args, **kwargs):
        return type(args[0]).__name__, args[1:], kwargs

    assert ("(key)", "(*args, **kwargs)") == (str(inspect.signature(positional)), str(inspect.signature(variable)))
    assert 1 == await positional("counter")
    assert ("MonitoredRedisConnection", (1,), {"b": 2}) == await variable(1, b=2)


def test_redis_connection_raises_on_plain_functions_that_wrap_coroutines_or_generators():
    @functools.wraps(log)
    def plain(conn):
        return conn

    async def generator(conn):
        yield conn

    @functools.wraps(generator)
    def wrapped(conn):
        return generator(conn)

    for function in (plain, wrapped):
        with pytest.raises(TypeError, match="must be a coroutine function"):
            redis_connection("logs")(function)


def test_components_are_separate_for_each_event_loop(server):
    async def serve():
        async with Components({"redis.logs.url": server.url}):
            await log("key")

    with asyncio.Runner() as first, asyncio.Runner() as second:
        for runner in (first, second):
            runner.run(serve())


async def test_components_make_one_pool_for_concurrent_first_calls(components):
    assert 1 == len(set(await asyncio.gather(*(pool_of() for _ in range(20)))))


async def test_components_close_their_pools_on_exit(server):
    async with Components({"redis.logs.url": server.url}) as components:
        pool = await pool_of()
        await log("key")
        del components

    assert "closed" in repr(pool)


async def test_unconfigured_component_raises_config_error_with_its_name(components):
    @redis_connection("unheard-of")
    async def call(conn): ...

    with pytest.raises(ConfigurationError, match=r"(?s)component 'unheard-of': no usable configuration.*no value"):
        await call()


async def test_changed_configuration_makes_a_new_pool_and_drains_the_old(store, server, until):
    await store.set("redis", "logs", {"url": server.url, "db": 1})
    entered, leave = asyncio.Event(), asyncio.Event()

    @redis_connection("logs", wait=0)
    async def slow(conn):
        await conn.ping()
        entered.set()
        await leave.wait()
        return await conn.ping(), conn.connection_pool

    async with Components(store):
        running = asyncio.create_task(slow())
        await entered.wait()
        old = await pool_of()
        await store.set("redis", "logs", {"url": server.url, "db": 2})
        new = await pool_of()
        assert (1, 2) == (old.connection_kwargs["db"], new.connection_kwargs["db"])
        assert new is await pool_of()
        assert "closed" not in repr(old)
        leave.set()

        assert (True, old) == await running
        await until(lambda: "closed" in repr(old))


async def test_components_close_replaced_pools_that_are_still_in_use(store, server):
    await store.set("redis", "logs", {"url": server.url, "db": 1})
    entered, leave = asyncio.Event(), asyncio.Event()

    @redis_connection("logs")
    async def hold(conn):
        await conn.ping()
        entered.set()
        await leave.wait()
        return conn.connection_pool

    async with Components(store):
        holding = asyncio.create_task(hold())
        await entered.wait()
        await store.set("redis", "logs", {"url": server.url, "db": 2})
        await log("key")
    tasks = asyncio.all_tasks()
    leave.set()
    pool = await holding

    assert "closed" in repr(pool)
    assert {asyncio.current_task()} == asyncio.all_tasks() - (tasks - {asyncio.current_task()})


async def test_components_log_when_closing_a_replaced_pool_fails(store, server, caplog, monkeypatch):
    await store.set("redis", "logs", {"url": server.url})

    async def refuse():
        raise redis.exceptions.TimeoutError("Timed out closing connection")

    async with Components(store):
        old = await pool_of()
        monkeypatch.setattr(old, "aclose", refuse)
        await store.set("redis", "logs", {"url": server.url, "db": 1})
        await log("key")

    assert "closing a replaced pool failed: Timed out closing connection" in caplog.text


async def test_component_calls_succeed_while_the_configuration_keeps_changing(store, server):
    await store.set("redis", "logs", {"url": server.url, "db": 0})

    @redis_connection("logs", wait=0)
    async def call(conn):
        await asyncio.sleep(0)
        return await conn.ping()

    async def change():
        for number in range(30):
            await store.set("redis", "logs", {"url": server.url, "db": number % 3})

    async with Components(store):
        _, *answers = await asyncio.gather(change(), *(call() for _ in range(200)))

    assert {True} == set(answers)


async def test_wait_bounds_how_long_a_configuration_is_cached(store, server):
    await store.set("redis", "logs", {"url": server.url})

    @redis_connection("logs", wait=60)
    async def patient(conn):
        return conn.connection_pool

    async with Components(store):
        pool = await patient()
        await ConfigStore(store._client).set("redis", "logs", {"url": server.url, "db": 3})

        assert pool is await patient()


async def test_broken_configuration_keeps_the_last_good_one_and_logs_once(make_pool, server, caplog):
    with RedisServer() as config_server:
        client = MonitoredRedisConnection(connection_pool=make_pool(config_server.url, retries=0))
        store = ConfigStore(client)
        await store.set("redis", "logs", {"url": server.url})

        @redis_connection("logs", wait=0)
        async def call(conn):
            return conn.connection_pool

        async with Components(store):
            pool = await call()
            for broken in ("{", '{"url": "http://x"}'):
                await client.set("config:redis:logs", broken)
                assert pool is await call()
                assert pool is await call()
            await store.set("redis", "logs", {"url": server.url})
            assert pool is await call()
            config_server.kill()
            for _ in range(3):
                assert pool is await call()

    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert 2 == len(warnings), caplog.text
    assert {"component 'logs' keeps its last good configuration"} == {
        r.getMessage().partition(":")[0] for r in warnings
    }


async def test_dead_config_server_raises_without_an_earlier_configuration(own_server, make_pool):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=0.5)))
    own_server.kill()
    async with Components(store):
        with pytest.raises(
            ConfigurationError, match="component 'logs': no usable configuration, and never had one: Err"
        ):
            await log("key")


async def test_components_pass_pool_arguments_to_every_pool(server, telemetry):
    async with Components({"redis.logs.url": server.url}, **telemetry.providers):
        await log("key")

    assert "RPUSH" == telemetry.tree()


# The users of the decorator in "Redis in Action", as an asyncio service would write them today.


@redis_connection("logs")
async def log_recent(conn, name, message, *, keep=100):
    async with conn.pipeline("log-recent") as pipe:
        await pipe.lpush(f"recent:{name}", message).ltrim(f"recent:{name}", 0, keep - 1).execute()


@redis_connection("logs")
@asynccontextmanager
async def access_time(conn, context, *, clock, keep=100):
    started = clock()
    yield
    async with conn.pipeline("access-time") as pipe:
        slowest = f"slowest:{context}"
        await (
            pipe.zadd(slowest, {f"{context}:{started}": clock() - started})
            .zremrangebyrank(slowest, 0, -keep - 1)
            .execute()
        )


async def test_example_log_recent_keeps_the_newest_messages(components, client):
    for number in range(5):
        await log_recent("web", f"message {number}", keep=3)

    assert [b"message 4", b"message 3", b"message 2"] == await client.lrange("recent:web", 0, -1)


async def test_example_access_time_keeps_the_slowest_hundred(components, client):
    times = iter(moment for started in range(150) for moment in (started * 1000.0, started * 1000.0 + started))
    for _ in range(150):
        async with access_time("checkout", clock=lambda: next(times)):
            pass

    slowest = await client.zrange("slowest:checkout", 0, -1, withscores=True)
    assert (100, 50.0, 149.0) == (len(slowest), slowest[0][1], slowest[-1][1])
