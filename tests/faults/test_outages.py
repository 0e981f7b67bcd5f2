"""An outage: after one whole deadline, each call gets one attempt until one succeeds."""

import asyncio
import socket
import time
from contextlib import contextmanager

import pytest
import redis
from redis.asyncio import Connection
from support.internals import redirect, redirect_nowhere, stream_reader_of

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._redispy.sockets import transport_of

BOTH = pytest.mark.parametrize("multiplex", [True, False])


def client_of(make_pool, url, **options):
    return MonitoredRedisConnection(
        connection_pool=make_pool(url, **{"protocol": 2, "retry_backoff": 0.005, **options})
    )


@contextmanager
def black_hole():
    """Yield a port that answers no connection attempt."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]
        for filler in fillers:
            filler.close()


@BOTH
async def test_outage_waits_one_deadline_then_makes_one_attempt_per_command(make_pool, proxy, multiplex):
    # Without a deadline, 10,000 attempts would take hours.
    client = client_of(make_pool, proxy.url, socket_timeout=1, retries=10_000, multiplex=multiplex)
    redirect_nowhere(proxy)
    attempts = []

    for _ in range(4):
        accepted = proxy.accepted
        async with asyncio.timeout(15):
            with pytest.raises(redis.ConnectionError):
                await client.incr("key")
        attempts.append(proxy.accepted - accepted)

    assert attempts[0] > 3
    assert [1, 1, 1] == attempts[1:]


@BOTH
async def test_outage_fails_concurrent_callers_together(make_pool, proxy, multiplex):
    client = client_of(make_pool, proxy.url, socket_timeout=3, multiplex=multiplex, max_connections=3)
    redirect_nowhere(proxy)

    # Three at a time, with a deadline each, they would take 100 s.
    async with asyncio.timeout(35):
        replies = await asyncio.gather(*(client.incr("key") for _ in range(100)), return_exceptions=True)

    assert {redis.ConnectionError} == set(map(type, replies))
    # A last attempt that the deadline cuts short counts as failed, too.
    assert client.connection_pool.retry_policy.server_unreachable


@BOTH
async def test_outage_is_detected_when_event_loop_is_busy_at_deadline(make_pool, proxy, until, multiplex):
    client = client_of(make_pool, proxy.url, socket_timeout=2, retry_backoff=1, multiplex=multiplex)
    pool = client.connection_pool
    redirect_nowhere(proxy)
    call = asyncio.ensure_future(client.incr("key"))
    await until(lambda: proxy.accepted == 2 and not pool.stats().used)
    for _ in range(5):
        await asyncio.sleep(0)
    time.sleep(2)  # noqa: ASYNC251 - that is the point

    with pytest.raises(redis.ConnectionError):
        await call

    assert 2 == proxy.accepted
    assert pool.retry_policy.server_unreachable


@BOTH
async def test_outage_is_detected_when_connecting_times_out(make_pool, multiplex):
    attempts = []

    class Counted(Connection):
        async def _connect(self):
            attempts.append(self)
            await super()._connect()

    with black_hole() as port:
        options = {"socket_timeout": 1.5, "socket_connect_timeout": 1, "multiplex": multiplex}
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", connection_class=Counted, **options)
        made = []

        for _ in range(3):
            known = len(attempts)
            with pytest.raises(redis.TimeoutError):
                await client.incr("key")
            made.append(len(attempts) - known)

    # The deadline cut the second attempt short.
    assert 2 == made[0]
    # None if the last attempt was still under way.
    assert {0, 1} >= set(made[1:])
    assert client.connection_pool.retry_policy.server_unreachable


@BOTH
@pytest.mark.parametrize("kind", ["command", "MULTI", "batch", "own", "ping"])
async def test_outage_ends_with_first_success_of_any_kind(make_pool, proxy, server, kind, multiplex):
    client = client_of(make_pool, proxy.url, multiplex=multiplex)
    policy = client.connection_pool.retry_policy
    # As after calls that have failed for a whole deadline.
    policy.server_unreachable = True
    redirect_nowhere(proxy)
    with pytest.raises(redis.ConnectionError):
        await client.incr("key")
    assert policy.server_unreachable
    redirect(proxy, server.host, server.port)

    match kind:
        case "command":
            await client.incr("key")
        case "MULTI" | "batch":
            await client.pipeline(kind == "MULTI").incr("key").execute()
        case "own":
            await client.client_setname("name")
        case "ping":
            await client.connection_pool.ping()

    assert not policy.server_unreachable


@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_connection_closed_right_after_handshake_is_not_used(make_client, proxy, inspector, until, is_reset):
    made = 0

    async def greet(connection):
        nonlocal made
        made += 1
        await connection.on_connect()
        if made > 2:
            return
        if is_reset:
            proxy.cut()
            await until(transport_of(connection).is_closing)
            await asyncio.sleep(0.01)
        else:
            inspector.client_kill_filter(skipme=True)
            await until(stream_reader_of(connection).at_eof)

    client = make_client(proxy.url, redis_connect_func=greet, socket_timeout=20)

    assert 1 == await client.incr("number")
    assert 3 == made
