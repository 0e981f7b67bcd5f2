"""Reading from replicas under Sentinel: which calls go there, and what they and the pool show."""

import asyncio

import pytest
import redis.exceptions
from support.internals import replicas_of, set_age_of_replicas
from support.sentinels import FakeSentinel, reads_at
from support.sharing import UNRECORDED, warnings_of_forgetting

from aioredis_monitored import (
    ConfigStore,
    MessageQueue,
    MonitoredRedisConnection,
    MonitoredSentinelPool,
    PoolClosedError,
    config_from_env,
    pool_from_config,
)
from aioredis_monitored.testing import RedisServer

DEADLINE = 30.0
DURATION = "db.client.operation.duration"


@pytest.fixture
def primary(sentinels):
    """Yield the primary, and remove what a test has written."""
    primary = sentinels.primary()
    yield primary
    primary.call("FLUSHALL")


@pytest.fixture
def replicas(sentinels, primary):
    return [each for each in sentinels.data if each is not primary]


@pytest.fixture
async def make_client(sentinels, until):
    """Make clients that read from replicas, which they know already."""
    pools = []

    async def make(**arguments):
        given = [(each.host, each.port) for each in sentinels.sentinels]
        pools.append(MonitoredSentinelPool(given, "mymaster", **{"read_from": "replica", **UNRECORDED, **arguments}))
        await until_known(pools[-1], 2, until)
        return MonitoredRedisConnection(connection_pool=pools[-1])

    yield make
    for pool in pools:
        await pool.aclose()


async def until_known(pool, count, until):
    """Wait until a pool has found that many replicas."""
    await pool.ping()
    await until(lambda: len(replicas_of(pool)) == count)


async def set_everywhere(client, replicas, until, key="key", value="value"):
    """Set a key, and wait until the replicas have it."""
    await client.set(key, value)
    await until(lambda: all(each.call("GET", key) == value for each in replicas))


# Which calls go where.


@pytest.mark.parametrize("arguments", [{}, {"protocol": 2}, {"decode_responses": True}, {"multiplex": False}])
async def test_reads_go_to_all_replicas_and_writes_to_the_primary(make_client, primary, replicas, until, arguments):
    client = await make_client(**arguments)
    await set_everywhere(client, replicas, until)
    at_primary, at_replicas = reads_at(primary), [reads_at(each)["get"] for each in replicas]
    # One of the replicas is left out with a probability of two to the power of -59.
    values = [await client.get("key") for _ in range(60)]

    assert ["value" if arguments.get("decode_responses") else b"value"] * 60 == values
    assert at_primary == reads_at(primary)
    counts = [reads_at(each)["get"] - before for each, before in zip(replicas, at_replicas, strict=True)]
    assert 60 == sum(counts)
    assert all(counts)


async def test_database_of_the_pool_is_read(make_client, until, replicas):
    client = await make_client(db=3)
    await client.set("key", "value")
    await until(lambda: all("db3:" in each.call("INFO", "keyspace") for each in replicas))

    assert b"value" == await client.get("key")


CALLS_AT_THE_PRIMARY = {
    "SCAN": lambda client: client.scan(),
    "HSCAN": lambda client: client.hscan("hash"),
    "SSCAN": lambda client: client.sscan("set"),
    "ZSCAN": lambda client: client.zscan("zset"),
    "EVAL_RO": lambda client: client.eval_ro("return redis.call('GET', KEYS[1])", 1, "key"),
    "script": lambda client: client.register_script("return redis.call('GET', KEYS[1])")(["key"]),
    "XREAD": lambda client: client.xread({"stream": 0}, block=1),
    "BLPOP": lambda client: client.blpop(["list"], 0.01),
    "pipeline": lambda client: client.pipeline(transaction=False).get("key").set("other", 1).get("other").execute(),
    "transaction": lambda client: client.pipeline().get("key").execute(),
    "RANDOMKEY": lambda client: client.randomkey(),
    "INFO": lambda client: client.info(),
}


@pytest.mark.parametrize("name", CALLS_AT_THE_PRIMARY)
async def test_call_that_is_no_plain_read_goes_to_the_primary(make_client, replicas, name):
    client = await make_client()
    await client.set("key", "value")
    before = reads_at(*replicas)
    # At random replicas, one of 20 would show.
    for _ in range(20):
        await CALLS_AT_THE_PRIMARY[name](client)

    assert before == reads_at(*replicas)


async def test_what_watches_or_keeps_its_connection_reads_at_the_primary(make_client, replicas):
    client = await make_client()
    before = reads_at(*replicas)
    async with client.client() as handle:
        assert await handle.set("key", "value")
        assert b"value" == await handle.get("key")
    async with client.pipeline() as pipeline:
        await pipeline.watch("key")
        assert b"value" == await pipeline.get("key")
        pipeline.multi()
        assert [b"value"] == await pipeline.get("key").execute()

    assert before == reads_at(*replicas)


async def test_lock_queue_and_configuration_see_the_last_write(make_client, replicas):
    client = await make_client()
    before = reads_at(*replicas)
    for _ in range(20):
        async with client.lock("lock", timeout=DEADLINE) as lock:
            assert await lock.owned()
            assert await lock.locked()
        for owner in (client, client.connection_pool):
            queue = MessageQueue("queue", owner)
            await queue.put(b"message")
            async with queue.take(timeout=DEADLINE) as message:
                assert b"message" == message
            await queue.aclose()
        store = ConfigStore(client)
        await store.set("redis", "sessions", {"url": "redis://h"})
        assert {"url": "redis://h"} == await store.get("redis", "sessions", wait=0)

    assert before == reads_at(*replicas)


async def test_pool_that_reads_from_the_primary_asks_for_no_replicas(primary, until):
    async with FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel:
        async with MonitoredSentinelPool([sentinel.address], "mymaster", **UNRECORDED) as pool:
            await MonitoredRedisConnection(connection_pool=pool).get("key")
            await until(lambda: sentinel.announce("+slave", "slave a 127.0.0.1 1 @ mymaster 127.0.0.1 2"))
            await pool.ping()
        assert 0 == sentinel.asked_for_replicas


@pytest.mark.parametrize("in_url", [True, False])
async def test_configuration_makes_a_pool_that_reads_from_replicas(sentinels, primary, until, in_url):
    environment = {"REDIS_URL": sentinels.url, "REDIS_READ_FROM": "replica"}
    if in_url:
        environment = {"REDIS_URL": f"{sentinels.url}?read_from=replica"}
    async with pool_from_config(config_from_env(environ=environment)) as pool:
        await until_known(pool, 2, until)
        before = reads_at(primary)
        await MonitoredRedisConnection(connection_pool=pool).get("key")
        assert before == reads_at(primary)


# Which replicas are read.


@pytest.mark.parametrize(
    "fields", [{"flags": "slave,s_down"}, {"flags": "slave,disconnected"}, {"master-link-status": "err"}, None]
)
async def test_primary_is_read_without_a_replica_in_sync(primary, replicas, fields):
    async with FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel:
        if fields is not None:
            sentinel.replicas = {(each.host, each.port): fields for each in replicas}
        async with MonitoredSentinelPool([sentinel.address], "mymaster", read_from="replica", **UNRECORDED) as pool:
            await pool.ping()
            before, at_replicas = reads_at(primary)["get"], reads_at(*replicas)
            assert await MonitoredRedisConnection(connection_pool=pool).get("key") is None
            assert 1 == reads_at(primary)["get"] - before
            assert at_replicas == reads_at(*replicas)


async def test_replica_that_comes_later_is_read_after_its_event(primary, replicas, until):
    async with (
        FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel,
        MonitoredSentinelPool([sentinel.address], "mymaster", read_from="replica", **UNRECORDED) as pool,
    ):
        await pool.ping()
        await until(sentinel.subscriptions)
        sentinel.replicas = {(replicas[0].host, replicas[0].port): {}}
        event = f"slave a {replicas[0].host} {replicas[0].port} @ mymaster {primary.host} {primary.port}"
        sentinel.announce("+slave", event)
        await until_known(pool, 1, until)
        # It leaves again, while it is in use.
        await MonitoredRedisConnection(connection_pool=pool).get("key")
        sentinel.replicas = {}
        sentinel.announce("+sdown", event)
        await until_known(pool, 0, until)


async def test_sentinels_are_asked_again_while_calls_read(primary, replicas, until, monkeypatch):
    set_age_of_replicas(monkeypatch, 0.01)
    async with (
        FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel,
        MonitoredSentinelPool([sentinel.address], "mymaster", read_from="replica", **UNRECORDED) as pool,
    ):
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.get("key")
        sentinel.replicas = {(replicas[0].host, replicas[0].port): {}}
        deadline = asyncio.get_running_loop().time() + DEADLINE
        while not replicas_of(pool):
            assert asyncio.get_running_loop().time() < deadline
            await client.get("key")


async def test_replicas_are_reached_by_the_address_map(primary, replicas, until):
    mapped = {"10.0.0.1:6379": f"127.0.0.1:{primary.port}", "10.0.0.2:6379": f"127.0.0.1:{replicas[0].port}"}
    async with FakeSentinel("a" * 40, ("10.0.0.1", 6379)) as sentinel:
        sentinel.replicas = {("10.0.0.2", 6379): {}}
        async with MonitoredSentinelPool(
            [sentinel.address], "mymaster", read_from="replica", address_map=mapped, **UNRECORDED
        ) as pool:
            await until_known(pool, 1, until)
            before = reads_at(replicas[0])["get"]
            await MonitoredRedisConnection(connection_pool=pool).get("key")
            assert 1 == reads_at(replicas[0])["get"] - before


# What replicas answer.


async def test_error_of_a_replica_that_is_behind_is_not_raised(primary, server, until):
    async with FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel:
        sentinel.replicas = {(server.host, server.port): {}}
        async with MonitoredSentinelPool([sentinel.address], "mymaster", read_from="replica", **UNRECORDED) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await until_known(pool, 1, until)
            await client.rpush("key", "value")
            server.call("SET", "key", "of another type")

            assert [b"value"] == await client.lrange("key", 0, -1)
            # It is no reason to leave the replica.
            assert b"of another type" == await client.get("key")


async def test_error_of_the_primary_is_raised(make_client, replicas, until):
    client = await make_client()
    await set_everywhere(client, replicas, until)
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await client.lrange("key", 0, -1)


async def test_reading_goes_on_at_the_primary_where_replicas_lack_the_user(make_client, primary):
    primary.call("ACL", "SETUSER", "new", "on", ">secret", "~*", "&*", "+@all")
    try:
        client = await make_client(username="new", password="secret")
        before = reads_at(primary)["get"]
        assert [None] * 10 == [await client.get("key") for _ in range(10)]
        assert 10 == reads_at(primary)["get"] - before
    finally:
        primary.call("ACL", "DELUSER", "new")


# What is shown, and what is left behind.


async def test_span_and_point_have_the_replica_that_answered(make_client, replicas, telemetry):
    client = await make_client(**telemetry.providers)
    with telemetry.block() as block:
        await client.get("key")
        (span,) = block.spans
        address = span.attributes["server.address"], span.attributes["server.port"]
        assert address in {(each.host, each.port) for each in replicas}
        assert f"GET {address[0]}:{address[1]}" == span.name
        assert address[1] == span.attributes["network.peer.port"]
        (point,) = block.points(DURATION)
        assert address == (point.attributes["server.address"], point.attributes["server.port"])


async def test_span_and_point_have_the_primary_where_the_replica_has_failed(make_client, primary, telemetry):
    primary.call("ACL", "SETUSER", "new", "on", ">secret", "~*", "&*", "+@all")
    try:
        client = await make_client(username="new", password="secret", **telemetry.providers)
        with telemetry.block() as block:
            await client.get("key")
            (span,) = block.spans
            (point,) = block.points(DURATION)
    finally:
        primary.call("ACL", "DELUSER", "new")
    assert {primary.port} == {each.attributes["server.port"] for each in (span, point)}
    assert primary.port == span.attributes["network.peer.port"]
    assert "error.type" not in span.attributes


async def test_span_has_no_server_where_the_replica_has_failed_and_the_primary_is_gone(proxy, until, telemetry):
    with RedisServer() as primary:
        async with FakeSentinel("a" * 40, (primary.host, primary.port)) as sentinel:
            sentinel.replicas = {(proxy.host, proxy.port): {}}
            async with MonitoredSentinelPool(
                [sentinel.address], "mymaster", read_from="replica", retries=0, **telemetry.providers
            ) as pool:
                await until_known(pool, 1, until)
                client = MonitoredRedisConnection(connection_pool=pool)
                await client.get("key")
                primary.kill()
                await until(lambda: pool.stats().used == 0)
                proxy.cut_replies = 1
                with telemetry.block() as block, pytest.raises(redis.exceptions.ConnectionError):
                    await client.get("key")
                (span,) = block.spans

    assert "GET" == span.name
    assert "server.address" not in span.attributes


async def test_pools_of_replicas_have_names_of_their_own_in_metrics(make_client, replicas, telemetry):
    client = await make_client(name="sessions", **telemetry.providers)
    await asyncio.gather(*(client.get("key") for _ in range(50)))
    names = telemetry.tally("db.client.connection.count", "db.client.connection.pool.name")

    assert {"sessions", *(f"sessions@{each.host}:{each.port}" for each in replicas)} == set(names)


async def test_closed_pool_closes_what_is_connected_to_replicas_and_can_be_opened_again(make_client, replicas, until):
    client = await make_client(client_name="reader")
    pool = client.connection_pool

    def connected():
        return sum(each.call("CLIENT", "LIST").count("name=reader ") for each in replicas)

    for _ in range(2):
        async with pool:
            await until_known(pool, 2, until)
            await asyncio.gather(*(client.get("key") for _ in range(50)))
            assert connected()
        await until(lambda: not connected())
        with pytest.raises(PoolClosedError, match="pool 'mymaster' is closed"):
            await client.get("key")
        assert [] == replicas_of(pool)
    assert 1 == len(asyncio.all_tasks())


async def test_disconnecting_the_pool_closes_connections_to_replicas(make_client, replicas, until):
    client = await make_client()
    await asyncio.gather(*(client.get("key") for _ in range(50)))
    assert any(each.is_connected() for each in replicas_of(client.connection_pool))
    await client.connection_pool.disconnect()

    assert not any(each.is_connected() for each in replicas_of(client.connection_pool))
    assert await client.get("key") is None


def test_reading_pool_may_be_used_in_several_event_loops_one_after_the_other(sentinels, until):
    given = [(each.host, each.port) for each in sentinels.sentinels]
    pool = MonitoredSentinelPool(given, "mymaster", read_from="replica", **UNRECORDED)

    async def use():
        async with pool:
            await until_known(pool, 2, until)
            await MonitoredRedisConnection(connection_pool=pool).get("key")

    asyncio.run(use())
    asyncio.run(use())


def test_reading_pool_whose_event_loop_has_ended_can_be_closed_and_used_again(sentinels, until):
    given = [(each.host, each.port) for each in sentinels.sentinels]
    pool = MonitoredSentinelPool(given, "mymaster", read_from="replica", **UNRECORDED)

    async def use():
        await until_known(pool, 2, until)
        assert await MonitoredRedisConnection(connection_pool=pool).get("key") is None

    async def close_and_use():
        await pool.aclose()
        async with pool:
            await use()

    asyncio.run(use())
    asyncio.run(close_and_use())


def test_forgotten_reading_pool_warns(sentinels):
    given = [(each.host, each.port) for each in sentinels.sentinels]
    texts = warnings_of_forgetting(
        lambda: MonitoredSentinelPool(given, "mymaster", read_from="replica", **UNRECORDED), asyncio.new_event_loop
    )

    assert {"pool 'mymaster' was never closed: use 'async with' or aclose()"} == set(texts)
