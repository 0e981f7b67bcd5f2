"""Only commands that did not execute are retried: what callers see."""

import asyncio
import socket
import ssl
import struct
import time
from collections import Counter
from contextlib import suppress
from itertools import count

import pytest
import redis
from redis import exceptions as errors
from support.internals import idle_connections_of, pretend_idle, redirect, redirect_nowhere, shared_connection_of
from support.listening import listening
from support.scripted import scripted

from aioredis_monitored import MonitoredRedisConnection, pool_from_config
from aioredis_monitored.testing import RedisServer

WITH_AND_WITHOUT_MULTIPLEXING = pytest.mark.parametrize("multiplex", [True, False])


@pytest.fixture
def inspector(server):
    with redis.Redis.from_url(server.url, decode_responses=True) as inspector:
        yield inspector


def client_of(make_pool, url, **options):
    return MonitoredRedisConnection(
        connection_pool=make_pool(url, **{"protocol": 2, "retry_backoff": 0.005, **options})
    )


def answers(*replies):
    """Return a scripted answer, one reply after the other with the last one repeated, and the list of requests."""
    asked, remaining = [], iter(replies)

    def answered(connection, args):
        asked.append((connection, args[0].decode()))
        return next(remaining, replies[-1])

    return answered, asked


# What callers see.


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_call_started_while_the_server_is_down_succeeds_after_restart(make_pool, own_server, multiplex):
    client = client_of(make_pool, own_server.url, multiplex=multiplex)
    await client.incr("key")
    own_server.kill()
    await asyncio.sleep(0)
    calls = [client.incr("key") for _ in range(20)] + [client.pipeline(t).incr("key").execute() for t in (True, False)]
    waiting = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.to_thread(own_server.start)

    replies = await asyncio.gather(*waiting)

    values = [reply[0] if isinstance(reply, list) else reply for reply in replies]
    assert list(range(1, 23)) == sorted(values)


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_lost_reply_is_retried_for_reads_and_not_for_writes(make_pool, proxy, inspector, multiplex):
    client = client_of(make_pool, proxy.url, multiplex=multiplex)
    writes = {
        "incr": client.incr,
        "eval": lambda key: client.eval("return redis.call('INCR', KEYS[1])", 1, key),
        "multi": lambda key: client.pipeline().incr(key).get(key).execute(),
        "batch": lambda key: client.pipeline(transaction=False).get(key).incr(key).execute(),
    }
    for name, write in writes.items():
        for number in range(10):
            await client.ping()
            proxy.cut_replies = 1
            with pytest.raises(redis.ConnectionError):
                await write(f"{name}-{number}")
    inspector.set("key", "value")
    for read in (client.get, lambda key: client.pipeline().get(key).ping().execute()):
        await client.ping()
        proxy.cut_replies = 1
        assert b"value" in await read("key")

    assert {"1"} == {inspector.get(f"{name}-{number}") for name in writes for number in range(10)}


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize("command", ["INCR", "GET"])
@pytest.mark.parametrize(
    "reply",
    [
        b"-LOADING Redis is loading the dataset in memory",
        b"-READONLY You can't write against a read only replica.",
        b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        b"-CLUSTERDOWN The cluster is down",
        b"-TRYAGAIN Multiple keys request during rehashing of slot",
        b"-ERR max number of clients reached",
    ],
)
async def test_reply_that_means_not_executed_is_retried(make_pool, reply, command, multiplex):
    answered, asked = answers(*[reply + b"\r\n"] * 3, b":7\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)

        assert 7 == await client.execute_command(command, "key")

        assert [command] * 4 == [name for _, name in asked]
        await client.connection_pool.aclose()


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize("args", [("EVAL", "return 1", 0), ("EVALSHA", "0" * 40, 0), ("FCALL", "f", 0), ("NEW.ONE",)])
async def test_error_reply_of_code_is_not_retried(make_pool, args, multiplex):
    answered, asked = answers(b"-READONLY said by a script\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)

        with pytest.raises(redis.ReadOnlyError):
            await client.execute_command(*args)

        assert [args[0]] == [name for _, name in asked]
        await client.connection_pool.aclose()


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_batch_is_retried_only_if_all_its_commands_are_reads(make_pool, multiplex):
    answered, asked = answers(*[b"-LOADING not yet\r\n"] * 2, b":7\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)

        assert [7, 7] == await client.pipeline(transaction=False).get("key").exists("key").execute()
        assert [("GET", 2), ("EXISTS", 2)] == list(Counter(name for _, name in asked).items())
        await client.connection_pool.aclose()

    answered, asked = answers(b"-LOADING not yet\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)
        with pytest.raises(redis.BusyLoadingError):
            await client.pipeline(transaction=False).get("key").incr("key").execute()
        assert ["GET", "INCRBY"] == [name for _, name in asked]
        await client.connection_pool.aclose()


async def test_writes_to_a_demoted_server_wait_for_its_promotion(make_pool, server, own_server, until):
    with redis.Redis.from_url(own_server.url) as demoted:
        client = client_of(make_pool, own_server.url)
        before = await client.client_id()
        demoted.replicaof(server.host, server.port)
        writes = [asyncio.ensure_future(client.incr("key")) for _ in range(50)]
        await until(lambda: demoted.info("commandstats").get("cmdstat_incrby", {}).get("rejected_calls", 0) >= 100)
        demoted.replicaof("NO", "ONE")

        assert list(range(1, 51)) == sorted(await asyncio.gather(*writes))

        # The name might now lead to another server: the client reconnects, but not once per caller.
        assert before != await client.client_id()
        assert demoted.info("stats")["total_connections_received"] < 30


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize("protocol", [2, 3])
async def test_refused_connection_is_retried_while_the_server_has_too_many_clients(
    make_pool, own_server, until, protocol, multiplex
):
    with redis.Redis.from_url(own_server.url) as inspector:
        inspector.config_set("maxclients", inspector.info("clients")["connected_clients"])
        client = client_of(make_pool, own_server.url, protocol=protocol, multiplex=multiplex)
        calls = [asyncio.ensure_future(client.incr("key")) for _ in range(5)]
        await until(lambda: inspector.info("stats")["rejected_connections"] >= 2)
        inspector.config_set("maxclients", 100)

        assert [1, 2, 3, 4, 5] == sorted(await asyncio.gather(*calls))


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_wrong_password_is_attempted_once(make_pool, multiplex):
    with RedisServer("--requirepass", "right") as server, redis.Redis.from_url(server.url, password="right") as root:
        client = client_of(make_pool, server.url, password="wrong", multiplex=multiplex)

        for _ in range(2):
            with pytest.raises(errors.AuthenticationError):
                await client.get("key")

        assert 2 == root.info("commandstats")["cmdstat_auth"]["failed_calls"]


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_retries_0_makes_one_attempt(make_pool, proxy, multiplex):
    client = client_of(make_pool, proxy.url, retries=0, multiplex=multiplex)
    redirect_nowhere(proxy)

    for call in (client.get, client.incr, lambda key: client.pipeline().get(key).execute()):
        with pytest.raises(redis.ConnectionError):
            await call("key")

    assert 3 == proxy.accepted


@pytest.mark.parametrize(("multiplex", "is_seen"), [(True, False), (True, True), (False, True)])
async def test_idle_connection_closed_by_the_server_costs_no_attempt(make_pool, server, inspector, multiplex, is_seen):
    client = client_of(make_pool, server.url, retries=0, multiplex=multiplex)

    for number in range(10):
        identity = await client.client_id()
        inspector.client_kill_filter(_id=identity)
        if multiplex:
            # A connection that was used a moment ago is not checked.
            pretend_idle(shared_connection_of(client), 1)
        if is_seen:
            await asyncio.sleep(0)
        assert number + 1 == await client.incr("key")


async def test_retries_bound_attempts_without_socket_timeout(make_pool, proxy):
    client = client_of(make_pool, proxy.url, socket_timeout=None, retries=3, retry_backoff=0.001)
    redirect_nowhere(proxy)

    with pytest.raises(redis.ConnectionError):
        await client.incr("key")

    assert 4 == proxy.accepted


async def test_shared_failure_raises_a_separate_error_for_each_caller(make_pool):
    client = client_of(make_pool, "redis://127.0.0.1:1", retries=0)

    raised = await asyncio.gather(*(client.get("key") for _ in range(10)), return_exceptions=True)

    assert 10 == len(set(map(id, raised)))
    assert 1 == len(set(map(str, raised)))


async def test_error_that_cannot_be_copied_reaches_the_caller(make_pool, server):
    class OddError(redis.ConnectionError):
        def __init__(self, first, second):
            super().__init__(f"{first} {second}")

    class Provider(redis.CredentialProvider):
        async def get_credentials_async(self):
            raise OddError(next(numbers), "th")

    numbers = count()
    client = client_of(make_pool, server.url, credential_provider=Provider(), timeout=0.5, retries=0)

    raised = await asyncio.gather(client.get("key"), client.get("key"), return_exceptions=True)

    assert [OddError, OddError] == list(map(type, raised))


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize(
    "write",
    [
        lambda client: client.pipeline().incr("key").execute(),
        lambda client: client.pipeline(transaction=False).incr("key").execute(),
        lambda client: client.pipeline(transaction=False).incr("key").execute(raise_on_error=False),
        lambda client: client.eval("return redis.call('incr', KEYS[1])", 1, "key"),
        lambda client: client.incr("key"),
    ],
    ids=["MULTI", "batch", "errors returned", "script", "command"],
)
async def test_connection_to_a_demoted_server_is_replaced_also_without_retries(
    make_pool, server, own_server, write, multiplex
):
    with redis.Redis.from_url(own_server.url) as demoted:
        client = client_of(make_pool, own_server.url, retries=0, multiplex=multiplex)
        before = await client.client_id()
        demoted.replicaof(server.host, server.port)
        with suppress(redis.RedisError):
            await write(client)

        assert before != await client.client_id()
        demoted.replicaof("NO", "ONE")


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_retry_ignores_the_error_its_caller_is_handling(make_pool, multiplex):
    answered, asked = answers(b"-LOADING not yet\r\n", b":7\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)
        try:
            raise ssl.SSLError("of another connection")
        except ssl.SSLError:
            assert 7 == await client.incr("key")

    assert 2 == len(asked)


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize(
    ("command", "first"), [("RPUSH", "no reply in 1.5 s"), ("GET", "not yet")], ids=["write", "read"]
)
async def test_unanswered_write_raises_timeout_error_and_not_its_earlier_refusal(make_pool, multiplex, command, first):
    asked, is_over = [], asyncio.Event()

    async def answered(connection, args):
        asked.append(args[0].decode())
        if len(asked) > 1:
            await is_over.wait()
        return b"-LOADING not yet\r\n"

    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex, socket_timeout=1.5)
        with pytest.raises(redis.RedisError) as caught:
            await client.execute_command(command, "key")
        is_over.set()
        await client.connection_pool.aclose()

    # The call's deadline and its last reply's expire at almost the same time; either may be found first.
    late_reply = "Timeout reading from " if multiplex else "no reply in 1.5 s"
    assert str(caught.value).startswith((first, late_reply))
    assert isinstance(caught.value.__cause__ or caught.value, redis.BusyLoadingError | redis.TimeoutError)
    assert [command] * 2 == asked
    # The server is slow, but reachable.
    assert not client.connection_pool.retry_policy.server_unreachable


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_write_unsent_at_the_deadline_raises_connection_error_and_not_timeout(make_pool, proxy, until, multiplex):
    # The longer the pause, the earlier the call's deadline comes before the read's in its second attempt.
    options = {"socket_timeout": 1.5, "socket_connect_timeout": 600, "retry_backoff": 0.5}
    client = client_of(make_pool, proxy.url, multiplex=multiplex, **options)
    upstream = redirect_nowhere(proxy)
    call = asyncio.ensure_future(client.incr("key"))
    await until(lambda: proxy.accepted == 1)
    proxy.silent = True
    redirect(proxy, *upstream)

    async with asyncio.timeout(20):
        with pytest.raises(redis.ConnectionError):
            await call

    # The server accepts connections and answers nothing.
    assert client.connection_pool.retry_policy.server_unreachable


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_unanswered_batch_raises_timeout_error_and_not_its_earlier_failure(make_pool, proxy, until, multiplex):
    asked, is_over = [], asyncio.Event()

    async def answered(connection, args):
        asked.append(args[0])
        await is_over.wait()

    client = client_of(make_pool, proxy.url, multiplex=multiplex, socket_timeout=1.5)
    redirect_nowhere(proxy)
    call = asyncio.ensure_future(client.pipeline().incr("key").execute())
    await until(lambda: proxy.accepted == 1)
    async with scripted(answered) as port:
        redirect(proxy, "127.0.0.1", port)
        with pytest.raises(redis.TimeoutError, match=r"^no reply in 1\.5 s$|^Timeout reading from "):
            await call
        is_over.set()
        await client.connection_pool.aclose()

    assert [b"MULTI"] == asked
    assert not client.connection_pool.retry_policy.server_unreachable


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_response_callback_may_run_beyond_the_deadline(make_pool, until, multiplex):
    answered, _ = answers(b"-LOADING not yet\r\n", b":7\r\n")
    started = time.monotonic()

    async def parse(reply):
        await until(lambda: time.monotonic() - started > 1.6)
        return reply + 1

    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex, socket_timeout=1.5)
        client.set_response_callback("INCRBY", parse)

        assert 8 == await client.incr("key")


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.parametrize("error", [TimeoutError("own"), redis.BusyLoadingError("own"), redis.ReadOnlyError("own")])
async def test_response_callback_error_reaches_the_caller_without_retry(make_pool, server, error, multiplex):
    def parse(reply):
        raise error

    client = client_of(make_pool, server.url, multiplex=multiplex)
    client.set_response_callback("INCRBY", parse)
    client.set_response_callback("BLPOP", parse)
    await client.rpush("list", "a", "b")

    with pytest.raises(type(error), match=r"^own$"):
        await client.incr("key")
    with pytest.raises(type(error), match=r"^own$"):
        await client.blpop("list")

    assert [b"1", [b"b"]] == [await client.get("key"), await client.lrange("list", 0, -1)]


@WITH_AND_WITHOUT_MULTIPLEXING
@pytest.mark.filterwarnings("ignore:Call to experimental method")
async def test_himport_set_reply_is_parsed_once(make_pool, multiplex):
    answered, asked = answers(b"+OK\r\n")
    async with scripted(answered) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex)

        assert await client.execute_command("HIMPORT SET", "key", "fields", "value")
        assert await client.himport_prepare("fields", ["field"])
        assert await client.himport_set("key", "fields", ["value"])

        assert ["HIMPORT"] * len(asked) == [name for _, name in asked]
        await client.connection_pool.aclose()


async def test_write_is_sent_once_when_its_health_check_fails(make_pool, proxy, inspector):
    client = client_of(make_pool, proxy.url, multiplex=False, health_check_interval=1)
    assert 1 == await client.incr("key")
    [connection] = idle_connections_of(client.connection_pool)
    connection.next_health_check -= 2
    proxy.cut_replies = 1

    assert 2 == await client.incr("key")

    assert 0 == proxy.cut_replies
    assert "2" == inspector.get("key")


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_retry_starts_no_attempt_after_a_busy_event_loop_passes_the_deadline(make_pool, until, multiplex):
    answered, asked = answers(b"-LOADING not yet\r\n", b":7\r\n")
    async with scripted(answered) as port:
        client = client_of(
            make_pool, f"redis://127.0.0.1:{port}", multiplex=multiplex, socket_timeout=1.5, retry_backoff=1
        )
        call = asyncio.ensure_future(client.incr("key"))
        await until(lambda: len(asked) == 1)
        for _ in range(5):
            await asyncio.sleep(0)
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point

        with pytest.raises(redis.BusyLoadingError):
            await call
        await client.connection_pool.aclose()

    assert 1 == len(asked)
    assert not client.connection_pool.retry_policy.server_unreachable


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_waiting_for_a_slot_until_the_deadline_does_not_mark_server_unreachable(
    make_pool, proxy, inspector, until, monkeypatch, multiplex
):
    client = client_of(make_pool, proxy.url, multiplex=multiplex, socket_timeout=2, max_connections=2)
    # Long enough for the others to take its slot.
    monkeypatch.setattr(client.connection_pool.retry_policy, "next_delay", lambda *_, **__: 1.0)
    upstream = redirect_nowhere(proxy)
    call = asyncio.ensure_future(client.client_setname("name"))
    await until(lambda: proxy.accepted == 1 and not client.connection_pool.stats().used)
    redirect(proxy, *upstream)
    blocked = [asyncio.ensure_future(client.blpop("list", timeout=0)) for _ in range(1 if multiplex else 2)]
    await until(lambda: inspector.info("clients")["blocked_clients"] == len(blocked))

    with pytest.raises(redis.ConnectionError):
        await call

    assert not client.connection_pool.retry_policy.server_unreachable
    inspector.rpush("list", *range(len(blocked)))
    await asyncio.gather(*blocked)


@WITH_AND_WITHOUT_MULTIPLEXING
async def test_server_that_resets_while_connecting_raises_redis_py_connection_error(make_pool, multiplex):
    def reset(_, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with listening(reset) as (host, port):
        client = client_of(make_pool, f"redis://{host}:{port}", multiplex=multiplex, retries=0)
        raised = [(await asyncio.gather(client.get("key"), return_exceptions=True))[0] for _ in range(100)]

    assert [] == [error for error in raised if not isinstance(error, redis.ConnectionError)]


async def test_retries_and_backoff_are_read_from_configuration(proxy):
    config = {"redis.url": proxy.url, "redis.retries": "2", "redis.retry_backoff": "1 ms", "redis.multiplex": "false"}
    redirect_nowhere(proxy)
    async with pool_from_config(config) as pool:
        assert pool.multiplexer is None
        with pytest.raises(redis.ConnectionError):
            await MonitoredRedisConnection(connection_pool=pool).get("key")

    assert 3 == proxy.accepted
