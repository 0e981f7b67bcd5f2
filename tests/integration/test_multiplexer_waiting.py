"""Calls that wait for the shared connection: sent as they were when called, discarded when their callers leave."""

import asyncio
from collections import Counter

import pytest
from support.internals import idle_connections_of, large_keys_of, remember_large

from aioredis_monitored import MonitoredRedisConnection, PoolClosedError
from aioredis_monitored._multiplexer import CommandFuture

VALUE = b"x" * 100_000


class Token:
    """New credentials, as redis-py's streaming providers pass them."""

    def __init__(self, password):
        self.password = password

    def try_get(self, key):
        return "unknown"

    def get_value(self):
        return self.password


async def test_queued_call_sends_arguments_as_called_despite_later_changes(client):
    key, value = bytearray(b"key"), bytearray(b"before")
    pipeline = client.pipeline(transaction=False).set("other", value).get("other")
    calls = [asyncio.ensure_future(call) for call in (client.set(key, value), pipeline.execute())]
    await asyncio.sleep(0)
    assert 2 == client.connection_pool.multiplexer.queued()
    key[:], value[:] = b"***", b"******"

    assert [True, [True, b"before"]] == await asyncio.gather(*calls)
    assert b"before" == await client.get("key")


async def test_cancelled_calls_do_not_accumulate_behind_a_queued_call(own_server, make_pool):
    # The first call waits for all others.
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=60))
    own_server.freeze()
    first = asyncio.ensure_future(client.get("key"))
    most = 0
    for _ in range(50):
        calls = [asyncio.ensure_future(client.get("key")) for _ in range(100)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        most = max(most, client.connection_pool.multiplexer.queued())
    own_server.thaw()

    assert await first is None
    assert most < 2500


async def test_large_value_under_an_unhashable_key_is_still_served(client):
    await client.set("large", VALUE)
    assert [VALUE] * 3 == [await client.get("large") for _ in range(3)]

    assert VALUE == await client.get(bytearray(b"large"))
    pipeline = client.pipeline().set(b"large", VALUE).get(b"large")
    assert [True, VALUE] == await pipeline.execute()


async def test_call_on_a_closed_multiplexer_fails_with_pool_closed_error(client, pool):
    await client.ping()
    multiplexer = pool.multiplexer
    await pool.aclose()
    async with pool:
        lost = await multiplexer.send(("PING",))

    assert isinstance(lost.error, PoolClosedError)
    assert not lost.may_have_run


async def test_released_connection_is_closed_when_new_credentials_are_refused(pool):
    connection = await pool.get_connection()
    connection.set_re_auth_token(Token("wrong"))

    await pool.release(connection)

    assert not connection.is_connected
    assert Counter(used=0, idle=1) == Counter(used=pool.stats().used, idle=len(idle_connections_of(pool)))


@pytest.mark.parametrize("multiplex", [True, False])
async def test_pool_disconnect_fails_no_call(make_pool, server, multiplex):
    pool = make_pool(server.url, multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.set("key", 0)
    for number in range(1, 20):
        await pool.disconnect()
        assert number == await client.incr("key")


async def test_connection_attempt_that_outlives_its_callers_is_not_shared(make_pool, server):
    for ticks in range(12):
        pool = make_pool(server.url)
        client = MonitoredRedisConnection(connection_pool=pool)
        left = asyncio.ensure_future(client.get("key"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        left.cancel()
        assert await client.ping() is True
        await asyncio.wait([left])
        assert await client.ping() is True
        assert pool.stats().used == 1
        await pool.aclose()


async def test_large_call_uses_the_main_connection_when_the_bulk_connection_has_no_slot(make_pool, server, client):
    pool = make_pool(server.url, max_connections=4, timeout=0.2)
    other = MonitoredRedisConnection(connection_pool=pool)
    await other.ping()
    blocked = [asyncio.ensure_future(other.blpop("list", 5)) for _ in range(3)]
    await asyncio.sleep(0)

    assert [True, [VALUE]] == [await other.set("large", VALUE), await other.pipeline().get("large").execute()]
    await client.rpush("list", 1, 2, 3)
    await asyncio.gather(*blocked)


async def test_pool_entered_while_closing_is_open(make_pool, own_server):
    pool = make_pool(own_server.url, socket_timeout=60)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    own_server.freeze()
    call = asyncio.ensure_future(client.get("key"))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(pool.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    own_server.thaw()
    async with pool:
        assert await client.ping() is True
    assert await call is None


async def test_response_callback_timeout_error_is_not_taken_for_the_deadline(make_pool, own_server):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=60))

    async def fail(reply, **options):
        raise TimeoutError("mine")

    client.set_response_callback("INCRBY", fail)
    await client.ping()
    own_server.kill()
    call = asyncio.ensure_future(client.incr("key"))
    await asyncio.wait([call], timeout=0.1)
    own_server.start()

    with pytest.raises(TimeoutError, match="mine"):
        await call
    assert b"1" == await client.get("key")


async def test_multiplexer_remembers_a_bounded_number_of_large_keys(client):
    await client.ping()
    for number in range(2000):
        call = CommandFuture(loop=asyncio.get_running_loop())
        call.args = ("GET", str(number))
        remember_large(client, call)

    assert 1024 == len(large_keys_of(client))
    assert ("GET", "1999") in large_keys_of(client)


async def test_argument_that_becomes_invalid_while_its_call_waits_fails_that_call_alone(make_pool, server):
    class Number(int):
        is_valid = True

        def __repr__(self):
            if not Number.is_valid:
                raise ValueError("changed")
            return "1"

    client = MonitoredRedisConnection(connection_pool=make_pool(server.url))
    calls = [asyncio.create_task(client.set(key, value)) for key, value in (("a", Number(1)), ("b", 2))]
    await asyncio.sleep(0)
    # They wait for the connection, and are packed when it is there.
    Number.is_valid = False
    failure, result = await asyncio.gather(*calls, return_exceptions=True)

    assert (ValueError, "changed") == (type(failure), str(failure))
    assert result is True
    assert await client.get("a") is None
