"""Names of sentinels and of a cluster's start nodes that are resolved slowly, or never, or to other addresses."""

import asyncio
import secrets
import threading
from contextlib import suppress

import pytest
from redis.exceptions import RedisError
from support.names import replace_name_servers
from support.sentinels import FakeSentinel
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, MonitoredSentinelPool
from aioredis_monitored.pool.names import addresses_of

# What is expected takes three seconds.
DEADLINE = 60.0
# Longer than a refresh of a cluster's topology waits for a start node, and than sentinels get for an answer.
SLOW_SECONDS = 2.5
# More than an event loop has threads.
MANY = 40


@pytest.fixture(params=["sentinel", "cluster"])
async def url_of(request, server):
    """Return the URL for names of which the last one is that of a server that answers."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster")
        yield lambda *names: f"redis+cluster://{','.join(names)}:{cluster.nodes[0].port}"
    else:
        async with FakeSentinel("a" * 40, (server.host, server.port)) as sentinel:
            yield lambda *names: f"redis+sentinel://{','.join(names)}:{sentinel.port}/mymaster"


@pytest.fixture
def hanging(monkeypatch):
    """Let names that begin with ``hangs`` not be resolved until the end of the test; return how often each was."""
    ended = threading.Event()

    def answer(host):
        if host.startswith("hangs"):
            ended.wait(DEADLINE)
        return ["127.0.0.1"]

    yield replace_name_servers(monkeypatch, answer)
    ended.set()


def names(kind, count=1):
    """Return names that no other test has."""
    return [f"{kind}-{secrets.token_hex(4)}.example" for _ in range(count)]


async def test_name_that_is_resolved_slowly_is_used_at_the_first_attempt(url_of, make_pool, monkeypatch):
    is_over = threading.Event()

    def answer(_):
        is_over.wait(SLOW_SECONDS)
        return ["127.0.0.1"]

    asked = replace_name_servers(monkeypatch, answer)
    pool = make_pool(url_of(*names("slow")), socket_timeout=DEADLINE, retries=0)

    assert await MonitoredRedisConnection(connection_pool=pool).set("key", "value")
    assert [1] == list(asked.values())


async def test_name_that_is_resolved_more_slowly_than_calls_wait_serves_later_ones(url_of, make_pool, monkeypatch):
    may_answer = threading.Event()

    def answer(_):
        may_answer.wait(DEADLINE)
        return ["127.0.0.1"]

    asked = replace_name_servers(monkeypatch, answer)
    client = MonitoredRedisConnection(connection_pool=make_pool(url_of(*names("slow")), socket_timeout=0.2))
    for _ in range(3):
        with pytest.raises(RedisError, match="its name is being resolved"):
            await client.set("key", "value")
    # No call waits for it now.
    may_answer.set()

    async with asyncio.timeout(DEADLINE):
        while not await is_written(client):
            pass
    assert [1] == list(asked.values())


async def is_written(client):
    """Return whether a call succeeds."""
    with suppress(RedisError):
        return await client.set("key", "value")


async def test_names_that_are_never_resolved_have_one_thread_each_and_delay_no_other(url_of, make_pool, hanging):
    hang = names("hangs", MANY)
    pool = make_pool(url_of(*hang, *names("works")), socket_timeout=DEADLINE)
    client = MonitoredRedisConnection(connection_pool=pool)
    for _ in range(5):
        assert await client.set("key", "value")
        await pool.disconnect()

    lost = make_pool(url_of(*hang), socket_timeout=0.2)
    for _ in range(5):
        with pytest.raises(RedisError):
            await MonitoredRedisConnection(connection_pool=lost).set("key", "value")
    # The event loop has threads left.
    async with asyncio.timeout(DEADLINE):
        assert await asyncio.get_running_loop().getaddrinfo("localhost", 1)
        assert "done" == await asyncio.to_thread(lambda: "done")
    assert [1] * MANY == [hanging[name] for name in hang]


def test_event_loop_ends_while_a_name_is_not_resolved(hanging):
    async def fail():
        url = f"redis+sentinel://{','.join(names('hangs', 3))}/mymaster"
        async with MonitoredConnectionPool.from_url(url, socket_timeout=0.2, **UNRECORDED) as pool:
            with pytest.raises(RedisError, match="its name is being resolved"):
                await MonitoredRedisConnection(connection_pool=pool).get("key")

    threads = threading.active_count()
    asyncio.run(fail())
    # They still wait.
    assert threads + 3 == threading.active_count()
    assert 3 == len(hanging)


async def test_name_whose_address_does_not_answer_is_resolved_again_although_other_sentinels_answer(
    server, monkeypatch
):
    first_name, second_name = names("first") + names("second")
    addresses = {first_name: ["127.0.0.1"], second_name: ["127.0.0.1"]}
    replace_name_servers(monkeypatch, lambda host: addresses[host])
    primary = (server.host, server.port)
    moved = FakeSentinel("b" * 40, primary)
    moved.host = "127.0.0.2"
    async with FakeSentinel("a" * 40, primary) as first, moved:
        given = [(first_name, first.port), (second_name, moved.port)]
        async with MonitoredSentinelPool(given, "mymaster", **UNRECORDED) as pool:
            await pool.ping()
            addresses[second_name] = ["127.0.0.2"]

            async def is_followed():
                await pool.disconnect()
                await pool.ping()
                return moved.subscriptions()

            async with asyncio.timeout(DEADLINE):
                while not await is_followed():
                    pass


async def test_sentinel_that_is_announced_by_its_name_is_followed_at_all_addresses(server, monkeypatch, until):
    [name] = names("announced")
    # Nothing listens at the first one.
    replace_name_servers(monkeypatch, lambda _: ["127.0.0.3", "127.0.0.1"])
    primary = (server.host, server.port)
    async with FakeSentinel("a" * 40, primary) as first, FakeSentinel("b" * 40, primary) as second:
        first.others = {second.identity: (name, second.port)}
        async with MonitoredSentinelPool([first.address], "mymaster", **UNRECORDED) as pool:
            await pool.ping()
            await until(second.subscriptions)


@pytest.mark.parametrize("host", ["does-not-exist.invalid", "a" * 64, "."])
async def test_name_without_an_address_is_an_os_error(host):
    with pytest.raises(OSError, match=r"\w"):
        await addresses_of(host, 1)
