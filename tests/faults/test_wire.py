"""A socket that many callers share: hang-ups, unrequested replies, and deadlines of a busy program."""

import asyncio
import socket
import time
from contextlib import contextmanager, suppress
from threading import Event, Thread

import hiredis
import pytest
import redis
import redis.exceptions
from support.internals import shared_connection_of
from support.scripted import scripted
from support.sharing import UNRECORDED, begun, client_of, frozen, until_answered

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, PoolExhaustedError
from aioredis_monitored._multiplexer import AttemptFailed, inflight
from aioredis_monitored.testing import RedisServer

BOTH = pytest.mark.parametrize("multiplex", [True, False], ids=["multiplexed", "pooled"])


async def shared(client, *args):
    """Return the reply to a command that the client would not send on the shared connection."""
    reply = await client.connection_pool.multiplexer.send(args)
    if isinstance(reply, Exception):
        raise reply.error if isinstance(reply, AttemptFailed) else reply
    return reply


# A server that hangs up gives its reason.


@pytest.fixture(scope="module")
def strict_server():
    with RedisServer("--proto-max-bulk-len", "1mb") as running:
        yield running


@BOTH
async def test_oversized_value_fails_alone_with_reason(make_pool, strict_server, multiplex):
    client = client_of(make_pool, strict_server.url, **UNRECORDED, multiplex=multiplex)
    await client.ping()
    others, culprits = [], []
    for number in range(40):
        sets = [client.set(f"key:{each}", bytes([number]) * 100_000) for each in range(10)]
        sets.insert(number % 11, client.set("long", b"x" * 1_500_000))
        results = await asyncio.gather(*sets, return_exceptions=True)
        culprits.append(results.pop(number % 11))
        others += results

    assert [True] * 400 == others
    # On a dedicated connection, redis-py loses unread data when a write fails.
    reasons = {str(error) for error in culprits if multiplex or isinstance(error, redis.exceptions.ResponseError)}
    assert {"Protocol error: invalid bulk length"} >= reasons
    assert bool(reasons) or not multiplex
    assert {redis.exceptions.ResponseError, redis.exceptions.ConnectionError} >= set(map(type, culprits))
    assert [bytes([39]) * 100_000] * 10 == await client.mget(f"key:{each}" for each in range(10))


@BOTH
@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_with_oversized_value_fails_alone(make_pool, strict_server, multiplex, transaction):
    client = client_of(make_pool, strict_server.url, **UNRECORDED, multiplex=multiplex)
    for number in range(10):
        batch = client.pipeline(transaction=transaction).set("a", number).set("long", b"x" * 1_500_000).set("b", 1)
        calls = [client.incr(f"counter:{multiplex}:{transaction}"), batch.execute(), client.set("key", number)]
        count, error, is_set = await asyncio.gather(*calls, return_exceptions=True)

        assert (number + 1, True) == (count, is_set)
        if multiplex or isinstance(error, redis.exceptions.ResponseError):
            assert "Protocol error: invalid bulk length" in str(error)
        assert isinstance(error, redis.exceptions.ResponseError | redis.exceptions.ConnectionError)


SCRIPT = "return redis.call('INCRBY', KEYS[1], 1)"


async def put_bounded(client, value):
    async with MessageQueue("bounded", client.connection_pool, max_length=10) as queue:
        await queue.put(value)


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        lambda client, value: client.eval(SCRIPT, 1, "runs", value),
        lambda client, value: client.evalsha("0" * 40, 1, "runs", value),
        lambda client, value: client.fcall("absent", 1, "runs", value),
        lambda client, value: client.register_script(SCRIPT)(["runs"], [value]),
        put_bounded,
        lambda client, value: client.pipeline(transaction=False).incr("a").eval(SCRIPT, 1, "runs", value).execute(),
        lambda client, value: client.pipeline(transaction=True).incr("a").eval(SCRIPT, 1, "runs", value).execute(),
    ],
    ids=["eval", "evalsha", "fcall", "script", "put", "pipeline", "transaction"],
)
async def test_script_with_oversized_value_fails_alone_with_reason(make_pool, strict_server, multiplex, call):
    client = client_of(make_pool, strict_server.url, **UNRECORDED, multiplex=multiplex)
    await client.ping()
    await client.set("runs", 0)
    others, culprits = [], []
    for number in range(10):
        calls = [client.rpush(f"list:{multiplex}", b"y" * 100_000) for _ in range(10)]
        calls.insert(number, call(client, b"x" * 1_500_000))
        results = await asyncio.gather(*calls, return_exceptions=True)
        culprits.append(results.pop(number))
        others += results
    pushed = await client.llen(f"list:{multiplex}")
    await client.delete(f"list:{multiplex}", "a", "bounded")

    # Each call ran exactly once.
    assert (set(range(1, 101)), 100) == (set(others), pushed)
    assert [] == [
        error
        for error in culprits
        if "Protocol error: invalid bulk length" not in str(error)
        and (multiplex or not isinstance(error, redis.exceptions.ConnectionError))
    ]
    assert b"0" == await client.get("runs")


@pytest.mark.parametrize("args", [(b"EVAL", b"script", b"0"), (b"FCALL", b"function", b"0")], ids=lambda args: args[0])
async def test_script_error_about_protocol_is_not_taken_for_rejection(make_pool, args):
    counts = []

    def answer(connection, said):
        if said[0] == b"INCR":
            counts.append(connection)
            return b":1\r\n" if connection > 1 else None
        return b"-ERR Protocol error: says the script\r\n"

    async with scripted(answer) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED)
        calls = [pool.multiplexer.send(args), pool.multiplexer.send(("INCR", "a"))]
        said, lost = await asyncio.gather(*calls)
        await pool.aclose()

    # The call may have run, and is not sent again.
    assert ("Protocol error: says the script", True, [1]) == (str(said), lost.may_have_run, counts)


@pytest.mark.slow
async def test_too_many_arguments_fail_alone_with_reason(make_client, own_server):
    # redis-py takes seconds to pack the arguments.
    client = make_client(own_server.url, socket_timeout=60)
    for number in range(5):
        calls = [client.incr("before"), client.mget(["key"] * 2**20), client.incr("behind")]
        before, error, behind = await asyncio.gather(*calls, return_exceptions=True)

        if isinstance(error, Exception):
            assert (redis.exceptions.ResponseError, "Protocol error: invalid multibulk length") == (
                type(error),
                str(error),
            )
        assert (number + 1, number + 1) == (before, behind)


async def test_oversized_query_fails_alone_with_few_reconnects(make_client, own_server):
    with redis.Redis.from_url(own_server.url) as admin:
        admin.config_set("client-query-buffer-limit", 1024 * 1024)
    client = make_client(own_server.url)
    await client.set("key", "value")
    calls = [client.get("key"), client.echo("x" * 3_000_000), client.get("key")]

    first, error, last = await asyncio.gather(*calls, return_exceptions=True)

    assert (b"value", b"value") == (first, last)
    assert isinstance(error, redis.exceptions.ConnectionError)
    with redis.Redis.from_url(own_server.url) as admin:
        assert admin.info("stats")["total_connections_received"] < 15


async def test_client_eviction_fails_no_read_and_repeats_no_write(make_client, own_server):
    with redis.Redis.from_url(own_server.url) as admin:
        admin.config_set("maxmemory-clients", "4mb")
        client = make_client(own_server.url)
        await client.set("key", "value")
        for number in range(5):
            # Half of the ECHO is enough for the server to evict the client.
            calls = [
                client.get("key"),
                client.echo(b"x" * 6_000_000),
                client.incr(f"counter:{number}"),
                client.get("key"),
            ]
            first, error, _, last = await asyncio.gather(*calls, return_exceptions=True)

            assert (b"value", b"value") == (first, last)
            assert isinstance(error, redis.exceptions.ConnectionError)
            assert admin.get(f"counter:{number}") in {None, b"1"}
        assert admin.info("stats")["evicted_clients"] >= 5


async def test_killed_connection_retries_reads_but_not_writes(make_client, own_server, until):
    client = make_client(own_server.url)
    await client.set("key", "value")
    with redis.Redis.from_url(own_server.url) as admin:
        for number in range(30):
            reads = [asyncio.ensure_future(client.get("key")) for _ in range(20)]
            write = asyncio.ensure_future(client.incr(f"counter:{number}"))
            await asyncio.sleep(0)
            for each in admin.client_list():
                if int(each["id"]) != admin.client_id():
                    admin.client_kill_filter(_id=each["id"])
            assert [b"value"] * 20 == await asyncio.gather(*reads)
            await asyncio.gather(write, return_exceptions=True)
            assert admin.get(f"counter:{number}") in {None, b"1"}


async def test_idle_timeout_of_server_fails_no_command(make_client, own_server, until):
    client = make_client(own_server.url)
    with redis.Redis.from_url(own_server.url) as admin:
        admin.config_set("timeout", 1)
        await client.set("counter", 0)
        ended = len(admin.client_list())
        await until(lambda: len(admin.client_list()) < ended, 30)

        assert 1 == await client.incr("counter")


# Unrequested replies.


@pytest.fixture
def debuggable():
    with RedisServer("--enable-debug-command", "yes") as running:
        yield running


async def test_attribute_is_not_taken_for_reply(make_client, debuggable):
    client = make_client(debuggable.url)
    reply = b"Some real reply following the attribute"
    await client.set("key", b"value\r\n|1\r\n")

    assert reply == await client.execute_command("DEBUG", "PROTOCOL", "ATTRIB")
    if client.connection_pool.multiplexer is not None:
        calls = [client.get("key"), shared(client, "DEBUG", "PROTOCOL", "ATTRIB"), client.incr("counter")]
        assert [b"value\r\n|1\r\n", reply, 1] == await asyncio.gather(*calls)
    assert b"value\r\n|1\r\n" == await client.get("key")


async def test_nested_attribute_closes_connection(make_pool):
    def answer(connection, args):
        if connection == 1:
            return b"|1\r\n$1\r\na\r\n|1\r\n$1\r\na\r\n:1\r\n:2\r\n$1\r\nx\r\n"
        return b"$1\r\nx\r\n"

    async with scripted(answer) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED)
        with pytest.raises(redis.exceptions.ConnectionError, match="an attribute in an attribute"):
            await client.incr("key")

        assert b"x" == await client.get("key")
        await client.connection_pool.aclose()


async def test_unexpected_reply_after_another_is_not_delivered(make_pool, until):
    async def answer_twice(args):
        return b"+mine\r\n+stray\r\n" if args[1] == b"first" else b"+mine\r\n"

    async with scripted(lambda _, args: answer_twice(args)) as port:
        client = client_of(make_pool, f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED)
        for _ in range(20):
            assert [b"mine"] == await asyncio.gather(client.get("first"), return_exceptions=True)
            assert b"mine" == await client.get("second")
        await client.connection_pool.aclose()


@pytest.mark.parametrize(
    ("part", "rest"),
    [
        (b"$5\r\nst", b"ray\r\n"),
        (b"*2\r\n$1\r\na\r\n", b":1\r\n"),
        (b"|1\r\n+a\r\n", b"+b\r\n+stray\r\n"),
        (b"+", b"x\r\n"),
    ],
    ids=["value", "array", "attribute", "type"],
)
async def test_partial_unexpected_reply_is_not_delivered_when_completed(make_pool, multiplex, part, rest):
    def answer(connection, args):
        if args[1] == b"first":
            return b"+mine\r\n" + part
        return (rest if connection == 1 else b"") + b"+mine\r\n"

    async with scripted(answer) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED, multiplex=multiplex)
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [b"mine", b"mine"] == [await client.get("first"), await client.incr("second")]
        await pool.aclose()


@contextmanager
def straying():
    """Run a server in threads that sends a stray reply after that to ``GET``.

    Yields:
        Its port, and a function that returns when the stray reply is sent, and stops the event loop until then.
    """
    is_wanted, is_sent = Event(), Event()

    def stray():
        is_wanted.set()
        assert is_sent.wait(60)
        is_sent.clear()

    def serve(connection):
        reader = hiredis.Reader()
        with connection:
            while data := connection.recv(65_536):
                reader.feed(data)
                while (args := reader.gets()) is not False:
                    connection.sendall({b"PING": b"+PONG\r\n", b"CLIENT": b"+OK\r\n"}.get(args[0], b"+mine\r\n"))
                    if args[0] == b"GET":
                        is_wanted.wait()
                        is_wanted.clear()
                        connection.sendall(b"+stray\r\n")
                        is_sent.set()

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                # Otherwise, a reply waits until the client's side has acknowledged the one before.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(connection)
                threads.append(Thread(target=serve, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads, connections = [Thread(target=accept)], []
        threads[0].start()
        try:
            yield listener.getsockname()[1], stray
        finally:
            is_wanted.set()
            listener.shutdown(socket.SHUT_RDWR)
            # After a failure, the client's side is still open.
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


async def test_unread_stray_reply_is_detected_before_next_write(make_pool):
    with straying() as (port, stray):
        client = client_of(make_pool, f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED, client_info=False)
        for _ in range(10):
            assert b"mine" == await client.get("key")
            connection = shared_connection_of(client)
            stray()
            assert b"mine" == await client.echo("key")
            assert shared_connection_of(client) is not connection
        await client.connection_pool.aclose()


async def test_blocking_commands_do_not_bypass_stray_reply_check(make_pool):
    with straying() as (port, stray):
        client = client_of(make_pool, f"redis://127.0.0.1:{port}?protocol=2", **UNRECORDED, client_info=False)
        for _ in range(10):
            await asyncio.gather(*(client.blpop("list") for _ in range(5)))
            assert b"mine" == await client.get("key")
            connection = shared_connection_of(client)
            stray()
            calls = [client.echo("key"), *(client.brpoplpush("list", "list") for _ in range(5))]
            assert [b"mine"] * 6 == await asyncio.gather(*calls)
            assert shared_connection_of(client) is not connection
        await client.connection_pool.aclose()


# Deadlines.


async def leave_watch(client, pipe):
    await pipe.reset()


async def leave_block_that_watches(client, pipe):
    async with pipe:
        pass


async def start_monitor(client, pipe):
    async with client.monitor():
        pass


@BOTH
@pytest.mark.parametrize("call", [leave_watch, leave_block_that_watches, start_monitor])
async def test_busy_event_loop_times_out_no_read_by_redis_py(make_pool, own_server, multiplex, call):
    pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=1, retries=0)
    client = MonitoredRedisConnection(connection_pool=pool)
    pipe = client.pipeline()
    await pipe.watch("key")
    # So that no call has to connect.
    await client.blpop("list", 0.01)
    own_server.freeze()
    (calling,) = await begun(call(client, pipe))
    own_server.thaw()
    time.sleep(1.5)  # noqa: ASYNC251 - that is the point
    await calling
    await pipe.reset()


async def test_watch_that_cannot_be_reset_closes_its_connection(make_client, own_server):
    client = make_client(own_server.url, socket_timeout=0.2)
    pipe = client.pipeline()
    await pipe.watch("key")
    async with frozen(own_server):
        await pipe.reset()

    assert (None, False) == (pipe.connection, pipe.watching)
    assert 0 == client.connection_pool.stats().used
    assert await client.set("key", "value")


@BOTH
@pytest.mark.parametrize("size", [2_000, 20_000])
async def test_reply_received_while_event_loop_is_busy_is_no_timeout(make_pool, own_server, multiplex, size):
    pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=1, max_connections=100)
    client = MonitoredRedisConnection(connection_pool=pool)
    count = 500 if multiplex else 100
    value = b"x" * size
    await asyncio.gather(*(client.set(f"key:{number}", value) for number in range(count)))
    own_server.freeze()
    calls = await begun(*(client.set(f"key:{number}", value, get=True) for number in range(count)))
    own_server.thaw()
    time.sleep(1.5)  # noqa: ASYNC251 - that is the point

    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [] == [result for result in results if result != value]


@pytest.mark.parametrize("arguments", [{}, {"multiplex": False}, {"max_connections": 1}], ids=str)
async def test_ping_answered_while_event_loop_is_busy_is_no_timeout(make_pool, own_server, arguments):
    pool = make_pool(own_server.url, **UNRECORDED, socket_timeout=1, **arguments)
    await until_answered(pool.ping)
    for _ in range(3):
        own_server.freeze()
        (ping,) = await begun(pool.ping())
        own_server.thaw()
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point
        await ping


@BOTH
async def test_unanswered_ping_times_out_and_leaves_no_reply_to_others(make_pool, own_server, multiplex):
    pool = make_pool(own_server.url, **UNRECORDED, name="mine", socket_timeout=1, multiplex=multiplex)
    await until_answered(pool.ping)
    async with frozen(own_server), asyncio.timeout(15):
        with pytest.raises(redis.exceptions.TimeoutError, match=r"^pool 'mine' \(127\.0\.0\.1:\d+/0\): "):
            await pool.ping()

    client = MonitoredRedisConnection(connection_pool=pool)
    assert b"mine" == await until_answered(lambda: client.echo("mine"))


@BOTH
async def test_connection_freed_while_event_loop_is_busy_is_acquired(make_pool, server, inspector, until, multiplex):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex, max_connections=1 + multiplex, timeout=2)
    client = MonitoredRedisConnection(connection_pool=pool)
    calls = await begun(client.blpop("list"), client.blpop("other", 0.01))
    await until(lambda: inspector.info("clients")["blocked_clients"] and pool.stats().pending)
    inspector.rpush("list", "element")
    time.sleep(4)  # noqa: ASYNC251 - that is the point

    assert [(b"list", b"element"), None] == await asyncio.gather(*calls)


async def test_queued_commands_are_sent_after_busy_event_loop(make_pool, own_server, monkeypatch):
    monkeypatch.setattr(inflight, "MAX_PENDING", 10)
    client = client_of(make_pool, own_server.url, **UNRECORDED, timeout=2)
    await client.ping()
    own_server.freeze()
    calls = await begun(*(client.incr("key") for _ in range(100)))
    own_server.thaw()
    time.sleep(4)  # noqa: ASYNC251 - that is the point

    assert list(range(1, 101)) == await asyncio.gather(*calls)


async def test_queued_command_times_out_while_event_loop_stays_busy(make_pool, own_server, monkeypatch, until):
    monkeypatch.setattr(inflight, "MAX_PENDING", 10)
    client = client_of(make_pool, own_server.url, **UNRECORDED, timeout=0.1, socket_timeout=600)
    await client.ping()
    async with frozen(own_server):
        calls = await begun(*(client.incr("key") for _ in range(20)))
        async with asyncio.timeout(15):
            while not calls[-1].done():
                time.sleep(0.15)  # noqa: ASYNC251 - that is the point
                await asyncio.sleep(0)
        assert [PoolExhaustedError] * 10 == [type(call.exception()) for call in calls[10:]]

    assert list(range(1, 11)) == await asyncio.gather(*calls[:10])


async def test_replies_before_pool_close_are_delivered_after_busy_event_loop(make_pool, own_server):
    value = b"x" * 2_000
    client = client_of(make_pool, own_server.url, **UNRECORDED, socket_timeout=2)
    await until_answered(lambda: client.set("key", value))
    own_server.freeze()
    calls = await begun(*(client.get("key") for _ in range(1_000)))
    closing, *_ = await begun(client.connection_pool.aclose())
    own_server.thaw()
    time.sleep(4)  # noqa: ASYNC251 - that is the point
    await closing

    assert [value] * 1_000 == await asyncio.gather(*calls)


async def test_cancelled_get_restores_message_after_busy_event_loop(make_pool, server, inspector, until):
    inspector.set("large", b"x" * 3_000_000)
    client = client_of(make_pool, server.url, **UNRECORDED, socket_timeout=1)
    async with MessageQueue("mail", client.connection_pool) as queue:
        await queue.put(b"message")
        calls = [asyncio.create_task(client.get("large")), asyncio.create_task(queue.get())]
        await until(
            lambda: (
                len(shared_connection_of(client).inflight.pending) == 2
                and not shared_connection_of(client).inflight.unwritten
            )
        )
        for call in calls:
            call.cancel()
        time.sleep(1.5)  # noqa: ASYNC251 - that is the point
        await asyncio.wait(calls)

        assert b"message" == await queue.get(timeout=30)


@BOTH
async def test_repeatedly_busy_event_loop_causes_no_timeout(make_pool, own_server, multiplex):
    pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=1, max_connections=100)
    client = MonitoredRedisConnection(connection_pool=pool)
    count = 500 if multiplex else 100
    value = b"x" * 2_000
    await asyncio.gather(*(client.set(f"key:{number}", value) for number in range(count)))
    # Also for longer than twice the timeout, and right after the previous calls.
    for seconds in (1.2, 1.2, 2.5):
        calls = await begun(*(client.set(f"key:{number}", value, get=True) for number in range(count)))
        time.sleep(seconds)  # noqa: ASYNC251 - that is the point
        results = await asyncio.gather(*calls, return_exceptions=True)

        assert [] == [result for result in results if result != value]


async def test_dripping_reply_times_out_despite_progress(make_pool, proxy, inspector, multiplex, until):
    inspector.set("key", b"x" * 100_000)
    pool = make_pool(proxy.url, **UNRECORDED, multiplex=multiplex, socket_timeout=0.5)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    proxy.reply_pause = 0.001

    # All replies would take more than a hundred seconds.
    async with asyncio.timeout(20):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.get("key")


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_has_one_timeout_for_all_replies(make_client, proxy, multiplex, transaction):
    client = make_client(proxy.url, socket_timeout=1)
    await client.ping()
    batch = client.pipeline(transaction=transaction)
    for number in range(400):
        batch.set(f"key:{number}", number)
    # With a second for each reply, the 2,000 bytes would take a hundred seconds.
    proxy.reply_pause = 0.05

    async with asyncio.timeout(20):
        with pytest.raises(redis.exceptions.TimeoutError):
            await batch.execute()


async def test_pipeline_timeout_is_extended_by_its_blocking_commands(make_client, server, inspector, until):
    client = make_client(server.url, socket_timeout=1)
    batch = client.pipeline(transaction=False).blpop("list", 600).blpop("list", 600).execute()
    waiting = asyncio.ensure_future(batch)
    await until(lambda: inspector.info("clients")["blocked_clients"] == 1)
    began = time.monotonic()
    await until(lambda: time.monotonic() > began + 1.2)
    inspector.rpush("list", "a", "b")

    assert [(b"list", b"a"), (b"list", b"b")] == list(map(tuple, await waiting))


# The order of calls on two connections.


async def test_command_called_before_blocking_command_is_sent_first(make_pool, own_server, until):
    client = client_of(make_pool, own_server.url, **UNRECORDED)
    await client.ping()
    await client.blpop("list", 0.01)
    with redis.Redis.from_url(own_server.url) as admin, admin.monitor() as monitor:
        seen = []
        for _ in range(50):
            await asyncio.gather(client.set("key", "value"), client.blpop(["missing"], 0.01))
        commands = (command["command"].split()[0] for command in monitor.listen())
        while len(seen) < 100:
            if (name := next(commands)) in {"SET", "BLPOP"}:
                seen.append(name)

    assert ["SET", "BLPOP"] * 50 == seen
