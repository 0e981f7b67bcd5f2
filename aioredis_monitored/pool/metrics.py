"""What a pool tells of itself: a name of its own, what gauges look at, and what becomes of its connections."""

from collections.abc import Iterable
from itertools import chain, count
from threading import Lock
from typing import Self
from weakref import WeakValueDictionary

from aioredis_monitored._commands.table import encodable
from aioredis_monitored._multiplexer import Multiplexer
from aioredis_monitored._redispy.sockets import is_readable
from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.recorder import Telemetry
from aioredis_monitored._telemetry.stats import QueueView
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
    telemetry: Telemetry
    multiplexer: Multiplexer | None

    def report_to(self, telemetry: Telemetry, name: str | None) -> None:
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
        self._take_name()

    def _take_name(self) -> None:
        # Of two pools with one name, all gauges would be the sum.
        with _naming:
            name = encodable(self.name)
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            self.name_in_metrics = next(name for name in names if _named.get(name, self) is self)
            _named[self.name_in_metrics] = self
        self.telemetry.name_pool(self.name_in_metrics)
        self.telemetry.instruments.watch(self)

    @property
    def _label(self) -> str:
        return repr(self.name) if self.name == self._address else f"{self.name!r} ({self._address})"

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        # Not by whether it is closed now: a closing may have been under way.
        if _named.get(self.name_in_metrics) is not self:
            self._take_name()
        return self

    def _forget(self) -> None:
        super()._forget()
        self.telemetry.instruments.unwatch(self)
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
        return self.queued() + (0 if multiplexer is None else multiplexer.waiting())

    def in_flight(self) -> int:
        """How many calls on the shared connection are owed a reply."""
        multiplexer = self.multiplexer
        return 0 if multiplexer is None else multiplexer.in_flight()

    def queues(self) -> Iterable[QueueView]:
        """The queues on it."""
        return list(self.telemetry.queues.values())

    def hottest(self, count: int) -> dict[tuple[str, str], float]:
        """The rates of the keys that are called most, by key and access, if that is counted."""
        return self.telemetry.hot_keys.told(count)

    # What happens, in seconds.

    def note_creation(self, seconds: float) -> None:
        """A connection was made."""
        self.telemetry.measure(self.telemetry.instruments.create_time.record, seconds)

    def note_wait(self, seconds: float) -> None:
        """A call has got a connection, or room on the shared one if it had to wait for that."""
        self.telemetry.measure(self.telemetry.instruments.wait_time.record, seconds)

    def note_use(self, seconds: float) -> None:
        """A connection was given back."""
        self.telemetry.measure(self.telemetry.instruments.use_time.record, seconds)

    def note_refusal(self) -> None:
        """A call has waited in vain."""
        self.telemetry.measure(self.telemetry.instruments.timeouts.add, 1)

    def note_lag(self, seconds: float) -> bool:
        """Callers took so long to go on once their replies were read; whether anybody wants to know."""
        self.telemetry.measure(self.telemetry.instruments.event_loop_lag.record, seconds)
        return self.telemetry.is_measured
