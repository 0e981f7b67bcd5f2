"""A reply that is not in the client's encoding is an error of both kinds, wherever it is read."""

import pickle

import pytest
import redis.exceptions

from aioredis_monitored import MonitoredRedisError, ReplyDecodingError

SECRET = b"secret \xff"


@pytest.fixture
def text_client(make_client, server, inspector):
    inspector.set("binary", SECRET)
    inspector.hset("hash", "field", SECRET)
    inspector.rpush("list", *[SECRET] * 9)
    return make_client(server.url, decode_responses=True)


@pytest.mark.parametrize(
    "call",
    [
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
    ],
    ids=range(10),
)
async def test_a_reply_that_cannot_be_decoded_is_an_error_of_both_kinds(text_client, call):
    handles = []
    with pytest.raises(ReplyDecodingError) as caught:
        await call(_Kept(text_client, handles))
    for handle in handles:
        await handle.aclose()

    error = caught.value
    assert isinstance(error, redis.exceptions.RedisError)
    assert isinstance(error, UnicodeDecodeError)
    assert isinstance(error, MonitoredRedisError)
    assert ("utf-8", SECRET, "invalid start byte") == (error.encoding, error.object, error.reason)
    assert "secret" not in repr(error) + str(error)
    # Only that call has failed.
    assert "OK" == await text_client.echo("OK")


class _Kept:
    """A client whose ``client()`` handles are kept to be closed."""

    def __init__(self, client, handles):
        self._client, self._handles = client, handles

    def client(self):
        self._handles.append(self._client.client())
        return self._handles[-1]

    def __getattr__(self, name):
        return getattr(self._client, name)


def test_it_survives_pickling():
    error = ReplyDecodingError("utf-8", SECRET, 7, 8, "invalid start byte")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert (str(error), repr(error), error.object) == (str(copy), repr(copy), copy.object)
    assert "'utf-8' codec can't decode byte 0xff in position 7: invalid start byte" == str(copy)


async def test_a_message_that_cannot_be_decoded_ends_no_subscription(text_client, inspector, until):
    async with text_client.pubsub(ignore_subscribe_messages=True) as pubsub:
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
