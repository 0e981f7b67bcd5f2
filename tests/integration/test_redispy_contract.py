"""What ``_redispy/`` relies on in redis-py and in asyncio's transports beyond their documentation.

Each test runs redis-py's classes. A test that fails with a new redis-py names a part that has changed: adapt
``_redispy/`` and the code that uses the part, then the test. ``nox -s redispy_next`` runs this file with redis-py's
newest pre-release.
"""

import asyncio
import gc
import inspect
import ssl
import warnings
import weakref
from contextlib import suppress
from types import SimpleNamespace

import hiredis
import pytest
import redis.exceptions
import trustme
from redis._parsers import _AsyncHiredisParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.client import Monitor, Pipeline, PubSub
from redis.asyncio.connection import AbstractConnection, DefaultParser, RedisSSLContext
from redis.asyncio.keyspace_notifications import AsyncClusterKeyspaceNotifications
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.auth.token import SimpleToken
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.event import EventDispatcher
from support.listening import listening

from aioredis_monitored._multiplexer import PipelineAdapter
from aioredis_monitored._redispy import cluster, overrides
from aioredis_monitored._redispy.attributes import AttributeFreeParser
from aioredis_monitored._redispy.connections import (
    SafeConnection,
    handshake,
    has_standard_io,
    make_safe_connection,
    with_safe_send,
    with_shared_context,
)
from aioredis_monitored._redispy.located import (
    LocatedConnection,
    NamedSSLConnection,
    abort_transport,
    located_class,
    named_class,
)
from aioredis_monitored._redispy.sockets import (
    abort_sockets,
    address_of,
    close_all_now,
    close_now,
    closing_of,
    is_closed_by_peer,
    parser_of,
    peer_address,
    transport_of,
)

TOKEN = SimpleToken("secret", 1e15, 0, {"oid": "default"})


class Recorded(Connection):
    """redis-py's connection, which records what it sends."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.sent = []

    async def send_command(self, *args, **options):
        self.sent.append(args)
        await super().send_command(*args, **options)


@pytest.fixture
def address(server):
    return {"host": server.host, "port": server.port}


@pytest.fixture
async def connection(address):
    connection = Recorded(**address)
    await overrides.connect(connection)
    connection.sent.clear()
    yield connection
    await connection.disconnect()


@pytest.fixture
async def plain_pool(address):
    pool = ConnectionPool(Recorded, max_connections=2, **address)
    yield pool
    await pool.aclose()


@pytest.fixture
def plain_client(plain_pool):
    return Redis(connection_pool=plain_pool)


# Signatures of methods that are overridden, or called with positional arguments.

SIGNATURES = {
    AbstractConnection: {
        "disconnect": "nowait error failure_count health_check_failed",
        "connect_check_health": "check_health retry_socket_connect",
        "send_packed_command": "command check_health",
        "_send_packed_command": "command",
        "send_command": "*args **kwargs",
        "set_re_auth_token": "token",
    },
    BlockingConnectionPool: {
        "get_connection": "command_name *keys **options",
        "release": "connection",
    },
    ConnectionPool: {
        "make_connection": "",
        "get_available_connection": "",
        "ensure_connection": "connection",
        "re_auth_callback": "token",
        "set_retry": "retry",
    },
    Redis: {
        "execute_command": "*args **options",
        "_send_command_parse_response": "conn command_name *args **options",
        "_close_connection": "conn error failure_count start_time command_name",
        "parse_response": "connection command_name **options",
        "aclose": "close_connection_pool",
        "set_response_callback": "command callback",
        "transaction": "func *watches shard_hint value_from_callable watch_delay",
        "scan_iter": "match count _type **kwargs",
        "sscan_iter": "name match count",
        "hscan_iter": "name match count no_values",
        "zscan_iter": "name match count score_cast_func",
    },
    Pipeline: {
        "__init__": "connection_pool response_callbacks transaction shard_hint",
        "execute": "raise_on_error",
        "immediate_execute_command": "*args **options",
        "_execute_transaction": "connection commands raise_on_error",
        "_execute_pipeline": "connection commands raise_on_error",
        "parse_response": "connection command_name **options",
        "annotate_exception": "exception number command",
        "multi": "",
        "watch": "*names",
        "unwatch": "",
        "discard": "",
        "reset": "",
        "load_scripts": "",
        "_disconnect_raise_on_watching": "conn error failure_count start_time command_name",
        "_disconnect_reset_raise_on_watching": "conn error failure_count start_time command_name",
    },
    PubSub: {
        "connect": "",
        "on_connect": "connection",
        "execute_command": "*args",
        "_reconnect": "conn error failure_count start_time command_name",
        "_resubscribe_shard_channels": "",
        "parse_response": "block timeout",
        "handle_message": "response ignore_subscribe_messages",
        "check_health": "",
        "aclose": "",
        "listen": "",
        "get_message": "ignore_subscribe_messages timeout",
        "unsubscribe": "*args",
        "punsubscribe": "*args",
        "sunsubscribe": "*args target_node",
        "ping": "message",
        "run": "exception_handler poll_timeout pubsub",
    },
    Monitor: {
        "__aenter__": "",
    },
    AsyncClusterKeyspaceNotifications: {
        "__init__": "redis_cluster key_prefix ignore_subscribe_messages",
        "get_message": "ignore_subscribe_messages timeout",
        "_execute_subscribe": "patterns exact_channels",
        "_get_all_primary_nodes": "",
        "_ensure_node_pubsub": "node",
        "_refresh_subscriptions_on_error": "",
    },
    Lock: {
        "register_scripts": "",
        "acquire": "blocking blocking_timeout token",
        "do_acquire": "token",
        "do_release": "expected_token",
        "do_extend": "additional_time replace_ttl",
    },
    AsyncScript: {
        "__call__": "keys args client",
    },
    _AsyncHiredisParser: {
        "on_connect": "connection",
    },
}
COROUTINE_FUNCTIONS = [
    (AbstractConnection, "connect"),
    (AbstractConnection, "_connect"),
    (AbstractConnection, "check_health"),
    (AbstractConnection, "re_auth"),
    (ConnectionPool, "get_connection"),
    (Redis, "_send_command_parse_response"),
    (Pipeline, "_execute_transaction"),
    (Pipeline, "_execute_pipeline"),
    (Pipeline, "immediate_execute_command"),
    (Pipeline, "reset"),
    (Pipeline, "watch"),
    (Pipeline, "unwatch"),
    (Pipeline, "discard"),
    (PubSub, "connect"),
    (PubSub, "handle_message"),
    (PubSub, "get_message"),
    (PubSub, "run"),
    (AsyncClusterKeyspaceNotifications, "get_message"),
    (AsyncClusterKeyspaceNotifications, "_execute_subscribe"),
    (AsyncClusterKeyspaceNotifications, "_ensure_node_pubsub"),
    (AsyncClusterKeyspaceNotifications, "_refresh_subscriptions_on_error"),
    (Lock, "do_acquire"),
]
ASYNC_GENERATOR_FUNCTIONS = [
    (Redis, "scan_iter"),
    (Redis, "sscan_iter"),
    (Redis, "hscan_iter"),
    (Redis, "zscan_iter"),
    (PubSub, "listen"),
]


def shown(value):
    return value.__name__ if isinstance(value, type) else value


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, methods in SIGNATURES.items() for name in methods], ids=shown
)
def test_method_takes_the_parameters_that_overrides_and_callers_expect(kind, name):
    prefixes = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    _, *parameters = inspect.signature(getattr(kind, name)).parameters.values()
    names = " ".join(prefixes.get(parameter.kind, "") + parameter.name for parameter in parameters)
    assert SIGNATURES[kind][name] == names, f"redis-py has changed {name}: adapt what overrides or calls it"


@pytest.mark.parametrize(("kind", "name"), COROUTINE_FUNCTIONS, ids=shown)
def test_method_is_a_coroutine_function(kind, name):
    assert inspect.iscoroutinefunction(getattr(kind, name))


@pytest.mark.parametrize(("kind", "name"), ASYNC_GENERATOR_FUNCTIONS, ids=shown)
def test_method_is_an_async_generator_function(kind, name):
    assert inspect.isasyncgenfunction(getattr(kind, name))


# Connections and their sockets.


async def test_connection_keeps_its_stream_and_parser_while_connected(connection, address):
    assert isinstance(parser_of(connection), DefaultParser)
    assert peer_address(connection) == transport_of(connection).get_extra_info("peername")
    assert connection.is_connected
    await connection.disconnect()
    assert (connection._writer, connection._reader) == (None, None)
    assert address_of(connection) == "{host}:{port}".format(**address)


async def test_connection_counts_as_closed_without_reader_and_writer(connection):
    writer, connection._writer, connection._reader = connection._writer, None, None
    assert not connection.is_connected
    writer.close()


async def test_close_now_closes_the_transport_without_awaiting(connection):
    transport = transport_of(connection)
    close_now(connection)
    assert transport.is_closing()
    assert not connection.is_connected
    close_now(connection)


async def test_disconnect_nowait_closes_the_transport_before_its_first_await(connection):
    transport = transport_of(connection)
    disconnecting = connection.disconnect(nowait=True)
    with suppress(StopIteration):
        disconnecting.send(None)
    assert transport.is_closing()
    disconnecting.close()


@pytest.mark.parametrize("is_aborted", [True, False])
async def test_end_of_a_socket_is_known_from_its_writer(connection, is_aborted):
    closed, transport = closing_of(connection)
    assert transport is transport_of(connection)
    assert not closed.done()
    if is_aborted:
        transport.abort()
    else:
        close_now(connection)
    await asyncio.wait([closed], timeout=60)
    assert closed.done()
    assert transport.is_closing()


def test_socket_that_is_being_closed_when_its_event_loop_pauses_is_closed_without_errors(server):
    connection = with_safe_send(Connection(host=server.host, port=server.port))
    errors = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: errors.append(context))
            connecting = loop.create_task(connection.connect())
            # In the event loop's last turn before the pause: the transport's callback has not run then.
            connecting.add_done_callback(lambda _: close_now(connection))
            loop.run_until_complete(connecting)
            (transport,) = connection.closing_sockets.values()
            abort_sockets(connection, loop, forked=False)
            assert transport.get_extra_info("socket").fileno() == -1
        del transport
        gc.collect()

    assert [] == errors
    assert [] == [str(each.message) for each in caught]


async def test_asyncio_transport_exposes_its_socket(connection):
    transport = transport_of(connection)
    if type(transport).__module__.startswith("uvloop"):
        pytest.skip("uvloop's transports close their sockets themselves")
    assert transport._sock.fileno() == transport.get_extra_info("socket").fileno()
    abort_sockets(connection, asyncio.get_running_loop(), forked=False)
    assert transport.is_closing()
    assert not connection.is_connected


async def test_asyncio_tls_transport_exposes_its_socket():
    authority = trustme.CA()
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_context)
    async with listening(lambda _, writer: writer.close(), ssl=server_context) as address:
        _, writer = await asyncio.open_connection(*address, ssl=client_context)
        transport = writer.transport
        if type(transport).__module__.startswith("uvloop"):
            assert not hasattr(transport, "_sock")
        else:
            inner = transport._ssl_protocol._transport
            assert inner._sock.fileno() == transport.get_extra_info("socket").fileno()
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def test_connect_socket_neither_shakes_hands_nor_calls_back(address):
    called = []
    connection = Recorded(redis_connect_func=called.append, **address)
    await overrides.connect_socket(connection)
    assert connection.is_connected
    assert not called
    assert not connection.sent
    await connection.disconnect()


async def test_located_connection_looks_its_server_up_at_every_connect_and_can_be_shared(address):
    looked_up = []

    async def locate():
        looked_up.append(address)
        return SimpleNamespace(**address, outdated=asyncio.get_running_loop().create_future())

    located = located_class(Connection)(locate=locate, host="127.0.0.2", port=1)
    assert has_standard_io(with_safe_send(located))
    for _ in range(2):
        await located.connect()
        await located.disconnect()
    assert [address, address] == looked_up
    assert address == {"host": located.host, "port": located.port}


async def test_failed_look_up_is_a_connection_error_with_its_text(address):
    async def locate():
        raise LookupError("no server is known")

    with pytest.raises(redis.exceptions.ConnectionError, match="no server is known"):
        await located_class(Connection)(locate=locate, **address).connect()


def test_class_of_located_connections_is_of_both_kinds():
    kind = located_class(SSLConnection)

    assert issubclass(kind, (LocatedConnection, SSLConnection))
    assert SSLConnection.__name__ == kind.__name__
    assert kind is located_class(SSLConnection)


async def test_connection_whose_server_was_replaced_meanwhile_is_given_up(address):
    outdated = asyncio.get_running_loop().create_future()
    connecting = asyncio.get_running_loop().create_future()

    async def locate():
        return SimpleNamespace(**address, outdated=outdated)

    class Silent(Connection):
        async def _connect(self):
            connecting.set_result(None)
            await asyncio.get_running_loop().create_future()

    trying = asyncio.ensure_future(overrides.connect(located_class(Silent)(locate=locate)))
    await connecting
    outdated.set_result(None)
    with pytest.raises(redis.exceptions.ConnectionError, match="was replaced while it was connected to"):
        await trying


def test_named_connection_verifies_the_name_in_place_of_the_address():
    arguments = NamedSSLConnection(server_name="redis.example", host="127.0.0.1", port=1)._connection_arguments()

    assert {"host": "127.0.0.1", "port": 1, "server_hostname": "redis.example"} == {
        name: value for name, value in arguments.items() if name != "ssl"
    }


@pytest.mark.parametrize("is_named", [True, False])
async def test_named_connection_connects_with_these_arguments(is_named):
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("redis.example").configure_cert(server_context)
    async with listening(lambda _, writer: writer.close(), ssl=server_context) as (host, port):
        trusted = {"ssl_ca_data": authority.cert_pem.bytes().decode(), "retry": Retry(NoBackoff(), 0)}
        kind = named_class(SSLConnection)
        connection = kind(server_name="redis.example" if is_named else host, host=host, port=port, **trusted)
        assert isinstance(connection, (NamedSSLConnection, SSLConnection))
        assert SSLConnection.__name__ == type(connection).__name__
        assert kind is named_class(SSLConnection)
        if is_named:
            await overrides.connect_socket(connection)
            assert connection.is_connected
        else:
            with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
                await overrides.connect_socket(connection)
        await connection.disconnect(nowait=True)


def test_context_is_made_of_settings_that_are_arguments_and_is_the_one_that_a_connection_uses():
    settings = [name for name in RedisSSLContext.__slots__ if name != "context"]
    assert settings == list(inspect.signature(RedisSSLContext).parameters)

    arguments = {"ssl_exclude_verify_flags": [ssl.VerifyFlags.VERIFY_X509_STRICT], "ssl_ca_data": None}
    connection, other = (with_shared_context(SSLConnection(**arguments)) for _ in range(2))
    assert connection.ssl_context is other.ssl_context
    assert connection._connection_arguments()["ssl"] is other._connection_arguments()["ssl"]
    assert ssl.CERT_REQUIRED == connection.cert_reqs


def test_host_of_an_error_is_that_of_the_connections_own_class():
    assert "[::1]:7000" == with_safe_send(Connection(host="::1", port=7000))._host_error()
    assert "localhost:7000" == with_safe_send(SSLConnection(host="localhost", port=7000))._host_error()
    assert "/run/redis.sock" == with_safe_send(UnixDomainSocketConnection(path="/run/redis.sock"))._host_error()


def test_context_of_another_kind_is_left_to_its_connection():
    class OwnContext(RedisSSLContext):
        pass

    connection = SSLConnection()
    connection.ssl_context = context = OwnContext()
    assert context is with_shared_context(connection).ssl_context


async def test_aborted_transport_ends_reads_and_is_seen_as_closed_by_the_peer(connection):
    reading = asyncio.ensure_future(connection.read_response())
    await asyncio.sleep(0)
    abort_transport(connection)
    assert is_closed_by_peer(connection)
    with pytest.raises(redis.exceptions.ConnectionError):
        await reading


async def test_connect_calls_the_connect_function_and_then_the_callbacks(address):
    called = []

    class Listener:
        async def on_connect(self, connection):
            called.append(connection)

    async def shake_hands(connection):
        called.append("handshake")

    listener = Listener()
    connection = Connection(redis_connect_func=shake_hands, **address)
    for _ in range(2):
        overrides.register_connect_callback(connection, listener.on_connect)
    await overrides.connect(connection)
    await overrides.connect(connection)
    assert ["handshake", connection] == called
    await connection.disconnect()
    await overrides.connect(connection)
    assert ["handshake", connection] * 2 == called
    gone, listener = weakref.ref(listener), None
    gc.collect()
    assert gone() is None
    await connection.disconnect()


async def test_handshake_may_follow_a_first_exchange(address):
    connection = Recorded(redis_connect_func=handshake, protocol=2, client_name="contract", **address)
    await overrides.connect(connection)
    assert ("PING",) == connection.sent[0]
    await connection.send_command("CLIENT GETNAME")
    assert b"contract" == await connection.read_response()
    await connection.disconnect()


async def test_health_check_pings_once_its_interval_is_over(connection):
    await overrides.check_health(connection)
    assert not connection.sent
    connection.health_check_interval, connection.next_health_check = 600, -1
    await overrides.check_health(connection)
    assert [("PING",)] == connection.sent
    assert connection.next_health_check > asyncio.get_running_loop().time()


async def test_connection_is_marked_for_reconnecting_until_closed(connection):
    assert not overrides.should_reconnect(connection)
    connection.mark_for_reconnect()
    assert overrides.should_reconnect(connection)
    await connection.disconnect()
    assert not overrides.should_reconnect(connection)


async def test_new_credentials_are_sent_once_and_can_be_forgotten(connection):
    connection.set_re_auth_token(TOKEN)
    overrides.forget_re_auth_token(connection)
    await overrides.re_auth(connection)
    assert not connection.sent
    connection.set_re_auth_token(TOKEN)
    await overrides.re_auth(connection)
    await overrides.re_auth(connection)
    assert [("AUTH", "default", "secret")] == connection.sent


async def test_safe_connection_passes_for_one_with_redis_py_own_methods(address):
    connection = with_safe_send(Connection(**address))
    assert isinstance(connection, SafeConnection)
    assert has_standard_io(connection)
    assert not has_standard_io(Recorded(**address))
    assert connection.maint_notifications_config is None or not connection.maint_notifications_config.enabled
    await connection.send_packed_command(connection.pack_command("ECHO", "x"))
    assert b"x" == await connection.read_response()
    await connection.disconnect()


@pytest.mark.parametrize(
    "method", ["read_response", "send_command", "send_packed_command", "pack_command", "disconnect"]
)
def test_connection_with_a_method_of_its_own_does_not_pass_for_one_with_redis_py_own_methods(address, method):
    def overridden(self, *arguments, **options):
        return getattr(super(kind, self), method)(*arguments, **options)

    kind = type("Overriding", (Connection,), {method: overridden})
    assert not has_standard_io(with_safe_send(kind(**address)))


async def test_send_without_writer_raises_attribute_error_of_none(connection):
    # Seeing this error's object, the package knows that another task has closed the connection.
    writer, connection._writer = connection._writer, None
    with pytest.raises(AttributeError) as raised:
        await connection._send_packed_command([b"x"])
    assert raised.value.obj is None
    connection._writer = writer


async def test_parser_starts_each_connection_with_a_new_hiredis_reader(address):
    connection = Connection(parser_class=AttributeFreeParser, **address)
    await overrides.connect(connection)
    assert parser_of(connection).is_between_replies()
    parser = _AsyncHiredisParser(socket_read_size=65536)
    parser.on_connect(connection)
    reader = parser._reader
    assert isinstance(reader, hiredis.Reader)
    assert reader.gets() is NOT_ENOUGH_DATA
    parser.on_connect(connection)
    assert parser._reader is not reader
    await connection.disconnect()


# Pools.


async def test_pool_keeps_idle_connections_in_a_list_and_acquired_ones_in_a_set(plain_pool):
    first = await overrides.get_connection(plain_pool)
    second = await overrides.get_connection(plain_pool)
    assert first.is_connected
    assert plain_pool._in_use_connections == {first, second}
    await plain_pool.release(second)
    await plain_pool.release(first)
    assert plain_pool._available_connections == [second, first]
    assert plain_pool.get_available_connection() is first
    assert plain_pool._in_use_connections == {first}
    close_all_now(plain_pool)
    assert not first.is_connected
    assert not second.is_connected
    await plain_pool.release(first)


@pytest.mark.parametrize("kind", [ConnectionPool, BlockingConnectionPool])
async def test_pool_makes_and_connects_connections_with_overridable_methods(kind, address):
    called = []

    class Pool(kind):
        def make_connection(self):
            called.append("make")
            return make_safe_connection(self)

        async def ensure_connection(self, connection):
            called.append("ensure")
            await super().ensure_connection(connection)

    pool = Pool(connection_class=Connection, max_connections=1, **address)
    connection = await overrides.get_connection(pool)
    assert ["make", "ensure"] == called
    assert isinstance(connection, SafeConnection)
    await pool.release(connection)
    assert isinstance(pool._lock, asyncio.Lock)
    await pool.aclose()


async def test_released_connection_sends_new_credentials(plain_pool):
    connection = await overrides.get_connection(plain_pool)
    connection.set_re_auth_token(TOKEN)
    await overrides.announce_release(plain_pool, connection)
    assert ("AUTH", "default", "secret") == connection.sent[-1]
    await plain_pool.release(connection)


async def test_pool_passes_new_credentials_to_acquired_connections(plain_pool):
    connection = await overrides.get_connection(plain_pool)
    await plain_pool.re_auth_callback(TOKEN)
    await overrides.re_auth(connection)
    assert ("AUTH", "default", "secret") == connection.sent[-1]
    await plain_pool.release(connection)


# Clients.


async def test_single_connection_client_waits_for_its_lock(plain_pool):
    async with Redis(connection_pool=plain_pool, single_connection_client=True) as client:
        async with overrides.single_connection_lock(client):
            waiting = asyncio.ensure_future(client.ping())
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done()
        assert await waiting


async def test_close_after_failure_disconnects_the_connection(plain_client, connection):
    await overrides.close_after_failure(plain_client)(connection, redis.exceptions.ConnectionError("lost"))
    assert not connection.is_connected


async def test_send_and_parse_makes_one_attempt_without_retries(plain_client, connection, inspector):
    assert await overrides.send_and_parse(plain_client, connection, "SET", ("SET", "key", "1", "NX"), {}) is True
    await connection.send_command("CLIENT ID")
    inspector.client_kill_filter(_id=await connection.read_response())
    with pytest.raises(redis.exceptions.ConnectionError):
        await overrides.send_and_parse(plain_client, connection, "INCR", ("INCR", "key"), {})
    assert "1" == inspector.get("key").decode()
    assert b"1" == await overrides.execute_command(plain_client, "GET", "key")


async def test_client_parses_replies_with_callbacks_by_upper_case_name(plain_client):
    callbacks = plain_client.response_callbacks
    assert dict.get(callbacks, "SET") is overrides.parse_set_result
    assert dict.get(callbacks, "SELECT") is overrides.bool_ok
    assert dict.get(callbacks, "GET") is None
    for callback in (overrides.parse_set_result, overrides.bool_ok):
        for reply in (None, b"OK", b"x", 1, [], "OK"):
            callback(reply)


async def test_reply_options_prevent_decoding_and_replace_errors(address, inspector):
    inspector.lpush("list", b"\xff")
    async with Redis(decode_responses=True, **address) as client:
        undecoded = {overrides.NEVER_DECODE: True}
        assert [b"\xff"] == await client.execute_command("LRANGE", "list", 0, -1, **undecoded)
        assert await client.execute_command("GET", "list", **{overrides.EMPTY_RESPONSE: "nothing"}) == "nothing"


async def test_client_encodes_values_with_its_encoder(plain_client):
    assert b"1.5" == overrides.get_encoder(plain_client).encode(1.5)


@pytest.mark.parametrize("args", [("HIMPORT SET", "key", "set", "value"), ("HIMPORT", "SET", "key", "set", "value")])
def test_himport_set_is_distinguished_from_other_commands(args):
    assert overrides.parse_himport_set(args)
    assert not overrides.parse_himport_set(("SET", *args))


def test_client_keeps_its_event_dispatcher():
    dispatcher = EventDispatcher()
    assert Redis(event_dispatcher=dispatcher)._event_dispatcher is dispatcher


async def test_client_with_one_connection_counts_its_users_and_releases_it(plain_pool):
    async with Redis(connection_pool=plain_pool, single_connection_client=True) as client:
        assert client._usage_counter == 1
        assert not client._single_conn_lock.locked()
        assert client.connection in plain_pool._in_use_connections
    assert client.connection is None
    assert not plain_pool._in_use_connections


# Pipelines.


class Witness:
    """Records the attribute accesses of a connection, and passes them on."""

    def __init__(self, connection):
        self.__dict__.update(connection=connection, asked=set())

    def __getattr__(self, name):
        self.asked.add(name)
        return getattr(self.connection, name)


@pytest.mark.parametrize("name", ["_execute_transaction", "_execute_pipeline"])
async def test_batch_uses_only_connection_attributes_of_the_pipeline_adapter(name, plain_client, connection):
    pipeline = plain_client.pipeline().set("key", 1).get("key")
    witness = Witness(connection)
    results = await getattr(pipeline, name)(witness, pipeline.command_stack, True)
    assert [True, b"1"] == [results[0], results[1]]
    missing = witness.asked - set(dir(PipelineAdapter))
    assert not missing, f"PipelineAdapter has to have {missing}"
    assert {"pack_commands", "send_packed_command", "read_response"} <= witness.asked


@pytest.mark.parametrize("transaction", [True, False])
async def test_pipeline_runs_its_batch_with_one_method_and_resets_itself(transaction, plain_pool):
    called = []

    class Batch(Pipeline):
        async def _execute_transaction(self, connection, commands, raise_on_error):
            called.append(("transaction", [args for args, _ in commands]))
            return await super()._execute_transaction(connection, commands, raise_on_error)

        async def _execute_pipeline(self, connection, commands, raise_on_error):
            called.append(("pipeline", [args for args, _ in commands]))
            return await super()._execute_pipeline(connection, commands, raise_on_error)

    batch = Batch(plain_pool, Redis().response_callbacks, transaction, None)
    await batch.set("key", 1).execute()
    assert [("transaction" if transaction else "pipeline", [("SET", "key", 1)])] == called
    assert not batch.command_stack
    assert not plain_pool._in_use_connections


async def test_pipeline_keeps_its_watching_connection_until_reset(plain_client, plain_pool):
    pipeline = plain_client.pipeline()
    await pipeline.watch("key")
    connection = pipeline.connection
    assert pipeline.watching
    assert {connection} == plain_pool._in_use_connections
    await pipeline.reset()
    assert ("UNWATCH",) == connection.sent[-1]
    assert (pipeline.connection, pipeline.watching) == (None, False)
    assert not plain_pool._in_use_connections


async def test_lost_watch_raises_in_both_failure_handlers(plain_client):
    for name, is_reset in (("_disconnect_raise_on_watching", False), ("_disconnect_reset_raise_on_watching", True)):
        pipeline = plain_client.pipeline()
        await pipeline.watch("key")
        with pytest.raises(redis.exceptions.WatchError):
            await getattr(pipeline, name)(pipeline.connection, redis.exceptions.ConnectionError())
        assert (pipeline.connection is None) == is_reset
        await pipeline.reset()


async def test_pipeline_loads_missing_scripts_before_its_batch(plain_client):
    pipeline = plain_client.pipeline()
    await plain_client.register_script("return 7")(client=pipeline)
    assert [7] == await pipeline.execute()
    assert await plain_client.script_exists(AsyncScript(plain_client, "return 7").sha) == [True]


async def test_pipeline_answers_watch_and_unwatch_with_true(plain_client):
    pipeline = plain_client.pipeline()
    assert await pipeline.watch("key") is True
    assert await pipeline.unwatch() is True
    assert await pipeline.unwatch() is True
    await pipeline.reset()


async def test_iterators_yield_what_their_types_say(plain_client):
    await plain_client.hset("hash", "field", "value")
    await plain_client.sadd("set", "member")
    await plain_client.zadd("sorted", {"member": 1})
    assert [b"hash"] == [key async for key in plain_client.scan_iter("ha*")]
    assert [b"member"] == [member async for member in plain_client.sscan_iter("set")]
    assert [(b"field", b"value")] == [item async for item in plain_client.hscan_iter("hash")]
    assert [(b"member", 1.0)] == [pair async for pair in plain_client.zscan_iter("sorted")]
    assert [(b"member", 1)] == [pair async for pair in plain_client.zscan_iter("sorted", score_cast_func=int)]


async def test_iterator_over_a_hash_without_its_values_yields_fields(plain_client):
    await plain_client.hset("hash", "field", "value")
    try:
        fields = [field async for field in plain_client.hscan_iter("hash", no_values=True)]
    except redis.exceptions.ResponseError:
        pytest.skip("this server has no HSCAN NOVALUES")
    assert [b"field"] == fields


# Clusters.

# By the name of a command: the replies of two nodes, and what is made of them.
JOINED = {
    "CLIENT UNBLOCK": ((0, 1), 1),
    "CONFIG SET": ((True, False), False),
    "DBSIZE": ((1, 2), 3),
    "KEYS": (([b"a", b"b"], [b"b", b"c"]), [b"a", b"b", b"c"]),
    "PING": ((True, True), True),
    "PUBSUB CHANNELS": (([b"a"], [b"a", b"b"]), [b"a", b"b"]),
    "PUBSUB NUMPAT": ((1, 2), 3),
    "PUBSUB NUMSUB": (([(b"a", 1)], [(b"a", 2)]), [(b"a", 3)]),
    "PUBSUB SHARDCHANNELS": (([b"a"], [b"b"]), [b"a", b"b"]),
    "PUBSUB SHARDNUMSUB": (([(b"a", 0)], [(b"a", 2)]), [(b"a", 2)]),
    "SCAN": (([b"5", [b"a"]], [b"0", [b"b"]]), ({"one": 5, "two": 0}, [b"a", b"b"])),
    "SCRIPT EXISTS": (([True, True], [True, False]), [True, False]),
    "SCRIPT FLUSH": ((True, False), False),
    "SCRIPT LOAD": ((b"sha", b"sha"), b"sha"),
    "WAIT": ((1, 0), 1),
}
UNORDERED = {"KEYS", "PUBSUB CHANNELS", "PUBSUB SHARDCHANNELS"}
CLUSTER_FLAGS = {
    "ALL_NODES": cluster.ALL_NODES,
    "DEFAULT_NODE": cluster.DEFAULT_NODE,
    "PRIMARIES": cluster.PRIMARIES,
    "RANDOM": cluster.RANDOM,
    "REPLICAS": cluster.REPLICAS,
}


@pytest.mark.parametrize("command", JOINED)
def test_replies_of_nodes_are_joined_by_the_name_of_the_command(command):
    (one, two), expected = JOINED[command]
    joined = cluster.join_replies(command, {"one": one, "two": two}, {})
    assert expected == (sorted(joined) if command in UNORDERED else joined)


def test_other_replies_of_nodes_come_by_the_names_of_the_nodes():
    assert {"one": 1, "two": 2} == cluster.join_replies("LASTSAVE", {"one": 1, "two": 2}, {})
    assert cluster.join_replies("LASTSAVE", {"one": 1}, {}) == 1


def test_joined_replies_of_one_node_have_the_form_of_those_of_several():
    assert cluster.join_replies("SCAN", {"one": [b"5", [b"a"]]}, {}) == ({"one": 5}, [b"a"])
    assert cluster.join_replies("DBSIZE", {"one": 1}, {}) == 1


def test_flags_of_nodes_are_those_of_redis_py():
    assert {name: getattr(RedisCluster, name) for name in CLUSTER_FLAGS} == CLUSTER_FLAGS
    assert set(CLUSTER_FLAGS.values()) == RedisCluster.NODE_FLAGS, "resolve_targets has to know each"


@pytest.mark.parametrize("legacy_responses", [True, False])
@pytest.mark.parametrize("protocol", [None, 2, 3])
def test_client_of_a_cluster_has_callbacks_of_its_own(protocol, legacy_responses):
    theirs = RedisCluster("127.0.0.1", protocol=protocol, legacy_responses=legacy_responses)
    ours = cluster.cluster_callbacks(is_protocol_given=protocol is not None, has_legacy_responses=legacy_responses)
    assert theirs.response_callbacks["CLUSTER SHARDS"] is ours["CLUSTER SHARDS"]
    slots = [[0, 16383, ["127.0.0.1", 7000, "id", []], ["127.0.0.1", 7001, "id", []]]]
    expected = theirs.result_callbacks["CLUSTER SLOTS"]("CLUSTER SLOTS", {"one": slots})
    assert expected == ours["CLUSTER SLOTS"](slots)
    of_one_server = Redis(protocol=protocol, legacy_responses=legacy_responses).response_callbacks
    differing = {
        name
        for name in theirs.response_callbacks.keys() | of_one_server.keys()
        if theirs.response_callbacks.get(name) is not of_one_server.get(name)
    }
    assert {"CLUSTER SHARDS"} == differing, "cluster_callbacks has to have these"


async def test_notifications_about_keys_are_read_from_the_subscriptions_of_the_nodes(address, inspector):
    class Notifications(AsyncClusterKeyspaceNotifications):
        failed = 0

        async def _execute_subscribe(self, patterns, exact_channels):
            for name in ("one", "two"):
                pubsub = self._node_pubsubs[name] = PubSub(ConnectionPool(**address))
                await pubsub.psubscribe(**patterns)
            assert not self.subscribed
            # As redis-py does when this returns.
            self._track_subscribe(patterns, exact_channels)
            assert self.subscribed

        async def _refresh_subscriptions_on_error(self):
            self.failed += 1
            for name, pubsub in list(self._node_pubsubs.items()):
                if not self._is_pubsub_connected(pubsub):
                    await self._cleanup_node(name)

    async with Notifications(None) as notifications:
        await notifications.subscribe_keyspace("key:*")
        assert [["__keyspace@0__:key:*"], []] == [
            [*notifications._subscribed_patterns],
            [*notifications._subscribed_channels],
        ]
        async with notifications._refresh_lock:
            pass
        kept, broken = notifications._node_pubsubs.values()
        assert {b"__keyspace@0__:key:*": None} == kept.patterns
        broken.connection_pool.reset()
        await broken.connection.disconnect()
        broken.connection.host = "255.255.255.255"
        inspector.publish("__keyspace@0__:key:1", "set")
        async with asyncio.timeout(30):
            while (found := await notifications.get_message(timeout=1)) is None:
                pass
        assert "key:1" == found.key
        async with asyncio.timeout(30):
            while not notifications.failed:
                await notifications.get_message(timeout=0.1)
        assert {"one": kept} == notifications._node_pubsubs
    assert notifications._closed
    assert not notifications._node_pubsubs


# Subscriptions, MONITOR and locks.


async def test_connect_callback_resubscribes_after_reconnecting(plain_pool, inspector, until):
    pubsub = PubSub(plain_pool)
    await pubsub.subscribe("channel")
    connection = pubsub.connection
    assert {b"channel": None} == pubsub.channels
    assert isinstance(pubsub._lock, asyncio.Lock)
    await connection.disconnect()
    await overrides.connect(connection)
    await until(lambda: [(b"channel", 1)] == inspector.pubsub_numsub("channel"))
    await pubsub.unsubscribe("channel")
    assert {b"channel"} == pubsub.pending_unsubscribe_channels
    await pubsub.aclose()
    assert (pubsub.connection, pubsub.channels) == (None, {})
    assert not connection.is_connected
    assert not plain_pool._in_use_connections


async def test_failed_read_of_a_subscription_calls_reconnect(plain_pool, inspector):
    plain_pool.connection_kwargs["retry"] = Retry(NoBackoff(), 1)
    failures = []

    class Subscriptions(PubSub):
        async def _reconnect(self, conn, *failure):
            failures.append(failure[0])
            await super()._reconnect(conn, *failure)

    pubsub = Subscriptions(plain_pool)
    await pubsub.subscribe("channel")
    assert "subscribe" == (await pubsub.get_message(timeout=30))["type"]
    inspector.client_kill_filter(_type="pubsub")
    assert "subscribe" == (await pubsub.get_message(timeout=30))["type"]
    assert [redis.exceptions.ConnectionError] == [type(failure) for failure in failures]
    await pubsub.aclose()


async def test_pubsub_message_is_built_from_the_elements_of_a_reply(plain_pool):
    pubsub = PubSub(plain_pool)
    fields = {"type": "pmessage", "pattern": b"c*", "channel": b"channel", "data": b"data"}
    assert fields == await pubsub.handle_message([b"pmessage", b"c*", b"channel", b"data"])
    handled = []
    await pubsub.subscribe(channel=handled.append)
    assert await pubsub.handle_message([b"message", b"channel", b"data"]) is None
    assert [b"data"] == [message["data"] for message in handled]
    assert ("message", "pmessage", "smessage") == PubSub.PUBLISH_MESSAGE_TYPES
    await pubsub.aclose()


async def test_pubsub_health_check_reply_is_a_known_one(plain_pool):
    pubsub = PubSub(plain_pool)
    await pubsub.connect()
    connection = pubsub.connection
    connection.health_check_interval, connection.next_health_check = 600, -1
    await pubsub.check_health()
    assert await connection.read_response() in pubsub.health_check_response
    await pubsub.aclose()


async def test_monitor_uses_the_given_connection(plain_pool):
    monitor = Monitor(plain_pool)
    connection = monitor.connection = await overrides.get_connection(plain_pool)
    async with monitor:
        assert monitor.connection is connection
        assert ("MONITOR",) == connection.sent[-1]
    assert not plain_pool._in_use_connections


async def test_lock_acquires_with_one_method_and_keeps_its_token_in_local(plain_client, monkeypatch):
    # An earlier test may have used a lock of redis-py.
    monkeypatch.setattr(Lock, "lua_release", None)
    asked = []

    class RecordedLock(Lock):
        async def do_acquire(self, token):
            asked.append(token)
            return await super().do_acquire(token)

    lock = RecordedLock(plain_client, "lock", timeout=600, sleep=0.001)
    assert await lock.acquire(token="token")
    assert [b"token"] == asked
    assert b"token" == lock.local.token
    assert not await lock.acquire(blocking_timeout=0.5)
    assert len(asked) > 2
    await lock.release()
    assert lock.local.token is None
    assert lock.lua_release.sha
    # Each of our locks has its own script, on the instance.
    assert Lock.lua_release is None


async def test_script_keeps_its_text_hash_and_client(plain_client):
    script = plain_client.register_script("return 7")
    assert ("return 7", plain_client) == (script.script, script.registered_client)
    assert await plain_client.script_load("return 7") == script.sha
