"""The shared connection: which calls use it, which get a dedicated connection, and what arrives between calls."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import hiredis
import pytest
import redis
from redis.auth.token import SimpleToken
from redis.exceptions import AuthenticationError, WatchError
from support.scripted import scripted
from support.sharing import begun, connections, frozen, line_of

from aioredis_monitored import DedicatedConnectionError, MonitoredRedisConnection
from aioredis_monitored.testing import RedisServer

CALLERS = 1024
PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.fixture
def named_pool(make_pool, server):
    return make_pool(server.url, client_name="tested")


class RecordedTransport:
    """A transport that records writes; everything else is the real one's."""

    def __init__(self, transport):
        self.writes = []
        self._transport = transport

    def write(self, data):
        self.writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)

    def commands(self):
        reader = hiredis.Reader()
        reader.feed(b"".join(self.writes))
        return list(iter(reader.gets, False))


class RecordedReader:
    """A parser that counts push messages; everything else is the real one's."""

    def __init__(self, reader):
        self.pushed = 0
        self.feed = reader.feed
        self._gets = reader.gets

    def gets(self):
        reply = self._gets()
        self.pushed += isinstance(reply, hiredis.PushNotification)
        return reply


async def record_writes(client):
    await client.ping()
    line = line_of(client)
    line._transport = recorded = RecordedTransport(line._transport)
    return recorded


@asynccontextmanager
async def frozen_with(server, *calls):
    """Freeze the server with calls that are written and unanswered."""
    async with frozen(server):
        yield await begun(*calls)


# One connection for all calls.


async def test_shared_connection_serves_1024_callers_with_their_own_replies(inspector, named_pool):
    clients = [MonitoredRedisConnection(connection_pool=named_pool) for _ in range(4)]

    async def call(number):
        client = clients[number % len(clients)]
        await client.set(f"key-{number}", number)
        return await client.get(f"key-{number}")

    replies = await asyncio.gather(*map(call, range(CALLERS)))

    assert [b"%d" % number for number in range(CALLERS)] == replies
    assert 1 == len(connections(inspector))


async def test_calls_of_one_tick_are_sent_in_one_write(client):
    recorded = await record_writes(client)

    await asyncio.gather(*(client.get(f"key-{number}") for number in range(100)))
    await asyncio.gather(*(client.pipeline().get("key").execute() for _ in range(100)))

    assert 2 == len(recorded.writes)


@pytest.mark.parametrize("options", [{"multiplex": False}, {"max_connections": 1}])
async def test_pool_has_no_multiplexer_when_switched_off_or_with_one_connection(make_pool, server, options):
    pool = make_pool(server.url, **options)

    assert b"x" == await MonitoredRedisConnection(connection_pool=pool).echo("x")
    assert pool.multiplexer is None


async def test_plain_redis_py_pool_uses_a_connection_per_concurrent_call(inspector, server):
    async with redis.asyncio.BlockingConnectionPool.from_url(server.url, client_name="tested") as pool:
        client = MonitoredRedisConnection(connection_pool=pool)

        assert 4 == len(set(await asyncio.gather(*(client.client_id() for _ in range(4)))))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_mixed_concurrent_calls_get_their_own_replies(make_pool, server, protocol, seed):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, protocol=protocol))
    await client.set("text", "x")
    rng = random.Random(seed)

    async def call(number):
        match rng.randrange(5):
            case 0:
                return [number], [int(await client.echo(number))]
            case 1:
                with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                    await client.lpush("text", number)
                return None, None
            case 2:
                batch = client.pipeline(transaction=rng.random() < 0.5)
                return [b"%d" % number] * 3, await batch.echo(number).echo(number).echo(number).execute()
            case 3:
                await asyncio.sleep(0)
                return b"%d" % number, await client.eval("return ARGV[1]", 0, number)
            case _:
                size = rng.randrange(30_000)
                return b"x" * size, await client.echo("x" * size)

    outcomes = await asyncio.gather(*map(call, range(500)))

    assert [expected for expected, _ in outcomes] == [actual for _, actual in outcomes], f"seed {seed}"


# Dedicated connections.


async def test_wait_raises_on_the_shared_connection(client):
    for call in (client.wait(0, 1), client.waitaof(0, 0, 1), client.execute_command("wait", 0, 1)):
        with pytest.raises(DedicatedConnectionError, match=r"(?i)^wait.* counts the writes of its own connection"):
            await call


async def test_wait_counts_own_writes_in_pipelines_and_on_dedicated_connections(make_pool, until):
    arguments = ("--repl-diskless-sync-delay", "0")
    with (
        RedisServer(*arguments) as primary,
        RedisServer(*arguments) as replica,
        redis.Redis.from_url(replica.url) as inspector,
    ):
        inspector.replicaof(primary.host, primary.port)
        pool = make_pool(primary.url)
        client = MonitoredRedisConnection(connection_pool=pool)
        own, single = client.client(), MonitoredRedisConnection(connection_pool=pool, single_connection_client=True)

        async def waits(replicas, milliseconds):
            for transaction in (False, True):
                pipeline = client.pipeline(transaction).set("key", 1)
                yield (await pipeline.execute_command("WAIT", replicas, milliseconds).execute())[1]
            for handle in (own, single):
                await handle.set("key", 1)
                yield await handle.wait(replicas, milliseconds)

        await until(lambda: inspector.info("replication")["master_link_status"] == "up")
        acknowledged = [answer async for answer in waits(1, 60_000)]
        replica.freeze()
        # On a connection that has written nothing, the answer would be 1.
        unacknowledged = [answer async for answer in waits(1, 20)]
        replica.thaw()
        await own.aclose()
        await single.aclose()

    # In a transaction, WAIT does not wait.
    assert [1, 1, 1] == [acknowledged[0], *acknowledged[2:]]
    assert [0, 0, 0, 0] == unacknowledged


@pytest.mark.parametrize("options", [{}, {"protocol": 3}, {"multiplex": False}])
async def test_blocking_commands_outlast_socket_timeout_and_delay_no_other_call(make_pool, server, options):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, socket_timeout=1, **options))
    blocked = [
        asyncio.ensure_future(call)
        for call in (
            client.blpop("list", timeout=1.5),
            client.xread({"stream": "$"}, block=1_500),
            client.execute_command("BZPOPMIN", "zset", 1.5),
            client.pipeline(transaction=False).blpop("list", timeout=1.5).execute(),
        )
    ]

    answered = 0
    while not any(task.done() for task in blocked):
        await client.ping()
        answered += 1

    assert answered > 10
    assert [None, {} if options.get("protocol") == 3 else [], None, [None]] == [await task for task in blocked]


async def test_blocking_command_returns_the_element_that_arrives(client, until, inspector):
    popping = asyncio.ensure_future(client.blpop("list", timeout=60))
    reading = asyncio.ensure_future(client.xread({"stream": "$"}, block=60_000))
    await until(lambda: inspector.info("clients")["blocked_clients"] == 2)

    await client.rpush("list", "value")
    identity = await client.xadd("stream", {"field": "value"})

    assert (b"list", b"value") == tuple(await popping)
    assert [[b"stream", [(identity, {b"field": b"value"})]]] == await reading


# Pipelines.


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_is_sent_uninterrupted_between_other_calls(client, transaction):
    recorded = await record_writes(client)
    count, length = 50, 4

    async def batch(number):
        pipeline = client.pipeline(transaction)
        for position in range(length):
            pipeline.echo(f"{number}-{position}")
        return await pipeline.execute()

    replies = await asyncio.gather(*(call for number in range(count) for call in (batch(number), client.echo("other"))))

    assert [[f"{n}-{p}".encode() for p in range(length)] for n in range(count)] == replies[::2]
    commands = recorded.commands()
    for number in range(count):
        first = commands.index([b"ECHO", b"%d-0" % number])
        if transaction:
            assert [b"MULTI", b"EXEC"] == [commands[first - 1][0], commands[first + length][0]]
        assert replies[2 * number] == [command[1] for command in commands[first : first + length]]


async def test_pipelines_use_no_dedicated_connection(client, inspector, named_pool):
    client = MonitoredRedisConnection(connection_pool=named_pool)

    await asyncio.gather(*(client.pipeline(number % 2).incr("key").execute() for number in range(200)))

    assert (1, b"200") == (len(connections(inspector)), inspector.get("key"))


async def test_watch_uses_a_dedicated_connection_and_detects_changes(inspector, named_pool):
    client = MonitoredRedisConnection(connection_pool=named_pool)
    await client.set("key", 1)

    async with client.pipeline() as pipeline:
        await pipeline.watch("key")
        assert 2 == len(connections(inspector))
        await client.set("key", 2)
        assert b"2" == await pipeline.get("key")
        pipeline.multi()
        pipeline.set("key", 3)
        with pytest.raises(WatchError):
            await pipeline.execute()
        await pipeline.watch("key")
        pipeline.multi()
        assert [True] == await pipeline.set("key", 4).execute()

    assert b"4" == await client.get("key")


async def test_batch_with_unshareable_command_uses_a_dedicated_connection_and_closes_it(inspector, named_pool, until):
    client = MonitoredRedisConnection(connection_pool=named_pool)
    shared = await client.client_id()

    replies = await client.pipeline(transaction=False).execute_command("SELECT", 3).client_id().execute()

    assert shared != replies[1]
    await until(lambda: connections(inspector) == {shared})


# What arrives or is lost between calls.


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("key", [b"text", b"\xff\xfe"])
async def test_push_message_is_not_taken_for_a_reply(make_pool, server, inspector, key, decode):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, protocol=3, decode_responses=decode))
    shared = await client.client_id()
    tracking = redis.Connection(host=server.host, port=server.port)
    tracking.send_command("CLIENT", "TRACKING", "ON", "BCAST", "REDIRECT", shared)
    tracking.read_response()

    line_of(client)._reader = reader = RecordedReader(line_of(client)._reader)

    batch = client.pipeline(transaction=False).incr("run").set(key, 2).incr("run")
    before = await asyncio.gather(client.incr("one"), client.set(key, 1), batch.execute())
    pushed = reader.pushed
    # The invalidation has arrived before the next calls are written.
    inspector.set(key, 3)
    after = await asyncio.gather(client.incr("one"), client.incr("two"), client.client_id(), return_exceptions=True)
    tracking.disconnect()

    assert 0 < pushed < reader.pushed
    assert [1, True, [1, True, 2]] == before
    assert [2, 1, shared] == after


async def test_health_check_precedes_the_first_call_after_idleness(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, health_check_interval=30))
    recorded = await record_writes(client)
    await client.echo("no ping")
    line_of(client)._last_active -= 31

    replies = await asyncio.gather(*(client.echo(number) for number in range(3)))
    await client.echo("no ping")

    assert [b"0", b"1", b"2"] == replies
    assert [PING in written for written in recorded.writes] == [False, True, False, False]


@pytest.mark.parametrize("answer", [b"+WRONG\r\n", b"-ERR no\r\n", b":1\r\n", b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", None])
async def test_failed_health_check_replaces_the_connection_without_losing_calls(make_pool, answer):
    broken = []

    def answered(connection, args):
        if args[0] == b"PING":
            return answer if connection in broken else b"+PONG\r\n"
        return b":%d\r\n" % connection

    async with scripted(answered) as port:
        pool = make_pool(
            f"redis://127.0.0.1:{port}", protocol=2, health_check_interval=30, socket_timeout=60, timeout=60
        )
        client = MonitoredRedisConnection(connection_pool=pool)
        broken.append(await client.incr("key"))
        line_of(client)._last_active -= 31

        assert [2, 2, 2] == await asyncio.gather(*(client.incr("key") for _ in range(3)))
        await pool.aclose()


async def test_new_credentials_are_sent_between_calls_on_the_shared_connection(inspector, server, named_pool):
    inspector.acl_setuser("renewed", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
    client = MonitoredRedisConnection(connection_pool=named_pool)
    shared = await client.client_id()
    token = SimpleToken("secret", time.time() * 1000 + 60_000, time.time() * 1000, {"oid": "renewed"})
    try:
        async with frozen_with(server, *(client.echo(number) for number in range(10))) as calls:
            await named_pool.re_auth_callback(token)
            calls += [asyncio.ensure_future(client.acl_whoami())]
        assert [b"%d" % number for number in range(10)] + ["renewed"] == await asyncio.gather(*calls)
        assert {shared} == connections(inspector)
    finally:
        await named_pool.aclose()
        inspector.acl_deluser("renewed")


async def test_refused_credentials_replace_the_connection_without_losing_calls(make_pool, until):
    ran, is_retired = [], asyncio.Event()

    async def answered(connection, args):
        if args[0] == b"AUTH":
            return b"-WRONGPASS no\r\n"
        if ran:
            await is_retired.wait()
        ran.append(connection)
        return b":%d\r\n" % len(ran)

    async with scripted(answered) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}", protocol=2)
        client = MonitoredRedisConnection(connection_pool=pool)
        assert 1 == await client.incr("key")
        line = line_of(client)
        await pool.re_auth_callback(SimpleToken("wrong", time.time() * 1000 + 60_000, 0, {"oid": "wrong user"}))
        calls = await begun(*(client.incr("key") for _ in range(3)))
        await until(lambda: not line.is_open)
        is_retired.set()

        assert [2, 3, 4] == sorted(await asyncio.gather(*calls))
        assert 5 == await client.incr("key")
        assert [1, 1, 1, 1, 2] == ran
        await pool.aclose()


async def test_error_reply_does_not_disturb_other_calls_on_the_connection(inspector, named_pool):
    client = MonitoredRedisConnection(connection_pool=named_pool)
    await client.set("text", "x")

    async def fail():
        with pytest.raises(AuthenticationError if (number := next(numbers)) % 2 else redis.ResponseError):
            await (client.eval("return {err='WRONGPASS no'}", 0) if number % 2 else client.lpush("text", 1))

    numbers = iter(range(100))
    replies = await asyncio.gather(*(call for n in range(100) for call in (client.echo(n), fail(), client.echo(-n))))

    assert [b"%d" % n for n in range(100)] == replies[::3]
    assert [b"%d" % -n for n in range(100)] == replies[2::3]
    assert 1 == len(connections(inspector))


@pytest.mark.parametrize("arguments", [{}, {"max_connections": 3}])
async def test_shared_connection_never_reuses_an_altered_connection(inspector, server, make_pool, arguments):
    pool = make_pool(server.url, **arguments)
    client = MonitoredRedisConnection(connection_pool=pool)
    borrowed = [await pool.get_connection() for _ in range(2)]
    for connection in borrowed:
        await connection.send_command("SELECT", 5)
        await connection.read_response()
        await pool.release(connection)

    await client.set("small", "value")
    await client.set("large", "x" * 100_000)
    assert 2 == inspector.dbsize()


async def test_unsent_credentials_on_a_broken_connection_fail_no_call(make_pool):
    async with scripted(lambda connection, args: b":%d\r\n" % connection) as port:
        pool = make_pool(f"redis://127.0.0.1:{port}", protocol=2)
        client = MonitoredRedisConnection(connection_pool=pool)
        assert 1 == await client.incr("key")
        calls = [asyncio.ensure_future(client.incr("key")), asyncio.ensure_future(client.append("key", "value"))]
        await asyncio.sleep(0)
        await pool.re_auth_callback(SimpleToken("new", time.time() * 1000 + 60_000, 0, {"oid": "user"}))
        line_of(client).close(lambda: ConnectionError("broken"))

        assert [2, 2, 2] == [*await asyncio.gather(*calls), await client.incr("key")]
        await pool.aclose()


async def test_mutable_value_is_sent_as_called_after_a_lost_connection(server, make_pool):
    pool = make_pool(server.url)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    value = bytearray(b"before")
    call = asyncio.ensure_future(client.set("key", value))
    await asyncio.sleep(0)
    line_of(client).close(lambda: ConnectionError("broken"))
    value[:] = b"behind"

    assert await call
    assert b"before" == await client.get("key")


@pytest.mark.parametrize("socket_timeout", [None, 600])
async def test_retired_connection_closes_when_its_last_caller_is_cancelled(server, make_pool, until, socket_timeout):
    pool = make_pool(server.url, socket_timeout=socket_timeout)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    line = line_of(client)
    async with frozen_with(server, client.ping()) as calls:
        line.retire()
        assert not line.closing.done()
        calls[0].cancel()
        await until(line.closing.done)
