"""Hot keys: counted in bounded memory, as rates."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored._telemetry import hotkeys
from aioredis_monitored._telemetry.hotkeys import HotKeys, SpaceSaving


def test_hot_keys_finds_the_hottest_keys_in_a_sample(monkeypatch):
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


def test_hot_keys_forgets_old_keys(monkeypatch):
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


def test_hot_keys_reports_a_steady_rate_from_the_start(monkeypatch):
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


def test_hot_keys_escapes_unencodable_keys():
    keys = HotKeys(1.0, None)
    keys.count(("GET", "user:\ud800"))

    assert [r"user:\ud800"] == [hot.key for hot in keys.top(1)]


def test_hot_keys_truncates_long_keys(monkeypatch):
    keys = HotKeys(1.0, None)
    keys.count(("GET", "x" * 10_000))

    assert ["x" * 256] == [hot.key for hot in keys.top(1)]


@given(items=st.lists(st.sampled_from("abcdefghijklmnop"), max_size=300), most=st.integers(2, 8))
def test_space_saving_bounds_size_and_error(items, most):
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


def test_hot_key_gauge_bounds_the_number_of_keys(monkeypatch):
    monkeypatch.setattr(hotkeys, "_MAX_REPORTED_KEYS", 100)
    keys = HotKeys(1.0, None)
    reported = set()
    for number in range(120):
        for _ in range(number + 1):
            keys.count(("GET", f"key:{number}"))
        reported.update(key for key, _ in keys.rates(1))

    assert 101 == len(reported)
    assert "_OTHER" in reported
    assert {("_OTHER", "read")} == keys.rates(3).keys()
    assert sum(hot.rate for hot in keys.top(3)) == pytest.approx(sum(keys.rates(3).values()), rel=0.01)
