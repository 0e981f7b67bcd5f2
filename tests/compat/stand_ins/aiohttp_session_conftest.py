"""Stand-in for aiohttp-session's ``tests/conftest.py``, which starts servers by Docker."""

import os

import pytest
import redis.asyncio


@pytest.fixture
def redis_url():
    return os.environ["COMPAT_URL"]


@pytest.fixture(name="redis")
async def _redis(redis_url):
    client = redis.asyncio.Redis.from_url(redis_url)
    yield client
    await client.aclose()
