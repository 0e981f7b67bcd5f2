"""Locks under faults: nothing of an acquisition is left behind, and each task releases what it has acquired."""

import asyncio
import gc
import logging
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import product
from weakref import ref

import pytest
import redis
import redis.asyncio
import redis.exceptions
from opentelemetry.trace import StatusCode
from support.internals import is_background_acquisition, set_lock_undo_time, shared_connection_of, tasks_with_holds_of
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._cancellation import complete_shielded
from aioredis_monitored.client.lock import MonitoredLock

DURATION = "db.client.operation.duration"
HOLD = "aioredis_monitored.lock.hold_time"
LOST = "aioredis_monitored.lock.lost"

# The kinds of clients, beside sharing a connection or not.
KINDS = ["multiplexed", "pooled", "one connection", "plain", "plain blocking", "redis-py", "replaced"]


class Replacing(MonitoredRedisConnection):
    """A client with its own ``execute_command``, which sees every command."""

    async def execute_command(self, *args, **options):
        self.seen = [*getattr(self, "seen", ()), args[0]]
        return await super().execute_command(*args, **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
async def any_client(kind, make_pool, server):
    """Yield clients of every kind, whose locks are ours, and close their pools."""
    made = []

    def make(url=server.url, **arguments):
        if kind in {"multiplexed", "pooled", "one connection", "replaced"}:
            pool = make_pool(url, **UNRECORDED, multiplex=kind != "pooled", **arguments)
            made.append(client := (Replacing if kind == "replaced" else MonitoredRedisConnection)(connection_pool=pool))
            if kind == "one connection":
                made.append(client := client.client())
            return client
        if kind == "redis-py":
            made.append(client := redis.asyncio.Redis.from_url(url, **arguments))
            return client
        pool_class = redis.asyncio.ConnectionPool if kind == "plain" else redis.asyncio.BlockingConnectionPool
        made.append(pool := pool_class.from_url(url, **arguments))
        return MonitoredRedisConnection(connection_pool=pool)

    yield make
    for each in reversed(made):
        await each.aclose()


@contextmanager
def writes_paused(inspector):
    """Have the server hold back all writes."""
    inspector.client_pause(600_000, all=False)
    try:
        yield
    finally:
        inspector.client_unpause()


@asynccontextmanager
async def timeout_once_sent(inspector):
    """Return a timeout that expires as soon as the server holds a write back."""
    async with asyncio.timeout(None) as limit:

        async def look():
            while not inspector.info("clients")["blocked_clients"]:
                await asyncio.sleep(0.001)
            limit.reschedule(0)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()


def lock_of(client, name="job", **arguments):
    return client.lock(name, lock_class=MonitoredLock, **arguments)


def is_deleted(inspector, name="job"):
    return lambda: not inspector.exists(name)


def background_tasks():
    """Return the tasks that run without a caller."""
    return [
        task
        for task in asyncio.all_tasks()
        if is_background_acquisition(task) or task.get_coro().__qualname__ == complete_shielded.__qualname__
    ]


async def wait_for_background(until):
    """Wait until no task runs without a caller."""
    await until(lambda: not background_tasks(), 10)


async def test_timed_out_lock_acquire_returns_immediately_and_is_undone(any_client, inspector, until):
    client = any_client()
    for timeout in (60, None):
        await client.ping()
        with writes_paused(inspector):
            with pytest.raises(TimeoutError):
                async with timeout_once_sent(inspector), lock_of(client, timeout=timeout):
                    raise AssertionError
            # The command was sent, and the caller has left.
            assert 1 == inspector.info("clients")["blocked_clients"]
            assert background_tasks()
        await wait_for_background(until)
        assert is_deleted(inspector)()


async def test_abandoned_lock_acquire_keeps_its_connection(any_client, inspector, until):
    client = any_client()
    before = await client.client_id()
    with writes_paused(inspector), pytest.raises(TimeoutError):
        async with timeout_once_sent(inspector):
            await lock_of(client).acquire()
    await wait_for_background(until)

    assert before == await client.client_id()


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "cancel") for kind in KINDS), *product(["multiplexed", "pooled"], ["wait_for", "timeout", "group"])],
    indirect=["kind"],
)
async def test_randomly_cancelled_lock_leaves_no_key(any_client, inspector, until, dice, how):
    client = any_client()

    async def hold(lock):
        async with lock:
            pass

    async def attempt(number):
        lock = lock_of(client, f"job {number}")
        seconds = dice.random() * 0.004
        with suppress(asyncio.CancelledError, TimeoutError):
            if how == "wait_for":
                await asyncio.wait_for(lock.acquire(), seconds)
            elif how == "timeout":
                async with asyncio.timeout(seconds):
                    await lock.acquire()
            elif how == "group":
                async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                    group.create_task(hold(lock))
                return
            else:
                task = asyncio.ensure_future(lock.acquire())
                asyncio.get_running_loop().call_later(seconds, task.cancel)
                await task
            await lock.release()

    for batch in range(20):
        await asyncio.gather(*(attempt(10 * batch + number) for number in range(10)))
    await wait_for_background(until)

    assert [] == inspector.keys("job*")


async def test_lock_acquire_cancelled_at_any_tick_leaves_no_key(any_client, inspector, until):
    client = any_client()
    await client.ping()
    ended = None
    for ticks in range(60):
        task = asyncio.ensure_future(lock_of(client).acquire(blocking=False))
        for _ in range(ticks):
            await asyncio.sleep(0)
        # So that the reply arrives in this tick or the next.
        if ticks % 2:
            time.sleep(0.001)  # noqa: ASYNC251 - the event loop must not run
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            ended = ticks
            assert outcome
            inspector.delete("job")
        await wait_for_background(until)
        assert is_deleted(inspector)(), ticks

    assert ended is None or ended > 0


async def test_lock_acquire_cancelled_on_success_leaves_no_key(any_client, inspector, until, monkeypatch):
    set_with, acquiring, answers = MonitoredLock.send_set, [], []

    async def set_and_cancel(self, acquisition, token):
        answers.append(await set_with(self, acquisition, token))
        # Before the caller's task resumes, which comes next.
        asyncio.get_running_loop().call_soon(acquiring[0].cancel)
        return answers[0]

    monkeypatch.setattr(MonitoredLock, "send_set", set_and_cancel)
    acquiring.append(asyncio.ensure_future(lock_of(any_client()).acquire(token="mine")))
    outcomes = await asyncio.gather(*acquiring, return_exceptions=True)
    await until(is_deleted(inspector))

    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [True] == answers


async def test_polling_lock_acquire_has_nothing_to_undo_when_cancelled(any_client, inspector):
    inspector.set("job", "another's")
    client = any_client()
    (acquiring,) = await begun(lock_of(client, sleep=600).acquire())
    while background_tasks():
        await asyncio.sleep(0.001)
    acquiring.cancel()
    await asyncio.wait([acquiring])

    assert b"another's" == inspector.get("job")
    assert [] == background_tasks()


async def test_unsent_lock_acquire_sends_no_undo_when_timed_out(make_pool, server, inspector, until):
    client = MonitoredRedisConnection(
        connection_pool=make_pool(server.url, **UNRECORDED, multiplex=False, max_connections=1)
    )
    inspector.config_resetstat()
    (waiting,) = await begun(client.blpop("nothing", 600))
    await until(lambda: inspector.info("clients")["blocked_clients"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.lock("job").acquire()

    # Neither the acquisition nor a task that undoes it.
    assert [] == background_tasks()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert 0 == inspector.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)


async def test_lock_undo_releases_caller_token_only_after_successful_set(any_client, inspector, until):
    client = any_client()
    await client.ping()
    inspector.set("job", "shared")
    for is_held in (True, False):
        with writes_paused(inspector), pytest.raises(TimeoutError):
            async with timeout_once_sent(inspector):
                await lock_of(client).acquire(token="shared")
        await wait_for_background(until)
        assert inspector.get("job") == (b"shared" if is_held else None)
        inspector.delete("job")


@pytest.mark.parametrize("timeout", [None, 60])
async def test_lock_acquire_with_lost_reply_is_undone_on_another_connection(
    any_client, proxy, inspector, until, timeout
):
    client = any_client(proxy.url)
    await client.ping()
    # In the middle of the reply to SET, +OK.
    proxy.cut_replies, proxy.cut_after = 1, 2
    outcomes = await asyncio.gather(lock_of(client, timeout=timeout, blocking=False).acquire(), return_exceptions=True)
    await wait_for_background(until)

    # redis-py's client retries, and finds its own key. The next attempt is a new one.
    assert outcomes == [False] or isinstance(outcomes[0], redis.exceptions.ConnectionError)
    await until(is_deleted(inspector), 10)


@pytest.mark.parametrize("kind", ["multiplexed"])
async def test_lock_undo_succeeds_while_event_loop_is_busy(any_client, own_server, until, monkeypatch, caplog):
    set_lock_undo_time(monkeypatch, 2)
    client = any_client(own_server.url)
    await client.ping()
    own_server.freeze()
    (task,) = await begun(lock_of(client).acquire(blocking=False))
    task.cancel()
    await asyncio.wait([task])
    own_server.thaw()
    with redis.Redis.from_url(own_server.url) as admin:
        while not admin.exists("job"):
            pass
    # The server has answered the SET, and does not answer later commands.
    own_server.freeze()
    calls = shared_connection_of(client).inflight.pending
    await until(lambda: calls and calls[0].args[0] == "EVAL" and not shared_connection_of(client).inflight.unwritten)
    own_server.thaw()
    time.sleep(4)  # noqa: ASYNC251 - that is the point
    await wait_for_background(until)

    assert not await client.exists("job")
    assert [] == caplog.messages


async def test_lock_with_caller_token_is_kept_after_lost_reply(any_client, proxy, inspector, until):
    client = any_client(proxy.url)
    await client.ping()
    proxy.cut_replies, proxy.cut_after = 1, 2
    await asyncio.gather(lock_of(client, blocking=False).acquire(token="mine"), return_exceptions=True)
    await wait_for_background(until)

    assert b"mine" == inspector.get("job")


async def test_lock_acquire_raises_timeout_on_frozen_server_and_is_undone(any_client, own_server, until):
    client = any_client(own_server.url, socket_timeout=0.2)
    await client.ping()
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await lock_of(client).acquire()
    with redis.Redis.from_url(own_server.url) as inspector:
        await wait_for_background(until)
        assert is_deleted(inspector)()


async def test_cancelled_lock_acquire_is_undone_after_connection_loss(any_client, proxy, inspector, until):
    client = any_client(proxy.url)
    await client.ping()
    with writes_paused(inspector):
        (acquiring,) = await begun(lock_of(client).acquire())
        await until(lambda: inspector.info("clients")["blocked_clients"])
        acquiring.cancel()
        await asyncio.wait([acquiring])
        proxy.cut()
        await asyncio.sleep(0)
    await wait_for_background(until)

    assert is_deleted(inspector)()


class Prefixing(MonitoredRedisConnection):
    """A client that prefixes the keys of its locks, as for several tenants."""

    async def execute_command(self, *args, **options):
        at = {"SET": 1, "EVAL": 3, "EVALSHA": 3}.get(args[0])
        if at is not None:
            args = (*args[:at], f"tenant:{args[at]}", *args[at + 1 :])
        return await super().execute_command(*args, **options)


# Clients whose locks are elsewhere than their pool's calls: class, whether it is a handle, command for its database.
ELSEWHERE = {
    "selected": (MonitoredRedisConnection, True, ("SELECT", 1)),
    "selected in one string": (MonitoredRedisConnection, True, (b"select 1",)),
    "prefixed": (Prefixing, False, None),
    "prefixed handle": (Prefixing, True, None),
    "prefixed and selected": (Prefixing, True, ("SELECT", "1")),
}


@pytest.fixture(params=ELSEWHERE)
async def client_elsewhere(request, make_pool, proxy):
    client_class, is_handle, select = ELSEWHERE[request.param]
    pools = []

    async def make(how):
        options = {} if how == "plain" else {**UNRECORDED, "multiplex": how == "multiplexed"}
        pools.append((redis.asyncio.ConnectionPool.from_url if how == "plain" else make_pool)(proxy.url, **options))
        client = client_class(connection_pool=pools[-1], single_connection_client=is_handle)
        await (client.execute_command(*select) if select else client.ping())
        return client

    yield make
    for pool in pools:
        await pool.aclose()


def databases_with_keys(inspector):
    """Return the databases that have keys."""
    return inspector.info("keyspace")


@pytest.mark.parametrize("how", ["multiplexed", "pooled", "plain"])
async def test_lock_acquire_is_undone_in_its_database_and_prefix(client_elsewhere, proxy, inspector, until, how):
    client = await client_elsewhere(how)
    with writes_paused(inspector), pytest.raises(TimeoutError):
        async with timeout_once_sent(inspector), client.lock("job"):
            pass
    await wait_for_background(until)
    await until(lambda: not databases_with_keys(inspector), 10)

    # In the middle of the reply to SET, +OK.
    proxy.cut_replies, proxy.cut_after = 1, 2
    await asyncio.gather(client.lock("job", blocking=False).acquire(), return_exceptions=True)
    await wait_for_background(until)
    await until(lambda: not databases_with_keys(inspector), 10)
    await client.aclose()


@pytest.mark.parametrize("how", ["multiplexed", "pooled"])
async def test_lock_release_continues_in_its_database_and_prefix(
    client_elsewhere, proxy, inspector, until, caplog, soon, how
):
    client = await client_elsewhere(how)
    holding = await hold_in_task(client.lock("job"))
    assert databases_with_keys(inspector)
    with writes_paused(inspector):
        holding.cancel()
        await until(lambda: inspector.info("clients")["blocked_clients"])
        proxy.cut()
        await asyncio.wait([holding])
    await until(lambda: not databases_with_keys(inspector), 10)
    await wait_for_background(until)
    await client.aclose()

    assert [] == caplog.messages


async def test_rejected_lock_acquire_is_not_undone(any_client, inspector, until):
    client = any_client()
    await client.ping()
    inspector.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
            await lock_of(client).acquire()
    finally:
        inspector.config_set("min-replicas-to-write", 0)

    assert [] == background_tasks()


async def test_lock_acquire_with_invalid_name_is_not_undone(any_client):
    client = any_client()
    with pytest.raises(redis.exceptions.DataError):
        await lock_of(client, name=["a list"]).acquire()

    assert [] == background_tasks()


async def test_lock_undo_gives_up_at_deadline_and_warns(make_client, own_server, until, caplog, monkeypatch):
    set_lock_undo_time(monkeypatch, 0.2)
    client = make_client(own_server.url, socket_timeout=0.1, retries=0)
    await client.ping()
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.lock("job").acquire(token=None)
        await wait_for_background(until)

    (text,) = (record.message for record in caplog.records if record.name == "aioredis_monitored.lock")
    assert text.startswith("lock 'job': an acquisition that was given up may hold it until its timeout: ")


async def test_pool_close_waits_for_lock_undo(make_pool, server, inspector, multiplex):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    with writes_paused(inspector), pytest.raises(TimeoutError):
        async with pool:
            try:
                async with timeout_once_sent(inspector):
                    await client.lock("job").acquire()
            finally:
                asyncio.get_running_loop().call_later(0.1, inspector.client_unpause)

    assert [] == background_tasks()
    assert is_deleted(inspector)()


async def test_pool_close_ends_lock_undo_on_frozen_server(make_pool, own_server, multiplex, monkeypatch):
    set_lock_undo_time(monkeypatch, 600)
    pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=0.2)
    client = MonitoredRedisConnection(connection_pool=pool)
    # On a connection, on which the acquisition is sent.
    await client.ping()
    async with frozen(own_server), asyncio.timeout(15):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.lock("job").acquire()
        assert background_tasks()
        await pool.aclose()
        assert [] == background_tasks()


PROGRAM = """
import asyncio, sys
from aioredis_monitored import MonitoredRedisConnection, MonitoredConnectionPool

async def main():
    pool = MonitoredConnectionPool.from_url(sys.argv[1], multiplex=sys.argv[2] == "True")
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    # As many as there are steps.
    for ticks in range(30):
        task = asyncio.create_task(client.lock(f"job {ticks}").acquire())
        keep.append(task)
        await asyncio.sleep(0)
    global pool_of_main
    pool_of_main = pool

keep = []
asyncio.run(main(), debug=False)
asyncio.run(pool_of_main.aclose())
# Which were acquired before the event loop ended.
print(*(f"job {number}" for number, task in enumerate(keep) if not task.cancelled()), sep=",")
"""


async def test_event_loop_end_leaves_only_acquired_locks(server, inspector, multiplex):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        "-c",
        PROGRAM,
        server.url,
        str(multiplex),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()

    assert (b"", 0) == (err, process.returncode)
    assert {name for name in out.decode().strip().split(",") if name} == {
        key.decode() for key in inspector.keys("job*")
    }


async def echo(client):
    async with client.client() as single:
        return (await single.echo("own")).decode()


async def test_lock_acquire_with_cancelled_background_task_leaves_no_key(any_client, inspector, until):
    client = any_client()
    await client.ping()
    for ticks in range(10):
        (acquiring,) = await begun(lock_of(client).acquire())
        for _ in range(ticks):
            await asyncio.sleep(0)
        # As a closing event loop, which cancels the caller later.
        for task in background_tasks():
            task.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            assert inspector.delete("job")
        await wait_for_background(until)
        assert is_deleted(inspector)()


class Cluster:
    """A client without a pool, such as a cluster's."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        if name == "connection_pool":
            raise AttributeError(name)
        return getattr(self._client, name)


async def test_lock_works_on_client_without_pool(client, inspector):
    lock = MonitoredLock(Cluster(client), "job")
    async with lock:
        assert await lock.owned()

    assert is_deleted(inspector)()


async def test_pinned_client_releases_no_connection_with_pending_lock_reply(client, inspector, until):
    await client.ping()
    single = client.client()
    await single.ping()
    with writes_paused(inspector), pytest.raises(TimeoutError):
        async with single, timeout_once_sent(inspector):
            await single.lock("job").acquire()
    # Later users of the connection get their own replies.
    assert ["own"] * 3 == await asyncio.gather(*(echo(client) for _ in range(3)))
    await wait_for_background(until)

    assert is_deleted(inspector)()


async def test_lock_undo_is_not_recorded(client, inspector, telemetry, until):
    await client.ping()
    with telemetry.block() as block:
        with writes_paused(inspector), pytest.raises(TimeoutError):
            async with timeout_once_sent(inspector):
                await client.lock("job").acquire()
        await wait_for_background(until)
    span = block.span("lock.acquire")

    assert (span,) == block.spans
    assert "asyncio.exceptions.CancelledError" == span.attributes["error.type"]
    assert {"SET": 1} == block.tally(DURATION, "db.operation.name")


# Each task has its own token.


async def test_expired_lock_holder_cannot_release_lock_of_another_task(any_client, inspector, until):
    lock = lock_of(any_client(), timeout=60)
    may_release = asyncio.Event()

    async def hold():
        await lock.acquire()
        await may_release.wait()
        assert not await lock.owned()
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await lock.extend(5)
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await lock.reacquire()
        for error in (redis.exceptions.LockNotOwnedError, redis.exceptions.LockError):
            # The second time, the task holds no lock.
            with pytest.raises(error):
                await lock.release()

    (first,) = await begun(hold())
    await until(lambda: lock.local.token)
    # As if the lock had expired.
    inspector.delete("job")
    await lock.acquire()
    token = inspector.get("job")
    may_release.set()
    await first

    assert token == lock.local.token == inspector.get("job")
    assert await lock.owned()
    await lock.release()
    assert is_deleted(inspector)()


async def test_lock_acquired_in_subtask_is_usable_by_parent_task(any_client, inspector):
    lock = lock_of(any_client(), timeout=5)
    for _ in range(3):
        # In a separate task, as wait_for runs it on Python 3.11.
        assert await asyncio.create_task(lock.acquire())
        assert await lock.owned()
        assert await lock.extend(5)
        assert await lock.reacquire()
        assert inspector.get("job") == lock.local.token
        await lock.release()
        assert [None, 0] == [lock.local.token, inspector.exists("job")]
        # Locks that this task acquires and releases itself change nothing.
        await lock.acquire()
        await lock.release()
        with pytest.raises(redis.exceptions.LockError):
            await lock.release()


async def test_lock_call_uses_token_of_creating_task(any_client, inspector, until):
    lock = lock_of(any_client(), timeout=60)
    await lock.acquire()
    inspector.delete("job")
    await asyncio.create_task(lock.acquire())
    # Called in this task, awaited in another one.
    for call in (lock.extend(5), lock.reacquire(), lock.release()):
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await asyncio.create_task(call)
    assert inspector.exists("job")


async def test_lock_token_can_be_assigned(any_client, inspector):
    lock = lock_of(any_client())
    inspector.set("job", "mine")
    lock.local.token = b"mine"
    assert await lock.owned()
    lock.local.token = None
    assert not await lock.owned()
    with pytest.raises(redis.exceptions.LockError):
        await lock.release()
    lock.local.token = b"mine"
    await lock.release()
    lock.local.token = None

    assert is_deleted(inspector)()


async def test_lock_token_is_shared_by_tasks_without_thread_local(any_client, inspector):
    lock = lock_of(any_client(), timeout=5, thread_local=False)
    await lock.acquire()
    assert await asyncio.create_task(lock.owned())
    await asyncio.create_task(lock.release())
    assert [None, 0] == [lock.local.token, inspector.exists("job")]
    await lock.acquire()
    (releasing,) = await begun(lock.release())
    # Another task acquires the lock before this one resumes.
    lock.local.token = b"another's"
    await releasing

    assert b"another's" == lock.local.token


async def test_lock_token_outside_tasks_is_last_acquired(client):
    lock = client.lock("job")
    await lock.acquire(token="mine")
    seen = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: seen.set_result(lock.local.token))
    assert b"mine" == await seen

    await asyncio.to_thread(setattr, lock.local, "token", b"theirs")
    assert b"mine" == lock.local.token
    await lock.release()


async def test_lock_keeps_no_task_alive(any_client):
    lock = lock_of(any_client())

    async def hold():
        async with lock:
            pass
        return ref(asyncio.current_task())

    tasks = [await asyncio.create_task(hold()) for _ in range(10)]
    await asyncio.sleep(0)
    gc.collect()

    assert [None] * 10 == [task() for task in tasks]
    assert 0 == len(tasks_with_holds_of(lock))


async def test_lock_hold_time_is_recorded_per_task(client, telemetry, inspector, until):
    lock = client.lock("job", timeout=60)
    may_release = asyncio.Event()

    async def hold():
        await lock.acquire()
        await may_release.wait()
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await lock.release()

    (first,) = await begun(hold())
    await until(lambda: lock.local.token)
    inspector.delete("job")
    await lock.acquire()
    may_release.set()
    await first
    await lock.release()

    assert {"": 2} == telemetry.tally(HOLD)
    assert {"": 1} == telemetry.tally(LOST)


# Abandoned locks.


@pytest.mark.parametrize("how", ["async with", "finally"])
async def test_failed_lock_release_does_not_hide_cancellation(make_client, own_server, until, caplog, monkeypatch, how):
    set_lock_undo_time(monkeypatch, 0.5)
    client = make_client(own_server.url, socket_timeout=0.2, retries=0)
    is_held = asyncio.Event()

    async def hold():
        if how == "async with":
            async with client.lock("job"):
                is_held.set()
                await asyncio.Event().wait()
        lock = client.lock("job")
        await lock.acquire()
        try:
            is_held.set()
            await asyncio.Event().wait()
        finally:
            await lock.release()

    (holding,) = await begun(hold())
    await is_held.wait()
    own_server.kill()
    with caplog.at_level(logging.WARNING):
        holding.cancel()
        await asyncio.wait([holding])
        await wait_for_background(until)

    assert holding.cancelled()
    assert ["lock 'job': releasing it failed while its task was being cancelled: ConnectionError"] == caplog.messages


async def test_lock_release_error_is_raised_despite_cancellation_of_another_task(any_client, inspector):
    client = any_client()
    other = asyncio.ensure_future(asyncio.sleep(60))
    other.cancel()
    try:
        await other
    except asyncio.CancelledError:
        lock = lock_of(client)
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            async with lock:
                inspector.delete("job")
        with pytest.raises(redis.exceptions.LockError):
            await lock_of(client).release()


async def test_failed_lock_release_raises_without_cancellation(make_client, own_server):
    client = make_client(own_server.url, socket_timeout=0.2, retries=0)
    with pytest.raises(redis.exceptions.ConnectionError):
        async with client.lock("job"):
            own_server.kill()


async def test_cancelled_lock_release_completes(any_client, inspector, until, caplog):
    client = any_client()
    lock = lock_of(client)
    for number in range(1, 20):
        await lock.acquire()
        releasing = asyncio.ensure_future(lock.release())
        for _ in range(number):
            await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
        assert is_deleted(inspector)()
        assert lock.local.token is None

    assert [] == caplog.messages


@pytest.fixture
def soon(monkeypatch):
    """Have a cancelled task leave a release sooner than after a second."""
    monkeypatch.setattr("aioredis_monitored.client.lock.SETTLE_SECONDS", 0.1)


async def hold_in_task(lock):
    """Return a task that holds the lock until it is cancelled."""
    is_held = asyncio.Event()

    async def hold():
        async with lock:
            is_held.set()
            await asyncio.Event().wait()

    holding = asyncio.ensure_future(hold())
    await is_held.wait()
    return holding


async def left(task):
    """Cancel a task; it leaves long before an answer could arrive."""
    task.cancel()
    await asyncio.wait([task], timeout=15)
    assert task.cancelled()


@pytest.mark.parametrize("where", ["in the block", "in the release"])
async def test_lock_release_continues_in_background_after_task_is_cancelled(
    any_client, inspector, until, caplog, soon, where
):
    client = any_client(socket_timeout=600)
    for _ in range(2):
        # The second time, the server knows the script.
        lock = lock_of(client)
        task = await hold_in_task(lock)
        if where == "in the release":
            task.cancel()
            await asyncio.wait([task])
            await lock.acquire()
        with writes_paused(inspector):
            if where == "in the release":
                (task,) = await begun(lock.release())
                await until(lambda: inspector.info("clients")["blocked_clients"])
            await left(task)
            assert inspector.exists("job")
            assert background_tasks()
        await until(is_deleted(inspector))
        await wait_for_background(until)
        assert lock.local.token is None

    assert [] == caplog.messages


async def test_cancelled_task_leaves_lock_release_in_time_on_frozen_server(make_client, own_server, until):
    client = make_client(own_server.url, socket_timeout=600)
    task = await hold_in_task(client.lock("job"))
    async with frozen(own_server):
        await left(task)
        assert background_tasks()
    with redis.Redis.from_url(own_server.url) as inspector:
        await until(is_deleted(inspector))
    await wait_for_background(until)


async def test_background_lock_release_is_repeated_until_server_is_back(any_client, own_server, until, caplog, soon):
    client = any_client(own_server.url, socket_timeout=0.2)
    task = await hold_in_task(lock_of(client))
    async with frozen(own_server):
        await left(task)
    await wait_for_background(until)
    with redis.Redis.from_url(own_server.url) as inspector:
        assert is_deleted(inspector)()

    assert [] == caplog.messages


async def test_background_lock_release_with_caller_token_is_not_repeated(any_client, own_server, until, caplog, soon):
    client = any_client(own_server.url, socket_timeout=0.2)
    lock = lock_of(client)
    # So that the server knows the script.
    async with lock:
        pass
    await lock.acquire(token="mine")

    async def release():
        try:
            await asyncio.Event().wait()
        finally:
            await lock.release()

    (releasing,) = await begun(release())
    async with frozen(own_server):
        await left(releasing)
        await wait_for_background(until)
    with redis.Redis.from_url(own_server.url) as inspector:
        await until(is_deleted(inspector))
        # A retry would be an EVAL.
        assert 0 == inspector.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)

    assert ["lock 'job': releasing it failed while its task was being cancelled: TimeoutError"] == caplog.messages


@pytest.mark.parametrize("is_plain", [True, False])
async def test_background_lock_release_outlives_pinned_client(
    make_pool, server, inspector, until, caplog, soon, is_plain
):
    make = redis.asyncio.ConnectionPool.from_url if is_plain else make_pool
    pool = make(server.url, socket_timeout=600)
    is_held = asyncio.Event()

    async def hold():
        async with MonitoredRedisConnection(connection_pool=pool).client() as single, single.lock("job"):
            is_held.set()
            await asyncio.Event().wait()

    holding = asyncio.ensure_future(hold())
    await is_held.wait()
    with writes_paused(inspector):
        await left(holding)
        assert inspector.exists("job")
    await until(is_deleted(inspector))
    await wait_for_background(until)
    await pool.aclose()

    assert [] == caplog.messages


async def test_pool_close_waits_for_background_lock_release(make_pool, server, inspector, multiplex, soon):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=600)
    task = await hold_in_task(MonitoredRedisConnection(connection_pool=pool).lock("job"))
    with writes_paused(inspector):
        await left(task)
        asyncio.get_running_loop().call_later(0.1, inspector.client_unpause)
        await pool.aclose()

    assert [] == background_tasks()
    assert is_deleted(inspector)()


async def test_background_lock_release_survives_cancellation_by_ending_event_loop(
    any_client, inspector, until, monkeypatch, soon
):
    # The task leaves soon, and the release in the background_tasks has more time than any machine needs.
    module = "aioredis_monitored.client.lock"
    monkeypatch.setattr(f"{module}.complete_shielded", lambda what, attempt, _: complete_shielded(what, attempt, 60))
    client = any_client()
    task = await hold_in_task(lock_of(client))
    with writes_paused(inspector):
        await left(task)
        (releasing,) = background_tasks()
        # As a closing event loop does.
        releasing.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([releasing])
    await until(is_deleted(inspector))


async def test_lock_release_raises_on_second_cancellation(make_client, server, inspector, soon):
    gone_on = []

    async def hold(lock):
        await lock.acquire()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await lock.release()
            gone_on.append(lock)

    client = make_client(server.url)
    for count in (1, 2):
        lock = client.lock(f"job {count}")
        task = asyncio.ensure_future(hold(lock))
        while not lock.local.token:
            await asyncio.sleep(0.001)
        with writes_paused(inspector):
            for _ in range(count):
                task.cancel()
                await begun()
            await asyncio.wait([task], timeout=15)
        assert task.cancelled() == (count == 2)
        assert 1 == len(gone_on)


async def test_background_lock_release_records_timeout_and_no_loss(client, telemetry, inspector, until, soon):
    task = await hold_in_task(client.lock("job"))
    with writes_paused(inspector):
        await left(task)
    await until(is_deleted(inspector))
    await wait_for_background(until)
    span = telemetry.span("lock.release")

    assert StatusCode.ERROR is span.status.status_code
    assert "TimeoutError" == span.attributes["error.type"]
    assert {"": 0} == telemetry.tally(LOST)
    assert {"": 1} == telemetry.tally(HOLD)


async def test_lock_release_with_lost_reply_is_retried_without_loss(make_client, telemetry, proxy, inspector):
    lock = make_client(proxy.url, is_recorded=True).lock("job")
    for cut_after in (0, 2):
        await lock.acquire()
        proxy.cut_replies, proxy.cut_after = 1, cut_after
        await lock.release()
        assert is_deleted(inspector)()
        with pytest.raises(redis.exceptions.LockError):
            await lock.release()

    assert {"": 0} == telemetry.tally(LOST)
    assert {"": 2} == telemetry.tally(HOLD)


async def test_cancelled_lock_release_counts_no_loss(make_client, server, telemetry, proxy, inspector):
    client = make_client(proxy.url, is_recorded=True)
    lock = client.lock("job")
    await lock.acquire()
    await client.register_script(lock.LUA_RELEASE_SCRIPT)(["other"], ["nothing"])
    # The reply is lost, and the lock does not exist when the release is retried.
    proxy.reply_pause = 0.05
    (releasing,) = await begun(lock.release())
    while inspector.exists("job"):
        await asyncio.sleep(0.001)
    releasing.cancel()
    proxy.reply_pause = 0
    await asyncio.wait([releasing])

    assert releasing.cancelled()
    assert {"": 0} == telemetry.tally(LOST)
    assert {"": 1} == telemetry.tally(HOLD)


async def test_lock_release_records_one_span(client, telemetry, server):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    with telemetry.block() as block:
        await lock.release()
    (span,) = block.spans

    assert "lock.release" == span.name
    assert StatusCode.UNSET is span.status.status_code
    assert {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "EVALSHA",
        "db.query.summary": "lock.release",
        "db.query.text": "EVALSHA ? ? lock ?",
        "db.stored_procedure.name": lock.lua_release.sha,
        "network.peer.address": server.host,
        "network.peer.port": server.port,
        "network.transport": "tcp",
        "server.address": server.host,
        "server.port": server.port,
    } == dict(span.attributes)
    # The block's commands.
    assert {"EVALSHA": 1} == block.tally(DURATION, "db.operation.name", "error.type")


async def test_release_of_lost_lock_records_error(client, telemetry, inspector):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    inspector.delete("lock")
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        await lock.release()
    span = telemetry.span("lock.release")

    assert StatusCode.ERROR is span.status.status_code
    assert "redis.exceptions.LockNotOwnedError" == span.attributes["error.type"]
    assert {"SET": 1, "EVALSHA": 1} == telemetry.tally(DURATION, "db.operation.name", "error.type")
