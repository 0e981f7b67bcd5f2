"""The arguments of pools that find their servers, of clusters and under Sentinel; tested without a server."""

from functools import partial

import pytest
from redis.asyncio import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioredis_monitored import (
    ClusterRoutingError,
    ConfigurationError,
    MonitoredClusterPool,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    MonitoredSentinelPool,
)
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored.config.addresses import read_addresses

PAIRS = "must be pairs of a host and a port, such as ('cache.example', 6379) or ('::1', 6379)"
HOST = "a name, an IPv4 address or an IPv6 address without brackets"
PORT = "a whole number from 1 to 65,535"
KIND = "must be Connection or SSLConnection, or a subclass, got UnixDomainSocketConnection"
NODES = [ClusterNode("a", 1, "primary"), ClusterNode("b", 2, "primary")]


@pytest.mark.parametrize(
    ("servers", "reason"),
    [
        ([], f"{PAIRS}, got none"),
        ((), f"{PAIRS}, got none"),
        (None, f"{PAIRS}, got NoneType"),
        ("a:1", f"{PAIRS}, got str"),
        (["a:1"], f"{PAIRS}, got str"),
        ([("a",)], f"{PAIRS}, got tuple"),
        ([("a", 1), ("b", "x")], f"{PAIRS}: the port of pair 2 must be {PORT}"),
        (
            [("a b", 1), ("b", 1), ("c", 0)],
            f"{PAIRS}: the host of pair 1 must be {HOST}, the port of pair 3 must be {PORT}",
        ),
        ({"a": 1}, f"{PAIRS}, got str"),
    ],
)
def test_servers_that_are_no_addresses_are_refused(servers, reason):
    for make_pool, name in (
        (MonitoredClusterPool, "nodes"),
        (partial(MonitoredSentinelPool, service="main"), "sentinels"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make_pool(servers)

        assert ((name, reason),) == caught.value.problems


@pytest.mark.parametrize(
    "host",
    [
        *("", " ", "a b", "a\n", "a..b", ".a", "a" * 64, ".".join(["a" * 60] * 5), "a:7000", "redis://a", "a/b", "u@a"),
        *("[::1]", ":::1", "fe80::1%", "256.0.0.1", "10.0.0.01", "a,b", "${HOST}", None, b"a", 5),
    ],
    ids=repr,
)
def test_impossible_host_is_refused(host):
    with pytest.raises(ConfigurationError) as caught:
        MonitoredClusterPool([(host, 1)])

    assert (("nodes", f"{PAIRS}: the host of pair 1 must be {HOST}"),) == caught.value.problems
    if host and isinstance(host, str):
        # For redis-py, no host is this machine, and bytes are text.
        with pytest.raises(ConfigurationError) as caught:
            MonitoredRedisConnection(host=host)

        assert (("host", f"must be {HOST}"),) == caught.value.problems


@pytest.mark.parametrize("port", [0, -1, 65_536, True, 7000.5, "x", "0", "65536", ""], ids=repr)
def test_impossible_port_is_refused(port):
    with pytest.raises(ConfigurationError) as caught:
        MonitoredClusterPool([("a", port)])

    assert (("nodes", f"{PAIRS}: the port of pair 1 must be {PORT}"),) == caught.value.problems
    with pytest.raises(ConfigurationError) as caught:
        MonitoredConnectionPool(port=port, db=-1)

    assert {"port": f"must be {PORT}", "db": "must be a whole number, 0 or more"} == dict(caught.value.problems)


@pytest.mark.parametrize(
    "host", ["a", "a.", "my_host-1.example", "münchen.example", "127.0.0.1", "::1", "fe80::1%eth0"]
)
def test_possible_host_is_taken(host):
    assert [(host, 65_535)] == read_addresses([(host, 65_535)])
    assert MonitoredConnectionPool(host=host, port="65535").name.endswith(":65535/0")


def test_what_servers_announce_is_no_error_of_the_configuration():
    pool = MonitoredClusterPool([("a", 1)], name="main")

    assert "main@a b:0" == pool.pool_of(ClusterNode("a b", 0)).name


def test_all_problems_of_a_cluster_pool_are_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        MonitoredClusterPool(
            "a:1",
            connection_class=UnixDomainSocketConnection,
            host="a",
            port=None,
            topology_refresh="x",
            read_from="nearest",
            socket_timeout="y",
        )

    problems = dict(caught.value.problems)
    assert {"nodes", "connection_class", "host", "topology_refresh", "read_from", "socket_timeout"} == problems.keys()
    assert (KIND, "must be left out: the nodes name the server") == (problems["connection_class"], problems["host"])


def test_all_problems_of_a_sentinel_pool_are_named_at_once():
    with pytest.raises(ConfigurationError) as caught:
        MonitoredSentinelPool(
            [],
            "",
            0,
            "soon",
            UnixDomainSocketConnection,
            path="/run/redis.sock",
            sentinel_password=5,
            socket_timeout="y",
        )

    problems = dict(caught.value.problems)
    assert {"sentinels", "service", "connection_class", "path"} < problems.keys()
    assert {"max_connections", "timeout", "sentinel_password", "socket_timeout"} < problems.keys()
    assert KIND == problems["connection_class"]


def test_arguments_that_are_ignored_or_unsafe_are_logged_once_for_all_nodes(caplog):
    pool = MonitoredClusterPool(
        [("a", 1)],
        name="main",
        retry=Retry(NoBackoff(), 3),
        retry_on_timeout=True,
        connection_class=SSLConnection,
        ssl_cert_reqs="none",
    )
    pools = [pool.pool_of(node) for node in NODES]
    logged = [each.getMessage() for each in caplog.records]

    assert 2 == len(logged)
    assert any("of retry, retry_on_timeout, only" in text for text in logged)
    assert any("ssl_cert_reqs is none" in text for text in logged)
    pool.set_retry(Retry(NoBackoff(), 7))
    assert 3 == len(caplog.records)
    assert [7, 7] == [each.get_retry().get_retries() for each in pools]


def test_pool_of_a_cluster_refuses_to_make_a_connection_and_those_of_its_nodes_do_not():
    pool = MonitoredClusterPool([("a", 1)], db=0)

    with pytest.raises(ClusterRoutingError, match="a cluster's pool makes no connections of its own: use "):
        pool.make_connection()
    connection = pool.pool_of(NODES[1]).make_connection()
    assert ("b", 2) == (connection.host, connection.port)
