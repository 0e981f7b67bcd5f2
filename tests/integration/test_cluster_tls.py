"""TLS and credentials of the nodes of a cluster."""

import asyncio

import pytest
import trustme
from redis.asyncio import SSLConnection
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from support.sharing import close_while_blocked, warnings_after

from aioredis_monitored import MonitoredClusterPool, MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers, RedisServer, TlsFiles

KEYS = [f"key:{number}" for number in range(30)]
SECRET = "correct horse"
LONG_TIMEOUT = 60.0
MAX_FAILURE_SECONDS = 15.0


def tls_files(folder, *names):
    authority = trustme.CA()
    files = TlsFiles(*(str(folder / name) for name in TlsFiles._fields))
    certificate = authority.issue_cert(*names)
    certificate.cert_chain_pems[0].write_to_path(files.certificate)
    certificate.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(files.authority)
    return files


def has_tls(files):
    try:
        with RedisServer(tls=files):
            return True
    except RuntimeError:
        return False


async def use(url, **options):
    """Write and read keys at all nodes, also after one of their slots has moved."""
    async with MonitoredConnectionPool.from_url(url, **options) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, key) for key in KEYS))
        assert [key.encode() for key in KEYS] == await client.mget(KEYS)


@pytest.mark.parametrize(
    ("names", "announced"),
    [(["127.0.0.1"], None), (["localhost"], "localhost"), (["localhost", "node.example"], "node.example")],
    ids=["address", "hostname", "hostname-beside-the-address"],
)
async def test_certificates_of_all_nodes_are_verified(tmp_path, names, announced):
    files = tls_files(tmp_path, *names)
    if not has_tls(files):
        pytest.skip("the server has no TLS")
    # Nodes say their address, and the name beside it.
    hostnames = None if announced is None else lambda _: announced
    with ClusterServers(primaries=2, replicas=0, node_timeout=60, tls=files, hostnames=hostnames) as servers:
        await use(f"rediss+cluster://{names[0]}:{servers.nodes[0].port}", ssl_ca_certs=files.authority)


async def test_names_of_nodes_are_verified_on_connections_of_a_subclass(tmp_path):
    class Special(SSLConnection):
        pass

    files = tls_files(tmp_path, "localhost")
    if not has_tls(files):
        pytest.skip("the server has no TLS")
    with ClusterServers(
        primaries=2, replicas=0, node_timeout=60, tls=files, hostnames=lambda _: "localhost"
    ) as servers:
        addresses = [("localhost", servers.nodes[0].port)]
        async with MonitoredClusterPool(addresses, connection_class=Special, ssl_ca_certs=files.authority) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, key) for key in KEYS))
            for node in pool.nodes():
                connection = pool.pool_of(node).make_connection()
                assert isinstance(connection, Special)
                assert "Special" == type(connection).__name__


async def test_certificates_of_an_unknown_authority_are_refused_at_once(tmp_path):
    files = tls_files(tmp_path, "127.0.0.1")
    if not has_tls(files):
        pytest.skip("the server has no TLS")
    (folder := tmp_path / "other").mkdir()
    other = tls_files(folder, "127.0.0.1")
    with ClusterServers(primaries=2, replicas=0, node_timeout=60, tls=files) as servers:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await use(servers.url, ssl_ca_certs=other.authority, socket_timeout=LONG_TIMEOUT)

        assert loop.time() - began < MAX_FAILURE_SECONDS


def test_event_loop_may_end_as_soon_as_the_pool_is_closed(tmp_path):
    files = tls_files(tmp_path, "127.0.0.1")
    if not has_tls(files):
        pytest.skip("the server has no TLS")
    with ClusterServers(primaries=2, replicas=0, node_timeout=60, tls=files) as servers:
        (first, *_) = servers.nodes

        async def use():
            pool = MonitoredConnectionPool.from_url(
                f"rediss+cluster://127.0.0.1:{first.port}", ssl_ca_certs=files.authority
            )
            await close_while_blocked(pool)

        assert [] == warnings_after(use)


async def test_password_is_sent_to_every_node():
    with ClusterServers(primaries=2, replicas=0, node_timeout=60, password=SECRET) as servers:
        await use(servers.url, password=SECRET)
        for node in servers.nodes:
            node.call("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-@admin", "-@dangerous", "+cluster|slots")
        await use(servers.url, username="app", password="pw")


@pytest.mark.parametrize("credentials", [{"password": "wrong"}, {}], ids=["wrong", "none"])
async def test_wrong_password_is_an_error_at_once_that_says_so_and_where(credentials, caplog):
    with ClusterServers(primaries=2, replicas=0, node_timeout=60, password=SECRET) as servers:
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(AuthenticationError) as caught:
            await use(servers.url, name="mine", socket_timeout=LONG_TIMEOUT, **credentials)

        assert loop.time() - began < MAX_FAILURE_SECONDS
        asked, _, reason = str(caught.value).partition(": ")
        assert asked in {f"{node.host}:{node.port}" for node in servers.nodes}
        assert reason
        assert [f"pool 'mine': a topology refresh failed: {asked}: {reason}"] == caplog.messages
