"""The calls that aiogram makes: of its own tests of finite state machines, few need Redis."""

import asyncio
import os
from datetime import timedelta

import pytest
import redis.asyncio
from aiogram.fsm.storage.base import DefaultKeyBuilder, StorageKey
from aiogram.fsm.storage.redis import RedisEventIsolation, RedisStorage

URL = os.environ["COMPAT_URL"]
KEY = StorageKey(bot_id=1, chat_id=2, user_id=3)


@pytest.fixture(params=["url", "client", "pool"])
async def storage(request):
    if request.param == "url":
        made = RedisStorage.from_url(URL)
    elif request.param == "client":
        made = RedisStorage(redis.asyncio.Redis.from_url(URL))
    else:
        pool = redis.asyncio.ConnectionPool.from_url(URL)
        made = RedisStorage(redis.asyncio.Redis.from_pool(pool))
    await made.redis.flushall()
    yield made
    await made.close()


async def test_states(storage):
    assert await storage.get_state(KEY) is None
    await storage.set_state(KEY, "asked")
    assert await storage.get_state(KEY) == "asked"
    await storage.set_state(KEY, None)
    assert await storage.get_state(KEY) is None


async def test_data(storage):
    assert await storage.get_data(KEY) == {}
    await storage.set_data(KEY, {"name": "Ann"})
    assert await storage.update_data(KEY, {"age": 7}) == {"name": "Ann", "age": 7}
    assert await storage.get_value(KEY, "age") == 7
    await storage.set_data(KEY, {})
    assert await storage.get_data(KEY) == {}


async def test_users_at_once(storage):
    keys = [StorageKey(bot_id=1, chat_id=number, user_id=number) for number in range(50)]
    await asyncio.gather(*(storage.set_data(key, {"user": key.user_id}) for key in keys))
    found = await asyncio.gather(*(storage.get_data(key) for key in keys))
    assert found == [{"user": key.user_id} for key in keys]


@pytest.mark.parametrize("ttl", [60, timedelta(seconds=60)])
async def test_lifetimes(ttl):
    async with redis.asyncio.Redis.from_url(URL) as client:
        storage = RedisStorage(client, DefaultKeyBuilder(prefix="lifetimes"), state_ttl=ttl, data_ttl=ttl)
        await storage.set_state(KEY, "asked")
        await storage.set_data(KEY, {"name": "Ann"})
        keys = await client.keys("lifetimes:*")
        assert len(keys) == 2
        assert all([59 <= await client.ttl(key) <= 60 for key in keys])


@pytest.fixture(params=["own", "of the storage"])
async def isolation(request, storage):
    made = RedisEventIsolation.from_url(URL) if request.param == "own" else storage.create_isolation()
    yield made
    await made.close()


async def test_updates_of_a_user_wait_for_each_other(isolation):
    handling, most = 0, 0

    async def handle():
        nonlocal handling, most
        async with isolation.lock(KEY):
            handling += 1
            most = max(most, handling)
            await asyncio.sleep(0.01)
            handling -= 1

    async with asyncio.timeout(30):
        await asyncio.gather(*(handle() for _ in range(10)))
    assert most == 1


async def test_an_update_that_waits_can_be_cancelled(isolation):
    async with isolation.lock(KEY):

        async def wait():
            async with isolation.lock(KEY):
                raise AssertionError("the lock was held")

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(30), isolation.lock(KEY):
        pass
