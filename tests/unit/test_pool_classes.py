"""A URL makes a pool of the class for its topology, wherever it is given; tested without a server."""

from types import SimpleNamespace

import pytest
from redis.asyncio import Connection, SSLConnection
from support.internals import forget_topology_classes

from aioredis_monitored import ConfigurationError, MonitoredConnectionPool, MonitoredRedisConnection, pool_from_config
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.config.schema import validate_arguments

TOPOLOGY_ARGUMENTS = ("nodes", "sentinels", "service", "read_from", "topology_refresh", "address_map")
TOPOLOGY_ARGUMENTS += ("sentinel_username", "sentinel_password", "sentinel_password_file")
SECRET = "S3CRET"


class StandIn(MonitoredConnectionPool):
    """Keeps the arguments that only pools for topologies have, read, and passes the others on."""

    def __init__(self, **arguments):
        read = validate_arguments(arguments)
        self.given = {name: read.pop(name) for name in TOPOLOGY_ARGUMENTS if name in read}
        super().__init__(**read)


@pytest.fixture(name="classes")
def _classes(monkeypatch):
    """Register stand-ins for the classes of clusters and sentinels."""
    forget_topology_classes(monkeypatch)

    class ClusterPool(StandIn, topology="cluster"):
        pass

    class SentinelPool(StandIn, topology="sentinel"):
        pass

    return SimpleNamespace(cluster=ClusterPool, sentinel=SentinelPool)


@pytest.mark.parametrize("make", ["from_url", "from_config", "from_env", "client"])
@pytest.mark.parametrize(
    ("url", "kind", "given", "connection_class"),
    [
        ("redis+cluster://a,b:1", "cluster", {"nodes": (("a", 6379), ("b", 1))}, Connection),
        ("valkeys+cluster://[::1]:7", "cluster", {"nodes": (("::1", 7),)}, SSLConnection),
        (
            "redis+cluster://a?read_from=replica",
            "cluster",
            {"nodes": (("a", 6379),), "read_from": "replica"},
            Connection,
        ),
        (
            "redis+cluster://a?topology_refresh=1m",
            "cluster",
            {"nodes": (("a", 6379),), "topology_refresh": 60},
            Connection,
        ),
        (
            "redis+cluster://a?address_map=b:1=c:2",
            "cluster",
            {"nodes": (("a", 6379),), "address_map": AddressMap.read("b:1=c:2")},
            Connection,
        ),
        ("rediss+sentinel://a/main", "sentinel", {"sentinels": (("a", 26379),), "service": "main"}, SSLConnection),
        (
            "redis+sentinel://a:1,b/main?sentinel_username=s&sentinel_password=t",
            "sentinel",
            {
                "sentinels": (("a", 1), ("b", 26379)),
                "service": "main",
                "sentinel_username": "s",
                "sentinel_password": "t",
            },
            Connection,
        ),
    ],
)
def test_url_makes_a_pool_of_the_class_for_its_topology(classes, make, url, kind, given, connection_class):
    pool = {
        "from_url": lambda: MonitoredConnectionPool.from_url(url),
        "from_config": lambda: pool_from_config({"redis.url": url}),
        "from_env": lambda: pool_from_config(config_from_env({"REDIS_URL": url})),
        "client": lambda: MonitoredRedisConnection.from_url(url).connection_pool,
    }[make]()

    assert vars(classes)[kind] is type(pool)
    assert (given, connection_class) == (pool.given, pool.connection_class)
    assert "host" not in pool.connection_kwargs


def test_environment_configures_a_pool_for_a_topology(classes):
    environ = {
        "REDIS_URL": "redis+sentinel://u:p@a/main/2",
        "REDIS_SENTINEL_USERNAME": "s",
        "REDIS_READ_FROM": "replica",
        "REDIS_ADDRESS_MAP": "*:*=name:*",
        "REDIS_SOCKET_TIMEOUT": "1s",
    }
    pool = pool_from_config(config_from_env(environ), max_connections=7)

    assert classes.sentinel is type(pool)
    assert ("redis", 7, 2, "u", "p", 1.0) == (
        pool.name,
        pool.max_connections,
        *(pool.connection_kwargs[name] for name in ("db", "username", "password", "socket_timeout")),
    )
    assert pool.given == {
        "sentinels": (("a", 26379),),
        "service": "main",
        "sentinel_username": "s",
        "read_from": "replica",
        "address_map": AddressMap.read("*:*=name:*"),
    }


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://%61:1/main/", "redis+sentinel://a:1/%6dain", "redis+sentinel://a:1/main/0/?db=3"],
)
def test_from_url_reads_a_topology_as_leniently_as_one_server(classes, url):
    pool = MonitoredConnectionPool.from_url(url)

    assert classes.sentinel is type(pool)
    assert {"sentinels": (("a", 1),), "service": "main"} == pool.given
    assert (3 if "db" in url else None) == pool.connection_kwargs.get("db")
    with pytest.raises(ConfigurationError, match=r"redis.url: "):
        pool_from_config({"redis.url": url})


def test_url_of_one_server_makes_an_ordinary_pool(classes):
    assert MonitoredConnectionPool is type(MonitoredConnectionPool.from_url("redis://h"))
    assert MonitoredConnectionPool is type(pool_from_config({"redis.url": "unix:///run/redis.sock"}))
    assert {classes.cluster, classes.sentinel}.isdisjoint(MonitoredConnectionPool.__mro__)


def test_subclass_makes_itself_of_a_url_of_its_topology(classes):
    class Ordinary(MonitoredConnectionPool):
        pass

    class Special(classes.cluster):
        pass

    assert Ordinary is type(Ordinary.from_url("redis://h"))
    assert Special is type(Special.from_url("rediss+cluster://h"))
    assert classes.cluster is type(classes.cluster.from_url("redis+cluster://h"))
    # A subclass is not registered in place of its base class.
    assert classes.cluster is type(MonitoredConnectionPool.from_url("redis+cluster://h"))


@pytest.mark.parametrize(
    ("kind", "url", "reason"),
    [
        ("cluster", f"redis://:{SECRET}@h", "a redis+cluster:// URL for ClusterPool, got redis://"),
        (
            "cluster",
            f"rediss+sentinel://:{SECRET}@h/m",
            "a redis+cluster:// URL for ClusterPool, got redis+sentinel://",
        ),
        ("sentinel", f"redis+cluster://:{SECRET}@h", "a redis+sentinel:// URL for SentinelPool, got redis+cluster://"),
        ("other", f"redis+cluster://:{SECRET}@h", "a redis:// URL for OrdinaryPool, got redis+cluster://"),
    ],
)
def test_subclass_raises_on_a_url_of_another_topology(classes, kind, url, reason):
    classes.other = type("OrdinaryPool", (MonitoredConnectionPool,), {})
    with pytest.raises(ConfigurationError) as caught:
        vars(classes)[kind].from_url(url)

    assert f"url: must be {reason}" == str(caught.value)


def test_keyword_arguments_of_a_topology_are_read_as_text_or_typed(classes):
    pool = classes.cluster(nodes=[("a", 1)], topology_refresh="2 min", address_map={"a:1": "b:2"}, read_from="Replica")

    expected = {"nodes": [("a", 1)], "topology_refresh": 120.0, "read_from": "replica"}
    assert expected | {"address_map": AddressMap.read("a:1=b:2")} == pool.given
    with pytest.raises(ConfigurationError) as caught:
        classes.sentinel(read_from=SECRET, address_map=SECRET, sentinel_password=5)
    assert {"read_from", "address_map", "sentinel_password"} == {key for key, _ in caught.value.problems}
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "argument", "needed"),
    [
        ("redis://a", {"read_from": "replica"}, "redis+cluster:// or redis+sentinel://"),
        ("unix:///s", {"address_map": "a:1=b:1"}, "redis+cluster:// or redis+sentinel://"),
        ("redis://a", {"topology_refresh": 5}, "redis+cluster://"),
        ("rediss://a", {"topology_refresh": 5}, "rediss+cluster://"),
        ("redis://a", {"sentinel_username": "s"}, "redis+sentinel://"),
        ("redis+cluster://a", {"sentinel_password": SECRET}, "redis+sentinel://"),
        ("rediss+cluster://a", {"sentinel_password_file": f"/{SECRET}"}, "rediss+sentinel://"),
        ("redis+sentinel://a/main", {"topology_refresh": "5 s"}, "redis+cluster://"),
        ("rediss+sentinel://a/main", {"topology_refresh": "5 s"}, "rediss+cluster://"),
    ],
)
def test_pool_raises_on_an_argument_for_a_topology_that_it_does_not_have(url, argument, needed):
    for make in (
        lambda: pool_from_config({"redis.url": url}, **argument),
        lambda: MonitoredConnectionPool.from_url(url, **argument),
    ):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert f"{next(iter(argument))}: needs {needed}" == str(caught.value)


def test_pool_raises_on_arguments_for_another_topology_together_with_other_problems():
    with pytest.raises(ConfigurationError) as caught:
        MonitoredConnectionPool(host="h", max_connections=0, read_from="replica", sentinel_password=SECRET)

    assert {"max_connections", "read_from", "sentinel_password"} == {key for key, _ in caught.value.problems}


def test_repr_of_a_cluster_pool_that_knows_no_node_gives_no_bounds():
    assert repr(pool_from_config({"redis.url": "redis+cluster://a"})).endswith(" [no node known yet]>")
