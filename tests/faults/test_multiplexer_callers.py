"""The callers of the shared connection: late replies, callers that leave, and what happens after that."""

import asyncio
import math
import time
from contextvars import ContextVar

import pytest
import redis
from support.internals import pretend_idle, shared_connection_of, wrap_callbacks, wrap_queue_timeout
from support.scripted import scripted
from support.sharing import begun, call_with_orphan_handler, client_of, frozen

# The largest size for requests on the main connection.
VALUE = b"x" * 60_000
LARGE = b"x" * 200_000


# Deadlines.


async def test_timed_out_command_raises_redis_py_timeout_and_keeps_connection(make_pool, until):
    released = {b"in time": asyncio.Event(), b"late": asyncio.Event()}

    async def answered(_, args):
        if args[1] in released:
            await released[args[1]].wait()
        return b"$%d\r\n%s\r\n" % (len(args[1]), args[1])

    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", protocol=2, socket_timeout=6)
        connection = await client.echo(0) and shared_connection_of(client)
        started = time.monotonic()
        in_time, late, behind = await begun(*map(client.echo, ("in time", "late", "behind it")))
        await until(lambda: time.monotonic() - started > 3)
        released[b"in time"].set()
        with pytest.raises(redis.TimeoutError, match=rf"^Timeout reading from 127.0.0.1:{port}$"):
            await late
        released[b"late"].set()

        # A reply arrived within the late call's deadline: the connection stays in use, and the late reply is discarded.
        assert [b"in time", b"next"] == [await in_time, await client.echo("next")]
        with pytest.raises(redis.TimeoutError):
            await behind
        assert connection is shared_connection_of(client)
        await client.connection_pool.aclose()


async def test_stalled_connection_takes_no_commands_and_closes_after_last_caller(make_pool, own_server, until):
    client = client_of(make_pool, own_server.url, socket_timeout=6, retries=0)
    with redis.Redis.from_url(own_server.url) as inspector:
        stuck = await client.client_id()
        connection = shared_connection_of(client)
        async with frozen(own_server):
            first = await begun(client.get("key"), client.pipeline().incr("lost").execute())
            started = time.monotonic()
            await until(lambda: time.monotonic() - started > 3)
            last = await begun(client.incr("in time"))
            for call in first:
                with pytest.raises(redis.TimeoutError):
                    await call
            assert (False, False) == (connection.is_open, connection.closing.done())
        assert [1] == await asyncio.gather(*last)

        await until(connection.closing.done)
        assert stuck != await client.client_id()
        assert 2 == len(inspector.client_list())


@pytest.mark.parametrize("socket_timeout", [60, None])
async def test_retired_connection_delivers_in_flight_replies(make_pool, own_server, until, socket_timeout):
    client = client_of(make_pool, own_server.url, socket_timeout=socket_timeout)
    before = await client.client_id()
    async with frozen(own_server):
        calls = await begun(*(client.incr("key") for _ in range(10)))
        client.connection_pool.retire_connections(math.inf)
        calls += await begun(*(client.incr("key") for _ in range(10)))

    assert list(range(1, 21)) == sorted(await asyncio.gather(*calls))
    assert before != await client.client_id()


# Cancellation.


async def test_cancelled_caller_returns_immediately_and_keeps_connection(make_pool, own_server):
    client = client_of(make_pool, own_server.url)
    identity = await client.client_id()
    async with frozen(own_server):
        calls = await begun(
            *(call for n in range(50) for call in (client.echo(n), client.pipeline().incr(n).execute()))
        )
        stays = calls[50]
        for call in calls:
            if call is not stays:
                call.cancel()
        assert {asyncio.CancelledError} == {
            type(e) for e in await asyncio.gather(*(c for c in calls if c is not stays), return_exceptions=True)
        }
        assert not stays.done()

    assert b"25" == await stays
    assert [b"1"] * 50 == await client.mget(range(50))
    assert identity == await client.client_id()


async def test_queued_command_is_never_sent_when_cancelled(make_pool, own_server, inspector):
    client = client_of(make_pool, own_server.url)
    async with frozen(own_server):
        calls = await begun(client.incr("key"), client.pipeline().incr("key").execute(), client.incr("key"))
        for call in calls[:2]:
            call.cancel()

    assert 1 == await calls[2]


class Moment:
    """A call with an orphan handler that is cancelled at one moment, and what its handler was given."""

    def __init__(self, client):
        self.given = []
        self.call = call_with_orphan_handler(client, self.given.append, "INCR", "key")


@pytest.mark.parametrize("moment", ["unconnected", "unwritten", "pending", "late", "just arrived", "lost", "awaited"])
async def test_orphan_handler_receives_reply_of_cancelled_caller_once(make_pool, own_server, until, moment):
    client = client_of(make_pool, own_server.url, socket_timeout=2 if moment == "late" else 60)
    orphan = Moment(client)
    if moment != "unconnected":
        await client.ping()
    async with frozen(own_server):
        if moment == "unwritten":
            task = asyncio.ensure_future(orphan.call)
            await asyncio.sleep(0)
        else:
            (task,) = await begun(orphan.call)
        if moment == "late":
            # The connection stays busy, and is therefore not closed when the call is given up.
            started = time.monotonic()
            await until(lambda: time.monotonic() - started > 1)
            await begun(client.ping())
            await until(task.done)
        elif moment == "just arrived":
            original = shared_connection_of(client).inflight.dispatch
            shared_connection_of(client).inflight.dispatch = lambda *args: (original(*args), task.cancel())[0]
        elif moment == "lost":
            shared_connection_of(client).close(lambda: redis.ConnectionError("cut"))
            task.cancel()
        elif moment != "awaited":
            task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    ends = {"late": redis.TimeoutError, "awaited": int}
    assert ends.get(moment, asyncio.CancelledError) is type(outcome)
    for _ in range(3):
        await client.ping()

    is_answered = moment not in {"unconnected", "lost", "awaited"}
    assert ([1] if is_answered else []) == orphan.given
    assert (1 if is_answered or moment == "lost" else 0) <= int(await client.get("key") or 0)


@pytest.mark.parametrize("moment", ["pending", "just arrived"])
async def test_raising_orphan_handler_does_not_affect_callers(client, server, moment):
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
    await client.ping()

    def fail(reply):
        raise LookupError(reply)

    async with frozen(server):
        calls = call_with_orphan_handler(client, fail, "ECHO", "x"), client.echo("y")
        call, other = await begun(*calls)
        if moment == "pending":
            call.cancel()
        else:
            original = shared_connection_of(client).inflight.dispatch
            shared_connection_of(client).inflight.dispatch = lambda *args: (original(*args), call.cancel())[0]

    with pytest.raises(asyncio.CancelledError):
        await call
    assert [b"y", b"z"] == [await other, await client.echo("z")]
    assert [LookupError] == list(map(type, raised))


async def test_background_work_does_not_inherit_context_of_caller(make_pool, own_server, until):
    var, seen = ContextVar("var", default="background"), {}

    class Provider(redis.CredentialProvider):
        async def get_credentials_async(self):
            seen["connect"] = var.get()
            return ("password",)

    def spied(name, callback):
        def spy(*args, **options):
            seen[name] = var.get()
            return callback(*args, **options)

        return spy

    with redis.Redis.from_url(own_server.url) as root:
        root.config_set("requirepass", "password")
    options = {"credential_provider": Provider(), "health_check_interval": 30, "socket_timeout": 1.5, "timeout": 0.1}
    client = client_of(make_pool, own_server.url, retries=0, **options)
    wrap_queue_timeout(client, spied)
    var.set("request")
    await client.ping()
    connection = shared_connection_of(client)
    wrap_callbacks(connection, spied)
    connection.close = spied("close", connection.close)
    connection.inflight.dispatch = spied("dispatch", connection.inflight.dispatch)
    pretend_idle(connection, 31)
    await client.ping()
    async with frozen(own_server):
        (call,) = await begun(call_with_orphan_handler(client, spied("orphan", bool), "ECHO", "x"))
        call.cancel()
    await client.ping()
    async with frozen(own_server):
        calls = await begun(*(client.set("key", VALUE) for _ in range(300)))
        await asyncio.gather(*calls, return_exceptions=True)
    await until(connection.closing.done)

    names = ["connect", "flush", "health check", "timeout", "dispatch", "close", "orphan"]
    assert dict.fromkeys(names, "background") == seen
