"""How long callers take to go on once their replies are read: the event loop's share of what seems slow."""

import asyncio
import os
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from math import inf
from time import monotonic, perf_counter
from typing import Final, Protocol, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.auth.token import TokenInterface
from redis.exceptions import ConnectionError, InvalidResponse, TimeoutError  # noqa: A004

from aioredis_monitored._multiplexer.futures import BatchFuture, CommandFuture
from aioredis_monitored._multiplexer.inflight import NO_REPLY, InFlight
from aioredis_monitored._redispy.attributes import BAR, LINE_FEED, AttributeFilter
from aioredis_monitored._redispy.sockets import address_of, close_now, peer_address, transport_of
from aioredis_monitored._timeouts import LATE_SECONDS

# Seconds for which only the longest is told.
_REPORT_INTERVAL_SECONDS: Final = 0.1


class LoopLagMonitor:
    """Measures every batch of replies, and tells the longest lag at most ten times a second.

    Args:
        tell: Is told of a lag in seconds, and returns whether anybody wants to know of them.

    Attributes:
        is_wanted: Whether every batch is to be measured.
        due: When one is to be measured in any case, by the performance counter.
    """

    def __init__(self, tell: Callable[[float], bool]) -> None:
        self._report = tell
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._longest = 0.0
        self.next_report_at = 0.0
        self.is_enabled = True

    def start(self, now: float) -> None:
        """Measure from this time of the performance counter until all callers have gone on that wake up now."""
        self._loop.call_soon(self._on_resumed, now, context=self._context)

    def _on_resumed(self, read: float) -> None:
        now = perf_counter()
        self._longest = max(self._longest, now - read)
        if now >= self.next_report_at:
            self.next_report_at = now + _REPORT_INTERVAL_SECONDS
            longest, self._longest = self._longest, 0.0
            self.is_enabled = self._report(longest)


_BUFFER_BYTES = 65_536
# What is held until the end of the tick, bytes.
_FLUSH_BYTES = 2**18
# Larger replies keep others waiting, bytes.
LARGE_BYTES = 65_536
# What has arrived is read one tick after the next at the latest.
_MAX_TICKS_TO_READ = 3


class ConnectionOwner(Protocol):
    """What a line tells whoever made it."""

    def on_full(self) -> None:
        """It has no room for further calls."""

    def on_room(self) -> None:
        """Replies have made room for further calls."""

    def on_large_reply(self, call: CommandFuture | BatchFuture) -> None:
        """The reply to this call was so large that others had to wait for it."""

    def on_lag(self, seconds: float) -> bool:
        """Callers took so long to go on; return whether anybody wants to know."""

    def on_retired(self, line: "MultiplexedConnection") -> None:
        """It takes no further calls, but may still owe replies."""

    def on_closed(self, line: "MultiplexedConnection", unwritten: Sequence[CommandFuture | BatchFuture]) -> None:
        """Its socket is closed; these calls were not written to it."""


class MultiplexedConnection(asyncio.BufferedProtocol):
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

    def __init__(self, connection: AbstractConnection, owner: ConnectionOwner) -> None:
        self.connection = connection
        self.inflight = InFlight(connection.socket_timeout)
        self.is_open = True
        self.connected_at = monotonic()
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._write_buffer: list[bytes] = []
        self._flushing = False
        self._ticks_waited = 0
        self._health_check: CommandFuture | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unparsed = 0
        self._close_scheduled = False
        # When overdue calls were found that were put off, what had come and was not sent at the last look, and when the
        # next one is due.
        self._deferred_at = -inf
        self._seen: tuple[float, int, int] = (0.0, 0, 0)
        self._due = 0.0
        self._last_active = perf_counter()
        self._buffer = bytearray(_BUFFER_BYTES)
        # It does not decode: a value for which that fails is its caller's trouble, and nobody else's.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=NO_REPLY
        )
        self._attributes = AttributeFilter(self._reader, NO_REPLY)
        self._transport = transport_of(connection)
        self._descriptor: int = self._transport.get_extra_info("socket").fileno()
        self._check_after = connection.health_check_interval or inf
        readable = select.poll()
        readable.register(self._descriptor, select.POLLIN)
        # Bound once, as it is called before most writes.
        self._poll = readable.poll
        self._streams = cast("asyncio.Protocol", self._transport.get_protocol())
        self._transport.set_protocol(self)
        self._peer = peer_address(connection)
        self._loop_lag = LoopLagMonitor(owner.on_lag)

    def send(self, call: CommandFuture | BatchFuture, packed: bytes) -> None:
        """Queue a call; it is written at the end of this tick."""
        if not self.inflight.add(call):
            self._owner.on_full()
        self._write_buffer.append(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        elif self.inflight.unwritten_size > _FLUSH_BYTES and not self._ticks_waited:
            # At the end of the tick, all of it would be there three times: here, joined and in the transport's buffer.
            self._flush()

    def _internal_command(self) -> CommandFuture:
        reply = CommandFuture(loop=self._loop)
        reply.args, reply.size, reply.observer, reply.is_internal = (), 0, None, True
        reply.is_queued, reply.queued_at, reply.on_cancel = False, 0.0, None
        return reply

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls; the line retires if the server refuses them."""
        reply = self._internal_command()
        self.send(reply, b"".join(self.connection.pack_command("AUTH", token.try_get("oid"), token.get_value())))
        reply.add_done_callback(self._retire_unless_ok, context=self._context)

    def _flush(self, is_checked: bool = False) -> None:
        if self._health_check is not None or not self._write_buffer:
            return
        if self._transport.is_closing():
            # The pool's connections were closed, for instance.
            self._drain_socket()
            self.close(lambda: ConnectionError("Connection closed."))
            return
        inflight = self.inflight
        now = perf_counter()
        if inflight.unwritten == len(inflight.pending):
            is_checked = is_checked or (now - self._last_active <= self._check_after and not self._poll(0))
            if not is_checked and not self._check_idle_socket(now):
                return
            if not self._attributes.is_between_replies():
                text = f"Error while reading from {self._address()} : a part of a reply that no call is owed"
                self.close(lambda: ConnectionError(text))
                return
        self._flushing = False
        self._ticks_waited = 0
        self._last_active = now
        self._transport.write(b"".join(self._write_buffer))
        self._write_buffer.clear()
        inflight.write(inflight.unwritten, now)
        if self._timer is None:
            self._arm_timer(now)

    def _check_idle_socket(self, now: float) -> bool:
        """Look at a socket on which nothing is owed before anything is written.

        What has come is the end of the connection, which the event loop has not read yet, or a reply that no call is
        owed, which must not be given to the next one. One that comes later cannot be distinguished from that call's.
        """
        if self._ticks_waited < _MAX_TICKS_TO_READ and self._poll(0):
            self._ticks_waited += 1
            self._loop.call_soon(self._flush, context=self._context)
            return False
        if now - self._last_active > self._check_after:
            self._health_check = self._internal_command()
            self._health_check.add_done_callback(self._on_health_check, context=self._context)
            self.inflight.prepend(self._health_check)
            self._transport.write(b"".join(self.connection.pack_command("PING")))
            self.inflight.write(1, now)
            if self._timer is None:
                self._arm_timer(now)
            return False
        return True

    def _on_health_check(self, reply: CommandFuture) -> None:
        self._health_check = None
        self._last_active = perf_counter()
        if reply.result() == b"PONG":
            self._flush(is_checked=True)
        else:
            self.close(lambda: ConnectionError("Bad response from PING health check"))

    def _retire_unless_ok(self, reply: CommandFuture) -> None:
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
        self._unparsed += nbytes
        calls = inflight.pending
        head = calls[0] if calls else None
        now = perf_counter()
        first, attributes = buffer[0], self._attributes
        try:
            if first in (BAR, LINE_FEED) or attributes.pending or buffer.find(b"\r\n|", 0, nbytes) >= 0:
                attributes.feed(bytes(buffer[:nbytes]))
                completed = inflight.dispatch(attributes.gets, now)
            else:
                self._reader.feed(buffer, 0, nbytes)  # type: ignore[arg-type]  # it takes any buffer
                attributes.last_byte = buffer[nbytes - 1]
                completed = inflight.dispatch(self._reader.gets, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, no later reply could be trusted
            text = f"Error while reading from {self._address()} : {error!r}"
            inflight.protocol_error = None
            self.close(lambda: ConnectionError(text))
            return
        finally:
            if inflight.completed:
                self._notify(perf_counter())
        self._last_active = now
        if completed:
            lag = self._loop_lag
            if lag.is_enabled or now >= lag.next_report_at:
                lag.start(now)
            if self._unparsed > LARGE_BYTES and head is not None:
                self._owner.on_large_reply(head)
            self._unparsed = 0
            if self.is_open:
                self._owner.on_room()
            else:
                self._close_if_unawaited()

    def _drain_socket(self) -> None:
        """Read what has come on a connection that has ended: after a failed write, both event loops drop it.

        Not under TLS, which only the event loop can read.
        """
        if self.closing.done() or self._transport.get_extra_info("ssl_object") is not None:
            return
        if self._transport.get_extra_info("socket").fileno() != self._descriptor:
            # Closed, and by now it may be another connection's.
            return
        with suppress(OSError):
            while not self.closing.done() and (nbytes := os.readv(self._descriptor, [self._buffer])):
                self.buffer_updated(nbytes)

    def _notify(self, now: float) -> None:
        heard = self.inflight.completed
        if heard:
            self.inflight.completed = []
            # One right after the other: that is faster than each in its turn.
            for listener, reply in heard:
                listener.on_reply(reply, now, self._peer)

    def eof_received(self) -> None:
        """The server has closed the connection."""
        self.close(lambda: ConnectionError("Connection closed by server."))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._drain_socket()
        reason = f"Error while reading from {self._address()} : {exc}" if exc else "Connection closed by server."
        self.close(lambda: ConnectionError(reason))
        # redis-py waits for it.
        self._streams.connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    # When replies take too long.

    def _arm_timer(self, now: float) -> None:
        due = self.inflight.next_timeout(now)
        if due is None:
            self._timer = None
        else:
            self._set_timer(due, now)

    def _set_timer(self, due: float, now: float) -> None:
        self._due = due
        self._timer = self._loop.call_later(due - now, self._on_timeout, context=self._context)

    def _on_timeout(self) -> None:
        now = perf_counter()
        overdue = list(self.inflight.overdue(now))
        # Also where all callers have left: what was on its way to them may be put back.
        if (overdue or self.inflight.is_stalled(now)) and self._is_catching_up(now):
            self._set_timer(now + cast("float", self.inflight.timeout) / 4, now)
            return
        self._deferred_at = -inf
        text = f"Timeout reading from {self._address()}"
        for call in overdue:
            self.inflight.fail(call, TimeoutError(text))
        self._notify(perf_counter())
        if self.inflight.is_stalled(now):
            self.retire()
        self._arm_timer(now)
        if not self.is_open:
            self._close_if_unawaited()

    def _is_catching_up(self, now: float) -> bool:
        """Whether this side is to blame for replies that are late: they were not read, or the calls not sent.

        An event loop that was busy reads a piece of what has come, and sends a piece of what it holds, in each turn. It
        gets its time for that as long as it gets on, and all in all no more than one reply may take: a server may drip.
        """
        timeout = cast("float", self.inflight.timeout)
        held = self._transport.get_write_buffer_size()
        before, self._seen = self._seen, (self.inflight.last_reply_at, self._unparsed, held)
        is_behind = now - self._due > LATE_SECONDS or bool(self._poll(0))
        if self.inflight.oldest_written_at() > self._deferred_at - timeout:
            # What was put off before has come to its end.
            self._deferred_at = now
            return is_behind or bool(held)
        is_behind = is_behind or self._seen[:2] != before[:2] or held < before[2]
        return is_behind and now < self._deferred_at + timeout

    def write_pending(self) -> None:
        """Write at once what would be written at the end of this tick, unless something has to be read before that."""
        inflight = self.inflight
        if self._write_buffer and self.is_open and not (inflight.unwritten == len(inflight.pending) and self._poll(0)):
            self._flush()

    def is_idle(self, seconds: float) -> bool:
        """Whether nothing is in flight, and nothing was sent or came for the given seconds."""
        return not self.inflight.pending and perf_counter() - self._last_active >= seconds

    def retire(self) -> None:
        """Take no further calls, and end when nobody awaits a reply any more."""
        if self.is_open:
            self.is_open = False
            self._owner.on_retired(self)
            for call in self.inflight.pending:
                call.on_cancel = self._on_cancel
            self._close_if_unawaited()

    def _on_cancel(self, _: CommandFuture | BatchFuture) -> None:
        if not self._close_scheduled:
            # Once for all that leave in one tick.
            self._close_scheduled = True
            self._loop.call_soon(self._close_if_unawaited, context=self._context)

    def _close_if_unawaited(self) -> None:
        self._close_scheduled = False
        if not self.inflight.has_waiters(perf_counter()):
            self.close(lambda: ConnectionError("Connection retired."))

    def close(self, error: Callable[[], Exception]) -> None:
        """Close the socket at once; whoever still awaits a reply gets an error."""
        if self.closing.done():
            return
        self.closing.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten = self.inflight.fail_written(error)
        self._notify(perf_counter())
        for call, packed in zip(unwritten, self._write_buffer, strict=True):
            # As it was when it was called, whatever has become of its arguments.
            call.packed = packed
        self._write_buffer.clear()
        if self._transport.get_write_buffer_size():
            # Closing would wait for the server to read it.
            self._transport.abort()
        close_now(self.connection)
        if self.is_open:
            self.is_open = False
            self._owner.on_retired(self)
        # The next line has no use for what this one sent itself.
        self._owner.on_closed(self, [call for call in unwritten if not call.is_internal])

    def abort(self) -> None:
        """Close the socket without a word, if it is not closed yet."""
        if not self.closed.done():
            self._transport.abort()

    def _address(self) -> str:
        return address_of(self.connection)
