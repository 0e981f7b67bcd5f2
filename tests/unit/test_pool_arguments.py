"""The arguments of pools that find their servers, of clusters and under Sentinel; tested without a server."""

import pytest
from redis.asyncio import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aioredis_monitored import ClusterRoutingError, ConfigurationError, MonitoredClusterPool, MonitoredSentinelPool
from aioredis_monitored._topology.node import ClusterNode

PAIRS = "must be pairs of a host and a port"
KIND = "must be Connection or SSLConnection, or a subclass, got UnixDomainSocketConnection"
NODES = [ClusterNode("a", 1, "primary"), ClusterNode("b", 2, "primary")]


@pytest.mark.parametrize(
    ("servers", "reason"),
    [
        ([], f"{PAIRS}, got none"),
        (iter(()), f"{PAIRS}, got none"),
        (None, f"{PAIRS} from 1 to 65,535, got NoneType"),
        ("a:1", f"{PAIRS} from 1 to 65,535, got str"),
        (["a:1"], f"{PAIRS} from 1 to 65,535, got str"),
        ([("a", 1), ("b", "x")], f"{PAIRS} from 1 to 65,535, got tuple"),
        ([("a", "1")], f"{PAIRS} from 1 to 65,535, got tuple"),
        ([("", 1)], f"{PAIRS} from 1 to 65,535, got tuple"),
        ([("a", 65_536)], f"{PAIRS} from 1 to 65,535, got tuple"),
        ([("a", 0)], f"{PAIRS} from 1 to 65,535, got tuple"),
        ({"a": 1}, f"{PAIRS} from 1 to 65,535, got str"),
    ],
)
def test_servers_that_are_no_addresses_are_refused(servers, reason):
    with pytest.raises(ConfigurationError) as caught:
        MonitoredClusterPool(servers)

    assert (("nodes", reason),) == caught.value.problems


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
