"""Replicas that fail while they are read: the primary answers, soon, and no call is harmed."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from support.internals import replicas_of, set_age_of_replicas, set_suspicion_of_servers
from support.sentinels import FakeSentinel, reads_at
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredRedisConnection, MonitoredSentinelPool
from aioredis_monitored.testing import FaultProxy, RedisServer, SentinelServers

# Ten times 0.75 s, in which a replica is noticed that is silent, and some seconds more.
SOON = 10.0
# Far longer than that: half of it is what an attempt at a replica may take.
DEADLINE = 60.0


@asynccontextmanager
async def client_of(sentinels, count, until, **arguments):
    """Yield a client that has found its replicas."""
    given = [(each.host, each.port) for each in sentinels]
    arguments = {"socket_timeout": DEADLINE, "read_from": "replica", **UNRECORDED, **arguments}
    async with MonitoredSentinelPool(given, "mymaster", **arguments) as pool:
        await pool.ping()
        await until(lambda: len(replicas_of(pool)) == count)
        yield MonitoredRedisConnection(connection_pool=pool)


@pytest.fixture
async def proxied(server, until):
    """Yield a primary, a proxy before its replica, which is another server, and a sentinel that names both."""
    with RedisServer() as replica:
        async with (
            FaultProxy(replica.host, replica.port) as proxy,
            FakeSentinel("f" * 40, (server.host, server.port)) as sentinel,
        ):
            server.call("SET", "key", "of the primary")
            replica.call("SET", "key", "of the replica")
            sentinel.replicas = {(proxy.host, proxy.port): {}}
            yield proxy, replica, sentinel


def ports_of_replicas(client):
    return {replica.connection_kwargs["port"] for replica in replicas_of(client.connection_pool)}


# Replicas that are gone.


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_replica_that_is_gone_fails_no_read(fault, until):
    with SentinelServers() as servers:
        async with client_of(servers.sentinels, 2, until) as client:
            await client.set("key", "value")
            replicas = [each for each in servers.data if each is not servers.primary()]
            await until(lambda: all(each.call("GET", "key") == "value" for each in replicas))
            await asyncio.gather(*(client.get("key") for _ in range(100)))
            getattr(replicas[0], fault)()
            started = time.monotonic()
            values = await asyncio.gather(*(client.get("key") for _ in range(200)))

            # The sentinels notice it after half a second.
            assert time.monotonic() - started < SOON
            assert [b"value"] * 200 == values
            await until(lambda: len(replicas_of(client.connection_pool)) == 1)
            before = reads_at(replicas[1])["get"]
            await asyncio.gather(*(client.get("key") for _ in range(100)))
            assert 100 == reads_at(replicas[1])["get"] - before


async def test_replica_whose_link_is_cut_is_read_no_more_until_it_is_in_sync(until, monkeypatch):
    set_age_of_replicas(monkeypatch, 0.05)
    with SentinelServers(replicas=1) as servers:
        primary, replica = servers.data
        for sentinel in servers.sentinels:
            # Ten seconds.
            sentinel.call("SENTINEL", "DEBUG", "INFO-PERIOD", 50)
        async with client_of(servers.sentinels, 1, until) as client:
            primary.call("ACL", "SETUSER", "default", "-psync", "-sync")
            primary.call("CLIENT", "KILL", "TYPE", "replica")
            await client.set("key", "value")
            await until_reading(client, lambda: not replicas_of(client.connection_pool))
            before = reads_at(replica)
            assert b"value" == await client.get("key")
            assert before == reads_at(replica)

            primary.call("ACL", "SETUSER", "default", "+psync", "+sync")
            await until_reading(client, lambda: reads_at(replica)["get"] > before["get"])
            assert b"value" == await client.get("key")


async def until_reading(client, condition):
    """Read until a condition is true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        await client.get("key")


async def test_cut_connection_fails_no_read(proxied, until):
    proxy, _, sentinel = proxied
    async with client_of([sentinel], 1, until) as client:
        assert b"of the replica" == await client.get("key")
        proxy.cut_replies = 1
        assert [b"of the primary"] * 20 == await asyncio.gather(*(client.get("key") for _ in range(20)))


async def test_replica_that_is_silent_gets_no_further_reads(proxied, until):
    proxy, _, sentinel = proxied
    async with client_of([sentinel], 1, until) as client:
        assert b"of the replica" == await client.get("key")
        proxy.silent = True
        waiting = asyncio.ensure_future(client.get("key"))
        (replica,) = replicas_of(client.connection_pool)
        await until(lambda: replica.silent_seconds() > 1)

        assert b"of the primary" == await client.get("key")
        assert not waiting.done()
        waiting.cancel()


async def test_read_takes_half_of_the_deadline_at_a_silent_replica(proxied, until):
    proxy, _, sentinel = proxied
    async with client_of([sentinel], 1, until, socket_timeout=2.0) as client:
        await client.get("key")
        proxy.silent = True
        started = time.monotonic()
        assert b"of the primary" == await client.get("key")
        assert 0.9 < time.monotonic() - started < SOON + 10


@pytest.mark.parametrize("multiplex", [True, False])
async def test_replica_that_has_failed_gets_no_reads_for_a_while(proxied, until, multiplex, monkeypatch):
    proxy, replica, sentinel = proxied
    set_suspicion_of_servers(monkeypatch, 3600)
    async with client_of([sentinel], 1, until, multiplex=multiplex) as client:
        await client.get("key")
        proxy.cut_replies = 1
        assert b"of the primary" == await client.get("key")
        before = reads_at(replica)
        assert [b"of the primary"] * 50 == [await client.get("key") for _ in range(50)]
        assert before == reads_at(replica)


async def test_replica_that_has_failed_is_read_again_later(proxied, until, monkeypatch):
    proxy, replica, sentinel = proxied
    set_suspicion_of_servers(monkeypatch, 0.05)
    async with client_of([sentinel], 1, until) as client:
        await client.get("key")
        proxy.cut_replies = 1
        assert b"of the primary" == await client.get("key")
        before = reads_at(replica)["get"]
        await until_reading(client, lambda: reads_at(replica)["get"] > before)
        assert [b"of the replica"] * 20 == await asyncio.gather(*(client.get("key") for _ in range(20)))


async def test_replica_that_serves_no_stale_data_is_not_asked_for_each_read(server, until, monkeypatch):
    set_suspicion_of_servers(monkeypatch, 3600)
    with RedisServer("--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no") as replica:
        async with FakeSentinel("f" * 40, (server.host, server.port)) as sentinel:
            sentinel.replicas = {(replica.host, replica.port): {}}
            async with client_of([sentinel], 1, until) as client:
                server.call("SET", "key", "value")
                assert [b"value"] * 20 == [await client.get("key") for _ in range(20)]
                # MASTERDOWN: it was asked once.
                assert "cmdstat_get:calls=0,usec=0,usec_per_call=0.00,rejected_calls=1," in replica.call(
                    "INFO", "commandstats"
                )


# The primary is gone.


@pytest.mark.parametrize(
    "fault", ["kill", *(pytest.param(each, marks=pytest.mark.slow) for each in ("failover", "freeze"))]
)
async def test_reads_go_on_while_the_primary_is_replaced(fault, until):
    with SentinelServers() as servers:
        async with client_of(servers.sentinels, 2, until) as client:
            await client.set("key", "value")
            former = servers.primary()
            await until(lambda: all(each.call("GET", "key") == "value" for each in servers.data))
            is_over, slowest, values = asyncio.Event(), 0.0, set()

            async def read():
                nonlocal slowest
                while not is_over.is_set():
                    started = time.monotonic()
                    values.add(await client.get("key"))
                    slowest = max(slowest, time.monotonic() - started)
                    await asyncio.sleep(0)

            readers = [asyncio.ensure_future(read()) for _ in range(8)]
            if fault == "failover":
                await asyncio.to_thread(servers.failover)
            else:
                getattr(former, fault)()
                await until(lambda: servers.primary() is not former)
            assert await client.set("other", "value")
            # After a planned failover, the former primary is soon a replica as others are.
            no_replicas = {servers.primary().port} if fault == "failover" else {servers.primary().port, former.port}
            # For a moment, none may be in sync with the new primary.
            await until(lambda: (ports := ports_of_replicas(client)) and not ports & no_replicas)
            is_over.set()
            await asyncio.gather(*readers)

            print(f"{fault}: the slowest read took {slowest:.2f} s")
            assert {b"value"} == values


# Answers that make no sense.


async def test_sentinel_whose_answer_cannot_be_read_is_passed_over(server, until):
    server.call("SET", "key", "value")
    async with (
        FakeSentinel("e" * 40, (server.host, server.port)) as odd,
        FakeSentinel("f" * 40, (server.host, server.port)) as sentinel,
    ):
        odd.replicas = {(server.host, server.port): {"flags": ["no", "text"]}}
        async with client_of([odd, sentinel], 0, until) as client:
            assert b"value" == await client.get("key")
