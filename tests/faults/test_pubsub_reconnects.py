"""Subscriptions outlive their connection: they are renewed, and messages lost meanwhile are reported."""

import asyncio
import logging
import time
from contextlib import asynccontextmanager

import pytest
import redis
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError  # noqa: A004
from support.internals import (
    acquired_connections_of,
    connection_lock_of,
    next_reconnect_of,
    reconnect_failures_of,
    reconnect_task_of,
    redirect,
    redirect_nowhere,
    set_reconnect_backoff,
    upstream_of,
)
from support.scripted import scripted

from aioredis_monitored import (
    MonitoredPubSub,
    MonitoredRedisConnection,
    PinnedConnectionLostError,
    PoolClosedError,
)
from aioredis_monitored.testing import RedisServer

RECONNECTS = "aioredis_monitored.pubsub.reconnects"
SUBSCRIBING = ["subscribe", "psubscribe", "ssubscribe"]


async def next_of(pubsub, *kinds):
    """Return the next message of this type; by default one that was published."""
    async with asyncio.timeout(30):
        while (message := await pubsub.get_message(timeout=1)) is None or message["type"] not in (
            kinds or pubsub.PUBLISH_MESSAGE_TYPES
        ):
            pass
    return message


async def wait_for_confirmations(pubsub, count=1):
    for _ in range(count):
        await next_of(pubsub, *SUBSCRIBING)


class Proxied:
    """The connection to the server through a proxy, which a test interrupts."""

    def __init__(self, proxy, until):
        self.proxy, self.until, self.upstream = proxy, until, upstream_of(proxy)

    def down(self):
        redirect_nowhere(self.proxy)
        self.proxy.cut()

    def up(self):
        redirect(self.proxy, *self.upstream)

    async def refused(self, times=1):
        accepted = self.proxy.accepted
        await self.until(lambda: self.proxy.accepted >= accepted + times, 30)


@pytest.fixture
def link(proxy, until):
    return Proxied(proxy, until)


@asynccontextmanager
async def listening(pubsub):
    """Listen in a task; yield the task, and a function that returns the data of the messages so far."""
    received = []

    async def listen():
        async for message in pubsub.listen():
            received.append(message)  # noqa: PERF401 - visible while the loop runs

    task = asyncio.create_task(listen())

    def data():
        return [message["data"] for message in received if "message" in message["type"]]

    try:
        yield task, data
    finally:
        task.cancel()
        await asyncio.wait([task])


# Subscribing


@pytest.mark.parametrize("method", SUBSCRIBING)
async def test_subscribe_while_server_is_down_succeeds_after_restart(make_client, own_server, method):
    client = make_client(own_server.url)
    await client.ping()
    own_server.kill()
    async with client.pubsub() as pubsub:
        subscribing = asyncio.ensure_future(getattr(pubsub, method)("news"))
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.to_thread(own_server.start)
        await subscribing
        await wait_for_confirmations(pubsub)
        publish = client.spublish if method == "ssubscribe" else client.publish

        assert 1 == await publish("news", "message")
        assert b"message" == (await next_of(pubsub))["data"]


async def test_subscribe_on_lost_connection_renews_subscriptions_once(make_client, link, server):
    client = make_client(link.proxy.url)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("first")
        await wait_for_confirmations(pubsub)
        link.down()
        subscribing = asyncio.ensure_future(pubsub.subscribe("second"))
        await link.refused()
        link.up()
        await subscribing
        await wait_for_confirmations(pubsub, 2)

        async with MonitoredRedisConnection.from_url(server.url) as other:
            for channel in ("first", "second"):
                assert 1 == await other.publish(channel, channel)
                assert channel.encode() == (await next_of(pubsub))["data"]
        assert await pubsub.get_message(timeout=0) is None


@pytest.mark.parametrize("method", SUBSCRIBING)
async def test_subscribe_that_is_retried_while_closed_raises_and_acquires_no_connection(make_client, link, method):
    client = make_client(link.proxy.url)
    link.down()
    pubsub = client.pubsub()
    subscribing = asyncio.ensure_future(getattr(pubsub, method)("news"))
    await link.refused()
    await pubsub.aclose()
    link.up()

    with pytest.raises(PinnedConnectionLostError, match="closed while the call was in flight"):
        await subscribing
    assert not pubsub.subscribed
    assert not acquired_connections_of(client.connection_pool)


async def test_reader_that_reconnects_while_closed_acquires_no_connection(make_client, link, until):
    client = make_client(link.proxy.url)
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    await wait_for_confirmations(pubsub)
    async with connection_lock_of(pubsub):
        # As if a task sent something.
        closing = asyncio.create_task(pubsub.aclose())
        await asyncio.sleep(0)
        await pubsub.connection.disconnect(nowait=True)
        reading = asyncio.create_task(pubsub.get_message(timeout=30))
        await until(lambda: reconnect_task_of(pubsub) is not None)
        reconnecting = reconnect_task_of(pubsub)
    await closing

    assert await reading is None
    await asyncio.wait([reconnecting])
    assert not acquired_connections_of(client.connection_pool)


async def test_subscribe_stops_retrying_at_deadline(make_client, link):
    client = make_client(link.proxy.url, socket_timeout=0.3)
    link.down()
    async with client.pubsub() as pubsub:
        for method in SUBSCRIBING:
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionError):
                    await getattr(pubsub, method)("news")
            assert not pubsub.subscribed
        link.up()
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)


async def test_concurrent_first_subscribes_share_connection(make_client, server):
    client = make_client(server.url)
    async with client.pubsub() as pubsub:
        await asyncio.gather(*(pubsub.subscribe(f"channel {number}") for number in range(10)))
        await wait_for_confirmations(pubsub, 10)

        assert 1 == client.connection_pool.stats().used
    assert 0 == client.connection_pool.stats().used


async def test_pubsub_ping_reconnects_after_connection_loss(make_client, link):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        link.down()
        pinging = asyncio.ensure_future(pubsub.ping())
        await link.refused()
        link.up()
        await pinging
        await next_of(pubsub, "pong")


# Listening


@pytest.mark.parametrize("method", SUBSCRIBING)
@pytest.mark.parametrize("protocol", [2, 3])
async def test_listen_continues_after_server_restart(make_pool, own_server, method, protocol):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, protocol=protocol))
    async with client.pubsub() as pubsub:
        await getattr(pubsub, method)("news", "sports")
        await wait_for_confirmations(pubsub, 2)
        async with listening(pubsub) as (task, received):
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            publish = client.spublish if method == "ssubscribe" else client.publish
            async with asyncio.timeout(30):
                for channel in ("news", "sports"):
                    while not await publish(channel, channel):
                        await asyncio.sleep(0.01)
                while len(received()) < 2:
                    await asyncio.sleep(0.01)

            assert [b"news", b"sports"] == received()
            assert not task.done()


async def test_reconnect_renews_all_kinds_of_subscriptions_and_reports_once(
    make_client, link, telemetry, caplog, until, inspector
):
    seen = []

    async def reconnected():
        # All subscriptions are renewed at this point.
        seen.append((inspector.pubsub_numsub("a", "b"), inspector.pubsub_numpat(), inspector.pubsub_shardnumsub("s")))

    client = make_client(link.proxy.url, is_recorded=True, name="test")
    async with client.pubsub(on_reconnect=reconnected) as pubsub:
        await pubsub.subscribe("a", "b")
        await pubsub.psubscribe("p*")
        await pubsub.ssubscribe("s")
        await wait_for_confirmations(pubsub, 4)
        assert 0 == telemetry.point(RECONNECTS).value
        for number in range(1, 4):
            async with listening(pubsub) as (_, received):
                link.down()
                await link.refused(2)
                assert number - 1 == len(seen)
                link.up()
                await until(lambda: len(seen) == number, 30)  # noqa: B023
                inspector.publish("p1", "message")
                await until(received, 30)

            assert number == telemetry.point(RECONNECTS).value
            assert {"db.client.connection.pool.name": "test"} == dict(telemetry.point(RECONNECTS).attributes)
            assert ([(b"a", 1), (b"b", 1)], 1, [(b"s", 1)]) == seen[-1]

    text = "pool 'test': subscribed again on a new connection: messages published meanwhile are lost"
    assert [("aioredis_monitored.pubsub", logging.WARNING, text)] * 3 == caplog.record_tuples


@pytest.mark.parametrize("is_async", [True, False])
async def test_on_reconnect_error_is_raised_to_reader(make_client, link, until, is_async):
    error = ConnectionError("of the application")

    def fail():
        raise error

    async def fail_later():
        fail()

    async with make_client(link.proxy.url).pubsub(on_reconnect=fail_later if is_async else fail) as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        async with listening(pubsub) as (task, _):
            link.proxy.cut()
            await until(task.done, 30)

        assert error is task.exception()
        await pubsub.subscribe("sports")
        await wait_for_confirmations(pubsub)


async def test_pubsub_run_continues_after_reconnect(make_client, link, until, inspector):
    received, again = [], []
    async with make_client(link.proxy.url).pubsub(on_reconnect=lambda: again.append(1)) as pubsub:
        await pubsub.subscribe(news=lambda message: received.append(message["data"]))
        running = asyncio.create_task(pubsub.run(poll_timeout=0.01))
        await until(lambda: inspector.pubsub_numsub("news") == [(b"news", 1)])
        link.down()
        await link.refused(2)
        link.up()
        await until(lambda: again, 30)
        inspector.publish("news", "message")
        await until(lambda: received == [b"message"], 30)
        running.cancel()
        await asyncio.wait([running])


async def test_push_handler_does_not_suppress_on_reconnect(make_client, link, until, inspector):
    pushed, again = [], []

    async def push(response):
        pushed.append(response[-1])

    client = make_client(link.proxy.url)
    async with client.pubsub(push_handler_func=push, on_reconnect=lambda: again.append(1)) as pubsub:
        await pubsub.subscribe("news")
        async with listening(pubsub):
            await until(lambda: pushed)
            link.proxy.cut()
            await until(lambda: again, 30)
            inspector.publish("news", "message")
            await until(lambda: pushed[-1] == b"message", 30)


async def test_subscribe_wakes_listener_from_backoff(make_client, link, until, monkeypatch, inspector):
    set_reconnect_backoff(monkeypatch, lambda _: 600.0)
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("first")
        await wait_for_confirmations(pubsub)
        async with listening(pubsub) as (_, received):
            link.proxy.cut()
            await until(lambda: next_reconnect_of(pubsub))
            await pubsub.subscribe("second")
            for channel in ("first", "second"):
                await until(lambda: inspector.publish(channel, channel))  # noqa: B023
            await until(lambda: received() == [b"first", b"second"], 30)


async def test_listener_does_not_interfere_with_reconnect_by_subscribe(make_client, server, inspector, until):
    async with make_client(server.url).pubsub() as pubsub:
        await pubsub.subscribe("first")
        await wait_for_confirmations(pubsub)
        async with listening(pubsub) as (_, received):
            await asyncio.sleep(0)
            inspector.client_kill_filter(_type="pubsub")
            # Before the listener can have noticed the lost connection.
            await pubsub.subscribe("second")
            for channel in ("first", "second"):
                await until(lambda: inspector.publish(channel, channel))  # noqa: B023
            await until(lambda: received() == [b"first", b"second"], 30)
        assert 0 == reconnect_failures_of(pubsub)


async def test_subscribe_reconnects_when_write_fails(make_client, server, inspector, monkeypatch):
    async with make_client(server.url).pubsub() as pubsub:
        await pubsub.subscribe("first")
        await wait_for_confirmations(pubsub)
        connection = pubsub.connection
        send_packed_command = connection.send_packed_command

        async def fail(*_, **__):
            monkeypatch.setattr(connection, "send_packed_command", send_packed_command)
            await connection.disconnect(nowait=True)
            raise ConnectionError("cut while it is written")

        monkeypatch.setattr(connection, "send_packed_command", fail)
        await pubsub.subscribe("second")
        await wait_for_confirmations(pubsub, 2)

        assert connection is pubsub.connection
        assert [(b"first", 1), (b"second", 1)] == inspector.pubsub_numsub("first", "second")


async def test_reconnect_by_redis_py_renews_subscriptions(make_client, server, inspector):
    async with make_client(server.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        await pubsub.connection.disconnect()
        async with connection_lock_of(pubsub):
            # As if it sent new credentials.
            await pubsub.connection.send_command("PING")
        await next_of(pubsub, "pong")

        assert [(b"news", 1)] == inspector.pubsub_numsub("news")


async def test_reconnect_backoff_grows_across_polls(make_client, link, until, monkeypatch):
    asked = []

    def after(failures):
        asked.append(failures)
        return 0.05

    set_reconnect_backoff(monkeypatch, after)
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        link.down()
        accepted = link.proxy.accepted
        started = time.monotonic()
        while len(asked) < 6:
            assert await pubsub.get_message(timeout=0) is None
            await asyncio.sleep(0)
        took = time.monotonic() - started

        assert [1, 2, 3, 4, 5, 6] == asked[:6]
        assert link.proxy.accepted - accepted <= took / 0.05 + 1
        link.up()
        await wait_for_confirmations(pubsub)
        assert 0 == reconnect_failures_of(pubsub)


# Messages with a timeout


@pytest.mark.parametrize("seconds", [0, 0.001])
async def test_short_polls_complete_slow_reconnect(make_client, link, until, inspector, seconds):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        link.proxy.reply_pause = 0.0005
        link.proxy.cut()
        async with asyncio.timeout(30):
            while (message := await pubsub.get_message(timeout=seconds)) is None or message["type"] != "message":
                inspector.publish("news", "message")
                await asyncio.sleep(0)

    assert b"message" == message["data"]


async def test_get_message_takes_its_timeout_while_reconnecting(make_client, link):
    async with make_client(link.proxy.url, socket_timeout=600, socket_connect_timeout=600).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        link.proxy.silent = True
        link.proxy.cut()
        started = time.monotonic()
        async with asyncio.timeout(60):
            while reconnect_task_of(pubsub) is None:
                assert await pubsub.get_message(timeout=0.01) is None
            # While it connects.
            for number in range(1, 11):
                assert await pubsub.get_message(timeout=0.1) is None
                # Nor less than the timeout.
                assert time.monotonic() - started > 0.09 * number


async def test_get_message_without_timeout_waits_for_server(make_client, link, inspector):
    async with make_client(link.proxy.url).pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        await pubsub.get_message(timeout=5)
        link.down()

        async def get():
            while (message := await pubsub.get_message(timeout=None)) is None:
                pass
            return message

        getting = asyncio.create_task(get())
        await link.refused(2)
        link.up()
        async with asyncio.timeout(30):
            while not inspector.publish("news", "message"):
                await asyncio.sleep(0.01)
            assert b"message" == (await getting)["data"]


# The end of a subscription


async def test_pool_close_ends_subscription(make_client, link, until):
    client = make_client(link.proxy.url)
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    await wait_for_confirmations(pubsub)
    async with listening(pubsub) as (task, _):
        await client.connection_pool.aclose()
        await until(task.done, 30)
    assert isinstance(task.exception(), PoolClosedError)
    for call in (pubsub.subscribe("sports"), pubsub.get_message(timeout=5), pubsub.get_message(timeout=0.5)):
        with pytest.raises(PoolClosedError):
            await call
    await pubsub.aclose()


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "half-open"])
async def test_pool_close_during_outage_ends_subscription(make_client, link, until, is_refused):
    client = make_client(link.proxy.url)
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    await wait_for_confirmations(pubsub)
    async with listening(pubsub) as (task, _):
        if is_refused:
            link.down()
            await link.refused(1)
        else:
            link.proxy.silent = True
            link.proxy.cut()
            await until(lambda: pubsub.connection.is_connected and reconnect_task_of(pubsub), 30)
        await client.connection_pool.aclose()
        await until(task.done, 30)
    assert isinstance(task.exception(), PoolClosedError)
    await pubsub.aclose()
    link.up()
    assert 0 == client.connection_pool.stats().used


async def test_reconnect_raises_authentication_error_to_reader(make_client, until):
    with RedisServer("--requirepass", "first") as server, redis.Redis.from_url(server.url, password="first") as root:
        client = make_client(server.url, password="first")
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            root.config_set("requirepass", "second")
            root.client_kill_filter(_type="pubsub")
            async with listening(pubsub) as (task, _):
                await until(task.done, 30)
            assert isinstance(task.exception(), AuthenticationError)
            attempts = root.info("commandstats")["cmdstat_hello"]["failed_calls"]
            with pytest.raises(AuthenticationError):
                await pubsub.get_message(timeout=30)
            assert attempts + 1 == root.info("commandstats")["cmdstat_hello"]["failed_calls"]
            root.config_set("requirepass", "first")
            await wait_for_confirmations(pubsub)
        await client.aclose()


async def test_reconnect_waits_for_new_credentials_of_provider(make_client, until):
    class Provider(redis.CredentialProvider):
        password = "first"

        async def get_credentials_async(self):
            return (self.password,)

    with RedisServer("--requirepass", "first") as server, redis.Redis.from_url(server.url, password="first") as root:
        provider = Provider()
        async with make_client(server.url, credential_provider=provider).pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            async with listening(pubsub) as (task, received):
                root.config_set("requirepass", "second")
                root.client_kill_filter(_type="pubsub")
                await until(lambda: root.info("commandstats")["cmdstat_hello"]["failed_calls"] >= 2, 30)
                provider.password = "second"
                await until(lambda: root.publish("news", "message"), 30)
                await until(received, 30)
                assert not task.done()


async def test_short_poll_raises_error_of_background_reconnect(make_client, until):
    with RedisServer("--requirepass", "first") as server, redis.Redis.from_url(server.url, password="first") as root:
        async with make_client(server.url, password="first").pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            root.config_set("requirepass", "second")
            root.client_kill_filter(_type="pubsub")
            async with asyncio.timeout(30):
                with pytest.raises(AuthenticationError):
                    while await pubsub.get_message(timeout=0) is None:
                        await asyncio.sleep(0)


async def test_reconnect_error_is_discarded_after_later_success(make_client, until):
    with RedisServer("--requirepass", "first") as server, redis.Redis.from_url(server.url, password="first") as root:
        async with make_client(server.url, password="first").pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            root.config_set("requirepass", "second")
            root.client_kill_filter(_type="pubsub")
            async with asyncio.timeout(30):
                while reconnect_task_of(pubsub) is None:
                    await pubsub.get_message(timeout=0)
                    await asyncio.sleep(0)
            await until(reconnect_task_of(pubsub).done)
            root.config_set("requirepass", "first")
            await pubsub.subscribe("sports")
            await wait_for_confirmations(pubsub, 2)
            root.client_kill_filter(_type="pubsub")
            await wait_for_confirmations(pubsub, 2)


async def test_rejected_subscription_raises_and_others_stay(make_client, own_server):
    with redis.Redis.from_url(own_server.url) as root:
        root.acl_setuser("reader", enabled=True, nopass=True, categories=["+@all"], channels=["news"], reset=True)
        async with make_client(own_server.url, username="reader", password="any").pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            await pubsub.subscribe("secrets")
            with pytest.raises(NoPermissionError):
                await pubsub.get_message(timeout=30)
            root.publish("news", "message")
            assert b"message" == (await next_of(pubsub))["data"]


async def test_temporarily_rejected_subscription_is_sent_again(make_pool):
    asked = []

    def answer(_, args):
        if args[0] == b"SUBSCRIBE":
            asked.append(args[1:])
            if len(asked) < 3:
                return b"-BUSY a script runs\r\n"
            return b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"
        return b"+OK\r\n"

    async with scripted(answer) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}", protocol=2)
        async with MonitoredRedisConnection(connection_pool=pool).pubsub() as pubsub:
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
        await pool.aclose()

    assert [[b"news"]] * 3 == asked


# Unsubscribing


@pytest.mark.parametrize("kind", ["", "p", "s"])
async def test_unsubscribe_on_lost_connection_survives_reconnect(make_client, link, inspector, kind):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await getattr(pubsub, f"{kind}subscribe")("kept", "left")
        await wait_for_confirmations(pubsub, 2)
        link.down()
        leaving = asyncio.ensure_future(getattr(pubsub, f"{kind}unsubscribe")("left"))
        await link.refused()
        link.up()
        await leaving
        await next_of(pubsub, f"{kind}unsubscribe")
        assert [b"kept"] == [*pubsub.channels, *pubsub.patterns, *pubsub.shard_channels]

        link.proxy.cut()
        await wait_for_confirmations(pubsub)
        assert [b"kept"] == [*pubsub.channels, *pubsub.patterns, *pubsub.shard_channels]
        counts = {
            "": lambda: inspector.pubsub_numsub("kept", "left") == [(b"kept", 1), (b"left", 0)],
            "p": lambda: inspector.pubsub_numpat() == 1,
            "s": lambda: inspector.pubsub_shardnumsub("kept", "left") == [(b"kept", 1), (b"left", 0)],
        }
        assert counts[kind]()


async def test_listen_ends_when_last_unsubscribe_confirmation_is_lost(make_client, link, until):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        async with listening(pubsub) as (task, _):
            link.proxy.cut_replies = 1
            await pubsub.unsubscribe("news")
            await until(task.done, 30)
        assert task.exception() is None
        assert not pubsub.subscribed


async def test_reconnect_renews_channel_subscribed_again_during_unsubscribe(make_client, link):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        await pubsub.unsubscribe("news")
        await pubsub.subscribe("news")
        link.proxy.cut()
        await wait_for_confirmations(pubsub)
        assert [b"news"] == list(pubsub.channels)


# Cancellation, and closing


@pytest.mark.parametrize("is_listening", [True, False])
async def test_cancelled_reconnect_loses_no_subscription(make_client, link, until, dice, inspector, is_listening):
    async with make_client(link.proxy.url).pubsub() as pubsub:
        await pubsub.subscribe("a", "b")
        await pubsub.psubscribe("p*")
        await pubsub.ssubscribe("s")
        await wait_for_confirmations(pubsub, 4)
        for _ in range(30):
            link.proxy.cut()
            call = pubsub.get_message(timeout=None) if is_listening else pubsub.subscribe("a")
            calling = asyncio.ensure_future(call)
            for _ in range(dice.randrange(40)):
                await asyncio.sleep(0.0005 if is_listening else 0)
            calling.cancel()
            await asyncio.wait([calling])
            if not calling.cancelled():
                assert calling.exception() is None

        def is_subscribed():
            counts = [count for _, count in inspector.pubsub_numsub("a", "b") + inspector.pubsub_shardnumsub("s")]
            return [1, 1, 1, 1] == [*counts, inspector.pubsub_numpat()]

        # The last connection may have been cut without a call having noticed it.
        async with asyncio.timeout(30):
            while (message := await pubsub.get_message(timeout=0.01)) is None or message["type"] != "pmessage":
                inspector.publish("p1", "message")

        assert is_subscribed()


@pytest.mark.parametrize("phase", ["pausing", "connecting", "reading"])
async def test_pubsub_close_ends_listen_and_releases_connection(make_client, link, until, phase, monkeypatch):
    if phase == "pausing":
        set_reconnect_backoff(monkeypatch, lambda _: 600.0)
    client = make_client(link.proxy.url, max_connections=2, socket_timeout=600, socket_connect_timeout=600)
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    await wait_for_confirmations(pubsub)
    async with listening(pubsub) as (task, _):
        await asyncio.sleep(0)
        if phase == "pausing":
            link.down()
            await until(lambda: reconnect_failures_of(pubsub), 30)
        elif phase == "connecting":
            link.proxy.silent = True
            link.proxy.cut()
            await until(lambda: reconnect_task_of(pubsub) and pubsub.connection.is_connected, 30)
        async with asyncio.timeout(60):
            await pubsub.aclose()
            await asyncio.wait([task])
        assert task.exception() is None
    assert pubsub.connection is None
    assert not reconnect_task_of(pubsub)
    link.up()
    link.proxy.silent = False
    assert await client.incr("key") == 1
    async with client.client() as single:
        assert await single.incr("key") == 2


async def test_pubsub_close_in_cancelled_task_releases_connection(make_client, link, until):
    client = make_client(link.proxy.url, socket_timeout=600, socket_connect_timeout=600)

    async def listen():
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("news")
            async for _ in pubsub.listen():
                opened.append(pubsub)  # noqa: PERF401 - visible while the loop runs

    opened = []
    listener = asyncio.create_task(listen())
    await until(lambda: opened)
    link.proxy.silent = True
    link.proxy.cut()
    await until(lambda: reconnect_task_of(opened[0]) and opened[0].connection.is_connected, 30)
    listener.cancel()
    await asyncio.wait([listener])

    assert listener.cancelled()
    assert opened[0].connection is None
    assert 0 == client.connection_pool.stats().used


async def test_closed_pubsub_can_subscribe_again(make_client, server):
    async with make_client(server.url).pubsub() as pubsub:
        for _ in range(2):
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            await pubsub.aclose()
            with pytest.raises(RuntimeError, match="did you forget to call subscribe"):
                await pubsub.get_message()


async def test_pubsub_health_check_works_across_reconnect(make_client, link, inspector):
    async with make_client(link.proxy.url, health_check_interval=1).pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        pubsub.connection.next_health_check = -1
        assert await pubsub.get_message(timeout=5) is None
        link.proxy.cut()
        pubsub.connection.next_health_check = -1
        await wait_for_confirmations(pubsub)


async def test_keyspace_notifications_continue_after_reconnect(make_client, link, inspector, until):
    inspector.config_set("notify-keyspace-events", "KEA")
    client = make_client(link.proxy.url)
    try:
        async with client.keyspace_notifications() as notifications:
            await notifications.subscribe("__keyspace@0__:*")
            await until(lambda: inspector.pubsub_numpat() == 1)
            link.proxy.cut()
            async with asyncio.timeout(30):
                inspector.set("key", "value")
                while (notification := await notifications.get_message(timeout=0.1)) is None:
                    inspector.set("key", "value")
        assert "key" == notification.key
    finally:
        inspector.config_set("notify-keyspace-events", "")


async def test_plain_pool_pubsub_raises_and_calls_on_reconnect(proxy, until):
    again = []
    async with redis.asyncio.ConnectionPool.from_url(proxy.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        async with client.pubsub(on_reconnect=lambda: again.append(1)) as pubsub:
            assert isinstance(pubsub, MonitoredPubSub)
            await pubsub.subscribe("news")
            await wait_for_confirmations(pubsub)
            proxy.cut()
            with pytest.raises(ConnectionError):
                await next_of(pubsub)
            await wait_for_confirmations(pubsub)

    assert [1] == again


async def test_repeated_reconnects_leak_no_task(make_client, link, until, inspector):
    client = make_client(link.proxy.url)
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        await wait_for_confirmations(pubsub)
        tasks = len(asyncio.all_tasks())
        for _ in range(5):
            link.proxy.cut()
            await wait_for_confirmations(pubsub)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert 1 == dict(inspector.pubsub_numsub("news"))[b"news"]
