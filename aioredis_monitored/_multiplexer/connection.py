"""How long callers take to go on once their replies are read: the event loop's share of what seems slow."""

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from math import inf
from time import monotonic, perf_counter
from typing import Any, Final, Protocol, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.auth.token import TokenInterface
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError  # noqa: A004

from aioredis_monitored._multiplexer.futures import Reply, Run
from aioredis_monitored._multiplexer.inflight import NO_REPLY, InFlight
from aioredis_monitored._redispy.attributes import BAR, LINE_FEED, AttributeFilter
from aioredis_monitored._redispy.sockets import peer_of
from aioredis_monitored._timeouts import LATE

# Seconds for which only the longest is told.
_PAUSE: Final = 0.1


class Lag:
    """Measures every batch of replies, and tells the longest lag at most ten times a second.

    Args:
        tell: Is told of a lag in seconds, and returns whether anybody wants to know of them.

    Attributes:
        is_wanted: Whether every batch is to be measured.
        due: When one is to be measured in any case, by the performance counter.
    """

    def __init__(self, tell: Callable[[float], bool]) -> None:
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._longest = 0.0
        self.due = 0.0
        self.is_wanted = True

    def replies_read(self, now: float) -> None:
        """Measure from this time of the performance counter until all callers have gone on that wake up now."""
        self._loop.call_soon(self._gone_on, now, context=self._context)

    def _gone_on(self, read: float) -> None:
        now = perf_counter()
        self._longest = max(self._longest, now - read)
        if now >= self.due:
            self.due = now + _PAUSE
            longest, self._longest = self._longest, 0.0
            self.is_wanted = self._tell(longest)


_BUFFER = 65_536
# What is held until the end of the tick, bytes.
_MOST_HELD = 2**18
# Larger replies keep others waiting, bytes.
LARGE = 65_536
# What has arrived is read one tick after the next at the latest.
_TICKS_TO_READ = 3


class Owner(Protocol):
    """What a line tells whoever made it."""

    def line_is_full(self) -> None:
        """It has no room for further calls."""

    def line_has_room(self) -> None:
        """Replies have made room for further calls."""

    def line_was_slowed(self, call: Reply | Run) -> None:
        """The reply to this call was so large that others had to wait for it."""

    def line_lagged(self, seconds: float) -> bool:
        """Callers took so long to go on; return whether anybody wants to know."""

    def line_retired(self, line: "Line") -> None:
        """It takes no further calls, but may still owe replies."""

    def line_ended(self, line: "Line", unwritten: Sequence[Reply | Run]) -> None:
        """Its socket is closed; these calls were not written to it."""


class Line(asyncio.BufferedProtocol):
    """Takes over the socket of a connection that redis-py has made, until it ends.

    Args:
        connection: A connection for which ``can_share`` holds.
        owner: Who is told what happens.

    Attributes:
        inflight: The calls that are owed a reply.
        is_open: Whether it takes calls.
        since: When it was connected, by the monotonic clock.
        ended: Done when it owes nothing any more, and its socket is being closed.
        lost: Done when its socket is closed.
    """

    def __init__(self, connection: AbstractConnection, owner: Owner) -> None:
        self.connection = connection
        self.inflight = InFlight(connection.socket_timeout)
        self.is_open = True
        self.since = monotonic()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._outbox: list[bytes] = []
        self._flushing = False
        self._ticks_waited = 0
        self._checking: Reply | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unfinished = 0
        self._looking = False
        # When overdue calls were found that were put off, what had come and was not sent at the last look, and when the
        # next one is due.
        self._put_off = -inf
        self._seen: tuple[float, int, int] = (0.0, 0, 0)
        self._due = 0.0
        self._last_active = perf_counter()
        self._buffer = bytearray(_BUFFER)
        # It does not decode: a value for which that fails is its caller's trouble, and nobody else's.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=NO_REPLY
        )
        self._attributes = AttributeFilter(self._reader, NO_REPLY)
        self._transport = cast("Any", connection)._writer.transport  # noqa: SLF001 - can_share has looked
        self._descriptor: int = self._transport.get_extra_info("socket").fileno()
        self._check_after = connection.health_check_interval or inf
        readable = select.poll()
        readable.register(self._descriptor, select.POLLIN)
        # Bound once, as it is called before most writes.
        self._poll = readable.poll
        self._streams = cast("asyncio.Protocol", self._transport.get_protocol())
        self._transport.set_protocol(self)
        self._peer = peer_of(connection)
        self._lag = Lag(owner.line_lagged)

    def send(self, call: Reply | Run, packed: bytes) -> None:
        """Queue a call; it is written at the end of this tick."""
        if not self.inflight.add(call):
            self._owner.line_is_full()
        self._outbox.append(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        elif self.inflight.unwritten_size > _MOST_HELD and not self._ticks_waited:
            # At the end of the tick, all of it would be there three times: here, joined and in the transport's buffer.
            self._flush()

    def _own_call(self) -> Reply:
        reply = Reply(loop=self._loop)
        reply.args, reply.size, reply.listener, reply.is_own = (), 0, None, True
        reply.waits, reply.since, reply.on_leaving = False, 0.0, None
        return reply

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls; the line retires if the server refuses them."""
        reply = self._own_call()
        self.send(reply, b"".join(self.connection.pack_command("AUTH", token.try_get("oid"), token.get_value())))
        reply.add_done_callback(self._retire_unless_ok, context=self._context)

    def _flush(self, is_checked: bool = False) -> None:
        if self._checking is not None or not self._outbox:
            return
        if self._transport.is_closing():
            # The pool's connections were closed, for instance.
            self._read_on()
            self.end(lambda: ConnectionError("Connection closed."))
            return
        inflight = self.inflight
        now = perf_counter()
        if inflight.unwritten == len(inflight.calls):
            is_checked = is_checked or (now - self._last_active <= self._check_after and not self._poll(0))
            if not is_checked and not self._is_fit(now):
                return
            if not self._attributes.is_between_replies():
                text = f"Error while reading from {self._where()} : a part of a reply that no call is owed"
                self.end(lambda: ConnectionError(text))
                return
        self._flushing = False
        self._ticks_waited = 0
        self._last_active = now
        self._transport.write(b"".join(self._outbox))
        self._outbox.clear()
        inflight.write(inflight.unwritten, now)
        if self._timer is None:
            self._watch(now)

    def _is_fit(self, now: float) -> bool:
        """Look at a socket on which nothing is owed before anything is written.

        What has come is the end of the connection, which the event loop has not read yet, or a reply that no call is
        owed, which must not be given to the next one. One that comes later cannot be distinguished from that call's.
        """
        if self._ticks_waited < _TICKS_TO_READ and self._poll(0):
            self._ticks_waited += 1
            self._loop.call_soon(self._flush, context=self._context)
            return False
        if now - self._last_active > self._check_after:
            self._checking = self._own_call()
            self._checking.add_done_callback(self._checked, context=self._context)
            self.inflight.overtake(self._checking)
            self._transport.write(b"".join(self.connection.pack_command("PING")))
            self.inflight.write(1, now)
            if self._timer is None:
                self._watch(now)
            return False
        return True

    def _checked(self, reply: Reply) -> None:
        self._checking = None
        self._last_active = perf_counter()
        if reply.result() == b"PONG":
            self._flush(is_checked=True)
        else:
            self.end(lambda: ConnectionError("Bad response from PING health check"))

    def _retire_unless_ok(self, reply: Reply) -> None:
        if isinstance(reply.result(), Exception):
            # What is written behind it is answered, if only with an error.
            self.retire()

    # What asyncio calls.

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand out the replies that have come."""
        buffer, inflight = self._buffer, self.inflight
        self._unfinished += nbytes
        calls = inflight.calls
        head = calls[0] if calls else None
        now = perf_counter()
        first, attributes = buffer[0], self._attributes
        try:
            if first in (BAR, LINE_FEED) or attributes.pending or buffer.find(b"\r\n|", 0, nbytes) >= 0:
                attributes.feed(bytes(buffer[:nbytes]))
                completed = inflight.receive(attributes.gets, now)
            else:
                self._reader.feed(buffer, 0, nbytes)  # type: ignore[arg-type]  # it takes any buffer
                attributes.last_byte = buffer[nbytes - 1]
                completed = inflight.receive(self._reader.gets, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, no later reply could be trusted
            text = f"Error while reading from {self._where()} : {error!r}"
            inflight.refusal = None
            self.end(lambda: ConnectionError(text))
            return
        finally:
            if inflight.heard:
                self._tell(perf_counter())
        self._last_active = now
        if completed:
            lag = self._lag
            if lag.is_wanted or now >= lag.due:
                lag.replies_read(now)
            if self._unfinished > LARGE and head is not None:
                self._owner.line_was_slowed(head)
            self._unfinished = 0
            if self.is_open:
                self._owner.line_has_room()
            else:
                self._end_if_left()

    def _read_on(self) -> None:
        """Read what has come on a connection that has ended: after a failed write, both event loops drop it.

        Not under TLS, which only the event loop can read.
        """
        if self.ended.done() or self._transport.get_extra_info("ssl_object") is not None:
            return
        if self._transport.get_extra_info("socket").fileno() != self._descriptor:
            # Closed, and by now it may be another connection's.
            return
        with suppress(OSError):
            while not self.ended.done() and (nbytes := os.readv(self._descriptor, [self._buffer])):
                self.buffer_updated(nbytes)

    def _tell(self, now: float) -> None:
        heard = self.inflight.heard
        if heard:
            self.inflight.heard = []
            # One right after the other: that is faster than each in its turn.
            for listener, reply in heard:
                listener.answered(reply, now, self._peer)

    def eof_received(self) -> None:
        """The server has closed the connection."""
        self.end(lambda: ConnectionError("Connection closed by server."))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._read_on()
        reason = f"Error while reading from {self._where()} : {exc}" if exc else "Connection closed by server."
        self.end(lambda: ConnectionError(reason))
        # redis-py waits for it.
        self._streams.connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)

    # When replies take too long.

    def _watch(self, now: float) -> None:
        due = self.inflight.next_check(now)
        if due is None:
            self._timer = None
        else:
            self._look_at(due, now)

    def _look_at(self, due: float, now: float) -> None:
        self._due = due
        self._timer = self._loop.call_later(due - now, self._check, context=self._context)

    def _check(self) -> None:
        now = perf_counter()
        overdue = list(self.inflight.overdue(now))
        # Also where all callers have left: what was on its way to them may be put back.
        if (overdue or self.inflight.is_stuck(now)) and self._may_be_answered(now):
            self._look_at(now + cast("float", self.inflight.timeout) / 4, now)
            return
        self._put_off = -inf
        text = f"Timeout reading from {self._where()}"
        for call in overdue:
            self.inflight.fail(call, TimeoutError(text))
        self._tell(perf_counter())
        if self.inflight.is_stuck(now):
            self.retire()
        self._watch(now)
        if not self.is_open:
            self._end_if_left()

    def _may_be_answered(self, now: float) -> bool:
        """Whether this side is to blame for replies that are late: they were not read, or the calls not sent.

        An event loop that was busy reads a piece of what has come, and sends a piece of what it holds, in each turn. It
        gets its time for that as long as it gets on, and all in all no more than one reply may take: a server may drip.
        """
        timeout = cast("float", self.inflight.timeout)
        held = self._transport.get_write_buffer_size()
        before, self._seen = self._seen, (self.inflight.replied, self._unfinished, held)
        is_behind = now - self._due > LATE or bool(self._poll(0))
        if self.inflight.owes_since() > self._put_off - timeout:
            # What was put off before has come to its end.
            self._put_off = now
            return is_behind or bool(held)
        is_behind = is_behind or self._seen[:2] != before[:2] or held < before[2]
        return is_behind and now < self._put_off + timeout

    def write_pending(self) -> None:
        """Write at once what would be written at the end of this tick, unless something has to be read before that."""
        inflight = self.inflight
        if self._outbox and self.is_open and not (inflight.unwritten == len(inflight.calls) and self._poll(0)):
            self._flush()

    def is_idle(self, seconds: float) -> bool:
        """Whether nothing is in flight, and nothing was sent or came for the given seconds."""
        return not self.inflight.calls and perf_counter() - self._last_active >= seconds

    def retire(self) -> None:
        """Take no further calls, and end when nobody awaits a reply any more."""
        if self.is_open:
            self.is_open = False
            self._owner.line_retired(self)
            for call in self.inflight.calls:
                call.on_leaving = self._left
            self._end_if_left()

    def _left(self, _: Reply | Run) -> None:
        if not self._looking:
            # Once for all that leave in one tick.
            self._looking = True
            self._loop.call_soon(self._end_if_left, context=self._context)

    def _end_if_left(self) -> None:
        self._looking = False
        if not self.inflight.is_awaited(perf_counter()):
            self.end(lambda: ConnectionError("Connection retired."))

    def end(self, error: Callable[[], Exception]) -> None:
        """Close the socket at once; whoever still awaits a reply gets an error."""
        if self.ended.done():
            return
        self.ended.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten = self.inflight.lose(error)
        self._tell(perf_counter())
        for call, packed in zip(unwritten, self._outbox, strict=True):
            # As it was when it was called, whatever has become of its arguments.
            call.packed = packed
        self._outbox.clear()
        if self._transport.get_write_buffer_size():
            # Closing would wait for the server to read it.
            self._transport.abort()
        cast("Any", self.connection)._close()  # noqa: SLF001 - the public way is a coroutine, this a callback
        if self.is_open:
            self.is_open = False
            self._owner.line_retired(self)
        # The next line has no use for what this one sent itself.
        self._owner.line_ended(self, [call for call in unwritten if not call.is_own])

    def abort(self) -> None:
        """Close the socket without a word, if it is not closed yet."""
        if not self.lost.done():
            self._transport.abort()

    def _where(self) -> str:
        return ":".join(
            str(value) for name, value in cast("Any", self.connection).repr_pieces() if name in {"host", "port", "path"}
        )
