"""Faults that callers and connections meet on a server that is well: cancelled, stale, closed, killed, exhausted."""

import asyncio
import random
import select
import statistics

import pytest
import redis.exceptions
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.errors import PoolExhaustedError

# What is recorded is not the point here, and would take most of the time.
UNRECORDED = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


@pytest.fixture
def dice():
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    print(f"{seed = }")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(seed)  # noqa: S311


@pytest.fixture(params=[True, False], ids=["multiplexed", "pooled"])
def multiplex(request):
    return request.param


@pytest.fixture
def make_client(make_pool, server, multiplex):
    def make(**arguments):
        pool = make_pool(server.url, **{**UNRECORDED, "multiplex": multiplex, **arguments})
        return MonitoredRedisConnection(connection_pool=pool)

    return make


@pytest.fixture
def connections_made(_inspector):
    """How many connections the server has got since the test began."""

    def count():
        return _inspector.info("stats")["total_connections_received"] - before

    before = 0
    before = count()
    return count


async def serves_all_at_once(pool, *, shared):
    """Whether nothing but ``shared`` connections is lent, and all others can be had at the same time."""
    if shared != len(pool._in_use_connections):
        return False
    connections = await asyncio.gather(*(pool.get_connection() for _ in range(pool.max_connections - shared)))
    for connection in connections:
        await connection.send_command("PING")
    replies = [await connection.read_response() for connection in connections]
    for connection in connections:
        await pool.release(connection)
    return {b"PONG"} == set(replies)


async def in_tasks(width, calls):
    """Run calls, ``width`` of them at a time; return what each returned or raised."""
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
@pytest.mark.parametrize("protocol", [2, 3])
async def test_ten_thousand_cancelled_calls_of_each_kind_neither_mismatch_nor_leak(
    make_client, multiplex, protocol, dice, connections_made
):
    client = make_client(protocol=protocol, max_connections=20, timeout=None)
    loop = asyncio.get_running_loop()

    async def echo(text):
        return text == await client.echo(text)

    async def batch(text, transaction):
        return [text, True, text] == await client.pipeline(transaction).echo(text).ping().echo(text).execute()

    def cancelled(call, times):
        task = loop.create_task(call)
        for _ in range(times):
            loop.call_later(dice.uniform(0, 0.004), task.cancel)
        return task

    def calls():
        for number in range(10_000):
            text = b"%d" % number
            times = 1 + 2 * (number % 2)
            yield cancelled(echo(text), times)
            yield cancelled(batch(text, number % 4 < 2), times)
            if number % 5 == 0:
                yield echo(text)

    results = await in_tasks(50, calls())

    left = sum(isinstance(result, asyncio.CancelledError) for result in results)
    assert 2_000 <= left <= 20_000
    assert [True] * (22_000 - left) == [r for r in results if not isinstance(r, asyncio.CancelledError)]
    if multiplex:
        assert 1 == connections_made()
    assert await serves_all_at_once(client.connection_pool, shared=int(multiplex))


# 2: a stale reply


async def test_an_unread_reply_on_idle_connections_is_never_delivered(make_client, until):
    client = make_client(max_connections=11)
    pool = client.connection_pool
    await client.mset({f"key:{number}": number for number in range(1_000)})
    connections = await asyncio.gather(*(pool.get_connection() for _ in range(10)))
    for connection in connections:
        await connection.send_command("ECHO", "stale")
    await until(lambda: all(connection._reader._buffer for connection in connections))
    for connection in connections:
        await pool.release(connection)

    values = await asyncio.gather(*(client.get(f"key:{number}") for number in range(1_000)))

    assert [b"%d" % number for number in range(1_000)] == values


@pytest.mark.parametrize("sees_it_first", [True, False])
async def test_a_reply_that_nobody_is_owed_ends_the_shared_connection(make_pool, server, until, sees_it_first):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    await client.mset({f"key:{number}": number for number in range(1_000)})
    line = client.connection_pool.multiplexer._main.line
    idle_from = line._last_active
    await until(lambda: asyncio.get_running_loop().time() > idle_from + 0.02)
    line._transport.write(b"*2\r\n$4\r\nECHO\r\n$5\r\nstale\r\n")
    if sees_it_first:
        await until(line.ended.done)
    else:
        assert select.select([line._transport.get_extra_info("socket")], [], [], 5)[0]

    values = await asyncio.gather(*(client.get(f"key:{number}") for number in range(1_000)))

    assert [b"%d" % number for number in range(1_000)] == values
    assert line.ended.done()
    assert line is not client.connection_pool.multiplexer._main.line


# 3: idle connections that the server has closed


@pytest.mark.parametrize("sees_it_first", [True, False])
async def test_calls_on_idle_connections_that_the_server_has_closed_do_not_fail(
    make_client, multiplex, until, _inspector, sees_it_first
):
    client = make_client(max_connections=11)
    pool = client.connection_pool
    loop = asyncio.get_running_loop()

    def connected():
        lent = pool._in_use_connections
        return sum(connection.is_connected for connection in (*pool._available_connections, *lent))

    await client.rpush("list", "element")
    for _ in range(20):
        await client.ping()
        for connection in await asyncio.gather(*(pool.get_connection() for _ in range(10))):
            await pool.release(connection)
        idle_from = loop.time()
        await until(lambda start=idle_from: loop.time() > start + 0.02)
        assert 10 + multiplex == connected()
        _inspector.client_kill_filter(_type="normal", skipme=True)
        if sees_it_first:
            await asyncio.sleep(0)
        # Writes, which are not tried again once they are written; of their own connections too.
        own = [client.execute_command("BRPOPLPUSH", "list", "list", 1) for _ in range(5 * multiplex)]
        await asyncio.gather(*(client.incr("key") for _ in range(10)), *own)

    assert b"200" == await client.get("key")


# 7: connections killed under load


@pytest.mark.slow
async def test_three_hundred_kills_under_load_duplicate_and_leak_nothing(
    make_client, multiplex, until, dice, _inspector
):
    client = make_client(max_connections=20, retry_backoff=0.001)
    attempted, acknowledged, wrong, failed = set(), set(), [], []
    killing = True

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
            except redis.exceptions.RedisError as error:
                failed.append((token, error))

    workers = [asyncio.create_task(work(worker)) for worker in range(20)]
    for _ in range(300):
        enough = len(acknowledged) + 20
        await until(lambda enough=enough: len(acknowledged) >= enough)
        _inspector.client_kill_filter(_type="normal", skipme=True)
    killing = False
    await asyncio.gather(*workers)

    stored = _inspector.lrange("list", 0, -1)
    print(len(stored), len(attempted), len(acknowledged), len(failed))
    assert [] == wrong
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored) <= attempted
    assert set() == {token for token, _ in failed} & acknowledged
    # Reads are tried again.
    assert {token for token, _ in failed} <= attempted
    assert await client.ping() is True
    assert await serves_all_at_once(client.connection_pool, shared=int(multiplex))


# 13: more callers than connections


async def test_a_thousand_callers_share_eight_connections_in_turn(make_client, connections_made, _inspector):
    client = make_client(max_connections=8)
    _inspector.rpush("list", *range(1_000))
    loop = asyncio.get_running_loop()
    waits = []

    async def pop():
        start = loop.time()
        _, value = await client.blpop("list", timeout=5)
        waits.append(loop.time() - start)
        return int(value)

    popped = await asyncio.gather(*(pop() for _ in range(1_000)))
    replies = await asyncio.gather(*(client.echo(str(number)) for number in range(1_000)))

    assert sorted(popped) == list(range(1_000))
    assert [b"%d" % number for number in range(1_000)] == replies
    assert connections_made() <= 8
    print(max(waits) / statistics.median(waits))
    assert max(waits) / statistics.median(waits) <= 3


async def test_when_all_connections_are_held_calls_fail_in_time(make_client, multiplex):
    client = make_client(max_connections=8, timeout=0.4)
    pool = client.connection_pool
    held = await asyncio.gather(*(pool.get_connection() for _ in range(8)))
    loop = asyncio.get_running_loop()
    start = loop.time()
    ends = []

    async def fail(call):
        with pytest.raises(PoolExhaustedError):
            await call
        ends.append(loop.time() - start)

    await asyncio.gather(*(fail(client.get("key")) for _ in range(10)), *(fail(client.blpop("l")) for _ in range(10)))

    assert [] == [end for end in ends if not 0.3 <= end <= 0.5]
    for connection in held:
        await pool.release(connection)
    assert await client.ping() is True
    assert await serves_all_at_once(pool, shared=int(multiplex))
