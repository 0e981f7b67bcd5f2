"""Configuration is checked at the edge: valid values become typed, errors are explained, and neither shows secrets."""

import copy
import inspect
import logging
import os
import pickle
import ssl
import subprocess
import sys
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection

from aioredis_monitored import MonitoredConnectionPool, TelemetryOptions, pool_from_config
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.config.schema import OPTIONS, RedisConfig, override, validate_arguments
from aioredis_monitored.errors import ConfigurationError

EXPECTED = "expected redis://[[username]:password@]host[:port][/db]"
EXPECTED_CLUSTER = "expected redis+cluster://[[username]:password@]host[:6379][,host2[:port]][/db]"
EXPECTED_SENTINEL = "expected redis+sentinel://[[username]:password@]host[:26379][,host2[:port]]/service[/db]"
BAD_HOST = "the host must be a name, an IPv4 address or an IPv6 address in brackets"
BAD_IPV6 = "an IPv6 address must be in brackets, as in [::1]:6379"
BAD_PORT = "the port must be a number from 1 to 65535"
BAD_PATH = f"nothing but the number of a database may follow the host: {EXPECTED}"
BAD_CLUSTER_PATH = f"nothing but the number of a database may follow the host: {EXPECTED_CLUSTER}"
BAD_SERVICE = (
    "a service consists of letters, digits, '.', '_' and '-', "
    f"and nothing but the number of a database may follow it: {EXPECTED_SENTINEL}"
)
SEVERAL_HOSTS = "several hosts need redis+cluster:// or redis+sentinel://"
BAD_SOCKET = "a Unix socket needs an absolute path after three slashes, as in unix:///run/redis.sock"
BAD_DELIMITER = "in user names, passwords and options, '/', '?', '#' and '@' must be percent-encoded"
TIMESPAN = "must be a timespan such as '200 milliseconds' (us, ms, s, m, h or d; seconds without a unit)"
SWITCH = "must be true or false"
BAD_FILE = "must be the path of an existing file"
BAD_AUTHORITIES = "must be the path of a PEM file of certificates"
BAD_PAIR = "must hold a certificate, and this file or ssl_keyfile its key, unencrypted"
BAD_PASSWORD_FILE = "must be the path of a readable file that holds a password, in UTF-8 without BOM and NUL"
IN_FRONT = "after the prefix of config_from_env if it was given one"
NO_URL = f"no value specified under the prefix 'redis.' (in the environment: REDIS_URL, {IN_FRONT})"
SECRET = "S3CRET"
ADDRESS_PAIRS = (
    "must be pairs such as '10.0.0.1:6379=proxy:7000', joined by commas; "
    "'10.0.0.1:*=proxy:*' and '*:*=proxy:*' keep the port"
)
# The fields that the URL alone gives.
PLACE = {"topology", "host", "port", "path", "nodes", "service", "tls"}


def short_repr(value):
    return repr(value)[:60]


def read(url="redis://h", /, **keys):
    return RedisConfig.from_mapping(
        {"redis.url": url} | {f"redis.{key}": value for key, value in keys.items()}, "redis."
    )


def problems(url="redis://h", /, **keys):
    with pytest.raises(ConfigurationError) as caught:
        read(url, **keys)
    return str(caught.value)


# --- Where to connect ---


@pytest.mark.parametrize(
    ("url", "config"),
    [
        ("redis://h", RedisConfig(host="h")),
        ("redis://h/", RedisConfig(host="h")),
        ("redis://h?", RedisConfig(host="h")),
        (" redis://h\n", RedisConfig(host="h")),
        ("REDIS://h:7/2", RedisConfig(host="h", port=7, db=2)),
        ("valkey://my_host-1.example", RedisConfig(host="my_host-1.example")),
        ("redis://münchen.example", RedisConfig(host="münchen.example")),
        ("redis://h.example.", RedisConfig(host="h.example.")),
        ("redis://127.0.0.1:65535", RedisConfig(host="127.0.0.1", port=65535)),
        ("redis://[::1]", RedisConfig(host="::1")),
        ("redis://[0::1]:7/3", RedisConfig(host="::1", port=7, db=3)),
        ("redis://[fe80::1%25eth0]", RedisConfig(host="fe80::1%eth0")),
        ("rediss://h", RedisConfig(host="h", tls=True)),
        ("valkeys://h", RedisConfig(host="h", tls=True)),
        ("unix:///run/my%20redis.sock", RedisConfig(path="/run/my redis.sock")),
        ("unix://u:p@/run/redis.sock?db=3", RedisConfig(path="/run/redis.sock", username="u", password="p", db=3)),
        ("unix://u@/run/redis.sock", RedisConfig(path="/run/redis.sock", username="u")),
        ("redis://u@h", RedisConfig(host="h", username="u")),
        ("redis://:p@h", RedisConfig(host="h", password="p")),
        ("redis://@h", RedisConfig(host="h")),
        ("redis://u:@h", RedisConfig(host="h", username="u")),
        ("redis://:p@h?username=u", RedisConfig(host="h", username="u", password="p")),
        ("redis://u%3A:p:%40%2F+%C3%BC@h", RedisConfig(host="h", username="u:", password="p:@/+ü")),
        ("redis://u:p@q@h", RedisConfig(host="h", username="u", password="p@q")),
    ],
)
def test_url_sets_host_port_db_and_credentials(url, config):
    assert config == read(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, NO_URL),
        ("", NO_URL),
        (" \n", NO_URL),
        (6379, "must be text"),
        ("redis:/x", f"not a Redis URL: {EXPECTED}"),
        ("localhost:6379", f"not a Redis URL: {EXPECTED}"),
        ("//h", f"not a Redis URL: {EXPECTED}"),
        ("rédis://h", f"not a Redis URL: {EXPECTED}"),
        (f"x{'x' * 20}://h", f"not a Redis URL: {EXPECTED}"),
        ("HTTP://h", f"unknown scheme 'http': {EXPECTED}"),
        ("redis://", f"no host: {EXPECTED}"),
        ("redis://:6379", f"no host: {EXPECTED}"),
        ("redis://u:p@", f"no host: {EXPECTED}"),
        ("redis://::1", BAD_IPV6),
        ("redis://::1:6379", BAD_IPV6),
        ("redis://u:p@2001:db8::1", BAD_IPV6),
        ("redis://1:2:3:4:5:6:7:8:6379", BAD_IPV6),
        ("redis://fe80::1%25eth0", BAD_IPV6),
        ("redis://256.0.0.1", BAD_HOST),
        ("redis://10.0.0.01", BAD_HOST),
        ("redis://" + ".".join(["a" * 60] * 5), BAD_HOST),
        ("redis://a,b", SEVERAL_HOSTS),
        ("valkeys://a:1,b:2/0", "several hosts need rediss+cluster:// or rediss+sentinel://"),
        ("redis://a..b", BAD_HOST),
        ("redis://.a", BAD_HOST),
        (f"redis://{'a' * 64}", BAD_HOST),
        ("redis://%68", BAD_HOST),
        ("redis://[h]", BAD_HOST),
        ("redis://[]", BAD_HOST),
        ("redis://h:", BAD_PORT),
        ("redis://h:0", BAD_PORT),
        ("redis://h:99999", BAD_PORT),
        ("redis://h:٣", BAD_PORT),
        ("redis://a:1,b:2", SEVERAL_HOSTS),
        ("redis://h/abc", BAD_PATH),
        ("redis://h/-1", BAD_PATH),
        ("redis://h/1/", BAD_PATH),
        ("redis://h/٣", BAD_PATH),
        (f"redis://h/{'9' * 5000}", "db must be a whole number, 0 or more"),
        ("redis://h#x", BAD_DELIMITER),
        ("redis://:p#q@h", BAD_DELIMITER),
        ("redis://:p/q@h", BAD_DELIMITER),
        ("redis://:p?db=q@h", BAD_DELIMITER),
        ("redis://a b", "spaces and unprintable characters must be percent-encoded"),
        ("redis://a\nb", "spaces and unprintable characters must be percent-encoded"),
        ("redis://:%ff@h", "what is percent-encoded must be UTF-8"),
        ("unix://", BAD_SOCKET),
        ("unix:///", BAD_SOCKET),
        ("unix://tmp/x.sock", BAD_SOCKET),
        ("unix://u:p@h/x.sock", BAD_SOCKET),
        ("unix:///x%00.sock", BAD_SOCKET),
        ("redis://h?db", "options must be written name=value and joined by '&'"),
        ("redis://h?db=1&&protocol=2", "options must be written name=value and joined by '&'"),
    ],
)
def test_url_raises_config_error_when_invalid(url, reason):
    assert f"redis.url: {reason}" == problems(url)


def cluster(*nodes, **options):
    return RedisConfig(topology="cluster", nodes=nodes, **options)


def sentinel(*nodes, **options):
    return RedisConfig(topology="sentinel", nodes=nodes, service="main", **options)


@pytest.mark.parametrize(
    ("url", "config"),
    [
        ("redis+cluster://h", cluster(("h", 6379))),
        ("VALKEY+Cluster://h:7/", cluster(("h", 7))),
        ("redis+cluster://a:1,b", cluster(("a", 1), ("b", 6379))),
        ("redis+cluster://[::1],[0::2]:9,1.2.3.4:5", cluster(("::1", 6379), ("::2", 9), ("1.2.3.4", 5))),
        ("redis+cluster://a:1,a:1,a", cluster(("a", 1), ("a", 6379))),
        ("rediss+cluster://h/0", cluster(("h", 6379), tls=True)),
        (
            "valkeys+cluster://u:p,q@a,b/3",
            cluster(("a", 6379), ("b", 6379), tls=True, username="u", password="p,q", db=3),
        ),
        ("redis+cluster://h?db=1&timeout=1s", cluster(("h", 6379), db=1, timeout=1.0)),
        ("redis+sentinel://h/main", sentinel(("h", 26379))),
        ("valkey+sentinel://a:1,[::1]/main/2", sentinel(("a", 1), ("::1", 26379), db=2)),
        ("rediss+sentinel://:p@h/main", sentinel(("h", 26379), tls=True, password="p")),
        ("valkeys+sentinel://h/main?db=4", sentinel(("h", 26379), tls=True, db=4)),
        ("redis+sentinel://h/main?sentinel_password=s", sentinel(("h", 26379), sentinel_password="s")),
    ],
)
def test_url_sets_topology_nodes_and_service(url, config):
    assert config == read(url)


def test_service_in_url_may_be_a_number_before_a_database():
    assert ("1", 0) == (read("redis+sentinel://h/1/0").service, read("redis+sentinel://h/1/0").db)
    assert "My-main_1.a" == read("redis+sentinel://h/My-main_1.a").service


HOSTS = st.from_regex(r"[a-z0-9-]{1,5}(\.[a-z0-9]{1,5}){0,2}", fullmatch=True) | st.ip_addresses().map(str)
NODES = st.lists(st.tuples(HOSTS, st.none() | st.integers(1, 65_535)), min_size=1, max_size=4)


@given(
    NODES, st.sampled_from(["", "rediss+", "valkeys+"]), st.none() | st.text(min_size=1, max_size=5), st.integers(0, 9)
)
def test_url_of_any_nodes_is_read_as_these_nodes(nodes, tls, password, db):
    shown = [(f"[{host}]" if ":" in host else host, port) for host, port in nodes]
    places = ",".join(host if port is None else f"{host}:{port}" for host, port in shown)
    place = places if password is None else f":{quote(password, safe='')}@{places}"
    for config, default in (
        (read(f"{tls or 'redis+'}cluster://{place}/{db}"), 6379),
        (read(f"{tls or 'valkey+'}sentinel://{place}/main/{db}"), 26379),
    ):
        assert tuple(dict.fromkeys((host, port or default) for host, port in nodes)) == config.nodes
        assert (db, bool(tls), None if default == 6379 else "main") == (config.db, config.tls, config.service)
        # Blank text counts as not given.
        assert (password if password and password.strip() else None) == config.password


@pytest.mark.parametrize(
    "authority",
    [
        f":{SECRET}@a:1,:{SECRET}@b:2",
        f"u:{SECRET}@a,u:{SECRET}@b",
        f"a,u:{SECRET}@b",
        f"u:{SECRET}@a,u@b",
        f"u:p@{SECRET}@a",
        f"{SECRET}@a,@b",
    ],
)
@pytest.mark.parametrize(
    ("scheme", "path", "expected"),
    [("redis+cluster", "", EXPECTED_CLUSTER), ("redis+sentinel", "/main", EXPECTED_SENTINEL)],
)
def test_url_raises_config_error_when_hosts_each_have_a_password(authority, scheme, path, expected):
    reason = f"user name and password come once, before the first host, percent-encoded: {expected}"
    url = f"{scheme}://{authority}{path}"

    assert f"redis.url: {reason}" == problems(url)
    with pytest.raises(ConfigurationError) as caught:
        MonitoredConnectionPool.from_url(url)
    assert f"url: {reason}" == str(caught.value)


def test_url_of_nodes_takes_percent_encoded_delimiters_in_user_and_password():
    config = read("redis+cluster://u%2C%40:p%40a,q@a,b")
    assert ("u,@", "p@a,q", (("a", 6379), ("b", 6379))) == (config.username, config.password, config.nodes)


NO_NODE = f"no host: {EXPECTED_CLUSTER}"
NO_SERVICE = f"no service after the hosts: {EXPECTED_SENTINEL}"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        *((f"redis+cluster://{hosts}", NO_NODE) for hosts in ("", ":1", "u:p@", ",", "a,", ",a", "a,,b", "a,:1")),
        *((f"redis+cluster://{hosts}", BAD_IPV6) for hosts in ("::1", "a,::1:7000", "a:1,2001:db8::1,b")),
        *((f"redis+cluster://{hosts}", BAD_HOST) for hosts in ("a,.b", "[h]", "a;b", "a,b..c,.d", "%68", "*")),
        *(
            (f"redis+cluster://{hosts}", BAD_PORT)
            for hosts in ("h:", "h:0", "a,b:65536", "a:1;b:2", "a:x,b:y,c", "a:1:2")
        ),
        *((f"redis+cluster://h/{path}", BAD_CLUSTER_PATH) for path in ("main", "-1", "0/", "/0", "0/1", "x/0", "٣")),
        ("rediss+cluster://h/x", BAD_CLUSTER_PATH.replace("redis+", "rediss+")),
        ("redis+cluster://a,b/1?db=1", "db is given twice"),
        ("redis+cluster://:p#q@a,b", BAD_DELIMITER),
        ("redis+cluster://h?host=a", "unknown option"),
        ("redis+sentinel:///main", f"no host: {EXPECTED_SENTINEL}"),
        ("redis+sentinel://a,,b/main", f"no host: {EXPECTED_SENTINEL}"),
        *((f"redis+sentinel://a:26379,b{path}", NO_SERVICE) for path in ("", "/", "/0", "/15")),
        *(
            (f"redis+sentinel://h/{path}", BAD_SERVICE)
            for path in ("a%20b", "ä", "a:b", "main/x", "main/", "/main", "a/0/1")
        ),
        ("redis+sentinel://h/main/-1", BAD_SERVICE),
        ("redis+sentinel://h?service=main", NO_SERVICE + "\nredis.url: unknown option"),
    ],
)
def test_topology_url_raises_config_error_when_invalid(url, reason):
    assert f"redis.url: {reason}" == problems(url)


@pytest.mark.parametrize(
    ("url", "form"),
    [
        (f"redis-sentinel://{SECRET}@a:1,b:2?sentinelMasterId={SECRET}", EXPECTED_SENTINEL),
        (f"redis-sentinel://a:1,b:2/0#{SECRET}", EXPECTED_SENTINEL),
        (f"sentinel://:{SECRET}@a:1;sentinel://:{SECRET}@b:2", EXPECTED_SENTINEL),
        ("rediss-sentinel://a:1#main", EXPECTED_SENTINEL.replace("redis+", "rediss+")),
        ("redis+sentinel+ssl://a", EXPECTED_SENTINEL.replace("redis+", "rediss+")),
        ("redis+tls://h", EXPECTED.replace("redis:", "rediss:")),
        ("rediss+ssl://h", EXPECTED.replace("redis:", "rediss:")),
        ("valkey-tls://h", EXPECTED.replace("redis:", "rediss:")),
        ("tls://h", EXPECTED.replace("redis:", "rediss:")),
        ("redis+cluster+tls://a", EXPECTED_CLUSTER.replace("redis+", "rediss+")),
        ("redis-cluster://a:1,b:2", EXPECTED_CLUSTER),
        ("cluster://a", EXPECTED_CLUSTER),
        ("async+redis+cluster://a", EXPECTED_CLUSTER),
        ("unix+cluster://a", EXPECTED_CLUSTER),
        ("rediss-cluster://a", EXPECTED_CLUSTER.replace("redis+", "rediss+")),
        ("valkeys-cluster://a", EXPECTED_CLUSTER.replace("redis+", "rediss+")),
    ],
)
def test_url_form_of_another_client_is_refused_with_the_right_form(url, form):
    assert f"redis.url: unknown scheme '{url.partition(':')[0]}': {form}" == problems(url)


SERVERS = "redis.url names the servers: redis://host, redis+cluster://host,host2 or redis+sentinel://host,host2/service"


@pytest.mark.parametrize("name", ["addr", "master_name", "master_set", "sentinelMasterId", "service_name"])
def test_url_option_of_another_client_for_servers_is_refused_with_the_right_form(name):
    assert f"redis.url: unknown option; {SERVERS}" == problems(f"redis://h:1?{name}={SECRET}")


def test_url_raises_config_error_when_missing():
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping({}, "redis.")

    assert (("redis.url", NO_URL),) == caught.value.problems


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("redis.cache.", f"under the prefix 'redis.cache.' (in the environment: REDIS_CACHE_URL, {IN_FRONT})"),
        (
            "redis.rate_limit.",
            f"under the prefix 'redis.rate_limit.' (in the environment: REDIS_RATE_LIMIT_URL, {IN_FRONT})",
        ),
        # No variable leads to these.
        ("redis.a.b.", "under the prefix 'redis.a.b.'"),
        ("shop.redis.", "under the prefix 'shop.redis.'"),
        ("", "under the prefix ''"),
    ],
)
def test_missing_url_error_names_key_and_environment_variable(prefix, message):
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping({}, prefix)

    assert f"{prefix}url: no value specified {message}" == str(caught.value)


def test_missing_url_error_mentions_the_prefix_of_config_from_env():
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping(config_from_env({"REDIS_URL": "redis://h"}, "APP_"), "redis.")

    assert str(caught.value).endswith("(in the environment: REDIS_URL, " + IN_FRONT + ")")


def test_missing_url_error_lists_urls_of_other_pools():
    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping(config_from_env({"REDIS_TLS_URL": f"rediss://:{SECRET}@h"}), "redis.")
    assert f"redis.url: {NO_URL}; of other pools there are: redis.tls.url" == str(caught.value)

    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping({f"redis.{pool}.url": "redis://h" for pool in "dbca"} | {"redis.a.db": 1}, "redis.")
    assert f"redis.url: {NO_URL}; of other pools there are: redis.a.url, redis.b.url, redis.c.url" == str(caught.value)


# --- Options ---


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_connections", "10", 10),
        ("max_connections", 1, 1),
        ("timeout", "200 milliseconds", 0.2),
        ("timeout", 0, 0.0),
        ("multiplex", "false", False),
        ("retries", "0", 0),
        ("retry_backoff", "5 ms", 0.005),
        ("socket_timeout", "5", 5.0),
        ("socket_timeout", 0.5, 0.5),
        ("socket_connect_timeout", timedelta(minutes=1), 60.0),
        ("health_check_interval", "0", 0.0),
        ("health_check_interval", "1 min", 60.0),
        ("socket_keepalive", False, False),
        ("socket_keepalive", " TRUE ", True),
        ("decode_responses", "yes", True),
        ("decode_responses", "On", True),
        ("decode_responses", "1", True),
        ("decode_responses", "false", False),
        ("decode_responses", "No", False),
        ("decode_responses", "off", False),
        ("decode_responses", "0", False),
        ("client_name", "cart-1", "cart-1"),
        ("username", "ann", "ann"),
        ("password", " p\n", " p\n"),
        ("db", " 3 ", 3),
        ("db", 99, 99),
        ("protocol", "2", 2),
        ("protocol", 3, 3),
    ],
)
def test_config_converts_text_and_accepts_typed_values(key, value, expected):
    assert expected == getattr(read(**{key: value}), key)
    assert type(expected) is type(getattr(read(**{key: value}), key))


WRONG = [
    ("max_connections", "must be a whole number, 1 or more", ["0", 0, -1, "-1", "x", "٣", 1.0, True]),
    ("db", "must be a whole number, 0 or more", ["-1", -1, "1.0", "1_0", False, "9" * 5000]),
    ("timeout", TIMESPAN, ["5 parsecs", "-1", -1, "abc", True, float("nan")]),
    ("health_check_interval", TIMESPAN, ["-1", "often"]),
    ("multiplex", SWITCH, ["maybe", 1]),
    ("retries", "must be a whole number, 0 or more", ["-1", 1.0, True]),
    ("retry_backoff", f"{TIMESPAN} and more than 0", ["0", "-1"]),
    ("socket_timeout", f"{TIMESPAN} and more than 0", ["0", 0, "0 ms", "-1", True]),
    ("socket_connect_timeout", f"{TIMESPAN} and more than 0", ["0", "x"]),
    ("socket_keepalive", SWITCH, ["maybe", 1, 0, "2"]),
    ("decode_responses", SWITCH, ["t", 1.0]),
    ("client_name", "must be printable ASCII without spaces", ["a b", "a\n", "ü", "\x00", 5]),
    ("username", "must be text", [5, True, "\udcff"]),
    ("password", "must be text", [5, b"p", "p\udcffq"]),
    ("password_file", BAD_PASSWORD_FILE, ["/no", "/", 5]),
    ("protocol", "must be 2 or 3", ["1", 4, "RESP3", 2.0, True]),
    ("ssl_cert_reqs", "must be required, optional or none", ["never", "CERT_", 0, True, False, 0.0]),
    ("ssl_check_hostname", SWITCH, ["never", 0]),
    ("ssl_ca_certs", BAD_AUTHORITIES, ["/no/such.pem", "/", "\0", "\ud800", "x" * 5000, 5, __file__, os.devnull]),
    ("ssl_certfile", BAD_FILE, ["/no/such.pem", "/", "\0", "\ud800", 5]),
    ("ssl_certfile", BAD_PAIR, [__file__]),
    ("ssl_min_version", "must be TLSv1.2 or TLSv1.3", ["1.1", "TLSv1", "SSLv3", 771, True]),
]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [(key, value, reason) for key, reason, values in WRONG for value in values],
    ids=short_repr,
)
def test_config_value_raises_config_error_when_invalid(key, value, reason):
    assert f"redis.{key}: {reason}" == problems("rediss://h", **{key: value})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sentinel_username", "ann", "ann"),
        ("sentinel_password", " p\n", " p\n"),
        ("read_from", " Replica ", "replica"),
        ("read_from", "primary", "primary"),
        ("address_map", "a:1=b:2", AddressMap(frozenset({(("a", 1), ("b", 2))}))),
        ("address_map", {"a:1": "b:2"}, AddressMap.read("a:1=b:2")),
        ("address_map", AddressMap.read("a:1=b:2"), AddressMap.read("a:1=b:2")),
    ],
)
def test_sentinel_config_converts_text_and_accepts_typed_values(key, value, expected):
    assert expected == getattr(read("redis+sentinel://h/main", **{key: value}), key)


@pytest.mark.parametrize(("value", "expected"), [("0", 0.0), ("2 min", 120.0), (timedelta(seconds=5), 5.0), (0.5, 0.5)])
def test_cluster_config_reads_topology_refresh_as_timespan(value, expected):
    assert expected == read("redis+cluster://h", topology_refresh=value).topology_refresh


@pytest.mark.parametrize(
    ("url", "key", "value", "reason"),
    [
        ("redis+sentinel://h/main", "sentinel_username", 5, "must be text"),
        ("redis+sentinel://h/main", "sentinel_password", b"p", "must be text"),
        ("redis+sentinel://h/main", "sentinel_password_file", "/no", BAD_PASSWORD_FILE),
        *(
            ("redis+cluster://h", "read_from", value, "must be primary or replica")
            for value in ("slave", "any", True, 1)
        ),
        *(("redis+cluster://h", "topology_refresh", value, TIMESPAN) for value in ("-1", "never", True)),
        *(
            ("redis+cluster://h", "address_map", value, ADDRESS_PAIRS)
            for value in ("a", {}, {"a:1": 2}, 5, ["a:1=b:2"])
        ),
    ],
)
def test_topology_config_value_raises_config_error_when_invalid(url, key, value, reason):
    assert f"redis.{key}: {reason}" == problems(url, **{key: value})


SHARE = "must be 0, or a number from 0.000001 to 1"
COMMANDS = "must be names of commands, joined by commas"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("require_parent", "yes", True),
        ("include_commands", "get, config  get", {"GET", "CONFIG GET"}),
        ("include_commands", ["get"], {"GET"}),
        ("exclude_commands", "PING", {"PING"}),
        ("slow_only", "5 ms", 0.005),
        ("slow_only", 0, 0.0),
        ("keep", "0.01", 0.01),
        ("keep", 1, 1.0),
        ("keep", "0", 0.0),
        ("show_keys", "off", False),
        ("repeated_calls", "7", 7),
        ("hot_keys", 0.5, 0.5),
        ("direct", "false", False),
    ],
)
def test_telemetry_keys_replace_what_the_application_has_chosen(key, value, expected):
    chosen = TelemetryOptions(require_parent=False, exclude_commands={"GET"}, slow_only=1, keep=0.5, repeated_calls=3)
    config = read("redis://h", **{f"telemetry_{key}": value})

    assert expected == getattr(config, f"telemetry_{key}")
    assert replace(chosen, **{key: expected}) == config.pool_arguments(chosen)["telemetry"]
    assert replace(TelemetryOptions(), **{key: expected}) == config.pool_arguments()["telemetry"]
    assert chosen == read("redis://h").pool_arguments(chosen)["telemetry"]
    assert "telemetry" not in read("redis://h").pool_arguments()


@pytest.mark.parametrize(
    ("key", "reason", "values"),
    [
        ("require_parent", SWITCH, ["maybe", 2]),
        ("include_commands", COMMANDS, ["GET,,SET", ",", 5, [5], []]),
        ("exclude_commands", COMMANDS, ["GET,", {"": 1}]),
        ("slow_only", TIMESPAN, ["-1", "soon"]),
        ("keep", SHARE, ["1.01", "-0.1", "nan", "1 %", True, 0.000_000_1]),
        ("show_keys", SWITCH, ["keys"]),
        ("repeated_calls", "must be a whole number, 1 or more", ["0", "-1", 1.5]),
        ("hot_keys", SHARE, ["2"]),
        ("direct", SWITCH, ["indirect"]),
    ],
)
def test_telemetry_key_raises_config_error_when_invalid(key, reason, values):
    for value in values:
        assert f"redis.telemetry_{key}: {reason}" == problems("redis://h", **{f"telemetry_{key}": value})


def test_telemetry_keys_that_do_not_go_together_are_named():
    keys = {"redis.url": "redis://h", "redis.telemetry_hot_keys": "0.5", "redis.telemetry_show_keys": "false"}
    reason = r"^redis\.telemetry_hot_keys: shows keys, which show_keys=False hides; set it to 0, or give"
    hides = {name: value for name, value in keys.items() if "hot_keys" not in name}
    counts = {name: value for name, value in keys.items() if "show_keys" not in name}
    for config, telemetry in (
        (keys, None),
        (hides, TelemetryOptions(hot_keys=0.5)),
        (counts, TelemetryOptions(show_keys=False)),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            pool_from_config(config, telemetry=telemetry)
    with pytest.raises(TypeError, match="telemetry must be TelemetryOptions, got dict"):
        pool_from_config(keys, telemetry={"keep": 0.5})


def test_telemetry_keys_are_neither_in_urls_nor_arguments_of_pools():
    assert "redis.url: unknown option" in problems("redis://h?telemetry_keep=0.5")
    assert "redis.telemetry_kep: unknown key; did you mean telemetry_keep?" == problems("redis://h", telemetry_kep=1)
    with pytest.raises(ConfigurationError, match="unknown option"):
        MonitoredConnectionPool.from_url("redis://h?telemetry_keep=0.5")
    with pytest.raises(TypeError, match="telemetry_keep"):
        MonitoredConnectionPool(telemetry_keep=0.5)


def test_environment_gives_telemetry_keys_of_every_pool():
    environ = {"REDIS_TELEMETRY_KEEP": "0.1", "REDIS_CACHE_TELEMETRY_SLOW_ONLY": "1 s", "REDIS_TELEMETRY_URL": "u"}

    assert {
        "redis.telemetry_keep": "0.1",
        "redis.cache.telemetry_slow_only": "1 s",
        "redis.telemetry.url": "u",
    } == config_from_env(environ)


ANY_TOPOLOGY = "needs redis+cluster:// or redis+sentinel://"


@pytest.mark.parametrize(
    ("url", "key", "reason"),
    [
        ("redis://h", "sentinel_username", "needs redis+sentinel://"),
        ("redis+cluster://h", "sentinel_password", "needs redis+sentinel://"),
        ("rediss://h", "sentinel_password", "needs rediss+sentinel://"),
        ("redis://h", "read_from", ANY_TOPOLOGY),
        ("unix:///s", "read_from", ANY_TOPOLOGY),
        ("redis://h", "address_map", ANY_TOPOLOGY),
        ("redis://h", "topology_refresh", "needs redis+cluster://"),
        ("redis+sentinel://h/main", "topology_refresh", "needs redis+cluster://"),
    ],
)
def test_key_raises_config_error_for_a_topology_to_which_it_does_not_apply(url, key, reason):
    value = {"read_from": "primary", "topology_refresh": "0", "address_map": "a:1=b:1"}.get(key, "x")

    assert f"redis.{key}: {reason}" == problems(url, **{key: value})
    assert f"redis.url: {key} {reason}" == problems(f"{url}?{key}={value}")


def test_key_of_a_topology_is_not_reported_beside_an_unknown_scheme():
    assert f"redis.url: unknown scheme 'sentinel': {EXPECTED_SENTINEL}" == problems("sentinel://h", read_from="replica")


def test_tls_key_names_the_scheme_of_its_topology():
    for url in ("redis+cluster://h", "redis+sentinel://h/main"):
        expected = f"redis.ssl_check_hostname: needs {url.partition('h')[0].replace('redis', 'rediss')}"
        assert expected == problems(url, ssl_check_hostname=False)
        assert not read(url.replace("redis", "rediss"), ssl_check_hostname=False).ssl_check_hostname


@pytest.mark.parametrize("value", ["", "  ", None])
def test_blank_config_value_counts_as_missing(value):
    keys = {each.name: value for each in fields(RedisConfig) if each.name not in PLACE}

    assert RedisConfig(host="h") == read(**keys)
    assert RedisConfig(host="h") == read("redis://h?db=&socket_timeout=%20")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("max_conections", "unknown key; did you mean max_connections?"),
        ("URL", "unknown key; did you mean url?"),
        ("pasword_file", "unknown key; did you mean password_file?"),
        ("pipelined", "unknown key"),
        ("ssl", "unknown key; rediss:// in redis.url encrypts, redis:// does not"),
        ("use_tls", "unknown key; rediss:// in redis.url encrypts, redis:// does not"),
        ("retry_on_timeout", "unknown key; redis.retries is how often a command that did not run is tried again"),
        ("sentinel_nodes", f"unknown key; {SERVERS}"),
        ("read_from_replicas", "unknown key; did you mean read_from?"),
        ("host", "unknown key"),
        ("", "unknown key"),
    ],
)
@pytest.mark.parametrize("value", ["", 1, SECRET])
def test_unknown_config_key_raises_with_suggestion(key, reason, value):
    assert f"redis.{key}: {reason}" == problems(**{key: value})


def test_config_ignores_other_pools_and_unrelated_keys():
    others = {"redis.cache.url": "nonsense", "redis.cache.bogus": 1, "redisx": 1, "debug": True, 5: 1, None: 1}

    assert RedisConfig(host="h") == RedisConfig.from_mapping(others | {"redis.url": "redis://h"}, "redis.")


def test_config_prefix_may_name_a_pool_or_be_empty():
    config = {"redis.url": "redis://a", "redis.cache.url": "redis://b", "url": "redis://c"}

    assert RedisConfig(host="b") == RedisConfig.from_mapping(config, "redis.cache.")
    assert RedisConfig(host="c") == RedisConfig.from_mapping(config, "")


def test_config_error_lists_all_problems_together():
    assert (
        problems("redis://h:0/x?bogus=1&protocol=4", max_conections=1, timeout="x", ssl_check_hostname=True)
        == f"""\
redis.url: {BAD_PORT}
redis.url: {BAD_PATH}
redis.url: unknown option
redis.url: protocol must be 2 or 3
redis.max_conections: unknown key; did you mean max_connections?
redis.timeout: {TIMESPAN}
redis.ssl_check_hostname: needs rediss://"""
    )


# --- Options in the URL ---


def test_url_query_accepts_the_same_options_as_keys():
    expected = RedisConfig(host="h", db=1, timeout=0.2, client_name="a/b", password="p q", socket_keepalive=False)

    assert expected == read("redis://h?db=1&timeout=200+ms&client_name=a/b&password=p%20q&socket_keepalive=no")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("max_conections=1", "unknown option; did you mean max_connections?"),
        ("bogus=1", "unknown option"),
        ("bogus=", "unknown option"),
        ("url=redis://h", "unknown option"),
        ("password_file=/etc/hostname", "unknown option; did you mean password?"),
        ("ssl=true", "unknown option; rediss:// in redis.url encrypts, redis:// does not"),
        ("retry_on_error=1", "unknown option; redis.retries is how often a command that did not run is tried again"),
        ("db=1&db=1", "db is given twice"),
        ("db=&db=1", "db is given twice"),
        ("db=x", "db must be a whole number, 0 or more"),
        ("socket_timeout=0", f"socket_timeout {TIMESPAN} and more than 0"),
        ("ssl_min_version=1.3", "ssl_min_version needs rediss://"),
    ],
)
def test_url_query_options_raise_config_error_when_invalid(query, reason):
    assert f"redis.url: {reason}" == problems(f"redis://h?{query}")


@pytest.mark.parametrize("url", ["redis://h/1?db=1", "redis://u@h?username=u", "redis://:p@h?password=p"])
def test_url_option_raises_config_error_when_given_twice(url):
    assert "is given twice" in problems(url)


def test_url_and_key_may_agree():
    url = "redis://u:p@h/1?timeout=200ms&decode_responses=on"
    expected = RedisConfig(host="h", username="u", password="p", db=1, timeout=0.2, decode_responses=True)

    assert expected == read(url, username="u", password="p", db=1, timeout="0.2", decode_responses=True)


def test_url_and_key_raise_config_error_when_different():
    reason = "differs from the one in redis.url"

    assert (
        problems(f"redis://{SECRET}1:{SECRET}2@h/1", username=f"{SECRET}3", password=f"{SECRET}4", db=0)
        == f"redis.username: {reason}\nredis.password: {reason}\nredis.db: {reason}"
    )


# --- Files and TLS ---


PASSPHRASE = "let me in"


def encrypted(pem, style):
    key = serialization.load_pem_private_key(pem.bytes(), None)
    encryption = serialization.BestAvailableEncryption(PASSPHRASE.encode())
    return trustme.Blob(key.private_bytes(serialization.Encoding.PEM, style, encryption))


@pytest.fixture(scope="module", name="pem")
def _pem(tmp_path_factory):
    """Return paths of PEM files: an authority's, a client's certificate and key, and keys that do not match it."""
    authority = trustme.CA()
    client, other = (authority.issue_cert(f"{name}@example.org") for name in ("client", "other"))
    [certificate] = client.cert_chain_pems
    blobs = {
        "authority": authority.cert_pem,
        "certificate": certificate,
        "key": client.private_key_pem,
        "both": client.private_key_and_cert_chain_pem,
        "other_key": other.private_key_pem,
        "encrypted_key": encrypted(client.private_key_pem, serialization.PrivateFormat.PKCS8),
        "old_encrypted_key": encrypted(client.private_key_pem, serialization.PrivateFormat.TraditionalOpenSSL),
        "garbage": trustme.Blob(certificate.bytes()[:99]),
    }
    folder = tmp_path_factory.mktemp("pem")
    for name, blob in blobs.items():
        blob.write_to_path(folder / name)
    return SimpleNamespace(**{name: str(folder / name) for name in blobs})


@pytest.fixture
def password_file(tmp_path):
    path = tmp_path / "password"
    path.write_text(SECRET)
    return path


def test_config_keeps_path_of_password_file_and_not_the_password(password_file):
    config = read("redis://u@h", password_file=password_file)

    assert RedisConfig(host="h", username="u", password_file=str(password_file)) == config
    assert SECRET not in f"{config} {config.pool_arguments()}"


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy])
def test_copied_password_path_is_plain_text_without_the_password(password_file, pem, copy):
    config = read("rediss://h", password_file=password_file, ssl_ca_certs=pem.authority)

    for path in (config.password_file, config.ssl_ca_certs):
        assert (str, path) == (type(copy(path)), copy(path))
    assert SECRET.encode() not in pickle.dumps(config)


def count_reads(monkeypatch):
    """Record the files that are read for their certificates or contents, in order."""
    read_files, load, read_bytes = [], ssl.SSLContext.load_verify_locations, Path.read_bytes

    def loading(context, path):
        read_files.append(path)
        load(context, path)

    def reading(path):
        read_files.append(str(path))
        return read_bytes(path)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loading)
    monkeypatch.setattr(Path, "read_bytes", reading)
    return read_files


def test_pool_configuration_reads_each_file_once(password_file, pem, monkeypatch):
    paths = {"ssl_ca_certs": pem.authority, "password_file": str(password_file)}
    read_files = count_reads(monkeypatch)

    pool_from_config({"redis.url": "rediss://h"} | {f"redis.{name}": path for name, path in paths.items()})
    assert sorted(paths.values()) == sorted(read_files)

    read_files.clear()
    MonitoredConnectionPool(connection_class=SSLConnection, **paths)
    assert sorted(paths.values()) == sorted(read_files)


def test_checked_path_is_checked_again_for_another_use(pem, password_file):
    config = read("rediss://h", ssl_certfile=pem.both, password_file=password_file, ssl_ca_certs=pem.authority)

    with pytest.raises(ConfigurationError, match=BAD_AUTHORITIES):
        MonitoredConnectionPool(connection_class=SSLConnection, ssl_ca_certs=config.password_file)
    with pytest.raises(ConfigurationError, match=BAD_PASSWORD_FILE):
        password_file.write_bytes(b"")
        MonitoredConnectionPool(password_file=RedisConfig(password_file=str(password_file)).password_file)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\r\n", b"\xff", b"\xef\xbb\xbfp", b"\xef\xbb\xbf", b"p\0", b"p\0q\n", "p".encode("utf-16")],
    ids=repr,
)
def test_password_file_raises_config_error_without_usable_password(password_file, content):
    password_file.write_bytes(content)

    assert f"redis.password_file: {BAD_PASSWORD_FILE}" == problems(password_file=password_file)


def test_password_and_password_file_raise_config_error_together(password_file):
    both = "redis.password_file: cannot be given together with the password in redis"
    assert f"{both}.password" == problems(password="p", password_file=password_file)
    # Not even if both are equal: the next password will be only in the file.
    for url in (f"redis://:{SECRET}@h", "redis://:p@h", "redis://h?password=p"):
        assert f"{both}.url" == problems(url, password_file=password_file)


def test_sentinel_password_and_its_file_raise_config_error_together(password_file):
    url, both = "redis+sentinel://h/main", "sentinel_password_file: cannot be given together with"
    keys = {"sentinel_password": "p", "sentinel_password_file": password_file}
    assert f"redis.{both} the password in redis.sentinel_password" == problems(url, **keys)
    assert f"redis.{both} the password in redis.url" == problems(
        f"{url}?sentinel_password={SECRET}", sentinel_password_file=password_file
    )
    with pytest.raises(ConfigurationError) as caught:
        validate_arguments(keys)
    assert f"{both} sentinel_password" == str(caught.value)


def test_data_servers_and_sentinels_may_have_different_kinds_of_passwords(password_file):
    config = read("redis+sentinel://u:p@h/main", sentinel_password_file=password_file, sentinel_username="s")

    assert ("u", "p", "s") == (config.username, config.password, config.sentinel_username)
    assert str(password_file) == config.sentinel_password_file


def test_sentinel_password_file_raises_config_error_in_url(password_file):
    url = f"redis+sentinel://h/main?sentinel_password_file={quote(str(password_file))}"
    assert problems(url).startswith("redis.url: unknown option")


def test_sentinel_password_argument_replaces_the_configured_one_alone():
    configured = {"password": "p", "sentinel_username": "s", "sentinel_password": "q"}
    given = {"sentinel_password_file": "/f"}

    assert {"password": "p", "sentinel_username": "s"} | given == override(configured, given)
    assert {"sentinel_username": "s", "sentinel_password": "q", "password": "r"} == override(
        configured, {"password": "r"}
    )


@pytest.mark.parametrize("other", [{"password": "p"}, {"credential_provider": object()}], ids=["password", "provider"])
def test_password_file_argument_raises_beside_another_credential_argument(password_file, other):
    with pytest.raises(ConfigurationError) as caught:
        validate_arguments({"password_file": password_file} | other)

    assert f"password_file: cannot be given together with {next(iter(other))}" == str(caught.value)


@pytest.mark.parametrize("given", [{"password": "p"}, {"password_file": "/p"}, {"credential_provider": object()}])
@pytest.mark.parametrize("configured", [{"username": "u", "password": "q"}, {"username": "u", "password_file": "/q"}])
def test_credential_argument_replaces_the_configured_password(configured, given):
    username = {} if "credential_provider" in given else {"username": "u"}

    assert {"host": "h"} | username | given == override({"host": "h"} | configured, given)
    assert configured | {"credential_provider": None} == override(configured, {"credential_provider": None})


@pytest.mark.parametrize("value", ["TLSv1.2", "tlsv1.2", "1.2", 1.2, ssl.TLSVersion.TLSv1_2], ids=short_repr)
def test_tls_keys_set_certificates_verification_and_version(pem, value):
    config = read(
        "rediss://h",
        ssl_ca_certs=pem.authority,
        ssl_certfile=pem.certificate,
        ssl_keyfile=Path(pem.key),
        ssl_cert_reqs="required",
        ssl_check_hostname="no",
        ssl_min_version=value,
    )

    assert config == RedisConfig(
        host="h",
        tls=True,
        ssl_ca_certs=pem.authority,
        ssl_certfile=pem.certificate,
        ssl_keyfile=pem.key,
        ssl_cert_reqs=ssl.CERT_REQUIRED,
        ssl_check_hostname=False,
        ssl_min_version=ssl.TLSVersion.TLSv1_2,
    )
    assert ssl.TLSVersion.TLSv1_3 == read("rediss://h?ssl_min_version=TLSv1.3").ssl_min_version


@pytest.mark.parametrize("value", ["none", " None", "CERT_NONE", ssl.CERT_NONE], ids=repr)
def test_ssl_cert_reqs_accepts_none_and_optional(value):
    assert ssl.CERT_NONE is read("rediss://h", ssl_cert_reqs=value, ssl_check_hostname=False).ssl_cert_reqs
    assert ssl.CERT_NONE is read("rediss://h?ssl_cert_reqs=none").ssl_cert_reqs
    assert ssl.CERT_OPTIONAL is read("rediss://h?ssl_cert_reqs=optional").ssl_cert_reqs


def test_ssl_check_hostname_raises_config_error_without_certificate_check():
    reason = "needs a certificate, which ssl_cert_reqs=none does not ask for"
    keys = {"ssl_cert_reqs": "none", "ssl_check_hostname": True}

    assert f"redis.ssl_check_hostname: {reason}" == problems("rediss://h", **keys)
    assert f"redis.url: ssl_check_hostname {reason}" == problems(
        "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=true"
    )


def test_certificate_and_key_may_share_a_file(pem):
    expected = RedisConfig(host="h", tls=True, ssl_certfile=pem.both)
    assert expected == read("rediss://h", ssl_certfile=pem.both)


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        ("certificate", None),
        ("certificate", "other_key"),
        ("certificate", "certificate"),
        ("certificate", "garbage"),
        ("certificate", "encrypted_key"),
        ("certificate", "old_encrypted_key"),
        ("garbage", "key"),
        ("key", "key"),
    ],
)
def test_certificate_raises_config_error_without_its_key(pem, certificate, key):
    paths = {"ssl_certfile": vars(pem)[certificate], "ssl_keyfile": vars(pem).get(key)}
    assert f"redis.ssl_certfile: {BAD_PAIR}" == problems("rediss://h", **paths)


def test_encrypted_key_raises_config_error_without_passphrase_prompt(pem):
    keys = {"url": "rediss://h", "ssl_certfile": pem.certificate, "ssl_keyfile": pem.encrypted_key}
    code = f"from aioredis_monitored import RedisConfig; RedisConfig.from_mapping({keys}, '')"

    # Without a controlling terminal, OpenSSL would ask on stderr and read stdin.
    command = [sys.executable, "-c", code]
    child = subprocess.run(  # noqa: S603 - the Python that runs the tests
        command, input=PASSPHRASE, capture_output=True, check=False, text=True, start_new_session=True
    )

    assert 1 == child.returncode
    assert child.stderr.endswith(f"ConfigurationError: ssl_certfile: {BAD_PAIR}\n")
    assert "pass phrase" not in child.stderr


def test_ssl_ca_certs_raises_config_error_on_a_file_without_certificates(pem):
    assert f"redis.ssl_ca_certs: {BAD_AUTHORITIES}" == problems("rediss://h", ssl_ca_certs=pem.garbage)
    assert f"redis.ssl_ca_certs: {BAD_AUTHORITIES}" == problems("rediss://h", ssl_ca_certs=pem.key)


def test_key_raises_config_error_without_certificate(pem):
    reason = "needs ssl_certfile"
    assert f"redis.ssl_keyfile: {reason}" == problems("rediss://h", ssl_keyfile=pem.key)


def test_missing_key_file_is_reported_once(pem):
    paths = {"ssl_certfile": pem.certificate, "ssl_keyfile": "/no"}
    assert f"redis.ssl_keyfile: {BAD_FILE}" == problems("rediss://h", **paths)


@pytest.mark.parametrize("url", ["redis://h", "valkey://h", "unix:///run/redis.sock"])
def test_tls_keys_raise_config_error_without_tls_scheme(url, pem):
    reason = "needs rediss://"
    assert f"redis.ssl_ca_certs: {reason}" == problems(url, ssl_ca_certs=pem.authority)
    assert f"redis.ssl_certfile: {reason}" == problems(url, ssl_certfile=pem.both)


def test_bad_tls_file_is_reported_together_with_wrong_scheme(pem):
    # After a correction of the URL, the file would be the next error.
    authority, certificate, scheme = "redis.ssl_ca_certs", "redis.ssl_certfile", "needs rediss://"
    for path in ("/no", pem.garbage):
        assert f"{authority}: {BAD_AUTHORITIES}\n{authority}: {scheme}" == problems(ssl_ca_certs=path)
    assert f"{certificate}: {scheme}\n{certificate}: {BAD_PAIR}" == problems(ssl_certfile=pem.garbage)


def test_tls_keys_are_not_reported_beside_unknown_scheme():
    assert f"redis.url: unknown scheme 'http': {EXPECTED}" == problems("http://h", ssl_check_hostname=True)


@pytest.mark.parametrize("value", [True, "off"])
def test_socket_keepalive_raises_config_error_for_unix_sockets(value):
    reason = "does not apply to a Unix socket"
    assert f"redis.socket_keepalive: {reason}" == problems("unix:///x", socket_keepalive=value)
    assert f"redis.url: socket_keepalive {reason}" == problems(f"unix:///x?socket_keepalive={value}")


# --- Results ---


def test_pool_arguments_omit_options_that_are_not_configured():
    assert read("redis://h").pool_arguments() == {
        "connection_class": Connection,
        "host": "h",
        "port": 6379,
        "db": 0,
        "max_connections": 50,
        "timeout": 20.0,
    }
    assert read("rediss+cluster://a,b:1").pool_arguments() == {
        "connection_class": SSLConnection,
        "nodes": (("a", 6379), ("b", 1)),
        "db": 0,
        "max_connections": 50,
        "timeout": 20.0,
    }
    assert read("redis+sentinel://a:1/main", read_from="replica", sentinel_username="s").pool_arguments() == {
        "connection_class": Connection,
        "sentinels": (("a", 1),),
        "service": "main",
        "db": 0,
        "max_connections": 50,
        "timeout": 20.0,
        "sentinel_username": "s",
        "read_from": "replica",
    }
    assert read("unix:///x", username="u", password="p", decode_responses=False).pool_arguments() == {
        "connection_class": UnixDomainSocketConnection,
        "path": "/x",
        "username": "u",
        "password": "p",
        "db": 0,
        "max_connections": 50,
        "timeout": 20.0,
        "decode_responses": False,
    }


@pytest.mark.parametrize(
    ("url", "connection_class"),
    [("redis://h", Connection), ("rediss://h", SSLConnection), ("unix:///x", UnixDomainSocketConnection)],
)
def test_pool_arguments_are_accepted_by_redis_py_connections(url, connection_class, pem):
    keys = dict.fromkeys(("socket_timeout", "socket_connect_timeout", "health_check_interval"), "1s")
    keys |= {"client_name": "n", "username": "u", "password": "p", "protocol": 2, "decode_responses": True}
    if connection_class is not UnixDomainSocketConnection:
        keys["socket_keepalive"] = True
    if connection_class is SSLConnection:
        keys |= {"ssl_ca_certs": pem.authority, "ssl_certfile": pem.certificate, "ssl_keyfile": pem.key}
        keys |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_min_version": "1.3"}

    pool = BlockingConnectionPool(**read(url, **keys).pool_arguments())

    assert connection_class is type(pool.make_connection())


def test_equal_configurations_compare_and_hash_equal():
    assert {read("redis://:p@h:6379/0")} == {read("valkey://h", password="p"), read("redis://h?password=p")}
    one, other = read("redis+cluster://a:6379,b", address_map="c:1=d:1,e:*=f:*"), read("redis+cluster://a,b:6379")
    assert {one} == {read("valkey+cluster://a,b", address_map={"e:*": "f:*", "c:1": "d:1"})}
    assert one != other


# --- Secrets ---

anything = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    [
        "",
        "u",
        ":",
        "@",
        "/",
        "?",
        "#",
        "%",
        "?db=",
        "?client_name=",
        "/1?timeout=",
        "1/0?x=1&",
        "[",
        "]",
        "host:1",
        "%40",
    ]
)
schemes = (
    st.sampled_from(["redis", "rediss", "unix", "valkey", "http", "redis+sentinel", "redis+cluster", "redis-sentinel"])
    | anything
)


@given(scheme=schemes, username=anything, before=anything, after=anything, rest=anything)
@example(scheme="redis", username="", before="", after="", rest="h")
@example(scheme="redis", username="", before="1?client_name=", after="", rest="h")
@example(scheme="unix", username="", before="", after="", rest="/run/redis.sock")
@example(scheme="redis+cluster", username="", before="", after="", rest="a,b")
@example(scheme="redis+sentinel", username="", before="", after="", rest="a,b/main")
def test_password_in_url_never_appears_in_repr_or_error(scheme, username, before, after, rest):
    try:
        shown = repr(read(f"{scheme}://{username}:{before}{SECRET}{after}@{rest}"))
    except ConfigurationError as error:
        shown = f"{error} {error!r} {error.problems}"

    assert SECRET not in shown


@given(url=anything | st.lists(anything).map("".join) | st.text().map("redis://{}".format))
def test_url_of_any_text_is_parsed_or_raises_config_error(url):
    try:
        config = read(url)
    except ConfigurationError:
        return
    assert isinstance(config.pool_arguments(), dict)


@pytest.mark.parametrize("key", [each.name for each in fields(RedisConfig)] + ["url", "bogus"])
def test_config_error_never_contains_values(key):
    keys = {"redis.url": "http://h", "redis.timeout": "x"} | {f"redis.{key}": f"redis://:{SECRET}@[h]"}

    with pytest.raises(ConfigurationError) as caught:
        RedisConfig.from_mapping(keys, "redis.")

    assert SECRET not in f"{caught.value} {caught.value!r}"
    assert SECRET not in repr(RedisConfig(password=SECRET, sentinel_password=SECRET))


SURROGATE = f"{SECRET}\udcff"  # os.environ makes this of a password in Latin-1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: read(password=SURROGATE), "redis.password: must be text"),
        (
            lambda: read(f"redis://:{SURROGATE}@h"),
            "redis.url: spaces and unprintable characters must be percent-encoded",
        ),
        (lambda: validate_arguments({"password": SURROGATE}), "password: must be text"),
    ],
)
def test_unencodable_password_raises_config_error_without_the_password(make, problem):
    with pytest.raises(ConfigurationError) as caught:
        make()

    assert problem == str(caught.value)
    # A UnicodeEncodeError, which contains the text, must not be attached.
    assert caught.value.__cause__ is caught.value.__context__ is None


# --- Keyword arguments ---


def test_validate_arguments_converts_values_like_configuration():
    read_as = validate_arguments({"socket_timeout": "200 ms", "timeout": timedelta(seconds=1), "max_connections": "5"})

    assert {"socket_timeout": 0.2, "timeout": 1.0, "max_connections": 5} == read_as


@pytest.mark.parametrize("arguments", [{"timeout": None, "password": None}, {"host": 5, "bogus": SECRET}, {}])
def test_validate_arguments_keeps_none_and_unknown_arguments(arguments):
    assert arguments == validate_arguments(arguments)
    assert arguments is not validate_arguments(arguments)


def test_validate_arguments_reports_all_problems_together():
    with pytest.raises(ConfigurationError) as caught:
        validate_arguments({"timeout": SECRET, "host": 5, "db": -1, "ssl_ca_certs": f"/no/{SECRET}", "protocol": 3})

    expected = {("timeout", TIMESPAN), ("db", "must be a whole number, 0 or more"), ("ssl_ca_certs", BAD_AUTHORITIES)}
    assert expected == set(caught.value.problems)
    assert len(expected) == len(caught.value.problems)
    assert SECRET not in f"{caught.value} {caught.value!r}"


def test_option_table_defaults_equal_those_of_the_pool():
    pool = MonitoredConnectionPool(connection_class=SSLConnection)
    connection, retry = pool.make_connection(), pool.get_retry()
    actual = {name: getattr(connection, name) for name in OPTIONS if hasattr(connection, name)}
    actual |= {"max_connections": pool.max_connections, "timeout": pool.timeout}
    # RESP3 with the types of RESP2, which no value gives.
    assert (3, None) == (actual.pop("protocol"), OPTIONS["protocol"].default)
    actual |= {"multiplex": pool.multiplexer is not None, "retries": retry.get_retries()}
    actual |= {"decode_responses": pool.decodes_replies, "ssl_ca_certs": connection.ca_certs}
    actual |= {"ssl_cert_reqs": connection.cert_reqs, "ssl_check_hostname": connection.check_hostname}

    expected = {
        name: None if option.default is None else option.read(option.default) for name, option in OPTIONS.items()
    }
    assert len(actual) > 15
    assert {name: expected[name] for name in actual} == actual


def test_redis_config_documents_every_field():
    documented = inspect.getdoc(RedisConfig).partition("Attributes:\n")[2].splitlines()

    assert [field.name for field in fields(RedisConfig)] == [line.strip().partition(":")[0] for line in documented]


# --- The environment ---


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("REDIS_URL", "redis.url"),
        ("REDIS_SOCKET_TIMEOUT", "redis.socket_timeout"),
        ("REDIS_PASSWORD_FILE", "redis.password_file"),
        ("REDIS_RATE_LIMIT_URL", "redis.rate_limit.url"),
        ("REDIS_CACHE_SOCKET_CONNECT_TIMEOUT", "redis.cache.socket_connect_timeout"),
        ("REDIS_TLS_URL", "redis.tls.url"),
        ("REDIS_2_DB", "redis.2.db"),
        ("REDIS_URL_URL", "redis.url.url"),
        ("REDIS_READ_FROM", "redis.read_from"),
        ("REDIS_CACHE_ADDRESS_MAP", "redis.cache.address_map"),
        # Not the user of a pool called "sentinel".
        ("REDIS_SENTINEL_USERNAME", "redis.sentinel_username"),
        ("REDIS_CACHE_SENTINEL_PASSWORD_FILE", "redis.cache.sentinel_password_file"),
    ],
)
def test_config_from_env_maps_variable_to_key(variable, key, caplog):
    assert {key: "v"} == config_from_env({variable: "v"})
    assert {key: "v"} == config_from_env({f"SHOP_{variable}": "v", variable: "other"}, prefix="SHOP_")
    assert not caplog.messages


def test_config_from_env_covers_every_key():
    keys = {each.name for each in fields(RedisConfig)} - PLACE | {"url"}

    assert {f"redis.{key}": "v" for key in keys} == config_from_env({f"REDIS_{key.upper()}": "v" for key in keys})
    assert {f"redis.a_b.{key}": "v" for key in keys} == config_from_env(
        {f"REDIS_A_B_{key.upper()}": "v" for key in keys}
    )


def test_config_from_env_makes_a_complete_configuration(monkeypatch):
    monkeypatch.setitem(os.environ, "SHOP_REDIS_URL", "redis://h")
    monkeypatch.setitem(os.environ, "SHOP_REDIS_TIMEOUT", "")

    assert RedisConfig(host="h") == RedisConfig.from_mapping(config_from_env(prefix="SHOP_"), "redis.")


KUBERNETES = [
    *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_6379", "SERVICE_PORT_DB", "PORT", "PORT_6379_TCP"),
    *("PORT_6379_TCP_PROTO", "PORT_6379_TCP_PORT", "PORT_6379_TCP_ADDR"),
]


@pytest.mark.parametrize("service", ["REDIS", "REDIS_CACHE", "REDIS_MASTER", "REDIS_URL", "REDIS_HOST", "redis"])
@pytest.mark.parametrize("prefix", ["", "SHOP_"])
def test_config_from_env_ignores_kubernetes_variables(service, prefix, caplog):
    environ = {f"{prefix}{service}_{name}": "tcp://10.0.0.11:6379" for name in KUBERNETES}

    assert not config_from_env(environ, prefix)
    assert not caplog.messages


@pytest.mark.parametrize(
    "variable",
    [
        *("REDIS__URL", "REDIS_", "REDIS_A__URL", "REDIS", "REDISURL", "AIOREDIS_URL", "AIOREDIS_MONITORED_SERVER"),
        *("MYREDIS_URL", "MY_REDIS_URL", "my_redis_url", "REDIS_VERSION", "redis_version"),
        *("REDIS_KEY_PREFIX", "REDIS_CACHE_TTL", "REDIS_HOST_KEY", "REDIS_USER_AGENT"),
        *("REDIS_SSL_SESSIONS", "REDIS_CACHE_SSL", "REDIS_SSLED"),
    ],
)
def test_config_from_env_ignores_unrelated_variables(variable, caplog):
    assert not config_from_env({variable: "v"})
    assert not caplog.messages


NEAR_MISSES = [
    ("REDIS_MAX_CONECTIONS", "REDIS_MAX_CONNECTIONS"),
    ("REDIS_ULR", "REDIS_URL"),
    ("REDIS_URL_", "REDIS_URL"),
    ("REDIS_CACHE_ULR", "REDIS_CACHE_URL"),
    ("REDIS_A_MAX_CONECTIONS", "REDIS_A_MAX_CONNECTIONS"),
    ("REDIS_PASSWD", "REDIS_PASSWORD"),
    # Other words.
    ("REDIS_URI", "REDIS_URL"),
    ("REDIS_CACHE_URI", "REDIS_CACHE_URL"),
    ("REDIS_RATE_LIMIT_URI", "REDIS_RATE_LIMIT_URL"),
    ("REDIS_HOST", "REDIS_URL"),
    ("REDIS_CACHE_HOST", "REDIS_CACHE_URL"),
    ("REDIS_USER", "REDIS_USERNAME"),
    ("REDIS_PASS", "REDIS_PASSWORD"),
    ("REDIS_PWD", "REDIS_PASSWORD"),
    ("REDIS_DATABASE", "REDIS_DB"),
    ("REDIS_POOL_SIZE", "REDIS_MAX_CONNECTIONS"),
    ("REDIS_CACHE_POOL_SIZE", "REDIS_CACHE_MAX_CONNECTIONS"),
    ("REDIS_KEEPALIVE", "REDIS_SOCKET_KEEPALIVE"),
    ("REDIS_HEALTH_CHECK", "REDIS_HEALTH_CHECK_INTERVAL"),
    ("REDIS_SSL_CAFILE", "REDIS_SSL_CA_CERTS"),
    ("REDIS_SSL_CA_FILE", "REDIS_SSL_CA_CERTS"),
    ("REDIS_CA_CERTS", "REDIS_SSL_CA_CERTS"),
    ("REDIS_SSL_VERIFY", "REDIS_SSL_CERT_REQS"),
    ("REDIS_VERIFY_SSL", "REDIS_SSL_CERT_REQS"),
    ("REDIS_READ_FROM_REPLICAS", "REDIS_READ_FROM"),
    ("REDIS_SENTINEL_USER", "REDIS_SENTINEL_USERNAME"),
    ("REDIS_ADDRESS_REMAP", "REDIS_ADDRESS_MAP"),
    # Other case.
    ("REDIS_url", "REDIS_URL"),
    ("REDIS_cache_URL", "REDIS_CACHE_URL"),
    ("REDIS_Cache_Url", "REDIS_CACHE_URL"),
    ("redis_url", "REDIS_URL"),
    ("Redis_Host", "REDIS_URL"),
    ("redis_soket_timeout", "REDIS_SOCKET_TIMEOUT"),
]
ACCEPTED_NEAR_MISSES = [
    ("REDIS_SOKET_TIMEOUT", "REDIS_SOCKET_TIMEOUT"),
    ("REDIS_CACHE_SOKET_TIMEOUT", "REDIS_CACHE_SOCKET_TIMEOUT"),
    ("REDIS_CONNECT_TIMEOUT", "REDIS_SOCKET_CONNECT_TIMEOUT"),
    ("REDIS_CONNECTION_TIMEOUT", "REDIS_SOCKET_CONNECT_TIMEOUT"),
]


@pytest.mark.parametrize(("variable", "meant"), NEAR_MISSES + ACCEPTED_NEAR_MISSES)
@pytest.mark.parametrize("prefix", ["", "SHOP_", "shop_"])
def test_misspelled_variable_is_logged_once_without_its_value(variable, meant, prefix, caplog):
    config_from_env({f"{prefix}{variable}": SECRET}, prefix)

    message = f"Environment variable '{prefix}{variable}': did you mean {prefix}{meant}?"
    assert [("aioredis_monitored.config", logging.WARNING, message)] == caplog.record_tuples
    assert SECRET not in repr(vars(caplog.records[0]))


@pytest.mark.parametrize("variable", [variable for variable, _ in NEAR_MISSES])
def test_misspelled_variable_is_not_used(variable):
    assert not config_from_env({variable: "v"})


TLS = "rediss:// in {}URL encrypts, redis:// does not"
IN_URL = "{}URL names the servers: redis://host, redis+cluster://host,host2 or redis+sentinel://host,host2/service"
RETRIES = "{}RETRIES is how often a command that did not run is tried again"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        *((f"REDIS_{name}", TLS) for name in ("SSL", "TLS", "USE_SSL", "USE_TLS", "SSL_ENABLED", "TLS_ENABLED")),
        *((f"REDIS_{name}", RETRIES) for name in ("RETRY", "RETRY_ON_TIMEOUT", "RETRY_ON_ERROR", "MAX_RETRIES")),
        *((f"REDIS_{name}", IN_URL) for name in ("ADDR", "CLUSTER_NODES", "SENTINELS", "SENTINEL_MASTER_NAME")),
        ("redis_ssl", TLS),
    ],
)
@pytest.mark.parametrize("prefix", ["", "SHOP_"])
def test_variable_without_effect_is_logged_with_its_replacement(variable, hint, prefix, caplog):
    environ = {f"{prefix}{variable}": SECRET, f"{prefix}REDIS_URL": "redis://h"}

    config = config_from_env(environ, prefix)

    message = f"Environment variable '{prefix}{variable}' has no effect: {hint.format(f'{prefix}REDIS_')}"
    assert [("aioredis_monitored.config", logging.WARNING, message)] == caplog.record_tuples
    assert SECRET not in repr(vars(caplog.records[0]))
    assert RedisConfig(host="h") == RedisConfig.from_mapping(config, "redis.")


def test_variable_without_effect_is_logged_for_every_pool(caplog):
    environ = {
        "REDIS_CACHE_URL": "redis://h",
        "REDIS_CACHE_USE_SSL": "1",
        "REDIS_CACHE_RETRY_ON_TIMEOUT": "1",
        # A pool with the name "retry_on".
        "REDIS_RETRY_ON_URL": "redis://h",
        "REDIS_RETRY_ON_TIMEOUT": "5",
    }

    assert "5" == config_from_env(environ)["redis.retry_on.timeout"]
    variables = ("REDIS_CACHE_USE_SSL", TLS), ("REDIS_CACHE_RETRY_ON_TIMEOUT", RETRIES)
    assert caplog.messages == [
        f"Environment variable '{name}' has no effect: {hint.format('REDIS_CACHE_')}" for name, hint in variables
    ]


def test_environment_prefix_is_case_sensitive(caplog):
    assert {"redis.url": "v"} == config_from_env({"Shop_REDIS_URL": "v"}, "Shop_")
    assert not config_from_env({"SHOP_REDIS_URL": "v"}, "Shop_")
    assert ["Environment variable 'SHOP_REDIS_URL': did you mean Shop_REDIS_URL?"] == caplog.messages


def test_misspelled_variable_is_not_logged_beside_the_right_one(caplog):
    assert {"redis.url": "v"} == config_from_env({"REDIS_URL": "v", "REDIS_HOST": "h", "redis_url": "v"})
    assert not caplog.messages


def test_unprintable_variable_name_is_logged_escaped(caplog):
    config_from_env({"REDIS_PASSWORD\udcff": SECRET})

    assert [r"Environment variable 'REDIS_PASSWORD\udcff': did you mean REDIS_PASSWORD?"] == caplog.messages


def test_pool_with_a_url_is_not_reported_as_misspelling(caplog):
    environ = {"REDIS_SOCKETS_TIMEOUT": "5", "REDIS_SOCKETS_URL": "redis://h"}

    expected = {"redis.sockets.timeout": "5", "redis.sockets.url": "redis://h"}
    assert expected == config_from_env(environ)
    assert not caplog.messages


def test_config_without_options_keeps_redis_py_defaults():
    pool = pool_from_config({"redis.url": "rediss://localhost"})
    connection = pool.make_connection()

    assert (0, None, None) == (connection.db, connection.client_name, connection.credential_provider)
    assert (None, None, False) == (connection.username, connection.password, pool.decodes_replies)
    assert (ssl.CERT_REQUIRED, True) == (connection.cert_reqs, connection.check_hostname)
    assert (None, None, None) == (connection.ca_certs, connection.certfile, connection.keyfile)
    assert connection.ssl_context.min_version is None
