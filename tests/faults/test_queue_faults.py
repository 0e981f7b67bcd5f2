"""A queue's messages when several things go wrong at once."""

import asyncio
import hashlib
import logging
import time

import pytest
import redis.asyncio
from opentelemetry.context import attach, detach, set_value
from support.consuming import die, living
from support.internals import leases_of, renewal_task_of, renewer_of
from support.sharing import UNRECORDED, begun, frozen, until_blocked

from aioredis_monitored import (
    LeaseLostError,
    MessageQueue,
    MonitoredRedisConnection,
    PinnedConnectionLostError,
    PoolClosedError,
)
from aioredis_monitored._cancellation import complete_shielded, run_to_completion
from aioredis_monitored.envelope import seal
from aioredis_monitored.pool.retry import exponential_backoff, is_transient

LOST = ["queue 'mail': a message that a cancelled get() was receiving may be lost"]


@pytest.fixture
def queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED))


async def test_cancelled_get_warns_when_connection_breaks_while_unblocking(make_pool, proxy, inspector, caplog):
    queue = MessageQueue("mail", make_pool(proxy.url, **UNRECORDED))
    (waiting,) = await begun(queue.get())
    await until_blocked(inspector)
    waiting.cancel()
    proxy.cut()
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    assert LOST == caplog.messages


async def test_cancelled_get_gives_up_unblocking_on_frozen_server(make_pool, own_server, caplog):
    # Without a shared connection, unblocking needs another connection, which cannot be made.
    queue = MessageQueue("mail", make_pool(own_server.url, multiplex=False, socket_timeout=2, **UNRECORDED))
    (waiting,) = await begun(queue.get())
    with redis.Redis.from_url(own_server.url) as inspector:
        await until_blocked(inspector)
    async with frozen(own_server):
        waiting.cancel()
        with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
            await asyncio.gather(waiting, return_exceptions=True)

    assert waiting.cancelled()
    assert LOST == caplog.messages


async def test_cancelled_get_warns_when_user_may_not_unblock(make_pool, own_server, caplog):
    with redis.Redis.from_url(own_server.url) as root:
        root.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-client|id"])
        queue = MessageQueue("mail", make_pool(own_server.url, username="limited", **UNRECORDED))
        await queue.put(b"message")
        assert b"message" == await queue.get()
        (waiting,) = await begun(queue.get())
        await until_blocked(root)
    waiting.cancel()
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await asyncio.gather(waiting, return_exceptions=True)

    assert LOST == caplog.messages


@pytest.mark.parametrize("kind", ["shared", "unshared", "plain"])
async def test_cancelled_get_restores_message_during_connection_release(
    make_pool, server, inspector, monkeypatch, kind
):
    pool = redis.asyncio.BlockingConnectionPool.from_url(server.url)
    if kind != "plain":
        pool = make_pool(server.url, multiplex=kind == "shared", **UNRECORDED)
    queue = MessageQueue("mail", MonitoredRedisConnection(connection_pool=pool))
    await queue.client.ping()
    (waiting,) = await begun(queue.get())
    await until_blocked(inspector)
    release, is_releasing = pool.release, asyncio.Event()

    async def slow_release(connection):
        # As a release of a connection whose credentials have changed.
        is_releasing.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release(connection)

    monkeypatch.setattr(pool, "release", slow_release)
    inspector.rpush("mail", "message")
    await is_releasing.wait()
    monkeypatch.setattr(pool, "release", release)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await pool.aclose()

    assert [b"message"] == inspector.lrange("mail", 0, -1)


async def test_retrying_get_raises_pool_closed_error_when_pool_closes(make_pool, own_server):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED))
    own_server.kill()
    (trying,) = await begun(queue.get(0))
    await queue.client.connection_pool.aclose()

    with pytest.raises(PoolClosedError):
        await trying


async def test_cancelled_get_warns_when_pool_closes_before_reply(make_pool, own_server, caplog):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED))
    await queue.put(b"message")
    async with frozen(own_server):
        (waiting,) = await begun(queue.get(0))
        waiting.cancel()
        closing = asyncio.ensure_future(queue.client.connection_pool.aclose())
        await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await asyncio.gather(waiting, closing, return_exceptions=True)

    assert LOST == caplog.messages


async def test_take_restores_message_when_registration_of_consumer_fails(make_pool, server, inspector):
    queue = MessageQueue("mail", make_pool(server.url, multiplex=False, **UNRECORDED))
    inspector.set("{mail}:c", "no set")
    inspector.rpush("mail", "message")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await queue.take(5).__aenter__()

    assert [b"message"] == inspector.lrange("mail", 0, -1)


async def test_take_rejects_second_entry_while_in_use(queue):
    await queue.put_many([1, 2])
    taking = queue.take()
    async with taking:
        with pytest.raises(RuntimeError, match=r"this take\(\) is in use"):
            await taking.__aenter__()
    async with taking as message:
        assert b"2" == message


async def test_complete_shielded_repeats_cancelled_attempts_until_one_completes():
    attempts = []

    async def attempt():
        attempts.append(asyncio.current_task())
        await asyncio.sleep(0.01)

    (task,) = await begun(complete_shielded("what", attempt, 5))
    task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    # As a closing event loop does.
    attempts[-1].cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert 3 == len(attempts)
    assert [True, True, False] == [each.cancelled() for each in attempts]


async def test_run_to_completion_raises_timeout_error_at_deadline():
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await run_to_completion(asyncio.Event().wait, 0.01)

    assert time.monotonic() - started < 15


async def test_queue_records_nothing_when_instrumentation_is_suppressed(pool, telemetry):
    queue = MessageQueue("mail", pool)
    token = attach(set_value("suppress_instrumentation", True))
    await queue.put(b"message")
    async with queue.take():
        pass
    detach(token)

    assert () == telemetry.spans
    assert {} == telemetry.tally("messaging.client.operation.duration")


async def test_raising_instruments_do_not_affect_queue(pool, telemetry):
    def fail(*_):
        raise LookupError

    queue = MessageQueue("mail", pool)
    for name in ("message_duration", "sent_messages", "consumed_messages", "process_duration"):
        instrument = getattr(pool.telemetry.instruments, name)
        setattr(instrument, "record" if hasattr(instrument, "record") else "add", fail)
    await queue.put(b"message")
    async with queue.take() as message:
        assert b"message" == message


async def test_envelope_with_unreadable_send_time_is_unwrapped(pool, telemetry, client):
    await client.rpush("mail", seal(b"message", {"aioredis-monitored-sent-at": "noon"}), seal(b"other", {}))

    assert [b"message", b"other"] == await MessageQueue("mail", pool).get_many(2)
    assert {} == telemetry.tally("aioredis_monitored.queue.time")


async def test_waiting_get_raises_timeout_error_on_frozen_server(make_pool, own_server):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=1.5, retries=0, **UNRECORDED))
    await queue.client.ping()
    (waiting,) = await begun(queue.get(1))
    with redis.Redis.from_url(own_server.url) as inspector:
        await until_blocked(inspector)
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError, match=r"no reply in 2\.5 s"):
            await waiting


@pytest.mark.parametrize("is_draining", [False, True])
async def test_message_of_dead_consumer_is_handled_alone(queue, inspector, until, is_draining):
    handling, together, is_over = set(), [], asyncio.Event()

    async def handle(message):
        handling.add(message)
        together.append(sorted(handling))
        if message.startswith(b"long"):
            await is_over.wait()
        await asyncio.sleep(0)
        handling.remove(message)

    for message in (b"first", b"second"):
        digest = hashlib.sha1(message, usedforsecurity=False).hexdigest()
        inspector.hset("{mail}:n", mapping={digest: 1, f"{digest}:deaths": 1})
    await queue.put_many([b"long 1", b"first", b"second", b"long 2"])
    working = asyncio.create_task(queue.consume(handle, concurrency=4))
    await until(lambda: handling == {b"long 1", b"long 2"} and inspector.llen("mail") == 1)
    if is_draining:
        working.cancel()
    is_over.set()
    if not is_draining:
        await until(lambda: len(together) == 4 and not inspector.keys("{mail}:p:*"))
        working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    alone = [each for each in together if {b"first", b"second"} & set(each)]
    assert ([[b"first"]] if is_draining else [[b"first"], [b"second"]]) == alone
    assert [] == inspector.keys("{mail}:p:*")


async def test_lease_renewal_resumes_after_outage(make_pool, own_server, caplog, until):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=1, **UNRECORDED), lease=1)
    await queue.put(b"message")
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        async with queue.take():
            async with frozen(own_server):
                await until(lambda: caplog.messages)
            with redis.Redis.from_url(own_server.url) as inspector:
                die(inspector, *inspector.zrange("{mail}:c", 0, -1))
                await until(lambda: living(inspector))

    assert "queue 'mail': lease renewal failed, retrying: TimeoutError" == caplog.messages[0]


async def test_lease_renewer_restarts_after_stop_when_needed(queue, inspector, until):
    impatient = MessageQueue("mail", queue.client, lease=1)
    await impatient.put_many([1, 2])
    async with impatient.take():
        await until(lambda: renewal_task_of(impatient) is not None)
        renewer_of(impatient).stop()
        async with impatient.take():
            die(inspector, *(consumers := inspector.zrange("{mail}:c", 0, -1)))
            await until(lambda: set(consumers) <= living(inspector))


def test_exponential_backoff_doubles_up_to_maximum():
    seconds_after = exponential_backoff(0.1, 5.0)

    assert all(0.05 <= seconds_after(1) <= 0.1 and 0.1 <= seconds_after(2) <= 0.2 for _ in range(100))
    assert all(2.5 <= seconds_after(failures) <= 5.0 for failures in (10, 1_023, 1_024, 10**6))


async def test_unrecoverable_list_does_not_block_recovery_of_others(queue, inspector, until, caplog):
    impatient = MessageQueue("mail", queue.client, lease=1)
    die(inspector, *range(20))
    inspector.set("{mail}:p:0", "no list")
    for number in range(1, 20):
        inspector.rpush(f"{{mail}}:p:{number}", number)
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await impatient.put(b"held")
        async with impatient.take():
            await until(lambda: inspector.llen("mail") == 19)

    assert "queue 'mail': requeueing a dead consumer's messages failed: ResponseError" in caplog.messages


async def test_take_exit_raises_lease_lost_error_while_queue_closes(queue):
    async def hold():
        async with queue.take():
            await is_closing.wait()

    await queue.put(b"message")
    is_closing = asyncio.Event()
    (holding,) = await begun(hold())
    while not len(leases_of(queue)):
        await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(queue.aclose())
    await asyncio.sleep(0)
    is_closing.set()
    outcome, _ = await asyncio.gather(holding, closing, return_exceptions=True)

    assert isinstance(outcome, LeaseLostError)
    assert b"message" == await queue.get(0)


async def test_unlink_deletes_delivery_counts(queue, inspector):
    inspector.hset("{mail}:n", "hash", 1)
    await queue.put(b"message")
    await queue.unlink()

    assert [] == inspector.keys("*mail*")


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (redis.exceptions.ResponseError("BUSY Redis is busy running a script."), True),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), True),
        (redis.exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (redis.exceptions.OutOfMemoryError("command not allowed"), True),
        (redis.exceptions.ResponseError("BUSYGROUP Consumer Group name already exists"), False),
        (redis.exceptions.ResponseError("WRONGTYPE Operation against a key"), False),
        (redis.exceptions.AuthenticationError("WRONGPASS"), False),
        (PoolClosedError("closed"), False),
        (PinnedConnectionLostError("lost"), False),
    ],
)
def test_is_transient_accepts_only_errors_that_pass_by_themselves(error, passes):
    assert passes == is_transient(error)


@pytest.mark.parametrize("refused", ["-@scripting", "-ltrim"])
@pytest.mark.parametrize("is_waiting", [False, True], ids=["there", "awaited"])
async def test_cancelled_get_restores_message_with_limited_permissions(
    make_client, own_server, caplog, refused, is_waiting
):
    received, count = [], 20
    with redis.Redis.from_url(own_server.url) as root:
        root.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], commands=["+@all", refused])
        queue = MessageQueue("mail", make_client(own_server.url, username="limited"))
        with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
            for number in range(count):
                if is_waiting and not root.exists("mail"):
                    (getting,) = await begun(queue.get())
                    await until_blocked(root)
                    root.rpush("mail", number)
                else:
                    root.rpush("mail", number)
                    getting = asyncio.create_task(queue.get())
                    await asyncio.sleep(0)
                getting.cancel()
                await asyncio.wait([getting])
                received += [] if getting.cancelled() else [getting.result()]
                if is_waiting:
                    received += root.lpop("mail", count) or []

        assert [] == caplog.messages
        assert [str(number).encode() for number in range(count)] == received + root.lrange("mail", 0, -1)


async def test_message_that_may_not_be_put_back_is_counted(make_pool, server, inspector, telemetry, until, caplog):
    commands = ["+@all", "-lpush", "-eval"]
    inspector.acl_setuser("taker", enabled=True, nopass=True, keys=["*"], channels=["*"], commands=commands)
    queue = MessageQueue("mail", make_pool(server.url, username="taker", password="any"))
    assert [] == await queue.dead()
    inspector.rpush("mail", "message")
    inspector.client_pause(600_000, all=False)
    getting = asyncio.ensure_future(queue.get(5))
    await until(lambda: any(each["cmd"] == "lpop" for each in inspector.client_list()))
    getting.cancel()
    inspector.client_unpause()
    await asyncio.wait([getting])

    await until(lambda: {1} == set(telemetry.tally("aioredis_monitored.queue.unsettled").values()))
    assert ["queue 'mail': a message that a cancelled get() was receiving may be lost"] == caplog.messages
    inspector.acl_deluser("taker")
