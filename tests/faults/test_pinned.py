"""Pinned connections: replaced while that changes nothing for the caller, and never silently after that."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
import redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError, ReadOnlyError, RedisError, WatchError  # noqa: A004
from support.internals import acquired_connections_of, redirect, redirect_nowhere, replace_ask, unread_bytes_of
from support.scripted import scripted
from support.sharing import begun, frozen

from aioredis_monitored import (
    DedicatedConnectionError,
    MessageQueue,
    MonitoredRedisConnection,
    PinnedConnectionLostError,
    PoolClosedError,
)
from aioredis_monitored._execution import attempts, pinned
from aioredis_monitored._redispy.sockets import transport_of

NEW_HANDLE_HINT = "make a new handle"


async def watch(client):
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        pipe.multi()
        return await pipe.incr("key").execute()


async def first_call(client):
    async with client.client() as single:
        return await single.incr("key")


async def first_call_of_a_lazy_handle(client):
    single = client.client()
    try:
        return await single.incr("key")
    finally:
        await single.aclose()


async def transaction(client):
    def add(pipe):
        pipe.multi()
        pipe.incr("key")

    return await client.transaction(add, "key")


async def fetch(client):
    async with client.client() as single:
        queue = MessageQueue("mail", single)
        await queue.put(b"message")
        return await queue.get(timeout=5)


async def script_in_a_watching_pipeline(client):
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        pipe.multi()
        await script(["key"], client=pipe)
        return await pipe.execute()


async def monitor(client):
    async with client.monitor() as monitor:
        counting = asyncio.ensure_future(client.incr("key"))
        while "key" not in (await monitor.next_command())["command"]:
            pass
        return await counting


FIRST = [
    watch,
    monitor,
    first_call,
    first_call_of_a_lazy_handle,
    transaction,
    fetch,
    script_in_a_watching_pipeline,
]


@pytest.mark.parametrize("call", FIRST)
async def test_pinned_operation_started_while_server_is_down_succeeds_after_restart(make_client, own_server, call):
    client = make_client(own_server.url)
    await client.ping()
    own_server.kill()
    calling = asyncio.ensure_future(call(client))
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.to_thread(own_server.start)

    assert (await calling) in (1, [1], b"message")


@pytest.fixture
def down(proxy):
    """Have the proxy's server refuse connections, and cut existing ones."""

    @asynccontextmanager
    async def down(until):
        upstream = redirect_nowhere(proxy)
        proxy.cut()
        accepted = proxy.accepted
        try:
            yield lambda: until(lambda: proxy.accepted > accepted)
        finally:
            redirect(proxy, *upstream)

    return down


async def test_unaltered_pinned_client_reconnects_after_connection_loss(make_client, proxy, down, until):
    async with make_client(proxy.url).client() as single:
        await single.set("key", 1)
        connection = single.connection
        async with down(until) as tried:
            calling = asyncio.ensure_future(single.incr("key"))
            await tried()

        assert 2 == await calling
        assert connection is single.connection
        assert b"2" == await single.get("key")


@pytest.mark.parametrize(
    "altering",
    [("SELECT", 2), ("CLIENT", "SETNAME", "mine"), ("WATCH", "key"), ("MULTI",), ("UNKNOWN",)],
)
async def test_altered_pinned_client_raises_on_every_call_after_connection_loss(make_client, own_server, altering):
    client = make_client(own_server.url)
    async with client.client() as single:
        with suppress(redis.ResponseError):
            await single.execute_command(*altering)
        own_server.kill()
        await asyncio.to_thread(own_server.start)

        for call in (single.incr, single.get, single.get, single.incr):
            with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
                await call("key")

    # The next handle starts on a new connection.
    async with client.client() as single:
        assert 1 == await single.incr("key")


async def test_altered_pinned_client_never_reads_another_database(make_client, proxy):
    async with make_client(proxy.url).client() as single:
        await single.select(2)
        await single.set("key", "there")
        proxy.cut_replies = 1
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await single.incr("other")
        with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
            await single.get("key")
        await single.aclose()

        # After closing, the handle starts on a new connection.
        assert await single.get("key") is None


async def test_altered_pinned_connection_cannot_be_reconnected_by_redis_py(make_client, server):
    async with make_client(server.url).client() as single:
        await single.select(2)
        await single.connection.disconnect()
        with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
            # As if it sent new credentials.
            await single.connection.send_command("PING")
        with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
            await single.get("key")


async def test_pinned_client_is_lost_when_select_reply_is_lost(make_client, proxy):
    async with make_client(proxy.url).client() as single:
        await single.ping()
        proxy.cut_replies = 1
        with pytest.raises(ConnectionError):
            await single.select(2)
        with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
            await single.get("key")


async def test_altered_pinned_client_raises_after_cancelled_blocking_command(make_client, server, until):
    async with make_client(server.url).client() as single:
        await single.select(2)
        call = asyncio.ensure_future(single.blpop("nothing", timeout=0))
        await until(lambda: single.connection.socket_timeout is None)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])

        with pytest.raises(PinnedConnectionLostError, match=NEW_HANDLE_HINT):
            await single.get("key")


async def test_pinned_client_retries_reads_but_not_writes(make_client, proxy, inspector):
    async with make_client(proxy.url).client() as single:
        await single.ping()
        proxy.cut_replies = 1
        with pytest.raises(ConnectionError):
            await single.incr("key")
        assert b"1" == inspector.get("key")
        proxy.cut_replies = 1

        assert b"1" == await single.get("key")


@pytest.mark.parametrize("args", [("WAIT", 0, 10), ("WAITAOF", 0, 0, 10)])
async def test_wait_raises_when_writes_used_another_connection(make_client, server, inspector, args):
    if args[0] == "WAITAOF" and b"waitaof" not in inspector.execute_command("COMMAND LIST"):
        pytest.skip("this server has no WAITAOF")
    async with make_client(server.url).client() as single:
        await single.incr("key")
        assert await single.execute_command(*args) in (0, [0, 0])
        inspector.client_kill_filter(_id=await single.client_id())
        assert 2 == await single.incr("key")

        for _ in range(2):
            with pytest.raises(PinnedConnectionLostError, match=f"{args[0]} would not count"):
                await single.execute_command(*args)
        assert 3 == await single.incr("key")

    async with make_client(server.url).client() as single:
        assert await single.execute_command(*args) in (0, [0, 0])


async def test_pinned_client_detects_closed_connection_before_write(make_client, server, inspector):
    client = make_client(server.url, retries=0)
    async with client.client() as single:
        for number in range(10):
            identity = await single.client_id()
            inspector.client_kill_filter(_id=identity)
            assert number + 1 == await single.incr("key")


async def test_push_messages_do_not_end_altered_pinned_client(make_client, server, inspector, until):
    async with make_client(server.url).client() as single:
        await single.execute_command("CLIENT", "TRACKING", "ON", "BCAST")
        inspector.set("key", "value")
        await until(lambda: unread_bytes_of(single.connection))
        inspector.set("key", "value")

        assert b"value" == await single.get("key")


async def test_concurrent_pinned_client_calls_share_new_connection(make_client, proxy, down, until, inspector):
    async with make_client(proxy.url).client() as single:
        await single.ping()
        async with down(until) as tried:
            calls = [asyncio.ensure_future(single.incr("key")) for _ in range(20)]
            await tried()

        assert list(range(1, 21)) == sorted(await asyncio.gather(*calls))


async def test_pinned_client_leaves_demoted_server_unless_altered(make_client, server, own_server):
    with redis.Redis.from_url(own_server.url) as demoted:
        async with make_client(own_server.url, retries=0).client() as single:
            before = await single.client_id()
            demoted.replicaof(server.host, server.port)
            with pytest.raises(ReadOnlyError):
                await single.incr("key")
            assert before != await single.client_id()
            demoted.replicaof("NO", "ONE")
            await single.select(2)
            before = await single.client_id()
            demoted.replicaof(server.host, server.port)
            with pytest.raises(ReadOnlyError):
                await single.incr("key")
            # The new connection would have another database selected.
            assert before == await single.client_id()
            demoted.replicaof("NO", "ONE")


@pytest.mark.parametrize("is_altered", [True, False])
async def test_pinned_client_marked_for_reconnect_reconnects_only_if_unaltered(make_client, server, is_altered):
    async with make_client(server.url).client() as single:
        if is_altered:
            await single.select(2)
        before = await single.client_id()
        single.connection.mark_for_reconnect()
        await single.set("key", "value")

        assert is_altered == (before == await single.client_id())
        assert b"value" == await single.get("key")


async def test_pinned_client_raises_after_pool_close(make_client, proxy, down, until):
    client = make_client(proxy.url)
    single = client.client()
    await single.ping()
    async with down(until) as tried:
        calling = asyncio.ensure_future(single.incr("key"))
        await tried()
        await client.connection_pool.aclose()
        with pytest.raises(PoolClosedError):
            await calling
    with pytest.raises(PoolClosedError):
        await single.incr("key")
    await single.aclose()


async def test_pinned_client_raises_when_pool_closes_while_connecting(make_client, own_server, until):
    client = make_client(own_server.url)
    single = client.client()
    await single.ping()
    await single.connection.disconnect()
    own_server.freeze()
    calling = asyncio.ensure_future(single.incr("key"))
    await until(lambda: single.connection.is_connected)
    await client.connection_pool.aclose()
    own_server.thaw()

    with pytest.raises(PoolClosedError):
        await calling
    await single.aclose()


async def test_dead_pinned_connection_is_released_on_close(make_client, proxy, server):
    client = make_client(proxy.url, max_connections=1)
    for alters in (True, False):
        single = client.client()
        await single.ping()
        if alters:
            await single.select(2)
        proxy.cut()
        await single.aclose()
        assert await client.get("key") is None
        assert "0 used" in repr(client.connection_pool)


async def test_client_overriding_parse_response_retries(make_pool, proxy, down, until):
    class Parsing(MonitoredRedisConnection):
        async def parse_response(self, connection, command_name, **options):
            return await super().parse_response(connection, command_name, **options), "parsed"

    client = Parsing(connection_pool=make_pool(proxy.url))
    assert (1, "parsed") == await client.incr("key")
    async with down(until) as tried:
        calling = asyncio.ensure_future(client.incr("key"))
        await tried()
    assert (2, "parsed") == await calling
    with pytest.raises(DedicatedConnectionError):
        await client.wait(0, 10)


async def test_pinned_client_stops_retrying_at_deadline(make_client, proxy):
    client = make_client(proxy.url, socket_timeout=0.3)
    redirect_nowhere(proxy)
    for call in (watch, first_call, first_call_of_a_lazy_handle):
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionError):
                await call(client)


async def test_queue_get_raises_on_lost_pinned_client(make_client, server, inspector):
    async with make_client(server.url).client() as single:
        await single.client_setname("consumer")
        inspector.client_kill_filter(_id=await single.client_id())

        async with asyncio.timeout(30):
            with pytest.raises(PinnedConnectionLostError):
                await MessageQueue("mail", single).get(timeout=None)


async def test_pinned_client_of_plain_pool_behaves_as_in_redis_py(proxy):
    async with redis.asyncio.ConnectionPool.from_url(proxy.url) as pool:
        single = MonitoredRedisConnection(connection_pool=pool, single_connection_client=True)
        await single.ping()
        proxy.cut_replies = 1
        with pytest.raises(ConnectionError):
            await single.get("key")
        before = await single.client_id()
        single.connection.mark_for_reconnect()
        assert await single.get("key") is None
        assert before != await single.client_id()
        await single.aclose()


@pytest.mark.parametrize("is_refused", [True, False])
async def test_monitor_start_failure_leaks_no_connection(make_pool, is_refused):
    asked = []

    def answer(_, args):
        asked.append(args[0])
        return b"-ERR not for you\r\n" if is_refused else None if len(asked) < 3 else b"+OK\r\n"

    async with scripted(answer) as port:
        client = MonitoredRedisConnection(connection_pool=make_pool(f"redis://127.0.0.1:{port}", protocol=2))
        if is_refused:
            with pytest.raises(redis.ResponseError):
                await client.monitor().__aenter__()
        else:
            async with client.monitor():
                assert [b"MONITOR"] * 3 == asked
        assert 0 == client.connection_pool.stats().used
        await client.connection_pool.aclose()


async def test_monitor_works_on_plain_pool(server):
    async with redis.asyncio.ConnectionPool.from_url(server.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert 1 == await monitor(client)


# Closed by another task


CLOSED_MESSAGE = "was closed, or reset"


@pytest.fixture(params=["multiplexed", "pooled", "plain"])
async def any_pool(request, make_pool):
    """Yield pools of every kind."""
    made = []

    def make(url, **arguments):
        if request.param == "plain":
            made.append(redis.asyncio.BlockingConnectionPool.from_url(url, **arguments))
            return made[-1]
        return make_pool(url, multiplex=request.param == "multiplexed", **arguments)

    yield make
    for pool in made:
        await pool.aclose()


def plain_pool(url):
    """Return a plain pool that pauses before its only retry."""
    return redis.asyncio.ConnectionPool.from_url(
        url, retry=Retry(ConstantBackoff(0.2), 1), retry_on_error=[ConnectionError]
    )


def acquired_count(pool):
    return len(acquired_connections_of(pool))


async def get(single):
    return await single.get("key")


async def add(single):
    return await single.incr("key")


async def pop(single):
    return await single.blpop("nothing", timeout=600)


async def get_message(single):
    return await MessageQueue("mail", single).get(timeout=None)


async def acquire(single):
    return await single.lock("job").acquire()


@pytest.mark.parametrize("call", [get, add, pop, get_message, acquire])
async def test_pinned_client_call_raises_and_releases_when_closed_concurrently(any_pool, own_server, until, call):
    client = MonitoredRedisConnection(connection_pool=any_pool(own_server.url))
    await client.ping()
    before = acquired_count(client.connection_pool)
    single = client.client()
    await single.ping()
    async with frozen(own_server):
        # The second call waits for the connection.
        calls = await begun(call(single), get(single))
        await single.aclose()
        await asyncio.wait(calls, timeout=15)
        assert [PinnedConnectionLostError] * 2 == [type(each.exception()) for each in calls]
        assert CLOSED_MESSAGE in str(calls[0].exception())
        assert before == acquired_count(client.connection_pool)

    # A new call starts on a new connection.
    assert await single.get("other") is None
    assert before + 1 == acquired_count(client.connection_pool)
    async with single:
        assert await single.get("other") is None
    assert before == acquired_count(client.connection_pool)


@pytest.mark.parametrize("is_first", [True, False])
async def test_pinned_client_can_be_closed_at_any_tick(any_pool, server, is_first):
    client = MonitoredRedisConnection(connection_pool=any_pool(server.url))
    await client.ping()
    before = acquired_count(client.connection_pool)
    # In the first tick, the calls start.
    for ticks in range(1, 60):
        single = client.client()
        if not is_first:
            await single.ping()
        calls = [asyncio.ensure_future(call(single)) for call in (get, add)]
        for _ in range(ticks):
            await asyncio.sleep(0)
        await single.aclose()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(outcome) for outcome in outcomes}
        assert kinds <= {type(None), bytes, int, PinnedConnectionLostError}, (ticks, outcomes)
        assert [None, before] == [single.connection, acquired_count(client.connection_pool)], ticks


async def test_pinned_client_call_raises_when_closed_during_backoff(make_client, proxy, down, until):
    client = make_client(proxy.url)
    await client.ping()
    before = acquired_count(client.connection_pool)
    for call in (get, add, get_message):
        single = client.client()
        await single.ping()
        async with down(until) as tried:
            calling = asyncio.ensure_future(call(single))
            await tried()
            await single.aclose()
            with pytest.raises(PinnedConnectionLostError, match=CLOSED_MESSAGE):
                await calling
        await client.ping()
        assert [None, before] == [single.connection, acquired_count(client.connection_pool)]


@pytest.mark.parametrize("call", [get, acquire, watch])
async def test_pinned_client_of_plain_pool_raises_when_closed_before_retry(proxy, until, call):
    async with plain_pool(proxy.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        single = client.pipeline() if call == watch else client.client()
        await (single.watch("other") if call == watch else single.ping())
        await (single.unwatch() if call == watch else single.ping())
        proxy.cut_replies = 1
        calling = asyncio.ensure_future(single.watch("key") if call == watch else call(single))
        await until(lambda: not proxy.cut_replies)
        # The call pauses, or is about to.
        await single.aclose()
        with pytest.raises(PinnedConnectionLostError, match=CLOSED_MESSAGE):
            await calling
        assert [None, 0] == [single.connection, acquired_count(pool)]


async def test_client_without_pinned_connection_keeps_calls_running_when_closed(proxy, until):
    async with plain_pool(proxy.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        proxy.cut_replies = 1
        calling = asyncio.ensure_future(client.get("key"))
        await until(lambda: not proxy.cut_replies)
        await client.aclose()
        assert await calling is None


@pytest.mark.parametrize("call", [get, get_message, MonitoredRedisConnection.initialize])
async def test_pinned_client_closed_while_acquiring_keeps_no_connection(any_pool, server, call):
    pool = any_pool(server.url, max_connections=1, timeout=600)
    single = MonitoredRedisConnection(connection_pool=pool).client()
    other = await pool.get_connection()
    (calling,) = await begun(call(single))
    await single.aclose()
    await pool.release(other)

    with pytest.raises(PinnedConnectionLostError, match=CLOSED_MESSAGE):
        await calling
    assert [None, 0] == [single.connection, acquired_count(pool)]


async def watched_get(pipe):
    return await pipe.get("key")


async def watched_add(pipe):
    return await pipe.incr("key")


async def watch_more(pipe):
    return await pipe.watch("other")


async def watched_batch(pipe):
    pipe.multi()
    return await pipe.incr("key").execute()


@pytest.mark.parametrize("call", [watched_get, watched_add, watch_more, watched_batch])
async def test_watching_pipeline_call_raises_and_releases_when_reset_concurrently(any_pool, own_server, call):
    pool = any_pool(own_server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    before = acquired_count(pool)
    pipe = client.pipeline()
    await pipe.watch("key")
    async with frozen(own_server):
        (calling,) = await begun(call(pipe))
        await pipe.reset()
        await asyncio.wait([calling], timeout=15)
        with pytest.raises(PinnedConnectionLostError, match=CLOSED_MESSAGE):
            await calling
        assert [None, False, before] == [pipe.connection, pipe.watching, acquired_count(pool)]

    await pipe.watch("key")
    pipe.multi()
    assert [True] == await pipe.set("key", "value").execute()
    assert before == acquired_count(pool)


async def test_watch_raises_when_pipeline_is_reset_during_backoff(make_client, proxy, down, until):
    client = make_client(proxy.url)
    await client.ping()
    before = acquired_count(client.connection_pool)
    pipe = client.pipeline()
    await pipe.watch("key")
    await pipe.unwatch()
    async with down(until) as tried:
        calling = asyncio.ensure_future(pipe.watch("key"))
        await tried()
        await pipe.reset()
        with pytest.raises(PinnedConnectionLostError, match=CLOSED_MESSAGE):
            await calling
    await client.ping()
    assert [None, False, before] == [pipe.connection, pipe.watching, acquired_count(client.connection_pool)]


async def test_concurrent_first_watches_acquire_one_connection(any_pool, server):
    pool = any_pool(server.url, max_connections=3)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    before = acquired_count(pool)
    pipe = client.pipeline()
    await asyncio.gather(pipe.watch("first"), pipe.watch("second"), return_exceptions=True)
    assert before + 1 == acquired_count(pool)
    await pipe.reset()
    assert before == acquired_count(pool)


async def test_watch_reset_in_tick_of_its_reply_watches_nothing(any_pool, server):
    pool = any_pool(server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    before = acquired_count(pool)
    pipe = client.pipeline()

    async def ask_and_reset(*args, **options):
        reply = await ask(*args, **options)
        await asyncio.create_task(pipe.reset())
        pipe.watching = True
        return reply

    ask = replace_ask(pipe, ask_and_reset)
    await pipe.watch("key")

    assert [None, False, before] == [pipe.connection, pipe.watching, acquired_count(pool)]


# Pipelines that watch.


async def test_lost_watch_raises_on_every_call_until_watched_again(make_client, own_server):
    client = make_client(own_server.url)
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        own_server.kill()
        await asyncio.to_thread(own_server.start)
        for call in (pipe.get, pipe.get, pipe.incr, pipe.unwatch):
            with pytest.raises(WatchError, match="begin again with watch"):
                await (call() if call == pipe.unwatch else call("key"))
        pipe.multi()
        with pytest.raises(WatchError, match="begin again with watch"):
            await pipe.set("key", "unwatched").execute()

        # Now the pipeline starts on a new connection.
        await pipe.watch("key")
        assert await pipe.get("key") is None
        pipe.multi()
        assert [True] == await pipe.set("key", "watched").execute()


async def test_lost_watch_is_detected_by_health_check(make_client, proxy):
    client = make_client(proxy.url, socket_timeout=0.5, health_check_interval=600)
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        pipe.connection.next_health_check = 0
        proxy.silent = True
        pipe.multi()
        with pytest.raises(WatchError, match="was lost: begin again with watch"):
            await pipe.set("key", "mine").execute()
        proxy.cut()
        proxy.silent = False

    attempts = []

    async def add(pipe):
        attempts.append(len(attempts))
        if len(attempts) == 1:
            pipe.connection.next_health_check = 0
            proxy.cut_replies = 1
        pipe.multi()
        pipe.incr("count")

    assert [1] == await client.transaction(add, "key")
    assert [0, 1] == attempts


async def test_lost_watch_can_be_restarted_immediately(make_client, server, inspector):
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("key")
        identity = await pipe.client_id()
        inspector.client_kill_filter(_id=identity)
        with pytest.raises(WatchError):
            await pipe.get("key")
        await pipe.watch("key")
        assert identity != await pipe.client_id()
        inspector.set("key", "changed")
        pipe.multi()
        with pytest.raises(WatchError, match="variable changed"):
            await pipe.set("key", "mine").execute()


async def test_second_watch_raises_when_first_was_lost(make_client, server, inspector):
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("first")
        inspector.client_kill_filter(_id=await pipe.client_id())
        with pytest.raises(WatchError):
            await pipe.watch("second")


async def lose_by_timeout(pipe):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pipe.blpop("other", 60)


async def lose_by_disconnecting(pipe):
    await pipe.connection.disconnect()


async def lose_by_reconnect_mark(pipe):
    pipe.connection.mark_for_reconnect()
    await pipe.get("other")


@pytest.mark.parametrize(
    ("kind", "lose"),
    [
        ("ours", lose_by_timeout),
        ("ours", lose_by_disconnecting),
        ("ours", lose_by_reconnect_mark),
        ("plain", lose_by_timeout),
        ("plain", lose_by_disconnecting),
    ],
)
async def test_no_later_call_forgets_a_watch_whose_loss_was_not_raised(make_pool, server, inspector, kind, lose):
    pool = make_pool(server.url) if kind == "ours" else plain_pool(server.url)
    async with MonitoredRedisConnection(connection_pool=pool) as client:
        for later in ("watch", "get", "unwatch", "execute"):
            async with client.pipeline() as pipe:
                await pipe.watch("first")
                await lose(pipe)
                inspector.incr("first")
                if later == "execute":
                    pipe.multi()
                    pipe.set("first", 0)
                with pytest.raises(WatchError, match="was lost"):
                    await getattr(pipe, later)(*["second"] * (later in {"watch", "get"}))
    await pool.aclose()

    assert b"4" == inspector.get("first")


@pytest.mark.parametrize("kind", ["ours", "plain"])
async def test_watch_begins_anew_once_its_loss_was_raised(make_pool, server, inspector, kind):
    pool = make_pool(server.url) if kind == "ours" else plain_pool(server.url)
    async with MonitoredRedisConnection(connection_pool=pool).pipeline() as pipe:
        await pipe.watch("first")
        await pipe.connection.disconnect()
        with pytest.raises(WatchError):
            await pipe.watch("second")
        await pipe.watch("second")
        inspector.incr("first")
        pipe.multi()

        assert [True] == await pipe.set("first", 7).execute()
    await pool.aclose()


async def test_health_check_of_a_plain_pool_forgets_no_watch(server, inspector):
    # redis-py connects anew while it sends.
    options = {"health_check_interval": 1000, "retry": Retry(ConstantBackoff(0), 3)}
    pool = redis.asyncio.ConnectionPool.from_url(server.url, **options)
    async with MonitoredRedisConnection(connection_pool=pool).pipeline() as pipe:
        await pipe.watch("key")
        inspector.client_kill_filter(_id=await pipe.client_id())
        pipe.connection.next_health_check = 0
        pipe.multi()
        with pytest.raises(WatchError):
            await pipe.set("key", 7).execute()
    await pool.aclose()

    assert inspector.get("key") is None


async def test_transaction_does_not_repeat_batch_that_may_have_run(make_client, proxy, inspector):
    client = make_client(proxy.url)

    async def add(pipe):
        before = int(await pipe.get("key") or 0)
        proxy.cut_replies = 1
        pipe.multi()
        pipe.set("key", before + 1)

    with pytest.raises(ConnectionError):
        await client.transaction(add, "key")

    assert b"1" == inspector.get("key")


async def test_transaction_does_not_repeat_immediate_write_that_may_have_run(make_client, proxy, inspector):
    def add(pipe):
        proxy.cut_replies = 1
        return pipe.incr("other")

    with pytest.raises(ConnectionError):
        await make_client(proxy.url).transaction(add, "key")

    assert b"1" == inspector.get("other")


@pytest.fixture
def ends_when_asked(monkeypatch, server):
    """Return what ends a connection just after a handle has found that it is not lost, before it is used."""
    is_lost, connections = attempts.is_lost, []

    def end(pool, connection):
        found = is_lost(pool, connection)
        if connections and connections[0] is connection:
            connections.clear()
            host, port = transport_of(connection).get_extra_info("sockname")
            server.call("CLIENT", "KILL", "ADDR", f"{host}:{port}")
            deadline = time.monotonic() + 30
            while not is_lost(pool, connection):
                assert time.monotonic() < deadline
        return found

    monkeypatch.setattr(pinned, "is_lost", end)
    return connections.append


@pytest.mark.parametrize("ends_before", ["get", "execute"])
async def test_watch_is_not_forgotten_when_connection_ends_while_it_is_looked_at(
    make_client, server, inspector, ends_when_asked, ends_before
):
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("key")
        inspector.set("key", 1)
        if ends_before == "execute":
            pipe.multi()
            pipe.set("key", 7)
        ends_when_asked(pipe.connection)
        with pytest.raises(WatchError, match="was lost"):
            await (pipe.execute() if ends_before == "execute" else pipe.get("key"))

    assert b"1" == inspector.get("key")


async def test_watching_pipeline_error_says_batch_may_have_run(make_client, proxy, inspector):
    async with make_client(proxy.url).pipeline() as pipe:
        await pipe.watch("key")
        pipe.multi()
        proxy.cut_replies = 1
        with pytest.raises(WatchError, match="may have run"):
            await pipe.incr("key").execute()

    assert b"1" == inspector.get("key")


async def test_watching_pipeline_error_says_once_write_may_have_run(make_client, proxy, inspector):
    async with make_client(proxy.url).pipeline() as pipe:
        await pipe.watch("key")
        proxy.cut_replies = 1
        with pytest.raises(WatchError, match="may have run"):
            await pipe.incr("other")
        for _ in range(2):
            with pytest.raises(WatchError, match="was lost: begin"):
                await pipe.incr("other")

    assert b"1" == inspector.get("other")


async def test_transaction_restarts_after_lost_read(make_client, proxy, inspector):
    attempts = []

    async def add(pipe):
        attempts.append(pipe)
        proxy.cut_replies = len(attempts) % 2
        before = int(await pipe.get("key") or 0)
        pipe.multi()
        pipe.set("key", before + 1)

    client = make_client(proxy.url)
    for number in range(1, 6):
        assert [True] == await client.transaction(add, "key")
        assert b"%d" % number == inspector.get("key")
        assert 2 * number == len(attempts)


async def test_watch_is_resent_when_its_reply_is_lost(make_client, proxy):
    client = make_client(proxy.url)
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        await pipe.unwatch()
        proxy.cut_replies = 1
        await pipe.watch("key")
        pipe.multi()
        assert [1] == await pipe.incr("key").execute()


async def test_altered_pipeline_raises_after_connection_loss(make_client, server, inspector):
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("key")
        await pipe.execute_command("SELECT", 2)
        inspector.client_kill_filter(_id=await pipe.client_id())
        with pytest.raises(WatchError):
            await pipe.get("key")
        with pytest.raises(PinnedConnectionLostError):
            await pipe.watch("key")
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("key")
        await pipe.execute_command("SELECT", 2)
        identity = await pipe.client_id()
        await pipe.unwatch()
        inspector.client_kill_filter(_id=identity)
        with pytest.raises(PinnedConnectionLostError):
            await pipe.set("key", "in database 0").execute()

    assert inspector.get("key") is None


async def test_lost_watch_is_detected_by_script_loading(make_client, server, inspector):
    client = make_client(server.url)
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        inspector.client_kill_filter(_id=await pipe.client_id())
        pipe.multi()
        await script(["key"], client=pipe)
        with pytest.raises(WatchError, match="begin again with watch"):
            await pipe.execute()

    assert inspector.get("key") is None


async def test_unwatched_pipeline_gets_new_connection_after_connection_loss(make_client, server, inspector):
    async with make_client(server.url).pipeline() as pipe:
        await pipe.watch("key")
        identity = await pipe.client_id()
        await pipe.unwatch()
        inspector.client_kill_filter(_id=identity)

        assert [1] == await pipe.incr("key").execute()


async def test_pipeline_exit_does_not_reconnect_after_lost_watch(make_client, proxy):
    client = make_client(proxy.url, socket_timeout=600)
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        proxy.cut_replies = 1
        with pytest.raises(WatchError):
            await pipe.get("key")
        accepted = proxy.accepted
    assert accepted == proxy.accepted
    assert await client.get("key") is None


async def test_transaction_is_retried_while_server_is_loading(make_pool):
    asked = []

    def answer(connection, args):
        asked.append(args[0])
        if args[0] == b"GET" and asked.count(b"GET") < 3:
            return b"-LOADING Redis is loading the dataset in memory\r\n"
        if args[0] == b"EXEC":
            return b"*1\r\n:1\r\n"
        return {b"GET": b"$1\r\n7\r\n", b"INCRBY": b"+QUEUED\r\n"}.get(args[0], b"+OK\r\n")

    async def add(pipe):
        await pipe.get("key")
        pipe.multi()
        pipe.incr("key")

    async with scripted(answer) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}", protocol=2)
        assert [1] == await MonitoredRedisConnection(connection_pool=pool).transaction(add, "key")
        await pool.aclose()

    assert 3 == asked.count(b"WATCH")


async def test_watching_pipeline_of_plain_pool_raises_redis_error_when_cut(proxy):
    async with redis.asyncio.ConnectionPool.from_url(proxy.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            proxy.cut()
            with pytest.raises(RedisError):
                await pipe.get("key")
