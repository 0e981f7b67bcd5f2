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
from support.sharing import UNRECORDED, begun, frozen, line_of

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
def writes_held(inspector):
    """Have the server hold back all writes."""
    inspector.client_pause(600_000, all=False)
    try:
        yield
    finally:
        inspector.client_unpause()


@asynccontextmanager
async def late_when_sent(inspector):
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


def deleted(inspector, name="job"):
    return lambda: not inspector.exists(name)


def background():
    """Return the tasks that run without a caller."""
    return [
        task
        for task in asyncio.all_tasks()
        if task.get_coro().__qualname__ in {"_Acquisition._run", "complete_shielded"}
    ]


async def settled(until):
    """Wait until no task runs without a caller."""
    await until(lambda: not background(), 10)


async def test_an_acquisition_that_is_late_leaves_at_once_and_leaves_nothing(any_client, inspector, until):
    client = any_client()
    for timeout in (60, None):
        await client.ping()
        with writes_held(inspector):
            with pytest.raises(TimeoutError):
                async with late_when_sent(inspector), lock_of(client, timeout=timeout):
                    raise AssertionError
            # The command was sent, and the caller has left.
            assert 1 == inspector.info("clients")["blocked_clients"]
            assert background()
        await settled(until)
        assert deleted(inspector)()


async def test_the_connection_of_one_that_was_left_is_kept(any_client, inspector, until):
    client = any_client()
    before = await client.client_id()
    with writes_held(inspector), pytest.raises(TimeoutError):
        async with late_when_sent(inspector):
            await lock_of(client).acquire()
    await settled(until)

    assert before == await client.client_id()


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, "cancel") for kind in KINDS), *product(["multiplexed", "pooled"], ["wait_for", "timeout", "group"])],
    indirect=["kind"],
)
async def test_chance_cancellations_leave_nothing(any_client, inspector, until, dice, how):
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
    await settled(until)

    assert [] == inspector.keys("job*")


async def test_in_every_tick_a_cancellation_leaves_nothing(any_client, inspector, until):
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
        await settled(until)
        assert deleted(inspector)(), ticks

    assert ended is None or ended > 0


async def test_one_that_is_cancelled_in_the_tick_of_its_success_leaves_nothing(
    any_client, inspector, until, monkeypatch
):
    set_with, acquiring, answers = MonitoredLock.send_set, [], []

    async def set_and_cancel(self, acquisition, token):
        answers.append(await set_with(self, acquisition, token))
        # Before the caller's task resumes, which comes next.
        asyncio.get_running_loop().call_soon(acquiring[0].cancel)
        return answers[0]

    monkeypatch.setattr(MonitoredLock, "send_set", set_and_cancel)
    acquiring.append(asyncio.ensure_future(lock_of(any_client()).acquire(token="mine")))
    outcomes = await asyncio.gather(*acquiring, return_exceptions=True)
    await until(deleted(inspector))

    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert [True] == answers


async def test_one_that_polls_leaves_at_once_and_has_nothing_to_undo(any_client, inspector):
    inspector.set("job", "another's")
    client = any_client()
    (acquiring,) = await begun(lock_of(client, sleep=600).acquire())
    while background():
        await asyncio.sleep(0.001)
    acquiring.cancel()
    await asyncio.wait([acquiring])

    assert b"another's" == inspector.get("job")
    assert [] == background()


async def test_one_that_was_not_sent_asks_for_nothing(make_pool, server, inspector, until):
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
    assert [] == background()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert 0 == inspector.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)


async def test_a_callers_own_token_is_released_only_if_this_set_succeeded(any_client, inspector, until):
    client = any_client()
    await client.ping()
    inspector.set("job", "shared")
    for is_held in (True, False):
        with writes_held(inspector), pytest.raises(TimeoutError):
            async with late_when_sent(inspector):
                await lock_of(client).acquire(token="shared")
        await settled(until)
        assert inspector.get("job") == (b"shared" if is_held else None)
        inspector.delete("job")


@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_lost_answer_is_undone_elsewhere(any_client, proxy, inspector, until, timeout):
    client = any_client(proxy.url)
    await client.ping()
    # In the middle of the reply to SET, +OK.
    proxy.cut_replies, proxy.cut_after = 1, 2
    outcomes = await asyncio.gather(lock_of(client, timeout=timeout, blocking=False).acquire(), return_exceptions=True)
    await settled(until)

    # redis-py's client retries, and finds its own key. The next attempt is a new one.
    assert outcomes == [False] or isinstance(outcomes[0], redis.exceptions.ConnectionError)
    await until(deleted(inspector), 10)


@pytest.mark.parametrize("kind", ["multiplexed"])
async def test_what_was_undone_while_the_event_loop_was_busy_is_undone(
    any_client, own_server, until, monkeypatch, caplog
):
    monkeypatch.setattr("aioredis_monitored.client.lock._UNDO_SECONDS", 2)
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
    calls = line_of(client).inflight.pending
    await until(lambda: calls and calls[0].args[0] == "EVAL" and not line_of(client).inflight.unwritten)
    own_server.thaw()
    time.sleep(4)  # noqa: ASYNC251 - that is the point
    await settled(until)

    assert not await client.exists("job")
    assert [] == caplog.messages


async def test_a_lost_answer_to_a_callers_own_token_is_not(any_client, proxy, inspector, until):
    client = any_client(proxy.url)
    await client.ping()
    proxy.cut_replies, proxy.cut_after = 1, 2
    await asyncio.gather(lock_of(client, blocking=False).acquire(token="mine"), return_exceptions=True)
    await settled(until)

    assert b"mine" == inspector.get("job")


async def test_what_is_late_is_raised_at_once_and_undone(any_client, own_server, until):
    client = any_client(own_server.url, socket_timeout=0.2)
    await client.ping()
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await lock_of(client).acquire()
    with redis.Redis.from_url(own_server.url) as inspector:
        await settled(until)
        assert deleted(inspector)()


async def test_one_that_is_cancelled_and_then_lost_is_undone_elsewhere(any_client, proxy, inspector, until):
    client = any_client(proxy.url)
    await client.ping()
    with writes_held(inspector):
        (acquiring,) = await begun(lock_of(client).acquire())
        await until(lambda: inspector.info("clients")["blocked_clients"])
        acquiring.cancel()
        await asyncio.wait([acquiring])
        proxy.cut()
        await asyncio.sleep(0)
    await settled(until)

    assert deleted(inspector)()


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


def everywhere(inspector):
    """Return the databases that have keys."""
    return inspector.info("keyspace")


@pytest.mark.parametrize("how", ["multiplexed", "pooled", "plain"])
async def test_an_acquisition_is_undone_where_it_was_made(client_elsewhere, proxy, inspector, until, how):
    client = await client_elsewhere(how)
    with writes_held(inspector), pytest.raises(TimeoutError):
        async with late_when_sent(inspector), client.lock("job"):
            pass
    await settled(until)
    await until(lambda: not everywhere(inspector), 10)

    # In the middle of the reply to SET, +OK.
    proxy.cut_replies, proxy.cut_after = 1, 2
    await asyncio.gather(client.lock("job", blocking=False).acquire(), return_exceptions=True)
    await settled(until)
    await until(lambda: not everywhere(inspector), 10)
    await client.aclose()


@pytest.mark.parametrize("how", ["multiplexed", "pooled"])
async def test_a_release_goes_on_where_its_lock_is(client_elsewhere, proxy, inspector, until, caplog, soon, how):
    client = await client_elsewhere(how)
    holding = await held_by(client.lock("job"))
    assert everywhere(inspector)
    with writes_held(inspector):
        holding.cancel()
        await until(lambda: inspector.info("clients")["blocked_clients"])
        proxy.cut()
        await asyncio.wait([holding])
    await until(lambda: not everywhere(inspector), 10)
    await settled(until)
    await client.aclose()

    assert [] == caplog.messages


async def test_what_was_refused_is_not_undone(any_client, inspector, until):
    client = any_client()
    await client.ping()
    inspector.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(redis.exceptions.ResponseError, match="NOREPLICAS"):
            await lock_of(client).acquire()
    finally:
        inspector.config_set("min-replicas-to-write", 0)

    assert [] == background()


async def test_what_cannot_be_sent_is_not_undone(any_client):
    client = any_client()
    with pytest.raises(redis.exceptions.DataError):
        await lock_of(client, name=["a list"]).acquire()

    assert [] == background()


async def test_a_server_that_stays_away_is_asked_for_five_seconds_at_most(
    make_client, own_server, until, caplog, monkeypatch
):
    monkeypatch.setattr("aioredis_monitored.client.lock._UNDO_SECONDS", 0.2)
    client = make_client(own_server.url, socket_timeout=0.1, retries=0)
    await client.ping()
    async with frozen(own_server):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.lock("job").acquire(token=None)
        await settled(until)

    (text,) = (record.message for record in caplog.records if record.name == "aioredis_monitored.lock")
    assert text.startswith("lock 'job': an acquisition that was given up may hold it until its timeout: ")


async def test_a_pool_that_is_closed_waits_for_what_is_undone(make_pool, server, inspector, multiplex):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.ping()
    with writes_held(inspector), pytest.raises(TimeoutError):
        async with pool:
            try:
                async with late_when_sent(inspector):
                    await client.lock("job").acquire()
            finally:
                asyncio.get_running_loop().call_later(0.1, inspector.client_unpause)

    assert [] == background()
    assert deleted(inspector)()


async def test_a_pool_that_is_closed_does_not_wait_for_ever(make_pool, own_server, multiplex, caplog):
    pool = make_pool(own_server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=0.2)
    client = MonitoredRedisConnection(connection_pool=pool)
    async with frozen(own_server), asyncio.timeout(15):
        with pytest.raises(redis.exceptions.TimeoutError):
            await client.lock("job").acquire()
        await pool.aclose()
        assert [] == background()


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


async def test_an_end_of_the_event_loop_leaves_nothing(server, inspector, multiplex):
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


async def test_one_whose_own_task_is_cancelled_leaves_nothing(any_client, inspector, until):
    client = any_client()
    await client.ping()
    for ticks in range(10):
        (acquiring,) = await begun(lock_of(client).acquire())
        for _ in range(ticks):
            await asyncio.sleep(0)
        # As a closing event loop, which cancels the caller later.
        for task in background():
            task.cancel()
        await asyncio.wait([acquiring])
        if not acquiring.cancelled():
            assert inspector.delete("job")
        await settled(until)
        assert deleted(inspector)()


class Cluster:
    """A client without a pool, such as a cluster's."""

    def __init__(self, client):
        self._client = client

    def __getattr__(self, name):
        if name == "connection_pool":
            raise AttributeError(name)
        return getattr(self._client, name)


async def test_a_client_without_a_pool_does_as_in_redis_py(client, inspector):
    lock = MonitoredLock(Cluster(client), "job")
    async with lock:
        assert await lock.owned()

    assert deleted(inspector)()


async def test_a_handle_that_keeps_to_one_connection_gives_back_none_that_owes_a_reply(client, inspector, until):
    await client.ping()
    single = client.client()
    await single.ping()
    with writes_held(inspector), pytest.raises(TimeoutError):
        async with single, late_when_sent(inspector):
            await single.lock("job").acquire()
    # Later users of the connection get their own replies.
    assert ["own"] * 3 == await asyncio.gather(*(echo(client) for _ in range(3)))
    await settled(until)

    assert deleted(inspector)()


async def test_undoing_is_no_part_of_the_callers_telemetry(client, inspector, telemetry, until):
    await client.ping()
    with telemetry.block() as block:
        with writes_held(inspector), pytest.raises(TimeoutError):
            async with late_when_sent(inspector):
                await client.lock("job").acquire()
        await settled(until)
    span = block.span("lock.acquire")

    assert (span,) == block.spans
    assert "asyncio.exceptions.CancelledError" == span.attributes["error.type"]
    assert {"SET": 1} == block.tally(DURATION, "db.operation.name")


# Each task has its own token.


async def test_a_task_whose_lease_has_ended_leaves_the_others_lock_alone(any_client, inspector, until):
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
    assert deleted(inspector)()


async def test_a_lock_may_be_handed_over(any_client, inspector):
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


async def test_another_task_may_do_it_on_behalf(any_client, inspector, until):
    lock = lock_of(any_client(), timeout=60)
    await lock.acquire()
    inspector.delete("job")
    await asyncio.create_task(lock.acquire())
    # Called in this task, awaited in another one.
    for call in (lock.extend(5), lock.reacquire(), lock.release()):
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await asyncio.create_task(call)
    assert inspector.exists("job")


async def test_the_token_can_be_set(any_client, inspector):
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

    assert deleted(inspector)()


async def test_all_tasks_share_one_token_if_that_is_wanted(any_client, inspector):
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


async def test_without_a_task_it_is_what_was_acquired_last(client):
    lock = client.lock("job")
    await lock.acquire(token="mine")
    seen = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: seen.set_result(lock.local.token))
    assert b"mine" == await seen

    await asyncio.to_thread(setattr, lock.local, "token", b"theirs")
    assert b"mine" == lock.local.token
    await lock.release()


async def test_a_lock_keeps_no_task_alive(any_client):
    lock = lock_of(any_client())

    async def hold():
        async with lock:
            pass
        return ref(asyncio.current_task())

    tasks = [await asyncio.create_task(hold()) for _ in range(10)]
    await asyncio.sleep(0)
    gc.collect()

    assert [None] * 10 == [task() for task in tasks]
    assert 0 == len(lock.local._of_tasks)


async def test_each_tasks_holding_is_measured(client, telemetry, inspector, until):
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
async def test_a_release_that_fails_while_it_is_cancelled_lets_the_cancellation_go_on(
    make_client, own_server, until, caplog, monkeypatch, how
):
    monkeypatch.setattr("aioredis_monitored.client.lock._UNDO_SECONDS", 0.5)
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
        await settled(until)

    assert holding.cancelled()
    assert ["lock 'job': releasing it failed while its task was being cancelled: ConnectionError"] == caplog.messages


async def test_a_task_that_handles_the_cancellation_of_another_learns_what_fails(any_client, inspector):
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


async def test_a_release_that_fails_otherwise_raises(make_client, own_server):
    client = make_client(own_server.url, socket_timeout=0.2, retries=0)
    with pytest.raises(redis.exceptions.ConnectionError):
        async with client.lock("job"):
            own_server.kill()


async def test_a_release_that_is_cancelled_comes_to_its_end(any_client, inspector, until, caplog):
    client = any_client()
    lock = lock_of(client)
    for number in range(1, 20):
        await lock.acquire()
        releasing = asyncio.ensure_future(lock.release())
        for _ in range(number):
            await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
        assert deleted(inspector)()
        assert lock.local.token is None

    assert [] == caplog.messages


@pytest.fixture
def soon(monkeypatch):
    """Have a cancelled task leave a release sooner than after a second."""
    monkeypatch.setattr("aioredis_monitored.client.lock.SETTLE_SECONDS", 0.1)


async def held_by(lock):
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
async def test_a_release_goes_on_behind_its_cancelled_task(any_client, inspector, until, caplog, soon, where):
    client = any_client(socket_timeout=600)
    for _ in range(2):
        # The second time, the server knows the script.
        lock = lock_of(client)
        task = await held_by(lock)
        if where == "in the release":
            task.cancel()
            await asyncio.wait([task])
            await lock.acquire()
        with writes_held(inspector):
            if where == "in the release":
                (task,) = await begun(lock.release())
                await until(lambda: inspector.info("clients")["blocked_clients"])
            await left(task)
            assert inspector.exists("job")
            assert background()
        await until(deleted(inspector))
        await settled(until)
        assert lock.local.token is None

    assert [] == caplog.messages


async def test_a_task_leaves_a_frozen_server_a_second_after_its_cancellation(make_client, own_server, until):
    client = make_client(own_server.url, socket_timeout=600)
    task = await held_by(client.lock("job"))
    async with frozen(own_server):
        await left(task)
        assert background()
    with redis.Redis.from_url(own_server.url) as inspector:
        await until(deleted(inspector))
    await settled(until)


async def test_a_release_is_repeated_until_the_server_is_back(any_client, own_server, until, caplog, soon):
    client = any_client(own_server.url, socket_timeout=0.2)
    task = await held_by(lock_of(client))
    async with frozen(own_server):
        await left(task)
    await settled(until)
    with redis.Redis.from_url(own_server.url) as inspector:
        assert deleted(inspector)()

    assert [] == caplog.messages


async def test_a_release_with_a_callers_own_token_is_not_repeated(any_client, own_server, until, caplog, soon):
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
        await settled(until)
    with redis.Redis.from_url(own_server.url) as inspector:
        await until(deleted(inspector))
        # A retry would be an EVAL.
        assert 0 == inspector.info("commandstats").get("cmdstat_eval", {}).get("calls", 0)

    assert ["lock 'job': releasing it failed while its task was being cancelled: TimeoutError"] == caplog.messages


@pytest.mark.parametrize("is_plain", [True, False])
async def test_a_release_outlives_the_handle_that_it_was_called_on(
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
    with writes_held(inspector):
        await left(holding)
        assert inspector.exists("job")
    await until(deleted(inspector))
    await settled(until)
    await pool.aclose()

    assert [] == caplog.messages


async def test_a_pool_that_is_closed_waits_for_a_release(make_pool, server, inspector, multiplex, soon):
    pool = make_pool(server.url, **UNRECORDED, multiplex=multiplex, socket_timeout=600)
    task = await held_by(MonitoredRedisConnection(connection_pool=pool).lock("job"))
    with writes_held(inspector):
        await left(task)
        asyncio.get_running_loop().call_later(0.1, inspector.client_unpause)
        await pool.aclose()

    assert [] == background()
    assert deleted(inspector)()


async def test_a_release_outlives_the_end_of_the_event_loop_by_a_second(
    any_client, inspector, until, monkeypatch, soon
):
    # The task leaves soon, and the release in the background has more time than any machine needs.
    module = "aioredis_monitored.client.lock"
    monkeypatch.setattr(f"{module}.complete_shielded", lambda what, attempt, _: complete_shielded(what, attempt, 60))
    client = any_client()
    task = await held_by(lock_of(client))
    with writes_held(inspector):
        await left(task)
        (releasing,) = background()
        # As a closing event loop does.
        releasing.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([releasing])
    await until(deleted(inspector))


async def test_a_release_during_which_its_task_is_cancelled_once_more_raises_that(make_client, server, inspector, soon):
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
        with writes_held(inspector):
            for _ in range(count):
                task.cancel()
                await begun()
            await asyncio.wait([task], timeout=15)
        assert task.cancelled() == (count == 2)
        assert 1 == len(gone_on)


async def test_a_release_that_goes_on_is_seen_as_late_and_is_no_loss(client, telemetry, inspector, until, soon):
    task = await held_by(client.lock("job"))
    with writes_held(inspector):
        await left(task)
    await until(deleted(inspector))
    await settled(until)
    span = telemetry.span("lock.release")

    assert StatusCode.ERROR is span.status.status_code
    assert "TimeoutError" == span.attributes["error.type"]
    assert {"": 0} == telemetry.tally(LOST)
    assert {"": 1} == telemetry.tally(HOLD)


async def test_a_release_whose_answer_is_lost_is_tried_again_and_is_no_loss(make_client, telemetry, proxy, inspector):
    lock = make_client(proxy.url, is_recorded=True).lock("job")
    for cut_after in (0, 2):
        await lock.acquire()
        proxy.cut_replies, proxy.cut_after = 1, cut_after
        await lock.release()
        assert deleted(inspector)()
        with pytest.raises(redis.exceptions.LockError):
            await lock.release()

    assert {"": 0} == telemetry.tally(LOST)
    assert {"": 2} == telemetry.tally(HOLD)


async def test_a_release_that_is_cancelled_is_no_loss(make_client, server, telemetry, proxy, inspector):
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


async def test_releasing_is_one_span(client, telemetry, server):
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


async def test_releasing_what_was_lost_is_an_error(client, telemetry, inspector):
    lock = client.lock("lock", timeout=5)
    await lock.acquire()
    inspector.delete("lock")
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        await lock.release()
    span = telemetry.span("lock.release")

    assert StatusCode.ERROR is span.status.status_code
    assert "redis.exceptions.LockNotOwnedError" == span.attributes["error.type"]
    assert {"SET": 1, "EVALSHA": 1} == telemetry.tally(DURATION, "db.operation.name", "error.type")
