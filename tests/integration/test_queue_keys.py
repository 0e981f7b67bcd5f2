"""The keys of a queue: all in one slot of a cluster, and none of them another queue's."""

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import strategies as st
from support.consuming import blocked, hold_and_die
from support.internals import renewer_of
from support.sharing import UNRECORDED, begun

from aioredis_monitored import MessageQueue

CONSUMERS = ["0" * 32, "0123456789abcdef" * 2]

plain = st.text(st.sampled_from("ab:{}ü\n"), min_size=1, max_size=6) | st.text(min_size=1)


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("{a}:dead", "a"),
        ("{a}::dead", "{a}"),
        ("a{b}c::n", "a{b}c"),
        ("{a{}:c", "a{"),
        (f"{{a}}:p:{CONSUMERS[1]}", "a"),
    ],
)
def test_queue_name_error_names_the_queue_that_owns_the_key(pool, name, queue):
    with pytest.raises(ValueError, match="is a key of the queue") as caught:
        MessageQueue(name, pool)
    assert f"{name!r} is a key of the queue {queue!r}: choose another name" == str(caught.value)


async def test_queue_with_hash_tag_shares_no_keys_with_the_one_without(make_pool, server, inspector, until):
    pool = make_pool(server.url, **UNRECORDED)
    plain, tagged = (MessageQueue(name, pool, lease=1, max_deliveries=1) for name in ("a", "{a}"))
    await plain.put_many(["dead", "held"])
    with pytest.raises(ValueError, match="dead"):
        async with plain.take(0):
            raise ValueError("dead")
    assert [[b"dead"], [], 0] == [await plain.dead(), await tagged.dead(), await tagged.requeue_dead()]

    async with plain.take(0):
        renewer_of(plain).stop()
        (consumer,) = inspector.zrange("{a}:c", 0, -1)
        inspector.zadd("{a}:c", {consumer: 0})
        (waiting,) = await begun(_take_one(tagged))
        for _ in range(2):
            await until(lambda: inspector.exists("{a}::sweeper"))
            inspector.delete("{a}::sweeper")
        # The lease has ended, but the other queue must not recover the message.
        assert [b"held"] == inspector.lrange(f"{{a}}:p:{consumer.decode()}", 0, -1)
    await tagged.put("other")
    assert b"other" == await waiting


async def _take_one(queue):
    async with queue.take() as message:
        return message


@pytest.mark.parametrize("protocol", [2, 3])
async def test_queue_works_for_a_user_with_the_documented_permissions(
    make_pool, server, inspector, until, caplog, multiplex, protocol
):
    page = Path(__file__).parents[2] / "docs" / "guides" / "production.md"
    (rights,) = re.findall(r"`ACL SETUSER worker (.*)`", page.read_text())
    assert rights.startswith("on >secret ")
    inspector.execute_command("ACL", "SETUSER", "worker", *rights.split())
    inspector.rpush("mail", "first", "second")
    hold_and_die(server, 1)
    pool = make_pool(
        server.url, username="worker", password="secret", multiplex=multiplex, protocol=protocol, **UNRECORDED
    )
    handled = []

    async def handle(message):
        handled.append(message)

    try:
        async with MessageQueue("mail", pool, lease=3, max_deliveries=1) as queue:
            (getting,) = await begun(queue.get())
            assert b"second" == await getting
            for call in (queue.get(), queue.take().__aenter__()):
                (waiting,) = await begun(call)
                await until(lambda: blocked(inspector))
                waiting.cancel()
                await asyncio.wait([waiting])
            working = asyncio.create_task(queue.consume(handle))
            # A dead consumer's messages were delivered once, and are therefore dead letters now.
            await until(lambda: inspector.llen("{mail}:dead"))
            assert [b"first"] == await queue.dead()
            assert 1 == await queue.requeue_dead()
            await queue.put("third")
            await until(lambda: len(handled) == 2)
            queue.stop()
            await working
            await queue.put_many(["fourth", "fifth"])
            with pytest.raises(ZeroDivisionError):
                async with queue.take_many(2):
                    raise ZeroDivisionError
            assert [b"fourth", b"fifth"] == await queue.dead()
            assert 2 == (await queue.stats()).dead
            assert 2 == await queue.drop_dead()
            await queue.unlink()
        async with MessageQueue("mail", pool, max_length=1) as bounded:
            await bounded.put("message")
            assert b"message" == await bounded.get()
        assert {b"first", b"third"} == set(handled)
        assert [] == caplog.messages
    finally:
        inspector.acl_deluser("worker")
