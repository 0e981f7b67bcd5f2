"""One shared socket: writes the calls of a tick together, and gives each reply to its call."""

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
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._multiplexer.futures import CallFuture, CommandFuture, ReplyBatch
from aioredis_monitored._multiplexer.inflight import NO_REPLY, InFlight
from aioredis_monitored._redispy.attributes import BAR, LINE_FEED, AttributeFilter
from aioredis_monitored._redispy.located import LocatedConnection
from aioredis_monitored._redispy.sockets import address_of, close_now, peer_address, transport_of
from aioredis_monitored._timeouts import LATE_SECONDS

# The size of a read.
_BUFFER_BYTES: Final = 65_536
# Packed calls of more bytes than these are written before the end of the tick.
_FLUSH_BYTES: Final = 2**18
# A reply, or a packed call, of more bytes delays others.
LARGE_BYTES: Final = 65_536
# How many ticks the event loop gets to read from an idle socket before a write.
_MAX_TICKS_TO_READ: Final = 3
# Seconds between two reports of the loop lag; each reports the longest one.
_REPORT_INTERVAL_SECONDS: Final = 0.1


class ConnectionOwner(Protocol):
    """Learns of a connection's events, and queues the calls that it returns unwritten."""

    def on_full(self) -> None:
        """React to a connection that has no room for further calls."""

    def on_room(self) -> None:
        """React to replies that make room for further calls."""

    def on_large_reply(self, call: CallFuture) -> None:
        """React to a reply so large that other calls had to wait for it."""

    def on_lag(self, seconds: float) -> None:
        """Callers resumed this long after their replies were read."""

    def on_retired(self, connection: "MultiplexedConnection") -> None:
        """React to a connection that accepts no further calls, and may still be owed replies."""

    def on_closed(self, connection: "MultiplexedConnection", unwritten: Sequence[CallFuture]) -> None:
        """React to a closed socket, to which these calls were not written."""


class MultiplexedConnection(asyncio.BufferedProtocol):
    """Takes over the socket of a connection that redis-py has made, until it is closed.

    Args:
        connection: A connected one, for which ``supports_multiplexing`` holds.
        owner: Learns of its events.

    Attributes:
        inflight: The calls that are owed a reply.
        is_open: Whether it accepts calls.
        connected_at: When it was taken over, by the monotonic clock.
        closing: Done when it is owed no reply, or has given up waiting, and its socket is being closed.
        closed: Done when its socket is closed.
    """

    def __init__(self, connection: AbstractConnection, owner: ConnectionOwner) -> None:
        self.connection = connection
        self.inflight = InFlight(connection.socket_timeout)
        self.is_open = True
        self.connected_at = monotonic()
        self.closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._context = Context()
        self._write_buffer: list[bytes] = []
        self._flushing = False
        self._ticks_waited = 0
        self._health_check: CommandFuture | None = None
        self._timer: asyncio.TimerHandle | None = None
        # The bytes read since the last complete reply.
        self._unparsed_bytes = 0
        self._close_scheduled = False
        # When overdue calls were first deferred; what was read and what is unsent, as of the last check; when the next
        # check is due.
        self._deferred_at = -inf
        self._progress: tuple[float, int, int] = (0.0, 0, 0)
        self._timer_due = 0.0
        self._last_active = perf_counter()
        self._buffer = bytearray(_BUFFER_BYTES)
        # asyncio reads each record of TLS into a slice, which would be a copy of the bytearray.
        self._view = memoryview(self._buffer)
        # It does not decode: a value that cannot be decoded concerns its caller alone.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=NO_REPLY
        )
        self._attributes = AttributeFilter(self._reader, NO_REPLY)
        self._transport = transport_of(connection)
        self._descriptor: int = self._transport.get_extra_info("socket").fileno()
        self._health_check_interval = connection.health_check_interval or inf
        readable = select.poll()
        readable.register(self._descriptor, select.POLLIN)
        # Bound once: it is called before most writes.
        self._poll = readable.poll
        self._stream_protocol = cast("asyncio.Protocol", self._transport.get_protocol())
        self._transport.set_protocol(self)
        self._peer = peer_address(connection)
        self._is_located = isinstance(connection, LocatedConnection)
        # Bound once: every read needs it.
        self._on_resumed = LoopLagMonitor(owner.on_lag).on_resumed

    # Writing.

    def send(self, call: CallFuture, packed: bytes) -> None:
        """Write a call at the end of this tick."""
        if not self.inflight.add(call):
            self._owner.on_full()
        self._write_buffer.append(packed)
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        elif self.inflight.unwritten_size > _FLUSH_BYTES and not self._ticks_waited:
            # At the end of the tick, there would be three copies of it all: here, joined, and in the transport.
            self._flush()

    def write_pending(self) -> None:
        """Write now what would be written at the end of this tick, unless the socket must be read first."""
        inflight = self.inflight
        if self._write_buffer and self.is_open and not (inflight.unwritten == len(inflight.pending) and self._poll(0)):
            self._flush()

    def _flush(self, is_checked: bool = False) -> None:
        if self._health_check is not None or not self._write_buffer:
            return
        if self._transport.is_closing():
            # The pool's connections were closed, for example.
            self._drain_socket()
            self.close(lambda: RedisConnectionError("Connection closed."))
            return
        inflight = self.inflight
        now = perf_counter()
        if inflight.unwritten == len(inflight.pending):
            is_checked = is_checked or (now - self._last_active <= self._health_check_interval and not self._poll(0))
            if not is_checked and not self._check_idle_socket(now):
                return
            if not self._attributes.is_between_replies():
                text = f"Error while reading from {self._address()} : a part of a reply that belongs to no call"
                self.close(lambda: RedisConnectionError(text))
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
        """Check a socket that is owed no reply before a write; return whether to write now.

        If there is something to read, it is the end of the connection, which the event loop has not read yet, or a
        reply that belongs to no call, which the next call must not get. A reply that arrives later cannot be
        distinguished from that of the next call.
        """
        if self._ticks_waited < _MAX_TICKS_TO_READ and self._poll(0):
            self._ticks_waited += 1
            self._loop.call_soon(self._flush, context=self._context)
            return False
        if now - self._last_active > self._health_check_interval:
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
            self.close(lambda: RedisConnectionError("Bad response from PING health check"))

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls, and retire if the server refuses them."""
        reply = self._internal_command()
        self.send(reply, b"".join(self.connection.pack_command("AUTH", token.try_get("oid"), token.get_value())))
        reply.add_done_callback(self._retire_unless_ok, context=self._context)

    def _retire_unless_ok(self, reply: CommandFuture) -> None:
        if isinstance(reply.result(), Exception):
            # The calls written behind it get replies, if only errors.
            self.retire()

    def _internal_command(self) -> CommandFuture:
        reply = CommandFuture(loop=self._loop)
        reply.args, reply.size, reply.observer, reply.is_internal = (), 0, None, True
        reply.is_queued, reply.queued_at, reply.on_cancel = False, 0.0, None
        return reply

    # Reading: what asyncio calls.

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Return the buffer for the next bytes."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Give the replies that have arrived to their calls."""
        buffer, inflight = self._buffer, self.inflight
        self._unparsed_bytes += nbytes
        calls = inflight.pending
        head = calls[0] if calls else None
        now = perf_counter()
        first, attributes = buffer[0], self._attributes
        try:
            if first in (BAR, LINE_FEED) or attributes.pending or buffer.find(b"\r\n|", 0, nbytes) >= 0:
                attributes.feed(bytes(buffer[:nbytes]))
                completed = inflight.dispatch(attributes.gets, now)
            else:
                self._reader.feed(buffer, 0, nbytes)  # type: ignore[arg-type]  # hiredis accepts any buffer
                attributes.last_byte = buffer[nbytes - 1]
                completed = inflight.dispatch(self._reader.gets, now)
        except Exception as error:  # noqa: BLE001 - after any error, no later reply can be trusted
            text = f"Error while reading from {self._address()} : {error!r}"
            inflight.protocol_error = None
            self.close(lambda: RedisConnectionError(text))
            return
        finally:
            if inflight.completed:
                self._notify(perf_counter())
        self._last_active = now
        if completed:
            if self._unparsed_bytes > LARGE_BYTES and head is not None:
                self._owner.on_large_reply(head)
            self._unparsed_bytes = 0
            if self.is_open:
                self._owner.on_room()
            else:
                self._close_if_unawaited()

    def eof_received(self) -> None:
        """Close: the server has closed the connection."""
        self.close(lambda: RedisConnectionError("Connection closed by server."))

    def connection_lost(self, exc: Exception | None) -> None:
        """Close: the socket is closed."""
        self._drain_socket()
        reason = f"Error while reading from {self._address()} : {exc}" if exc else "Connection closed by server."
        self.close(lambda: RedisConnectionError(reason))
        # redis-py waits for it.
        self._stream_protocol.connection_lost(exc)

    def _drain_socket(self) -> None:
        """Read what has arrived on a closed connection: after a failed write, both event loops discard it.

        Under TLS only the event loop can read it.
        """
        if self.closing.done() or self._transport.get_extra_info("ssl_object") is not None:
            return
        if self._transport.get_extra_info("socket").fileno() != self._descriptor:
            # It is closed, and its descriptor may be that of another connection.
            return
        with suppress(OSError):
            while not self.closing.done() and (nbytes := os.readv(self._descriptor, [self._buffer])):
                self.buffer_updated(nbytes)

    def _notify(self, now: float) -> None:
        completed = self.inflight.completed
        if completed:
            self.inflight.completed = []
            if self._is_located:
                for observer, _ in completed:
                    observer.set_connection(self.connection)
            batch: ReplyBatch | None = None
            try:
                # All in a row, which is faster than each in its caller's turn.
                for observer, outcome in completed:
                    touched = observer.on_reply(outcome, now, self._peer)
                    if touched is not batch and touched is not None:
                        if batch is not None:
                            batch.flush()
                        batch = touched
                # A task for it would cost one caller at a time some 5 %.
                observer.on_resumed = self._on_resumed
            finally:
                if batch is not None:
                    batch.flush()

    # Replies that are late.

    def _arm_timer(self, now: float) -> None:
        due = self.inflight.next_timeout(now)
        if due is None:
            self._timer = None
        else:
            self._set_timer(due, now)

    def _set_timer(self, due: float, now: float) -> None:
        self._timer_due = due
        self._timer = self._loop.call_later(due - now, self._on_timeout, context=self._context)

    def _on_timeout(self) -> None:
        now = perf_counter()
        overdue = list(self.inflight.overdue(now))
        # Without callers as well: orphan handlers may put back what is on its way.
        if (overdue or self.inflight.is_stalled(now)) and self._is_catching_up(now):
            self._set_timer(now + cast("float", self.inflight.timeout) / 4, now)
            return
        self._deferred_at = -inf
        text = f"Timeout reading from {self._address()}"
        for call in overdue:
            self.inflight.fail(call, RedisTimeoutError(text))
        self._notify(perf_counter())
        if self.inflight.is_stalled(now):
            self.retire()
        self._arm_timer(now)
        if not self.is_open:
            self._close_if_unawaited()

    def _is_catching_up(self, now: float) -> bool:
        """Whether replies are late because this side has not read them, or has not sent the calls.

        A busy event loop reads and sends a part of the data in each turn. It gets more time as long as it makes
        progress, and at most ``socket_timeout`` in all: a server may send a few bytes at a time.
        """
        timeout = cast("float", self.inflight.timeout)
        unsent = self._transport.get_write_buffer_size()
        before, self._progress = self._progress, (self.inflight.last_reply_at, self._unparsed_bytes, unsent)
        is_behind = now - self._timer_due > LATE_SECONDS or bool(self._poll(0))
        if self.inflight.oldest_written_at() > self._deferred_at - timeout:
            # The calls that were deferred before are complete.
            self._deferred_at = now
            return is_behind or bool(unsent)
        is_behind = is_behind or self._progress[:2] != before[:2] or unsent < before[2]
        return is_behind and now < self._deferred_at + timeout

    # Retiring and closing.

    def is_idle(self, seconds: float) -> bool:
        """Whether no call is in flight, and nothing was sent or read for ``seconds``."""
        return not self.inflight.pending and perf_counter() - self._last_active >= seconds

    def retire(self) -> None:
        """Accept no further calls, and close as soon as no reply is awaited."""
        if self.is_open:
            self.is_open = False
            self._owner.on_retired(self)
            for call in self.inflight.pending:
                call.on_cancel = self._on_cancel
            self._close_if_unawaited()

    def _on_cancel(self, _: CallFuture) -> None:
        if not self._close_scheduled:
            # Once for all callers that leave in one tick.
            self._close_scheduled = True
            self._loop.call_soon(self._close_if_unawaited, context=self._context)

    def _close_if_unawaited(self) -> None:
        self._close_scheduled = False
        if not self.inflight.has_waiters(perf_counter()):
            self.close(lambda: RedisConnectionError("Connection retired."))

    def close(self, error: Callable[[], Exception]) -> None:
        """Close the socket now, and fail the written calls, each with an error of its own."""
        if self.closing.done():
            return
        self.closing.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unwritten = self.inflight.fail_written(error)
        self._notify(perf_counter())
        for call, packed in zip(unwritten, self._write_buffer, strict=True):
            # Its arguments may have changed since.
            call.packed = packed
        self._write_buffer.clear()
        if self._transport.get_write_buffer_size():
            # Closing would wait until the server has read it.
            self._transport.abort()
        close_now(self.connection)
        if self.is_open:
            self.is_open = False
            self._owner.on_retired(self)
        # The next connection does not need this one's internal commands.
        self._owner.on_closed(self, [call for call in unwritten if not call.is_internal])

    def _address(self) -> str:
        return address_of(self.connection)


class LoopLagMonitor:
    """Measures the delay between reading replies and resuming the last of their callers; reports the longest at times.

    The event loop takes that long to run whatever else is ready. Only callers with an observer are measured.

    Args:
        report: Takes a lag in seconds.
    """

    def __init__(self, report: Callable[[float], object]) -> None:
        self._report = report
        self._longest = 0.0
        self._next_report_at = 0.0

    def on_resumed(self, read_at: float) -> None:
        """Note that the last caller of a read resumes.

        Args:
            read_at: When its reply was read, by the performance counter.
        """
        now = perf_counter()
        self._longest = max(self._longest, now - read_at)
        if now >= self._next_report_at:
            self._next_report_at = now + _REPORT_INTERVAL_SECONDS
            longest, self._longest = self._longest, 0.0
            self._report(longest)
