"""redis-py's constructor arguments and URLs have the same meaning here; tested without a server."""

import asyncio
import logging
import ssl
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import redis.asyncio
import redis.retry
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import NonRecordingSpan, SpanContext
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from support.arguments import GIVEN, NOT_RETRIED
from support.internals import event_dispatcher_of, recorder_of

from aioredis_monitored import ConfigurationError, MonitoredConnectionPool, MonitoredRedisConnection, pool_from_config
from aioredis_monitored._telemetry.spans import server_of
from aioredis_monitored.config.schema import url_arguments


def defaults_of(function):
    """Return all of redis-py's arguments with their defaults, as a wrapper passes them that copied the signature."""
    parameters = [p for p in signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.fixture
def logged(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# --- Constructors ---


def test_client_accepts_all_redis_py_arguments_together(logged):
    given = defaults_of(Redis.__init__)
    client = MonitoredRedisConnection(**given)
    pool = client.connection_pool

    assert 40 <= len(given)
    assert "localhost:6379" == pool.telemetry.server.target
    # Both differ from redis-py 8.1's defaults: one hides unread replies, the other reads its version from disk.
    assert not pool.maint_notifications_enabled()
    assert pool.connection_kwargs["driver_info"].formatted_name.startswith("redis-py(aioredis_monitored_v")
    assert 50 == pool.max_connections
    assert given["retry"].get_retries() == pool.get_retry().get_retries()
    assert 1 == len(logged())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", sorted(signature(Redis.__init__).parameters.keys() - {"self", "connection_pool"}))
def test_client_gives_each_redis_py_argument_the_same_meaning(name):
    argument = {"maint_notifications_config": GIVEN["maint_notifications_config"], name: GIVEN[name]}
    ours, theirs = MonitoredRedisConnection(**argument), Redis(**argument)

    assert theirs.connection_pool.connection_class is ours.connection_pool.connection_class
    mine, others = (client.connection_pool.make_connection() for client in (ours, theirs))
    for attribute in vars(others).keys() - {"retry", "retry_on_error", "retry_on_timeout", "driver_info"}:
        expected, actual = vars(others)[attribute], vars(mine)[attribute]
        if isinstance(expected, str | int | float | dict | list | None):
            assert (attribute, expected) == (attribute, actual)
    if name == "lib_name":
        assert "lib" == mine.driver_info.name
    assert theirs.auto_close_connection_pool is ours.auto_close_connection_pool
    assert theirs.single_connection_client is ours.single_connection_client
    if name == "event_dispatcher":
        assert event_dispatcher_of(ours) is GIVEN[name]


@pytest.mark.parametrize("empty", ["", b""], ids=["text", "bytes"])
@pytest.mark.parametrize("name", ["client_name", "username", "password"])
def test_empty_name_or_password_is_none_as_in_redis_py(name, empty):
    connection = MonitoredRedisConnection(**{name: empty}).connection_pool.make_connection()

    assert getattr(connection, name) is None


def test_username_and_password_accept_bytes_as_in_redis_py():
    client = MonitoredRedisConnection(username=b"user", password=b"secret")
    connection = client.connection_pool.make_connection()

    assert ("user", "secret") == (connection.username, connection.password)
    for password in (b"\xff", 0, False):
        with pytest.raises(ConfigurationError, match="password: must be text"):
            MonitoredRedisConnection(password=password)


@pytest.mark.parametrize("pool_class", [ConnectionPool, BlockingConnectionPool])
def test_pool_accepts_all_arguments_of_redis_py_pools(pool_class, logged):
    pool = MonitoredConnectionPool(**defaults_of(pool_class.__init__))

    assert (50, Connection, []) == (pool.max_connections, pool.connection_class, logged())
    assert not pool.maint_notifications_enabled()


@pytest.mark.parametrize("connection_class", [Connection, SSLConnection, redis.asyncio.UnixDomainSocketConnection])
def test_pool_accepts_all_arguments_of_redis_py_connections(connection_class):
    given = {}
    for each in connection_class.__mro__[:-1]:
        if "__init__" in vars(each) and each.__module__ == Connection.__module__ and "Maint" not in each.__name__:
            given |= defaults_of(vars(each)["__init__"])

    pool = MonitoredConnectionPool(connection_class=connection_class, **given)

    assert isinstance(pool.make_connection(), connection_class)


def test_pool_takes_positional_arguments_like_redis_py_blocking_pool():
    given = (3, 1.5, SSLConnection, asyncio.LifoQueue)
    ours, theirs = MonitoredConnectionPool(*given), BlockingConnectionPool(*given)

    assert list(signature(BlockingConnectionPool.__init__).parameters)[:5] == [
        *list(signature(MonitoredConnectionPool.__init__).parameters)[:5]
    ]
    assert [3, 1.5, SSLConnection] == [ours.max_connections, ours.timeout, ours.connection_class]
    assert [3, 1.5, SSLConnection] == [theirs.max_connections, theirs.timeout, theirs.connection_class]


def test_tls_arguments_reach_the_connection():
    tls = {"ssl_check_hostname": False, "ssl_cert_reqs": "none", "ssl_ciphers": "ALL"}
    for client in (
        MonitoredRedisConnection(ssl=True, **tls),
        MonitoredRedisConnection(connection_class=SSLConnection, **tls),
        MonitoredRedisConnection.from_url("rediss://localhost", **tls),
    ):
        context = client.connection_pool.make_connection().ssl_context
        assert (ssl.CERT_NONE, "ALL") == (context.cert_reqs, context.ciphers)


def test_retries_without_limit_are_bounded_by_the_deadline():
    pool = MonitoredConnectionPool(retry=Retry(NoBackoff(), -1))
    pause = partial(
        pool.retry_policy.next_delay, redis.ConnectionError("lost"), may_have_run=False, traits=None, failures=10**6
    )

    assert (-1, True, None) == (pool.get_retry().get_retries(), pause(elapsed=0) > 0, pause(elapsed=5))


@pytest.mark.parametrize("retry", [5, True, "policy", Retry])
def test_retry_argument_raises_when_not_a_redis_py_retry(retry):
    with pytest.raises(TypeError, match=r"retry must be a redis.asyncio.retry.Retry, got "):
        MonitoredConnectionPool(retry=retry)
    with pytest.raises(TypeError, match=r"retry must be a redis.asyncio.retry.Retry, got "):
        MonitoredConnectionPool().set_retry(retry)


@pytest.mark.parametrize(
    ("arguments", "ignored"),
    [
        ({"retry": Retry(ExponentialBackoff(), 3)}, ["of retry, only", "(3 now)"]),
        ({"retry_on_timeout": True}, ["of retry_on_timeout, only", "(20 now)"]),
        ({"retry_on_error": [redis.TimeoutError], "retry": NOT_RETRIED}, ["of retry_on_error, only", "(0 now)"]),
        (
            {"retry": Retry(NoBackoff(), 1), "retry_on_error": [OSError], "retry_on_timeout": True},
            ["of retry, retry_on"],
        ),
        ({"retry": NOT_RETRIED, "retry_on_error": [], "retry_on_timeout": False}, []),
        ({"retry": None, "retry_on_error": None}, []),
    ],
)
@pytest.mark.parametrize("make", [MonitoredConnectionPool, MonitoredRedisConnection, "from_url", "?", "configured"])
def test_ignored_parts_of_a_retry_policy_are_logged_in_one_line(make, arguments, ignored, logged):
    if make == "from_url":
        MonitoredRedisConnection.from_url("redis://localhost", **arguments)
    elif make == "configured":
        pool_from_config({"redis.url": "redis://localhost"}, **arguments)
    elif make == "?":
        given = dict(arguments)
        on_timeout = given.pop("retry_on_timeout", False)
        MonitoredConnectionPool.from_url(f"redis://localhost?retry_on_timeout={on_timeout}", **given)
    else:
        make(**arguments)

    assert (1 if ignored else 0) == len(logged())
    for text in ignored:
        assert text in logged()[0]


# --- Which argument is which ---


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("db.example.com", 6390), "server_span must be a Span, got int; give a server as"),
        (("db.example.com",), "'db.example.com' is taken for the name of a context, and there is neither"),
        (("redis://localhost",), "or use from_url"),
        ((MonitoredConnectionPool(),), "context_name must be a str, got MonitoredConnectionPool;"),
        ((b"redis",), "context_name must be a str, got bytes;"),
        (("redis", "span"), "server_span must be a Span, got str;"),
    ],
)
def test_client_raises_on_context_name_or_span_of_wrong_type(args, reason):
    with pytest.raises(TypeError) as caught:
        MonitoredRedisConnection(*args)

    assert reason in str(caught.value)


def test_context_name_raises_without_pool_or_server():
    for arguments in ({"port": 6390}, {"host": None}, {"unix_socket_path": None, "port": 6390}):
        with pytest.raises(TypeError, match="neither a pool nor a server"):
            MonitoredRedisConnection(context_name="cache", **arguments)
    span = NonRecordingSpan(SpanContext(1, 1, is_remote=False))
    for arguments in (
        {"connection_pool": MonitoredConnectionPool()},
        {"host": "localhost"},
        {"unix_socket_path": "/run/redis.sock"},
    ):
        client = MonitoredRedisConnection("cache", span, **arguments)
        assert ("cache", span) == (client.context_name, client.server_span)


def test_client_without_arguments_uses_localhost_6379():
    client = MonitoredRedisConnection()

    assert ("redis", None, "localhost:6379") == (
        client.context_name,
        client.server_span,
        recorder_of(client).server.target,
    )


def test_client_with_only_a_port_uses_localhost():
    assert "localhost:6390" == recorder_of(MonitoredRedisConnection(port=6390)).server.target


# --- Pools of any class ---


class RaisingPool:
    @property
    def connection_kwargs(self):
        raise RuntimeError("no")


def server_attributes(connection_class=Connection, **arguments):
    pool = SimpleNamespace(connection_class=connection_class, connection_kwargs=arguments)
    attributes = server_of(pool).attributes
    return {name.rpartition(".")[2]: attributes[name] for name in attributes if name.startswith("server")}


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (partial(server_attributes, port=None), {"address": "localhost"}),
        (partial(server_attributes, host=None), {"address": "localhost"}),
        (partial(server_attributes, host="h", port="6380"), {"address": "h", "port": 6380}),
        (partial(server_attributes, host="h", port="none"), {"address": "h"}),
        (partial(server_attributes, host=Path("h"), port=6.0), {"address": "h", "port": 6}),
        (partial(server_attributes, host="::1", db=None), {"address": "::1"}),
        (partial(server_attributes, partial(Connection, host="h", port=7)), {"address": "h", "port": 7}),
        (partial(server_attributes, partial(Connection, host="a"), host="h"), {"address": "h"}),
        (partial(server_attributes, lambda **_: None, host="h", port=7), {"address": "h", "port": 7}),
        (partial(server_attributes, lambda **_: None, path="/run/redis.sock"), {"address": "/run/redis.sock"}),
        (partial(server_attributes, lambda **_: None), {}),
        (partial(server_attributes, None), {}),
        (partial(server_attributes, dict, host="h"), {}),
        (partial(server_attributes, mock.Mock(), host=mock.Mock(spec=[])), None),
    ],
)
def test_server_attributes_are_read_from_any_pool(pool, expected):
    assert expected is None or expected == pool()


@pytest.mark.parametrize(
    "pool",
    [
        mock.Mock(),
        mock.MagicMock(spec=ConnectionPool),
        mock.NonCallableMock(),
        SimpleNamespace(),
        RaisingPool(),
        object(),
    ],
    ids=lambda pool: type(pool).__name__,
)
def test_server_attributes_are_defaults_for_pools_without_details(pool):
    assert ({"db.system.name": "redis", "db.namespace": "0"}, None) == server_of(pool)


@pytest.mark.parametrize(
    "pool",
    [
        mock.Mock(),
        mock.AsyncMock(),
        mock.MagicMock(spec=ConnectionPool),
        mock.MagicMock(spec=MonitoredConnectionPool),
        mock.create_autospec(MonitoredConnectionPool, instance=True),
        SimpleNamespace(connection_kwargs={}),
    ],
    ids=range(6),
)
# redis-py calls an AsyncMock's encoder.
@pytest.mark.filterwarnings("ignore:coroutine 'AsyncMockMixin:RuntimeWarning")
def test_client_accepts_a_mock_as_pool(pool):
    client = MonitoredRedisConnection(connection_pool=pool)

    assert client.connection_pool is pool
    assert recorder_of(client).server.target is None


# --- URLs ---

URLS = [
    "redis://",
    "redis:///",
    "redis:///2",
    "redis://:6380",
    "redis://:6380/3",
    "redis://:secret@",
    "redis://u:secret@:6380/1",
    "redis://h",
    "redis://h:",
    "redis://h:/1",
    "redis://h:7/2",
    "redis://h/2/",
    "redis://h//2",
    "redis://h/%32",
    "redis://h?db=3",
    "redis://h/1?db=3",
    "redis://h/1?db=",
    "redis://%68ost",
    "redis://[::1]:7",
    "redis://[fe80::1%25eth0]",
    "redis://u@h",
    "redis://:p@h",
    "redis://u%3A:p:%40%2F+%C3%BC@h",
    "redis://u:p@q@h",
    "redis://h?password=p%2520q",
    "redis://h?password=p+q",
    "redis://?host=h&port=7",
    "redis://h?socket_timeout=0.5&socket_connect_timeout=2&health_check_interval=30",
    "redis://h?socket_keepalive=no&retry_on_timeout=no&protocol=2&max_connections=3&timeout=1.5",
    "redis://h?socket_read_size=4096&encoding=latin-1&encoding_errors=replace&legacy_responses=False",
    "redis://h?client_name=shop&lib_name=l&lib_version=1",
    "rediss://",
    "rediss://h:7/1",
    "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=False&ssl_min_version=771&ssl_ciphers=ALL",
    "rediss://h?ssl_ca_path=/etc/ssl&ssl_ca_data=pem&ssl_password=p",
    "rediss://h?ssl_include_verify_flags=VERIFY_X509_STRICT,VERIFY_X509_PARTIAL_CHAIN",
    "unix:///run/redis.sock",
    "unix:///run/my%20redis.sock?db=3",
    "unix://u:p@/run/redis.sock",
]
INCOMPARABLE = {"max_connections", "retry", "retry_on_timeout", "retry_on_error", "driver_info", "redis_connect_func"}
INCOMPARABLE |= {"maint_notifications_config", "himport_registry", "parser_class"}


def pool_settings(pool):
    """Return a pool's class and arguments, as comparable values."""
    arguments = {name: value for name, value in pool.connection_kwargs.items() if name not in INCOMPARABLE}
    return pool.connection_class, arguments


def compare(url, **kwargs):
    # redis-py keeps data for these notifications among the arguments.
    kwargs["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    ours, theirs = MonitoredConnectionPool.from_url(url, **kwargs), ConnectionPool.from_url(url, **kwargs)
    (our_class, mine), (their_class, others) = pool_settings(ours), pool_settings(theirs)
    for each in ("timeout", "lib_name", "lib_version"):
        others.pop(each, None)
    if others.get("ssl_cert_reqs") == "none":
        others["ssl_cert_reqs"] = ssl.CERT_NONE
    assert their_class is our_class
    assert others == mine
    return theirs


@pytest.mark.parametrize("url", URLS)
def test_url_has_the_same_meaning_as_in_redis_py(url):
    compare(url)
    ours, theirs = MonitoredRedisConnection.from_url(url), Redis.from_url(url)

    assert theirs.connection_pool.connection_class is ours.connection_pool.connection_class


KEYWORDS = {"db": 7, "password": "q", "port": 8, "socket_timeout": 9.0, "encoding": "ascii", "client_name": "k"}


@pytest.mark.parametrize("url", [url for url in URLS if not url.startswith("unix")])
def test_url_overrides_keywords_as_in_redis_py(url):
    compare(url, **KEYWORDS, host="k")


def test_database_in_url_overrides_keyword():
    pool = MonitoredConnectionPool.from_url("redis://h/2", db=0, host="other", connection_class=SSLConnection)

    assert (2, "h", SSLConnection) == (
        pool.connection_kwargs["db"],
        pool.connection_kwargs["host"],
        pool.connection_class,
    )
    assert SSLConnection is MonitoredConnectionPool.from_url("rediss://h", connection_class=Connection).connection_class


HOSTS = st.from_regex(r"[a-z0-9]{1,5}(\.[a-z0-9]{1,5}){0,2}", fullmatch=True) | st.just("[::1]") | st.just("")
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=5)
QUERY = st.fixed_dictionaries(
    {},
    optional={
        "db": st.integers(0, 99).map(str),
        "socket_timeout": st.sampled_from(["1", "0.5", "2.25"]),
        "health_check_interval": st.integers(0, 9).map(str),
        "socket_keepalive": st.sampled_from(["True", "False", "yes", "No", "1", "0", ""]),
        "protocol": st.sampled_from(["2", "3"]),
        "client_name": st.from_regex("[!-~]{1,5}", fullmatch=True),
        "encoding": st.sampled_from(["utf-8", "latin-1"]),
        "legacy_responses": st.sampled_from(["True", "False", "0"]),
    },
)


@given(
    st.sampled_from(["redis", "rediss", "REDIS"]),
    st.none() | TEXT,
    st.none() | TEXT,
    HOSTS,
    st.none() | st.integers(1, 65_535),
    st.sampled_from(["", "/", "/0", "/12", "/3/"]),
    QUERY,
)
def test_generated_url_has_the_same_meaning_as_in_redis_py(scheme, username, password, host, port, path, query):
    from urllib.parse import quote, urlencode

    userinfo = "" if username is None and password is None else f"{quote(username or '', '')}"
    userinfo += "" if password is None else f":{quote(password, '')}"
    userinfo += "@" if username is not None or password is not None else ""
    url = f"{scheme}://{userinfo}{host}{'' if port is None else f':{port}'}{path}"
    compare(url + (f"?{urlencode(query)}" if query else ""))


def test_url_accepts_valkey_schemes_and_own_options_beside_those_of_redis_py():
    pool = MonitoredConnectionPool.from_url("valkeys://h/3?multiplex=no&retries=2&timeout=200+ms&socket_timeout=1+min")

    assert (SSLConnection, 2, 0.2, 60.0) == (
        pool.connection_class,
        pool.get_retry().get_retries(),
        pool.timeout,
        pool.connection_kwargs["socket_timeout"],
    )
    assert pool.multiplexer is None
    assert "h" == MonitoredConnectionPool.from_url("valkey://h").connection_kwargs["host"]


def test_decode_responses_false_in_url_is_false():
    assert MonitoredConnectionPool.from_url("redis://h?decode_responses=False").decodes_replies is False
    assert MonitoredConnectionPool.from_url("redis://h?decode_responses=True").decodes_replies is True


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        # redis-py takes each of these for localhost, for another database than the named one, or for another socket.
        ("redis:/h", "url: not a Redis URL"),
        ("redis:h", "url: not a Redis URL"),
        ("h:6379", "url: not a Redis URL"),
        ("redis://h/abc", "url: nothing but the number of a database may follow the host"),
        ("redis://h/1/2", "url: nothing but the number of a database may follow the host"),
        ("redis:///run/redis.sock", "url: nothing but the number of a database may follow the host"),
        ("redis://h/-1", "url: nothing but the number of a database may follow the host"),
        ("redis://:p#q@h", "url: in user names, passwords and options"),
        ("redis://:p/q@h", "url: in user names, passwords and options"),
        ("unix://run/redis.sock", "url: a Unix socket needs an absolute path"),
        ("unix:/run/redis.sock", "url: not a Redis URL"),
        ("redis://a,b", "url: several hosts need redis+cluster:// or redis+sentinel://"),
        ("redis://%2Frun%2Fredis", "url: the host must be a name"),
        ("redis://h:0", "url: the port must be a number"),
        ("redis://::1", "url: an IPv6 address must be in brackets"),
        ("redis://h:99999", "url: the port must be a number"),
        ("http://h", "url: unknown scheme 'http'"),
        ("redis+sentinel://h", "url: no service after the hosts"),
        ("redis+cluster://", "url: no host"),
        ("redis+cluster://a,,b:", "url: no host"),
        ("redis+cluster://h/main", "url: nothing but the number of a database may follow the host"),
        ("redis+sentinel://h/a/b/0", "url: a service consists of letters"),
        (
            "redis-sentinel://a:1,b:2?sentinelMasterId=S3CRET",
            "url: unknown scheme 'redis-sentinel': expected redis+sent",
        ),
        ("sentinel://:S3CRET@a:1;sentinel://b:2", "url: unknown scheme 'sentinel': expected redis+sentinel://"),
        ("redis+cluster://h?host=x", "url: host does not apply to redis+cluster://"),
        ("rediss+sentinel://h/main?port=1", "url: port does not apply to rediss+sentinel://"),
        ("redis://h?read_from=replica", "url: read_from does not apply to redis://"),
        ("unix:///s?address_map=a:1=b:1", "url: address_map does not apply to unix://"),
        ("redis+sentinel://h/main?topology_refresh=1", "url: topology_refresh does not apply to redis+sentinel://"),
        ("redis+cluster://h?sentinel_password=x", "url: sentinel_password does not apply to redis+cluster://"),
        ("redis+sentinel://h/main?sentinel_password_file=/x", "url: unknown option"),
        ("redis+cluster://h?ssl_check_hostname=no", "url: ssl_check_hostname does not apply to redis+cluster://"),
        ("redis://h?master_name=x", "url: unknown option; url names the servers"),
        ("", "url: not a Redis URL"),
        (None, "url: must be text"),
        (b"redis://h", "url: must be text"),
        # redis-py drops these, or the first command fails.
        ("redis://h?bogus=1", "url: unknown option"),
        ("redis://h?sokcet_timeout=1", "url: unknown option; did you mean socket_timeout?"),
        ("redis://h?db=1&db=2", "url: db is given twice"),
        ("redis://u@h?username=v", "url: username is given twice"),
        ("redis://a?host=b", "url: host is given twice"),
        ("redis://h?protocol", "url: options must be written name=value"),
        ("redis://h?ssl_cert_reqs=none", "url: ssl_cert_reqs does not apply to redis://"),
        ("valkey://h?ssl_check_hostname=no", "url: ssl_check_hostname does not apply to redis://"),
        ("unix:///s?socket_keepalive=no", "url: socket_keepalive does not apply to unix://"),
        ("redis://h?socket_read_size=many", "url: socket_read_size cannot be read"),
        ("rediss://h?ssl_min_version=1", "url: ssl_min_version cannot be read"),
        ("rediss://h?ssl_include_verify_flags=NONE", "url: ssl_include_verify_flags cannot be read"),
        ("redis://h?port=x", "url: port cannot be read"),
        ("redis://h?port=99999", "url: port cannot be read"),
        ("redis://h?retry=3", "url: unknown option; retries is how often"),
        ("redis://h?retry_on_error=x", "url: unknown option; retries is how often"),
        ("redis://h?credential_provider=x", "url: unknown option"),
        ("redis://h?parser_class=x", "url: unknown option"),
        ("redis://h?socket_type=1", "url: unknown option"),
        ("redis://h?db=x", "db: must be a whole number, 0 or more"),
        ("redis://h?max_connections=0", "max_connections: must be a whole number, 1 or more"),
    ],
)
def test_url_that_redis_py_guesses_at_raises_config_error(url, reason):
    for make in (url_arguments, MonitoredConnectionPool.from_url, MonitoredRedisConnection.from_url):
        if make is url_arguments and not reason.startswith("url"):
            continue
        with pytest.raises(ConfigurationError) as caught:
            make(url)
        assert str(caught.value).startswith(reason)
        assert isinstance(caught.value, ValueError)


def test_url_option_given_twice_is_reported_once():
    with pytest.raises(ConfigurationError) as caught:
        url_arguments("redis://u:p@h?password=p&password=q")

    assert (("url", "password is given twice"),) == caught.value.problems


def test_url_error_never_contains_parts_of_the_url():
    with pytest.raises(ConfigurationError) as caught:
        MonitoredConnectionPool.from_url("redis://h/S3CRET?S3CRET=S3CRET&socket_read_size=S3CRET")

    assert 3 == len(caught.value.problems)
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://", "redis:///2", "redis://:6380", "redis://h:", "redis://h/1?db=2"])
def test_pool_from_config_raises_on_urls_that_only_from_url_accepts(url):
    with pytest.raises(ConfigurationError, match=r"redis.url: "):
        pool_from_config({"redis.url": url})
