"""Hot keys: counted in bounded memory, as rates."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored._telemetry import hotkeys
from aioredis_monitored._telemetry.hotkeys import HotKeys, SpaceSaving


def test_a_share_of_the_calls_finds_the_same(monkeypatch):
    chance = random.Random(17)
    monkeypatch.setattr(hotkeys.random, "random", chance.random)
    monkeypatch.setattr(hotkeys, "monotonic", lambda: 1000.0)
    keys = HotKeys(0.05, None)
    population = [f"key:{number}" for number in range(1_000)]
    # One key in ten calls, another in twenty.
    for _ in range(40_000):
        kind = chance.random()
        keys.count(("GET", "hot" if kind < 0.1 else "warm" if kind < 0.15 else chance.choice(population)))

    top = keys.top(2)
    assert ["hot", "warm"] == [hot.key for hot in top]
    # All within the time that counts as the first second.
    calls = 0.1 * 40_000
    assert calls * 0.8 <= top[0].rate
    assert top[0].rate - top[0].error <= calls * 1.2


def test_what_was_hot_an_hour_ago_is_not_hot(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(hotkeys, "monotonic", lambda: now[0])
    keys = HotKeys(1.0, None)
    for _ in range(1_000):
        keys.count(("GET", "old"))
    assert 1_000 == pytest.approx(keys.top(1)[0].rate, rel=0.02)
    now[0] += 600
    before = keys.top(1)[0].rate
    now[0] += 60
    assert before / 2 == pytest.approx(keys.top(1)[0].rate, rel=0.02)
    now[0] += 100_000
    assert 0 == pytest.approx(keys.top(1)[0].rate)
    keys.count(("GET", "new"))

    assert ["new", "old"] == [hot.key for hot in keys.top(2)]


def test_a_steady_rate_is_told_from_the_beginning(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(hotkeys, "monotonic", lambda: now[0])
    keys = HotKeys(1.0, None)
    rates = []
    for _ in range(3):
        for _ in range(1_000):
            now[0] += 0.01
            keys.count(("GET", "key"))
        rates.append(keys.top(1)[0].rate)

    assert [100] * 3 == [pytest.approx(rate, rel=0.05) for rate in rates]


def test_a_key_that_cannot_be_sent_is_escaped():
    keys = HotKeys(1.0, None)
    keys.count(("GET", "user:\ud800"))

    assert [r"user:\ud800"] == [hot.key for hot in keys.top(1)]


def test_a_long_key_is_cut(monkeypatch):
    keys = HotKeys(1.0, None)
    keys.count(("GET", "x" * 10_000))

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
    monkeypatch.setattr(hotkeys, "_MAX_REPORTED_KEYS", 100)
    keys = HotKeys(1.0, None)
    told = set()
    for number in range(120):
        for _ in range(number + 1):
            keys.count(("GET", f"key:{number}"))
        told.update(key for key, _ in keys.rates(1))

    assert 101 == len(told)
    assert "_OTHER" in told
    assert {("_OTHER", "read")} == keys.rates(3).keys()
    assert sum(hot.rate for hot in keys.top(3)) == pytest.approx(sum(keys.rates(3).values()), rel=0.01)
