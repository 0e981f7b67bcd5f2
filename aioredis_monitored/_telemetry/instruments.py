"""The instruments of one meter provider, however many pools report to it, and the gauges that look at these pools."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, ref

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.stats import PoolStats
from aioredis_monitored._version import __version__

SCOPE: Final = "aioredis_monitored"

# The conventions advise 1 ms as the lowest bound, which is slower than most Redis calls: two finer ones go before it.
# They advise none for what pools do, and the SDK's default would take seconds for milliseconds.
DURATION_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
# As the conventions advise; what is done with a message is not as quick as a call.
PROCESS_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
# Messages wait for hours, if their consumers do.
QUEUE_BOUNDS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0)

# More are not worth a time series each.
_MAX_HOT_KEYS: Final = 10

_Measure = Callable[["MeasuredPool"], Iterable[tuple[float, dict[str, Any]]]]


class MeasuredPool(Protocol):
    """What the gauges read of a pool, in the thread of an exporter."""

    name: str

    def stats(self) -> PoolStats:
        """Return its figures as they are now."""

    def queues(self) -> Iterable["MeasuredQueue"]:
        """The queues on it."""

    def hot_key_rates(self, count: int) -> dict[tuple[str, str], float]:
        """The rates of the keys that are called most, by key and access, if that is counted."""


class MeasuredQueue(Protocol):
    """What the gauges read of a queue."""

    attributes: dict[str, Any]

    def depth(self) -> int | None:
        """How many messages are in it, if that is known."""

    def dead(self) -> int | None:
        """How many are dead, if that is known."""

    def in_flight(self) -> int:
        """How many this process holds."""


class Instruments:
    """The instruments of one meter provider, and the pools that its gauges look at.

    The SDK keeps one callback for each gauge, whoever else asks for the same gauge later, and never lets go of it.
    """

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = ref(provider)
        self._meter = meter = provider.get_meter(SCOPE, __version__, semconv.SCHEMA_URL)
        self._pools: dict[int, ref[MeasuredPool]] = {}
        self.operation_duration = self._durations(
            semconv.DB_CLIENT_OPERATION_DURATION, "Duration of database client operations."
        )
        self.create_time = self._durations(
            semconv.DB_CLIENT_CONNECTION_CREATE_TIME, "The time it took to create a new connection."
        )
        self.wait_time = self._durations(
            semconv.DB_CLIENT_CONNECTION_WAIT_TIME, "The time it took to obtain an open connection from the pool."
        )
        self.use_time = self._durations(
            semconv.DB_CLIENT_CONNECTION_USE_TIME,
            "The time between borrowing a connection and returning it to the pool.",
        )
        self.event_loop_lag = self._durations(
            semconv_ext.EVENT_LOOP_LAG, "The time from the reading of replies until the last of their callers went on."
        )
        self.process_duration = self._durations(
            semconv.MESSAGING_PROCESS_DURATION, "Duration of processing operation.", PROCESS_BOUNDS
        )
        self.message_duration = self._durations(
            semconv.MESSAGING_CLIENT_OPERATION_DURATION,
            "Duration of messaging operation initiated by a producer or consumer client.",
            PROCESS_BOUNDS,
        )
        self.sent_messages = meter.create_counter(
            semconv.MESSAGING_CLIENT_SENT_MESSAGES,
            "{message}",
            "Number of messages producer attempted to send to the broker.",
        )
        self.consumed_messages = meter.create_counter(
            semconv.MESSAGING_CLIENT_CONSUMED_MESSAGES,
            "{message}",
            "Number of messages that were delivered to the application.",
        )
        self.queue_time = self._durations(
            semconv_ext.QUEUE_TIME, "The time from the sending of a message to its delivery.", QUEUE_BOUNDS
        )
        self.queue_recovered = meter.create_counter(
            semconv_ext.QUEUE_RECOVERED, "{message}", "The number of messages that were recovered from dead consumers."
        )
        self.queue_lease_lost = meter.create_counter(
            semconv_ext.QUEUE_LEASE_LOST,
            "{message}",
            "The number of messages whose lease was lost to another consumer.",
        )
        self.queue_unsettled = meter.create_counter(
            semconv_ext.QUEUE_UNSETTLED, "{get}", "The number of cancelled gets that may have lost a message."
        )
        self.lock_wait_time = self._durations(
            semconv_ext.LOCK_WAIT_TIME, "The time from asking for a lock to having it or giving up."
        )
        self.lock_hold_time = self._durations(
            semconv_ext.LOCK_HOLD_TIME, "The time from acquiring a lock to releasing it or noticing its loss."
        )
        self.lock_contended = meter.create_counter(
            semconv_ext.LOCK_CONTENDED, "{lock}", "The number of acquisitions that found the lock held by another."
        )
        self.lock_lost = meter.create_counter(
            semconv_ext.LOCK_LOST, "{lock}", "The number of acquired locks that were found to be no longer owned."
        )
        self.pubsub_reconnects = meter.create_counter(
            semconv_ext.PUBSUB_RECONNECTS,
            "{reconnect}",
            "The number of times that subscriptions were renewed after their connection was lost.",
        )
        self.timeouts = meter.create_counter(
            semconv.DB_CLIENT_CONNECTION_TIMEOUTS,
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
        )
        self._gauges()

    def _durations(self, name: str, description: str, bounds: Sequence[float] = DURATION_BOUNDS) -> Histogram:
        return self._meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=bounds)

    def _gauges(self) -> None:
        gauges: tuple[tuple[str, str, str, _Measure], ...] = (
            (
                semconv.DB_CLIENT_CONNECTION_COUNT,
                "{connection}",
                "The number of connections that are currently in state described by the `state` attribute.",
                _used_and_idle,
            ),
            (
                semconv.DB_CLIENT_CONNECTION_MAX,
                "{connection}",
                "The maximum number of open connections allowed.",
                lambda pool: ((pool.stats().max_connections, {}),),
            ),
            (
                semconv.DB_CLIENT_CONNECTION_IDLE_MAX,
                "{connection}",
                "The maximum number of idle open connections allowed.",
                # None is closed for being idle.
                lambda pool: ((pool.stats().max_connections, {}),),
            ),
            (
                semconv.DB_CLIENT_CONNECTION_IDLE_MIN,
                "{connection}",
                "The minimum number of idle open connections allowed.",
                # None is made before it is needed.
                lambda _: ((0, {}),),
            ),
            (
                semconv.DB_CLIENT_CONNECTION_PENDING_REQUESTS,
                "{request}",
                "The number of current pending requests for an open connection.",
                lambda pool: ((pool.stats().pending, {}),),
            ),
            (
                semconv_ext.CONNECTION_IN_FLIGHT,
                "{operation}",
                "The number of operations on the shared connection that are owed a reply.",
                lambda pool: ((pool.stats().in_flight, {}),),
            ),
            (
                semconv_ext.QUEUE_IN_FLIGHT,
                "{message}",
                "The number of messages that this process holds.",
                _of_queues(lambda queue: queue.in_flight()),
            ),
        )
        for name, unit, description, measure in gauges:
            self._meter.create_observable_up_down_counter(name, [self._callback(measure)], unit, description)
        # Every process may see the same messages: no sum.
        for name, description, count in (
            (semconv_ext.QUEUE_DEPTH, "The number of messages in a queue", lambda queue: queue.depth()),
            (
                semconv_ext.QUEUE_DEAD,
                "The number of messages that were delivered too often",
                lambda queue: queue.dead(),
            ),
        ):
            callback = self._callback(_of_queues(count))
            self._meter.create_observable_gauge(name, [callback], "{message}", f"{description}, as seen last.")
        self._meter.create_observable_gauge(
            semconv_ext.HOT_KEYS_RATE,
            [self._callback(_hot_keys)],
            "{call}/s",
            "The calls that are about a key, of late, for the keys that are called most.",
        )

    def _callback(self, measure: _Measure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for pool in self._observed_pools():
                named = {semconv.DB_CLIENT_CONNECTION_POOL_NAME: pool.name}
                for value, attributes in measure(pool):
                    yield Observation(value, named | attributes)

        return observe

    def _observed_pools(self) -> Iterator[MeasuredPool]:
        # If this provider has become the global one, gauges that were made for the stand-in are ignored by the SDK.
        is_global = self._provider() is metrics.get_meter_provider()
        for instruments in {self, *_of_the_global_provider} if is_global else {self}:
            # A copy, in one step: pools come and go in other threads.
            for reference in list(instruments._pools.values()):  # noqa: SLF001 - of its own class
                pool = reference()
                if pool is not None:
                    yield pool

    def add_pool(self, pool: MeasuredPool) -> None:
        """Let the gauges look at a pool, until it is forgotten."""
        key = id(pool)
        self._pools[key] = ref(pool, lambda _: self._pools.pop(key, None))

    def remove_pool(self, pool: MeasuredPool) -> None:
        """Let the gauges look at it no more."""
        self._pools.pop(id(pool), None)


def _used_and_idle(pool: MeasuredPool) -> Iterable[tuple[float, dict[str, Any]]]:
    stats = pool.stats()
    return (
        (stats.used, {semconv.DB_CLIENT_CONNECTION_STATE: semconv.STATE_USED}),
        (stats.idle, {semconv.DB_CLIENT_CONNECTION_STATE: semconv.STATE_IDLE}),
    )


def _of_queues(count: Callable[[MeasuredQueue], int | None]) -> _Measure:
    return lambda pool: ((number, queue.attributes) for queue in pool.queues() if (number := count(queue)) is not None)


def _hot_keys(pool: MeasuredPool) -> Iterable[tuple[float, dict[str, Any]]]:
    hottest = pool.hot_key_rates(_MAX_HOT_KEYS)
    return ((rate, {semconv_ext.KEY: key, semconv_ext.KEY_ACCESS: access}) for (key, access), rate in hottest.items())


_of_the_global_provider: list[Instruments] = []
_of_others: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_lock = Lock()


def instruments_of(meter_provider: MeterProvider | None) -> Instruments:
    """The instruments of a meter provider; default: of the global one, also if that is set later."""
    provider = meter_provider or metrics.get_meter_provider()
    with _lock:
        instruments = _of_others.get(provider)
        if instruments is None and provider is metrics.get_meter_provider():
            # It may have been a stand-in before: what was made then reports to the real one now.
            instruments = next(iter(_of_the_global_provider), None)
        if instruments is None:
            instruments = Instruments(provider)
            if provider is metrics.get_meter_provider():
                _of_the_global_provider.append(instruments)
            else:
                _of_others[provider] = instruments
        return instruments
