"""A reply that is not in the client's encoding is an error of both kinds, wherever it is read."""

import pickle

import pytest
import redis.exceptions
from redis._parsers import _AsyncHiredisParser, _AsyncRESP3Parser
from redis.asyncio import BlockingConnectionPool, ConnectionPool

from aioredis_monitored import MonitoredRedisConnection, MonitoredRedisError, ReplyDecodingError

SECRET = b"secret \xff"


@pytest.fixture
def text_client(make_client, server, inspector):
    inspector.set("binary", SECRET)
    inspector.hset("hash", "field", SECRET)
    inspector.rpush("list", *[SECRET] * 9)
    return make_client(server.url, decode_responses=True)


OTHER_POOLS = ["plain", "blocking", "hiredis", "python"]
PARSERS = {"hiredis": _AsyncHiredisParser, "python": _AsyncRESP3Parser}


@pytest.fixture(params=OTHER_POOLS)
async def foreign_client(request, server, make_pool, inspector):
    """Yield clients on pools whose connections do not know our errors."""
    inspector.set("binary", SECRET)
    inspector.hset("hash", "field", SECRET)
    inspector.rpush("list", *[SECRET] * 9)
    if request.param in PARSERS:
        pool = make_pool(server.url, decode_responses=True, parser_class=PARSERS[request.param])
    else:
        kind = ConnectionPool if request.param == "plain" else BlockingConnectionPool
        pool = kind.from_url(server.url, decode_responses=True)
    yield MonitoredRedisConnection(connection_pool=pool)
    await pool.aclose()


async def _watched(client):
    async with client.pipeline() as pipeline:
        await pipeline.watch("binary")
        await pipeline.get("binary")


CALLS = [
    lambda client: client.get("binary"),
    lambda client: client.hgetall("hash"),
    lambda client: client.lrange("list", 0, -1),
    lambda client: client.blpop("list", 1),
    lambda client: client.eval("return {1, {redis.call('GET', KEYS[1])}}", 1, "binary"),
    lambda client: client.pipeline().echo("x").get("binary").echo("y").execute(),
    lambda client: client.pipeline(transaction=False).echo("x").get("binary").echo("y").execute(),
    lambda client: client.pipeline(transaction=False).get("binary").blpop("list", 1).execute(),
    lambda client: client.client().get("binary"),
    lambda client: client.client().blpop("list", 1),
    lambda client: client.register_script("return redis.call('GET', KEYS[1])")(["binary"]),
    _watched,
]
reads_undecodable = pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))


@reads_undecodable
async def test_undecodable_reply_raises_reply_decoding_error(text_client, call):
    await _check_undecodable(text_client, call)


@reads_undecodable
async def test_undecodable_reply_raises_reply_decoding_error_on_any_pool(foreign_client, call):
    await _check_undecodable(foreign_client, call)


async def _check_undecodable(client, call):
    handles = []
    with pytest.raises(ReplyDecodingError) as caught:
        await call(_TrackingClient(client, handles))
    for handle in handles:
        await handle.aclose()

    error = caught.value
    assert isinstance(error, redis.exceptions.RedisError)
    assert isinstance(error, UnicodeDecodeError)
    assert isinstance(error, MonitoredRedisError)
    assert ("utf-8", SECRET, "invalid start byte") == (error.encoding, error.object, error.reason)
    assert "secret" not in repr(error) + str(error)
    # Only that call fails.
    assert "OK" == await client.echo("OK")


class _TrackingClient:
    """A client whose ``client()`` handles are kept, so that they can be closed."""

    def __init__(self, client, handles):
        self._client, self._handles = client, handles

    def client(self):
        self._handles.append(self._client.client())
        return self._handles[-1]

    def __getattr__(self, name):
        return getattr(self._client, name)


@pytest.mark.parametrize("kept", [True, False])
async def test_undecodable_handshake_raises_reply_decoding_error(make_client, server, kept):
    client = make_client(server.url, decode_responses=True, encoding="utf-16")
    with pytest.raises(ReplyDecodingError, match="truncated data"):
        await (client.client() if kept else client).get("key")


def test_reply_decoding_error_survives_pickling():
    error = ReplyDecodingError("utf-8", SECRET, 7, 8, "invalid start byte")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert (str(error), repr(error), error.object) == (str(copy), repr(copy), copy.object)
    assert "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte" == str(copy)


async def test_undecodable_message_does_not_end_the_subscription(text_client, inspector, until):
    await _check_undecodable_message(text_client, inspector, until)


# redis-py's Python parser reads such a message again and again.
@pytest.mark.parametrize("foreign_client", OTHER_POOLS[:-1], indirect=True)
async def test_undecodable_message_does_not_end_the_subscription_on_any_pool(foreign_client, inspector, until):
    await _check_undecodable_message(foreign_client, inspector, until)


@pytest.mark.parametrize("kept", [True, False])
async def test_response_callback_decoding_error_becomes_reply_decoding_error(text_client, kept):
    client = text_client.client() if kept else text_client
    client.set_response_callback("ECHO", lambda _: SECRET.decode())
    with pytest.raises(ReplyDecodingError) as caught:
        await client.echo("x")
    await client.aclose()

    assert "<lambda>" == caught.traceback[-1].name


async def _check_undecodable_message(client, inspector, until):
    async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe("news")
        await until(lambda: inspector.pubsub_numsub("news") == [(b"news", 1)])
        inspector.publish("news", SECRET)
        inspector.publish("news", "text")
        messages = []
        while not messages or messages[-1] is None or messages[-1]["data"] != "text":
            try:
                messages.append(await pubsub.get_message(timeout=1))
            except ReplyDecodingError:
                messages.append({"data": "undecodable"})

    assert ["undecodable", "text"] == [message["data"] for message in messages if message]
