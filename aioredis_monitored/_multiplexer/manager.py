"""Keeps one shared connection open for its calls, which are sent in order: at once, or when there is room."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from math import inf
from time import perf_counter
from typing import Final, Protocol, cast
from weakref import ref

from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface
from redis.exceptions import ConnectionError as RedisConnectionError

from aioredis_monitored._multiplexer.connection import MultiplexedConnection
from aioredis_monitored._multiplexer.futures import AttemptFailed, CallFuture
from aioredis_monitored._timeouts import LATE_SECONDS, LagTolerantTimeout
from aioredis_monitored.errors import PoolExhaustedError, copied

# How many calls are queued before cancelled ones are removed.
_PURGE_THRESHOLD: Final = 1024
# Seconds for outstanding replies on closing, where socket_timeout sets no limit.
_DRAIN_SECONDS: Final = 5.0
# Seconds that a temporary connection stays open without a call. Calls that failed together are repeated within a few
# pauses; after that, an isolated call may need the connection's slot.
_LINGER_SECONDS: Final = 0.1


class ConnectionSource(Protocol):
    """The pool that connections come from."""

    timeout: float | None

    def check_open(self) -> None:
        """Raise if the pool cannot be used in the running event loop."""

    async def acquire_for_sharing(self, *, reserved: bool) -> AbstractConnection:
        """Acquire a connection on which nothing was sent; ``reserved`` takes the slot that the pool keeps for it."""

    def has_free_connection(self) -> bool:
        """Whether a connection can be acquired without waiting."""

    def return_closed(self, connection: AbstractConnection) -> None:
        """Release an acquired connection that is closed."""

    def on_acquired(self, seconds: float) -> None:
        """Record how long a call waited for the connection, or for room on it."""

    def on_timeout(self) -> None:
        """Record a call that waited in vain."""

    def on_lag(self, seconds: float) -> None:
        """Record the delay between reading replies and resuming their callers."""


class ConnectionManager:
    """Connects and reconnects one shared connection, and queues calls until it is connected and has room.

    Args:
        source: The pool, which is referenced weakly.
        pack: Packs a call that was queued.
        on_large_reply: Called with each call whose reply is large.
        overflow: Takes the calls if there is no connection for this manager. Default ``None``: the pool keeps a slot
            for its connection.
        is_temporary: Whether its connection closes shortly after the last call, and has no slot of its own.

    Attributes:
        ready: The connection, if a call can be sent on it at once.
        connection: The connection, if it is connected and accepts calls.
        queued: The calls to be sent, the oldest first.
    """

    def __init__(
        self,
        source: ConnectionSource,
        pack: Callable[[CallFuture], bytes],
        on_large_reply: Callable[[CallFuture], None],
        *,
        overflow: "ConnectionManager | None" = None,
        is_temporary: bool = False,
    ) -> None:
        self.ready: MultiplexedConnection | None = None
        self.connection: MultiplexedConnection | None = None
        self.queued: deque[CallFuture] = deque()
        self.on_large_reply = on_large_reply
        # The event loop references the connection and, through it, this manager: a strong reference would keep a leaked
        # pool alive, and its warning would never come.
        self._source = ref(source)
        self._timeout = source.timeout
        self._overflow = overflow
        self._is_temporary = is_temporary
        self._is_reserved = overflow is None and not is_temporary
        self._pack = pack
        self._connections: set[MultiplexedConnection] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the timer is due; when it last came late, and until when calls that were due then may stay.
        self._timer_due = self._deferred_at = self._deferred_until = -inf
        self._purge_at = _PURGE_THRESHOLD
        self._closed: Exception | None = None
        # When the last attempt to connect began, and when the last one succeeded.
        self._connecting_since = self._connected_at = -1.0
        # Shared by all queued calls, which may be many.
        self._context = Context()
        self._cancel_callback = self._on_cancel

    def enqueue(self, call: CallFuture) -> None:
        """Send a call after all queued ones, as soon as the connection has room."""
        if self._closed is not None:
            call.set_result(AttemptFailed(self._closed, may_have_run=False))
            return
        if len(self.queued) >= self._purge_at:
            # Cancelled calls behind one that stays would fill the memory.
            self.queued = deque(each for each in self.queued if not each.done())
            self._purge_at = 2 * len(self.queued) + _PURGE_THRESHOLD
        call.queued_at = perf_counter()
        self.queued.append(call)
        call.is_queued, call.on_cancel = True, self._cancel_callback
        if self._timer is None:
            self._arm_timer()
        self.on_room()

    def _on_cancel(self, call: CallFuture) -> None:
        self._report_wait(call, perf_counter())
        if self._connecting is not None:
            while self.queued and self.queued[0].done():
                self.queued.popleft()
            if not self.queued:
                # No caller is left to see it fail, or to wait for it before the event loop ends.
                self._connecting.cancel()

    def on_room(self) -> None:
        """Send queued calls, first in, first out, as long as there is room."""
        if self.ready is not None and not self.queued:
            return
        while self.queued:
            # Sending a call may have closed the connection.
            connection, call = self.connection, self.queued[0]
            if call.done():
                self.queued.popleft()
            elif connection is None:
                if self._connecting is None:
                    self._connecting_since = perf_counter()
                    # Not an eager task, which could be done before this assignment.
                    self._connecting = asyncio.Task(self._connect(), loop=call.get_loop(), context=self._context)
                    # Not in the task itself: one that is cancelled before its first step runs nothing.
                    self._connecting.add_done_callback(self._on_connected, context=self._context)
                return
            elif connection.inflight.is_full():
                return
            else:
                self.queued.popleft()
                self._send(connection, call)
        if self.connection is not None and not self.connection.inflight.is_full():
            self.ready = self.connection

    def _send(self, connection: MultiplexedConnection, call: CallFuture) -> None:
        call.is_queued, call.on_cancel = False, None
        now = perf_counter()
        waited = self._report_wait(call, now)
        source = self._source()
        if source is not None:
            source.on_acquired(waited)
        # The connection may close before the call is written: it is queued again then.
        call.wait_reported_at = now
        try:
            packed = self._pack(call)
        except Exception as error:  # noqa: BLE001 - an argument has changed meanwhile; the calls behind must go on
            call.set_result(AttemptFailed(error, may_have_run=False))
        else:
            connection.send(call, packed)

    def _report_wait(self, call: CallFuture, now: float) -> float:
        """Report to the observer how much longer the call has waited, and return it."""
        since = max(call.queued_at, call.wait_reported_at)
        if call.observer is not None:
            # An attempt that goes on has connected up to now.
            connected_at = self._connected_at if self._connected_at > self._connecting_since else now
            call.observer.add_wait(now - since, max(0.0, connected_at - max(self._connecting_since, since)))
        return now - since

    # Connecting.

    async def _connect(self) -> None:
        source = self._source()
        if source is None:
            return
        if self._overflow is not None and not source.has_free_connection():
            # The last free slot was taken meanwhile.
            self._spill(self._overflow)
            return
        # Not the event loop's clock, which counts milliseconds on uvloop.
        began = self._connecting_since = perf_counter()
        try:
            connection = await source.acquire_for_sharing(reserved=self._is_reserved)
            self._connected_at = perf_counter()
            self.connection = MultiplexedConnection(connection, self)
            self._connections.add(self.connection)
            if self._is_temporary:
                self._retire_when_idle(self.connection)
        except Exception as error:  # noqa: BLE001 - the queued calls get it
            if self._overflow is not None and self._overflow.connection is not None:
                # The server may accept no second connection.
                self._spill(self._overflow)
            else:
                # Calls that were queued later have their whole timeout left, and get another attempt.
                self._fail_queued(error, queued_before=began)

    def _on_connected(self, _: asyncio.Task[None]) -> None:
        # Or it failed, or was cancelled, while further calls were queued.
        self._connecting = None
        self.on_room()
        self._arm_timer()

    def _spill(self, overflow: "ConnectionManager") -> None:
        spilled, self.queued = self.queued, deque()
        for call in spilled:
            if not call.done():
                self._report_wait(call, perf_counter())
                overflow.enqueue(call)

    def _retire_when_idle(self, connection: MultiplexedConnection) -> None:
        if connection.is_idle(_LINGER_SECONDS):
            connection.retire()
        elif connection.is_open:
            asyncio.get_running_loop().call_later(
                _LINGER_SECONDS, self._retire_when_idle, connection, context=self._context
            )

    # What the connection reports.

    def on_full(self) -> None:
        """Queue further calls."""
        self.ready = None

    def on_lag(self, seconds: float) -> None:
        """Report the delay between reading replies and resuming their callers, for the main connection alone."""
        source = self._source()
        if self._is_reserved and source is not None:
            source.on_lag(seconds)

    def on_retired(self, connection: MultiplexedConnection) -> None:
        """Connect again for the next call."""
        if self.connection is connection:
            self.connection = self.ready = None
            if self._closed is None:
                self.on_room()

    def on_closed(self, connection: MultiplexedConnection, unwritten: Sequence[CallFuture]) -> None:
        """Release the connection, and queue what was not written to it before all other calls."""
        self._connections.discard(connection)
        source = self._source()
        if source is not None:
            source.return_closed(connection.connection)
        for call in reversed(unwritten):
            # It is older than all queued calls, whether or not it was queued itself.
            oldest = self.queued[0].queued_at if self.queued else perf_counter()
            call.queued_at = min(call.queued_at or oldest, oldest)
            call.is_queued, call.on_cancel = True, self._cancel_callback
            self.queued.appendleft(call)
        if self._closed is not None:
            self._fail_queued(self._closed)
        elif self.queued:
            self._arm_timer()
            self.on_room()

    # Calls that are queued for too long.

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.queued and self._timeout is not None:
            call = self.queued[0]
            self._timer_due = max(call.queued_at + self._timeout, self._deferred_until)
            delay = max(0.0, self._timer_due - perf_counter())
            self._timer = call.get_loop().call_later(delay, self._on_timeout, context=self._context)

    def _on_timeout(self) -> None:
        if self.connection is None:
            # Connecting has timeouts of its own, and arms this timer again.
            self._timer = None
            return
        timeout, now = cast("float", self._timeout), perf_counter()
        late = now - self._timer_due
        if late > LATE_SECONDS:
            # A busy event loop has not read the replies that make room. It gets as much time as it is late, and at most
            # the timeout itself; calls that were deferred before are rejected.
            self._reject_queued(self._deferred_at - timeout)
            self._deferred_at, self._deferred_until = now, now + min(late, timeout)
        else:
            self._reject_queued(now - timeout)
        self._arm_timer()

    def _reject_queued(self, queued_before: float) -> None:
        text = f"no room on the shared connection in {self._timeout} s"
        while self.queued and (self.queued[0].done() or self.queued[0].queued_at <= queued_before):
            source = self._source()
            if source is not None and not self.queued[0].done():
                source.on_timeout()
            self._fail_next(PoolExhaustedError(text))

    def _fail_queued(self, error: Exception, queued_before: float = inf) -> None:
        while self.queued and self.queued[0].queued_at <= queued_before:
            self._fail_next(copied(error))

    def _fail_next(self, error: Exception) -> None:
        call = self.queued.popleft()
        if not call.done():
            self._report_wait(call, perf_counter())
            call.set_result(AttemptFailed(error, may_have_run=False))

    # All connections: the present one, and retired ones that are still owed replies.

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials on every connection."""
        for connection in list(self._connections):
            connection.re_authenticate(token)

    def silent_since(self) -> float:
        """Since when a connection owes replies and has sent none, by the performance counter; ``inf`` if none does.

        One that is being made owes the replies of its handshake.
        """
        connecting_since = inf if self._connecting is None else self._connecting_since
        return min(connecting_since, *(connection.inflight.silent_since() for connection in self._connections), inf)

    def close_silent(self, since: float, error: Callable[[], Exception]) -> None:
        """Close the connections that have sent nothing of what they owe since then, and those that are being made."""
        for connection in list(self._connections):
            if connection.inflight.silent_since() <= since:
                connection.close(error)
        if self._connecting is not None and self._connecting_since <= since:
            self._fail_queued(error())
            self._connecting.cancel()

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(len(connection.inflight.pending) for connection in list(self._connections))

    def close(self, error: Exception) -> None:
        """Accept no further calls, and fail the queued ones with ``error``."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_queued(error)
        for connection in list(self._connections):
            connection.retire()

    async def drain(self) -> None:
        """Wait for the replies to written calls, for ``socket_timeout`` or else 5 s, and close all connections."""
        connections = list(self._connections)
        closing: list[asyncio.Future[None]] = [connection.closing for connection in connections]
        if self._connecting is not None:
            closing.append(self._connecting)
        if closing:
            timeouts = (connection.inflight.timeout or _DRAIN_SECONDS for connection in connections)
            with suppress(TimeoutError):
                async with LagTolerantTimeout(max(timeouts, default=_DRAIN_SECONDS)):
                    await asyncio.wait(closing)
        for connection in connections:
            connection.close(lambda: RedisConnectionError("closed before the reply came"))
