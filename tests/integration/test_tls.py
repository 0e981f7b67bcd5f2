"""TLS on live connections: which server is trusted, which client must prove its identity, and how failures show."""

import asyncio
import concurrent.futures
import gc
import shutil
import ssl
import threading
import warnings
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import redis
import trustme
from redis.asyncio import SSLConnection
from support.internals import forwarding_tasks_of, refresh_topology, replicas_of
from support.listening import listening
from support.sharing import close_while_blocked, warnings_after, warnings_of_forgetting

from aioredis_monitored import (
    MonitoredClusterPool,
    MonitoredRedisConnection,
    MonitoredSentinelPool,
    pool_from_config,
)
from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer, SentinelServers

HOST = "127.0.0.1"
# Errors without a known reason are retried until then.
CONNECT_TIMEOUT = 0.5
# Longer than an error that must not be retried may take.
LONG_TIMEOUT = 60.0
MAX_FAILURE_SECONDS = 15.0
DEADLINE = 30.0
VERIFY_FAILED = "CERTIFICATE_VERIFY_FAILED"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority, tmp_path_factory):
    """Return paths of PEM files: two authorities, and a client's certificate of the first, without and with its key."""
    client = authority.issue_cert("client@example.org")
    [certificate] = client.cert_chain_pems
    blobs = {
        "authority": authority.cert_pem,
        "other_authority": trustme.CA().cert_pem,
        "certificate": certificate,
        "key": client.private_key_pem,
        "both": client.private_key_and_cert_chain_pem,
    }
    folder = tmp_path_factory.mktemp("pem")
    for name, blob in blobs.items():
        blob.write_to_path(folder / name)
    return SimpleNamespace(**{name: str(folder / name) for name in blobs})


@pytest.fixture
def identity(authority):
    """Return a factory of a server's certificate; the server may require a client's certificate."""

    def make(name=HOST, *, ask_client=False):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(context)
        if ask_client:
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    return make


@pytest.fixture
async def tls_proxy(server, identity):
    async with FaultProxy(server.host, server.port, tls=identity()) as proxy:
        yield proxy


def configured(url, timeout=LONG_TIMEOUT, **keys):
    defaults = {"redis.url": url, "redis.socket_connect_timeout": timeout, "redis.socket_timeout": timeout}
    return pool_from_config(defaults | {f"redis.{key}": value for key, value in keys.items()})


async def assert_works(url, **keys):
    async with configured(url, **keys) as pool:
        await pool.ping()
        client = MonitoredRedisConnection(connection_pool=pool)
        assert await client.set("k", "v")
        assert b"v" == await client.get("k")


async def assert_fails(url, reason="", **keys):
    """Check that a command and a ping fail in time, both with the reason."""
    async with configured(url, timeout=LONG_TIMEOUT if reason else CONNECT_TIMEOUT, **keys) as pool:
        for attempt, start in (
            (MonitoredRedisConnection(connection_pool=pool).randomkey, ""),
            (pool.ping, f"pool 'redis' ({url.partition('://')[2]}/0): "),
        ):
            with pytest.raises((redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)) as caught:
                async with asyncio.timeout(MAX_FAILURE_SECONDS):
                    await attempt()
            assert str(caught.value).startswith(start)
            assert reason in str(caught.value)


@asynccontextmanager
async def alerting_server(context):
    """Yield a server that reports handshake failures as real servers do; asyncio's only closes the connection."""

    async def shake_hands(reader, writer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        with suppress(OSError):
            while received := await reader.read(65536):
                incoming.write(received)
                with suppress(ssl.SSLError):
                    tls.do_handshake()
                writer.write(outgoing.read())
        writer.close()

    async with listening(shake_hands, HOST) as (_, port):
        yield f"rediss://{HOST}:{port}"


# --- Who the server is ---


async def test_tls_connects_to_a_server_of_the_configured_authority(tls_proxy, pem):
    await assert_works(tls_proxy.url, ssl_ca_certs=pem.authority)


async def test_tls_connects_with_options_in_the_url(tls_proxy, pem):
    await assert_works(f"{tls_proxy.url}?ssl_ca_certs={pem.authority}&ssl_min_version=1.3")


async def test_tls_fails_on_a_server_of_an_unknown_authority(tls_proxy, pem):
    await assert_fails(tls_proxy.url, VERIFY_FAILED)
    await assert_fails(tls_proxy.url, VERIFY_FAILED, ssl_ca_certs=pem.other_authority)
    # Then the name is not checked, but the authority still is.
    await assert_fails(tls_proxy.url, VERIFY_FAILED, ssl_check_hostname="false")


@pytest.mark.parametrize("in_url", [True, False])
async def test_tls_skips_verification_only_with_ssl_cert_reqs_none(server, identity, caplog, in_url):
    async with FaultProxy(server.host, server.port, tls=identity("redis.example")) as proxy:
        if in_url:
            await assert_works(f"{proxy.url}?ssl_cert_reqs=none")
        else:
            await assert_works(proxy.url, ssl_cert_reqs="none")
        await assert_fails(proxy.url, VERIFY_FAILED, ssl_cert_reqs="optional")
        await assert_fails(proxy.url, VERIFY_FAILED, ssl_cert_reqs="required")

    assert ["aioredis_monitored.pool"] == [record.name for record in caplog.records]


async def test_tls_checks_the_hostname_unless_ssl_check_hostname_is_off(server, identity, pem):
    async with FaultProxy(server.host, server.port, tls=identity("redis.example")) as proxy:
        await assert_fails(proxy.url, VERIFY_FAILED, ssl_ca_certs=pem.authority)
        await assert_fails(proxy.url, "not valid for '127.0.0.1'", ssl_ca_certs=pem.authority)
        await assert_works(proxy.url, ssl_ca_certs=pem.authority, ssl_check_hostname="false")


# --- Who the client is ---


async def test_tls_client_presents_its_certificate(server, identity, pem):
    async with FaultProxy(server.host, server.port, tls=identity(ask_client=True)) as proxy:
        await assert_works(proxy.url, ssl_ca_certs=pem.authority, ssl_certfile=pem.certificate, ssl_keyfile=pem.key)
        await assert_works(proxy.url, ssl_ca_certs=pem.authority, ssl_certfile=pem.both)


@pytest.mark.parametrize(
    ("version", "alert"),
    [
        (ssl.TLSVersion.TLSv1_2, "ALERT_HANDSHAKE_FAILURE"),
        (ssl.TLSVersion.TLSv1_3, "ALERT_CERTIFICATE_REQUIRED"),
    ],
)
async def test_tls_error_shows_the_alert_when_a_client_certificate_is_required(identity, pem, version, alert):
    context = identity(ask_client=True)
    context.maximum_version = version
    async with alerting_server(context) as url:
        await assert_fails(url, alert, ssl_ca_certs=pem.authority)


async def test_tls_client_without_certificate_is_rejected(server, identity, pem):
    async with FaultProxy(server.host, server.port, tls=identity(ask_client=True)) as proxy:
        await assert_fails(proxy.url, ssl_ca_certs=pem.authority)


# --- Which TLS ---


async def test_tls_minimum_version_is_configurable(server, identity, pem):
    context = identity()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with FaultProxy(server.host, server.port, tls=context) as proxy:
        await assert_works(proxy.url, ssl_ca_certs=pem.authority, ssl_min_version="1.2")
    async with alerting_server(context) as url:
        await assert_fails(url, "ALERT_PROTOCOL_VERSION", ssl_ca_certs=pem.authority, ssl_min_version="1.3")


async def test_tls_to_a_plain_port_fails_in_bounded_time(server, pem):
    await assert_fails(f"rediss://{server.host}:{server.port}", ssl_ca_certs=pem.authority)


async def test_plain_connection_to_a_tls_port_fails_in_bounded_time(tls_proxy):
    await assert_fails(f"redis://{tls_proxy.host}:{tls_proxy.port}")


# --- Who closes ---


@pytest.fixture
def tls_url(server, identity):
    """Return the URL of a proxy that outlives its clients' event loops; it ends when they have disconnected."""
    started = concurrent.futures.Future()

    async def serve():
        stop = asyncio.Event()
        async with FaultProxy(server.host, server.port, tls=identity()) as proxy:
            started.set_result((proxy.url, asyncio.get_running_loop(), stop))
            await stop.wait()
            async with asyncio.timeout(DEADLINE):
                await asyncio.gather(*forwarding_tasks_of(proxy))

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    url, loop, stop = started.result(DEADLINE)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join()


@pytest.mark.parametrize("while_running", [True, False])
@pytest.mark.parametrize("borrowed", [True, False])
def test_unclosed_tls_pool_warns_once_with_its_name(tls_url, pem, while_running, borrowed):
    async def forget():
        pool = configured(tls_url, ssl_ca_certs=pem.authority)
        await pool.ping()
        connection = await pool.get_connection() if borrowed else None
        if while_running:
            del pool, connection
            gc.collect()
            return None
        return pool

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = asyncio.run(forget())
        del pool
        gc.collect()

    assert ["pool 'redis' was never closed: use 'async with' or aclose()"] == [str(w.message) for w in caught]


@pytest.mark.parametrize("closes", [True, False])
def test_socket_that_is_being_closed_when_the_event_loop_ends_is_closed_with_its_pool(tls_url, pem, closes):
    async def leave():
        pool = configured(tls_url, ssl_ca_certs=pem.authority)
        connection = await pool.get_connection()
        await connection.disconnect(nowait=True)
        return pool, connection

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = asyncio.new_event_loop()
        pool, connection = loop.run_until_complete(leave())
        # Before the server has answered that the connection ends.
        loop.close()
        if closes:
            asyncio.run(pool.aclose())
        del pool, connection
        gc.collect()

    assert [] == [str(w.message) for w in caught]


def test_unclosed_tls_pool_only_warns_when_collected_while_its_event_loop_is_paused(tls_url, pem, caplog):
    warned = warnings_of_forgetting(lambda: configured(tls_url, ssl_ca_certs=pem.authority), asyncio.new_event_loop)

    assert ["pool 'redis' was never closed: use 'async with' or aclose()"] == warned
    assert [] == caplog.messages


def test_event_loop_may_end_as_soon_as_a_pool_is_closed_of_which_connections_are_in_use(tls_url, pem):
    async def use():
        await close_while_blocked(configured(tls_url, ssl_ca_certs=pem.authority))

    assert [] == warnings_after(use)


@pytest.fixture
async def strict_tls_proxy(identity):
    with RedisServer("--proto-max-bulk-len", "1mb") as server:
        async with FaultProxy(server.host, server.port, tls=identity()) as proxy:
            yield proxy


async def test_calls_behind_an_oversized_value_are_not_written_twice(strict_tls_proxy, pem):
    async with configured(strict_tls_proxy.url, ssl_ca_certs=pem.authority) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        for number in range(10):
            # All of them on the bulk connection.
            calls = [client.rpush(f"list:{number}", b"x" * 100_000) for _ in range(10)]
            calls.insert(number, client.set("long", b"x" * 1_500_000))
            results = await asyncio.gather(*calls, return_exceptions=True)

            errors = {type(result) for result in results if isinstance(result, Exception)}
            assert {redis.ResponseError, redis.ConnectionError} >= errors
            assert isinstance(results[number], Exception)
            acknowledged = [result for result in results if isinstance(result, int)]
            assert len(acknowledged) == len(set(acknowledged))
            assert len(acknowledged) <= await client.llen(f"list:{number}") <= 10


async def test_reply_of_several_tls_records_arrives_whole(tls_proxy, pem):
    # A record has at most 16 KiB; all of these arrive together, and are read into one buffer.
    value = b"".join(b"%08d" % number for number in range(7_500))
    async with configured(tls_proxy.url, ssl_ca_certs=pem.authority, retries=0) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.set("long", value)
        for _ in range(30):
            assert value == await client.get("long")


# --- How often the authorities are loaded ---


@pytest.fixture
def contexts(monkeypatch):
    """Return the contexts that redis-py has made for connections, each of which loads the system's authorities."""
    made, make = [], ssl.create_default_context

    def create(*arguments, **options):
        made.append(make(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(ssl, "create_default_context", create)
    return made


@pytest.fixture
def own_authority(pem, tmp_path):
    """Return a file with the authority that no pool has used before: those that have may be alive."""
    shutil.copy(pem.authority, tmp_path / "authority")
    return str(tmp_path / "authority")


@pytest.fixture
def loaded_files(monkeypatch):
    """Return the files of authorities that were loaded, also those that were only to be checked."""
    loaded, load = [], ssl.SSLContext.load_verify_locations

    def loading(self, cafile=None, *others, **options):
        loaded.append(cafile)
        return load(self, cafile, *others, **options)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loading)
    return loaded


@asynccontextmanager
async def encrypted(servers, context):
    """Yield proxies with TLS in front of all servers, and the map from these to those."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(each.host, each.port, tls=context)) for each in servers]
        pairs = zip(servers, proxies, strict=True)
        yield proxies, {f"{each.host}:{each.port}": f"{proxy.host}:{proxy.port}" for each, proxy in pairs}


async def test_pool_makes_one_context_for_all_its_connections(tls_proxy, own_authority, contexts):
    async with configured(tls_proxy.url, ssl_ca_certs=own_authority) as pool:
        contexts.clear()
        client = MonitoredRedisConnection(connection_pool=pool)
        for _ in range(3):
            await client.get("k")
            await asyncio.gather(*(client.blpop(["empty"], 0.01) for _ in range(3)))
            await pool.disconnect()

    assert 1 == len(contexts)


async def test_cluster_pool_makes_one_context_for_all_refreshes_nodes_and_reconnections(
    identity, own_authority, contexts, loaded_files
):
    context = identity()
    with ClusterServers(replicas=1, node_timeout=60) as servers:
        async with encrypted(servers.nodes, context) as (proxies, address_map):
            contexts.clear()
            loaded_files.clear()
            async with MonitoredClusterPool(
                [(proxies[0].host, proxies[0].port)],
                connection_class=SSLConnection,
                ssl_ca_certs=own_authority,
                address_map=address_map,
            ) as pool:
                client = MonitoredRedisConnection(connection_pool=pool)
                for _ in range(3):
                    assert [True] * 30 == await asyncio.gather(*(client.set(f"k:{n}", "v") for n in range(30)))
                    assert await client.blpop(["empty"], 0.01) is None
                    for node in pool.nodes():
                        await pool.pool_of(node).ping()
                    await refresh_topology(pool)
                    await pool.disconnect()
                accepted = sum(proxy.accepted for proxy in proxies)

    assert 6 + 3 <= accepted
    assert 1 == len(contexts)
    # To check it, and to use it.
    assert [own_authority] * 2 == loaded_files


async def test_sentinel_pool_makes_one_context_for_sentinels_and_servers(
    identity, own_authority, contexts, loaded_files, until
):
    context = identity()
    with SentinelServers(replicas=2, down_after=60) as servers:
        everything = [*servers.data, *servers.sentinels]
        async with encrypted(everything, context) as (proxies, address_map):
            sentinels = proxies[len(servers.data) :]
            contexts.clear()
            loaded_files.clear()
            async with MonitoredSentinelPool(
                [(each.host, each.port) for each in sentinels],
                "mymaster",
                connection_class=SSLConnection,
                ssl_ca_certs=own_authority,
                address_map=address_map,
                read_from="replica",
            ) as pool:
                client = MonitoredRedisConnection(connection_pool=pool)
                for _ in range(3):
                    assert await client.set("k", "v")
                    await until(lambda: 2 == len(replicas_of(pool)))
                    await asyncio.gather(*(client.get("k") for _ in range(30)))
                    await pool.disconnect()
                await until(lambda: all(1 < each.accepted for each in sentinels))

    assert 1 == len(contexts)
    assert [own_authority] * 2 == loaded_files


async def test_pools_with_other_settings_have_other_contexts(tls_proxy, own_authority, contexts):
    async with AsyncExitStack() as stack:
        contexts.clear()
        for options in ({}, {"ssl_min_version": "1.3"}, {"ssl_check_hostname": "false"}):
            pool = await stack.enter_async_context(configured(tls_proxy.url, ssl_ca_certs=own_authority, **options))
            await pool.ping()

    assert 3 == len(contexts)
    assert [True, True, False] == [each.check_hostname for each in contexts]
    assert ssl.TLSVersion.TLSv1_3 == contexts[1].minimum_version


async def test_renewed_certificate_is_used_without_a_restart(server, identity, authority, pem, tmp_path, caplog):
    def issue(issuer):
        return issuer.issue_cert("client@example.org").private_key_and_cert_chain_pem.bytes()

    (certificate := tmp_path / "client.pem").write_bytes(issue(trustme.CA()))
    async with (
        FaultProxy(server.host, server.port, tls=identity(ask_client=True)) as proxy,
        configured(proxy.url, ssl_ca_certs=pem.authority, ssl_certfile=str(certificate)) as pool,
    ):
        with pytest.raises((TimeoutError, redis.exceptions.ConnectionError)):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await pool.ping()
        certificate.write_bytes(issue(authority))
        await pool.ping()
        assert [] == caplog.messages

        # Only a part of it was written so far.
        certificate.write_bytes(issue(authority)[:100])
        for _ in range(2):
            await pool.disconnect()
            await pool.ping()

        assert ["aioredis_monitored.credentials"] == [record.name for record in caplog.records]
        assert "cannot be used" in caplog.text


async def test_certificate_that_is_gone_before_it_was_used_is_an_error(tls_proxy, pem, tmp_path):
    certificate = tmp_path / "client.pem"
    shutil.copy(pem.both, certificate)
    async with configured(tls_proxy.url, CONNECT_TIMEOUT, ssl_certfile=str(certificate)) as pool:
        certificate.unlink()
        for _ in range(2):
            with pytest.raises(redis.exceptions.ConnectionError, match="No such file"):
                await pool.ping()
