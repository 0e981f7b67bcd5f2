"""Stand-in for limits' ``tests/conftest.py``, which starts servers by Docker; for the storage on redis-py's client."""

import os

import pytest
import redis
from limits.aio.storage import RedisStorage

# Some of the tests do not name the client, and the default is another.
RedisStorage.__init__.__defaults__ = tuple(
    "redispy" if default == "coredis" else default for default in RedisStorage.__init__.__defaults__
)


@pytest.fixture
def redis_basic():
    with redis.Redis.from_url(os.environ["COMPAT_URL"]) as client:
        client.flushall()
        yield client


@pytest.fixture
def redis_uds(redis_basic):
    return redis_basic
