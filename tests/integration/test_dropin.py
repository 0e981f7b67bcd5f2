"""Drop-in compatibility: redis-py's constructor arguments and URLs have the same meaning here."""

import asyncio
import logging
from functools import partial
from math import inf
from types import SimpleNamespace
from unittest import mock

import pytest
import redis.asyncio
import redis.retry
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from support.arguments import GIVEN, NOT_RETRIED
from support.internals import recorder_of
from support.listening import listening

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, TimedOutError


@pytest.fixture
def logged(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_client_accepts_the_arguments_of_arq(server, logged):
    # arq 0.28, connections.create_pool with its defaults.
    async with MonitoredRedisConnection(
        host=server.host,
        port=server.port,
        db=0,
        username=None,
        password=None,
        unix_socket_path=None,
        socket_connect_timeout=1,
        ssl=False,
        ssl_keyfile=None,
        ssl_certfile=None,
        ssl_cert_reqs="required",
        ssl_ca_certs=None,
        ssl_ca_data=None,
        ssl_check_hostname=False,
        retry=None,
        retry_on_timeout=False,
        retry_on_error=None,
        max_connections=None,
        encoding="utf8",
    ) as client:
        assert await client.ping() is True
    assert [] == logged()


async def test_tls_arguments_are_ignored_without_tls_as_in_redis_py(server):
    tls = {name: value for name, value in GIVEN.items() if name.startswith("ssl_")}
    async with MonitoredRedisConnection(host=server.host, port=server.port, ssl=False, **tls) as client:
        assert await client.ping() is True
    path = server.unix_socket_path
    async with MonitoredRedisConnection(host="h", port=1, unix_socket_path=path, ssl=True, **tls) as client:
        assert await client.ping() is True


async def test_auto_close_connection_pool_behaves_as_in_redis_py(server):
    kept = MonitoredRedisConnection(host=server.host, port=server.port, auto_close_connection_pool=False)
    async with kept:
        await kept.ping()
    assert await kept.ping() is True
    borrowing = MonitoredRedisConnection(connection_pool=kept.connection_pool, auto_close_connection_pool=True)
    async with borrowing:
        await borrowing.ping()
    assert await kept.ping() is True
    await kept.connection_pool.aclose()


# --- Retries ---


@pytest.fixture
async def closing_port():
    """Yield a port that closes every connection at once, and the number of connections."""
    accepted = []

    def hang_up(_, writer):
        accepted.append(writer)
        writer.close()

    async with listening(hang_up) as (_, port):
        yield port, accepted


@pytest.mark.parametrize("multiplex", [True, False])
@pytest.mark.parametrize(
    ("arguments", "attempts"),
    [
        ({"retry": NOT_RETRIED}, 1),
        ({"retry": None}, 1),
        ({"retry": None, "retries": 1}, 2),
        ({"retry": Retry(ExponentialBackoff(), 2)}, 3),
        ({"retry": redis.retry.Retry(NoBackoff(), 1)}, 2),
        ({"retry": Retry(NoBackoff(), 5), "retries": 3}, 4),
        ({"retry": Retry(NoBackoff(), 3), "retry_on_timeout": True, "retry_on_error": [redis.ConnectionError]}, 4),
    ],
)
async def test_retry_argument_sets_the_number_of_retries(closing_port, arguments, attempts, multiplex):
    port, accepted = closing_port
    given = {"host": "127.0.0.1", "port": port, "retry_backoff": 0.001, "multiplex": multiplex, "socket_timeout": 60}
    async with MonitoredRedisConnection(**given, **arguments) as client:
        with pytest.raises(redis.ConnectionError):
            await client.get("key")

    assert attempts == len(accepted)


@pytest.mark.parametrize("owner", ["client", "pool"])
async def test_set_retry_sets_the_number_of_retries(closing_port, owner, logged):
    port, accepted = closing_port
    async with MonitoredRedisConnection(host="127.0.0.1", port=port, retry_backoff=0.001, socket_timeout=60) as client:
        subject = client if owner == "client" else client.connection_pool
        subject.set_retry(Retry(NoBackoff(), 2))
        with pytest.raises(redis.ConnectionError):
            await client.get("key")
        assert (2, 3) == (subject.get_retry().get_retries(), len(accepted))
        assert 1 == len(logged())
        subject.set_retry(NOT_RETRIED)
        assert (0, 1) == (subject.get_retry().get_retries(), len(logged()))

        connection = client.connection_pool.make_connection()
        assert 0 == connection.retry.get_retries()


async def test_plain_pool_keeps_its_redis_py_retries(server):
    async with ConnectionPool.from_url(server.url) as plain:
        client = MonitoredRedisConnection(connection_pool=plain)
        assert client.get_retry() is None
        client.set_retry(policy := Retry(NoBackoff(), 3))

        assert policy is client.get_retry()


async def test_backoff_does_not_use_asyncio_sleep(closing_port, server, make_pool, until):
    port, accepted = closing_port
    sleep = mock.Mock(side_effect=AssertionError)
    client = MonitoredRedisConnection(host="127.0.0.1", port=port, retry_backoff=0.001, retries=3, socket_timeout=60)
    queue = MessageQueue("orders", make_pool(server.url), max_length=1)
    await queue.put(b"first")
    with mock.patch.object(asyncio, "sleep", sleep):
        async with client:
            with pytest.raises(redis.ConnectionError):
                await client.get("key")
        with pytest.raises(TimedOutError):
            await queue.put(b"second", timeout=0.05)

    assert (4, 0) == (len(accepted), sleep.call_count)


def _connection_factory(**arguments):
    return Connection(**arguments)


async def test_connection_class_may_be_a_factory_function(server):
    for connection_class in (partial(Connection, host=server.host, port=server.port), _connection_factory):
        pools = [
            each(connection_class=connection_class, host=server.host, port=server.port)
            for each in (MonitoredConnectionPool, ConnectionPool)
        ]
        for pool in pools:
            client = MonitoredRedisConnection(connection_pool=pool)
            assert await client.ping() is True
            assert server.host in repr(recorder_of(client).server)
            await pool.aclose()


async def test_connection_works_with_a_stand_in_for_its_socket(server, until):
    """Such as fakeredis's sockets, which have only what redis-py uses."""

    class Writer:
        def __init__(self, writer):
            self.writelines, self.drain = writer.writelines, writer.drain
            self.close, self.wait_closed = writer.close, writer.wait_closed
            self.transport = SimpleNamespace(get_extra_info=lambda _: None)

    class StandIn(Connection):
        async def _connect(self):
            await super()._connect()
            self._writer = Writer(self._writer)

        async def read_response(self, *args, **kwargs):
            return await super().read_response(*args, **kwargs)

    pool = MonitoredConnectionPool(connection_class=StandIn, host=server.host, port=server.port)
    client = MonitoredRedisConnection(connection_pool=pool)

    assert [True, True] == [await client.ping(), await client.ping()]
    assert 1 == pool.stats().idle
    await pool.aclose()


@pytest.mark.parametrize("peer", [(), ("h",), ("h", None), ("h", "7"), b"/s", 5, mock.Mock()])
@pytest.mark.parametrize("pool_class", [MonitoredConnectionPool, ConnectionPool])
async def test_connection_accepts_any_peer_name_from_its_socket(server, pool_class, peer):
    class Writer:
        def __init__(self, writer):
            self._writer = writer

        def __getattr__(self, name):
            return getattr(self._writer, name)

        def get_extra_info(self, name, default=None):
            return peer if name == "peername" else default

    class StandIn(Connection):
        async def _connect(self):
            await super()._connect()
            self._writer = Writer(self._writer)

    async with pool_class(connection_class=StandIn, host=server.host, port=server.port) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [True, [True]] == [await client.ping(), await client.pipeline().ping().execute()]


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("db.example", 7, ("GET db.example:7", "db.example", 7)),
        ("db.example", None, ("GET db.example:6379", "db.example", None)),
        ("db.example", "7", ("GET db.example:7", "db.example", 7)),
        ("db.example", inf, ("GET db.example:6379", "db.example", None)),
        (None, 7, ("GET", None, None)),
        (mock.Mock(), 7, ("GET", None, None)),
    ],
    ids=range(6),
)
async def test_server_attributes_fall_back_to_those_of_the_connection(server, telemetry, host, port, expected):
    class Knowing(Connection):
        async def _connect(self):
            self.host, self.port = server.host, server.port
            await super()._connect()
            self.host, self.port = host, port

        @classmethod
        def made(cls, **arguments):
            return cls(**arguments)

    # A factory function instead of a class.
    pool = MonitoredConnectionPool(connection_class=Knowing.made, multiplex=False, **telemetry.providers)
    async with pool:
        assert await MonitoredRedisConnection(connection_pool=pool).get("key") is None

    (span,) = telemetry.spans
    attributes = span.attributes
    assert expected == (span.name, attributes.get("server.address"), attributes.get("server.port"))
