"""Failovers of servers under Sentinel: what is lost, what fails, and for how long; and sentinels that are wrong."""

import asyncio
import logging
import re
import signal
import socket
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress

import pytest
import redis.exceptions
from support.internals import failovers_begun_of, set_time_for_asking_sentinels
from support.sentinels import FakeSentinel, Writers
from support.sharing import UNRECORDED

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, MonitoredSentinelPool
from aioredis_monitored._topology.sentinel import EVENTS
from aioredis_monitored.testing import SentinelServers
from aioredis_monitored.testing.server import free_ports

DOWN_AFTER = 0.5
# Far longer than a promotion takes: what fails then does so because it may have run.
DEADLINE = 60.0
# Ten times what is expected, and five seconds more.
MAX_OUTAGE = 10 * (DOWN_AFTER + 3) + 5
# Between the announcement of a promotion and the promotion itself, there is a tenth of a second for calls in flight.
MAX_LAG = 0.05
# How often a round is tried again in which the machine was too slow to show anything.
ATTEMPTS = 5


@pytest.fixture
def servers():
    """Yield servers under Sentinel that only this test uses."""
    with SentinelServers(down_after=DOWN_AFTER) as running:
        yield running


def addresses(sentinels):
    return [(each.host, each.port) for each in sentinels]


@asynccontextmanager
async def client_of(servers, sentinels=None, **arguments):
    """Yield a client whose pool knows some of the sentinels at first, and soon follows all."""
    given = addresses(servers.sentinels if sentinels is None else sentinels)
    arguments = {"socket_timeout": DEADLINE, **UNRECORDED, **arguments}
    async with MonitoredSentinelPool(given, "mymaster", **arguments) as pool:
        yield MonitoredRedisConnection(connection_pool=pool)


def is_followed(server):
    """Whether the events of a sentinel, which has no PUBSUB, are subscribed to."""
    return f"sub={len(EVENTS)} psub=1 " in server.call("CLIENT", "LIST")


def restart_elsewhere(sentinel):
    """Restart a sentinel on another port, with the identity that it has written to its configuration."""
    sentinel.kill(signal.SIGTERM)
    [sentinel.port] = free_ports(1)
    sentinel.start()


async def until_written(writers, count, until):
    """Wait until that much more is acknowledged."""
    before = writers.acknowledged.total()
    await until(lambda: writers.acknowledged.total() > before + count)


async def until_replaced(servers, former, until):
    await until(lambda: servers.primary() is not former)


async def until_followed(servers, until):
    await until(lambda: all(is_followed(sentinel) for sentinel in servers.sentinels))


# S1 and S2: the primary is gone.


@pytest.mark.parametrize("fault", ["kill", "freeze"])
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_primary_that_is_gone_fails_no_more_than_what_was_in_flight(fault, rounds, until):
    callers = 8
    for _ in range(rounds):
        with SentinelServers(down_after=DOWN_AFTER) as servers:
            async with client_of(servers) as client:
                await client.ping()
                await until_followed(servers, until)
                former = servers.primary()
                async with Writers.writing(client, callers, 100, former) as writers:
                    await until_written(writers, 50, until)
                    getattr(former, fault)()
                    await until_replaced(servers, former, until)
                    await until_written(writers, 50, until)
                lost, twice = writers.differences(servers.primary())

        print(f"{fault}: {writers}; lost {lost} (replication is asynchronous)")
        assert writers.failed.total() <= callers, writers
        assert 0 == twice
        assert writers.outage < MAX_OUTAGE
        assert writers.slowest < MAX_OUTAGE


# S3: a planned failover.


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("given", "moves"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
async def test_planned_failover_loses_no_acknowledged_write(given, moves, rounds, until, caplog):
    conclusive = 0
    for _ in range(rounds * ATTEMPTS):
        caplog.clear()
        with SentinelServers(down_after=DOWN_AFTER) as servers:
            async with client_of(servers, servers.sentinels[:given]) as client:
                await client.ping()
                await until_followed(servers, until)
                if moves:
                    # The one that leads.
                    await asyncio.to_thread(restart_elsewhere, servers.sentinels[0])
                    await asyncio.to_thread(servers.wait_ok)
                    await until_followed(servers, until)
                former = servers.primary()
                async with Writers.writing(client, 100, 4_000, former) as writers:
                    await until_written(writers, 1_000, until)
                    promoted = await asyncio.to_thread(servers.failover)
                    await until_written(writers, 1_000, until)
                assert promoted is not former
                lost, twice = writers.differences(promoted)
        # The limits of the promise: the promotion takes less than the hold, and calls in flight are answered before it.
        is_conclusive = "was promoted in" not in caplog.text and writers.max_lag < MAX_LAG
        print(f"{given} of 3 sentinels given: {writers}; lost {lost}{'' if is_conclusive else ', inconclusive'}")
        assert not writers.failed, writers
        assert 0 == twice
        if is_conclusive or not lost:
            assert 0 == lost
            conclusive += 1
        if conclusive == rounds:
            break
    assert rounds == conclusive, "the machine was too slow in too many rounds"


async def test_hold_ends_with_the_failover_that_is_aborted(servers, until, caplog):
    primary = servers.primary()
    replica = next(each for each in servers.data if each is not primary)
    async with (
        FakeSentinel("f" * 40, (primary.host, primary.port)) as fake,
        client_of(servers, [fake]) as client,
    ):
        await client.set("key", "0")
        event = f"slave r {replica.host} {replica.port} @ mymaster {primary.host} {primary.port}"
        await until(lambda: fake.announce("+failover-state-send-slaveof-noone", event))
        await until(lambda: client.connection_pool.stats().used == 0)
        waiting = asyncio.ensure_future(client.incr("key"))
        await until(lambda: client.connection_pool.stats().pending == 1)
        fake.announce("-failover-abort-not-elected", f"master mymaster {primary.host} {primary.port}")

        assert 1 == await waiting
    assert "was promoted in" not in caplog.text


async def test_hold_ends_by_itself_and_only_once_for_a_failover(servers, until, caplog):
    caplog.set_level(logging.WARNING)
    primary = servers.primary()
    replica = next(each for each in servers.data if each is not primary)
    async with (
        FakeSentinel("f" * 40, (primary.host, primary.port)) as fake,
        client_of(servers, [fake], socket_timeout=1.0) as client,
    ):
        await client.set("key", "0")
        event = f"slave r {replica.host} {replica.port} @ mymaster {primary.host} {primary.port}"
        channel = "+failover-state-send-slaveof-noone"
        # One sentinel may be followed at two addresses.
        await until(lambda: fake.announce(channel, event) and fake.announce(channel, event))
        await until(lambda: client.connection_pool.stats().used == 0)

        assert 1 == await client.incr("key")
        # Half of the deadline.
        assert 1 == caplog.text.count("was promoted in 0.5 s")
        assert 1 == failovers_begun_of(client.connection_pool)


async def test_connecting_to_a_machine_that_is_gone_ends_with_the_switch(server, until):
    # Its backlog is full, so that the kernel answers nothing more, as if the machine were gone.
    with socket.socket() as gone, ExitStack() as waiting:
        gone.bind(("127.0.0.1", 0))
        gone.listen(0)
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(gone.getsockname())
        async with (
            FakeSentinel("f" * 40, gone.getsockname()) as fake,
            MonitoredSentinelPool([fake.address], "mymaster", socket_connect_timeout=600, **UNRECORDED) as pool,
        ):
            calling = asyncio.ensure_future(MonitoredRedisConnection(connection_pool=pool).set("key", "value"))
            fake.primary = (server.host, server.port)
            await until(lambda: fake.announce("+switch-master", f"mymaster a 1 {server.host} {server.port}"))
            assert await calling


# S4: the primary and the first sentinel are gone.


@pytest.mark.slow
async def test_primary_and_first_sentinel_that_are_frozen_are_left(servers, until):
    async with client_of(servers) as client:
        await client.ping()
        await until_followed(servers, until)
        former = servers.primary()
        async with Writers.writing(client, 8, 100, former) as writers:
            await until_written(writers, 50, until)
            servers.sentinels[0].freeze()
            former.freeze()
            await until_replaced(servers, former, until)
            await until_written(writers, 50, until)

    print(writers)
    assert writers.failed.total() <= 8
    assert writers.outage < MAX_OUTAGE


async def test_client_that_starts_with_a_frozen_sentinel_connects(servers):
    servers.sentinels[0].freeze()
    async with client_of(servers) as client:
        assert await client.set("key", "value")


@pytest.mark.parametrize("multiplex", [True, False])
async def test_call_waits_for_frozen_sentinels_no_longer_than_for_a_reply(servers, monkeypatch, multiplex):
    set_time_for_asking_sentinels(monkeypatch, 100.0)
    for sentinel in servers.sentinels:
        sentinel.freeze()
    loop = asyncio.get_running_loop()
    async with client_of(servers, socket_timeout=0.3, multiplex=multiplex) as client:
        began = loop.time()
        with pytest.raises(redis.exceptions.ConnectionError, match=r"0 of 3 sentinels answered .*no answer in 0\.15 s"):
            await client.set("key", "value")
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.blpop(["list"], 0.1)
        with pytest.raises(redis.exceptions.ConnectionError):
            await client.connection_pool.ping()
        assert loop.time() - began < 20


# S5: sentinels that disagree, and one that lies.


@asynccontextmanager
async def fakes(*named):
    """Yield sentinels, each of which names an address with an epoch, and knows the others."""
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(FakeSentinel(f"{number:040x}", (server.host, server.port), epoch))
            for number, (server, epoch) in enumerate(named)
        ]
        for each in running:
            each.others = {other.identity: (other.host, other.port) for other in running if other is not each}
        yield running


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ([("primary", 0), ("primary", 0), ("replica", 9)], 3),
        ([("replica", 9), ("primary", 0), ("primary", 0)], 1),
        ([("replica", 1), ("primary", 2)], 2),
        ([("primary", 2), ("replica", 1)], 2),
    ],
)
async def test_sentinels_that_disagree_are_outvoted_by_majority_and_then_by_epoch(servers, named, given):
    primary = servers.primary()
    replica = next(each for each in servers.data if each is not primary)
    by_name = {"primary": primary, "replica": replica}
    async with (
        fakes(*((by_name[name], epoch) for name, epoch in named)) as sentinels,
        client_of(servers, sentinels[:given], retries=0) as client,
    ):
        assert 1 == await client.incr("key")
        assert not has_refused_writes(replica)


async def test_server_that_all_sentinels_name_gets_no_write_while_it_is_a_replica(servers, until):
    primary = servers.primary()
    replica = next(each for each in servers.data if each is not primary)
    async with fakes((replica, 0)) as [fake], client_of(servers, [fake]) as client:
        before = connections_received(replica)
        writing = asyncio.ensure_future(client.incr("key"))
        await until(lambda: connections_received(replica) > before + 5)
        assert not writing.done()
        fake.primary = (primary.host, primary.port)

        assert 1 == await writing
    assert not has_refused_writes(replica)


async def test_sentinel_that_lies_moves_no_write_to_a_replica(servers, until):
    primary = servers.primary()
    replica = next(each for each in servers.data if each is not primary)
    lie = f"mymaster {primary.host} {primary.port} {replica.host} {replica.port}"
    async with (
        FakeSentinel("f" * 40, (replica.host, replica.port), 99) as liar,
        client_of(servers, [liar, *servers.sentinels]) as client,
    ):
        await client.ping()
        await until_followed(servers, until)
        async with Writers.writing(client, 8, 100, primary) as writers:
            for _ in range(3):
                await until(lambda: liar.announce("+switch-master", lie))
                await until_written(writers, 50, until)
        lost, twice = writers.differences(primary)

    print(writers)
    assert (0, 0) == (lost, twice)
    assert not has_refused_writes(replica)
    # Those whose connection the lie has ended.
    assert writers.failed.total() <= 8


async def test_sentinel_that_announces_an_old_failover_moves_no_call(servers, server, until):
    primary = servers.primary()
    async with (
        # Which has not been demoted yet.
        FakeSentinel("f" * 40, (primary.host, primary.port)) as late,
        client_of(servers, [late, *servers.sentinels]) as client,
    ):
        await client.ping()
        await until_followed(servers, until)
        async with Writers.writing(client, 8, 100, primary) as writers:
            for _ in range(3):
                await until(lambda: late.announce("+switch-master", f"mymaster 10.0.0.9 1 {server.host} {server.port}"))
                await until_written(writers, 50, until)
        lost, twice = writers.differences(primary)

    assert not writers.failed, writers
    assert (0, 0) == (lost, twice)


@pytest.mark.slow
async def test_announcement_that_most_sentinels_do_not_confirm_is_taken_back(servers, server, until):
    primary = servers.primary()
    lie = f"mymaster {primary.host} {primary.port} {server.host} {server.port}"
    async with (
        FakeSentinel("f" * 40, (primary.host, primary.port)) as liar,
        client_of(servers, [liar, *servers.sentinels]) as client,
    ):
        await client.ping()
        await until_followed(servers, until)
        async with Writers.writing(client, 8, 100, primary) as writers:
            await until(lambda: liar.announce("+switch-master", lie))
            await until(lambda: server.call("DBSIZE"))
            before = primary.call("GET", "counter:0")
            await until(lambda: before != primary.call("GET", "counter:0"))
            # Once is enough.
            count = server.call("GET", "counter:0")
            liar.announce("+switch-master", lie)
            await until_written(writers, 50, until)
            assert count == server.call("GET", "counter:0")


def connections_received(server):
    """Return how many connections a server has accepted."""
    return int(re.search(r"total_connections_received:(\d+)", server.call("INFO", "stats"))[1])


def has_refused_writes(replica):
    """Whether a replica has refused writes."""
    return "READONLY" in replica.call("INFO", "errorstats")


# Handles that keep to a connection.


async def test_planned_failover_moves_subscriptions(servers, until):
    async with client_of(servers) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("channel")
        await client.ping()
        await until_followed(servers, until)
        assert "subscribe" == (await pubsub.get_message(timeout=DEADLINE))["type"]
        promoted = await asyncio.to_thread(servers.failover)

        reading = asyncio.ensure_future(pubsub.get_message(ignore_subscribe_messages=True, timeout=DEADLINE))
        await until(lambda: promoted.call("PUBSUB", "NUMSUB", "channel")[1] == 1)
        await client.publish("channel", "text")
        message = await reading
        while message is None:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=DEADLINE)
        assert b"text" == message["data"]


async def test_transaction_that_watches_during_a_failover_is_done_once(servers, until):
    async with client_of(servers) as client:
        await client.ping()
        await until_followed(servers, until)
        done = 0
        is_over = asyncio.Event()

        async def increment(pipeline):
            value = int(await pipeline.get("key") or 0)
            pipeline.multi()
            pipeline.set("key", value + 1)

        async def count():
            nonlocal done
            while not is_over.is_set():
                await client.transaction(increment, "key")
                done += 1
                await asyncio.sleep(0.002)

        counting = asyncio.ensure_future(count())
        await until(lambda: done > 50)
        promoted = await asyncio.to_thread(servers.failover)
        before = done
        await until(lambda: done > before + 50)
        is_over.set()
        await counting

        assert done == int(promoted.call("GET", "key"))


async def test_pinned_client_goes_on_at_the_new_primary(servers, until):
    async with client_of(servers) as client, client.client() as single:
        await single.set("key", "0")
        await until_followed(servers, until)
        promoted = await asyncio.to_thread(servers.failover)

        assert 1 == await single.incr("key")
        assert "1" == promoted.call("GET", "key")


# What blocks, and the message queue.


@pytest.mark.parametrize("call", ["blpop", "xread", "get", "take"])
@pytest.mark.parametrize("fault", ["failover", "freeze"])
async def test_blocked_call_raises_when_the_primary_is_replaced(servers, until, call, fault):
    async with client_of(servers) as client:
        queue = MessageQueue("work", client)

        async def take():
            async with queue.take(timeout=DEADLINE) as message:
                return message

        blocks = {
            "blpop": lambda: client.blpop(["list"], DEADLINE),
            "xread": lambda: client.xread({"stream": "$"}, block=round(DEADLINE * 1000)),
            "get": lambda: queue.get(timeout=DEADLINE),
            "take": take,
        }
        await client.ping()
        await until_followed(servers, until)
        former = servers.primary()
        blocked = asyncio.ensure_future(blocks[call]())
        await until(lambda: "blocked_clients:1" in former.call("INFO", "clients"))
        if fault == "freeze":
            former.freeze()
        else:
            await asyncio.to_thread(servers.failover)
        with pytest.raises(redis.exceptions.ConnectionError):
            await blocked

        await queue.put(b"message")
        assert b"message" == await queue.get(timeout=DEADLINE)
        await queue.aclose()


@pytest.mark.parametrize("is_lease", [True, False])
async def test_queue_loses_no_message_in_a_planned_failover(servers, until, is_lease):
    async with client_of(servers) as client:
        queue = MessageQueue("work", client)
        await queue.put_many([b"first"])
        await until_followed(servers, until)
        sent, received = {b"first"}, []
        is_over = asyncio.Event()

        async def send():
            number = 0
            while not is_over.is_set():
                message = b"%d" % number
                number += 1
                with suppress(Exception):
                    await queue.put(message)
                    sent.add(message)
                await asyncio.sleep(0.005)

        async def receive():
            while True:
                with suppress(Exception):
                    if is_lease:
                        async with queue.take(timeout=1) as message:
                            received.append(message)
                    else:
                        received.append(await queue.get(timeout=1))

        tasks = [asyncio.ensure_future(work()) for work in (send, receive, receive)]
        await until(lambda: len(received) > 50)
        await asyncio.to_thread(servers.failover)
        before = len(received)
        await until(lambda: len(received) > before + 50)
        is_over.set()
        await tasks[0]
        await until(lambda: sent <= set(received))
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        await queue.aclose()

    print(f"{len(sent)} sent, {len(received) - len(set(received))} received more than once")
