"""Configuration is checked at the edge: valid values become typed, errors are explained, and neither shows secrets."""

import pytest
import redis

from aioredis_monitored import MonitoredRedisConnection, pool_from_config
from aioredis_monitored._commands.traits import traits_of


async def test_config_defaults_are_the_documented_ones(server, inspector):
    async with pool_from_config({"redis.url": server.url, "redis.client_name": "tested"}) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.zadd("scores", {"member": 1.5})
        connection = pool._template
        (info,) = (each for each in inspector.client_list() if each["name"] == "tested")

        assert (50, 20, True) == (pool.max_connections, pool.timeout, pool.multiplexer is not None)
        first, last, none = (
            pool.retry_policy.next_delay(
                redis.ConnectionError(), may_have_run=False, traits=traits_of(["GET"]), failures=n, elapsed=0
            )
            for n in (1, 20, 21)
        )
        assert 0.01 <= first <= 0.02 < last <= 0.5
        assert none is None
        assert (5, 5) == (connection.socket_timeout, connection.socket_connect_timeout)
        assert (0, True) == (connection.health_check_interval, connection.socket_keepalive)
        # Redis 7.0 does not show the client's library.
        assert ("3", True) == (info["resp"], "aioredis_monitored" in info.get("lib-name", "aioredis_monitored"))
        assert [(b"member", 1.5)] == await client.zrange("scores", 0, -1, withscores=True)
        assert await client.get("missing") is None


@pytest.mark.parametrize(
    ("protocol", "wire", "scores"), [("2", "2", [(b"member", 1.5)]), ("3", "3", [[b"member", 1.5]])]
)
async def test_protocol_selects_its_own_reply_shapes(server, inspector, protocol, wire, scores):
    config = {"redis.url": server.url, "redis.client_name": "tested", "redis.protocol": protocol}
    async with pool_from_config(config) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.zadd("scores", {"member": 1.5})
        (info,) = (each for each in inspector.client_list() if each["name"] == "tested")

        assert (protocol, scores) == (info["resp"], await client.zrange("scores", 0, -1, withscores=True))
