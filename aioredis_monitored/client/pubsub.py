"""Publishing with the trace context, and subscriptions whose messages are handled under a span of their own."""

import asyncio
import builtins
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from inspect import isawaitable
from math import inf
from time import monotonic
from typing import Any, Final, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.client import PubSub
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError
from redis.observability.attributes import PubSubDirection
from redis.observability.recorder import record_pubsub_message
from redis.typing import ChannelT, EncodableT
from redis.utils import str_if_bytes

from aioredis_monitored._cancellation import complete_shielded
from aioredis_monitored._commands.table import MAX_NAME_LENGTH, argument_text
from aioredis_monitored._commands.traits import Traits
from aioredis_monitored._execution.attempts import dedicated_attempt, retry, retry_until_answered
from aioredis_monitored._execution.routing import Handle
from aioredis_monitored._redispy.sockets import is_closed_by_peer
from aioredis_monitored._telemetry.context import without_span
from aioredis_monitored._telemetry.messaging import ProcessSpan, inject
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored.envelope import seal, unseal
from aioredis_monitored.errors import decoding_error
from aioredis_monitored.pool.credentials import has_renewable_credentials
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import exponential_backoff, is_transient

_LOGGER: Final = logging.getLogger("aioredis_monitored.pubsub")

# To subscribe, and to end that, may be repeated: what was lost with a connection is subscribed anew.
_SUBSCRIBING: Final = Traits(shareable=False, alters_connection=True, retry_safe=True, runs_code=False)
_CONFIRMATIONS: Final = ("subscribe", "psubscribe", "ssubscribe")
# Seconds before the next attempt to connect while messages are waited for, after a number of failures in a row.
_reconnect_backoff = exponential_backoff(0.1, 5.0)
# The same where credentials were refused that may be others by then: too many attempts lock an account.
_auth_backoff = exponential_backoff(0.1, 30.0)
# Seconds to wait for the end of an attempt to connect, once the task that closes is cancelled.
_CLOSE_SECONDS: Final = 1.0


class TracedMessage(dict[str, Any]):
    """A message as redis-py delivers it, that came in an envelope.

    Attributes:
        carrier: What the publisher's propagators have sent along.
    """

    __slots__ = ("carrier",)

    def __init__(self, message: Mapping[str, Any], carrier: Mapping[str, str]) -> None:
        super().__init__(message)
        self.carrier = carrier


class MonitoredPubSub(PubSub):
    """A ``redis.asyncio.client.PubSub`` whose messages can be handled under a span; ``client.pubsub()`` makes it.

    Messages are delivered without their envelopes. Handlers that were given to ``subscribe`` and its like run under
    such a span by themselves. A ``push_handler_func`` gets what the server has sent, as it is. Subscribing is no span:
    it has no reply of its own, but is confirmed among the messages.

    On a ``MonitoredConnectionPool``, a lost connection is made anew and subscribed again: while a message is waited
    for, after a pause of 0.1 s that doubles with each failure in a row, to 5 s; to subscribe, as any call is tried
    again. ``get_message`` takes no longer than its ``timeout`` in any case. What was published meanwhile is lost, which
    is logged and counted (``aioredis_monitored.pubsub.reconnects``). What waiting does not change, such as a closed
    pool, or refused credentials that no provider renews, is raised.

    Args:
        connection_pool: Where its connection comes from.
        telemetry: Where to record.
        server_span: The parent of its spans; ``None`` means the span that is current when a message is handled.
        on_reconnect: Called without arguments, and awaited if it returns an awaitable, when the server has confirmed
            that everything is subscribed again: to read, for instance, what may have been missed. It is called by the
            call that reads the confirmation, which raises what it raises. Default ``None``.
        arguments: Those of ``redis.asyncio.client.PubSub``.
    """

    def __init__(
        self,
        connection_pool: ConnectionPool,
        *,
        telemetry: PoolRecorder,
        server_span: Span | None = None,
        on_reconnect: Callable[[], object] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(connection_pool, **arguments)
        self.server_span = server_span
        self._telemetry = telemetry
        self._on_reconnect = on_reconnect
        # The task that has redis-py's lock, to connect or to send.
        self._holder: asyncio.Task[Any] | None = None
        # Set while the connection is there and everything is subscribed on it, and how often that has come true.
        self._ready = asyncio.Event()
        self._generation = 0
        # Makes one attempt to connect, also if those that wait for it have less time than that takes.
        self._connecting: asyncio.Task[None] | None = None
        # The failures since something was read, and when the pause after the last one ends.
        self._failures = 0
        self._retry_at = 0.0
        # What was subscribed again and is not confirmed yet; ``None`` if that was reported.
        self._unconfirmed: int | None = None

    async def connect(self) -> None:
        """Borrow a connection, or make the lost one anew and subscribe again."""
        await self._in_turn(super().connect)

    async def execute_command(self, *args: EncodableT) -> None:
        """Send a command, to which a message is the answer."""
        await self._in_turn(partial(super().execute_command, *args))

    async def _in_turn(self, send: Callable[[], Awaitable[None]]) -> None:
        pool = self.connection_pool
        if not isinstance(pool, MonitoredConnectionPool) or asyncio.current_task() is self._holder:
            await send()
        else:
            await retry(pool, _SUBSCRIBING, partial(self._attempt, pool, send), 0, None)

    async def _attempt(
        self,
        pool: MonitoredConnectionPool,
        send: Callable[[], Awaitable[None]],
        seconds: float | None,
        losses: int,  # noqa: ARG002 - no other call uses this connection
    ) -> None:
        async with dedicated_attempt(pool, seconds, self._connected_and_locked(pool)):
            await send()

    @asynccontextmanager
    async def _connected_and_locked(self, pool: MonitoredConnectionPool) -> AsyncIterator[AbstractConnection]:
        """The connection, made anew and subscribed if it is lost; no other task connects or sends meanwhile."""
        async with self._lock:
            self._holder = asyncio.current_task()
            try:
                connection = self.connection
                if connection is None:
                    await super().connect()  # type: ignore[no-untyped-call]
                    connection = cast("AbstractConnection", self.connection)
                    self._ready.set()
                elif not self._is_ready(connection) or is_closed_by_peer(connection):
                    self._ready.clear()
                    # That calls on_connect.
                    await pool.reconnect(connection)
                    self._generation += 1
                    self._ready.set()
                    if self._connecting is not None and self._connecting.done():
                        # It failed, before this did not.
                        self._connecting = None
                yield connection
            finally:
                self._holder = None

    def _is_ready(self, connection: AbstractConnection) -> bool:
        return self._ready.is_set() and connection.is_connected

    async def on_connect(self, connection: Connection) -> None:
        """Subscribe again, as redis-py does; what is being unsubscribed has ended with the connection."""
        count = 0
        for subscribed, ending in (
            (self.channels, self.pending_unsubscribe_channels),
            (self.patterns, self.pending_unsubscribe_patterns),
            (self.shard_channels, self.pending_unsubscribe_shard_channels),
        ):
            for name in ending:
                subscribed.pop(name, None)
            count += len(subscribed)
        # redis-py may connect too: to send new credentials.
        holder, self._holder = self._holder, asyncio.current_task()
        try:
            await super().on_connect(connection)
        finally:
            self._holder = holder
        self._unconfirmed = count or None
        if count and self.push_handler_func is not None:
            # It need not return the confirmations that it gets.
            self._unconfirmed = 0

    async def _reconnect(self, conn: Connection, *failure: Any) -> None:
        # In redis-py, every failed read or write makes one attempt, in whichever task it is.
        if not isinstance(self.connection_pool, MonitoredConnectionPool):
            await super()._reconnect(conn, *failure)

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109 - redis-py's
        """Read a response, as redis-py does, and reconnect if that is necessary.

        Raises:
            ReplyDecodingError: It is not in the connection's encoding; the subscriptions go on.
        """
        pool = self.connection_pool
        try:
            if self.connection is None or not isinstance(pool, MonitoredConnectionPool):
                response = await super().parse_response(block, timeout)
            else:
                deadline = inf if block else monotonic() + timeout
                await self._pause(deadline)
                after_refusal = partial(self._next_delay, _auth_backoff)
                response = await retry_until_answered(
                    partial(self._read, pool, deadline),
                    partial(self._next_delay, _reconnect_backoff),
                    after_refusal=after_refusal if has_renewable_credentials(pool) else None,
                    pause=lambda _: self._pause(deadline),
                )
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None
        await self._report(response)
        return response

    def _next_delay(self, delays: Callable[[int], float], _: int) -> float:
        # A call that takes little time sees one failure of many.
        self._failures += 1
        delay = delays(self._failures)
        self._retry_at = monotonic() + delay
        return delay

    async def _pause(self, deadline: float) -> None:
        """Wait for the end of the pause after a failure, unless there is a connection before that."""
        seconds = min(self._retry_at, deadline) - monotonic()
        if seconds > 0:
            with suppress(builtins.TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ready.wait()
        if self._retry_at <= deadline:
            # Also if the event loop's timer was a little early.
            self._retry_at = 0.0

    async def _read(self, pool: MonitoredConnectionPool, deadline: float) -> Any:
        """What the server has sent; ``None`` if nothing has come by then, or this was closed meanwhile."""
        connection = await self._ready_connection(pool, deadline)
        if connection is None:
            return None
        generation = self._generation
        try:
            await self.check_health()  # type: ignore[no-untyped-call]
            if self.connection is not connection:
                # Closed meanwhile: another caller may have the connection by now.
                return None
            response = await connection.read_response(
                timeout=inf if deadline == inf else max(0.0, deadline - monotonic()),
                disconnect_on_error=False,
                push_request=True,
            )
        except RedisError as error:
            if self.connection is not connection:
                return None
            if isinstance(error, ResponseError) and not is_transient(error):
                raise
            # Also if a subscription was refused for now: then all are sent again.
            if self._ready.is_set() and self._generation == generation:
                self._ready.clear()
                await connection.disconnect(nowait=True)
            raise
        if response is not None:
            self._failures, self._retry_at = 0, 0.0
        if connection.health_check_interval and response in self.health_check_response:
            return None
        return response

    async def _ready_connection(self, pool: MonitoredConnectionPool, deadline: float) -> AbstractConnection | None:
        """The connection, made anew if it is lost; ``None`` if that took too long, or this was closed meanwhile."""
        connection = self.connection
        if connection is None or self._is_ready(connection):
            return connection
        is_made = await self._wait_reconnected(pool, deadline)
        # With its last subscription, it has also lost the confirmation that this has ended.
        return connection if is_made and self.subscribed and self.connection is connection else None

    async def _wait_reconnected(self, pool: MonitoredConnectionPool, deadline: float) -> bool:
        """Wait for an attempt to connect; return whether it has succeeded by then.

        An attempt that takes longer goes on, and what it raises is raised to the next one that waits.
        """
        self._ready.clear()
        if self._connecting is None:
            if monotonic() < self._retry_at:
                return False
            self._connecting = asyncio.create_task(self._connect(pool), context=without_span())
            self._connecting.add_done_callback(self._on_connected)
        connecting = self._connecting
        await asyncio.wait([connecting], timeout=None if deadline == inf else max(0.0, deadline - monotonic()))
        if not connecting.done():
            return False
        self._connecting = None
        if not connecting.cancelled():
            connecting.result()
        return not connecting.cancelled()

    async def _connect(self, pool: MonitoredConnectionPool) -> None:
        async with self._connected_and_locked(pool):
            pass

    def _on_connected(self, connecting: "asyncio.Task[None]") -> None:
        # Asked for here, as it may be that no call waits for it any more.
        if connecting.cancelled() or connecting.exception() is None:
            self._connecting = None

    async def _report(self, response: Any) -> None:
        if self._unconfirmed and isinstance(response, list) and str_if_bytes(response[0]) in _CONFIRMATIONS:
            self._unconfirmed -= 1
        if self._unconfirmed != 0:
            return
        self._unconfirmed = None
        name = getattr(self.connection_pool, "name", type(self.connection_pool).__name__)
        _LOGGER.warning("pool %r: subscribed again on a new connection: messages published meanwhile are lost", name)
        self._telemetry.record(self._telemetry.instruments.pubsub_reconnects.add, 1)
        if self._on_reconnect is not None:
            result = self._on_reconnect()
            if isawaitable(result):
                await result

    async def aclose(self) -> None:
        """End all subscriptions, and give the connection back."""
        await complete_shielded("closing subscriptions", self._close, _CLOSE_SECONDS)

    async def _close(self) -> None:
        if self._connecting is not None and self.connection is not None:
            self._connecting.cancel()
            await self.connection.disconnect(nowait=True)
        # That waits for redis-py's lock: what connects must not go on with a connection that another caller has.
        await super().aclose()  # type: ignore[no-untyped-call]
        # Calls that pause wake up, and see that it is closed.
        self._ready.set()
        self._ready.clear()
        self._connecting, self._unconfirmed = None, None
        self._failures, self._retry_at = 0, 0.0

    def process(self, message: Mapping[str, Any]) -> ProcessSpan:
        """Handle a message: ``with pubsub.process(message): …``.

        The block is a span of kind CONSUMER, which is current in it and linked to the span that has published the
        message if the message carried that, and a point of ``messaging.process.duration``. Another task may leave
        it, as one does that closes an async generator: the span ends, but stays current in the task that has entered.

        Args:
            message: What ``get_message`` or ``listen`` has returned; another ``dict`` made of it has lost the link.
        """
        carriers = [message.carrier] if isinstance(message, TracedMessage) else []
        return ProcessSpan(self._telemetry, message["channel"], carriers, self.server_span)

    async def handle_message(self, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        """Make a message of what was read, or hand it to its handler, as redis-py does."""
        kind = str_if_bytes(response[0]) if isinstance(response, list) else None
        if kind not in self.PUBLISH_MESSAGE_TYPES:
            return await super().handle_message(response, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        handlers = {"message": self.channels, "pmessage": self.patterns, "smessage": self.shard_channels}[kind]
        _, subscription, *_ = response
        *place, data = response
        payload, carrier = unseal(data)
        bare = [*place, payload]
        if handlers.get(subscription):
            with ProcessSpan(self._telemetry, place[-1], [] if carrier is None else [carrier], self.server_span):
                return await super().handle_message(bare, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        message = await super().handle_message(bare, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        return message if carrier is None else TracedMessage(message, carrier)


class PubSubMixin(Handle):
    """What the client publishes, and its subscriptions."""

    def pubsub(self, **arguments: Any) -> MonitoredPubSub:
        """Subscriptions; the arguments are those of ``redis.asyncio.Redis.pubsub``, and ``on_reconnect``.

        See ``MonitoredPubSub``.
        """
        return MonitoredPubSub(
            self.connection_pool,
            telemetry=self.telemetry,
            server_span=self.server_span,
            event_dispatcher=self._event_dispatcher,
            **arguments,
        )

    def publish(
        self, channel: ChannelT, message: EncodableT, *, propagate: bool = False, **options: Any
    ) -> Awaitable[int]:
        """Publish a message, as redis-py does, and return how many subscribers have got it.

        Args:
            channel: Where to.
            message: What.
            propagate: Put it into an envelope with what the application's propagators have to say, by default the trace
                context of this call's span and the baggage; there is none if that is nothing. ``MonitoredPubSub`` takes
                it off again, all other subscribers get it. In a subclass that replaces ``execute_command`` it is the
                context in which this is called. Default ``False``.
            options: Those of ``execute_command``.
        """
        if propagate:
            return self._propagate("PUBLISH", channel, message, options)
        publishing: Awaitable[int] = super().publish(channel, message, **options)
        return publishing

    def spublish(self, shard_channel: ChannelT, message: EncodableT, *, propagate: bool = False) -> Awaitable[int]:
        """Publish a message in a shard channel; the arguments are those of ``publish``."""
        if propagate:
            return self._propagate("SPUBLISH", shard_channel, message, {})
        publishing: Awaitable[int] = super().spublish(shard_channel, message)
        return publishing

    async def _propagate(self, name: str, channel: ChannelT, message: EncodableT, options: dict[str, Any]) -> int:
        args = (name, channel, message)
        # For redis-py's own metrics.
        record_pubsub_message(
            PubSubDirection.PUBLISH, argument_text(channel, MAX_NAME_LENGTH), sharded=name == "SPUBLISH" or None
        )
        if self.is_replaced:
            here = None if self.server_span is None else trace.set_span_in_context(self.server_span)
            return cast("int", await self.execute_command(name, channel, self._wrap(message, here), **options))
        return await self.execute_as(args, options, partial(self._publish_traced, args, options))

    async def _publish_traced(
        self, args: tuple[str, ChannelT, EncodableT], options: dict[str, Any], operation: Operation | None
    ) -> int:
        name, channel, message = args
        sealed = self._wrap(message, None if operation is None else operation.start_span())
        return cast("int", await self.execute_within(operation, name, channel, sealed, **options))

    def _wrap(self, message: EncodableT, here: Context | None) -> EncodableT:
        carrier = inject(here)
        return seal(self.get_encoder().encode(message), carrier) if carrier else message  # type: ignore[no-untyped-call]
