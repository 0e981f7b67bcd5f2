"""Which keys are called most of late: sampled, in bounded memory, and without a word to the server."""

import math
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple

from aioredis_monitored._commands.table import TABLE, argument_text, keys_of, operation_name
from aioredis_monitored._telemetry.guard import CardinalityLimit

READ: Final = "read"
WRITE: Final = "write"
# Keys that are counted, of each kind; those beyond take the place of the least called one.
_MAX_KEYS: Final = 256
_MAX_KEY_LENGTH: Final = 256
# More keys of one command are not looked at.
_MAX_KEYS_PER_COMMAND: Final = 64
# Seconds after which a call weighs half.
_HALF_LIFE_SECONDS: Final = 60.0
# Keys that the gauge tells of over all time.
_MAX_REPORTED_KEYS: Final = 1_000
# Weights that are larger are made smaller, with all of the past, before they get too large for floats.
_MAX_WEIGHT: Final = 2.0**64
_MAX_DOUBLINGS: Final = 512


class HotKey(NamedTuple):
    """A key, or a template of keys, that is called often.

    Attributes:
        key: The key, at most 256 characters of it, or its template.
        access: ``read`` or ``write``.
        rate: Estimate of the calls per second, those of a minute ago counting half.
        error: How much of the rate may be that of keys which were forgotten for this one.
    """

    key: str
    access: str
    rate: float
    error: float


class SpaceSaving:
    """The most frequent of many items, by the Space-Saving algorithm with weights.

    An item that is called more often than the sum of all weights divided by ``most`` is always among them, and its
    weight is too high by at most that (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k
    Elements in Data Streams, 2005).

    Args:
        most: How many items are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._weights: dict[str, tuple[float, float]] = {}

    def add(self, item: str, weight: float) -> None:
        """Count an item."""
        known, error = self._weights.get(item, (0.0, 0.0))
        if not known and len(self._weights) >= self._most:
            least = min(self._weights, key=self._weights.__getitem__)
            known, _ = self._weights.pop(least)
            error = known
        self._weights[item] = (known + weight, error)

    def scale(self, factor: float) -> None:
        """Change all weights."""
        self._weights = {item: (weight * factor, error * factor) for item, (weight, error) in self._weights.items()}

    def top(self, count: int) -> list[tuple[str, float, float]]:
        """The heaviest items, each with its weight and what of it may be that of others."""
        # A copy, in one step: exporters look from another thread.
        items = [(item, weight, error) for item, (weight, error) in self._weights.copy().items()]
        return sorted(items, key=lambda each: (-each[1], each[0]))[:count]


class HotKeys:
    """Which keys the calls on one pool are about, reads and writes apart.

    Args:
        share: Of how many calls the keys are looked at, from 0 to 1.
        template_of: Makes templates of keys, which are counted in their place; it may return ``None`` to count none.
    """

    def __init__(self, share: float, template_of: Callable[[object], str | None] | None) -> None:
        self._share = share
        self._template_of = template_of
        self._skip = 0
        self._began = self._since = monotonic()
        self._reported = CardinalityLimit(_MAX_REPORTED_KEYS)
        self._kinds = {READ: SpaceSaving(_MAX_KEYS), WRITE: SpaceSaving(_MAX_KEYS)}
        self._skip_some()

    def _skip_some(self) -> None:
        # At random: every hundredth call could be the same one of a hundred that always follow each other.
        if 0 < self._share < 1:
            self._skip = int(math.log(1.0 - random.random()) / math.log1p(-self._share))  # noqa: S311 - no secret

    def count(self, args: Sequence[Any]) -> None:
        """Look at a command, if it is its turn."""
        if self._skip:
            self._skip -= 1
            return
        self._skip_some()
        command = TABLE.get(operation_name(args).upper())
        if command is None:
            return
        kind = self._kinds[READ if "readonly" in command.flags else WRITE]
        weight = self._weight_of_now()
        for key in keys_of(args, _MAX_KEYS_PER_COMMAND):
            item = argument_text(key, _MAX_KEY_LENGTH) if self._template_of is None else self._template_of(key)
            if item is not None:
                kind.add(item, weight)

    def _weight_of_now(self) -> float:
        """What a call weighs now; growing, so that no weight of the past need be touched."""
        weight = self._doubled()
        if weight > _MAX_WEIGHT:
            self._since, scaled = monotonic(), weight
            for kind in self._kinds.values():
                kind.scale(1 / scaled)
            weight = 1.0
        return weight

    def _per_second(self) -> float:
        # Of a time that has only begun, there is less to count.
        age = max(1.0, monotonic() - self._began)
        span = _HALF_LIFE_SECONDS / math.log(2) * (1 - 2.0 ** -(age / _HALF_LIFE_SECONDS))
        return float(1 / span / self._doubled() / self._share)

    def _doubled(self) -> float:
        return float(2.0 ** min(_MAX_DOUBLINGS, (monotonic() - self._since) / _HALF_LIFE_SECONDS))

    def top(self, count: int) -> list[HotKey]:
        """The keys that are called most, reads and writes together, the most called first.

        Args:
            count: How many.
        """
        per_second = self._per_second() if self._share else 0.0
        found = [
            HotKey(key, access, weight * per_second, error * per_second)
            for access, kind in self._kinds.items()
            for key, weight, error in kind.top(count)
        ]
        return sorted(found, key=lambda hot: -hot.rate)[:count]

    def rates(self, count: int) -> dict[tuple[str, str], float]:
        """The rates of the keys that are called most, by key and access, for a gauge: of a thousand keys over all time.

        Args:
            count: How many.
        """
        rates: dict[tuple[str, str], float] = {}
        for hot in self.top(count):
            named = (self._reported.cap(hot.key), hot.access)
            rates[named] = rates.get(named, 0.0) + hot.rate
        return rates
