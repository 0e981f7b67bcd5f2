"""The client works as redis-py's: the same calls, results, errors and cancellation."""

import asyncio
import gc

import pytest
import redis.asyncio
import redis.exceptions
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from support.internals import idle_connections_of, recorder_of
from support.sharing import until_answered

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, MonitoredRedisPipeline
from aioredis_monitored.client.lock import MonitoredLock
from aioredis_monitored.testing import RedisServer


async def test_client_is_a_redis_client_with_a_monitored_pool(server):
    async with MonitoredRedisConnection(host=server.host, port=server.port, db=1, decode_responses=True) as client:
        assert isinstance(client, redis.asyncio.Redis)
        assert isinstance(client.connection_pool, MonitoredConnectionPool)
        await client.set("key", "value")

        assert "value" == await client.get("key")
        assert "<aioredis_monitored.MonitoredRedisConnection(<MonitoredConnectionPool " in repr(client)


async def test_from_url_client_closes_its_pool(server):
    async with MonitoredRedisConnection.from_url(server.url, max_connections=2) as client:
        assert await client.ping() is True

    assert (2, "[closed]>") == (client.connection_pool.max_connections, repr(client.connection_pool)[-9:])


async def test_from_url_client_leaves_pool_open_without_auto_close(server):
    async with MonitoredRedisConnection.from_url(server.url, auto_close_connection_pool=False) as client:
        await client.ping()

    assert await client.ping() is True
    await client.connection_pool.aclose()


async def test_client_closes_pool_of_from_pool_and_not_of_connection_pool(server):
    pool = MonitoredConnectionPool.from_url(server.url)
    async with MonitoredRedisConnection(connection_pool=pool) as borrower:
        await borrower.ping()
    await borrower.ping()
    async with MonitoredRedisConnection.from_pool(pool) as owner:
        await owner.ping()

    assert "closed" in repr(pool)


async def test_client_selects_connection_class_by_unix_socket_path_and_ssl(server):
    async with MonitoredRedisConnection(unix_socket_path=server.unix_socket_path) as client:
        assert await client.ping() is True
    encrypted = MonitoredRedisConnection(ssl=True, ssl_check_hostname=False, max_connections=3)

    assert redis.asyncio.SSLConnection is encrypted.connection_pool.connection_class


def test_client_raises_on_arguments_without_effect(pool):
    with pytest.raises(TypeError, match="cannot be combined with connection_pool: db, multiplex"):
        MonitoredRedisConnection(connection_pool=pool, db=3, multiplex=False, decode_responses=False, retry=None)
    with pytest.raises(TypeError, match="bogus"):
        MonitoredRedisConnection(bogus=1)


@pytest.mark.parametrize("pool_class", [redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool])
async def test_client_works_on_a_plain_pool(server, pool_class):
    async with pool_class.from_url(server.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set("key", 1)
        async with client.pipeline("both") as pipe:
            pipe.incr("key").get("key")

            assert [2, b"2"] == await pipe.execute()
        assert recorder_of(client) is recorder_of(MonitoredRedisConnection(connection_pool=pool))


async def test_client_works_on_a_sentinel_pool(server):
    monitor = ("--sentinel", "monitor", "mymaster", server.host, str(server.port), "1")
    with RedisServer(*monitor) as watcher:
        sentinel = Sentinel([(watcher.host, watcher.port)])
        async with sentinel.master_for("mymaster", redis_class=MonitoredRedisConnection) as master:
            assert isinstance(master.connection_pool, SentinelConnectionPool)
            assert await master.set("key", "value") is True
            assert b"value" == await master.get("key")
        for client in sentinel.sentinels:
            await client.aclose()


async def test_dedicated_client_keeps_one_connection_and_releases_it(client, pool):
    async with client.client() as single:
        assert isinstance(single, MonitoredRedisConnection)
        first = await single.client_id()
        assert {first} == set(await asyncio.gather(*(single.client_id() for _ in range(10))))
        assert "1 used" in repr(pool)

    assert "0 used, 1 idle" in repr(pool)


async def test_dedicated_client_keeps_context_name_and_parent_span(pool):
    single = MonitoredRedisConnection("cache", None, pool).client()

    assert ("cache", None) == (single.context_name, single.server_span)


async def test_client_with_its_own_pool_can_be_entered_again(server):
    client = MonitoredRedisConnection.from_url(server.url)
    for _ in range(2):
        async with client:
            assert await client.ping() is True
    with pytest.raises(redis.exceptions.ConnectionError, match="is closed"):
        await client.ping()


@pytest.mark.parametrize(
    ("arguments", "transaction", "name"),
    [
        ((), True, None),
        ((False,), False, None),
        ((0,), False, None),
        (("",), True, None),
        ((True, None), True, None),
        ((False, "hint"), False, None),
        (("cart",), True, "cart"),
        (("cart", False), False, "cart"),
        (("cart", False, "hint"), False, "cart"),
    ],
)
async def test_pipeline_accepts_both_argument_orders(client, arguments, transaction, name):
    pipe = client.pipeline(*arguments)

    assert isinstance(pipe, MonitoredRedisPipeline)
    assert (transaction, name) == (pipe.is_transaction, pipe.name)
    assert ("hint" if "hint" in arguments else None) == pipe.shard_hint
    assert [True, b"1"] == await pipe.set("key", 1).get("key").execute()


async def test_pipeline_raises_on_a_name_that_is_not_text(client):
    with pytest.raises(TypeError, match="a pipeline's name must be text, got bytes"):
        client.pipeline(b"cart")


async def test_pipeline_accepts_keyword_arguments(client):
    assert client.pipeline(transaction=False).is_transaction is False
    assert client.pipeline(name="cart", shard_hint="hint").shard_hint == "hint"


async def test_transaction_retries_until_the_watched_key_is_unchanged(client):
    await client.set("stock", 3)
    interferences = iter([True, False])

    async def take_one(pipe):
        left = int(await pipe.get("stock"))
        if next(interferences):
            await client.decr("stock")
        pipe.multi()
        pipe.set("stock", left - 1)

    assert [True] == await client.transaction(take_one, "stock")
    assert b"1" == await client.get("stock")


async def test_lock_excludes_others_until_released(client):
    async with client.lock("lock", timeout=10) as lock:
        assert isinstance(lock, MonitoredLock)
        assert await client.lock("lock", blocking=False).acquire() is False
        assert await lock.extend(5) is True
        assert await lock.reacquire() is True

    assert await client.exists("lock") == 0
    assert type(client.lock("lock", lock_class=redis.asyncio.lock.Lock)) is redis.asyncio.lock.Lock


async def test_lock_does_not_keep_its_client_alive(client):
    client.lock("lock")

    assert redis.asyncio.lock.Lock.lua_release is None or (
        redis.asyncio.lock.Lock.lua_release.registered_client is not client
    )
    assert MonitoredLock.lua_extend is redis.asyncio.lock.Lock.lua_extend


async def test_pubsub_delivers_published_messages(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        assert "subscribe" == (await pubsub.get_message(timeout=5))["type"]
        assert await client.publish("news", "hello") == 1
        message = await pubsub.get_message(timeout=5)

    assert (b"news", b"hello") == (message["channel"], message["data"])


def test_unknown_argument_of_subscriptions_is_one_error(client):
    # What a finalizer raises is a warning, and so an error here.
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        client.pubsub(colour="red")
    gc.collect()


async def test_scan_iter_returns_all_keys(client):
    await client.mset({f"key:{n}": n for n in range(100)})

    assert 100 == len({key async for key in client.scan_iter("key:*", count=10)})


async def test_script_is_loaded_where_missing(client):
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

    assert 2 == await script(keys=["counter"], args=[2])
    pipe = client.pipeline("scripted")
    await script(keys=["counter"], args=[3], client=pipe)
    await client.script_flush()
    assert [5] == await pipe.execute()


async def test_module_commands_use_the_client(client):
    assert client.json().client is client
    assert client.ft("index").client is client


async def test_monitor_shows_commands_of_other_connections(client):
    async with client.monitor() as monitor:
        await client.get("watched-key")
        seen = [(await monitor.next_command())["command"]]
        while "watched-key" not in seen[-1]:
            seen.append((await monitor.next_command())["command"])

    assert "GET watched-key" == seen[-1]


async def test_monitor_of_a_single_server_takes_no_node(client):
    with pytest.raises(TypeError, match="target_node must be None on the pool of a single server, got 'random'"):
        client.monitor(target_node="random")


async def test_client_in_context_shares_the_pool_without_owning_it(server):
    async with MonitoredRedisConnection.from_url(server.url, single_connection_client=True) as owner:
        async with owner.in_context("other", None) as handle:
            assert await handle.client_id() != await owner.client_id()
        assert await owner.ping() is True


async def test_response_callback_applies_to_one_client_only(client):
    other = client.in_context("other", None)
    await client.set("key", "value")
    client.set_response_callback("GET", lambda reply, **_: reply.decode())

    assert ("value", b"value") == (await client.get("key"), await other.get("key"))


@pytest.mark.slow
async def test_blocking_commands_outlast_the_socket_timeout(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, socket_timeout=5))
    await client.xgroup_create("stream", "group", mkstream=True)

    async def watching():
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            return await pipe.blpop("nothing", timeout=6)

    replies = await asyncio.gather(
        client.blpop("nothing", timeout=6),
        client.pipeline(False).blpop("nothing", timeout=6).execute_command("PING").execute(),
        watching(),
        client.xread({"stream": "$"}, block=6_000),
        client.xreadgroup("group", "consumer", {"stream": ">"}, block=6_000),
    )

    assert [None, [None, True], None] == replies[:3]
    assert not any(replies[3:])


async def test_blocking_command_keeps_no_socket_timeout_on_a_pool_without_one(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, socket_timeout=None))
    await client.rpush("list", "value")

    assert [b"list", b"value"] == list(await client.blpop("list", timeout=0))
    assert [None] == [connection.socket_timeout for connection in idle_connections_of(client.connection_pool)]


async def test_pipeline_annotates_errors_like_redis_py_without_values(client):
    ours, theirs = redis.exceptions.ResponseError("WRONGTYPE x"), redis.exceptions.ResponseError("WRONGTYPE x")
    client.pipeline().annotate_exception(ours, 1, ("SET", "key", "hunter2"))
    redis.asyncio.client.Pipeline(client.connection_pool, {}, True, None).annotate_exception(
        theirs, 1, ("SET", "key", "?")
    )

    assert theirs.args == ours.args


async def test_blocking_command_does_not_extend_the_connect_timeout(own_server, make_pool, until):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=0.2)).client()
    await until_answered(client.ping)
    await client.connection.disconnect()
    own_server.freeze()

    # A client that retries would wait until the server continues.
    async with asyncio.timeout(15):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.blpop("nothing", timeout=0)
    own_server.thaw()
    await client.aclose()


async def test_blocking_command_raises_timeout_error_on_a_frozen_server(own_server, make_pool):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=0.2))
    await until_answered(client.ping)
    own_server.freeze()

    with pytest.raises(redis.exceptions.TimeoutError):
        await client.blpop("nothing", timeout=0.1)
    own_server.thaw()
    assert await until_answered(client.ping) is True


async def test_cancellation_leaves_no_stale_reply_and_no_acquired_connection(make_pool, server):
    pool = make_pool(server.url, max_connections=4)
    client = MonitoredRedisConnection(connection_pool=pool)

    async def echo(number):
        return await client.echo(str(number)) == str(number).encode()

    async def echo_in_pipeline(number):
        return await client.pipeline(False).echo(str(number)).echo("x").execute() == [str(number).encode(), b"x"]

    tasks = [asyncio.create_task((echo, echo_in_pipeline)[n % 2](n)) for n in range(400)]
    while any(not task.done() for task in tasks):
        for task in tasks[::7]:
            task.cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {True} == {r for r in results if not isinstance(r, asyncio.CancelledError)}
    assert any(isinstance(r, asyncio.CancelledError) for r in results)
    assert pool.stats().used <= 1  # the shared connection


async def test_write_with_a_lost_reply_is_not_retried(client, proxy, make_pool):
    through = MonitoredRedisConnection(connection_pool=make_pool(proxy.url))
    await through.ping()
    proxy.cut_replies = 1

    with pytest.raises(redis.exceptions.ConnectionError):
        await through.rpush("list", "once")

    assert 1 == await client.llen("list")


@pytest.mark.parametrize(
    "error", [TimeoutError("mine"), AttributeError("mine")], ids=lambda error: type(error).__name__
)
@pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])
async def test_error_of_a_response_callback_is_raised_as_it_is(make_pool, server, multiplex, error):
    def fail(_reply, **_options):
        raise error

    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=multiplex, socket_timeout=5))
    client.set_response_callback("GET", fail)
    for call in (client.get("key"), client.pipeline().get("key").execute()):
        with pytest.raises(type(error), match="mine"):
            await call
    assert await client.set("key", 1) is True


async def test_pipeline_on_a_plain_pool_loads_its_scripts(server, inspector):
    pool = redis.asyncio.ConnectionPool.from_url(server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    inspector.script_flush()
    pipe = client.pipeline(transaction=False)
    await script(keys=["counter"], client=pipe)

    assert [1] == await pipe.execute()
    await pool.aclose()
