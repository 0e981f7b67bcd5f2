"""Spans and points of calls on servers under Sentinel: each has the server that has answered."""

import asyncio

import pytest
import redis.exceptions
from support.internals import replicas_of
from support.sentinels import FakeSentinel

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, MonitoredSentinelPool
from aioredis_monitored.testing import RedisServer, SentinelServers

DURATION = "db.client.operation.duration"
FAILOVERS = "aioredis_monitored.failovers"
POOL = "db.client.connection.pool.name"


@pytest.fixture
async def sentinel(server):
    """Yield a sentinel that names the server under test as the primary."""
    async with FakeSentinel("a" * 40, (server.host, server.port)) as sentinel:
        yield sentinel


@pytest.fixture
async def make_client(telemetry, sentinel):
    """Make clients whose primary the sentinel names."""
    pools = []

    def make(**arguments):
        pools.append(MonitoredSentinelPool([sentinel.address], "mymaster", **telemetry.providers, **arguments))
        return MonitoredRedisConnection(connection_pool=pools[-1])

    yield make
    for pool in pools:
        await pool.aclose()


def served_by(telemetry, server):
    """Return whether all spans and points have a server's address, and there are some."""
    recorded = [span.attributes for span in telemetry.spans]
    recorded += [point.attributes for point in telemetry.points(DURATION)]
    assert recorded
    return {(server.host, server.port)} == {(each.get("server.address"), each.get("server.port")) for each in recorded}


@pytest.mark.parametrize("multiplex", [True, False])
async def test_all_kinds_of_calls_have_the_address_of_the_primary(make_client, telemetry, server, multiplex):
    client = make_client(multiplex=multiplex)
    await client.set("key", "value")
    await client.pipeline("named", transaction=False).get("key").get("key").execute()
    await client.pipeline().get("key").get("key").execute()
    await client.lock("lock").acquire()
    await client.blpop(["list"], 0.01)
    await client.publish("channel", "text")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await client.lpush("key", "value")
    queue = MessageQueue("work", client)
    await queue.put(b"message")
    await queue.get(timeout=1)
    async with client.client() as single:
        await single.get("key")

    address = f"{server.host}:{server.port}"
    assert {f"SET {address}", "named", f"MULTI GET {address}", "lock.acquire", f"LPUSH {address}"} <= {
        span.name for span in telemetry.spans
    }
    assert served_by(telemetry, server)
    assert {server.port} == {span.attributes["network.peer.port"] for span in telemetry.spans}


async def test_address_is_the_mapped_one(make_client, telemetry, sentinel, server):
    sentinel.primary = ("10.0.0.1", 6379)
    client = make_client(address_map=f"10.0.0.1:6379=localhost:{server.port}")
    await client.get("key")

    span = telemetry.span(f"GET localhost:{server.port}")
    assert "localhost" == span.attributes["server.address"]
    assert "tcp" == span.attributes["network.transport"]


async def test_calls_after_a_switch_have_the_new_primary(make_client, telemetry, sentinel, server, until):
    client = make_client()
    await client.get("key")
    with RedisServer() as other:
        await until(
            lambda: sentinel.announce(
                "+switch-master", f"mymaster {server.host} {server.port} {other.host} {other.port}"
            )
        )
        with telemetry.block() as block:
            await until(lambda: not client.connection_pool.stats().used)
            await client.get("key")
            assert served_by(block, other)

        assert [f"GET {each.host}:{each.port}" for each in (server, other)] == [span.name for span in telemetry.spans]
        assert 1 == telemetry.point(FAILOVERS).value
        assert {"db.client.connection.pool.name": "mymaster"} == telemetry.point(FAILOVERS).attributes
        await client.connection_pool.aclose()


async def test_call_that_is_retried_has_the_server_that_answered(make_client, telemetry, sentinel, server, until):
    with RedisServer() as other:
        sentinel.primary = (other.host, other.port)
        client = make_client(socket_timeout=30.0)
        await client.get("key")
        other.freeze()
        with telemetry.block() as block:
            reading = asyncio.ensure_future(client.get("key"))
            await until(lambda: client.connection_pool.stats().in_flight)
            sentinel.primary = (server.host, server.port)
            await until(
                lambda: sentinel.announce(
                    "+switch-master", f"mymaster {other.host} {other.port} {server.host} {server.port}"
                )
            )
            await reading
            assert served_by(block, server)
        assert f"GET {server.host}:{server.port}" == telemetry.spans[-1].name
        other.thaw()


async def test_call_that_reaches_no_server_has_no_address(make_client, telemetry, sentinel):
    sentinel.primary = None
    client = make_client(retries=0)
    with pytest.raises(redis.exceptions.ConnectionError, match="none of them knows it"):
        await client.get("key")

    span = telemetry.span("GET")
    assert "server.address" not in span.attributes


async def test_counter_of_failovers_starts_with_zero(make_client, telemetry):
    make_client()

    assert 0 == telemetry.point(FAILOVERS).value


async def test_pool_without_sentinels_counts_no_failovers(client, telemetry):
    await client.ping()

    assert [] == telemetry.points(FAILOVERS)


async def test_each_counter_is_that_of_the_pool_on_which_it_counts(telemetry, sentinels, until):
    given = [(each.host, each.port) for each in sentinels.sentinels]
    async with MonitoredSentinelPool(given, "mymaster", read_from="replica", **telemetry.providers) as pool:
        await pool.ping()
        await until(lambda: 2 == len(replicas_of(pool)))
        primary = sentinels.primary()
        replicas = {f"mymaster@{each.host}:{each.port}" for each in sentinels.data if each is not primary}

        assert {"mymaster", *replicas} == telemetry.tally("db.client.connection.timeouts", POOL).keys()
        for counter in ("lock.contended", "lock.lost", "pubsub.reconnects", "failovers"):
            assert {"mymaster"} == telemetry.tally(f"aioredis_monitored.{counter}", POOL).keys()


async def test_asking_sentinels_is_not_recorded(make_client, telemetry):
    await make_client().ping()

    assert 1 == len(telemetry.spans)
    assert ["PING"] == [point.attributes["db.operation.name"] for point in telemetry.points(DURATION)]


async def test_failover_is_logged(make_client, sentinel, server, until, caplog):
    client = make_client()
    await client.ping()
    with RedisServer() as other:
        await until(
            lambda: sentinel.announce(
                "+switch-master", f"mymaster {server.host} {server.port} {other.host} {other.port}"
            )
        )
        await until(lambda: not client.connection_pool.stats().used)
        await client.ping()
        await client.connection_pool.aclose()

    assert [f"pool 'mymaster': the primary of 'mymaster' is {other.host}:{other.port} now"] == caplog.messages


async def test_planned_failover_is_counted_once(telemetry, until):
    with SentinelServers() as servers:
        given = [(each.host, each.port) for each in servers.sentinels]
        async with MonitoredSentinelPool(given, "mymaster", **telemetry.providers) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await client.set("key", "value")
            promoted = await asyncio.to_thread(servers.failover)
            await until(lambda: pool.stats().used == 0)
            await client.set("key", "value")

    assert f"SET {promoted.host}:{promoted.port}" == telemetry.spans[-1].name
    assert 1 == telemetry.point(FAILOVERS).value
