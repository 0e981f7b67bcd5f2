"""The most called keys of the last minutes: sampled in the client, in bounded memory."""

import math
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from aioredis_monitored._commands.table import TABLE, argument_text, keys_of, operation_name
from aioredis_monitored._telemetry.guard import CardinalityLimit

READ: Final = "read"
WRITE: Final = "write"
# Counted keys of each kind; a further key takes the place of the least called one.
_MAX_KEYS: Final = 256
_MAX_KEY_LENGTH: Final = 256
# Further keys of a command are not counted.
_MAX_KEYS_PER_COMMAND: Final = 64
# After it, a call has half its weight.
_HALF_LIFE_SECONDS: Final = 60.0
# Different keys that the gauge reports in the life of the pool.
_MAX_REPORTED_KEYS: Final = 1_000
# Above it, all weights are scaled down, before they get too large for floats.
_MAX_WEIGHT: Final = 2.0**64
_MAX_DOUBLINGS: Final = 512


class HotKey(NamedTuple):
    """A key, or a template of keys, that is called often.

    Attributes:
        key: The first 256 characters of the key, or its template.
        access: ``read`` or ``write``.
        rate: Estimate of the calls per second; calls of a minute ago count half.
        error: The part of the rate that may belong to keys whose place this key has taken.
    """

    key: str
    access: str
    rate: float
    error: float


class SpaceSaving:
    """The most frequent of many items, by the Space-Saving algorithm with weights.

    An item whose weight exceeds the sum of all weights divided by ``capacity`` is always among them, and its weight is
    too high by at most that quotient (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k
    Elements in Data Streams, 2005).

    Args:
        capacity: The number of items that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weights: dict[str, tuple[float, float]] = {}

    def add(self, item: str, weight: float) -> None:
        """Add weight to an item."""
        known, error = self._weights.get(item, (0.0, 0.0))
        if not known and len(self._weights) >= self._capacity:
            least = min(self._weights, key=self._weights.__getitem__)
            known, _ = self._weights.pop(least)
            error = known
        self._weights[item] = (known + weight, error)

    def scale(self, factor: float) -> None:
        """Multiply all weights by a factor."""
        self._weights = {item: (weight * factor, error * factor) for item, (weight, error) in self._weights.items()}

    def top(self, count: int) -> list[tuple[str, float, float]]:
        """Return the heaviest items, each with its weight and the part of it that may belong to other items."""
        # A copy, in one step: exporters read from another thread.
        items = [(item, weight, error) for item, (weight, error) in self._weights.copy().items()]
        return sorted(items, key=lambda each: (-each[1], each[0]))[:count]


class HotKeys:
    """Counts the keys of the calls on one pool, reads and writes separately.

    Args:
        share: The share of the calls that are sampled, from 0 to 1.
        template_of: Returns the template that is counted in place of a key, or ``None`` to count nothing; default
            ``None``, to count keys.
    """

    def __init__(self, share: float, template_of: Callable[[object], str | None] | None) -> None:
        self._share = share
        self._template_of = template_of
        self._skip = 0
        self._started_at = self._scaled_at = monotonic()
        self._reported = CardinalityLimit(_MAX_REPORTED_KEYS)
        self._kinds = {READ: SpaceSaving(_MAX_KEYS), WRITE: SpaceSaving(_MAX_KEYS)}
        self._skip_some()

    def _skip_some(self) -> None:
        # At random: in a loop of a hundred different calls, every hundredth one is always the same.
        if 0 < self._share < 1:
            self._skip = int(math.log(1.0 - random.random()) / math.log1p(-self._share))  # noqa: S311 - no secret

    def count(self, args: Sequence[Any]) -> None:
        """Count the keys of a command if it is sampled."""
        if self._skip:
            self._skip -= 1
            return
        self._skip_some()
        command = TABLE.get(operation_name(args).upper())
        if command is None:
            return
        kind = self._kinds[READ if "readonly" in command.flags else WRITE]
        weight = self._current_weight()
        for key in keys_of(args, _MAX_KEYS_PER_COMMAND):
            item = argument_text(key, _MAX_KEY_LENGTH) if self._template_of is None else self._template_of(key)
            if item is not None:
                kind.add(item, weight)

    def _current_weight(self) -> float:
        """Return the weight of a call now; it grows with time, so that older weights need no update to count less."""
        weight = self._growth()
        if weight > _MAX_WEIGHT:
            self._scaled_at, scaled = monotonic(), weight
            for kind in self._kinds.values():
                kind.scale(1 / scaled)
            weight = 1.0
        return weight

    def _per_second(self) -> float:
        # Shortly after the start, the calls of a shorter time are counted.
        age = max(1.0, monotonic() - self._started_at)
        span = _HALF_LIFE_SECONDS / math.log(2) * (1 - 2.0 ** -(age / _HALF_LIFE_SECONDS))
        return float(1 / span / self._growth() / self._share)

    def _growth(self) -> float:
        return float(2.0 ** min(_MAX_DOUBLINGS, (monotonic() - self._scaled_at) / _HALF_LIFE_SECONDS))

    def top(self, count: int) -> list[HotKey]:
        """Return the most called keys, reads and writes together, in descending order of their rates.

        Args:
            count: The maximum number of keys.
        """
        per_second = self._per_second() if self._share else 0.0
        found = [
            HotKey(key, access, weight * per_second, error * per_second)
            for access, kind in self._kinds.items()
            for key, weight, error in kind.top(count)
        ]
        return sorted(found, key=lambda hot: -hot.rate)[:count]

    def rates(self, count: int) -> dict[tuple[str, str], float]:
        """Return the rates of the most called keys, by key and access, for a gauge.

        In the life of the pool it reports a thousand different keys; ``_OTHER`` stands for further ones.

        Args:
            count: The maximum number of keys.
        """
        rates: dict[tuple[str, str], float] = {}
        for hot in self.top(count):
            place = (self._reported.cap(hot.key), hot.access)
            rates[place] = rates.get(place, 0.0) + hot.rate
        return rates
