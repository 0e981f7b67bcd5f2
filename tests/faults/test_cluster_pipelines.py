"""Pipelines on a cluster that loses a node."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers

LOST, KEPT = "a", "b"  # at different nodes


@pytest.fixture
def lonely_primaries():
    """Yield a cluster of primaries without replicas, of which a test may kill some."""
    with ClusterServers(replicas=0) as running:
        yield running


@pytest.mark.parametrize("raise_on_error", [True, False])
async def test_pipeline_shows_the_error_of_a_node_that_was_lost_in_flight(lonely_primaries, until, raise_on_error):
    async with MonitoredConnectionPool.from_url(lonely_primaries.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [0, 0] == [await client.exists(LOST), await client.exists(KEPT)]
        node = lonely_primaries.owner(LOST)
        assert node is not lonely_primaries.owner(KEPT)
        node.freeze()

        executing = asyncio.ensure_future(
            client.pipeline(transaction=False).incr(LOST).incr(KEPT).execute(raise_on_error=raise_on_error)
        )
        await until(lambda: pool.stats().in_flight == 1)
        node.kill()

        if raise_on_error:
            with pytest.raises(RedisConnectionError, match=r"Command # 1 \(INCRBY a \?\) of pipeline"):
                await executing
        else:
            assert [RedisConnectionError, int] == [type(result) for result in await executing]
        assert await client.get(KEPT) == b"1"


async def test_pipeline_with_an_argument_that_cannot_be_sent_sends_nothing(cluster):
    async with MonitoredConnectionPool.from_url(cluster.url) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        with pytest.raises(DataError):
            await client.pipeline(transaction=False).set(KEPT, 1).set(LOST, None).execute()

        assert await client.exists(KEPT, LOST) == 0
