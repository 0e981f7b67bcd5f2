"""Every reply on the shared connection is what redis-py's client returns, or the error that it raises."""

import array
import asyncio
import enum
import random
from decimal import Decimal

import pytest
import redis
from redis.client import EMPTY_RESPONSE, NEVER_DECODE

from aioredis_monitored import MonitoredRedisConnection, ReplyDecodingError

BINARY = b"\xff\x00\xfe"
SCRIPT = "return {1, 'two', {3, false, {err='FOUR five'}}, redis.status_reply('six')}"


def _error_type(error):
    # Our decoding error is a RedisError as well.
    return UnicodeDecodeError if isinstance(error, ReplyDecodingError) else type(error)


class Int(int):
    def __repr__(self):
        return "an Int"


class Float(float):
    def __repr__(self):
        return "a Float"


class Str(str):
    __slots__ = ()


class Number(enum.IntEnum):
    ONE = 1


class Word(enum.StrEnum):
    GET = "GET"


ODD = [
    bytearray(b"array"),
    memoryview(b"view"),
    Int(1),
    Float(1.5),
    Str("text"),
    Number.ONE,
    Word.GET,
    True,
    None,
    Decimal("1.5"),
    1j,
    [1],
    {"a": 1},
    object,
    "ä€𝄞",
    "\ud800",
    "",
    b"",
    "with space",
    "line\r\n$5",
    10**30,
    -0.0,
    1e22,
    0.1,
    float("inf"),
    float("nan"),
    "x" * 10_000,
]
NAMES = [
    "get",
    b"GET",
    b"get",
    Str("GET"),
    Word.GET,
    "GET key",
    b"GET key",
    " GET key ",
    "get\tkey",
    "NOSUCH",
    "CONFIG FOO",
]
NAMES += [bytearray(b"GET"), memoryview(b"GET"), 1, None, "", " ", ("GET",), "gEt", "GET\0", "ä"]


def commands():
    """Return pairs of a method and its arguments; without a method it is ``execute_command``."""
    text = [
        "SET text value", "GET text", "GET none", "SETEX e 100 v", "TTL e", "PTTL none", "EXPIRE text 100",
        "PERSIST text", "APPEND text x", "STRLEN text", "GETRANGE text 0 2", "SETRANGE text 1 Z", "INCR n",
        "INCRBY n 5", "DECR n", "INCRBYFLOAT f 1.5", "INCR text", "MSET a 1 b 2", "MGET a b none", "MSETNX a 1 c 2",
        "GETDEL c", "GETEX a PERSIST", "SET a 1 NX", "SET a 2 XX GET", "SETNX a 1", "SETBIT bits 7 1", "GETBIT bits 7",
        "BITCOUNT bits", "BITPOS bits 1", "BITFIELD bits GET u8 0 INCRBY u8 0 300", "TYPE text", "TYPE none",
        "EXISTS a b none", "DEL b none", "UNLINK c", "RENAME a d", "RENAME none e", "COPY d d2", "TOUCH d d2",
        "OBJECT ENCODING d", "OBJECT HELP", "KEYS d2", "DBSIZE", "LPUSH list 1 2 3", "RPUSH list x", "LRANGE list 0 -1",
        "LINDEX list 0", "LINDEX list 9", "LLEN list", "LPOP list", "LPOP list 2", "RPOP none", "LPOS list x",
        "LPOS list q", "LINSERT list BEFORE x y", "LSET list 9 x", "LREM list 0 y", "LTRIM list 0 5",
        "LMOVE list list2 LEFT RIGHT", "LMPOP 1 none LEFT", "LMPOP 1 list2 LEFT", "LPUSH text x", "SADD s a",
        "SADD s a b", "SMEMBERS s1", "SISMEMBER s a", "SMISMEMBER s a q", "SCARD s", "SINTER s s", "SDIFF s s",
        "SINTERCARD 1 s", "SPOP none", "SRANDMEMBER none", "SREM s a", "SMEMBERS s", "SSCAN s 0", "SDIFFSTORE s3 s s2",
        "ZADD z 1 a 2.5 b", "ZADD z INCR 1 a", "ZSCORE z a", "ZSCORE z q", "ZMSCORE z a q", "ZRANGE z 0 -1",
        "ZRANGE z 0 -1 WITHSCORES", "ZREVRANGE z 0 -1 WITHSCORES", "ZRANGEBYSCORE z -inf +inf WITHSCORES", "ZRANK z b",
        "ZRANK z b WITHSCORE", "ZRANK z q", "ZINCRBY z 1 a", "ZCARD z", "ZCOUNT z 0 9", "ZPOPMIN z", "ZPOPMAX none",
        "ZMPOP 1 z MIN", "ZSCAN z 0", "ZADD z inf i", "ZSCORE z i", "ZRANDMEMBER none", "ZUNION 1 z WITHSCORES",
        "HSET h f v g w", "HGET h f", "HGET h q", "HGETALL h", "HGETALL none", "HMGET h f q", "HKEYS h", "HVALS h",
        "HLEN h", "HEXISTS h f", "HINCRBY h n 1", "HINCRBYFLOAT h x 1.5", "HSETNX h f v", "HDEL h n", "HSCAN h 0",
        "HSTRLEN h f", "HRANDFIELD none", "HMSET h2 a b", "XADD st 1-1 a b", "XADD st 1-1 a b", "XADD st 2-1 c d",
        "XLEN st", "XRANGE st - +", "XREVRANGE st + -", "XREAD STREAMS st 0", "XREAD STREAMS st 9",
        "XGROUP CREATE st g 0", "XGROUP CREATE st g 0", "XREADGROUP GROUP g c STREAMS st >", "XPENDING st g",
        "XPENDING st g - + 9", "XACK st g 1-1", "XINFO STREAM st", "XDEL st 2-1", "XTRIM st MAXLEN 0",
        "XAUTOCLAIM st g c 0 0", "XCLAIM st g c 0 2-1", "GEOADD geo 13.3 38.1 p 15 37 q", "GEOPOS geo p none",
        "GEODIST geo p q km", "GEOHASH geo p", "GEOSEARCH geo FROMMEMBER p BYRADIUS 200 km WITHDIST",
        "GEORADIUS geo 15 37 200 km WITHCOORD WITHDIST", "PFADD hll a b", "PFCOUNT hll", "PFMERGE hll2 hll",
        "SORT list ALPHA", "ECHO hello", "PING", "PING hello", "TIME x", "PUBLISH c m", "PUBSUB CHANNELS",
        "PUBSUB NUMSUB c", "CLIENT GETNAME", "CONFIG GET maxmemory", "CONFIG GET no*such", "CONFIG SET nosuch 1",
        "COMMAND COUNT", "COMMAND INFO GET nosuch", "ACL WHOAMI", "ACL LIST", "ACL GETUSER default", "ACL GETUSER none",
        "MEMORY USAGE none", "SLOWLOG GET 0", "SLOWLOG LEN", "LATENCY LATEST", "MODULE LIST",
        "FUNCTION LIST", "SCRIPT EXISTS 00", "LASTSAVE x", "EVAL return(1) 0", "EVALSHA 00 0", "FCALL none 0",
        "WAITFOR", "GET", "GET a b", "ROLE x", "CLUSTER INFO", "LOLWUT x y", "DUMP none", "DUMP text",
        "RESTORE r 0 bad", "SCAN 0 MATCH none", "BITOP NOT bits2 bits", "LCS text d", "SWAPDB 0 99", "DEBUG HELP",
        "RANDOMKEY x", "OBJECT FREQ d", "MIGRATE", "SUBSTR text 0 1", "XSETID st 5-5", "CLIENT UNBLOCK 999999",
        "CLIENT KILL ID 999999", "CLIENT TRACKINGINFO", "CLIENT GETREDIR", "EXPIRETIME text", "HELLO 9", "AUTH wrong",
    ]  # fmt: skip
    for line in text:
        yield "execute_command", line.split(), {}
    yield "execute_command", ["EVAL", SCRIPT, 0], {}
    yield "execute_command", ["EVAL", "return {err='MINE ' .. ARGV[1]}", 0, BINARY], {}
    yield "execute_command", ["EVAL", "redis.setresp(3); return {map={a=1}, double=1.5}", 0], {}
    yield "execute_command", ["EVAL", "redis.setresp(3); return {double=1.5}", 0], {}
    yield "execute_command", ["EVAL", "redis.setresp(3); return true", 0], {}
    yield "execute_command", ["EVAL", "return {redis.error_reply('LOADING not yet'), 1}", 0], {}
    yield "execute_command", ["EVAL", "return {1, redis.error_reply('LOADING not yet')}", 0], {}
    yield "execute_command", ["SET", "binary", BINARY], {}
    yield "execute_command", ["GET", "binary"], {}
    yield "execute_command", ["GET", "binary"], {NEVER_DECODE: True}
    yield "execute_command", ["MGET", "text", "binary", "text"], {}
    yield "execute_command", ["HSET", "hb", "f", "v", BINARY, BINARY], {}
    yield "execute_command", ["HGETALL", "hb"], {}
    yield "execute_command", ["HGETALL", "hb"], {NEVER_DECODE: True}
    yield "execute_command", ["LPUSH", "text", 1], {EMPTY_RESPONSE: "empty"}
    yield "execute_command", ["ECHO", "x"], {EMPTY_RESPONSE: "empty"}
    yield "execute_command", ["ECHO", "x"], {"keys": ["x"]}
    yield "execute_command", ["GET", "text"], {"unknown": 1}
    yield "execute_command", ["ZRANGE", "z", 0, -1, "WITHSCORES"], {"withscores": True, "score_cast_func": str}
    yield "execute_command", ["ECHO", "x"], {"_": 1}
    yield "execute_command", [], {}
    for name in NAMES:
        yield "execute_command", [name, "text"], {}
    for value in ODD:
        yield "set", ["odd", value], {}
        yield "get", ["odd"], {}
        yield "execute_command", ["ECHO", value], {}
    yield "dump", ["binary"], {}
    yield "hgetall", ["h"], {}
    yield "zadd", ["zz", {"a": 1, "b": 2.5}], {}
    yield "zrange", ["zz", 0, -1], {"withscores": True}
    yield "zrangebyscore", ["zz", 0, 9], {"withscores": True, "score_cast_func": int}
    yield "geosearch", ["geo"], {"member": "p", "radius": 200, "unit": "km", "withdist": True, "withcoord": True}
    yield "xinfo_groups", ["st"], {}
    yield "xrange", ["st"], {}
    yield "scan", [0], {"match": "none"}
    yield "config_get", ["maxmemory*"], {}
    yield "client_getname", [], {}
    yield "acl_getuser", ["default"], {}
    yield "command_info", ["GET"], {}
    yield "mget", ["text", "none"], {}
    yield "getex", ["text"], {"ex": 10}
    yield "set", ["text", "v"], {"get": True}
    yield "lpop", ["none"], {"count": 2}
    yield "script_exists", ["0" * 40], {}
    yield "sort", ["list"], {"alpha": True}
    yield "bitfield_ro", ["bits", "u8", 0], {}
    yield "expireat", ["text", 9_999_999_999], {}
    yield "lcs", ["text", "d"], {"idx": True}


async def outcome(awaitable):
    try:
        value = await awaitable
    except Exception as error:  # noqa: BLE001 - the test compares error types
        return _error_type(error), str(error)
    return type(value), repr(value)


async def call(client, method, args, options):
    return await getattr(client, method)(*args, **options)


def differences(calls, expected, actual):
    return [triple for triple in zip(calls, expected, actual, strict=True) if triple[1] != triple[2]]


@pytest.fixture
def both(make_pool, server):
    """Return a client of redis-py and one of ours."""

    def make(**options):
        ours = MonitoredRedisConnection(connection_pool=make_pool(server.url, **options))
        return redis.asyncio.Redis.from_url(server.url, **options), ours

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": 2},
        {"protocol": 3},
        {"protocol": 2, "decode_responses": True},
        {"protocol": 3, "decode_responses": True},
        {"encoding": "latin-1"},
        {"encoding": "utf-16"},
        {"encoding": "ascii", "encoding_errors": "replace", "decode_responses": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", ["one by one", "all at once", "borrowed"])
async def test_replies_and_errors_equal_those_of_redis_py(both, options, way):
    plain, client = both(**options)
    calls = list(commands())
    if way == "borrowed":
        client.connection_pool.multiplexer = None
    assert len(calls) >= 150

    async with plain:
        await plain.flushall()
        expected = [await outcome(call(plain, *each)) for each in calls]
        await plain.flushall()
    if way == "all at once":
        actual = await asyncio.gather(*(outcome(call(client, *each)) for each in calls))
    else:
        actual = [await outcome(call(client, *each)) for each in calls]

    assert [] == differences(calls, expected, actual)


@pytest.mark.parametrize("options", [{"protocol": 2}, {"protocol": 3, "decode_responses": True}], ids=str)
@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_replies_equal_those_of_redis_py(both, options, transaction):
    plain, client = both(**options)
    # Without commands that end a whole batch of redis-py's, or that a transaction forbids.
    calls = [
        each
        for each in commands()
        if len(each[1]) > 1
        and each[1][0] not in ("AUTH", "HELLO", "WAITFOR", "DEBUG", *NAMES)
        and not any(value is odd for value in each[1] for odd in ODD)
        and BINARY not in each[1]
        and "binary" not in each[1]
    ]
    outcomes = []
    async with plain:
        for tested in (plain, client):
            await plain.flushall()
            batches = [calls[start : start + 3] for start in range(0, len(calls), 3)]
            outcomes.append([])
            for part in batches:
                outcomes[-1].append(await outcome(batch(tested, transaction, part)))
                # redis-py's connection is out of step after a callback has raised.
                await plain.connection_pool.disconnect()

    assert [] == differences(batches, *outcomes)


async def batch(client, transaction, calls):
    pipeline = client.pipeline(transaction=transaction)
    for each in calls:
        getattr(pipeline, each[0])(*each[1], **each[2])
    # Our error texts omit values.
    try:
        replies = await pipeline.execute(raise_on_error=False)
    except UnicodeDecodeError:
        raise
    except redis.RedisError as error:
        return type(error)
    return [type(reply) if isinstance(reply, Exception) else reply for reply in replies]


@pytest.mark.parametrize("name", ["GET", "get", "ECHO"])
async def test_response_callbacks_are_called_as_in_redis_py(both, name):
    async def later(reply, **options):
        await asyncio.sleep(0)
        return reply, options

    def fail(reply, **options):
        raise LookupError(reply)

    for callback in (later, lambda reply, **options: (options, reply), fail, lambda reply: reply * 2):
        outcomes = []
        for client in both():
            client.set_response_callback(name, callback)
            calls = [client.execute_command(name, "x", **options) for options in ({}, {"a": 1}, {"keys": [1]})]
            calls.append(client.pipeline().execute_command(name, "x", a=1).execute())
            outcomes.append([await outcome(each) for each in calls])
            await client.aclose()
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("multiplex", [True, False])
async def test_response_callback_error_leaves_no_reply_to_other_calls(make_pool, server, multiplex):
    def fail(reply, **options):
        raise LookupError(reply)

    pool = make_pool(server.url, multiplex=multiplex)
    client, other = MonitoredRedisConnection(connection_pool=pool), MonitoredRedisConnection(connection_pool=pool)
    other.set_response_callback("ECHO", fail)

    for transaction in (True, False):
        with pytest.raises(LookupError):
            await other.pipeline(transaction).echo("other").echo("other").execute()
        with pytest.raises(LookupError):
            await other.pipeline(transaction=False).echo("other").blpop("list", 0.05).execute()

        # These calls get the connection that was used last.
        assert [b"mine"] * 3 == [await client.echo("mine") for _ in range(3)]
        assert [None, b"mine"] == await client.pipeline(transaction=False).blpop("list", 0.01).echo("mine").execute()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_undecodable_reply_fails_only_its_own_call(make_pool, server, protocol, seed):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, protocol=protocol, decode_responses=True))
    rng = random.Random(seed)
    await client.set("binary", BINARY)
    await client.hset("hash", mapping={"text": "x", BINARY: BINARY})
    shared = await client.client_id()

    async def one(number):
        raw = client.pipeline(transaction=False).execute_command("GET", "binary", **{NEVER_DECODE: True}).echo(number)
        match rng.randrange(6):
            case 0:
                call, expected = client.get("binary"), ReplyDecodingError
            case 1:
                call, expected = client.hgetall("hash"), ReplyDecodingError
            case 2:
                call, expected = client.pipeline().echo(number).get("binary").echo(number).execute(), ReplyDecodingError
            case 3:
                call, expected = client.execute_command("GET", "binary", **{NEVER_DECODE: True}), BINARY
            case 4:
                call, expected = raw.execute(), [BINARY, str(number)]
            case _:
                call, expected = client.echo(number), str(number)
        try:
            return expected, await call
        except UnicodeDecodeError as error:
            return expected, type(error)

    outcomes = await asyncio.gather(*map(one, range(300)))

    assert [expected for expected, _ in outcomes] == [actual for _, actual in outcomes], f"seed {seed}"
    assert shared == await client.client_id()


@pytest.mark.parametrize(
    "view",
    [
        memoryview(array.array("I", [1, 2])),
        memoryview(b"abcdef").cast("B", (2, 3)),
        memoryview(b"abcdef")[::2],
        memoryview(b"abcdef")[::-1],
    ],
    ids=["integers", "two dimensions", "every other", "reversed"],
)
async def test_memoryview_of_any_shape_is_sent_or_raises_without_affecting_other_calls(client, view):
    shared = await client.client_id()

    calls = (client.incr("key"), client.set("view", view), client.incr("key"), client.client_id())
    before, stored, *after = await asyncio.gather(*calls, return_exceptions=True)

    assert [1, 2, shared] == [before, *after]
    assert (
        view.tobytes() == await client.get("view")
        if stored is True
        else isinstance(stored, TypeError | redis.DataError)
    )
