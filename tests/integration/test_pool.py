"""The pool: configured, bound to an event loop, closed; and its warnings otherwise."""

import asyncio
import gc
import socket
import warnings
from contextlib import ExitStack

import pytest
import redis.asyncio
import redis.exceptions
import uvloop
from support.internals import acquired_connections_of, idle_connections_of, unread_bytes_of, waiters_of
from support.sharing import UNRECORDED, warnings_of_forgetting

from aioredis_monitored import (
    ConfigurationError,
    EventLoopError,
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolClosedError,
    PoolExhaustedError,
    __version__,
    config_from_env,
    pool_from_config,
)
from aioredis_monitored.testing import RedisServer

SECRET = "hunter2-" * 3
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


def _run_until_complete(coroutine):
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


async def test_pool_from_environment_serves_commands(server):
    environ = {"REDIS_URL": server.url, "REDIS_SOCKET_TIMEOUT": "200 milliseconds", "REDIS_MAX_CONNECTIONS": "3"}

    async with pool_from_config(config_from_env(environ)) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)

        assert await client.set("key", "value") is True
        assert b"value" == await client.get("key")

    assert ("redis", 3, 0.2) == (pool.name, pool.max_connections, pool.connection_kwargs["socket_timeout"])


def test_pool_name_defaults_to_its_config_prefix(server):
    config = {"redis.url": "redis://elsewhere", "redis.cache.url": server.url}

    assert "redis.cache" == pool_from_config(config, prefix="redis.cache.").name


def test_pool_arguments_override_configuration():
    pool = pool_from_config(
        {"redis.url": "redis://localhost", "redis.max_connections": "3", "redis.timeout": "1 second"},
        max_connections=7,
        timeout=None,
        decode_responses=True,
        name="mine",
    )

    assert ("mine", 7, None, True) == (
        pool.name,
        pool.max_connections,
        pool.timeout,
        pool.connection_kwargs["decode_responses"],
    )


def test_pool_from_config_raises_on_prefix_without_trailing_dot():
    with pytest.raises(ValueError, match="must end with a dot: 'redis'"):
        pool_from_config({"redis.url": "redis://localhost"}, prefix="redis")


def test_pool_from_config_reports_all_problems_together():
    with pytest.raises(ConfigurationError) as caught:
        pool_from_config({"redis.max_conections": "3", "redis.socket_timeout": "5 parsecs"})

    assert {"redis.url", "redis.max_conections", "redis.socket_timeout"} == {key for key, _ in caught.value.problems}
    assert 3 == len(str(caught.value).splitlines())


def test_pool_raises_on_unknown_argument_at_construction():
    with pytest.raises(TypeError, match="max_conections"):
        MonitoredConnectionPool(max_conections=3)


def test_pool_raises_on_zero_max_connections():
    with pytest.raises(ConfigurationError, match="max_connections: must be a whole number, 1 or more"):
        MonitoredConnectionPool(max_connections=0)


async def test_pool_connects_lazily_and_closes_all_connections_on_exit(server, leaves_nothing):
    async with pool_from_config({"redis.url": "redis://127.0.0.1:1"}):
        pass

    async with MonitoredConnectionPool.from_url(server.url) as pool:
        borrowed, idle = await pool.get_connection(), await pool.get_connection()
        await pool.release(idle)
        assert "[1 used, 1 idle, at most 50; shared: 0 in flight, 0 waiting]" in repr(pool)

    assert (False, False) == (borrowed.is_connected, idle.is_connected)
    await pool.release(borrowed)
    assert repr(pool).endswith("[closed]>")


async def test_closed_pool_raises_and_reopens_when_entered(client, pool):
    await client.ping()
    await pool.aclose()
    await pool.aclose()

    with pytest.raises(PoolClosedError, match="pool 'test' is closed"):
        await client.ping()
    with pytest.raises(redis.exceptions.ConnectionError, match=r"^pool 'test' is closed$"):
        await pool.ping()

    async with pool:
        assert await client.ping() is True


async def test_pool_waiter_gets_no_connection_released_after_closing(make_pool, server, until):
    pool = make_pool(server.url, max_connections=1)
    borrowed = await pool.get_connection()
    waiting = asyncio.create_task(pool.get_connection())
    await until(lambda: pool.stats().pending)
    await pool.aclose()
    await pool.release(borrowed)

    with pytest.raises(PoolClosedError):
        await waiting


async def test_pool_waiters_fail_immediately_when_the_pool_closes(make_pool, server, until):
    pool = make_pool(server.url, max_connections=1, timeout=None)
    held = await pool.get_connection()
    waiting = [asyncio.create_task(pool.get_connection()) for _ in range(3)]
    await until(lambda: pool.stats().pending == 3)
    await pool.aclose()

    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, PoolClosedError)
    await pool.release(held)


async def test_pool_waiters_fail_although_the_pool_reopens_immediately(make_pool, server, until):
    pool = make_pool(server.url, max_connections=1, timeout=None)
    held = await pool.get_connection()
    waiting = [asyncio.create_task(pool.get_connection()) for _ in range(3)]
    await until(lambda: pool.stats().pending == 3)
    acquired = acquired_connections_of(pool)
    closing = asyncio.create_task(pool.aclose())
    while acquired_connections_of(pool) is acquired:
        await asyncio.sleep(0)
    async with pool:
        taken = await pool.get_connection()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, PoolClosedError)
        await closing
        await pool.release(taken)
        await pool.release(held)


async def test_new_credentials_discard_idle_connections(make_pool, server):
    class Token:
        def try_get(self, key):
            return "default"

        def get_value(self):
            return "anything"

    pool = make_pool(server.url)
    connected, idle = await pool.get_connection(), await pool.get_connection()
    await idle.disconnect()
    await pool.release(idle)
    await pool.release(connected)

    await pool.re_auth_callback(Token())
    # The connections reconnect with the new credentials.
    assert "0 used, 0 idle" in repr(pool)


async def test_connection_acquired_before_closing_stays_closed(make_pool, server):
    pool = make_pool(server.url, name="left")
    client = MonitoredRedisConnection(connection_pool=pool)
    single, pipe, pubsub = client.client(), client.pipeline(), client.pubsub()
    await single.ping()
    await pipe.watch("key")
    await pubsub.subscribe("news")
    await pubsub.get_message(timeout=5)
    await pool.aclose()

    with pytest.raises(PoolClosedError, match="pool 'left' is closed"):
        await single.ping()
    with pytest.raises(redis.exceptions.WatchError):
        await pipe.execute()
    with pytest.raises(PoolClosedError):
        await pubsub.get_message(timeout=5)
    async with MonitoredRedisConnection.from_url(server.url) as other:
        assert 0 == await other.publish("news", "hello")
    async with pool:
        await pubsub.aclose()
        await single.aclose()
        assert "[0 used, 0 idle," in repr(pool)


async def test_acquire_raises_pool_closed_error_when_pool_closes_while_connecting(own_server, make_pool, until):
    pool = make_pool(own_server.url)
    own_server.freeze()
    connecting = asyncio.create_task(pool.get_connection())
    await until(lambda: any(c.is_connected for c in acquired_connections_of(pool)))
    await pool.aclose()
    own_server.thaw()

    with pytest.raises(PoolClosedError):
        await connecting


async def test_calls_that_begin_while_the_pool_closes_are_refused(own_server, make_pool, until):
    pool = make_pool(own_server.url, socket_timeout=60)
    client, queue = MonitoredRedisConnection(connection_pool=pool), MessageQueue("mail", pool)
    await client.ping()
    own_server.freeze()
    in_flight = asyncio.create_task(client.get("key"))
    await until(lambda: pool.stats().in_flight == 1)
    closing = asyncio.create_task(pool.aclose())
    await until(lambda: not pool.is_sharing)
    for call in (
        client.get("key"),
        client.pipeline().get("key").execute(),
        client.lock("job").acquire(),
        queue.get(0),
        queue.put(b"message"),
    ):
        with pytest.raises(PoolClosedError):
            await asyncio.wait_for(call, 30)
    again = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    own_server.thaw()
    await asyncio.gather(closing, again)

    # What was sent before has its reply.
    assert await in_flight is None


async def test_caller_whose_turn_comes_while_the_pool_closes_does_not_connect(own_server, make_pool, until):
    pool = make_pool(own_server.url, max_connections=1, socket_timeout=600)
    connection = await pool.get_connection()
    waiting = asyncio.create_task(pool.get_connection())
    await until(lambda: len(waiters_of(pool)) == 1)
    await connection.disconnect()
    own_server.freeze()
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    # Between the call and the end of closing.
    await pool.release(connection)
    await closing

    with pytest.raises(PoolClosedError):
        await asyncio.wait_for(waiting, 30)


@pytest.fixture
def unreachable():
    """Yield the port of a listening socket that takes no further connection, whose clients wait for that."""
    with socket.socket() as listening, ExitStack() as waiting:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            filler = waiting.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_calls_that_wait_for_the_network_end_when_the_pool_closes(unreachable, make_pool, multiplex):
    pool = make_pool(f"redis://127.0.0.1:{unreachable}", socket_connect_timeout=600, multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    calls = [asyncio.create_task(each) for each in (client.get("key"), client.blpop("list"), pool.get_connection())]
    done, _ = await asyncio.wait(calls, timeout=0.1)
    assert not done
    await pool.aclose()

    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [PoolClosedError] * len(calls) == [type(each) for each in outcomes]


async def test_pool_closing_completes_when_its_caller_is_cancelled(make_pool, server, until):
    pool = make_pool(server.url)
    connections = [await pool.get_connection() for _ in range(3)]
    closing = asyncio.create_task(pool.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])

    assert closing.cancelled()
    await until(lambda: not any(connection.is_connected for connection in connections))


async def test_cancelled_waiter_passes_its_wakeup_to_the_next(make_pool, server, until):
    pool = make_pool(server.url, max_connections=1)
    held = await pool.get_connection()
    first, second = (asyncio.create_task(pool.get_connection()) for _ in range(2))
    await until(lambda: pool.stats().pending == 2)
    await pool.release(held)
    first.cancel()
    await asyncio.wait([first])
    if not first.cancelled():
        await pool.release(first.result())

    await pool.release(await asyncio.wait_for(second, 30))


async def test_pool_serves_callers_that_wait_when_it_gets_more_connections(make_pool, server, until):
    pool = make_pool(server.url, max_connections=1, multiplex=False)
    held = await pool.get_connection()
    waiting = [asyncio.create_task(pool.get_connection()) for _ in range(2)]
    await until(lambda: pool.stats().pending == 2)
    pool.max_connections = 3

    assert 3 == len({held, *await asyncio.gather(*waiting)})
    assert (3, 3, 0) == (pool.stats().max_connections, pool.stats().used, pool.stats().pending)


async def test_pool_discards_a_connection_whose_handshake_fails(make_pool, server):
    # No configuration accepts such a password; a credential provider may return it.
    class Provider(redis.CredentialProvider):
        def get_credentials(self):
            return ("user", "\udce9")

    pool = make_pool(f"{server.url}/4", credential_provider=Provider())
    with pytest.raises(UnicodeEncodeError):
        await pool.get_connection()

    assert "0 used, 0 idle" in repr(pool)


def test_reopened_pool_works_under_contention_in_the_next_event_loop(server):
    pool = MonitoredConnectionPool.from_url(server.url, max_connections=2)
    client = MonitoredRedisConnection(connection_pool=pool)

    async def serve():
        async with pool:
            return await asyncio.gather(*(client.ping() for _ in range(20)))

    for _ in range(2):
        assert [True] * 20 == asyncio.run(serve())


def test_pool_close_raises_in_another_event_loop_while_the_first_is_open(server):
    pool = MonitoredConnectionPool.from_url(server.url, name="mine")
    with asyncio.Runner() as first:
        first.run(pool.ping())
        with pytest.raises(EventLoopError, match="pool 'mine' belongs to another event loop"):
            asyncio.run(pool.aclose())
        first.run(pool.ping())
        first.run(pool.aclose())


def test_calls_with_a_pinned_connection_raise_in_another_event_loop(server):
    pool = MonitoredConnectionPool.from_url(server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    single, pipe = client.client(), client.pipeline()
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(single.ping())
        first.run(pipe.watch("key"))
        pipe.multi()
        for call in (single.ping(), pipe.execute(), pipe.immediate_execute_command("GET", "key")):
            with pytest.raises(EventLoopError):
                second.run(call)
        first.run(single.aclose())
        first.run(pipe.aclose())
        first.run(pool.aclose())


def test_pool_raises_event_loop_error_in_a_second_event_loop(server):
    pool = MonitoredConnectionPool.from_url(server.url, name="shared")
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(pool.ping())
        with pytest.raises(EventLoopError, match="pool 'shared' belongs to another event loop"):
            second.run(pool.ping())
        first.run(pool.aclose())
        second.run(pool.__aenter__())
        second.run(pool.ping())
        second.run(pool.aclose())


def test_pool_can_be_closed_from_another_event_loop_after_the_first_ended(server):
    pool = MonitoredConnectionPool.from_url(server.url)
    asyncio.run(pool.ping())

    asyncio.run(pool.aclose())

    assert 0 == sum(c.is_connected for c in idle_connections_of(pool))


@pytest.mark.parametrize("while_running", [True, False])
@pytest.mark.parametrize("run", [asyncio.run, _run_until_complete])
def test_unclosed_pool_warns_once_with_its_name(server, while_running, run):
    async def forget():
        pool = MonitoredConnectionPool.from_url(server.url, name="forgotten")
        await pool.ping()
        borrowed = await pool.get_connection()
        assert borrowed.is_connected
        if while_running:
            del pool, borrowed
            gc.collect()
            return None
        return pool

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = run(forget())
        del pool
        gc.collect()

    assert ["pool 'forgotten' was never closed: use 'async with' or aclose()"] == [str(w.message) for w in caught]


@LOOPS
@pytest.mark.parametrize("ticks", range(8))
def test_pool_closing_while_its_event_loop_ends_leaves_nothing_open(server, multiplex, new_loop, ticks):
    async def leave():
        pool = MonitoredConnectionPool.from_url(server.url, **UNRECORDED, multiplex=multiplex)
        client = MonitoredRedisConnection(connection_pool=pool)
        # One idle, one acquired, and the shared connection, if any.
        await asyncio.gather(client.set("key", 1), client.blpop("list", 0.01))
        await pool.get_connection()
        await client.blpop("list", 0.01)
        closings.append(asyncio.create_task(pool.aclose()))
        for _ in range(ticks):
            await asyncio.sleep(0)

    closings = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(leave())
        closings.clear()
        gc.collect()

    assert [] == [str(each.message) for each in caught]


@LOOPS
def test_unclosed_pool_only_warns_when_collected_while_its_event_loop_is_paused(server, multiplex, new_loop, caplog):
    def make_pool():
        return MonitoredConnectionPool.from_url(server.url, name="forgotten", multiplex=multiplex)

    warned = warnings_of_forgetting(make_pool, new_loop)

    assert ["pool 'forgotten' was never closed: use 'async with' or aclose()"] == warned
    assert [] == caplog.messages


async def test_unused_pool_does_not_warn_when_collected():
    MonitoredConnectionPool.from_url("redis://localhost")
    gc.collect()


async def test_calls_leave_nothing_to_the_garbage_collector(make_pool, server, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=multiplex, **UNRECORDED))
    await client.get("key")
    gc.collect()
    gc.disable()
    try:
        for _ in range(1000):
            await client.get("key")
        # What earlier tests have left may be among them; a cycle for each call would be thousands.
        assert gc.collect() < 1000
    finally:
        gc.enable()


async def test_ping_error_names_pool_and_address_without_the_password():
    pool = pool_from_config({"redis.url": f"redis://:{SECRET}@127.0.0.1:1/2"})

    with pytest.raises(
        redis.exceptions.ConnectionError, match=r"^pool 'redis' \(127.0.0.1:1/2\): Error 111 "
    ) as caught:
        await pool.ping()

    assert SECRET not in str(caught.value) + repr(pool)


@pytest.mark.parametrize("multiplex", [True, False])
async def test_ping_of_an_exhausted_pool_succeeds_only_if_multiplexed(make_pool, server, multiplex):
    pool = make_pool(server.url, name="mine", max_connections=2, timeout=0.05, multiplex=multiplex)
    held = [await pool.get_connection() for _ in range(1 if multiplex else 2)]
    if multiplex:
        await pool.ping()
    else:
        with pytest.raises(PoolExhaustedError, match=r"^pool 'mine': no connection became free in 0.05 s$"):
            await pool.ping()
    for connection in held:
        await pool.release(connection)


async def test_ping_authenticates_once_with_a_wrong_password():
    with RedisServer("--requirepass", "right") as server:
        async with MonitoredConnectionPool.from_url(server.url, password=SECRET, name="locked") as pool:
            with pytest.raises(redis.exceptions.AuthenticationError, match=r"^pool 'locked'") as caught:
                await pool.ping()
        async with MonitoredConnectionPool.from_url(server.url, password="right") as pool:
            statistics = await MonitoredRedisConnection(connection_pool=pool).info("commandstats")

    assert SECRET not in str(caught.value)
    assert (2, 1) == tuple(statistics["cmdstat_hello"][key] for key in ("calls", "failed_calls"))


async def test_ping_raises_on_a_missing_database(server):
    async with MonitoredConnectionPool.from_url(f"{server.url}/9999") as pool:
        with pytest.raises(redis.exceptions.ResponseError, match=r"DB index is out of range"):
            await pool.ping()


async def test_pool_discards_a_released_connection_with_an_unread_reply(make_pool, server, until):
    pool = make_pool(server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.set("key", "value")
    connection = await pool.get_connection()
    await connection.send_command("ECHO", "not yours")
    await until(lambda: unread_bytes_of(connection))
    await pool.release(connection)

    assert b"value" == await client.get("key")


async def test_pool_connects_through_a_unix_socket(server):
    config = {"redis.url": f"unix://{server.unix_socket_path}", "redis.db": "3"}

    async with pool_from_config(config) as pool:
        await pool.ping()

        assert f"{server.unix_socket_path}/3" in repr(pool)


async def test_client_list_shows_client_name_and_library(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, client_name="shop"))
    own = next(each for each in await client.client_list() if each["cmd"] == "client|list")

    assert "shop" == own["name"]
    assert own.get("lib-name", "unknown to Redis 7.0") in {
        f"redis-py(aioredis_monitored_v{__version__})",
        "unknown to Redis 7.0",
    }


def test_unclosed_pool_in_a_stopped_event_loop_leaves_no_socket(server):
    loop = asyncio.new_event_loop()
    pool = MonitoredConnectionPool.from_url(server.url, name="stopped")
    loop.run_until_complete(pool.ping())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
        loop.close()
        gc.collect()

    assert ["pool 'stopped' was never closed: use 'async with' or aclose()"] == [str(w.message) for w in caught]


def test_pool_validates_arguments_like_configuration():
    with pytest.raises(ConfigurationError) as caught:
        MonitoredConnectionPool(timeout="2 parsecs", db="x", socket_timeout="200 milliseconds")

    assert ["db", "timeout"] == sorted(key for key, _ in caught.value.problems)
    assert 0.2 == MonitoredConnectionPool(socket_timeout="200 milliseconds").connection_kwargs["socket_timeout"]


async def test_ping_raises_the_same_error_type_as_a_command(own_server, make_pool, telemetry):
    async with MonitoredRedisConnection.from_url(own_server.url) as admin:
        await admin.config_set("lua-time-limit", 1)
        script = asyncio.create_task(admin.eval("while true do end", 0))
        pool = make_pool(own_server.url)
        error = None
        while error is None:
            try:
                await pool.ping()
            except redis.exceptions.ResponseError as caught:
                error = caught
        await admin.script_kill()
        await asyncio.gather(script, return_exceptions=True)

    assert "BUSY" in str(error)
    assert "BUSY" == telemetry.spans[-1].attributes["error.type"]


async def test_pool_sends_no_client_info_when_client_info_is_off(server, inspector):
    inspector.config_resetstat()
    async with pool_from_config({"redis.url": server.url, "redis.client_info": "false"}) as pool:
        await pool.ping()

    assert [] == [name for name in inspector.info("commandstats") if name.startswith("cmdstat_client")]


@pytest.mark.parametrize("kind", ["server", "cluster"])
async def test_pool_raises_what_closing_a_connection_raises_and_closes_the_others(server, cluster, kind):
    broken = []

    class Breaking(redis.asyncio.Connection):
        async def disconnect(self, nowait=False, **options):
            await super().disconnect(nowait=nowait, **options)
            if self in broken:
                raise redis.exceptions.ConnectionError("cannot be closed")

    url = server.url if kind == "server" else cluster.url
    pool = MonitoredConnectionPool.from_url(url, connection_class=Breaking, multiplex=False, **UNRECORDED)
    acquired = [await pool.get_connection() for _ in range(3)]
    for connection in acquired:
        await pool.release(connection)
    broken.append(acquired[0])

    with pytest.raises(redis.exceptions.ConnectionError, match="cannot be closed"):
        await pool.aclose()
    assert not any(connection.is_connected for connection in acquired)
    await pool.aclose()
