"""What ``dir`` shows of a client and of a pool: redis-py's names, and those of this package that are public."""

import redis.asyncio

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection


def added_names(ours, theirs):
    return {name for name in set(dir(ours)) - set(dir(theirs)) if not name.startswith("__")}


async def test_client_adds_public_names_and_its_executor_alone(server):
    async with MonitoredRedisConnection.from_url(server.url) as client, redis.asyncio.Redis() as plain:
        assert {"context_name", "in_context", "server_span", "_executor"} == added_names(client, plain)


async def test_pinned_client_adds_no_other_name(client):
    async with client.client() as pinned:
        assert dir(pinned) == dir(client)
