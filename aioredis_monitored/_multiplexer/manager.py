"""Sending calls in the order in which they came: at once, or when the line is connected and has room."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from copy import copy
from math import inf
from time import perf_counter
from typing import Final, cast
from weakref import ref

from redis.auth.token import TokenInterface
from redis.exceptions import ConnectionError  # noqa: A004

from aioredis_monitored._multiplexer.connection import MultiplexedConnection
from aioredis_monitored._multiplexer.futures import AttemptFailed, BatchFuture, CommandFuture, ConnectionSource
from aioredis_monitored._timeouts import LATE_SECONDS, lag_tolerant_timeout
from aioredis_monitored.errors import PoolExhaustedError

# So many waiting calls are not worth looking for those that have left.
_PURGE_THRESHOLD: Final = 1024
# Seconds that replies get on closing, if they had all the time in the world before.
_DRAIN_SECONDS: Final = 5.0
# Seconds that a temporary connection stays without a call: those that were lost together come within a few pauses. A
# call that has to go alone may need its place.
_LINGER_SECONDS: Final = 0.1
# Seconds that TLS has to say goodbye.
_TLS_CLOSE_SECONDS: Final = 1.0


class ConnectionManager:
    """One line at a time, and the calls that wait until it is connected or has room.

    Args:
        lender: Where the connections come from.
        pack: Packs a call that has waited.
        learn: Told of each call whose reply was large.
        overflow: Where calls go if there is no connection for this lane; default: one is reserved for it.
        is_temporary: Whether its connection is closed a moment after its last call, and none is reserved for it.

    Attributes:
        ready: The line, if a call can be sent on it at once.
        line: The line, if it is connected and takes calls.
        waiting: The calls that are to be sent, the oldest first.
    """

    def __init__(
        self,
        source: ConnectionSource,
        pack: Callable[[CommandFuture | BatchFuture], bytes],
        learn: Callable[[CommandFuture | BatchFuture], None],
        *,
        overflow: "ConnectionManager | None" = None,
        is_temporary: bool = False,
    ) -> None:
        self.ready: MultiplexedConnection | None = None
        self.connection: MultiplexedConnection | None = None
        self.queued: deque[CommandFuture | BatchFuture] = deque()
        self.on_large_reply = learn
        # Not the pool itself: the event loop refers to the line, and a forgotten pool would never be noticed.
        self._source = ref(source)
        self._timeout = source.timeout
        self._overflow = overflow
        self._is_temporary = is_temporary
        self._is_reserved = overflow is None and not is_temporary
        self._pack = pack
        self._connections: set[MultiplexedConnection] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the timer is due; when it was found to be late, and until when those that were to go then may stay.
        self._due = self._deferred_at = self._deferred_until = -inf
        self._purge_at = _PURGE_THRESHOLD
        self._closed: Exception | None = None
        # When it began to connect, and when it had.
        self._began = self._connected = -1.0
        # One of each for all calls that wait, which may be many.
        self._context = Context()
        self._cancel_callback = self._on_cancel

    def enqueue(self, call: CommandFuture | BatchFuture) -> None:
        """Send a call when it is its turn."""
        if self._closed is not None:
            call.set_result(AttemptFailed(self._closed, written=False))
            return
        if len(self.queued) >= self._purge_at:
            # Those who have left must not fill the memory behind one who stays.
            self.queued = deque(each for each in self.queued if not each.done())
            self._purge_at = 2 * len(self.queued) + _PURGE_THRESHOLD
        call.queued_at = perf_counter()
        self.queued.append(call)
        call.is_queued, call.on_cancel = True, self._cancel_callback
        if self._timer is None:
            self._arm_timer()
        self.on_room()

    def _on_cancel(self, call: CommandFuture | BatchFuture) -> None:
        self._notify_wait(call, perf_counter())
        if self._connecting is not None:
            while self.queued and self.queued[0].done():
                self.queued.popleft()
            if not self.queued:
                # Nobody would be there to see it fail, or to end it before the event loop ends.
                self._connecting.cancel()

    def on_full(self) -> None:
        """Let calls wait."""
        self.ready = None

    def on_room(self) -> None:
        """Send what waits, first come, first served."""
        if self.ready is not None and not self.queued:
            return
        while self.queued:
            # Sending may have ended the line that was there for the call before.
            line, call = self.connection, self.queued[0]
            if call.done():
                self.queued.popleft()
            elif line is None:
                if self._connecting is None:
                    # Never an eager task, which could be done before it is known here.
                    self._connecting = asyncio.Task(self._connect(), loop=call.get_loop(), context=self._context)
                    # Nor by itself: a task that is cancelled before its first step does nothing.
                    self._connecting.add_done_callback(self._on_connected, context=self._context)
                return
            elif line.inflight.is_full():
                return
            else:
                self.queued.popleft()
                self._send(line, call)
        if self.connection is not None and not self.connection.inflight.is_full():
            self.ready = self.connection

    def _notify_wait(self, call: CommandFuture | BatchFuture, now: float) -> float:
        """Tell the listener how much longer the call has waited, and return it."""
        since = max(call.queued_at, call.wait_reported_at)
        if call.observer is not None:
            # While it still connects, it has not connected since.
            connected = self._connected if self._connected > self._began else now
            call.observer.add_wait(now - since, max(0.0, connected - max(self._began, since)))
        return now - since

    def on_lag(self, seconds: float) -> bool:
        """Tell how long callers took to go on; the main lane's are enough."""
        lender = self._source()
        return self._is_reserved and lender is not None and lender.on_lag(seconds)

    def _send(self, line: MultiplexedConnection, call: CommandFuture | BatchFuture) -> None:
        call.is_queued, call.on_cancel = False, None
        now = perf_counter()
        waited = self._notify_wait(call, now)
        lender = self._source()
        if lender is not None:
            lender.on_acquired(waited)
        # The line may end before it is written.
        call.wait_reported_at = now
        try:
            packed = self._pack(call)
        except Exception as error:  # noqa: BLE001 - an argument is no longer what it was; those behind it must go on
            call.set_result(AttemptFailed(error, written=False))
        else:
            line.send(call, packed)

    async def _connect(self) -> None:
        lender = self._source()
        if lender is None:
            return
        if self._overflow is not None and not lender.has_free_connection():
            # Others were faster.
            self._spill(self._overflow)
            return
        # Not the loop's clock: that of uvloop counts milliseconds.
        began = self._began = perf_counter()
        try:
            connection = await lender.acquire_fresh(reserved=self._is_reserved)
            self._connected = perf_counter()
            self.connection = MultiplexedConnection(connection, self)
            self._connections.add(self.connection)
            if self._is_temporary:
                self._linger(self.connection)
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            if self._overflow is not None and self._overflow.connection is not None:
                # The server may have no room for a second connection.
                self._spill(self._overflow)
            else:
                # Those who came later have all their time before them, and get another attempt.
                self._fail_queued(error, began)

    def _linger(self, line: MultiplexedConnection) -> None:
        """Close a connection that has had no call for a while: others may need its place in the pool."""
        if line.is_idle(_LINGER_SECONDS):
            line.retire()
        elif line.is_open:
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._linger, line, context=self._context)

    def _spill(self, overflow: "ConnectionManager") -> None:
        waiting, self.queued = self.queued, deque()
        for call in waiting:
            if not call.done():
                self._notify_wait(call, perf_counter())
                overflow.enqueue(call)

    def _on_connected(self, _: asyncio.Task[None]) -> None:
        # Or has failed, or was cancelled, while others have begun to wait.
        self._connecting = None
        self.on_room()
        self._arm_timer()

    def on_retired(self, line: MultiplexedConnection) -> None:
        """Connect anew for the next call."""
        if self.connection is line:
            self.connection = self.ready = None
            if self._closed is None:
                self.on_room()

    def on_closed(self, line: MultiplexedConnection, unwritten: Sequence[CommandFuture | BatchFuture]) -> None:
        """Give the connection back; what was not written to it goes on the next one, before all others."""
        self._connections.discard(line)
        lender = self._source()
        if lender is not None:
            lender.return_closed(line.connection)
        for call in reversed(unwritten):
            # It came before all that wait, whether or not it had to wait itself.
            oldest = self.queued[0].queued_at if self.queued else perf_counter()
            call.queued_at = min(call.queued_at or oldest, oldest)
            call.is_queued, call.on_cancel = True, self._cancel_callback
            self.queued.appendleft(call)
        if self._closed is not None:
            self._fail_queued(self._closed)
        elif self.queued:
            self._arm_timer()
            self.on_room()

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.queued and self._timeout is not None:
            call = self.queued[0]
            self._due = max(call.queued_at + self._timeout, self._deferred_until)
            left = max(0.0, self._due - perf_counter())
            self._timer = call.get_loop().call_later(left, self._on_timeout, context=self._context)

    def _on_timeout(self) -> None:
        if self.connection is None:
            # Connecting has clocks of its own; it sets this one again.
            self._timer = None
            return
        timeout, now = cast("float", self._timeout), perf_counter()
        late = now - self._due
        if late > LATE_SECONDS:
            # An event loop that was busy has not read what makes room. It gets the time for that, and no more than each
            # call has anyway; those that were put off before have had theirs.
            self._reject_older(self._deferred_at - timeout)
            self._deferred_at, self._deferred_until = now, now + min(late, timeout)
        else:
            self._reject_older(now - timeout)
        self._arm_timer()

    def _reject_older(self, limit: float) -> None:
        text = f"no room on the shared connection in {self._timeout} s"
        while self.queued and (self.queued[0].done() or self.queued[0].queued_at <= limit):
            self._reject(PoolExhaustedError(text))

    def _fail_queued(self, error: Exception, waiting_since: float = inf) -> None:
        while self.queued and self.queued[0].queued_at <= waiting_since:
            # One for each: raising an error writes into it.
            own = error
            with suppress(Exception):  # not every class can be copied
                own = copy(error)
                own.__cause__ = error.__cause__ or error.__context__
            self._fail_next(own)

    def _reject(self, error: Exception) -> None:
        lender = self._source()
        if lender is not None and not self.queued[0].done():
            lender.on_timeout()
        self._fail_next(error)

    def _fail_next(self, error: Exception) -> None:
        call = self.queued.popleft()
        if not call.done():
            self._notify_wait(call, perf_counter())
            call.set_result(AttemptFailed(error, written=False))

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials on every line."""
        for line in list(self._connections):
            line.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(len(line.inflight.pending) for line in list(self._connections))

    def close(self, error: Exception) -> None:
        """Take no further calls; those that wait get the error."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail_queued(error)
        for line in list(self._connections):
            line.retire()

    async def drain(self) -> None:
        """Let what is written come to its end, within ``socket_timeout`` or else 5 s."""
        lines = list(self._connections)
        ends: list[asyncio.Future[None]] = [line.closing for line in lines]
        if self._connecting is not None:
            ends.append(self._connecting)
        if ends:
            with suppress(TimeoutError):
                async with lag_tolerant_timeout(
                    max((line.inflight.timeout or _DRAIN_SECONDS for line in lines), default=_DRAIN_SECONDS)
                ):
                    await asyncio.wait(ends)
        for line in lines:
            line.close(lambda: ConnectionError("closed before the reply came"))
        if lines:
            await asyncio.wait([line.closed for line in lines], timeout=_TLS_CLOSE_SECONDS)
        for line in lines:
            line.abort()
