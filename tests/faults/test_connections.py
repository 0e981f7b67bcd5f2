"""Faults of callers and connections on a healthy server: cancelled, stale, closed, killed, exhausted."""

import asyncio
import select
import statistics
from functools import partial

import pytest
import redis.exceptions
from support.internals import (
    acquired_connections_of,
    idle_connections_of,
    shared_connection_of,
    transport_of_shared,
    unread_bytes_of,
)
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredRedisConnection, PoolExhaustedError


@pytest.fixture
def make_client(make_client, server):
    return partial(make_client, server.url)


@pytest.fixture
def connections_made(inspector):
    """Count the server's new connections since the test began."""

    def count():
        return inspector.info("stats")["total_connections_received"] - before

    before = 0
    before = count()
    return count


async def serves_all_at_once(pool, *, shared):
    """Return whether only ``shared`` connections are acquired, and all others are available at the same time."""
    if shared != pool.stats().used:
        return False
    connections = await asyncio.gather(*(pool.get_connection() for _ in range(pool.max_connections - shared)))
    for connection in connections:
        await connection.send_command("PING")
    replies = [await connection.read_response() for connection in connections]
    for connection in connections:
        await pool.release(connection)
    return {b"PONG"} == set(replies)


async def in_tasks(width, calls):
    """Run calls, at most ``width`` at a time; return what each returned or raised."""
    rest, results = iter(calls), []

    async def work():
        for call in rest:
            task = asyncio.ensure_future(call)
            await asyncio.wait([task])
            results.append(asyncio.CancelledError() if task.cancelled() else task.exception() or task.result())

    await asyncio.gather(*(work() for _ in range(width)))
    return results


# 1: cancelled commands


@pytest.mark.slow
async def test_cancelled_commands_neither_mismatch_replies_nor_leak_connections(
    make_client, multiplex, dice, connections_made
):
    clients = [make_client(protocol=protocol, max_connections=10, timeout=None) for protocol in (2, 3)]
    loop = asyncio.get_running_loop()

    async def echo(client, text):
        return text == await client.echo(text)

    async def batch(client, text, transaction):
        return [text, True, text] == await client.pipeline(transaction).echo(text).ping().echo(text).execute()

    def cancelled(call, times):
        task = loop.create_task(call)
        for _ in range(times):
            loop.call_later(dice.uniform(0, 0.004), task.cancel)
        return task

    def calls():
        for number in range(10_000):
            # Half of them use either protocol, half are cancelled three times, half of the pipelines use MULTI.
            client, text, times = clients[number % 2], b"%d" % number, 1 + number // 2 % 2 * 2
            yield cancelled(echo(client, text), times)
            yield cancelled(batch(client, text, number // 4 % 2 == 0), times)
            if number % 5 == 0:
                yield echo(client, text)

    results = await in_tasks(50, calls())

    abandoned = sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert 2_000 <= abandoned <= 20_000
    assert [True] * (22_000 - abandoned) == [r for r in results if not isinstance(r, asyncio.CancelledError)]
    if multiplex:
        assert 2 == connections_made()
    for client in clients:
        assert await serves_all_at_once(client.connection_pool, shared=int(multiplex))


async def test_command_after_cancelled_command_is_served(make_client):
    for ticks_before in range(6):
        for ticks_after in range(6):
            client = make_client(timeout=15)
            abandoned = asyncio.create_task(client.get("key"))
            for _ in range(ticks_before):
                await asyncio.sleep(0)
            abandoned.cancel()
            for _ in range(ticks_after):
                await asyncio.sleep(0)

            assert await client.ping() is True, (ticks_before, ticks_after)
            await client.connection_pool.aclose()


# 2: a stale reply


async def test_unread_reply_on_idle_connection_is_never_delivered(make_client, until):
    client = make_client(max_connections=11)
    pool = client.connection_pool
    await client.mset({f"key:{number}": number for number in range(1_000)})
    connections = await asyncio.gather(*(pool.get_connection() for _ in range(10)))
    for connection in connections:
        await connection.send_command("ECHO", "stale")
    await until(lambda: all(unread_bytes_of(connection) for connection in connections))
    for connection in connections:
        await pool.release(connection)

    values = await asyncio.gather(*(client.get(f"key:{number}") for number in range(1_000)))

    assert [b"%d" % number for number in range(1_000)] == values


@pytest.mark.parametrize("moment", ["seen", "unseen", "after the calls"])
async def test_shared_connection_closes_on_unexpected_reply(make_pool, server, until, moment):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    loop = asyncio.get_running_loop()
    await client.mset({f"key:{number}": number for number in range(1_000)})
    shared_connection = shared_connection_of(client)
    transport = transport_of_shared(shared_connection)
    idle_from = loop.time()
    await until(lambda: loop.time() > idle_from + 0.02)

    def leave_a_reply():
        transport.write(b"*2\r\n$4\r\nECHO\r\n$5\r\nstale\r\n")
        assert select.select([transport.get_extra_info("socket")], [], [], 5)[0]

    if moment != "after the calls":
        leave_a_reply()
    if moment == "seen":
        await until(shared_connection.closing.done)
    calls = [asyncio.ensure_future(client.get(f"key:{number}")) for number in range(1_000)]
    if moment == "after the calls":
        # When the calls are made, but not written.
        loop.call_soon(leave_a_reply)

    assert [b"%d" % number for number in range(1_000)] == await asyncio.gather(*calls)
    assert shared_connection.closing.done()
    assert shared_connection is not shared_connection_of(client)


# 3: idle connections that the server has closed


@pytest.mark.parametrize("sees_it_first", [True, False])
async def test_commands_succeed_on_idle_connections_closed_by_server(
    make_client, multiplex, until, inspector, sees_it_first
):
    client = make_client(max_connections=11)
    pool = client.connection_pool
    loop = asyncio.get_running_loop()

    def connected():
        connections = (*idle_connections_of(pool), *acquired_connections_of(pool))
        return sum(connection.is_connected for connection in connections)

    await client.rpush("list", "element")
    for _ in range(20):
        await client.ping()
        for connection in await asyncio.gather(*(pool.get_connection() for _ in range(10))):
            await pool.release(connection)
        idle_from = loop.time()
        await until(lambda start=idle_from: loop.time() > start + 0.02)
        assert 10 + multiplex == connected()
        inspector.client_kill_filter(_type="normal", skipme=True)
        if sees_it_first:
            await asyncio.sleep(0)
        # Writes, which are not retried once written; also on dedicated connections.
        own = [client.execute_command("BRPOPLPUSH", "list", "list", 1) for _ in range(5 * multiplex)]
        await asyncio.gather(*(client.incr("key") for _ in range(10)), *own)

    assert b"200" == await client.get("key")


async def test_commands_succeed_when_shared_connection_closes_before_write(make_pool, server, until, inspector):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    loop = asyncio.get_running_loop()
    for number in range(20):
        await client.ping()
        idle_from = loop.time()
        await until(lambda start=idle_from: loop.time() > start + 0.02)
        calls = [asyncio.ensure_future(client.incr("key")) for _ in range(10)]
        loop.call_soon(lambda: inspector.client_kill_filter(_type="normal", skipme=True))

        assert list(range(10 * number + 1, 10 * number + 11)) == await asyncio.gather(*calls)


# 7: connections killed under load


@pytest.mark.slow
async def test_connection_kills_under_load_neither_duplicate_writes_nor_leak(
    make_client, multiplex, until, dice, inspector, connections_made
):
    client = make_client(max_connections=20, retry_backoff=0.001)
    attempted, acknowledged, failed, wrong = set(), set(), set(), []
    calls, killing = [0] * 20, True

    async def work(worker):
        number = 0
        while killing:
            number += 1
            token = b"%d:%d" % (worker, number)
            try:
                if dice.random() < 0.5:
                    attempted.add(token)
                    await client.rpush("list", token)
                    acknowledged.add(token)
                elif dice.random() < 0.5:
                    wrong.extend([] if token == (reply := await client.echo(token)) else [(token, reply)])
                else:
                    reply = await client.pipeline(transaction=dice.random() < 0.5).echo(token).ping().execute()
                    wrong.extend([] if [token, True] == reply else [(token, reply)])
            except redis.exceptions.RedisError:
                failed.add(token)
            calls[worker] += 1

    workers = [asyncio.create_task(work(worker)) for worker in range(20)]
    for _ in range(300):
        # A lost call may be made three times, on connections with fewer and fewer other calls.
        known = [*calls]
        await until(lambda known=known: all(now > then for now, then in zip(calls, known, strict=True)))
        inspector.client_kill_filter(_type="normal", skipme=True)
    killing = False
    await asyncio.gather(*workers)

    stored = inspector.lrange("list", 0, -1)
    assert [] == wrong
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored) <= attempted
    # Reads are retried; writes that may have run are not.
    assert failed <= attempted
    # Some kills did hit.
    assert connections_made() > 100
    assert await client.ping() is True
    # The one that was killed last may be closing still.
    await until(lambda: client.connection_pool.stats().used == int(multiplex))
    assert await serves_all_at_once(client.connection_pool, shared=int(multiplex))


# 13: more callers than connections


async def test_pool_serves_thousand_callers_in_turn_with_eight_connections(make_client, connections_made, inspector):
    client = make_client(max_connections=8, timeout=60)
    inspector.rpush("list", *range(2_000))
    # Not in seconds, which a busy machine distributes unevenly, but in calls that were served meanwhile.
    waits = []

    async def pop():
        served = len(waits)
        _, value = await client.blpop("list", timeout=5)
        waits.append(len(waits) + 1 - served)
        return int(value)

    async def pop_twice():
        # Before the second pop, a thousand other calls have queued.
        return [await pop(), await pop()]

    popped = await asyncio.gather(*(pop_twice() for _ in range(1_000)))
    replies = await asyncio.gather(*(client.echo(str(number)) for number in range(1_000)))

    assert sorted(value for values in popped for value in values) == list(range(2_000))
    assert 16 >= max(abs(place - turn) for turn, (place, _) in enumerate(popped))
    assert [b"%d" % number for number in range(1_000)] == replies
    assert connections_made() <= 8
    assert max(waits) / statistics.median(waits) <= 3


async def test_exhausted_pool_fails_dedicated_commands_at_timeout(make_client, multiplex):
    client = make_client(max_connections=8, timeout=0.4)
    pool = client.connection_pool
    # One slot is reserved for the shared connection; other calls cannot use it.
    held = await asyncio.gather(*(pool.get_connection() for _ in range(8 - multiplex)))
    loop = asyncio.get_running_loop()
    began, ends = loop.time(), []

    async def fail(call):
        with pytest.raises(PoolExhaustedError):
            await call
        ends.append(loop.time() - began)

    gets = [client.get("key") if multiplex else fail(client.get("key")) for _ in range(10)]
    # Longer than they hold their connections.
    async with asyncio.timeout(15):
        assert [None] * 20 == await asyncio.gather(*gets, *(fail(client.blpop("l")) for _ in range(10)))

    assert min(ends) >= 0.39  # uvloop counts in milliseconds
    for connection in held:
        await pool.release(connection)
    assert await client.ping() is True
    assert await serves_all_at_once(pool, shared=int(multiplex))
