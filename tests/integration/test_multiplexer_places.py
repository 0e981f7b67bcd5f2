"""The shared connections' slots in their pool: one is reserved, none is counted twice, none is lost."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from redis.auth.token import SimpleToken
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError
from support.sharing import begun, client_of, frozen, line_of, until_answered

from aioredis_monitored import MonitoredRedisConnection, PoolClosedError, PoolExhaustedError

LARGE = b"x" * 200_000
TOKEN = SimpleToken("secret", 2e12, 0, {"oid": "renewed"})


def places(pool):
    """Return how many connections are acquired, and how many reserved slots are free."""
    return len(pool._in_use_connections), int(pool._slots.is_reserved_slot_free())


@pytest.mark.parametrize(("others", "before"), [(1, 1), (1, 0), (3, 3), (3, 2)])
async def test_slots_are_counted_once_while_a_retired_connection_is_still_open(
    make_pool, proxy, inspector, until, others, before
):
    client = client_of(make_pool, proxy.url, max_connections=others + 1, socket_timeout=3)
    pool = client.connection_pool
    await client.ping()
    blocked = [asyncio.ensure_future(client.blpop("list", timeout=1)) for _ in range(before)]
    await until(lambda: before == inspector.info("clients")["blocked_clients"])
    proxy.silent = True
    stays = asyncio.ensure_future(client.get("key"))
    await until(lambda: pool.multiplexer.in_flight() == 1)
    line_of(client).retire()
    proxy.silent = False

    further = [asyncio.ensure_future(client.blpop("list", timeout=1)) for _ in range(others)]
    replies = await asyncio.gather(client.set("key", 1), client.blpop("list", timeout=1), *blocked, *further)

    assert [True] + [None] * (1 + before + others) == replies
    assert await asyncio.gather(stays, return_exceptions=True)
    await until(lambda: places(pool) == (1, 0))
    await pool.aclose()


async def test_caller_cancelled_while_connecting_passes_its_slot_to_the_next(make_pool, server, until):
    class Slow(CredentialProvider):
        def __init__(self):
            self.asked = asyncio.Event()
            self.leaving = asyncio.Event()
            self.may_go = asyncio.Event()

        async def get_credentials_async(self):
            if self.leaving.is_set():
                return ("default", "any")
            self.asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.leaving.set()
                await self.may_go.wait()
                raise

    provider = Slow()
    client = client_of(make_pool, server.url, credential_provider=provider, max_connections=2, timeout=5)
    pool = client.connection_pool
    leaves = asyncio.ensure_future(client.get("key"))
    await until(provider.asked.is_set)
    leaves.cancel()
    await until(provider.leaving.is_set)
    own = asyncio.ensure_future(client.blpop("list", timeout=1))
    stays = asyncio.ensure_future(client.get("key"))
    await asyncio.sleep(0)
    provider.may_go.set()

    assert [None, None] == await asyncio.gather(own, stays, return_exceptions=True)
    assert (1, 0) == places(pool)


async def test_retired_connection_closes_when_only_its_internal_request_is_unanswered(make_pool, proxy, until):
    client = client_of(make_pool, proxy.url, socket_timeout=None, max_connections=2)
    await client.ping()
    line = line_of(client)
    proxy.silent = True
    await client.connection_pool.re_auth_callback(TOKEN)
    call = asyncio.ensure_future(client.get("key"))
    await until(lambda: client.connection_pool.multiplexer.in_flight() == 2)
    line.retire()
    call.cancel()
    await until(line.closing.done)

    assert (0, 1) == places(client.connection_pool)


async def test_retired_connection_checks_once_for_waiters_when_many_callers_are_cancelled(
    make_pool, own_server, monkeypatch
):
    client = client_of(make_pool, own_server.url, socket_timeout=None)
    await client.ping()
    line, looks = line_of(client), []
    real = line.inflight.has_waiters
    monkeypatch.setattr(line.inflight, "has_waiters", lambda now: looks.append(now) or real(now))
    async with frozen(own_server):
        calls = await begun(*(client.get("key") for _ in range(1000)))
        line.retire()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)

        assert line.closing.done()
        assert len(looks) < 5


async def test_large_call_uses_the_main_connection_when_no_slot_is_free(make_pool, server, inspector):
    client = client_of(make_pool, server.url, max_connections=3, timeout=600)
    await client.ping()
    large, *own = await begun(client.set("large", LARGE), *(client.blpop("list", timeout=0) for _ in range(2)))

    async with asyncio.timeout(15):
        assert await large is True

    inspector.rpush("list", 1, 2)
    assert 2 == len(await asyncio.gather(*own))


async def test_credentials_pushed_while_connecting_reach_the_shared_connection(make_pool, server, inspector):
    class Changing(CredentialProvider):
        async def get_credentials_async(self):
            # Between the request for credentials and its answer.
            await pool.re_auth_callback(TOKEN)
            return ("default", "any")

    inspector.acl_setuser("renewed", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
    client = client_of(make_pool, server.url, credential_provider=Changing())
    pool = client.connection_pool
    try:
        assert "renewed" == await client.acl_whoami()
    finally:
        await pool.aclose()
        inspector.acl_deluser("renewed")


@pytest.mark.parametrize("ticks", range(6))
async def test_dedicated_client_releases_its_connection_when_cancelled_at_any_tick(client, until, ticks):
    async def use():
        async with client.client() as handle:
            await handle.ping()
            ready.set()

    ready = asyncio.Event()
    using = asyncio.ensure_future(use())
    await ready.wait() if ticks else await asyncio.sleep(0)
    for _ in range(ticks - 1):
        await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])

    await until(lambda: not client.connection_pool._in_use_connections)


async def test_call_raises_pool_closed_error_when_pool_closes_before_writing(make_pool, server):
    raised = []
    for ticks in range(12):
        pool = make_pool(server.url, multiplex=False)
        client = client_of(lambda *_, pool=pool, **__: pool, server.url)
        await client.ping()
        calls = [asyncio.ensure_future(client.ping()) for _ in range(3)]
        for _ in range(ticks):
            await asyncio.sleep(0)
        await pool.aclose()
        raised += [error for error in await asyncio.gather(*calls, return_exceptions=True) if error is not True]

    assert [] == [error for error in raised if not isinstance(error, RedisError)]
    assert any(isinstance(error, PoolClosedError) for error in raised)


@asynccontextmanager
async def retired_with_pending_reply(client, proxy, inspector, until):
    """Retire a shared connection that owes a reply: its successor waits for the slot, the other slot is taken."""
    pool = client.connection_pool
    await until_answered(client.ping)
    blocked = asyncio.ensure_future(client.blpop("list", timeout=0))
    await until(lambda: inspector.info("clients")["blocked_clients"] == 1)
    proxy.silent = True
    late = asyncio.ensure_future(client.get("key"))
    await until(lambda: pool.multiplexer.in_flight() == 1)
    line = line_of(client)
    line.retire()
    successor = asyncio.ensure_future(client.get("key"))
    await until(lambda: len(pool._slots.reserved_waiters) == 1)
    yield blocked, late, successor
    await asyncio.wait([late, successor])
    proxy.silent = False
    await until(line.closing.done)


async def test_reserved_slot_is_kept_again_when_the_successor_is_cancelled(make_pool, proxy, inspector, until):
    client = client_of(make_pool, proxy.url, max_connections=2, socket_timeout=1)
    async with retired_with_pending_reply(client, proxy, inspector, until) as (blocked, _, successor):
        successor.cancel()

    assert (1, 1) == places(client.connection_pool)
    assert await until_answered(client.ping)
    inspector.rpush("list", "for one who waits")
    assert (b"list", b"for one who waits") == await blocked
    assert (1, 0) == places(client.connection_pool)


@pytest.mark.parametrize("ticks", range(5))
@pytest.mark.parametrize("timeout", [None, 1])
async def test_reserved_slot_is_kept_in_any_order_of_cancellation(make_pool, proxy, inspector, until, ticks, timeout):
    client = client_of(make_pool, proxy.url, max_connections=2, socket_timeout=timeout)
    pool = client.connection_pool
    async with retired_with_pending_reply(client, proxy, inspector, until) as (blocked, late, successor):
        own = asyncio.ensure_future(client.blpop("list", timeout=0))
        await until(lambda: len(pool._slots.waiters) == 1)
        late.cancel()
        for _ in range(ticks):
            await asyncio.sleep(0)
        successor.cancel()

    assert (1, 1) == places(pool)
    assert not own.done()
    assert await until_answered(client.ping)
    inspector.rpush("list", "for one", "for the other")
    assert [(b"list", b"for one"), (b"list", b"for the other")] == await asyncio.gather(blocked, own)


async def test_client_stays_open_when_another_task_enters_as_the_first_leaves(server):
    client = MonitoredRedisConnection.from_url(server.url)
    leaves = asyncio.Event()

    async def first():
        async with client:
            await client.ping()
            leaves.set()

    async def second():
        await leaves.wait()
        async with client:
            return [await client.ping() for _ in range(3)]

    assert [None, [True] * 3] == await asyncio.gather(first(), second())


async def test_reserved_slot_survives_acquiring_the_retired_connection_again(make_pool, server, until):
    client = client_of(make_pool, server.url, max_connections=2, timeout=0.1)
    pool = client.connection_pool
    await client.ping()
    line = line_of(client)
    line.retire()
    await until(line.closing.done)
    borrowed = await pool.get_connection()

    assert borrowed is line.connection
    assert (1, 1) == places(pool)
    with pytest.raises(PoolExhaustedError):
        await pool.get_connection()
    assert await client.ping()
    await pool.release(borrowed)
