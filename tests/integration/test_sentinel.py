"""Pools on servers under Sentinel: what works there, which credentials go where, and what is left behind."""

import asyncio
import gc
import logging
import os
import socket
import warnings
from contextlib import AsyncExitStack
from itertools import chain, cycle, repeat

import pytest
import redis.exceptions
import trustme
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from support.internals import (
    ask_sentinels_of,
    failovers_begun_of,
    followers_of,
    number_of_sentinels_known_to,
    replicas_of,
    sentinels_of,
    shorten_ping_of_sentinels,
)
from support.listening import listening
from support.sentinels import FakeSentinel, SharedAddress, reads_at
from support.sharing import UNRECORDED, close_while_blocked, warnings_after, warnings_of_forgetting

from aioredis_monitored import (
    Components,
    ConfigurationError,
    MessageQueue,
    MonitoredClusterPool,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    MonitoredSentinelPool,
    PoolClosedError,
    config_from_env,
    pool_from_config,
)
from aioredis_monitored._topology.known_sentinels import Sentinel
from aioredis_monitored._topology.sentinel import EVENTS
from aioredis_monitored.pool.sentinel_connections import SentinelConnections
from aioredis_monitored.testing import RedisServer, SentinelServers, TlsFiles

DEADLINE = 30.0


@pytest.fixture(scope="module")
def servers():
    with SentinelServers(down_after=60) as running:
        yield running


@pytest.fixture(autouse=True)
def _leaves_no_follower(servers):
    """Check that no test leaves a connection to a sentinel, and remove its keys."""
    yield
    assert not [each for each in servers.sentinels if is_followed(each)]
    servers.primary().call("FLUSHALL")


@pytest.fixture
def make_pool(servers):
    """Make pools on the servers."""

    def make(**arguments):
        arguments = {"sentinels": addresses(servers.sentinels), "service": "mymaster", **UNRECORDED, **arguments}
        return MonitoredSentinelPool(**arguments)

    return make


@pytest.fixture
async def pool(make_pool):
    async with make_pool() as pool:
        yield pool


@pytest.fixture
def client(pool):
    return MonitoredRedisConnection(connection_pool=pool)


def addresses(sentinels):
    return [(each.host, each.port) for each in sentinels]


def address_of_primary(servers):
    primary = servers.primary()
    return primary.host, primary.port


def followers_at(sentinel):
    """Return how many connections have subscribed to the events of a sentinel, which has no PUBSUB."""
    return sentinel.call("CLIENT", "LIST").count(f"sub={len(EVENTS)} psub=1 ")


def is_followed(sentinel):
    """Whether the events of a sentinel are subscribed to."""
    return followers_at(sentinel) > 0


# What works on such a pool.


async def test_sentinel_pool_is_a_monitored_pool_that_shares_a_connection(pool, client, servers):
    assert isinstance(pool, MonitoredConnectionPool)
    await asyncio.gather(*(client.incr("counter") for _ in range(100)))

    assert "100" == servers.primary().call("GET", "counter")
    assert 1 == pool.stats().used
    assert "mymaster" == pool.name
    assert f"mymaster' ({servers.sentinels[0].host}:{servers.sentinels[0].port}," in repr(pool)


@pytest.mark.parametrize(
    "arguments", [{}, {"protocol": 2}, {"decode_responses": True}, {"multiplex": False}, {"db": 3}]
)
async def test_commands_pipelines_and_scripts_work_with_all_kinds_of_connections(make_pool, arguments):
    async with make_pool(**arguments) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        value = "value" if arguments.get("decode_responses") else b"value"
        assert await client.set("key", "value")
        assert value == await client.get("key")
        async with client.pipeline() as pipeline:
            assert [True, value] == await pipeline.set("other", "value").get("other").execute()
        assert value == await client.register_script("return redis.call('GET', KEYS[1])")(["key"])
        async with client.lock("lock", timeout=DEADLINE):
            assert await client.exists("lock")
        assert (b"list", b"x") == await client.blpop(["list"], 0.01) or not await client.exists("list")
        await pool.ping()


async def test_watching_pipeline_notices_a_change(client):
    async with client.pipeline() as pipeline:
        await pipeline.watch("key")
        await client.set("key", "value")
        pipeline.multi()
        pipeline.set("key", "other")
        with pytest.raises(redis.exceptions.WatchError):
            await pipeline.execute()


async def test_subscription_receives_messages(client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        assert "subscribe" == (await pubsub.get_message(timeout=DEADLINE))["type"]
        await client.publish("channel", "text")
        assert b"text" == (await pubsub.get_message(timeout=DEADLINE))["data"]


async def test_queue_takes_and_gets_messages(client):
    queue = MessageQueue("work", client)
    await queue.put_many([b"one", b"two"])
    async with queue.take(timeout=DEADLINE) as message:
        assert b"one" == message
    assert b"two" == await queue.get(timeout=DEADLINE)
    await queue.aclose()


async def test_url_and_configuration_make_a_sentinel_pool(servers):
    environment = {"REDIS_URL": servers.url, "REDIS_ADDRESS_MAP": "a:1=b:2"}
    for make in (
        lambda: MonitoredConnectionPool.from_url(servers.url),
        lambda: MonitoredRedisConnection.from_url(servers.url).connection_pool,
        lambda: pool_from_config(config_from_env(environ=environment)),
    ):
        async with make() as pool:
            assert isinstance(pool, MonitoredSentinelPool)
            assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")


async def test_components_are_made_for_sentinel_urls(servers):
    async with Components({"redis.main.url": servers.url}, **UNRECORDED) as components:

        @components.redis_connection("main")
        async def write(connection):
            return await connection.set("key", "value")

        assert await write()


# Which sentinels are known.


async def test_one_given_sentinel_is_enough_to_know_all(make_pool, servers, until):
    async with make_pool(sentinels=addresses(servers.sentinels)[:1]) as pool:
        await pool.ping()
        await until(lambda: all(map(is_followed, servers.sentinels)))

        assert sorted(addresses(servers.sentinels)) == sorted(addresses(sentinels_of(pool)))


async def test_name_stands_for_all_its_addresses(make_pool, servers, until):
    # Of which one or two answer, as localhost may be ::1 too.
    named = [("localhost", port) for _, port in addresses(servers.sentinels)]
    async with make_pool(sentinels=named) as pool:
        await pool.ping()
        await until(lambda: all(map(is_followed, servers.sentinels)))
        resolved = {host for host, *_ in (info[4] for info in socket.getaddrinfo("localhost", 1))}

        assert resolved == {each.host for each in sentinels_of(pool)}


async def test_sentinel_that_is_met_later_is_followed(servers, make_pool, until):
    primary = servers.primary()
    async with (
        FakeSentinel("a" * 40, (primary.host, primary.port)) as first,
        FakeSentinel("b" * 40, first.primary) as second,
        make_pool(sentinels=addresses([first])) as pool,
    ):
        await pool.ping()
        first.others = {second.identity: (second.host, second.port)}
        event = f"sentinel {second.identity} {second.host} {second.port} @ mymaster {primary.host} {primary.port}"
        await until(lambda: first.announce("+sentinel", event))
        await until(lambda: second.announce("+x", ""))

        assert 2 == len(sentinels_of(pool))


async def test_sentinel_that_has_moved_unannounced_is_followed_when_the_primary_is_looked_up(servers, make_pool, until):
    async with (
        FakeSentinel("a" * 40, address_of_primary(servers)) as first,
        FakeSentinel("b" * 40, first.primary) as second,
        make_pool(sentinels=[first.address]) as pool,
    ):
        first.others = {second.identity: ("127.0.0.1", 1)}
        await pool.ping()
        await until(lambda: 2 == number_of_sentinels_known_to(pool))
        await until(first.subscriptions)
        first.others = {second.identity: second.address}
        await pool.disconnect()
        await pool.ping()

        await until(second.subscriptions)
        await until(lambda: [first.address, second.address] == addresses(sentinels_of(pool)))


@pytest.mark.parametrize("reached", ["all of them", "one of them"])
async def test_each_sentinel_behind_one_address_is_followed_once(servers, make_pool, until, reached):
    behind = servers.sentinels if reached == "all of them" else servers.sentinels[:1]
    async with SharedAddress(cycle(behind)) as shared, make_pool(sentinels=[(shared.host, shared.port)]) as pool:
        await pool.ping()
        await until(lambda: [1, 1, 1] == [followers_at(each) for each in servers.sentinels])
        assert 3 == number_of_sentinels_known_to(pool)


@pytest.mark.parametrize("announced", ["unreachable", "mapped to it"])
async def test_sentinels_that_can_be_reached_at_one_address_alone_are_followed_once(
    servers, make_pool, until, announced
):
    async with SharedAddress(cycle(servers.sentinels)) as shared:
        place = "127.0.0.1:1" if announced == "unreachable" else f"{shared.host}:{shared.port}"
        mapped = {f"{each.host}:{each.port}": place for each in servers.sentinels}
        async with make_pool(sentinels=[(shared.host, shared.port)], address_map=mapped) as pool:
            for _ in range(3):
                await pool.ping()
                await until(lambda: [1, 1, 1] == [followers_at(each) for each in servers.sentinels])
                assert 3 == number_of_sentinels_known_to(pool)
                # Who reaches another sentinel than the one before goes on until each is followed again.
                for each in servers.sentinels:
                    each.call("CLIENT", "KILL", "TYPE", "pubsub")
            # Two may reach the same one.
            loop = asyncio.get_running_loop()
            until_then = loop.time() + DEADLINE
            while (await ask_sentinels_of(pool)).answered < 2:
                assert loop.time() < until_then
    # It takes about ten for each round; the pause before the next try grows to half a minute.
    assert shared.accepted < 200


async def test_sentinel_that_only_the_follower_of_another_one_hears_of_is_followed(servers, make_pool, until):
    async with (
        FakeSentinel("a" * 40, address_of_primary(servers)) as first,
        FakeSentinel("b" * 40, first.primary) as second,
        # All that ask reach the first one, which does not name itself; one that follows reaches the second.
        SharedAddress(chain([first, second], repeat(first))) as shared,
    ):
        first.others, second.others = {second.identity: ("10.0.0.2", 26379)}, {first.identity: ("10.0.0.1", 26379)}
        async with make_pool(
            sentinels=[(shared.host, shared.port)],
            address_map={"10.0.0.1:26379": "127.0.0.1:1", "10.0.0.2:26379": "127.0.0.1:1"},
        ) as pool:
            await pool.ping()
            await until(lambda: first.subscriptions() and second.subscriptions())
            assert 2 == number_of_sentinels_known_to(pool)


async def test_sentinel_that_the_others_have_forgotten_is_left(servers, make_pool, until):
    primary = servers.primary()
    async with (
        FakeSentinel("a" * 40, (primary.host, primary.port)) as first,
        make_pool(sentinels=[first.address]) as pool,
    ):
        async with FakeSentinel("b" * 40, first.primary) as second:
            first.others = {second.identity: second.address}
            await pool.ping()
            await until(lambda: second.announce("+x", ""))
        first.others = {}
        await until(lambda: first.announce("+sentinel", "sentinel c 127.0.0.1 1 @ mymaster 127.0.0.1 1"))

        await until(lambda: 1 == len(sentinels_of(pool)))


async def test_sentinel_with_several_names_is_one(servers, make_pool, until):
    named = [(host, port) for _, port in addresses(servers.sentinels) for host in ("127.1", "localhost", "127.0.0.1")]
    async with make_pool(sentinels=named) as pool:
        await pool.ping()

        await until(lambda: 3 == number_of_sentinels_known_to(pool))


async def test_sentinels_behind_nat_are_reached_by_the_address_map(servers, make_pool, until):
    primary = servers.primary()
    async with FakeSentinel("a" * 40, ("10.0.0.1", 6379)) as first, FakeSentinel("b" * 40, first.primary) as second:
        first.others = {second.identity: ("10.0.0.2", 26379)}
        mapped = {"10.0.0.1:6379": f"127.0.0.1:{primary.port}", "10.0.0.2:26379": f"127.0.0.1:{second.port}"}
        async with make_pool(sentinels=addresses([first]), address_map=mapped) as pool:
            await pool.ping()
            await until(lambda: second.announce("+x", ""))
            # A switch to the address that is announced ends no connection to the one that is reached.
            client = MonitoredRedisConnection(connection_pool=pool)
            before = await client.client_id()
            first.announce("+switch-master", "mymaster 10.0.0.9 6379 10.0.0.1 6379")
            await until(lambda: second.announce("+x", ""))
            assert before == await client.client_id()


async def test_minority_that_answers_is_believed_with_a_warning(servers, make_pool, caplog):
    primary = servers.primary()
    async with FakeSentinel("a" * 40, (primary.host, primary.port)) as only:
        only.others = {letter * 40: ("127.0.0.1", 1) for letter in "bc"}
        async with make_pool(sentinels=addresses([only])) as pool:
            await pool.ping()

    assert ["only 1 of 3 sentinels of 'mymaster' answer"] == [
        record.getMessage().partition(": ")[2].partition(";")[0]
        for record in caplog.records
        if record.levelno == logging.WARNING
    ]


async def test_sentinel_too_old_to_say_its_identity_is_believed(servers, make_pool):
    async with FakeSentinel(None, address_of_primary(servers)) as old, make_pool(sentinels=[old.address]) as pool:
        await pool.ping()

        assert [f"127.0.0.1:{old.port}"] == [each.identity for each in sentinels_of(pool)]


@pytest.mark.parametrize("pong", [["pong", ""], ValueError("NOPERM this user has no permissions to run 'ping'")])
async def test_silent_sentinel_is_followed_as_long_as_it_answers_pings(servers, make_pool, until, monkeypatch, pong):
    shorten_ping_of_sentinels(monkeypatch, 0.05)
    async with (
        FakeSentinel("a" * 40, address_of_primary(servers)) as sentinel,
        make_pool(sentinels=[sentinel.address]) as pool,
    ):
        sentinel.pong = pong
        await pool.ping()
        await until(sentinel.subscriptions)
        before = sentinel.subscriptions()
        await until(lambda: sentinel.pings > 3)
        assert before == sentinel.subscriptions()
        sentinel.pong = None
        await until(lambda: not before & sentinel.subscriptions() and sentinel.subscriptions())


async def test_sentinel_is_followed_on_after_an_event_that_breaks_the_follower(servers, make_pool, until, caplog):
    async with (
        FakeSentinel("a" * 40, address_of_primary(servers)) as sentinel,
        make_pool(sentinels=[sentinel.address]) as pool,
    ):
        await pool.ping()
        for _ in range(2):
            await until(sentinel.subscriptions)
            before = sentinel.subscriptions()
            # No sentinel sends nil in place of a text.
            sentinel.announce("+switch-master", None)
            await until(lambda before=before: sentinel.subscriptions() - before)
        event = "slave r 127.0.0.1 1 @ mymaster 127.0.0.1 2"
        await until(lambda: sentinel.announce("+failover-state-send-slaveof-noone", event))
        await until(lambda: failovers_begun_of(pool))
    text = f"pool 'mymaster': following the sentinel 127.0.0.1:{sentinel.port} failed; it goes on with a new connection"
    assert [text] == [record.message for record in caplog.records if record.levelno == logging.ERROR]


async def test_follower_that_has_ended_is_replaced_when_the_primary_is_looked_up(servers, make_pool, until):
    async with (
        FakeSentinel("a" * 40, address_of_primary(servers)) as sentinel,
        make_pool(sentinels=[sentinel.address]) as pool,
    ):
        await pool.ping()
        await until(sentinel.subscriptions)
        before = sentinel.subscriptions()
        [follower] = followers_of(pool)
        follower.cancel()
        # A question that is under way may begin to follow anew already.
        await until(lambda: before.isdisjoint(sentinel.subscriptions()))
        await pool.disconnect()
        await pool.ping()

        await until(lambda: sentinel.subscriptions() - before)


async def test_user_of_sentinels_who_may_not_subscribe_is_named_in_a_warning(servers, make_pool, until, caplog):
    for sentinel in servers.sentinels:
        sentinel.call("ACL", "SETUSER", "limited", "on", ">secret", "+@all", "-psubscribe")
    async with make_pool(sentinel_username="limited", sentinel_password="secret") as pool:
        await pool.ping()
        await until(lambda: "refuses subscriptions, so that failovers are noticed late: " in caplog.text)


async def test_connection_that_a_failover_overtakes_is_made_again(servers, make_pool, until):
    async with FakeSentinel("a" * 40, address_of_primary(servers)) as sentinel:
        handshakes = 0

        async def connect(connection):
            nonlocal handshakes
            handshakes += 1
            if handshakes == 1:
                event = "slave r 127.0.0.1 1 @ mymaster 127.0.0.1 2"
                await until(lambda: sentinel.announce("+failover-state-send-slaveof-noone", event))
                await until(lambda: failovers_begun_of(pool))
                sentinel.announce("-failover-abort-not-elected", "master mymaster 127.0.0.1 2")
            await connection.on_connect()

        async with make_pool(sentinels=[sentinel.address], redis_connect_func=connect) as pool:
            assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")
    assert 2 == handshakes


# Errors.


async def test_error_says_that_the_given_address_is_no_sentinel(make_pool, server):
    async with make_pool(sentinels=[(server.host, server.port)], retries=0) as pool:
        with pytest.raises(redis.exceptions.ConnectionError, match=r"0 of 1 sentinels answered \(.*unknown command"):
            await pool.ping()


async def test_error_names_the_service_and_how_many_sentinels_answered(make_pool):
    async with make_pool(sentinels=[("127.0.0.1", 1), ("127.0.0.1", 2)], retries=0) as pool:
        with pytest.raises(
            redis.exceptions.ConnectionError, match=r"'mymaster' is known: 0 of 2 sentinels answered \("
        ):
            await pool.ping()


async def test_error_says_that_no_sentinel_knows_the_service(make_pool):
    async with make_pool(service="other", retries=0) as pool:
        with pytest.raises(
            redis.exceptions.ConnectionError, match="'other' is known: 3 of 3 sentinels answered, and none of them"
        ):
            await pool.ping()


async def test_error_says_that_a_name_has_no_address(make_pool):
    async with make_pool(sentinels=[("does-not-exist.invalid", 26379)], retries=0) as pool:
        with pytest.raises(redis.exceptions.ConnectionError, match=r"does-not-exist\.invalid:26379: "):
            await pool.ping()


async def test_first_call_waits_until_a_sentinel_is_there(make_pool, servers, until):
    primary = servers.primary()
    with RedisServer() as place:
        address = (place.host, place.port)
    async with make_pool(sentinels=[address], socket_timeout=DEADLINE) as pool:
        calling = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).set("key", "value"))
        await asyncio.sleep(0)
        fake = FakeSentinel("a" * 40, (primary.host, primary.port))
        fake.port = address[1]
        async with fake:
            assert await calling


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"sentinels": []}, "sentinels"),
        ({"sentinels": "127.0.0.1:26379"}, "sentinels"),
        ({"sentinels": [("127.0.0.1", "26379")]}, "sentinels"),
        ({"sentinels": [("", 26379)]}, "sentinels"),
        ({"service": ""}, "service"),
        ({"service": "two words"}, "service"),
        ({"service": None}, "service"),
        ({"connection_class": UnixDomainSocketConnection}, "connection_class"),
        ({"connection_class": lambda **_: None}, "connection_class"),
        ({"host": "127.0.0.1"}, "host"),
        ({"port": 6379}, "port"),
        ({"sentinel_password": "a", "sentinel_password_file": os.devnull}, "sentinel_password_file"),
        ({"address_map": "nonsense"}, "address_map"),
        ({"read_from": "nearest"}, "read_from"),
    ],
)
def test_argument_that_cannot_be_used_is_named(make_pool, arguments, key):
    with pytest.raises(ConfigurationError) as caught:
        make_pool(**arguments)
    assert key in [name for name, _ in caught.value.problems]


# Credentials and TLS.


async def test_data_servers_and_sentinels_have_credentials_of_their_own(tmp_path):
    path = tmp_path / "password"
    path.write_text("for-sentinels")
    with SentinelServers(down_after=60, password="for-data", sentinel_password="for-sentinels") as servers:
        for credentials in ({"sentinel_password": "for-sentinels"}, {"sentinel_password_file": str(path)}):
            async with MonitoredSentinelPool(
                addresses(servers.sentinels), "mymaster", password="for-data", **credentials, **UNRECORDED
            ) as pool:
                assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")


@pytest.mark.parametrize(
    ("credentials", "sent"),
    [
        ({}, []),
        ({"sentinel_password": "b"}, [["b"]]),
        ({"sentinel_username": "a", "sentinel_password": "b"}, [["a", "b"]]),
    ],
)
async def test_sentinels_get_no_other_credentials_than_theirs(make_pool, server, credentials, sent):
    async with (
        FakeSentinel("a" * 40, (server.host, server.port)) as fake,
        make_pool(sentinels=[fake.address], **credentials) as pool,
    ):
        await pool.ping()
        assert all(each in sent for each in fake.credentials)
        assert bool(sent) == bool(fake.credentials)


async def test_refused_credentials_of_sentinels_are_named(make_pool):
    with SentinelServers(replicas=1, sentinels=1, quorum=1, down_after=60, sentinel_password="secret") as servers:
        async with make_pool(sentinels=addresses(servers.sentinels), retries=0) as pool:
            with pytest.raises(
                redis.exceptions.AuthenticationError, match=r"0 of 1 sentinels answered.*; check sentinel_username"
            ):
                await pool.ping()


@pytest.mark.parametrize("multiplex", [True, False])
async def test_missing_rights_at_sentinels_are_an_error_at_once(make_pool, multiplex):
    with SentinelServers(replicas=1, sentinels=1, quorum=1, down_after=60) as servers:
        (sentinel,) = servers.sentinels
        sentinel.call("ACL", "SETUSER", "app", "on", ">secret", "allchannels", "+@all", "-sentinel")
        arguments = {"sentinel_username": "app", "sentinel_password": "secret", "socket_timeout": 60}
        async with make_pool(sentinels=[(sentinel.host, sentinel.port)], multiplex=multiplex, **arguments) as pool:
            with pytest.raises(
                redis.exceptions.NoPermissionError,
                match=r"0 of 1 sentinels answered.*no permissions.*; check the rights of sentinel_username",
            ):
                async with asyncio.timeout(30):
                    await MonitoredRedisConnection(connection_pool=pool).get("key")


async def test_server_that_is_no_sentinel_is_named_with_what_to_do(make_pool, server):
    async with make_pool(sentinels=[(server.host, server.port)], retries=0) as pool:
        with pytest.raises(redis.exceptions.ConnectionError, match=r"unknown command .*; it is no sentinel: "):
            await pool.ping()


async def test_sentinel_that_is_no_node_of_a_cluster_is_named_with_what_to_do(servers):
    (first, *_) = servers.sentinels
    async with MonitoredClusterPool([(first.host, first.port)], retries=0, **UNRECORDED) as pool:
        with pytest.raises(redis.exceptions.ResponseError, match=r"unknown command .*use redis\+sentinel://"):
            await pool.ping()


@pytest.mark.parametrize("multiplex", [True, False])
async def test_refused_credentials_of_sentinels_are_not_soon_sent_again(make_pool, until, multiplex):
    connects = 0

    def hang_up(_, writer):
        nonlocal connects
        connects += 1
        writer.close()

    async with listening(hang_up) as silent, FakeSentinel("a" * 40, None) as fake:
        fake.refuses_credentials = True
        sentinels = [fake.address, silent]
        async with make_pool(
            sentinels=sentinels, sentinel_password="wrong", socket_timeout=DEADLINE, multiplex=multiplex
        ) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            with pytest.raises(redis.exceptions.AuthenticationError, match="invalid username-password pair"):
                await client.get("key")
            before = connects
            # Following the other one is tried again and again.
            await until(lambda: connects > before + 5)

    # Once to ask, and once to follow.
    assert 2 == len(fake.credentials)


async def test_consumer_waits_for_a_new_password_of_the_sentinels(make_pool, server, until, tmp_path):
    path = tmp_path / "password"
    path.write_text("old")
    handled = asyncio.Event()

    async def handle(_):
        handled.set()

    async with (
        FakeSentinel("a" * 40, (server.host, server.port)) as fake,
        make_pool(sentinels=[fake.address], sentinel_password_file=str(path)) as pool,
    ):
        fake.refuses_credentials = True
        queue = MessageQueue("work", MonitoredRedisConnection(connection_pool=pool))
        consuming = asyncio.ensure_future(queue.consume(handle))
        await until(lambda: ["old"] in fake.credentials)
        fake.refuses_credentials = False
        async with MonitoredConnectionPool(host=server.host, port=server.port, **UNRECORDED) as direct:
            other = MessageQueue("work", MonitoredRedisConnection(connection_pool=direct))
            await other.put(b"message")
            await other.aclose()
        await asyncio.wait([consuming, asyncio.ensure_future(handled.wait())], return_when=asyncio.FIRST_COMPLETED)
        assert handled.is_set()
        consuming.cancel()
        await asyncio.wait([consuming])
        await queue.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_user_without_dangerous_commands_connects(make_pool, servers, protocol):
    for server in servers.data:
        server.call("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-@dangerous")
    async with make_pool(username="app", password="secret", protocol=protocol) as pool:
        assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")


@pytest.mark.parametrize("knows_role", [True, False])
async def test_server_without_hello_is_asked_for_its_role_as_far_as_the_user_may(make_pool, knows_role):
    with SentinelServers("--rename-command", "HELLO", "", replicas=1, sentinels=1, quorum=1, down_after=60) as old:
        for server in old.data:
            server.call(
                "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", *([] if knows_role else ["-role"])
            )
        replica = next(each for each in old.data if (each.host, each.port) != address_of_primary(old))
        arguments = {"username": "app", "password": "secret", "protocol": 2, "retries": 0}
        async with (
            FakeSentinel("a" * 40, address_of_primary(old)) as sentinel,
            make_pool(sentinels=[sentinel.address], **arguments) as pool,
        ):
            assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")
            # Without a role, the server itself refuses the write.
            sentinel.primary = (replica.host, replica.port)
            error = redis.exceptions.ConnectionError if knows_role else redis.exceptions.ReadOnlyError
            async with make_pool(sentinels=[sentinel.address], **arguments) as other:
                with pytest.raises(error):
                    await MonitoredRedisConnection(connection_pool=other).set("key", "value")


@pytest.fixture
def tls_servers(tmp_path):
    """Yield servers under Sentinel that accept TLS alone, if the server under test has TLS."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    files = TlsFiles(*(str(tmp_path / name) for name in ("certificate", "key", "authority")))
    certificate.cert_chain_pems[0].write_to_path(files.certificate)
    certificate.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    try:
        servers = SentinelServers(down_after=60, tls=files)
        servers.start()
    except RuntimeError as error:
        pytest.skip(f"the server has no TLS: {str(error).splitlines()[-1]}")
    yield servers, files
    servers.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_tls_is_used_for_servers_and_sentinels(tls_servers, host, until):
    servers, files = tls_servers
    named = [(host, each.port) for each in servers.sentinels]
    async with MonitoredSentinelPool(
        named, "mymaster", connection_class=SSLConnection, ssl_ca_certs=files.authority, **UNRECORDED
    ) as pool:
        assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")
        await until(lambda: all(map(is_followed, servers.sentinels)))


async def test_tls_is_used_for_replicas_whose_names_are_verified(tls_servers, until):
    servers, files = tls_servers
    arguments = {"connection_class": SSLConnection, "ssl_ca_certs": files.authority, "read_from": "replica"}
    async with MonitoredSentinelPool(addresses(servers.sentinels), "mymaster", **arguments, **UNRECORDED) as pool:
        await pool.ping()
        await until(lambda: len(replicas_of(pool)) == 2)
        before = reads_at(servers.primary())
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [None] * 20 == await asyncio.gather(*(client.get("key") for _ in range(20)))
        assert before == reads_at(servers.primary())


# What is left behind.


@pytest.mark.parametrize("read_from", ["primary", "replica"])
def test_event_loop_may_end_as_soon_as_the_pool_is_closed(tls_servers, read_from):
    servers, files = tls_servers

    async def use():
        arguments = {"connection_class": SSLConnection, "ssl_ca_certs": files.authority, "read_from": read_from}
        await close_while_blocked(MonitoredSentinelPool(addresses(servers.sentinels), "mymaster", **arguments))

    assert [] == warnings_after(use)


def test_pool_is_closed_in_bounded_time_when_all_servers_are_frozen_that_have_tls(tls_servers):
    servers, files = tls_servers
    arguments = {"connection_class": SSLConnection, "ssl_ca_certs": files.authority}

    async def use():
        pool = MonitoredSentinelPool(addresses(servers.sentinels), "mymaster", **arguments)
        async with AsyncExitStack() as stack:
            async with pool:
                await pool.ping()
                for server in (*servers.data, *servers.sentinels):
                    server.freeze()
                    stack.callback(server.thaw)
                # asyncio's own limit is 30 s.
                limit = await stack.enter_async_context(asyncio.timeout(15))
            limit.reschedule(None)

    assert [] == warnings_after(use, times=1)


async def test_answer_of_a_sentinel_does_not_wait_until_its_connection_is_closed(servers):
    # With TLS, closing takes another round trip, which must not count as time to answer.
    connections = SentinelConnections("mymaster", {}, uses_tls=False, asks_replicas=False)
    async with connections.connected(Sentinel(*addresses(servers.sentinels)[0]), 5) as connection:
        assert connection.is_connected
    assert connection.closing_sockets
    await connections.wait_closed()
    assert not connection.closing_sockets


async def test_closed_pool_follows_no_sentinel_and_can_be_opened_again(make_pool, servers, until):
    pool = make_pool()
    for _ in range(2):
        async with pool:
            await pool.ping()
            await until(lambda: all(map(is_followed, servers.sentinels)))
        await until(lambda: not any(map(is_followed, servers.sentinels)))
        with pytest.raises(PoolClosedError):
            await pool.ping()
    assert 1 == len(asyncio.all_tasks())


async def test_pool_that_is_closed_while_it_looks_for_the_primary_raises_that(make_pool, servers):
    servers.sentinels[0].freeze()
    try:
        async with make_pool(sentinels=addresses(servers.sentinels)[:1], retries=0, multiplex=False) as pool:
            calling = asyncio.ensure_future(pool.ping())
            await asyncio.sleep(0)
            await pool.aclose()
            with pytest.raises(PoolClosedError):
                await calling
    finally:
        servers.sentinels[0].thaw()


def test_pool_may_be_used_in_several_event_loops_one_after_the_other(make_pool):
    pool = make_pool()

    async def use():
        async with pool:
            await pool.ping()

    asyncio.run(use())
    asyncio.run(use())


def test_forgotten_pool_warns_and_its_followers_end(make_pool, servers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        texts = warnings_of_forgetting(make_pool, asyncio.new_event_loop)

    assert ["pool 'mymaster' was never closed: use 'async with' or aclose()"] == texts
    gc.collect()


def test_class_of_connections_shows_its_name_in_reprs(make_pool):
    assert Connection.__name__ == type(make_pool().make_connection()).__name__
