"""Cancellation that is repeated at every await, as anyio does in the task groups of Starlette."""

import asyncio
import logging
import subprocess
import sys

import anyio
import pytest
import redis
import redis.asyncio
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route
from support.consuming import blocked, held
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import Components, MessageQueue, MonitoredRedisConnection, RedisContextFactory, RedisMiddleware
from aioredis_monitored._cancellation import cleaning_up, complete_shielded, shielded, wait_shielded

# An await that is cancelled repeatedly is cancelled some thousand times a second.
FEW = 20


async def cancelled(scope):
    scope.cancel()
    await anyio.sleep_forever()


@pytest.mark.parametrize("thread_local", [True, False])
async def test_lock_is_released_when_cancel_scope_is_cancelled(make_client, server, inspector, thread_local):
    client = make_client(server.url)
    with anyio.CancelScope() as scope:
        async with client.lock("job", thread_local=thread_local):
            assert inspector.exists("job")
            await cancelled(scope)

    assert scope.cancelled_caught
    assert not inspector.exists("job")


async def test_lock_acquire_returns_immediately_and_is_undone_when_cancelled(make_client, server, inspector, until):
    client = make_client(server.url)
    await client.ping()
    inspector.client_pause(600_000, all=False)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(client.lock("job").acquire)
            await until(lambda: blocked(inspector))
            group.cancel_scope.cancel()
        assert blocked(inspector)
    finally:
        inspector.client_unpause()
    # The work is undone before this pool is closed.
    await client.connection_pool.aclose()

    assert not inspector.exists("job")


async def test_failed_lock_release_does_not_hide_scope_cancellation(make_client, own_server, caplog, monkeypatch):
    monkeypatch.setattr("aioredis_monitored.client.lock._UNDO_SECONDS", 0.5)
    client = make_client(own_server.url, socket_timeout=0.2, retries=0)
    with anyio.CancelScope() as scope, caplog.at_level(logging.WARNING):
        async with client.lock("job"):
            own_server.kill()
            await cancelled(scope)

    assert scope.cancelled_caught
    assert ["lock 'job': releasing it failed while its task was being cancelled: ConnectionError"] == caplog.messages


@pytest.mark.parametrize("seconds", [600, None])
@pytest.mark.parametrize("what", ["lock", "pipeline"])
async def test_cancel_scope_exits_in_time_on_frozen_server(make_client, own_server, until, what, seconds):
    client = make_client(own_server.url, socket_timeout=seconds)

    async def work():
        with anyio.CancelScope() as scope:
            if what == "lock":
                async with client.lock("job"):
                    own_server.freeze()
                    await cancelled(scope)
            async with client.pipeline() as pipe:
                await pipe.watch("key")
                own_server.freeze()
                await cancelled(scope)
        return scope.cancelled_caught

    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait([working], timeout=15)
        assert working.done()
    finally:
        own_server.thaw()
    assert await working
    with redis.Redis.from_url(own_server.url) as inspector:
        await until(lambda: not inspector.exists("job"))


class Handler:
    """A handler that keeps its messages until it may continue."""

    def __init__(self):
        self.begun, self.handled = [], []
        self.may_go_on = asyncio.Event()

    async def __call__(self, message):
        self.begun.append(message)
        await self.may_go_on.wait()
        self.handled.append(message)


@pytest.fixture
def queue(make_client, server):
    return MessageQueue("mail", make_client(server.url), lease=1)


async def test_consume_drains_when_cancel_scope_is_cancelled(queue, inspector, until):
    handler, tasks = Handler(), []

    async def consume():
        tasks.append(asyncio.current_task())
        await queue.consume(handler, concurrency=2)

    await queue.put_many(range(3))
    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await until(lambda: len(handler.begun) == 2)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.1)
            assert [] == handler.handled
            assert not tasks[0].done()
            handler.may_go_on.set()

    assert [b"0", b"1"] == sorted(handler.handled)
    assert [[b"2"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]
    assert tasks[0].cancelling() < FEW


async def test_consume_cancels_handlers_when_task_is_cancelled_after_scope(queue, inspector, until):
    handler, tasks = Handler(), []

    async def consume():
        tasks.append(asyncio.current_task())
        await queue.consume(handler, concurrency=2)

    await queue.put_many(range(3))
    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await until(lambda: len(handler.begun) == 2)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(10):
                await asyncio.sleep(0)
            assert not tasks[0].done()
            tasks[0].cancel()

    assert [] == handler.handled
    left = inspector.lrange("mail", 0, -1)
    assert [[b"0", b"1"], [b"2"], []] == [sorted(left[:2]), left[2:], held(inspector)]


async def test_consume_cancels_handlers_when_scope_is_cancelled_after_task(queue, inspector, until):
    handler, tasks = Handler(), []

    async def consume():
        tasks.append(asyncio.current_task())
        await queue.consume(handler)

    await queue.put(b"message")
    async with anyio.create_task_group() as group:
        group.start_soon(consume)
        await until(lambda: handler.begun)
        tasks[0].cancel()
        await begun()
        group.cancel_scope.cancel()

    assert [] == handler.handled
    assert [[b"message"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]
    assert tasks[0].cancelling() < FEW


@pytest.mark.parametrize("ways", [1, 2])
async def test_held_message_returns_to_queue_head_when_cancelled(queue, inspector, ways):
    await queue.put_many([b"first", b"second"])
    before = asyncio.current_task().cancelling()
    with anyio.CancelScope() as scope:
        if ways == 1:
            async with queue.take() as message:
                assert b"first" == message
                await cancelled(scope)
        async with queue:
            # The closing queue puts the message back.
            await queue.take().__aenter__()
            await cancelled(scope)

    assert scope.cancelled_caught
    assert before == asyncio.current_task().cancelling()
    assert [[b"first", b"second"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]


async def cancel_when_blocked(scope, inspector):
    while not blocked(inspector):
        await asyncio.sleep(0.001)
    scope.cancel()
    inspector.client_unpause()


async def test_ack_completes_when_cancelled(queue, inspector):
    for _ in range(2):
        inspector.rpush("mail", "message")
    async with queue.take():
        pass
    async with anyio.create_task_group() as group, queue.take():
        inspector.client_pause(600_000, all=False)
        group.start_soon(cancel_when_blocked, group.cancel_scope, inspector)

    assert [0, []] == [inspector.llen("mail"), held(inspector)]


@pytest.mark.parametrize("fetch", ["get", "take"])
async def test_in_flight_message_is_restored_when_fetch_is_cancelled(queue, inspector, until, fetch):
    async def wait():
        if fetch == "get":
            await queue.get()
        else:
            async with queue.take():
                await anyio.sleep_forever()

    tasks = []

    async def run():
        tasks.append(asyncio.current_task())
        await wait()

    for _ in range(3):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await until(lambda: blocked(inspector))
            inspector.rpush("mail", "message")
            group.cancel_scope.cancel()
        assert [[b"message"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]
        inspector.delete("mail")

    assert max(task.cancelling() for task in tasks) < FEW


async def test_pool_and_clients_close_when_their_block_is_cancelled(make_pool, server, inspector, multiplex):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    own = MonitoredRedisConnection(host=server.host, port=server.port, **UNRECORDED)
    with anyio.CancelScope() as scope:
        async with pool, own, client.client() as single:
            for each in (client, own, single):
                await each.ping()
            await cancelled(scope)

    assert scope.cancelled_caught
    # Closed, and no longer closing.
    assert [0, 0] == [pool.stats().used, pool.stats().idle]
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_aclose_in_finally_completes_when_cancelled(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED, multiplex=False))
    single = client.client()
    with anyio.CancelScope() as scope:
        try:
            await single.ping()
            await cancelled(scope)
        finally:
            await single.aclose()
            await client.connection_pool.aclose()

    assert scope.cancelled_caught
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_watch_ends_and_connection_is_released_when_cancelled(make_client, server, inspector):
    client = make_client(server.url)
    with anyio.CancelScope() as scope:
        async with client.pipeline() as pipe:
            await pipe.watch("key")
            await cancelled(scope)

    assert scope.cancelled_caught
    assert not client.connection_pool._in_use_connections
    async with client.pipeline() as pipe:
        await pipe.watch("other")
        inspector.set("key", 1)
        pipe.multi()
        assert [True] == await pipe.set("other", 1).execute()


async def test_subscription_ends_when_cancelled(make_client, server, inspector, until):
    client = make_client(server.url)
    with anyio.CancelScope() as scope:
        async with client.pubsub() as subscription:
            await subscription.subscribe("news")
            assert await subscription.get_message(timeout=5)
            await cancelled(scope)

    assert scope.cancelled_caught
    assert subscription.connection is None
    await until(lambda: not inspector.pubsub_numsub("news")[0][1])


async def test_components_close_when_cancelled(server):
    components = Components({"redis.logs.url": server.url}, **UNRECORDED)

    @components.redis_connection("logs")
    async def ping(connection):
        await connection.ping()
        return connection.connection_pool

    with anyio.CancelScope() as scope:
        async with components:
            pool = await ping()
            await cancelled(scope)

    assert scope.cancelled_caught
    assert [0, 0] == [pool.stats().used, pool.stats().idle]
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_http_disconnect_releases_lock_of_streaming_response(pool, server, inspector, until):
    """Starlette streams in a task group, and cancels it when the client has hung up."""
    states = []

    async def stream(request):
        async def chunks():
            async with request.state.redis.lock("job"):
                states.append(inspector.exists("job"))
                yield b"chunk"
                await anyio.sleep_forever()

        return StreamingResponse(chunks())

    app = Starlette(routes=[Route("/", stream)], lifespan=(factory := RedisContextFactory(pool)).lifespan)
    app.add_middleware(RedisMiddleware, factory=factory)
    sent = asyncio.Event()

    async def receive():
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message.get("body"):
            sent.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [],
        "query_string": b"",
        "asgi": {"version": "3.0"},
    }
    await app(scope, receive, send)

    assert [1] == states
    assert not inspector.exists("job")


# Cancellation policy.


async def test_cleaning_up_logs_errors_only_while_task_is_cancelled(caplog):
    async def work(awaited):
        try:
            await awaited
        finally:
            with cleaning_up("a test"):
                raise LookupError("secret")

    others = asyncio.ensure_future(asyncio.Event().wait())
    (ended, waiting, cancelled) = await begun(work(asyncio.sleep(0)), work(others), work(asyncio.Event().wait()))
    others.cancel()
    await asyncio.wait([ended, waiting])
    assert [LookupError, LookupError] == [type(task.exception()) for task in (ended, waiting)]
    assert [] == caplog.messages
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert ["a test failed while its task was being cancelled: LookupError"] == caplog.messages


async def test_complete_shielded_logs_failure_when_cancelled(caplog):
    async def attempt():
        await asyncio.sleep(0.01)
        raise LookupError("secret")

    (task,) = await begun(complete_shielded("a test", attempt, 5))
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert ["a test failed while its task was being cancelled: LookupError"] == caplog.messages


@pytest.mark.parametrize("is_plain", [True, False])
async def test_cancelled_watching_pipeline_exits_without_waiting_for_reply(
    make_pool, own_server, caplog, multiplex, is_plain
):
    if is_plain:
        pool = redis.asyncio.ConnectionPool.from_url(own_server.url, socket_timeout=600)
    else:
        pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=600)
    is_watching = asyncio.Event()

    async def watch():
        async with MonitoredRedisConnection(connection_pool=pool).pipeline() as pipe:
            await pipe.watch("key")
            is_watching.set()
            await asyncio.Event().wait()

    (watching,) = await begun(watch())
    await is_watching.wait()
    async with frozen(own_server):
        watching.cancel()
        await asyncio.wait([watching], timeout=15)
        assert watching.cancelled()
        assert not pool._in_use_connections
    await pool.aclose()

    assert [] == caplog.messages


async def test_pipeline_exit_unwatches_and_keeps_connection(make_client, server, inspector):
    client = make_client(server.url)
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        connected = inspector.info("stats")["total_connections_received"]
    async with client.pipeline() as pipe:
        await pipe.watch("other")
        inspector.set("key", 1)
        pipe.multi()
        assert [True] == await pipe.set("other", 1).execute()

    assert connected == inspector.info("stats")["total_connections_received"]


async def test_wait_shielded_does_not_busy_loop_under_repeated_cancellation():
    future = asyncio.get_running_loop().create_future()
    tasks = []

    async def wait():
        tasks.append(asyncio.current_task())
        assert await wait_shielded(future, asyncio.get_running_loop().time() + 60)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await begun()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.1)
            future.set_result(None)

    assert tasks[0].cancelling() < FEW


async def test_shielded_uses_anyio_scope_only_inside_cancelled_scope():
    shields = []

    async def look():
        shields.append(isinstance(shielded(), anyio.CancelScope))

    await look()
    with anyio.CancelScope() as scope:
        await look()
        scope.cancel()
        await look()
        with anyio.CancelScope(shield=True):
            await look()

    assert [False, False, True, False] == shields


def test_package_does_not_import_anyio(server):
    program = """
import asyncio, sys
from aioredis_monitored import MonitoredRedisConnection

async def main():
    async with MonitoredRedisConnection.from_url(sys.argv[1]) as client:
        async with asyncio.timeout(5), client.lock("job", timeout=5):
            pass
    assert "anyio" not in sys.modules

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program, server.url], check=True)  # noqa: S603 - this Python
