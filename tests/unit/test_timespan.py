"""Durations mean what they say, or are rejected."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored.timespan import parse_timespan


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (5, 5.0),
        (0.2, 0.2),
        ("5", 5.0),
        ("0.2", 0.2),
        (".5", 0.5),
        ("200 milliseconds", 0.2),
        ("7ms", 0.007),
        ("  7  MS\n", 0.007),
        ("1 microsecond", 1e-6),
        ("250us", 0.00025),
        ("1 second", 1.0),
        ("2.5 sec", 2.5),
        ("3S", 3.0),
        ("1 minute", 60.0),
        ("2 min", 120.0),
        ("0.5m", 30.0),
        ("1.5 hours", 5400.0),
        ("1h", 3600.0),
        ("1 Day", 86400.0),
        ("2d", 172800.0),
        (timedelta(milliseconds=200), 0.2),
    ],
    ids=repr,
)
def test_timespan_is_converted_to_seconds(value, seconds):
    assert seconds == parse_timespan(value)


@pytest.mark.parametrize(
    "value", ["", " ", "abc", "s", "5 5", "5 s s", "5.", "1e3", "1_000", "٣s", "5٣", "inf", "nan", "0x5"]
)
def test_timespan_raises_with_an_example_on_other_text(value):
    with pytest.raises(ValueError, match=r"^not a timespan such as '200 milliseconds': "):
        parse_timespan(value)


@pytest.mark.parametrize("value", [True, False, None, b"5", [5]])
def test_timespan_raises_on_other_types(value):
    with pytest.raises(ValueError, match=r"^not a timespan such as '200 milliseconds': "):
        parse_timespan(value)


@pytest.mark.parametrize("unit", ["parsecs", "months", "µs", "secs"])
def test_timespan_raises_with_known_units_on_unknown_unit(unit):
    with pytest.raises(ValueError, match="unit") as caught:
        parse_timespan(f"5 {unit}")

    assert f"unknown unit '{unit}'; use us, ms, s, m, h, d or their full names" == str(caught.value)


@pytest.mark.parametrize("value", [-1, -0.1, "-5", "-1 ms", timedelta(seconds=-1), float("-inf")])
def test_timespan_raises_when_negative(value):
    with pytest.raises(ValueError, match=r"^must not be negative$"):
        parse_timespan(value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, "9" * 400, f"{'9' * 305} days"])
def test_timespan_raises_when_not_finite(value):
    with pytest.raises(ValueError, match=r"^must be finite$"):
        parse_timespan(value)


@pytest.mark.parametrize(
    ("unit", "per_second"), [("us", 1_000_000), ("microseconds", 1_000_000), ("ms", 1_000), ("Milliseconds", 1_000)]
)
@given(count=st.integers(min_value=0, max_value=2**53))
def test_timespan_in_milliseconds_or_microseconds_is_exact(unit, per_second, count):
    assert count / per_second == parse_timespan(f"{count} {unit}")


@pytest.mark.parametrize("unit", ["", "s", " seconds"])
@given(seconds=st.floats(min_value=1e-4, max_value=1e15))
def test_timespan_in_seconds_round_trips_through_text(unit, seconds):
    assert seconds == parse_timespan(f"{seconds:.30f}{unit}")


@given(days=st.integers(0, 999_999_999), seconds=st.integers(0, 86_399))
def test_timespan_of_timedelta_equals_that_of_text(days, seconds):
    assert timedelta(days=days, seconds=seconds).total_seconds() == parse_timespan(f"{days}d") + parse_timespan(
        f"{seconds}s"
    )


@given(value=st.text() | st.floats() | st.integers() | st.none() | st.binary())
def test_timespan_raises_only_value_error_on_any_input(value):
    try:
        seconds = parse_timespan(value)
    except ValueError:
        return
    assert 0 <= seconds < float("inf")
