"""The metrics of a pool: its name in them, its figures for the gauges, and what happens to its connections."""

from collections.abc import Iterable
from itertools import chain, count
from threading import Lock
from time import perf_counter
from weakref import WeakValueDictionary

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._commands.table import escape_surrogates
from aioredis_monitored._multiplexer import Multiplexer
from aioredis_monitored._redispy.sockets import is_readable
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.stats import PoolStats, QueueGauges
from aioredis_monitored.pool.slots import Slots

_registering = Lock()
_registered: WeakValueDictionary[str, "PoolMetrics"] = WeakValueDictionary()


class PoolMetrics:
    """What gauges read of a pool while it is registered, and the points of its connections.

    Args:
        name: The pool's name.
        recorder: Where points are recorded.
        slots: The connections of the pool.

    Attributes:
        name: What metrics call the pool: its name, with a number behind it while another open pool has that.
        multiplexer: The pool's shared connection, which the pool sets; ``None`` if it has none.
    """

    multiplexer: Multiplexer | None = None

    def __init__(self, name: str, recorder: PoolRecorder, slots: Slots[AbstractConnection]) -> None:
        self.name = self._pool_name = escape_surrogates(name)
        self._recorder = recorder
        self._slots = slots
        self._acquired_at: dict[AbstractConnection, float] = {}

    def register(self) -> None:
        """Take a name that no other open pool has, and show the pool in the gauges, if it is not there."""
        with _registering:
            if _registered.get(self.name) is self:
                return
            # Of two pools with one name, all gauges would be the sum.
            names = chain([self._pool_name], (f"{self._pool_name}-{number}" for number in count(2)))
            self.name = next(name for name in names if name not in _registered)
            _registered[self.name] = self
        self._recorder.set_pool_name(self.name)
        self._recorder.instruments.add_pool(self)

    def unregister(self) -> None:
        """Give the name back, remove the pool from the gauges, and forget its connections."""
        self._recorder.instruments.remove_pool(self)
        if _registered.get(self.name) is self:
            del _registered[self.name]
        self._acquired_at = {}

    # Read in the thread of an exporter, at any time: each copy is made in one step.

    def stats(self) -> PoolStats:
        """Return the figures of the pool as they are now."""
        multiplexer = self.multiplexer
        # The server may have closed some of them unnoticed.
        idle = sum(each.is_connected and not is_readable(each) for each in list(self._slots.idle))
        return PoolStats(
            name=self.name,
            max_connections=self._slots.max_connections,
            used=len(self._slots.acquired),
            idle=idle,
            pending=self._slots.waiter_count() + (0 if multiplexer is None else multiplexer.queued()),
            in_flight=0 if multiplexer is None else multiplexer.in_flight(),
        )

    def queues(self) -> Iterable[QueueGauges]:
        """Return the queues on the pool."""
        return list(self._recorder.queues.values())

    def node_count(self) -> int | None:
        """Return ``None``: the pool has connections of its own, and no nodes."""
        return None

    def hot_key_rates(self, count: int) -> dict[tuple[str, str], float]:
        """Return the rates of the most called keys, by key and access; empty if keys are not counted."""
        return self._recorder.hot_keys.rates(count)

    def in_use(self) -> int:
        """Return how many callers have a connection of their own."""
        return len(self._acquired_at)

    # Points, in seconds.

    def on_created(self, seconds: float) -> None:
        """Record the time that it took to connect."""
        self._recorder.record(self._recorder.instruments.create_time, seconds)

    def on_acquired(self, seconds: float) -> None:
        """Record the time that a call has waited for the shared connection, or for room on it."""
        self._recorder.record(self._recorder.instruments.wait_time, seconds)

    def start_use(self, connection: AbstractConnection, asked: float, acquired: float) -> None:
        """Record the time that a call has waited for a dedicated connection; its use begins.

        Args:
            connection: The connection.
            asked: When the call began to wait, by the performance counter.
            acquired: When it got the connection.
        """
        self._acquired_at[connection] = acquired
        self._recorder.record(self._recorder.instruments.wait_time, acquired - asked)

    def end_use(self, connection: AbstractConnection) -> None:
        """Record the time since ``start_use``; nothing for a shared connection."""
        if (since := self._acquired_at.pop(connection, None)) is not None:
            self._recorder.record(self._recorder.instruments.use_time, perf_counter() - since)

    def on_timeout(self) -> None:
        """Count a call that got no connection, or no room on the shared one, in time."""
        self._recorder.record(self._recorder.instruments.timeouts, 1)

    def on_lag(self, seconds: float) -> None:
        """Record the time from the reading of replies until their callers resumed."""
        self._recorder.record(self._recorder.instruments.event_loop_lag, seconds)
