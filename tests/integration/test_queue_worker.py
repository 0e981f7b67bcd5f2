"""``MessageQueue.consume``: every message is handled, whatever fails in the worker, and cancellation ends it."""

import asyncio
import functools
import logging
import threading
import time
from collections import Counter

import pytest
import redis.asyncio
import redis.exceptions
from support.consuming import blocked, held
from support.internals import is_worker_loop, set_failure_backoff
from support.sharing import UNRECORDED, begun, client_of, connections

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, PoolClosedError


@pytest.fixture
def queue(make_pool, server):
    return MessageQueue("mail", make_pool(server.url, **UNRECORDED))


class Handler:
    """A handler that records its messages, and may have to wait for permission."""

    def __init__(self):
        self.handled, self.begun, self.running, self.most = [], [], 0, 0
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, message):
        self.begun.append(message)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.may_go_on.wait()
            await asyncio.sleep(0)
            self.handled.append(message)
        finally:
            self.running -= 1


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture
async def consume():
    """Start to consume; cancel at the test's end what still runs."""
    workers = []

    def begin(queue, handler, **arguments):
        workers.append(asyncio.create_task(queue.consume(handler, **arguments)))
        return workers[-1]

    yield begin
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def _cancel_and_wait(worker):
    worker.cancel()
    await asyncio.wait([worker])
    assert worker.cancelled()


@pytest.mark.parametrize("concurrency", [1, 3, 8])
async def test_worker_handles_each_message_once_with_given_concurrency(
    queue, consume, handler, inspector, until, concurrency
):
    await queue.put_many(range(100))
    worker = consume(queue, handler, concurrency=concurrency)
    await until(lambda: len(handler.handled) == 100)
    await _cancel_and_wait(worker)

    assert concurrency == handler.most
    assert {str(number).encode(): 1 for number in range(100)} == Counter(handler.handled)
    assert [0, []] == [inspector.llen("mail"), held(inspector)]


@pytest.mark.parametrize("kind", ["unshared", "plain", "one connection"])
async def test_worker_acks_while_waiting_for_messages_on_any_client(
    make_pool, server, consume, handler, inspector, until, kind
):
    if kind == "plain":
        client = redis.asyncio.Redis.from_url(server.url)
    else:
        pool = make_pool(server.url, multiplex=kind != "unshared", **UNRECORDED)
        client = MonitoredRedisConnection(connection_pool=pool)
    async with client.client() if kind == "one connection" else client as client:
        queue = MessageQueue("mail", client)
        worker = consume(queue, handler)
        try:
            for number in range(3):
                await until(lambda: blocked(inspector))
                inspector.rpush("mail", number)
                await until(lambda number=number: len(handler.handled) > number and not held(inspector))
        finally:
            await _cancel_and_wait(worker)
            await queue.aclose()


async def test_worker_waits_on_one_connection_for_all_handlers(make_pool, server, consume, handler, inspector, until):
    queue = MessageQueue("mail", client_of(make_pool, server.url, **UNRECORDED))
    consume(queue, handler, concurrency=50)
    for number in range(3):
        await until(lambda: blocked(inspector))
        await queue.put_many(range(20))
        await until(lambda number=number: len(handler.handled) == 20 * number + 20)

    assert len(connections(inspector)) <= 3
    await until(lambda: blocked(inspector) == 1)


async def test_cancelled_worker_takes_no_more_and_ends_after_its_handlers(queue, consume, handler, inspector, until):
    await queue.put_many(range(5))
    handler.may_go_on.clear()
    worker = consume(queue, handler, concurrency=2)
    await until(lambda: len(handler.begun) == 2)
    worker.cancel()
    await begun()
    assert not worker.done()
    handler.may_go_on.set()
    await asyncio.wait([worker])

    assert worker.cancelled()
    assert [b"0", b"1"] == sorted(handler.handled)
    assert [[b"2", b"3", b"4"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]


async def test_worker_cancelled_twice_cancels_handlers_and_requeues_at_head(queue, consume, handler, inspector, until):
    await queue.put_many(range(5))
    handler.may_go_on.clear()
    worker = consume(queue, handler, concurrency=2)
    await until(lambda: len(handler.begun) == 2)
    for _ in range(2):
        worker.cancel()
        await begun()
    await asyncio.wait([worker])

    assert worker.cancelled()
    assert [] == handler.handled
    left = inspector.lrange("mail", 0, -1)
    assert [[b"0", b"1"], [b"2", b"3", b"4"], []] == [sorted(left[:2]), left[2:], held(inspector)]


async def test_stopped_worker_takes_no_more_and_returns_after_its_handlers(queue, consume, handler, inspector, until):
    await queue.put_many(range(5))
    handler.may_go_on.clear()
    workers = [consume(queue, handler, concurrency=1) for _ in range(2)]
    await until(lambda: len(handler.begun) == 2)
    for _ in range(2):
        queue.stop()
        await begun()
    assert not any(worker.done() for worker in workers)
    handler.may_go_on.set()

    assert [None, None] == await asyncio.gather(*workers)
    assert [b"0", b"1"] == sorted(handler.handled)
    assert [[b"2", b"3", b"4"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]


@pytest.mark.parametrize("concurrency", [1, 2, 3])
async def test_worker_cancelled_after_stop_cancels_handlers_and_requeues(
    queue, consume, handler, inspector, until, concurrency
):
    await queue.put_many(range(2))
    handler.may_go_on.clear()
    worker = consume(queue, handler, concurrency=concurrency)
    await until(lambda: len(handler.begun) == min(concurrency, 2))
    queue.stop()
    await begun()
    await _cancel_and_wait(worker)

    assert [] == handler.handled
    assert [[b"0", b"1"], []] == [sorted(inspector.lrange("mail", 0, -1)), held(inspector)]


async def test_stopped_worker_returns_while_idle_or_in_failure_backoff(queue, consume, inspector, until):
    failed = []

    async def fail(message):
        failed.append(message)
        raise ValueError(message)

    idle = MessageQueue("nothing", queue.client, lease=1)
    await queue.put(b"message")
    workers = [consume(each, fail) for each in (queue, idle)]
    await until(lambda: failed and blocked(inspector) == 2)
    for each in (queue, idle):
        each.stop()
    await asyncio.wait_for(asyncio.gather(*workers), 15)

    assert [[b"message"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]


async def test_worker_returns_immediately_when_stopped_before_starting(queue, handler, inspector):
    await queue.put(b"message")
    queue.stop()
    await queue.consume(handler)
    with pytest.raises(TypeError):
        await queue.consume(print)

    assert [] == handler.handled
    # All other calls work.
    assert b"message" == await queue.get(0)


async def test_worker_is_cancelled_when_its_loops_are_cancelled(queue, consume, handler, inspector, until):
    await queue.put_many(range(2))
    handler.may_go_on.clear()
    worker = consume(queue, handler, concurrency=2)
    await until(lambda: len(handler.begun) == 2)
    for task in asyncio.all_tasks():
        if is_worker_loop(task):
            task.cancel()
    await asyncio.wait([worker])

    assert worker.cancelled()
    assert [[b"0", b"1"], []] == [sorted(inspector.lrange("mail", 0, -1)), held(inspector)]


async def test_worker_error_survives_a_later_stop(queue, consume, handler, inspector, until):
    worker = consume(queue, handler)
    await until(lambda: blocked(inspector))
    inspector.set("mail", "no list")
    await asyncio.wait([worker])
    queue.stop()

    assert isinstance(worker.exception(), redis.exceptions.ResponseError)


async def test_cancelled_worker_ends_immediately_during_failure_backoff(queue, consume, inspector, until, monkeypatch):
    failed = []

    async def fail(message):
        failed.append(message)
        raise ValueError(message)

    set_failure_backoff(monkeypatch, lambda _: 600.0)
    await queue.put(b"message")
    worker = consume(queue, fail, concurrency=1)
    await until(lambda: failed)
    async with asyncio.timeout(15):
        await _cancel_and_wait(worker)

    assert [[b"message"], []] == [inspector.lrange("mail", 0, -1), held(inspector)]


@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError()])
async def test_failed_message_is_redelivered_without_delaying_others(queue, consume, inspector, until, caplog, error):
    handled = []

    async def handler(message):
        handled.append(message)
        if message == b"bad" and handled.count(b"bad") < 4:
            raise error

    await queue.put_many([b"bad", *range(30)])
    worker = consume(queue, handler, concurrency=2)
    await until(lambda: handled.count(b"bad") == 4 and not held(inspector))
    await _cancel_and_wait(worker)

    assert {b"bad": 4} | {str(number).encode(): 1 for number in range(30)} == Counter(handled)
    assert handled.index(b"29") < handled.index(b"bad", 1)
    assert 3 == sum("handler" in message for message in caplog.messages)


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_failure_backoff_doubles_for_a_message_that_always_fails(queue, consume, until, concurrency):
    failed = []

    async def fail(message):
        failed.append(time.monotonic())
        raise ValueError(message)

    await queue.put(b"bad")
    worker = consume(queue, fail, concurrency=concurrency)
    await until(lambda: len(failed) == 5)
    await _cancel_and_wait(worker)

    # A tenth of a second, doubled with each failure, minus a random part of up to half.
    assert [] == [n for n in range(1, 5) if failed[n] - failed[n - 1] < 0.99 * 0.05 * 2 ** (n - 1)]


async def test_worker_continues_after_a_server_restart(make_pool, own_server, consume, handler, until):
    queue = MessageQueue("mail", make_pool(own_server.url, socket_timeout=2, **UNRECORDED), lease=1)
    consume(queue, handler)
    await queue.put(b"before")
    await until(lambda: handler.handled == [b"before"])
    own_server.kill()
    own_server.start()
    with redis.Redis.from_url(own_server.url) as producer:
        producer.rpush("mail", "after")

    await until(lambda: handler.handled[-1] == b"after")


async def test_worker_reloads_scripts_that_are_flushed_repeatedly(queue, consume, handler, inspector, until):
    stop = threading.Event()

    def flush_scripts():
        # Also between a script's loading and its execution, as when a server restarts at that moment.
        while not stop.wait(0.001):
            inspector.script_flush()

    await queue.put_many(range(100))
    forgetting = asyncio.get_running_loop().run_in_executor(None, flush_scripts)
    try:
        worker = consume(queue, handler)
        await until(lambda: len(set(handler.handled)) == 100 or worker.done())
        assert not worker.done()
    finally:
        stop.set()
        await forgetting


async def test_worker_continues_after_the_server_was_a_replica(make_pool, own_server, consume, handler, until):
    queue = MessageQueue("mail", make_pool(own_server.url, **UNRECORDED), lease=1)
    worker = consume(queue, handler)
    with redis.Redis.from_url(own_server.url) as operator:
        await until(lambda: blocked(operator))
        # A waiting consumer gets "UNBLOCKED … instance state changed".
        operator.replicaof("127.0.0.1", 1)
        operator.replicaof("NO", "ONE")
        operator.rpush("mail", "message")
        await until(lambda: handler.handled or worker.done())

    assert [b"message"] == handler.handled


@pytest.mark.parametrize("fault", ["kill", "cut", "cut replies"])
async def test_worker_loses_no_message_when_connections_break(
    make_pool, proxy, consume, handler, inspector, until, dice, fault
):
    queue = MessageQueue("mail", make_pool(proxy.url, **UNRECORDED), lease=1)
    consume(queue, handler)
    for number in range(100):
        inspector.rpush("mail", number)
        if dice.random() < 0.1:
            if fault == "kill":
                inspector.client_kill_filter(_type="normal", skipme=True)
            elif fault == "cut":
                proxy.cut()
            else:
                proxy.cut_replies = 1
        await asyncio.sleep(0)
    proxy.cut_replies = 0

    await until(lambda: len(set(handler.handled)) == 100 and not held(inspector))


async def test_worker_raises_on_wrong_type_or_closed_pool(queue, consume, handler, inspector, until):
    async def outcome(worker):
        await asyncio.wait([worker], timeout=60)
        return worker.exception()

    inspector.set("mail", "no list")
    assert isinstance(await outcome(consume(queue, handler)), redis.exceptions.ResponseError)
    inspector.delete("mail")
    for concurrency in (1, 8):
        worker = consume(queue, handler, concurrency=concurrency)
        await until(lambda: blocked(inspector))
        await queue.client.connection_pool.aclose()
        assert isinstance(await outcome(worker), PoolClosedError)
        assert isinstance(await outcome(consume(queue, handler)), PoolClosedError)
        await queue.client.connection_pool.__aenter__()


async def test_worker_logs_failed_ack_and_handles_the_message_again(
    make_pool, proxy, consume, inspector, until, caplog
):
    handled = []

    async def handler(message):
        handled.append(message)
        proxy.silent = len(handled) == 1

    queue = MessageQueue("mail", make_pool(proxy.url, socket_timeout=1, **UNRECORDED), lease=1)
    inspector.rpush("mail", "message")
    consume(queue, handler, concurrency=1)
    with caplog.at_level(logging.WARNING, "aioredis_monitored.queue"):
        await until(lambda: "handled, but the acknowledgement failed: TimeoutError" in caplog.text)
        proxy.silent = False
        proxy.cut()
        await until(lambda: handled == [b"message"] * 2 and not held(inspector))


@pytest.mark.parametrize(
    "handler", [print, lambda message: None, None, 1, Handler], ids=["print", "lambda", "None", "1", "class"]
)
async def test_worker_raises_when_handler_is_no_coroutine_function(queue, handler):
    with pytest.raises(TypeError, match="handler must be a coroutine function, got"):
        await queue.consume(handler)


async def test_worker_accepts_any_callable_that_returns_coroutines(queue, consume, handler, until):
    async def with_more(more, message):
        await handler(message)

    for each in (handler, handler.__call__, functools.partial(with_more, 1)):
        await queue.put(b"message")
        worker = consume(queue, each, concurrency=1)
        await until(lambda: handler.handled == [b"message"])
        await _cancel_and_wait(worker)
        handler.handled.clear()


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, "1", True, None])
async def test_worker_raises_on_invalid_concurrency(queue, handler, concurrency):
    with pytest.raises(ValueError, match="concurrency must be an integer of at least 1, got"):
        await queue.consume(handler, concurrency=concurrency)


@pytest.mark.parametrize("turns", [1, 3, 10, 30])
async def test_worker_loses_no_message_when_the_event_loop_ends(server, inspector, turns):
    inspector.rpush("mail", *range(100))
    handled, pools = [], []

    async def handle(message):
        await asyncio.sleep(0)
        handled.append(message)

    async def main():
        pools.append(MonitoredConnectionPool.from_url(server.url, **UNRECORDED))
        await pools[0].ping()
        consuming = asyncio.create_task(MessageQueue("mail", pools[0], lease=30).consume(handle))
        while len(handled) < turns:
            await asyncio.sleep(0)
        assert not consuming.done()

    await asyncio.to_thread(asyncio.run, main())
    await pools[0].aclose()

    assert [str(number).encode() for number in range(100)] == sorted(
        [*handled, *inspector.lrange("mail", 0, -1)], key=int
    )
    assert [] == held(inspector)


async def test_worker_goes_on_after_a_message_whose_lease_was_lost(queue, inspector, consume, until, caplog):
    handled = []

    async def handle(message):
        if message == b"lost":
            # Another consumer has taken it over.
            inspector.delete(*inspector.keys("{mail}:p:*"))
        handled.append(message)

    await queue.put(b"lost")
    consume(queue, handle)
    await until(lambda: any("the acknowledgement failed: queue 'mail': 1 of 1" in each for each in caplog.messages))
    await queue.put(b"next")

    await until(lambda: handled == [b"lost", b"next"])
