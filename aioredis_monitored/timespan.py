"""Durations such as ``200 milliseconds``, as text, numbers or ``timedelta``, read as seconds."""

import math
import re
from datetime import timedelta

# Numerator and denominator: 7 / 1000 is the nearest float to 0.007, but 7 * 0.001 may not be.
_UNITS = {
    name: ratio
    for names, ratio in (
        ("us microsecond microseconds", (1, 1_000_000)),
        ("ms millisecond milliseconds", (1, 1_000)),
        ("s sec second seconds", (1, 1)),
        ("m min minute minutes", (60, 1)),
        ("h hour hours", (3_600, 1)),
        ("d day days", (86_400, 1)),
    )
    for name in names.split()
}
_NUMBER_AND_UNIT = re.compile(r"(?P<number>-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+))\s*(?P<unit>[^\W\d_]*)")


def parse_timespan(value: object) -> float:
    """Return a duration in seconds.

    Args:
        value: A number of seconds, a ``timedelta``, or text: a number ("0.2": seconds) or a number and a unit
            ("200 milliseconds", "1.5h"). Units, in any case: us, ms, s (or sec), m (or min), h, d and their full
            names, singular or plural.

    Raises:
        ValueError: The value is none of these, negative, or not finite.
    """
    try:
        seconds = _in_seconds(value)
    except OverflowError:
        seconds = math.inf
    if seconds < 0:
        raise ValueError("must not be negative")
    if not math.isfinite(seconds):
        raise ValueError("must be finite")
    return seconds


def _in_seconds(value: object) -> float:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"not a timespan such as '200 milliseconds': {value!r}")
    unit = match["unit"] or "s"
    if unit.lower() not in _UNITS:
        raise ValueError(f"unknown unit '{unit}'; use us, ms, s, m, h, d or their full names")
    numerator, denominator = _UNITS[unit.lower()]
    return float(match["number"]) * numerator / denominator
