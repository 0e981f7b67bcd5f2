"""The rights that the production checklist gives to users are enough on real servers, which refuse nothing."""

import asyncio
import re

import pytest
from support.example_modules import ROOT
from support.internals import replicas_of, shorten_ping_of_sentinels

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.cli import main
from aioredis_monitored.testing import ClusterServers, SentinelServers

PAGE = (ROOT / "docs" / "guides" / "production.md").read_text("utf-8")
[OF_ONE_SERVER] = re.findall(r'RIGHTS = """(.*?)"""', PAGE, re.DOTALL)
[OF_A_QUEUE] = re.findall(r"^`ACL SETUSER worker (.*)`$", PAGE, re.MULTILINE)
[OF_A_NODE, OF_A_SENTINEL] = re.findall(r"^`ACL SETUSER shop (.*)`$", PAGE, re.MULTILINE)
DEADLINE = 30.0
KEYS = [f"shop:{number}" for number in range(30)]


def allow(servers, user, *rights):
    for each in servers:
        each.call("ACL", "SETUSER", user, *" ".join(rights).split())
        each.call("ACL", "LOG", "RESET")


def refused(servers):
    """Return what was refused, a time for each."""
    entries = [dict(zip(entry[::2], entry[1::2], strict=True)) for each in servers for entry in each.call("ACL", "LOG")]
    return [entry["object"] for entry in entries for _ in range(int(entry["count"]))]


async def use(client):
    """Use all that the page says a web service may use."""
    await client.connection_pool.ping()
    assert [True] * len(KEYS) == await asyncio.gather(*(client.set(key, "v") for key in KEYS))
    await asyncio.gather(*(client.get(key) for key in KEYS))
    assert len(KEYS) == len({key async for key in client.scan_iter(match="shop:*")})
    async with client.lock("shop:lock", timeout=DEADLINE) as lock:
        await lock.extend(DEADLINE)
    count_up = client.register_script("return redis.call('INCR', KEYS[1])")
    for key in ("shop:{a}", "shop:{b}", "shop:{c}", "shop:{d}"):
        assert 1 == await count_up(keys=[key])
        async with client.pipeline("script") as pipe:
            await count_up(keys=[key], client=pipe)
            assert [2, 3] == await pipe.incrby(key, 1).execute()
    async with client.pipeline(transaction=True) as pipe:
        await pipe.watch("shop:watched")
        pipe.multi()
        assert [True, b"v"] == await pipe.set("shop:watched", "v").get("shop:watched").execute()
    assert await client.blpop(["shop:empty"], 0.01) is None
    async with client.client() as handle:
        await handle.set("shop:own", "v")
        assert await handle.client_id()
        assert await handle.wait(0, 100) >= 0
    async with client.pubsub() as pubsub:
        await pubsub.subscribe("shop:news")
        await pubsub.get_message(timeout=DEADLINE)
        await client.publish("shop:news", "hello")
        assert b"hello" == (await pubsub.get_message(timeout=DEADLINE))["data"]
    await client.delete(*[key async for key in client.scan_iter()])


@pytest.mark.parametrize("read_from", ["primary", "replica"])
async def test_user_of_a_cluster_has_the_rights_that_the_page_gives(read_from):
    with ClusterServers(node_timeout=60) as servers:
        allow(servers.nodes, "shop", OF_ONE_SERVER, OF_A_NODE)
        slot = key_slot("shop:moving")
        target = next(node for node in servers.primaries() if node is not servers.owner(slot))
        pool = MonitoredConnectionPool.from_url(servers.url, username="shop", password="secret", read_from=read_from)
        async with pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await use(client)
            async with client.pubsub() as pubsub:
                await pubsub.ssubscribe("shop:shard")
                await pubsub.get_message(timeout=DEADLINE)
                await client.spublish("shop:shard", "hello")
                assert b"hello" == (await pubsub.get_sharded_message(timeout=DEADLINE))["data"]
            servers.begin_migration(slot, target)
            assert await client.set("shop:moving", "asked")
            servers.end_migration(slot, target)
            assert await client.set("shop:moving", "moved")

        # The page says so.
        assert ["config|get"] == refused(servers.nodes)


async def test_user_of_a_queue_on_a_cluster_has_the_rights_that_the_page_gives():
    with ClusterServers(replicas=0, node_timeout=60) as servers:
        allow(servers.nodes, "worker", OF_A_QUEUE, OF_A_NODE)
        pool = MonitoredConnectionPool.from_url(servers.url, username="worker", password="secret")
        async with pool, MessageQueue("mail", pool) as queue:
            await queue.put_many([b"one", b"two"])
            async with queue.take(timeout=DEADLINE) as message:
                assert b"one" == message
            assert b"two" == await queue.get(timeout=DEADLINE)

        assert ["config|get"] == refused(servers.nodes)


@pytest.mark.parametrize("arguments", [{}, {"protocol": 2}, {"read_from": "replica"}])
async def test_users_under_sentinel_have_the_rights_that_the_page_gives(arguments, until, caplog, monkeypatch):
    # Otherwise they are not asked for signs of life in time.
    shorten_ping_of_sentinels(monkeypatch, 0.05)
    with SentinelServers(down_after=60) as servers:
        allow(servers.data, "shop", OF_ONE_SERVER)
        allow(servers.sentinels, "shop", OF_A_SENTINEL)
        credentials = {"username": "shop", "password": "secret"}
        of_sentinels = {"sentinel_username": "shop", "sentinel_password": "another-secret"}
        pool = MonitoredConnectionPool.from_url(servers.url, **credentials, **of_sentinels, **arguments)
        async with pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await client.set("shop:1", "v")
            if "read_from" in arguments:
                await until(lambda: 2 == len(replicas_of(pool)))
            await use(client)
            await asyncio.to_thread(servers.failover)
            await use(client)

        assert [] == refused([*servers.data, *servers.sentinels])
        assert [] == [text for text in caplog.messages if "refuses" in text]


@pytest.mark.parametrize("rights", [OF_ONE_SERVER, OF_A_QUEUE])
def test_doctor_misses_none_of_the_rights_that_the_page_gives(own_server, tmp_path, capsys, rights):
    allow([own_server], "user", rights)
    file = tmp_path / "variables"
    file.write_text(f"REDIS_URL=redis://user:secret@{own_server.host}:{own_server.port}\n")

    assert 0 == main(["doctor", "--env-file", str(file), *(["--queue", "mail"] if rights is OF_A_QUEUE else [])])
    lines = capsys.readouterr().out.splitlines()
    assert [] == [line for line in lines if "rights" in line.split(":")[0] and not line.startswith("ok ")]
