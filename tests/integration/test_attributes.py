"""RESP3 attributes are removed from any stream, in chunks of any size, and nothing else is."""

from aioredis_monitored import MonitoredRedisConnection


async def test_connection_is_reused_after_a_reply_that_contains_line_feeds(make_pool, proxy):
    pools = [make_pool(proxy.url, multiplex=False, protocol=protocol) for protocol in (2, 3)]
    clients = [MonitoredRedisConnection(connection_pool=pool) for pool in pools]
    for client in clients:
        await client.ping()
    proxy.reply_pause = 0.001
    for client in clients:
        for _ in range(3):
            assert b"a\r\n|" == await client.echo(b"a\r\n|")

    assert 2 == proxy.accepted
