"""The instruments of one meter provider, which all its pools share, and the gauges that read these pools."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.stats import PoolStats
from aioredis_monitored._version import __version__

SCOPE: Final = "aioredis_monitored"

# The conventions advise 1 ms as the lowest bound, which is slower than most Redis calls: two finer ones precede it.
# For the times of a pool they advise none, and the SDK's default bounds are meant for milliseconds. The alert rules
# compare with 0.1, which must stay a bound.
DURATION_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
# As the conventions advise; processing a message takes longer than a call.
PROCESS_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
# Messages may be queued for hours.
QUEUE_BOUNDS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0)

COUNTER: Final = "counter"
HISTOGRAM: Final = "histogram"
UP_DOWN_COUNTER: Final = "up/down counter"
GAUGE: Final = "gauge"

# Each further key would be a time series.
_MAX_HOT_KEYS: Final = 10


class Instrument(NamedTuple):
    """An instrument that records events.

    Attributes:
        attribute: The attribute of ``Instruments`` that holds it.
        name: The name of the metric.
        kind: ``COUNTER`` or ``HISTOGRAM``.
        unit: The unit, in UCUM.
        description: The description; for names of the conventions, it is theirs.
        bounds: The advised bounds of a histogram's buckets.
    """

    attribute: str
    name: str
    kind: str
    unit: str
    description: str
    bounds: Sequence[float] = ()


INSTRUMENTS: Final = (
    Instrument(
        "operation_duration",
        semconv.DB_CLIENT_OPERATION_DURATION,
        HISTOGRAM,
        "s",
        "Duration of database client operations.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "create_time",
        semconv.DB_CLIENT_CONNECTION_CREATE_TIME,
        HISTOGRAM,
        "s",
        "The time it took to create a new connection.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "wait_time",
        semconv.DB_CLIENT_CONNECTION_WAIT_TIME,
        HISTOGRAM,
        "s",
        "The time it took to obtain an open connection from the pool.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "use_time",
        semconv.DB_CLIENT_CONNECTION_USE_TIME,
        HISTOGRAM,
        "s",
        "The time between borrowing a connection and returning it to the pool.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "timeouts",
        semconv.DB_CLIENT_CONNECTION_TIMEOUTS,
        COUNTER,
        "{timeout}",
        "The number of connection timeouts that have occurred trying to obtain a connection from the pool.",
    ),
    Instrument(
        "event_loop_lag",
        semconv_ext.EVENT_LOOP_LAG,
        HISTOGRAM,
        "s",
        "The time from the reading of replies until the last of their callers resumed.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "message_duration",
        semconv.MESSAGING_CLIENT_OPERATION_DURATION,
        HISTOGRAM,
        "s",
        "Duration of messaging operation initiated by a producer or consumer client.",
        PROCESS_BOUNDS,
    ),
    Instrument(
        "process_duration",
        semconv.MESSAGING_PROCESS_DURATION,
        HISTOGRAM,
        "s",
        "Duration of processing operation.",
        PROCESS_BOUNDS,
    ),
    Instrument(
        "sent_messages",
        semconv.MESSAGING_CLIENT_SENT_MESSAGES,
        COUNTER,
        "{message}",
        "Number of messages producer attempted to send to the broker.",
    ),
    Instrument(
        "consumed_messages",
        semconv.MESSAGING_CLIENT_CONSUMED_MESSAGES,
        COUNTER,
        "{message}",
        "Number of messages that were delivered to the application.",
    ),
    Instrument(
        "queue_time",
        semconv_ext.QUEUE_TIME,
        HISTOGRAM,
        "s",
        "The time from the sending of a message to its delivery.",
        QUEUE_BOUNDS,
    ),
    Instrument(
        "queue_recovered",
        semconv_ext.QUEUE_RECOVERED,
        COUNTER,
        "{message}",
        "The number of messages that were recovered from dead consumers.",
    ),
    Instrument(
        "queue_lease_lost",
        semconv_ext.QUEUE_LEASE_LOST,
        COUNTER,
        "{message}",
        "The number of messages whose lease was lost to another consumer.",
    ),
    Instrument(
        "queue_unsettled",
        semconv_ext.QUEUE_UNSETTLED,
        COUNTER,
        "{get}",
        "The number of cancelled gets that may have lost a message.",
    ),
    Instrument(
        "lock_wait_time",
        semconv_ext.LOCK_WAIT_TIME,
        HISTOGRAM,
        "s",
        "The time from asking for a lock to having it or giving up.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "lock_hold_time",
        semconv_ext.LOCK_HOLD_TIME,
        HISTOGRAM,
        "s",
        "The time from acquiring a lock to releasing it or noticing its loss.",
        DURATION_BOUNDS,
    ),
    Instrument(
        "lock_contended",
        semconv_ext.LOCK_CONTENDED,
        COUNTER,
        "{lock}",
        "The number of acquisitions that found the lock held by another.",
    ),
    Instrument(
        "lock_lost",
        semconv_ext.LOCK_LOST,
        COUNTER,
        "{lock}",
        "The number of acquired locks that were found to be no longer owned.",
    ),
    Instrument(
        "pubsub_reconnects",
        semconv_ext.PUBSUB_RECONNECTS,
        COUNTER,
        "{reconnect}",
        "The number of times that subscriptions were renewed after their connection was lost.",
    ),
    Instrument(
        "cluster_redirects",
        semconv_ext.CLUSTER_REDIRECTS,
        COUNTER,
        "{redirect}",
        "The number of times that a node of a cluster has redirected a command or a transaction to another one.",
    ),
    Instrument(
        "cluster_refreshes",
        semconv_ext.CLUSTER_REFRESHES,
        COUNTER,
        "{refresh}",
        "The number of times that a cluster was asked which node serves which slots.",
    ),
    Instrument(
        "failovers",
        semconv_ext.FAILOVERS,
        COUNTER,
        "{failover}",
        "The number of times that another server has taken the place of a primary.",
    ),
)


class MeasuredPool(Protocol):
    """What the gauges read of a pool, in the thread of an exporter."""

    name: str

    def stats(self) -> PoolStats:
        """Return the state of the pool."""

    def queues(self) -> Iterable["MeasuredQueue"]:
        """Return the queues on the pool."""

    def hot_key_rates(self, count: int) -> dict[tuple[str, str], float]:
        """Return the rates of the most called keys, by key and access; empty if keys are not counted."""

    def node_count(self) -> int | None:
        """Return the number of nodes of the cluster that the pool is for; ``None`` for a pool with connections."""


class MeasuredQueue(Protocol):
    """What the gauges read of a queue, in the thread of an exporter."""

    attributes: dict[str, Any]

    def depth(self) -> int | None:
        """Return the number of messages in it, ``None`` if that is unknown."""

    def dead(self) -> int | None:
        """Return the number of dead letters, ``None`` if that is unknown."""

    def in_flight(self) -> int:
        """Return the number of messages that this process holds."""


Values = Iterable[tuple[float, dict[str, Any]]]


class Gauge(NamedTuple):
    """An observable instrument, whose callback reads the pools.

    Attributes:
        name: The name of the metric.
        kind: ``UP_DOWN_COUNTER`` or ``GAUGE``; a gauge's values must not be added up over processes.
        unit: The unit, in UCUM.
        description: The description; for names of the conventions, it is theirs.
        measure: Reads a pool: each value and the attributes it has beside the pool's name.
    """

    name: str
    kind: str
    unit: str
    description: str
    measure: Callable[[MeasuredPool], Values]


def _per_queue(measure: Callable[[MeasuredQueue], int | None]) -> Callable[[MeasuredPool], Values]:
    return lambda pool: ((value, queue.attributes) for queue in pool.queues() if (value := measure(queue)) is not None)


def _per_pool(measure: Callable[[PoolStats], Values]) -> Callable[[MeasuredPool], Values]:
    # A cluster's connections are those of its nodes' pools.
    return lambda pool: measure(pool.stats()) if pool.node_count() is None else ()


def _used_and_idle(stats: PoolStats) -> Values:
    return (
        (stats.used, {semconv.DB_CLIENT_CONNECTION_STATE: semconv.STATE_USED}),
        (stats.idle, {semconv.DB_CLIENT_CONNECTION_STATE: semconv.STATE_IDLE}),
    )


def _nodes(pool: MeasuredPool) -> Values:
    # Before the first refresh, the number is unknown.
    count = pool.node_count()
    return ((count, {}),) if count else ()


def _hot_keys(pool: MeasuredPool) -> Values:
    rates = pool.hot_key_rates(_MAX_HOT_KEYS)
    return ((rate, {semconv_ext.KEY: key, semconv_ext.KEY_ACCESS: access}) for (key, access), rate in rates.items())


GAUGES: Final = (
    Gauge(
        semconv.DB_CLIENT_CONNECTION_COUNT,
        UP_DOWN_COUNTER,
        "{connection}",
        "The number of connections that are currently in state described by the `state` attribute.",
        _per_pool(_used_and_idle),
    ),
    Gauge(
        semconv.DB_CLIENT_CONNECTION_MAX,
        UP_DOWN_COUNTER,
        "{connection}",
        "The maximum number of open connections allowed.",
        _per_pool(lambda stats: ((stats.max_connections, {}),)),
    ),
    Gauge(
        semconv.DB_CLIENT_CONNECTION_IDLE_MAX,
        UP_DOWN_COUNTER,
        "{connection}",
        "The maximum number of idle open connections allowed.",
        # A pool closes no connection for being idle.
        _per_pool(lambda stats: ((stats.max_connections, {}),)),
    ),
    Gauge(
        semconv.DB_CLIENT_CONNECTION_IDLE_MIN,
        UP_DOWN_COUNTER,
        "{connection}",
        "The minimum number of idle open connections allowed.",
        # A pool connects no connection before it is needed.
        _per_pool(lambda _: ((0, {}),)),
    ),
    Gauge(
        semconv.DB_CLIENT_CONNECTION_PENDING_REQUESTS,
        UP_DOWN_COUNTER,
        "{request}",
        "The number of current pending requests for an open connection.",
        _per_pool(lambda stats: ((stats.pending, {}),)),
    ),
    Gauge(
        semconv_ext.CONNECTION_IN_FLIGHT,
        UP_DOWN_COUNTER,
        "{operation}",
        "The number of operations on the shared connection that are owed a reply.",
        _per_pool(lambda stats: ((stats.in_flight, {}),)),
    ),
    # Every process sees the same nodes.
    Gauge(
        semconv_ext.CLUSTER_NODES,
        GAUGE,
        "{node}",
        "The number of nodes of a cluster that are known.",
        _nodes,
    ),
    Gauge(
        semconv_ext.QUEUE_IN_FLIGHT,
        UP_DOWN_COUNTER,
        "{message}",
        "The number of messages that this process holds.",
        _per_queue(lambda queue: queue.in_flight()),
    ),
    # Every process may see the same messages.
    Gauge(
        semconv_ext.QUEUE_DEPTH,
        GAUGE,
        "{message}",
        "The number of messages in a queue, as seen last.",
        _per_queue(lambda queue: queue.depth()),
    ),
    Gauge(
        semconv_ext.QUEUE_DEAD,
        GAUGE,
        "{message}",
        "The number of messages that were delivered too often, as seen last.",
        _per_queue(lambda queue: queue.dead()),
    ),
    Gauge(
        semconv_ext.HOT_KEYS_RATE,
        GAUGE,
        "{call}/s",
        "The rate of the calls that are about a key, for the keys that are called most.",
        _hot_keys,
    ),
)


class Instruments:
    """The instruments of one meter provider, and the pools that its gauges read.

    The SDK keeps the first callback of each gauge, ignores those of later gauges with the same name, and releases it
    never: hence one object for all pools, which refers to them weakly.

    Attributes:
        operation_duration: As all others, an instrument of the table ``INSTRUMENTS``.
        pools: The pools, by their ids.
    """

    operation_duration: Histogram
    create_time: Histogram
    wait_time: Histogram
    use_time: Histogram
    timeouts: Counter
    event_loop_lag: Histogram
    message_duration: Histogram
    process_duration: Histogram
    sent_messages: Counter
    consumed_messages: Counter
    queue_time: Histogram
    queue_recovered: Counter
    queue_lease_lost: Counter
    queue_unsettled: Counter
    lock_wait_time: Histogram
    lock_hold_time: Histogram
    lock_contended: Counter
    lock_lost: Counter
    pubsub_reconnects: Counter
    cluster_redirects: Counter
    cluster_refreshes: Counter
    failovers: Counter

    def __init__(self, provider: MeterProvider) -> None:
        self._provider = ref(provider)
        self.pools: dict[int, ref[MeasuredPool]] = {}
        meter = provider.get_meter(SCOPE, __version__, semconv.SCHEMA_URL)
        for row in INSTRUMENTS:
            setattr(self, row.attribute, _instrument(meter, row))
        for gauge in GAUGES:
            is_sum = gauge.kind == UP_DOWN_COUNTER
            create = meter.create_observable_up_down_counter if is_sum else meter.create_observable_gauge
            create(gauge.name, [self._callback(gauge)], gauge.unit, gauge.description)

    def _callback(self, gauge: Gauge) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for pool in self._observed_pools():
                named = {semconv.DB_CLIENT_CONNECTION_POOL_NAME: pool.name}
                for value, attributes in gauge.measure(pool):
                    yield Observation(value, named | attributes)

        return observe

    def _observed_pools(self) -> Iterator[MeasuredPool]:
        # If this provider has become the global one, the SDK ignores the gauges that were made for the stand-in.
        is_global = self._provider() is metrics.get_meter_provider()
        for instruments in {self, *_of_the_global_provider} if is_global else {self}:
            # A copy, in one step: pools come and go in other threads.
            for reference in list(instruments.pools.values()):
                pool = reference()
                if pool is not None:
                    yield pool

    def add_pool(self, pool: MeasuredPool) -> None:
        """Let the gauges read a pool until it is removed or garbage collected."""
        key = id(pool)
        self.pools[key] = ref(pool, lambda _: self.pools.pop(key, None))

    def remove_pool(self, pool: MeasuredPool) -> None:
        """Let the gauges read the pool no more."""
        self.pools.pop(id(pool), None)


def _instrument(meter: Meter, row: Instrument) -> Counter | Histogram:
    if row.kind == COUNTER:
        return meter.create_counter(row.name, row.unit, row.description)
    return meter.create_histogram(row.name, row.unit, row.description, explicit_bucket_boundaries_advisory=row.bounds)


_of_the_global_provider: list[Instruments] = []
_of_others: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()
_lock = Lock()


def instruments_of(meter_provider: MeterProvider | None) -> Instruments:
    """Return the instruments of a meter provider; ``None`` is the global one, also if it is set later."""
    provider = meter_provider or metrics.get_meter_provider()
    with _lock:
        instruments = _of_others.get(provider)
        if instruments is None and provider is metrics.get_meter_provider():
            # A stand-in may have preceded it: the instruments that were made then report to the real one now.
            instruments = next(iter(_of_the_global_provider), None)
        if instruments is None:
            instruments = Instruments(provider)
            if provider is metrics.get_meter_provider():
                _of_the_global_provider.append(instruments)
            else:
                _of_others[provider] = instruments
        return instruments
