"""Bounds on what tells points apart: exporters keep a time series for each value that they were ever told of."""

from aioredis_monitored.telemetry.semconv import OTHER


class Countable:
    """The first so many different values; one value stands for all others.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: set[str] = set()

    def of(self, value: str) -> str:
        """The value, or ``_OTHER`` if it came too late."""
        if value in self._values:
            return value
        if len(self._values) >= self._most:
            return OTHER
        self._values.add(value)
        return value
