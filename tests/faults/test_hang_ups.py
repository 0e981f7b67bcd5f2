"""A server that answers by hanging up: it harms the calls in flight at that moment, once, and none afterwards."""

import asyncio

import pytest
import redis
import redis.exceptions
from support.scripted import scripted
from support.sharing import UNRECORDED, connections

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._multiplexer import DeadlineExceeded
from aioredis_monitored.testing import RedisServer

LARGE = 6 * 2**20


@pytest.fixture(scope="module")
def strict_server():
    """Yield a server that hangs up on clients to which it owes more than a megabyte."""
    with RedisServer("--client-output-buffer-limit", "normal 1mb 0 0") as running:
        with redis.Redis.from_url(running.url) as admin:
            admin.rpush("large", *["x" * 2**16] * (LARGE // 2**16))
        yield running


@pytest.fixture
def strict_client(make_pool, strict_server):
    # What goes alone, one after the other, takes long on a loaded machine.
    options = {"client_name": "tested", "max_connections": 10, "socket_timeout": 60}
    pool = make_pool(strict_server.url, **UNRECORDED, **options)
    return MonitoredRedisConnection(connection_pool=pool)


def outcomes_of(tasks):
    return [task.exception() for task in tasks]


class Callers:
    """Callers that write and read without a pause, and their calls' errors."""

    def __init__(self, client, count):
        self.client, self.working, self.calls, self.errors = client, True, 0, []
        self.tasks = [asyncio.create_task(self._work(number)) for number in range(count)]

    async def _work(self, number):
        while self.working:
            for call in (self.client.incr(f"counter:{number}"), self.client.get(f"counter:{number}")):
                try:
                    await call
                except redis.exceptions.ConnectionError as error:
                    self.errors.append(error)
                self.calls += 1

    async def stop(self):
        self.working = False
        await asyncio.gather(*self.tasks)


async def test_oversized_reply_fails_at_most_commands_in_flight(strict_client, until):
    callers = Callers(strict_client, 100)
    await until(lambda: callers.calls > 1_000)
    failed = []
    for _ in range(5):
        before = len(callers.errors)
        with pytest.raises(redis.exceptions.ConnectionError):
            await strict_client.lrange("large", 0, -1)
        failed.append(len(callers.errors) - before)
        calls = callers.calls
        await until(lambda calls=calls: callers.calls > calls + 1_000)
    await callers.stop()

    # Of the hundred calls in flight, writes may have run and may fail; no other call may.
    assert [] == [count for count in failed if count > 100]


async def test_oversized_reply_fails_no_concurrent_read(strict_client, strict_server):
    await strict_client.set("key", "value")
    before = connections_made(strict_server)
    tasks = []
    for _ in range(50):
        tasks += [asyncio.create_task(strict_client.get("key")) for _ in range(10)]
        if len(tasks) == 250:
            large = asyncio.create_task(strict_client.lrange("large", 0, -1))
    tasks += [
        asyncio.create_task(strict_client.pipeline(transaction=False).get("key").exists("key").execute())
        for _ in range(20)
    ]

    with pytest.raises(redis.exceptions.ConnectionError):
        await large

    assert {b"value"} == set(await asyncio.gather(*tasks[:500]))
    assert [[b"value", 1]] * 20 == await asyncio.gather(*tasks[500:])
    # The isolated connection, those of each call that was lost on it as well, and a new shared one.
    assert connections_made(strict_server) - before <= 15


async def test_oversized_pipeline_reply_fails_no_concurrent_read(strict_client):
    await strict_client.set("key", "value")
    batch = strict_client.pipeline(transaction=False).get("key").lrange("large", 0, -1)
    calls = [strict_client.get("key"), batch.execute(), strict_client.get("key")]

    first, large, last = await asyncio.gather(*calls, return_exceptions=True)

    assert (b"value", b"value") == (first, last)
    assert isinstance(large, redis.exceptions.ConnectionError)


async def test_in_flight_write_is_not_repeated_after_hang_up(strict_client):
    await strict_client.set("number", 0)
    for _ in range(20):
        calls = [strict_client.lrange("large", 0, -1), *(strict_client.incr("number") for _ in range(5))]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[0], redis.exceptions.ConnectionError)

    assert int(await strict_client.get("number")) <= 100


async def test_retry_connection_takes_no_new_command_and_closes(make_pool, proxy, inspector, until):
    client = MonitoredRedisConnection(connection_pool=make_pool(proxy.url, **UNRECORDED, client_name="tested"))
    await client.set("key", "value")
    (shared,) = connections(inspector)
    reading = asyncio.create_task(client.get("key"))
    await asyncio.sleep(0)
    proxy.cut_replies = 1

    assert b"value" == await reading
    (further,) = connections(inspector)
    assert further != shared
    assert b"value" == await client.get("key")

    assert 2 == len(connections(inspector))
    await until(lambda: further not in connections(inspector))
    assert 1 == len(connections(inspector))


async def test_command_lost_twice_is_sent_alone_once(make_pool):
    asked = []

    def answer(connection, args):
        asked.append((connection, args[1]))

    async with scripted(answer) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED, socket_timeout=30)
        client = MonitoredRedisConnection(connection_pool=pool)
        errors = await asyncio.gather(client.get("a"), client.get("b"), return_exceptions=True)
        await pool.aclose()

    assert [redis.exceptions.ConnectionError] * 2 == list(map(type, errors))
    # The shared and the isolated connection were closed at once, after at least one command each.
    alone = [key for connection, key in asked if connection > 2]
    assert [b"a", b"b"] == sorted(set(alone))
    assert len(asked) <= 6


async def test_isolated_attempt_raises_deadline_exceeded_while_another_runs(client):
    multiplexer = client.connection_pool.multiplexer
    async with multiplexer.isolated(None):
        with pytest.raises(DeadlineExceeded) as late:
            async with multiplexer.isolated(0.01):
                pass
    async with multiplexer.isolated(600) as remaining:
        assert 0 < remaining <= 600

    assert not late.value.may_have_run


async def test_server_restart_costs_few_connections(make_pool, own_server, until):
    pool = make_pool(own_server.url, **UNRECORDED, max_connections=50)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    own_server.freeze()
    reads = [asyncio.create_task(client.get("key")) for _ in range(500)]
    for _ in range(5):
        await asyncio.sleep(0)
    own_server.kill()
    own_server.start()

    assert [None] * 500 == await asyncio.gather(*reads)
    assert connections_made(own_server) <= 5


def connections_made(server):
    with redis.Redis.from_url(server.url) as admin:
        return admin.info("stats")["total_connections_received"]
