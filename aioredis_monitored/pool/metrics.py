"""What a pool tells of itself: a name of its own, what gauges look at, and what becomes of its connections."""

from collections.abc import Iterable
from itertools import chain, count
from threading import Lock
from typing import Self
from weakref import WeakValueDictionary

from aioredis_monitored._commands.table import escape_surrogates
from aioredis_monitored._multiplexer import Multiplexer
from aioredis_monitored._redispy.sockets import is_readable
from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.stats import QueueStats
from aioredis_monitored.pool.slots import LendingPool

_naming = Lock()
_named: WeakValueDictionary[str, "ReportingPool"] = WeakValueDictionary()


class ReportingPool(LendingPool):
    """A pool that reports on itself, from ``report_to`` on until it is closed, and again when it is opened again.

    Attributes:
        name: What messages call it.
        name_in_metrics: The same, or with a number if an open pool has it already.
        telemetry: Where it reports.
        multiplexer: Its shared connection, if there is one.
    """

    name_in_metrics: str
    telemetry: PoolRecorder
    multiplexer: Multiplexer | None

    def attach_metrics(self, telemetry: PoolRecorder, name: str | None) -> None:
        """Take a name and begin to report.

        Args:
            telemetry: Where to report.
            name: What to call it; default ``host:port/db``.
        """
        self.telemetry = telemetry
        server = telemetry.server
        host = (
            server.target
            or server.attributes.get(semconv.SERVER_ADDRESS)
            or getattr(self.connection_class, "__name__", type(self.connection_class).__name__)
        )
        self._address = f"{host}/{server.attributes[semconv.DB_NAMESPACE]}"
        self.name = name or self._address
        self._register_name()

    def _register_name(self) -> None:
        # Of two pools with one name, all gauges would be the sum.
        with _naming:
            name = escape_surrogates(self.name)
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            self.name_in_metrics = next(name for name in names if _named.get(name, self) is self)
            _named[self.name_in_metrics] = self
        self.telemetry.set_pool_name(self.name_in_metrics)
        self.telemetry.instruments.add_pool(self)

    @property
    def _label(self) -> str:
        return repr(self.name) if self.name == self._address else f"{self.name!r} ({self._address})"

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        # Not by whether it is closed now: a closing may have been under way.
        if _named.get(self.name_in_metrics) is not self:
            self._register_name()
        return self

    def _reset(self) -> None:
        super()._reset()
        self.telemetry.instruments.remove_pool(self)
        if _named.get(self.name_in_metrics) is self:
            del _named[self.name_in_metrics]

    # What the gauges look at, in the thread of an exporter: each copy is made in one step.

    def used(self) -> int:
        """How many connections are lent, the shared one among them."""
        return len(self._in_use_connections)

    def idle(self) -> int:
        """How many connections are lent to nobody, without those that the server has closed unnoticed."""
        available = list(self._available_connections)
        return sum(connection.is_connected and not is_readable(connection) for connection in available)

    def pending(self) -> int:
        """How many callers wait for a connection, or for room on the shared one."""
        multiplexer = self.multiplexer
        return self.waiter_count() + (0 if multiplexer is None else multiplexer.queued())

    def in_flight(self) -> int:
        """How many calls on the shared connection are owed a reply."""
        multiplexer = self.multiplexer
        return 0 if multiplexer is None else multiplexer.in_flight()

    def queues(self) -> Iterable[QueueStats]:
        """The queues on it."""
        return list(self.telemetry.queues.values())

    def hot_key_rates(self, count: int) -> dict[tuple[str, str], float]:
        """The rates of the keys that are called most, by key and access, if that is counted."""
        return self.telemetry.hot_keys.rates(count)

    # What happens, in seconds.

    def on_created(self, seconds: float) -> None:
        """A connection was made."""
        self.telemetry.record(self.telemetry.instruments.create_time.record, seconds)

    def on_acquired(self, seconds: float) -> None:
        """A call has got a connection, or room on the shared one if it had to wait for that."""
        self.telemetry.record(self.telemetry.instruments.wait_time.record, seconds)

    def on_released(self, seconds: float) -> None:
        """A connection was given back."""
        self.telemetry.record(self.telemetry.instruments.use_time.record, seconds)

    def on_timeout(self) -> None:
        """A call has waited in vain."""
        self.telemetry.record(self.telemetry.instruments.timeouts.add, 1)

    def on_lag(self, seconds: float) -> bool:
        """Callers took so long to go on once their replies were read; whether anybody wants to know."""
        self.telemetry.record(self.telemetry.instruments.event_loop_lag.record, seconds)
        return self.telemetry.metrics_enabled
