"""Keys in telemetry: shown, hidden or made templates of; and which of them are hot."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored import MonitoredRedisConnection, TelemetryOptions
from aioredis_monitored.telemetry import hotkeys, trouble
from aioredis_monitored.telemetry.hotkeys import HotKeys, SpaceSaving

DURATION = "db.client.operation.duration"
TEMPLATE = "aioredis_monitored.key.template"
HOT = "aioredis_monitored.hot_keys.rate"


@pytest.fixture
def make(make_pool, server):
    def make_client(**options):
        return MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=TelemetryOptions(**options)))

    return make_client


def template(key):
    return f"{key.partition(':')[0]}:{{id}}"


async def test_keys_may_be_hidden(make, telemetry):
    client = make(show_keys=False)
    await client.hset("user:1", "name", "value")
    await client.pipeline().get("user:17").mget("a", "b").execute()

    assert ["HSET ? ? ?", "GET ?; MGET ? ?"] == [span.attributes["db.query.text"] for span in telemetry.spans]


async def test_templates_take_the_place_of_keys(make, telemetry):
    client = make(key_template=template)
    await client.set("user:17", "value")
    await client.set(b"user:18", "value")
    await client.mget("user:17", "user:18")
    await client.mget("user:17", "order:1")
    await client.ping()
    await client.pipeline().get("user:17").execute()

    assert [
        ("SET user:{id} ?", "user:{id}"),
        ("SET user:{id} ?", "user:{id}"),
        ("MGET user:{id} user:{id}", "user:{id}"),
        ("MGET user:{id} order:{id}", None),
        ("PING", None),
        ("GET user:{id}", "user:{id}"),
    ] == [(span.attributes["db.query.text"], span.attributes.get(TEMPLATE)) for span in telemetry.spans]
    assert {"SET user:{id}": 2, "MGET user:{id}": 1, "MGET": 1, "PING": 1, "GET user:{id}": 1} == telemetry.tally(
        DURATION, "db.operation.name", TEMPLATE
    )


async def test_a_template_of_a_hidden_key_is_an_attribute_all_the_same(make, telemetry):
    await make(key_template=template, show_keys=False).get("user:17")

    attributes = telemetry.span("GET").attributes
    assert ("GET ?", "user:{id}") == (attributes["db.query.text"], attributes[TEMPLATE])


async def test_a_template_function_that_fails_hides_the_key_and_nothing_else(make, telemetry, monkeypatch, caplog):
    monkeypatch.setattr(trouble, "_reported", set())

    def broken(key):
        raise LookupError(key)

    client = make(key_template=broken)
    await client.set("user:17", "value")

    assert b"value" == await client.get("user:17")
    assert ["SET ? ?", "GET ?"] == [span.attributes["db.query.text"] for span in telemetry.spans]
    assert {"SET": 1, "GET": 1} == telemetry.tally(DURATION, "db.operation.name", TEMPLATE)
    assert 1 == len(caplog.records)
    assert "user:17" not in caplog.text


@pytest.mark.parametrize("answer", [None, 17, b"user"])
async def test_a_template_that_is_no_text_hides_the_key(make, telemetry, answer):
    await make(key_template=lambda _: answer).get("user:17")

    assert "GET ?" == telemetry.span("GET").attributes["db.query.text"]


async def test_more_templates_than_an_application_can_have_are_one(make, telemetry):
    client = make(key_template=lambda key: key)
    for number in range(1_100):
        await client.get(f"key:{number}")

    tally = telemetry.tally(DURATION, "db.operation.name", TEMPLATE)
    assert 100 == tally["GET _OTHER"]
    assert 1_001 == len([name for name in tally if name.startswith("GET ")])


async def test_more_descriptions_than_are_worth_it_are_not_kept(make, telemetry):
    recorder = make(key_template=lambda key: key).telemetry
    for number in range(900):
        for command in ("GET", "TTL", "TYPE"):
            call = recorder.command_call((command, f"key:{number}"))
            assert (command, f"key:{number}") == (
                call.span_attributes["db.operation.name"],
                call.span_attributes[TEMPLATE],
            )
            assert len(recorder._calls) <= 2_000

    assert recorder.command_call(("GET", "key:899")) is recorder.command_call(("GET", "key:899"))


# Hot keys


async def test_hot_keys_are_counted_reads_and_writes_apart(make, telemetry):
    client = make(hot_keys=1.0)
    for _ in range(10):
        await client.get("hot")
    await client.pipeline().set("hot", 1).set("hot", 2).get("warm").execute()
    await client.mget("warm", "hot")
    await client.ping()

    top = client.connection_pool.telemetry.hot_keys.top(10)
    assert [("hot", "read"), ("warm", "read"), ("hot", "write")] == [(hot.key, hot.access) for hot in top]
    rates = [hot.rate for hot in top]
    assert [11, 2, 2] == [pytest.approx(rate / rates[0] * 11, rel=0.05) for rate in rates]
    assert [0, 0, 0] == [hot.error for hot in top]
    assert ["hot read", "warm read", "hot write"] == list(
        telemetry.tally(HOT, "aioredis_monitored.key", "aioredis_monitored.key.access")
    )


async def test_what_runs_at_once_because_of_a_watch_is_counted_too(make):
    client = make(hot_keys=1.0)
    async with client.pipeline() as pipe:
        await pipe.watch("watched")
        await pipe.get("read")
        pipe.multi()
        await pipe.set("written", 1).execute()

    top = client.connection_pool.telemetry.hot_keys.top(10)
    assert {("read", "read"), ("written", "write")} <= {(hot.key, hot.access) for hot in top}


async def test_hot_keys_may_be_templates(make):
    client = make(hot_keys=1.0, key_template=template)
    for number in range(5):
        await client.get(f"user:{number}")

    (hot,) = client.connection_pool.telemetry.hot_keys.top(10)
    assert ("user:{id}", "read") == (hot.key, hot.access)


async def test_nothing_is_counted_unless_asked_for(make, telemetry):
    client = make()
    await client.get("key")

    assert [] == client.connection_pool.telemetry.hot_keys.top(10)
    assert [] == telemetry.points(HOT)


async def test_counting_writes_nothing_to_the_server(make, inspector):
    client = make(hot_keys=1.0)
    await client.get("key")
    before = inspector.info("commandstats")
    for _ in range(10):
        await client.get("key")
    after = inspector.info("commandstats")

    called = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after if name != "cmdstat_info"
    }
    assert {"cmdstat_get": 10} == {name: calls for name, calls in called.items() if calls}


def test_a_share_of_the_calls_finds_the_same(monkeypatch):
    chance = random.Random(17)
    monkeypatch.setattr(hotkeys.random, "random", chance.random)
    keys = HotKeys(0.05, None)
    population = [f"key:{number}" for number in range(1_000)]
    # One key in ten calls, another one in twenty.
    for _ in range(40_000):
        kind = chance.random()
        keys.see(("GET", "hot" if kind < 0.1 else "warm" if kind < 0.15 else chance.choice(population)))

    top = keys.top(2)
    assert ["hot", "warm"] == [hot.key for hot in top]
    # All of it within what counts as the first second.
    calls = 0.1 * 40_000
    assert calls * 0.8 <= top[0].rate
    assert top[0].rate - top[0].error <= calls * 1.2


def test_what_was_hot_an_hour_ago_is_not_hot(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(hotkeys, "monotonic", lambda: now[0])
    keys = HotKeys(1.0, None)
    for _ in range(1_000):
        keys.see(("GET", "old"))
    assert 1_000 == pytest.approx(keys.top(1)[0].rate, rel=0.02)
    now[0] += 600
    before = keys.top(1)[0].rate
    now[0] += 60
    assert before / 2 == pytest.approx(keys.top(1)[0].rate, rel=0.02)
    now[0] += 100_000
    assert 0 == pytest.approx(keys.top(1)[0].rate)
    keys.see(("GET", "new"))

    assert ["new", "old"] == [hot.key for hot in keys.top(2)]


def test_a_steady_rate_is_told_from_the_beginning(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(hotkeys, "monotonic", lambda: now[0])
    keys = HotKeys(1.0, None)
    rates = []
    for _ in range(3):
        for _ in range(1_000):
            now[0] += 0.01
            keys.see(("GET", "key"))
        rates.append(keys.top(1)[0].rate)

    assert [100] * 3 == [pytest.approx(rate, rel=0.05) for rate in rates]


def test_a_key_that_cannot_be_sent_is_escaped():
    keys = HotKeys(1.0, None)
    keys.see(("GET", "user:\ud800"))

    assert [r"user:\ud800"] == [hot.key for hot in keys.top(1)]


def test_a_long_key_is_cut(monkeypatch):
    keys = HotKeys(1.0, None)
    keys.see(("GET", "x" * 10_000))

    assert ["x" * 256] == [hot.key for hot in keys.top(1)]


@given(items=st.lists(st.sampled_from("abcdefghijklmnop"), max_size=300), most=st.integers(2, 8))
def test_space_saving_keeps_its_promises(items, most):
    found = SpaceSaving(most)
    for item in items:
        found.add(item, 1.0)
    true, top = Counter(items), found.top(most)

    assert len(top) <= most
    for item, weight, error in top:
        assert weight - error <= true[item] <= weight
        assert error <= len(items) / most
    for item, count in true.items():
        if count > len(items) / most:
            assert item in {kept for kept, _, _ in top}


def test_a_gauge_tells_of_no_more_keys_than_can_be_counted(monkeypatch):
    monkeypatch.setattr(hotkeys, "_MOST_TOLD", 100)
    keys = HotKeys(1.0, None)
    told = set()
    for number in range(120):
        for _ in range(number + 1):
            keys.see(("GET", f"key:{number}"))
        told.update(key for key, _ in keys.told(1))

    assert 101 == len(told)
    assert "_OTHER" in told
    assert {("_OTHER", "read")} == keys.told(3).keys()
    assert sum(hot.rate for hot in keys.top(3)) == pytest.approx(sum(keys.told(3).values()), rel=0.01)
