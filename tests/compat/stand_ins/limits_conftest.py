"""Stand-in for limits' ``tests/conftest.py``, which starts servers by Docker."""

import os

import pytest
import redis


@pytest.fixture
def redis_basic():
    with redis.Redis.from_url(os.environ["COMPAT_URL"]) as client:
        client.flushall()
        yield client
