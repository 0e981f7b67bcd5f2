"""Faults of the server: killed, frozen, paused and full."""

import asyncio
from typing import Any, NamedTuple

import pytest
import redis
import redis.exceptions
from support.sharing import UNRECORDED, until_answered

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, TimedOutError
from aioredis_monitored.testing import RedisServer


class Outcome(NamedTuple):
    """The outcome of a call, and its seconds."""

    result: Any
    took: float


async def outcome_of(call):
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        result = await call
    except (redis.exceptions.RedisError, TimedOutError) as error:
        result = error
    return Outcome(result, loop.time() - began)


async def in_both_modes(ordeal, *options):
    """Run a test with multiplexing on and off concurrently, each on a server of its own: it mostly waits."""
    with RedisServer(*options) as one, RedisServer(*options) as other:
        await asyncio.gather(ordeal(one, multiplex=True), ordeal(other, multiplex=False))


# 5: killed and started again


class Load:
    """Callers that write and read until they are stopped, and the outcomes of their calls."""

    def __init__(self, client, deadline):
        self.client, self.deadline = client, deadline
        self.attempted, self.acknowledged, self.late = set(), set(), []
        self.last_success = 0.0
        self.working = True

    async def work(self, worker):
        number = 0
        while self.working:
            number += 1
            token = f"{worker}:{number}".encode()
            self.attempted.add(token)
            if number % 3:
                written = await self._call(self.client.rpush("list", token))
            else:
                batch = self.client.pipeline(transaction=number % 2 == 0)
                written = await self._call(batch.rpush("list", token).get("missing").execute())
            if written:
                self.acknowledged.add(token)
            await self._call(self.client.get("missing"))

    async def _call(self, call):
        outcome = await outcome_of(call)
        if not isinstance(outcome.result, Exception):
            self.last_success = asyncio.get_running_loop().time()
            return True
        if outcome.took > 10 * self.deadline:
            self.late.append(outcome)
        return False


@pytest.mark.slow
async def test_server_restarts_lose_no_acknowledged_write_and_hang_no_caller(make_pool, until):
    loop = asyncio.get_running_loop()

    async def ordeal(server, *, multiplex):
        recovered = []
        pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=1.5)
        load = Load(MonitoredRedisConnection(connection_pool=pool), 1.5)
        tasks = [asyncio.create_task(load.work(worker)) for worker in range(20)]
        for _ in range(10):
            enough = len(load.acknowledged) + 100
            await until(lambda enough=enough: len(load.acknowledged) >= enough)
            server.kill()
            killed = loop.time()
            await until(lambda killed=killed: loop.time() >= killed + 1)
            await asyncio.to_thread(server.start)
            ready = loop.time()
            await until(lambda ready=ready: load.last_success > ready)
            recovered.append(loop.time() - ready)
        load.working = False
        _, hung = await asyncio.wait(tasks, timeout=30)
        with redis.Redis.from_url(server.url) as admin:
            stored = admin.lrange("list", 0, -1)
        await pool.aclose()

        assert (set(), []) == (hung, load.late)
        assert [None] * 20 == [task.exception() for task in tasks]
        # The longest pause between attempts, half a second, and one attempt.
        assert max(recovered) <= 10
        assert len(stored) == len(set(stored))
        assert load.acknowledged <= set(stored) <= load.attempted

    await in_both_modes(ordeal, "--appendonly", "yes", "--appendfsync", "always")


# 6: frozen


@pytest.mark.slow
async def test_frozen_server_times_out_commands_and_none_after_thaw(make_pool):
    async def ordeal(server, *, multiplex):
        failed = []

        async def fail_twice(call):
            failed.extend([(await outcome_of(call())).result for _ in range(2)])

        pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=2)
        client = MonitoredRedisConnection(connection_pool=pool)
        queue = MessageQueue("queue", client)
        await client.ping()
        server.freeze()
        # The server stays frozen until all calls have failed twice; a call that does not fail would never end.
        tasks = [asyncio.create_task(fail_twice(lambda: client.get("key"))) for _ in range(20)]
        tasks += [asyncio.create_task(fail_twice(lambda: queue.get(1))) for _ in range(5)]
        _, stuck = await asyncio.wait(tasks, timeout=60)
        server.thaw()
        assert await until_answered(client.ping)
        after = []
        for first in range(0, 200, 20):
            after += await asyncio.gather(*(client.set(f"key:{first + number}", number) for number in range(20)))
        await pool.aclose()

        assert set() == stuck
        assert [redis.exceptions.TimeoutError] * 50 == list(map(type, failed))
        assert [True] * 200 == after

    await in_both_modes(ordeal)


async def test_command_has_its_own_deadline_when_others_started_connecting(make_client, own_server, until):
    client = make_client(own_server.url, socket_timeout=3)
    loop = asyncio.get_running_loop()
    # One attempt each, so that no caller's retry makes up for another's.
    client.connection_pool.retry_policy.server_unreachable = True
    own_server.freeze()

    start = loop.time()
    first = asyncio.create_task(outcome_of(client.get("key")))
    await until(lambda: loop.time() >= start + 2.8)
    others = [asyncio.create_task(outcome_of(client.set(f"key:{number}", number))) for number in range(20)]
    await until(lambda: loop.time() >= start + 3.2)
    own_server.thaw()
    outcomes = await asyncio.gather(*others)
    await first

    assert [True] * 20 == [outcome.result for outcome in outcomes]


# 8: paused


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["WRITE", "ALL"])
async def test_server_pause_is_waited_out_or_times_out(make_pool, mode):
    async def ordeal(server, *, multiplex):
        async def calls(client):
            return await asyncio.gather(
                outcome_of(client.set("key", "value")),
                outcome_of(client.pipeline().incr(str(id(client))).execute()),
                outcome_of(MessageQueue("queue", client).put(b"message")),
                outcome_of(client.get("key")),
            )

        pools = [make_pool(server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=t) for t in (30, 1)]
        patient, hasty = (MonitoredRedisConnection(connection_pool=pool) for pool in pools)
        await asyncio.gather(patient.set("key", "value"), until_answered(hasty.ping))
        await patient.client_pause(3_000, all=mode == "ALL")
        waited, failed = await asyncio.gather(calls(patient), calls(hasty))
        for pool in pools:
            await pool.aclose()

        assert [True, [1], 1, b"value"] == [1 if outcome.result is None else outcome.result for outcome in waited]
        if mode == "WRITE" and not multiplex:
            # On a shared connection, the read is behind a write.
            assert b"value" == failed.pop().result
        # Calls that waited longer would have got their replies.
        assert {redis.exceptions.TimeoutError} == {type(outcome.result) for outcome in failed}

    await in_both_modes(ordeal)


# 14: too many clients


@pytest.fixture
def admin(own_server):
    with redis.Redis.from_url(own_server.url) as client:
        yield client


@pytest.mark.parametrize("protocol", [2, 3])
async def test_too_many_clients_error_keeps_message_of_server(make_client, own_server, admin, protocol):
    client = make_client(own_server.url, protocol=protocol, max_connections=20, socket_timeout=60, retries=2)
    admin.config_set("maxclients", 1)

    outcomes = await asyncio.gather(*(outcome_of(client.incr("counter")) for _ in range(20)))

    assert {(redis.exceptions.ConnectionError, "max number of clients reached")} == {
        (type(outcome.result), str(outcome.result)) for outcome in outcomes
    }
    assert set() == client.connection_pool._in_use_connections
    assert 1 == len(admin.client_list())
    admin.config_set("maxclients", 100)
    assert 1 == await client.incr("counter")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_too_many_clients_error_is_retried_until_limit_is_raised(make_client, own_server, admin, protocol, until):
    client = make_client(own_server.url, protocol=protocol, max_connections=20, socket_timeout=60)
    admin.config_set("maxclients", 1)
    calls = [asyncio.create_task(client.incr("counter")) for _ in range(20)]
    await until(lambda: admin.info("stats")["rejected_connections"] > 20)
    admin.config_set("maxclients", 100)

    assert list(range(1, 21)) == sorted(await asyncio.gather(*calls))


@pytest.mark.parametrize("protocol", [2, 3])
async def test_pool_works_with_fewer_connections_than_max_connections(make_client, own_server, admin, protocol):
    client = make_client(own_server.url, protocol=protocol, max_connections=20, socket_timeout=60)
    admin.config_set("maxclients", 5)
    admin.rpush("list", *range(20))

    outcomes = await asyncio.gather(*(outcome_of(client.blpop("list", 1)) for _ in range(20)))

    assert [] == [outcome for outcome in outcomes if isinstance(outcome.result, Exception)]
    assert {str(number).encode() for number in range(20)} == {outcome.result[1] for outcome in outcomes}
