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

from aioredis_monitored._multiplexer.connection import Line
from aioredis_monitored._multiplexer.futures import Lender, Lost, Reply, Run
from aioredis_monitored._timeouts import LATE, patient_timeout
from aioredis_monitored.errors import PoolExhaustedError

# So many waiting calls are not worth looking for those that have left.
_PURGE: Final = 1024
# Seconds that replies get on closing, if they had all the time in the world before.
_DRAIN: Final = 5.0
# Seconds that a temporary connection stays without a call: those that were lost together come within a few pauses. A
# call that has to go alone may need its place.
_LINGER: Final = 0.1
# Seconds that TLS has to say goodbye.
_GOODBYE: Final = 1.0


class Lane:
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
        lender: Lender,
        pack: Callable[[Reply | Run], bytes],
        learn: Callable[[Reply | Run], None],
        *,
        overflow: "Lane | None" = None,
        is_temporary: bool = False,
    ) -> None:
        self.ready: Line | None = None
        self.line: Line | None = None
        self.waiting: deque[Reply | Run] = deque()
        self.line_was_slowed = learn
        # Not the pool itself: the event loop refers to the line, and a forgotten pool would never be noticed.
        self._lender = ref(lender)
        self._timeout = lender.timeout
        self._overflow = overflow
        self._is_temporary = is_temporary
        self._is_reserved = overflow is None and not is_temporary
        self._pack = pack
        self._lines: set[Line] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When the timer is due; when it was found to be late, and until when those that were to go then may stay.
        self._due = self._put_off = self._put_off_until = -inf
        self._purge_at = _PURGE
        self._closed: Exception | None = None
        # When it began to connect, and when it had.
        self._began = self._connected = -1.0
        # One of each for all calls that wait, which may be many.
        self._context = Context()
        self._on_leaving = self._left

    def wait(self, call: Reply | Run) -> None:
        """Send a call when it is its turn."""
        if self._closed is not None:
            call.set_result(Lost(self._closed, written=False))
            return
        if len(self.waiting) >= self._purge_at:
            # Those who have left must not fill the memory behind one who stays.
            self.waiting = deque(each for each in self.waiting if not each.done())
            self._purge_at = 2 * len(self.waiting) + _PURGE
        call.since = perf_counter()
        self.waiting.append(call)
        call.waits, call.on_leaving = True, self._on_leaving
        if self._timer is None:
            self._watch()
        self.line_has_room()

    def _left(self, call: Reply | Run) -> None:
        self._tell_wait(call, perf_counter())
        if self._connecting is not None:
            while self.waiting and self.waiting[0].done():
                self.waiting.popleft()
            if not self.waiting:
                # Nobody would be there to see it fail, or to end it before the event loop ends.
                self._connecting.cancel()

    def line_is_full(self) -> None:
        """Let calls wait."""
        self.ready = None

    def line_has_room(self) -> None:
        """Send what waits, first come, first served."""
        if self.ready is not None and not self.waiting:
            return
        while self.waiting:
            # Sending may have ended the line that was there for the call before.
            line, call = self.line, self.waiting[0]
            if call.done():
                self.waiting.popleft()
            elif line is None:
                if self._connecting is None:
                    # Never an eager task, which could be done before it is known here.
                    self._connecting = asyncio.Task(self._connect(), loop=call.get_loop(), context=self._context)
                    # Nor by itself: a task that is cancelled before its first step does nothing.
                    self._connecting.add_done_callback(self._has_connected, context=self._context)
                return
            elif line.inflight.is_full():
                return
            else:
                self.waiting.popleft()
                self._send(line, call)
        if self.line is not None and not self.line.inflight.is_full():
            self.ready = self.line

    def _tell_wait(self, call: Reply | Run, now: float) -> float:
        """Tell the listener how much longer the call has waited, and return it."""
        since = max(call.since, call.told)
        if call.listener is not None:
            # While it still connects, it has not connected since.
            connected = self._connected if self._connected > self._began else now
            call.listener.waited(now - since, max(0.0, connected - max(self._began, since)))
        return now - since

    def line_lagged(self, seconds: float) -> bool:
        """Tell how long callers took to go on; the main lane's are enough."""
        lender = self._lender()
        return self._is_reserved and lender is not None and lender.note_lag(seconds)

    def _send(self, line: Line, call: Reply | Run) -> None:
        call.waits, call.on_leaving = False, None
        now = perf_counter()
        waited = self._tell_wait(call, now)
        lender = self._lender()
        if lender is not None:
            lender.note_wait(waited)
        # The line may end before it is written.
        call.told = now
        try:
            packed = self._pack(call)
        except Exception as error:  # noqa: BLE001 - an argument is no longer what it was; those behind it must go on
            call.set_result(Lost(error, written=False))
        else:
            line.send(call, packed)

    async def _connect(self) -> None:
        lender = self._lender()
        if lender is None:
            return
        if self._overflow is not None and not lender.has_free_connection():
            # Others were faster.
            self._spill(self._overflow)
            return
        # Not the loop's clock: that of uvloop counts milliseconds.
        began = self._began = perf_counter()
        try:
            connection = await lender.get_fresh_connection(reserved=self._is_reserved)
            self._connected = perf_counter()
            self.line = Line(connection, self)
            self._lines.add(self.line)
            if self._is_temporary:
                self._linger(self.line)
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            if self._overflow is not None and self._overflow.line is not None:
                # The server may have no room for a second connection.
                self._spill(self._overflow)
            else:
                # Those who came later have all their time before them, and get another attempt.
                self._lose(error, began)

    def _linger(self, line: Line) -> None:
        """Close a connection that has had no call for a while: others may need its place in the pool."""
        if line.is_idle(_LINGER):
            line.retire()
        elif line.is_open:
            asyncio.get_running_loop().call_later(_LINGER, self._linger, line, context=self._context)

    def _spill(self, overflow: "Lane") -> None:
        waiting, self.waiting = self.waiting, deque()
        for call in waiting:
            if not call.done():
                self._tell_wait(call, perf_counter())
                overflow.wait(call)

    def _has_connected(self, _: asyncio.Task[None]) -> None:
        # Or has failed, or was cancelled, while others have begun to wait.
        self._connecting = None
        self.line_has_room()
        self._watch()

    def line_retired(self, line: Line) -> None:
        """Connect anew for the next call."""
        if self.line is line:
            self.line = self.ready = None
            if self._closed is None:
                self.line_has_room()

    def line_ended(self, line: Line, unwritten: Sequence[Reply | Run]) -> None:
        """Give the connection back; what was not written to it goes on the next one, before all others."""
        self._lines.discard(line)
        lender = self._lender()
        if lender is not None:
            lender.discard(line.connection)
        for call in reversed(unwritten):
            # It came before all that wait, whether or not it had to wait itself.
            oldest = self.waiting[0].since if self.waiting else perf_counter()
            call.since = min(call.since or oldest, oldest)
            call.waits, call.on_leaving = True, self._on_leaving
            self.waiting.appendleft(call)
        if self._closed is not None:
            self._lose(self._closed)
        elif self.waiting:
            self._watch()
            self.line_has_room()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.waiting and self._timeout is not None:
            call = self.waiting[0]
            self._due = max(call.since + self._timeout, self._put_off_until)
            left = max(0.0, self._due - perf_counter())
            self._timer = call.get_loop().call_later(left, self._expire, context=self._context)

    def _expire(self) -> None:
        if self.line is None:
            # Connecting has clocks of its own; it sets this one again.
            self._timer = None
            return
        timeout, now = cast("float", self._timeout), perf_counter()
        late = now - self._due
        if late > LATE:
            # An event loop that was busy has not read what makes room. It gets the time for that, and no more than each
            # call has anyway; those that were put off before have had theirs.
            self._refuse_older(self._put_off - timeout)
            self._put_off, self._put_off_until = now, now + min(late, timeout)
        else:
            self._refuse_older(now - timeout)
        self._watch()

    def _refuse_older(self, limit: float) -> None:
        text = f"no room on the shared connection in {self._timeout} s"
        while self.waiting and (self.waiting[0].done() or self.waiting[0].since <= limit):
            self._refuse(PoolExhaustedError(text))

    def _lose(self, error: Exception, waiting_since: float = inf) -> None:
        while self.waiting and self.waiting[0].since <= waiting_since:
            # One for each: raising an error writes into it.
            own = error
            with suppress(Exception):  # not every class can be copied
                own = copy(error)
                own.__cause__ = error.__cause__ or error.__context__
            self._waiting_ends(own)

    def _refuse(self, error: Exception) -> None:
        lender = self._lender()
        if lender is not None and not self.waiting[0].done():
            lender.note_refusal()
        self._waiting_ends(error)

    def _waiting_ends(self, error: Exception) -> None:
        call = self.waiting.popleft()
        if not call.done():
            self._tell_wait(call, perf_counter())
            call.set_result(Lost(error, written=False))

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials on every line."""
        for line in list(self._lines):
            line.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(len(line.inflight.calls) for line in list(self._lines))

    def close(self, error: Exception) -> None:
        """Take no further calls; those that wait get the error."""
        self._closed = error
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._lose(error)
        for line in list(self._lines):
            line.retire()

    async def drain(self) -> None:
        """Let what is written come to its end, within ``socket_timeout`` or else 5 s."""
        lines = list(self._lines)
        ends: list[asyncio.Future[None]] = [line.ended for line in lines]
        if self._connecting is not None:
            ends.append(self._connecting)
        if ends:
            with suppress(TimeoutError):
                async with patient_timeout(max((line.inflight.timeout or _DRAIN for line in lines), default=_DRAIN)):
                    await asyncio.wait(ends)
        for line in lines:
            line.end(lambda: ConnectionError("closed before the reply came"))
        if lines:
            await asyncio.wait([line.lost for line in lines], timeout=_GOODBYE)
        for line in lines:
            line.abort()
