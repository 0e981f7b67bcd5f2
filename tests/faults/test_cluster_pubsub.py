"""Subscriptions in a cluster go on when slots move, and when nodes fail, are replaced or removed."""

import asyncio
import gc
import logging
import re
import time
from types import SimpleNamespace

import pytest
from redis.exceptions import NoPermissionError
from support.internals import forget_removed_nodes_at_once, refresh_topology

from aioredis_monitored import (
    ClusterRoutingError,
    MonitoredConnectionPool,
    MonitoredPubSub,
    MonitoredRedisConnection,
    PinnedConnectionLostError,
    PoolClosedError,
)
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers

RECONNECTS = "aioredis_monitored.pubsub.reconnects"
# Channels at all three primaries.
SHARDED = [f"channel:{number}" for number in range(12)]


@pytest.fixture(scope="module")
def servers():
    with ClusterServers() as running:
        yield running


@pytest.fixture
def faulty(servers):
    """Yield a cluster whose nodes may be killed or frozen: they run again at the test's end."""
    yield servers
    for node in servers.nodes:
        if node.is_frozen:
            node.thaw()
        elif not node.is_running:
            node.start()
    servers.wait_ok()


@pytest.fixture
async def client(servers, telemetry):
    async with MonitoredConnectionPool.from_url(servers.url, **telemetry.providers) as pool:
        yield MonitoredRedisConnection(connection_pool=pool)


async def next_of(pubsub, *kinds):
    """Return the next message of this type; by default one that was published."""
    async with asyncio.timeout(30):
        while (message := await pubsub.get_message(timeout=1)) is None or message["type"] not in (
            kinds or pubsub.PUBLISH_MESSAGE_TYPES
        ):
            pass
    return message


async def confirmed(pubsub, count):
    kinds = ("subscribe", "psubscribe", "ssubscribe")
    return [(await next_of(pubsub, *kinds))["channel"] for _ in range(count)]


def another_primary(cluster, slot):
    owner = cluster.owner(slot)
    return next(node for node in cluster.primaries() if node is not owner)


async def heard_again(pubsub, publish, channel, type_):
    """Publish until a message arrives; return how long after the first attempt that was."""
    began = time.monotonic()
    arrived = asyncio.create_task(next_of(pubsub))
    while not arrived.done():
        await asyncio.to_thread(publish)
        await asyncio.wait([arrived], timeout=0.05)
    message = arrived.result()
    assert (message["type"], message["channel"]) == (type_, channel.encode())
    return time.monotonic() - began


def publishing(cluster, command, channel):
    """Return what publishes at any running node that takes it."""

    def publish():
        for node in cluster.primaries():
            try:
                node.call(command, channel, "again")
            except Exception:  # noqa: BLE001, S112 - the cluster is in the middle of a failover
                continue
            else:
                return

    return publish


# Without a fault.


async def test_one_object_receives_plain_and_sharded_messages_and_patterns(client):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        assert isinstance(pubsub, MonitoredPubSub)
        await pubsub.subscribe("news")
        await pubsub.psubscribe("new?")
        await pubsub.ssubscribe(*SHARDED)
        await asyncio.gather(*(client.spublish(channel, channel) for channel in SHARDED), client.publish("news", "m"))

        received = [await next_of(pubsub) for _ in range(len(SHARDED) + 2)]

    assert sorted((message["type"], message["data"]) for message in received) == sorted(
        [("message", b"m"), ("pmessage", b"m"), *(("smessage", channel.encode()) for channel in SHARDED)]
    )


async def test_shard_channels_take_one_connection_for_each_of_their_nodes(servers, client, until):
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(*SHARDED)
        await confirmed(pubsub, len(SHARDED))

        subscribers = [node.call("CLIENT", "LIST", "TYPE", "pubsub").count("ssub=") for node in servers.primaries()]
        assert subscribers == [1, 1, 1]

        await pubsub.sunsubscribe()
        ended = [(await next_of(pubsub, "sunsubscribe"))["channel"].decode() for _ in SHARDED]
        assert sorted(ended) == sorted(SHARDED)
        assert not pubsub.subscribed

    await until(lambda: not any(node.call("CLIENT", "LIST", "TYPE", "pubsub") for node in servers.primaries()))


async def test_messages_of_a_busy_channel_do_not_hold_back_those_of_others(client):
    busy, *others = SHARDED
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.ssubscribe(*SHARDED)
        for number in range(200):
            await client.spublish(busy, number)
        for channel in others:
            await client.spublish(channel, "rare")
        of = client.connection_pool.of
        elsewhere = {each for each in others if of(("SPUBLISH", each, "")) is not of(("SPUBLISH", busy, ""))}

        received = [(await next_of(pubsub))["channel"].decode() for _ in range(60)]

    assert elsewhere <= set(received)


async def test_get_sharded_message_returns_no_plain_message(client):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        await pubsub.ssubscribe("shard")
        await client.publish("news", "plain")
        await client.spublish("shard", "sharded")
        async with asyncio.timeout(30):
            while (sharded := await pubsub.get_sharded_message(timeout=1)) is None:
                pass

        assert (sharded["type"], sharded["data"]) == ("smessage", b"sharded")
        assert b"plain" == (await next_of(pubsub))["data"]


async def test_handlers_and_envelopes_work_for_both_kinds_while_run_reads(client, until):
    received = []
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(news=received.append)
        await pubsub.ssubscribe(shard=received.append)
        running = asyncio.create_task(pubsub.run())
        await client.publish("news", "plain", propagate=True)
        await client.spublish("shard", "sharded", propagate=True)
        await until(lambda: len(received) == 2)
        running.cancel()
        await asyncio.wait([running])

    assert {message["data"] for message in received} == {b"plain", b"sharded"}


async def test_waiting_reader_ends_when_subscriptions_are_closed(client):
    pubsub = client.pubsub()
    await pubsub.ssubscribe("shard")
    await confirmed(pubsub, 1)
    waiting = asyncio.create_task(pubsub.get_message(timeout=None))
    await asyncio.sleep(0)
    await pubsub.aclose()

    assert await asyncio.wait_for(waiting, 30) is None
    with pytest.raises(RuntimeError, match="did you forget to call subscribe"):
        await pubsub.get_message()


async def test_subscribing_while_subscriptions_are_closed_raises_and_leaves_nothing(servers, client, until):
    await client.ping()
    others = asyncio.all_tasks()
    pubsub = client.pubsub()
    subscribing = asyncio.create_task(pubsub.ssubscribe(*SHARDED))
    # It connects to the first of several nodes.
    await asyncio.sleep(0)
    await pubsub.aclose()

    with pytest.raises(PinnedConnectionLostError, match="closed while the call was in flight"):
        await subscribing
    await until(lambda: not any(subscribes(node) for node in servers.nodes))
    await until(lambda: asyncio.all_tasks() <= others)

    # What it was to subscribe to is forgotten, also after the next refresh.
    async with pubsub:
        await pubsub.ssubscribe("used again")
        await refresh_topology(client.connection_pool)
        assert await confirmed(pubsub, 1) == [b"used again"]
        assert 1 == sum(subscribes(node) for node in servers.nodes)


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
async def test_cancelled_subscription_ends_no_other_one_to_the_same_channel(client, turns):
    # The nodes are known then.
    await client.ping()
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        leaving, staying = (asyncio.create_task(pubsub.ssubscribe("shard")) for _ in range(2))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        await staying
        await client.spublish("shard", "message")

        # After more turns it may have subscribed already.
        assert leaving.cancelled() or turns > 2
        assert b"message" == (await next_of(pubsub))["data"]


async def test_closed_subscriptions_do_not_follow_slots_until_they_are_used_again(client):
    observers = client.connection_pool.cluster_topology.observers
    pubsub = client.pubsub()
    for _ in range(2):
        assert pubsub not in observers
        await pubsub.ssubscribe("shard")
        assert pubsub in observers
        await pubsub.aclose()
    assert pubsub not in observers


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_closing_subscriptions_gives_every_connection_back_when_cancelled(servers, client, until, turns):
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    await pubsub.ssubscribe(*SHARDED)
    await confirmed(pubsub, 1 + len(SHARDED))
    await cancelled_after(turns, pubsub.aclose())
    await until(lambda: not any(map(subscribes, servers.nodes)))


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_closing_notifications_about_keys_gives_every_connection_back_when_cancelled(make_pool, until, turns):
    with ClusterServers("--cluster-require-full-coverage", "no", replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=2))
        await client.dbsize()
        *living, frozen = servers.nodes
        frozen.freeze()
        notifications = client.keyspace_notifications()
        await notifications.subscribe_keyspace("*")
        # In the background, it goes on to subscribe at the node that does not answer.
        await notifications.get_message()
        await until(lambda: all(map(subscribes, living)))
        await cancelled_after(turns, notifications.aclose())
        await until(lambda: not any(map(subscribes, living)))


async def cancelled_after(turns, work):
    task = asyncio.create_task(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("is_read", [True, False])
async def test_subscriptions_that_are_never_closed_leave_no_task_after_their_pool(servers, until, caplog, is_read):
    others = asyncio.all_tasks()
    async with MonitoredConnectionPool.from_url(servers.url) as pool:
        pubsub = MonitoredRedisConnection(connection_pool=pool).pubsub()
        await pubsub.subscribe("news")
        await pubsub.ssubscribe(*SHARDED)
        if is_read:
            await confirmed(pubsub, 1 + len(SHARDED))

    await until(lambda: asyncio.all_tasks() <= others)
    del pubsub
    gc.collect()
    assert [] == caplog.record_tuples


async def test_forgotten_subscriptions_destroy_no_pending_task(client, caplog):
    pubsub = client.pubsub()
    await pubsub.subscribe("news", "other")
    await confirmed(pubsub, 1)
    # Meanwhile, the second confirmation, which came with the first one, is read; it is not taken.
    await client.ping()
    del pubsub
    gc.collect()
    assert [] == caplog.record_tuples


async def test_channels_that_no_node_serves_are_given_up_when_the_pool_is_closed(servers, until):
    others = asyncio.all_tasks()
    async with MonitoredConnectionPool.from_url(servers.url) as pool:
        pubsub = MonitoredRedisConnection(connection_pool=pool).pubsub()
        await pubsub.ssubscribe("shard")
        await confirmed(pubsub, 1)
        pool.cluster_topology.slots[key_slot("shard")] = None
        pubsub.on_nodes_changed()
        # Its attempts to subscribe at another node have begun.
        await asyncio.sleep(0)

    await until(lambda: asyncio.all_tasks() <= others)
    with pytest.raises(PoolClosedError):
        await next_of(pubsub)
    await pubsub.aclose()


async def test_closed_pool_is_raised_to_every_reader(servers):
    pool = MonitoredConnectionPool.from_url(servers.url)
    pubsub = MonitoredRedisConnection(connection_pool=pool).pubsub()
    await pubsub.subscribe("news")
    await pubsub.ssubscribe("shard")
    await confirmed(pubsub, 2)
    await pool.aclose()

    for _ in range(3):
        with pytest.raises(PoolClosedError):
            await next_of(pubsub)
    await pubsub.aclose()


async def test_refused_shard_channel_is_raised_and_others_go_on(servers, client):
    for node in servers.nodes:
        node.call("ACL", "SETUSER", "limited", "on", "nopass", "+@all", "~*", "resetchannels", "&allowed")
    host = servers.nodes[0]
    url = f"redis+cluster://limited:any@{host.host}:{host.port}"
    async with MonitoredRedisConnection.from_url(url) as limited, limited.pubsub() as pubsub:
        await pubsub.ssubscribe("allowed")
        await confirmed(pubsub, 1)
        await pubsub.ssubscribe("forbidden")
        with pytest.raises(NoPermissionError):
            await next_of(pubsub)
        await client.spublish("allowed", "message")

        assert b"message" == (await next_of(pubsub))["data"]


async def test_error_while_a_response_is_looked_at_is_raised_and_messages_go_on(client):
    async def handler(response):
        return [] if response[-1] == b"bad" else response

    async with client.pubsub(push_handler_func=handler) as pubsub:
        await pubsub.ssubscribe("shard")
        await confirmed(pubsub, 1)
        await client.spublish("shard", "bad")
        with pytest.raises(IndexError):
            await next_of(pubsub)
        await client.spublish("shard", "good")

        assert b"good" == (await next_of(pubsub))["data"]


async def test_monitor_shows_the_commands_of_the_node_that_is_named(client):
    with pytest.raises(ClusterRoutingError, match="target_node"):
        client.monitor()
    # The flag is resolved when the nodes are known.
    async with client.monitor(target_node="default-node"):
        pass
    node, *_ = client.connection_pool.nodes_of_slot(key_slot("seen"))
    for target in (node, SimpleNamespace(host=node.host, port=node.port), [node]):
        async with client.monitor(target_node=target) as monitor:
            await client.get("seen")
            async with asyncio.timeout(30):
                while "GET seen" not in (await monitor.next_command())["command"]:
                    pass


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ("primaries", ClusterRoutingError, "must name one node here, got 3"),
        ("somewhere", TypeError, "target_nodes must be one of"),
    ],
)
async def test_monitor_refuses_what_names_no_node_or_several(client, target, error, text):
    with pytest.raises(error, match=text):
        await client.monitor(target_node=target).__aenter__()


# C8: the slot moves.


def migrated(cluster, slot):
    cluster.migrate(slot, another_primary(cluster, slot))


def failed_over(cluster, slot):
    cluster.failover(cluster.replica_of(cluster.owner(slot)))


def migrated_atomically(cluster, slot):
    try:
        cluster.migrate_atomically([slot], another_primary(cluster, slot))
    except NotImplementedError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("fault", [migrated, migrated_atomically, failed_over])
async def test_shard_subscriber_follows_its_slot(faulty, client, telemetry, caplog, fault):
    caplog.set_level(logging.WARNING, "aioredis_monitored.pubsub")
    calls = []
    async with client.pubsub(on_reconnect=lambda: calls.append(1)) as pubsub:
        await pubsub.ssubscribe("{moving}a", "{moving}b")
        await confirmed(pubsub, 2)
        await asyncio.to_thread(fault, faulty, key_slot("{moving}a"))
        began = time.monotonic()

        # The unsolicited push is not shown, and the confirmations are those of the new node.
        assert sorted(await confirmed(pubsub, 2)) == [b"{moving}a", b"{moving}b"]
        took = time.monotonic() - began
        print(f"{fault.__name__}: subscribed again after {took:.3f} s")
        for channel in ("{moving}a", "{moving}b"):
            assert 1 == await client.spublish(channel, channel)
            assert channel.encode() == (await next_of(pubsub))["data"]

    assert took <= 1 * 10 + 5
    assert calls == [1]
    assert 1 == sum(telemetry.tally(RECONNECTS).values())
    assert [record.message for record in caplog.records if "subscribed again" in record.message]
    await asyncio.to_thread(faulty.wait_ok)


async def test_subscribing_follows_moved(faulty, client):
    slot = key_slot("stale")
    await client.get("stale")
    await asyncio.to_thread(migrated, faulty, slot)
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe("stale")

        assert await confirmed(pubsub, 1) == [b"stale"]
        await pubsub.sunsubscribe("stale")
        await asyncio.to_thread(migrated, faulty, slot)
        assert b"stale" == (await next_of(pubsub, "sunsubscribe"))["channel"]
        assert not pubsub.subscribed


async def test_unsubscribing_at_the_node_that_a_slot_has_left_is_confirmed(faulty, client):
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe("{left}a", "{left}b")
        await confirmed(pubsub, 2)
        # The map is old when the command is sent.
        faulty.migrate(key_slot("{left}a"), another_primary(faulty, key_slot("{left}a")))
        await pubsub.sunsubscribe("{left}a")

        assert b"{left}a" == (await next_of(pubsub, "sunsubscribe"))["channel"]
        await client.spublish("{left}a", "unheard")
        async with asyncio.timeout(30):
            while not await client.spublish("{left}b", "heard"):
                await asyncio.sleep(0.01)
        assert b"heard" == (await next_of(pubsub))["data"]


async def test_subscribing_that_is_cancelled_subscribes_to_nothing_later(faulty, client):
    owner, elsewhere = faulty.owner("shard"), another_primary(faulty, key_slot("shard"))
    channel, other = [each for each in SHARDED if faulty.owner(each) is elsewhere][:2]
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(channel)
        await confirmed(pubsub, 1)
        owner.freeze()
        # It succeeds at one node, and connects to the frozen one then.
        subscribing = asyncio.ensure_future(pubsub.ssubscribe(other, "shard"))
        await asyncio.wait([subscribing], timeout=0.05)
        assert not subscribing.done()
        subscribing.cancel()
        await asyncio.wait([subscribing])
        owner.thaw()
        await asyncio.to_thread(faulty.wait_ok)
        for _ in range(2):
            await refresh_topology(client.connection_pool)

        assert 0 == await client.spublish(other, "unheard")
        await client.spublish(channel, "message")
        assert b"message" == (await next_of(pubsub))["data"]
        assert 0 == await client.spublish("shard", "unheard")


async def test_subscribing_again_after_what_failed_or_ended_is_no_reconnection(faulty, client, telemetry, until):
    owner, elsewhere = faulty.owner("shard"), another_primary(faulty, key_slot("shard"))
    channel, other = [each for each in SHARDED if faulty.owner(each) is elsewhere][:2]
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(channel)
        await confirmed(pubsub, 1)
        owner.freeze()
        subscribing = asyncio.ensure_future(pubsub.ssubscribe(other, "shard"))
        await until(lambda: subscribers_of(other, elsewhere))
        again = asyncio.ensure_future(pubsub.ssubscribe(other))
        await asyncio.sleep(0)
        subscribing.cancel()
        await again
        owner.thaw()
        # The confirmations of these do not say that the slot has left the node.
        await pubsub.sunsubscribe(other)
        await pubsub.ssubscribe(other)

        await until(lambda: subscribers_of(other, elsewhere))
        await client.spublish(other, "message")
        assert b"message" == (await next_of(pubsub))["data"]
        for _ in range(2):
            await refresh_topology(client.connection_pool)
        assert await pubsub.get_message(timeout=0) is None
    assert 0 == sum(telemetry.tally(RECONNECTS).values())
    await asyncio.to_thread(faulty.wait_ok)


def subscribers_of(channel, node):
    _, count = node.call("PUBSUB", "SHARDNUMSUB", channel)
    return count


async def test_nodes_that_redirect_to_each_other_are_asked_after_growing_delays(make_pool):
    with ClusterServers(primaries=2, replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url))
        source, slot = servers.owner("shard"), key_slot("shard")
        target = another_primary(servers, slot)
        async with client.pubsub() as pubsub:
            await pubsub.ssubscribe("shard")
            await confirmed(pubsub, 1)
            # The target does not know yet, and says that the source has the slot.
            source.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
            began = time.monotonic()
            while time.monotonic() < began + 2:
                await pubsub.get_message(timeout=0.1)
            redirects = sum(commands_refused(node, "ssubscribe") for node in servers.nodes)
            print(f"{redirects} redirects in 2 s")
            target.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)

            assert [b"shard"] == await confirmed(pubsub, 1)
            assert 1 == subscribers_of("shard", target)
        # Without delays, there are some two thousand.
        assert 2 <= redirects <= 100


def commands_refused(node, command):
    """Return how many calls of a command a node has refused, with a redirect for instance."""
    found = re.search(rf"cmdstat_{command}:.*rejected_calls=(\d+)", node.call("INFO", "commandstats"))
    return 0 if found is None else int(found[1])


async def kill_subscribers(nodes):
    return sum([await asyncio.to_thread(node.call, "CLIENT", "KILL", "TYPE", "pubsub") for node in nodes])


async def test_shard_subscriber_whose_connection_is_cut_subscribes_again_at_the_node(faulty, client, telemetry):
    calls = []
    async with client.pubsub(on_reconnect=lambda: calls.append(1)) as pubsub:
        await pubsub.ssubscribe(*SHARDED)
        await confirmed(pubsub, len(SHARDED))
        assert 3 == await kill_subscribers(faulty.primaries())

        assert sorted(SHARDED) == sorted(each.decode() for each in await confirmed(pubsub, len(SHARDED)))
        for channel in SHARDED:
            assert 1 == await client.spublish(channel, channel)
        assert sorted(SHARDED) == sorted([(await next_of(pubsub))["data"].decode() for _ in SHARDED])

    assert 3 == len(calls) == sum(telemetry.tally(RECONNECTS).values())


async def test_unsubscribing_whose_connection_is_cut_is_confirmed(faulty, client):
    owner = faulty.owner("{cut}a")
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe("{cut}a", "{cut}b")
        await confirmed(pubsub, 2)
        owner.freeze()
        await pubsub.sunsubscribe("{cut}a")
        # The command is lost with its connection.
        owner.kill()
        owner.start()

        assert b"{cut}a" == (await next_of(pubsub, "sunsubscribe"))["channel"]
        assert [b"{cut}b"] == await confirmed(pubsub, 1)
        assert [b"{cut}b"] == list(pubsub.shard_channels)


async def test_messages_of_a_node_that_a_channel_has_left_do_not_follow_those_of_the_new_one(faulty, client):
    slot = key_slot("{moving}")
    source = faulty.owner(slot)
    stays = next(channel for channel in SHARDED if faulty.owner(channel) is source and key_slot(channel) != slot)
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe("{moving}", stays)
        await confirmed(pubsub, 2)
        # While the first message is not taken, what follows it is not read.
        await client.spublish(stays, "first")
        await client.spublish("{moving}", "of the former node")
        await asyncio.to_thread(migrated, faulty, slot)
        await refresh_topology(client.connection_pool)
        async with asyncio.timeout(30):
            while not await client.spublish("{moving}", "of the new node"):
                await asyncio.sleep(0.01)
        await client.spublish(stays, "last")

        received = [(await next_of(pubsub))["data"] for _ in range(3)]
    assert {b"first", b"of the new node", b"last"} == set(received)


async def test_channel_whose_new_node_does_not_answer_is_subscribed_when_that_does(faulty, client, until):
    slot = key_slot("moving")
    source, target = faulty.owner(slot), another_primary(faulty, slot)
    leaving = client.pubsub()
    async with client.pubsub() as pubsub, client.pubsub() as ending:
        for each in (pubsub, leaving, ending):
            await each.ssubscribe("moving")
            await confirmed(each, 1)
        faulty.begin_migration(slot, target)
        target.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        target.kill()
        source.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        topology = client.connection_pool.cluster_topology
        await until(lambda: topology.address_of(topology.slots[slot]) == (target.host, target.port))
        # Of one that is closed meanwhile, no attempt goes on.
        await leaving.aclose()
        unsubscribing = asyncio.create_task(ending.sunsubscribe("moving"))
        await asyncio.sleep(0)
        target.start()

        assert [b"moving"] == await confirmed(pubsub, 1)
        await unsubscribing
        assert b"moving" == (await next_of(ending, "sunsubscribe"))["channel"]
        assert {} == ending.shard_channels
        await asyncio.to_thread(faulty.wait_ok)
        await client.spublish("moving", "message")
        assert b"message" == (await next_of(pubsub))["data"]


async def test_channel_of_a_node_that_was_removed_is_subscribed_where_its_slot_is_served_again(make_pool, until):
    with ClusterServers("--cluster-require-full-coverage", "no", primaries=2, replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url))
        gone = servers.owner("shard")
        [kept] = [node for node in servers.nodes if node is not gone]
        async with client.pubsub() as pubsub:
            await pubsub.ssubscribe("shard")
            await confirmed(pubsub, 1)
            gone.freeze()
            kept.call("CLUSTER", "FORGET", gone.id)
            topology = client.connection_pool.cluster_topology
            topology.request_refresh()
            await until(lambda: len(topology.pools) == 1)
            kept.call("CLUSTER", "ADDSLOTS", key_slot("shard"))

            assert [b"shard"] == await confirmed(pubsub, 1)
            assert ["shard", 1] == kept.call("PUBSUB", "SHARDNUMSUB", "shard")


# C8: the node dies.


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_shard_subscriber_goes_on_at_the_promoted_replica(faulty, client, fault):
    async with client.pubsub() as pubsub:
        await pubsub.ssubscribe(*SHARDED)
        await confirmed(pubsub, len(SHARDED))
        channel = SHARDED[0]
        victim = faulty.owner(channel)
        replica = faulty.replica_of(victim)
        getattr(victim, fault)()
        promoted = asyncio.create_task(asyncio.to_thread(wait_promoted, replica))

        await heard_again(pubsub, publishing(faulty, "SPUBLISH", channel), channel, "smessage")
        late = time.monotonic() - await promoted
        print(f"{fault}: heard {late:.2f} s after the promotion")
        assert late <= 10 + 5
        for channel in SHARDED:
            await client.spublish(channel, "to all")
        received = set()
        while received < set(SHARDED):
            message = await next_of(pubsub)
            received |= {message["channel"].decode()} if message["data"] == b"to all" else set()


def wait_promoted(replica):
    while replica.call("ROLE")[0] != "master":
        time.sleep(0.01)
    return time.monotonic()


async def test_plain_subscriber_whose_node_dies_goes_on_at_another_one(faulty, client, telemetry):
    calls = []
    async with client.pubsub(on_reconnect=lambda: calls.append(1)) as pubsub:
        await pubsub.subscribe("news")
        await pubsub.psubscribe("n*")
        await confirmed(pubsub, 2)
        victim = next(node for node in faulty.nodes if node.call("CLIENT", "LIST", "TYPE", "pubsub"))
        victim.kill()

        async with asyncio.timeout(30):
            began = time.monotonic()
            again = await confirmed(pubsub, 2)
        print(f"plain: subscribed again after {time.monotonic() - began:.2f} s")
        assert sorted(again) == [b"n*", b"news"]
        other = next(node for node in faulty.nodes if node.is_running)
        other.call("PUBLISH", "news", "again")
        assert {(await next_of(pubsub))["type"], (await next_of(pubsub))["type"]} == {"message", "pmessage"}

    assert calls == [1]
    assert 1 == sum(telemetry.tally(RECONNECTS).values())


async def test_plain_subscriber_whose_node_freezes_goes_on_at_another_one(faulty, client):
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        await confirmed(pubsub, 1)
        victim = next(node for node in faulty.nodes if node.call("CLIENT", "LIST", "TYPE", "pubsub"))
        replica = faulty.replica_of(victim)
        victim.freeze()
        promoted = asyncio.create_task(asyncio.to_thread(wait_promoted, replica))

        await confirmed(pubsub, 1)
        late = time.monotonic() - await promoted
        print(f"plain, frozen: subscribed again {late:.2f} s after the promotion")
        assert late <= 30


async def test_plain_subscriber_whose_node_is_removed_goes_on_at_another_one(faulty, client):
    node = await asyncio.to_thread(faulty.add_node)
    slot = key_slot("removed")
    home = faulty.owner(slot)
    await asyncio.to_thread(faulty.migrate, slot, node)
    assert await client.set("removed", 1)
    async with asyncio.timeout(30):
        while True:
            pubsub = client.pubsub()
            await pubsub.subscribe("news")
            await confirmed(pubsub, 1)
            if subscribes(node):
                break
            # Another node was chosen; the new one is found by a refresh.
            await pubsub.aclose()
            client.connection_pool.cluster_topology.request_refresh()
    async with pubsub:
        await asyncio.to_thread(faulty.migrate, slot, home)
        await asyncio.to_thread(faulty.remove_node, node)

        await confirmed(pubsub, 1)
        await client.publish("news", "message")
        assert b"message" == (await next_of(pubsub))["data"]


def subscribes(node):
    return bool(node.call("CLIENT", "LIST", "TYPE", "pubsub"))


# Notifications about keys.


async def notified_of(notifications, expected):
    """Read until all these keys were seen; return all that were."""
    seen = set()
    async with asyncio.timeout(30):
        while not expected <= seen:
            if (notification := await notifications.get_message(timeout=1)) is not None:
                seen.add(notification.key)
    return seen


async def test_notifications_about_keys_of_all_nodes_arrive_also_after_a_failover(servers, client, until):
    keys = {f"key:{number}" for number in range(12)}

    async def write():
        await asyncio.gather(*(client.set(key, 1) for key in keys))

    await client.config_set("notify-keyspace-events", "KEA")
    async with client.keyspace_notifications() as notifications:
        await notifications.subscribe_keyspace("key:*")
        await write()
        assert keys == await notified_of(notifications, keys)

        former, replica = (owner := servers.owner("key:0")), servers.replica_of(owner)
        await asyncio.to_thread(servers.failover, replica)
        async with asyncio.timeout(30):
            while (ports := {node.port for node in client.connection_pool.primaries()}) and (
                former.port in ports or replica.port not in ports
            ):
                await refresh_topology(client.connection_pool)
        seen = set()
        async with asyncio.timeout(30):
            while not keys <= seen:
                await write()
                while (notification := await notifications.get_message(timeout=0.1)) is not None:
                    seen.add(notification.key)
        assert keys == seen

    await until(lambda: not any(node.call("CLIENT", "LIST", "TYPE", "pubsub") for node in servers.nodes))


async def test_notifications_about_keys_are_read_in_time_while_a_primary_does_not_answer(make_pool, caplog):
    caplog.set_level(logging.WARNING)
    with ClusterServers("--cluster-require-full-coverage", "no", replicas=0) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=2))
        await client.config_set("notify-keyspace-events", "KEA")
        frozen = servers.owner("frozen")
        living = next(key for key in SHARDED if servers.owner(key) is not frozen)
        async with client.keyspace_notifications() as notifications:
            frozen.freeze()
            await notifications.subscribe_keyspace("*")
            began = time.monotonic()
            for _ in range(20):
                await client.set(living, 1)
                assert {living} == await notified_of(notifications, {living})
                assert await notifications.get_message(timeout=0.01) is None
            took = time.monotonic() - began
            print(f"{took:.2f} s")
            warnings = [record.message for record in caplog.records if "subscribe" in record.message]
            frozen.thaw()

            async with asyncio.timeout(30):
                while (notification := await notifications.get_message(timeout=0.1)) is None:
                    await asyncio.to_thread(frozen.call, "SET", "frozen", 1)
            assert "frozen" == notification.key
        # Each attempt to subscribe at the frozen node takes 2 s.
        assert took <= 10 * 0.5 + 5
        assert 1 == len(warnings), warnings


async def test_notifications_about_keys_go_on_when_a_primary_that_does_not_answer_is_removed(
    make_pool, monkeypatch, until
):
    forget_removed_nodes_at_once(monkeypatch)
    with ClusterServers("--cluster-require-full-coverage", "no", primaries=2, replicas=0, node_timeout=60) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url, socket_timeout=2))
        await client.config_set("notify-keyspace-events", "KEA")
        gone = servers.owner("gone")
        [kept] = [node for node in servers.nodes if node is not gone]
        key = next(each for each in SHARDED if servers.owner(each) is kept)
        async with client.keyspace_notifications() as notifications:
            gone.freeze()
            await notifications.subscribe_keyspace("*")
            # It is subscribed at in the background.
            assert await notifications.get_message(timeout=0) is None
            kept.call("CLUSTER", "FORGET", gone.id)
            topology = client.connection_pool.cluster_topology
            topology.request_refresh()
            await until(lambda: len(topology.pools) == 1)
            for _ in range(5):
                await client.set(key, 1)
                assert {key} == await notified_of(notifications, {key})


async def test_notifications_about_keys_end_with_the_pool(servers):
    pool = MonitoredConnectionPool.from_url(servers.url)
    async with MonitoredRedisConnection(connection_pool=pool).keyspace_notifications() as notifications:
        await notifications.subscribe_keyspace("*")
        await pool.aclose()

        for _ in range(2):
            with pytest.raises(PoolClosedError):
                await notifications.get_message(timeout=1)


async def test_notifications_about_keys_are_filtered_and_handled(servers, client):
    # Not by the client, whose first use is to subscribe.
    for node in servers.nodes:
        node.call("CONFIG", "SET", "notify-keyspace-events", "KEA")
    handled = []
    async with client.keyspace_notifications(key_prefix="mine:") as notifications:
        await notifications.subscribe_keyevent("set", handler=handled.append)
        await client.set("other", 1)
        for number in range(6):
            await client.set(f"mine:{number}", 1)
        async with asyncio.timeout(30):
            while len(handled) < 6:
                assert await notifications.get_message(timeout=1) is None
    assert {str(number) for number in range(6)} == {each.key for each in handled}


async def test_messages_of_one_publisher_arrive_in_order(client):
    count = 500
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        for number in range(count):
            await client.publish("news", number)
        pipe = client.pipeline(transaction=False)
        for number in range(count, 2 * count):
            pipe.publish("news", number)
        await pipe.execute()

        assert list(range(2 * count)) == [int((await next_of(pubsub))["data"]) for _ in range(2 * count)]


async def test_publishing_needs_no_slot(make_pool):
    with ClusterServers("--cluster-require-full-coverage", "no", replicas=0) as servers:
        client = MonitoredRedisConnection(connection_pool=make_pool(servers.url))
        for node in servers.nodes:
            node.call("CLUSTER", "DELSLOTS", key_slot("news"))
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("news")
            await client.publish("news", "1")
            async with client.pipeline() as pipe:
                await pipe.set("key", 1).publish("news", "2").execute()
            async with client.client() as handle:
                await handle.set("key", 2)
                await handle.publish("news", "3")

            assert [b"1", b"2", b"3"] == [(await next_of(pubsub))["data"] for _ in range(3)]
