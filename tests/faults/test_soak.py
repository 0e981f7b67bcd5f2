"""The soak test for a fraction of a minute; and the program detects what goes wrong."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from support import soak

from aioredis_monitored import MonitoredRedisConnection, TimedOutError

IN_ORDER = soak.Figures(
    minutes=15.0,
    faults=170,
    connections=30_000,
    calls=1_000_000,
    failed=5_000,
    wrong=0,
    hung=0,
    other_errors=0,
    put=100_000,
    received_again=9,
    lost_by_take=0,
    lost_by_consume=0,
    lost_by_get=3,
    failed_gets=500,
    heard=50_000,
    ended_subscriptions=0,
    deaf_subscribers=0,
    tasks_left=0,
    descriptors_left=0,
    sockets_left=0,
    memory_mb=60.0,
    memory_growth=1.5,
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_soak_run_reports_no_failure_under_faults():
    # In this short time memory does not settle.
    words = ["--minutes=0.4", "--pause=1", "--growth=50"]
    done = subprocess.run([sys.executable, soak.__file__, *words], capture_output=True, text=True, check=False)  # noqa: S603 - this Python

    assert 0 == done.returncode, done.stdout + done.stderr
    assert done.stdout.startswith("| figure")


def test_soak_check_accepts_correct_figures():
    assert [] == soak.failures(IN_ORDER, 5)


@pytest.mark.parametrize(
    ("wrong", "expected_failure"),
    [
        *(({name: 1}, f"{name}: 1, more than 0") for name in soak.NOTHING),
        *(({name: 0}, f"{name}: 0, less than 1") for name in ("faults", "calls", "put", "heard")),
        ({"lost_by_get": 501}, "lost_by_get: 501, more than 500"),
        ({"memory_growth": 5.1}, "memory_growth: 5.1, more than 5"),
        ({"memory_growth": float("nan")}, "memory_growth: nan, more than 5"),
    ],
    ids=str,
)
def test_soak_check_rejects_each_wrong_figure(wrong, expected_failure):
    assert [expected_failure] == soak.failures(replace(IN_ORDER, **wrong), 5)


def test_soak_table_has_one_column_per_run():
    lines = soak.table({"asyncio": IN_ORDER, "uvloop": replace(IN_ORDER, calls=7)}).splitlines()

    assert ["figure", "asyncio", "uvloop"] == lines[0].strip("| ").replace(" ", "").split("|")
    assert "|calls|1,000,000|7|" in [line.replace(" ", "") for line in lines]


def test_soak_ledger_counts_lost_and_repeated_messages():
    ledger = soak.Ledger()
    for message in range(4):
        ledger.attempt(message)
    ledger.acknowledge(0)
    ledger.acknowledge(1)
    # The third message was received before its acknowledgement; the fourth may never have been put.
    assert ledger.receive(2)
    ledger.acknowledge(2)
    assert (2, 0) == (ledger.lost(), ledger.again)
    assert ledger.receive(0)
    assert not ledger.receive(0)

    assert (1, 1, 3) == (ledger.lost(), ledger.again, ledger.put)


def test_soak_memory_growth_is_measured_after_first_minute():
    def samples(seconds, size_at):
        return [(at, size_at(at)) for at in range(seconds + 1)]

    assert 0 == soak.growth(samples(900, lambda at: 100 if at >= 60 else at))
    assert 50 == round(soak.growth(samples(900, lambda at: 150 if at > 600 else 100)))
    # The second half, if the run is shorter than a minute.
    assert 0 == soak.growth(samples(30, lambda at: 100 if at >= 15 else at))


@pytest.fixture
def load(client):
    return soak.Load([client], 1)


@pytest.fixture
def caller(load, client):
    return soak.Caller(load, client, 1)


async def test_soak_caller_reports_nothing_on_healthy_server(load, caller):
    for way in (*caller.ways, *caller.ways):
        await way()

    assert ([], []) == (load.wrong, load.hung)
    assert ({}, {}) == (load.failed, load.foreign)


class Crossed(MonitoredRedisConnection):
    """A client that gives each caller the previous call's reply."""

    before = b"another's"

    async def execute_command(self, *args, **options):
        self.before, reply = await super().execute_command(*args, **options), self.before
        return reply


async def test_soak_caller_detects_reply_of_another_call(load, pool):
    caller = soak.Caller(load, Crossed(connection_pool=pool), 1)
    await caller.echo()
    await caller.set_and_get()

    assert ["ECHO", "GET"] == [text.partition(":")[0] for text in load.wrong]


async def test_soak_caller_detects_lost_or_repeated_write(load, caller, inspector, server):
    for change in (1, -2):
        await caller.increment()
        inspector.incrby("caller:1:incr", change)
    await caller.increment()
    await soak.check_counters(load, server.url)

    assert ["INCR", "INCR", "caller:1:incr"] == [text.partition(": ")[0] for text in load.wrong]


async def test_soak_caller_detects_two_holders_of_lock(load, caller):
    load.inside["lock:0"] += 1
    await caller.lock()

    assert ["holders of a lock: 2 instead of 1"] == load.wrong


async def test_soak_load_records_foreign_errors_and_hung_calls(load, monkeypatch):
    async def fail():
        raise OSError

    monkeypatch.setattr(soak, "SHOWN", 0)
    assert soak.FAILED is await load.call("broken", fail())
    monkeypatch.setattr(soak, "HUNG_SECONDS", 0.01)
    assert soak.FAILED is await load.call("endless", asyncio.Event().wait())
    monkeypatch.undo()

    assert ({"OSError": 1}, ["endless"]) == (load.foreign, load.hung)
    assert await soak.or_nothing(_timed_out()) is None


async def _timed_out():
    raise TimedOutError


async def test_soak_subscriber_detects_repeated_late_or_misdirected_message(load, client):
    subscriber = soak.Subscriber(load, client, "news")

    def deliver(text):
        subscriber.hear({"data": text.encode()})

    # In doubt, the publisher starts a new generation; the doubtful message may arrive later.
    for text in ("news 1 0 1", "news 1 0 2", "news 2 0 1", "news 1 1 3", "news 1 0 3"):
        deliver(text)
    assert [] == load.wrong
    for text in ("news 1 1 3", "news 1 1 2", "olds 1 1 9"):
        deliver(text)

    assert 3 == len(load.wrong)
