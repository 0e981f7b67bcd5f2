"""``MessageQueue.health``: whether a queue can be used, and this process consumes it."""

import asyncio
import math

import pytest
import redis.asyncio
from support.internals import move_clock_of_queue_health
from support.sharing import UNRECORDED

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, TimedOutError
from aioredis_monitored.testing import ClusterServers


@pytest.fixture(params=[True, False], ids=["multiplexed", "pooled"])
def queue(request, make_pool, server):
    return MessageQueue("mail", make_pool(server.url, multiplex=request.param, **UNRECORDED))


async def test_health_of_a_producer_need_not_consume(queue):
    await queue.put(b"message")

    health = await queue.health()

    assert (health.ok, health.idle, health.problem) == (True, None, "")


async def test_process_that_never_consumed_is_not_ok_if_it_must(queue):
    health = await queue.health(within=20)

    assert (health.ok, health.problem) == (False, "this process has never consumed")


async def nothing(_message):
    pass


async def get(queue):
    await queue.get()


async def get_of_an_empty_queue(queue):
    await queue.unlink()
    with pytest.raises(TimedOutError):
        await queue.get(timeout=0)


async def wait_in_vain(queue):
    await queue.unlink()
    with pytest.raises(TimedOutError):
        await queue.get(timeout=1)


async def take(queue):
    async with queue.take():
        pass


async def take_many_from_an_empty_queue(queue):
    await queue.unlink()
    with pytest.raises(TimedOutError):
        async with queue.take_many(2, timeout=0):
            pass


async def consume(queue):
    async def stop(_message):
        queue.stop()

    await queue.consume(stop)


async def consume_through_another_object(queue):
    await consume(MessageQueue(queue.name, queue.client.connection_pool))


@pytest.mark.parametrize(
    "fetch",
    [
        get,
        get_of_an_empty_queue,
        wait_in_vain,
        take,
        take_many_from_an_empty_queue,
        consume,
        consume_through_another_object,
    ],
)
async def test_whatever_the_server_has_answered_counts_for_as_long_as_it_may(queue, fetch, monkeypatch):
    await queue.put(b"message")
    await fetch(queue)

    assert (await queue.health(within=60)).ok
    assert (await queue.health(within=60)).idle < 60

    move_clock_of_queue_health(monkeypatch, 1000)
    late = await queue.health(within=60)

    assert not late.ok
    assert late.problem.startswith("nothing was taken for 10")
    assert (await queue.health(within=2000)).ok
    assert (await queue.health()).ok


async def test_consumer_that_waits_is_alive(queue):
    worker = asyncio.create_task(queue.consume(nothing))
    async with asyncio.timeout(30):
        while not (await queue.health(within=20)).ok:
            await asyncio.sleep(0.01)
    queue.stop()
    await worker


@pytest.mark.parametrize("multiplex", [True, False])
async def test_health_of_a_queue_out_of_reach_says_so(multiplex):
    async with MonitoredConnectionPool.from_url("redis://127.0.0.1:1", retries=0, multiplex=multiplex) as pool:
        health = await MessageQueue("mail", pool).health(within=20)

    assert (health.ok, health.idle) == (False, None)
    assert health.problem.startswith("Error 111 ")


@pytest.mark.parametrize("within", [19, 0, -1, math.nan, math.inf, "60", True])
async def test_health_refuses_what_is_no_time(queue, within):
    with pytest.raises(ValueError, match=r"^within must be a number of seconds from 20 to "):
        await queue.health(within)


async def test_queue_on_a_replica_is_not_ok(make_pool, own_server):
    own_server.call("REPLICAOF", "127.0.0.1", "1")

    health = await MessageQueue("mail", make_pool(own_server.url)).health()

    assert health.problem.startswith("writes are refused: READONLY")


async def test_queue_on_a_cluster_depends_on_its_own_node_alone():
    with ClusterServers(primaries=2, replicas=0) as servers:
        for node in servers.nodes:
            node.call("CONFIG", "SET", "cluster-require-full-coverage", "no")
        async with MonitoredConnectionPool.from_url(servers.url, socket_timeout=2.0) as pool:
            queue = MessageQueue("mail", pool)
            assert (await queue.health()).ok
            owner = servers.owner("mail")
            next(node for node in servers.nodes if node is not owner).kill()
            assert (await queue.health()).ok
            owner.kill()
            assert not (await queue.health()).ok


async def test_queue_on_a_plain_pool_has_health_too(server):
    async with redis.asyncio.Redis.from_url(server.url) as client:
        assert (await MessageQueue("mail", client.connection_pool).health()).ok
    async with redis.asyncio.Redis.from_url("redis://127.0.0.1:1") as client:
        assert not (await MessageQueue("mail", client.connection_pool).health()).ok
