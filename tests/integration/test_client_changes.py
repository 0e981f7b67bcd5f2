"""What applications change on a client after it was made: its pool, its span, its class, and copies of it."""

import copy
from unittest import mock

import pytest
import redis.asyncio
from redis.exceptions import RedisError
from support.internals import acquired_connections_of

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, RedisContextFactory


def pool_of(kind, server, db, **options):
    if kind == "plain":
        return redis.asyncio.ConnectionPool(host=server.host, port=server.port, db=db, max_connections=2, **options)
    return MonitoredConnectionPool(
        host=server.host, port=server.port, db=db, max_connections=2, timeout=5, multiplex=kind == "shared", **options
    )


@pytest.mark.parametrize("new", ["shared", "unshared", "plain"])
@pytest.mark.parametrize("old", ["shared", "unshared", "plain"])
async def test_client_sends_everything_to_pool_assigned_later(server, old, new):
    async with pool_of(old, server, 1) as before, pool_of(new, server, 2) as pool:
        client = MonitoredRedisConnection(connection_pool=before)
        client.connection_pool = pool

        async with redis.asyncio.Redis(host=server.host, port=server.port, db=2) as plain:
            for number in range(5):
                await client.set("command", number)
                await client.pipeline().set("pipeline", number).execute()
                await client.transaction(lambda pipe: pipe.set("transaction", 1), "watched")
                assert await client.blpop("empty", timeout=0.01) is None
            assert await client.lock("lock", timeout=60).acquire()

            assert {b"command", b"pipeline", b"transaction", b"lock"} == set(await plain.keys())
        assert not acquired_connections_of(before)
        assert client.connection_pool is pool


async def test_copied_clients_and_pipelines_keep_their_own_parent(server, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    first, second = tracer.start_span("first"), tracer.start_span("second")
    async with pool_of("shared", server, 0, **telemetry.providers) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        one, two = copy.copy(client), copy.copy(client)
        one.server_span, two.server_span = first, second
        pipe, moved = one.pipeline("pipe").get("key"), one.pipeline("moved").get("key")
        one.server_span, moved.server_span = second, None
        assert (first, None, second) == (pipe.server_span, moved.server_span, one.server_span)
        for call in (pipe.execute, moved.execute, one.ping, two.ping, client.ping):
            await call()
        first.end()
        second.end()

    parents = [(span.name.split()[0], span.parent and span.parent.span_id) for span in telemetry.spans]
    expected = [("pipe", first), ("moved", None), ("PING", second), ("PING", second), ("PING", None)]
    assert [(name, span and span.context.span_id) for name, span in expected] == parents[:5]


async def test_copied_pinned_client_does_not_end_calls_of_the_original(server, until):
    async with (
        pool_of("unshared", server, 0) as pool,
        MonitoredRedisConnection(connection_pool=pool).client() as pinned,
    ):
        other = copy.copy(pinned)
        other.connection = None
        await other.get("key")
        await other.aclose()

        assert await pinned.get("key") is None
        assert 1 == len(acquired_connections_of(pool))


async def test_execute_command_replaced_on_the_class_sees_every_command(server):
    ours, seen = MonitoredRedisConnection.execute_command, []

    async def execute_command(self, *args, **options):
        seen.append(args[0])
        return await ours(self, *args, **options)

    async with pool_of("shared", server, 0) as pool:
        before = MonitoredRedisConnection(connection_pool=pool)
        with mock.patch.object(MonitoredRedisConnection, "execute_command", execute_command):
            for client in (before, MonitoredRedisConnection(connection_pool=pool)):
                seen.clear()
                assert await client.lock("lock", timeout=60).acquire()
                await client.publish("channel", "message", propagate=True)
                await client.register_script("return 1")()
                await client.delete("lock")
                assert {"SET", "PUBLISH", "EVALSHA", "DEL"} <= set(seen)
                with pytest.raises(TypeError, match="overrides execute_command"):
                    MessageQueue("mail", client)
        MessageQueue("mail", before)


async def test_parse_response_replaced_on_the_class_sees_every_reply(server):
    ours, seen = MonitoredRedisConnection.parse_response, []

    async def parse_response(self, connection, command_name, **options):
        seen.append(command_name)
        return await ours(self, connection, command_name, **options)

    async with pool_of("shared", server, 0) as pool:
        with mock.patch.object(MonitoredRedisConnection, "parse_response", parse_response):
            await MonitoredRedisConnection(connection_pool=pool).get("key")
    assert ["GET"] == seen


@pytest.mark.parametrize("kind", ["shared", "unshared"])
async def test_redis_py_execute_command_on_our_client_leaves_no_altered_connection(server, kind):
    async with pool_of(kind, server, 0) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await redis.asyncio.Redis.execute_command(client, "SELECT", 7)
        await client.rpush("list", "value")

        assert (b"list", b"value") == await client.blpop("list", timeout=1)


async def test_redis_py_execute_command_on_our_client_may_block_longer_than_socket_timeout(server):
    async with pool_of("shared", server, 0, socket_timeout=1) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)

        try:
            assert await redis.asyncio.Redis.execute_command(client, "BLPOP", "empty", 3) is None
        except RedisError as error:
            pytest.fail(f"it was cut off: {error!r}")


async def test_context_factory_lifespan_takes_the_application_by_name(server):
    factory = RedisContextFactory(pool_of("shared", server, 0))
    async with factory.lifespan(app=None) as state:
        assert await state["redis"].ping() is True
