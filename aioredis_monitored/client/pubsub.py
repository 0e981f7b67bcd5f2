"""Subscriptions whose messages are handled under a span of their own, and publishing with the trace context."""

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
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface
from redis.exceptions import RedisError, ResponseError
from redis.typing import ChannelT, EncodableT
from redis.utils import check_protocol_version, str_if_bytes

from aioredis_monitored._cancellation import complete_shielded
from aioredis_monitored._commands.table import MAX_NAME_LENGTH, argument_text
from aioredis_monitored._commands.traits import Traits
from aioredis_monitored._credentials.renewals import ConnectCredentials, RunningLoop
from aioredis_monitored._execution.attempts import dedicated_attempt, retry, retry_until_answered
from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._redispy.overrides import (
    PubSubDirection,
    TypedPubSub,
    execute_command,
    get_encoder,
    record_pubsub_message,
)
from aioredis_monitored._redispy.sockets import is_closed_by_peer
from aioredis_monitored._telemetry.context import without_span
from aioredis_monitored._telemetry.messaging import ProcessSpan, inject
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored.envelope import seal, unseal
from aioredis_monitored.errors import PinnedConnectionLostError, decoding_error
from aioredis_monitored.pool.credentials import has_renewable_credentials
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import exponential_backoff, is_transient

_LOGGER: Final = logging.getLogger("aioredis_monitored.pubsub")

# Subscribing and unsubscribing may be repeated: what was lost with a connection is subscribed again.
SUBSCRIBING: Final = Traits(shareable=False, alters_connection=True, retry_safe=True, runs_code=False)
_RESP3: Final = 3
_CONFIRMATIONS: Final = ("subscribe", "psubscribe", "ssubscribe")
# Seconds before the next attempt to reconnect while a message is waited for.
reconnect_backoff = exponential_backoff(0.1, 5.0)
# The same after credentials were refused that may be renewed meanwhile: too many attempts lock an account.
_auth_backoff = exponential_backoff(0.1, 30.0)
# How long closing waits for an attempt to connect, after its task is cancelled.
_CLOSE_SECONDS: Final = 1.0


class TracedMessage(dict[str, Any]):
    """A message as redis-py delivers it, that was published in an envelope.

    Attributes:
        carrier: What the publisher's propagators have injected.
    """

    __slots__ = ("carrier",)

    def __init__(self, message: Mapping[str, Any], carrier: Mapping[str, str]) -> None:
        super().__init__(message)
        self.carrier = carrier


class MonitoredPubSub(TypedPubSub):
    """A ``redis.asyncio.client.PubSub`` whose messages can be handled under a span; ``client.pubsub()`` makes it.

    Messages are delivered without their envelopes. A handler that is given to ``subscribe`` and its like runs under
    such a span. A ``push_handler_func`` gets what the server has sent, as it is. Subscribing is no span: it has no
    reply, but is confirmed among the messages.

    On a ``MonitoredConnectionPool``, a lost connection is replaced and everything is subscribed again: while a message
    is waited for, after a delay of 0.1 s that doubles with each failure in a row, to 5 s; while subscribing, as any
    call is retried. ``get_message`` never takes longer than its ``timeout``. Messages that were published meanwhile are
    lost, which is logged and counted (``aioredis_monitored.pubsub.reconnects``). What waiting does not change, such as
    a closed pool, or refused credentials that no provider renews, is raised.

    Args:
        connection_pool: The pool of its connection.
        recorder: Where to record.
        server_span: The parent of its spans; ``None`` means the span that is current when a message is handled.
        on_reconnect: Called without arguments, and awaited if it returns an awaitable, when the server has confirmed
            that everything is subscribed again: to read, for instance, what may have been missed. The call that reads
            the confirmation calls it, and raises what it raises. Default ``None``.
        arguments: Those of ``redis.asyncio.client.PubSub``.
    """

    # redis-py's finalizer asks for it, also after wrong arguments.
    connection: Any = None

    def __init__(
        self,
        connection_pool: ConnectionPool,
        *,
        recorder: PoolRecorder,
        server_span: Span | None = None,
        on_reconnect: Callable[[], object] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(connection_pool, **arguments)
        self.server_span = server_span
        self._recorder = recorder
        self._on_reconnect = on_reconnect
        # A plain pool's subscriptions reconnect as redis-py does.
        self._pool = connection_pool if isinstance(connection_pool, MonitoredConnectionPool) else None
        if self._pool is not None:
            # That of one node of a cluster begins with the first subscription that keeps to the node.
            recorder.start_counter(recorder.instruments.pubsub_reconnects)
        # How often it was closed. A call that began earlier must not acquire a connection later, as nothing would give
        # that back.
        self._closings = 0
        # The task that has redis-py's lock, to connect or to send.
        self._holder: asyncio.Task[Any] | None = None
        # Set while the connection is there and everything is subscribed on it; and how often that has come true.
        self._ready = asyncio.Event()
        self._generation = 0
        # Makes one attempt to reconnect, also if the calls that wait for it have less time than it takes.
        self._reconnecting: asyncio.Task[None] | None = None
        # How many attempts have failed since a message was read, and when the next one may begin.
        self._failures = 0
        self._retry_at = 0.0
        # How many subscriptions were sent again and are not confirmed yet; ``None`` after that was reported.
        self._unconfirmed: int | None = None
        # How many replies to AUTH are due on the connection.
        self._renewals = 0

    # Connecting and sending.

    async def connect(self) -> None:
        """Acquire a connection, or replace a lost one and subscribe again."""
        await self._send_with_retries(super().connect)

    async def execute_command(self, *args: EncodableT) -> None:
        """Send a command; its answer arrives as a message."""
        await self._send_with_retries(partial(super().execute_command, *args))

    async def _send_with_retries(self, send: Callable[[], Awaitable[None]]) -> None:
        if self._pool is None or asyncio.current_task() is self._holder:
            await send()
        else:
            attempt = partial(self._send_once, self._pool, send, self._closings)
            await retry(self._pool, SUBSCRIBING, attempt, 0, None)

    async def _send_once(
        self,
        pool: MonitoredConnectionPool,
        send: Callable[[], Awaitable[None]],
        closings: int,
        seconds: float | None,
        _losses: int,
    ) -> None:
        # Closing waits for redis-py's lock behind an attempt that is made now.
        self._check_open(closings)
        async with dedicated_attempt(pool, seconds, self._locked_connection(pool)):
            await send()

    def _check_open(self, closings: int) -> None:
        if closings != self._closings:
            raise PinnedConnectionLostError("these subscriptions were closed while the call was in flight")

    @asynccontextmanager
    async def _locked_connection(self, pool: MonitoredConnectionPool) -> AsyncIterator[AbstractConnection]:
        """Give the connection to the block, replaced and subscribed if it was lost; no other task connects or sends."""
        async with self._lock:
            self._holder = asyncio.current_task()
            try:
                connection = self.connection
                if connection is None:
                    await super().connect()
                    connection = cast("AbstractConnection", self.connection)
                    self._renewals = 0
                    if isinstance(connection.credential_provider, ConnectCredentials):
                        connection.credential_provider.follow_renewals(self, RunningLoop(asyncio.get_running_loop()))
                    self._ready.set()
                elif not self._is_ready(connection) or is_closed_by_peer(connection):
                    self._ready.clear()
                    connection = await self._reconnected(pool, connection)
                    self._generation += 1
                    self._ready.set()
                    if self._reconnecting is not None and self._reconnecting.done():
                        # A failed attempt is outdated.
                        self._reconnecting = None
                yield connection
            finally:
                self._holder = None

    async def _reconnected(self, pool: MonitoredConnectionPool, lost: AbstractConnection) -> AbstractConnection:
        """Return a connection in place of a lost one, on which everything is subscribed again."""
        # It calls on_connect.
        await pool.reconnect(lost)
        return lost

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Send new credentials between the messages; RESP2 has no way to, its connection ends with the old ones.

        The pool can send them only when the connection is released.
        """
        connection = self.connection
        if connection is None or not self._is_ready(connection):
            return
        if not check_protocol_version(connection.get_protocol(), _RESP3):
            return
        self._renewals += 1
        # What breaks the connection is noticed where it is read.
        with suppress(RedisError):
            await connection.send_command("AUTH", token.try_get("oid"), token.get_value(), check_health=False)

    def _is_ready(self, connection: AbstractConnection) -> bool:
        return self._ready.is_set() and connection.is_connected

    async def on_connect(self, connection: Connection) -> None:
        """Subscribe again, as redis-py does, but not to what is being unsubscribed: that ended with the connection."""
        count = 0
        for subscribed, ending in (
            (self.channels, self.pending_unsubscribe_channels),
            (self.patterns, self.pending_unsubscribe_patterns),
            (self.shard_channels, self.pending_unsubscribe_shard_channels),
        ):
            for name in ending:
                subscribed.pop(name, None)
            count += len(subscribed)
        self._renewals = 0
        # redis-py connects as well, to send new credentials.
        holder, self._holder = self._holder, asyncio.current_task()
        try:
            await super().on_connect(connection)
        finally:
            self._holder = holder
        self._unconfirmed = None
        self._expect_confirmations(count)

    def _expect_confirmations(self, count: int) -> None:
        """Take the number of subscriptions that were sent again, or a negative one of those that are not confirmed."""
        self._unconfirmed = max(0, (self._unconfirmed or 0) + count) or None
        if self._unconfirmed and self.push_handler_func is not None:
            # The handler need not return the confirmations that it gets.
            self._unconfirmed = 0

    async def _reconnect(self, conn: Connection, *failure: Any) -> None:
        # In redis-py, every failed read or write makes one attempt, in whichever task it is.
        if self._pool is None:
            await super()._reconnect(conn, *failure)

    # Reading.

    async def parse_response(self, block: bool = True, timeout: float = 0) -> Any:  # noqa: ASYNC109 - redis-py's
        """Read a response, as redis-py does, and reconnect if that is necessary.

        Raises:
            ReplyDecodingError: The response is not in the connection's encoding; the subscriptions go on.
        """
        response = await self._next_response(block, timeout)
        await self._report_reconnected(response)
        return response

    async def _next_response(self, block: bool, timeout: float) -> Any:  # noqa: ASYNC109 - as in parse_response()
        pool = self._pool
        try:
            if self.connection is None or pool is None:
                return await super().parse_response(block, timeout)
            deadline = inf if block else monotonic() + timeout
            await self._pause(deadline)
            return await retry_until_answered(
                partial(self._read, pool, deadline),
                partial(self._next_delay, self._backoff),
                after_refusal=partial(self._next_delay, _auth_backoff) if has_renewable_credentials(pool) else None,
                pause=lambda _: self._pause(deadline),
            )
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None

    def _backoff(self, failures: int) -> float:
        return reconnect_backoff(failures)

    def _next_delay(self, delays: Callable[[int], float], _: int) -> float:
        # Counted here: a call with a short timeout sees one failure of many.
        self._failures += 1
        delay = delays(self._failures)
        self._retry_at = monotonic() + delay
        return delay

    async def _pause(self, deadline: float) -> None:
        """Wait until the next attempt may begin, or the connection is ready."""
        seconds = min(self._retry_at, deadline) - monotonic()
        if seconds > 0:
            with suppress(builtins.TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._ready.wait()
        if self._retry_at <= deadline:
            # Also if the event loop's timer was a little early.
            self._retry_at = 0.0

    async def _read(self, pool: MonitoredConnectionPool, deadline: float) -> Any:
        """Read a response; return ``None`` if none arrives in time, or the subscriptions were closed meanwhile."""
        connection = await self._ready_connection(pool, deadline)
        if connection is None:
            return None
        generation = self._generation
        try:
            await self.check_health()
            if self.connection is not connection:
                # Closed meanwhile: another caller may have the connection.
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
            # Also if a subscription was refused for now: all are sent again.
            if self._ready.is_set() and self._generation == generation:
                self._ready.clear()
                await connection.disconnect(nowait=True)
            raise
        if response is not None:
            self._failures, self._retry_at = 0, 0.0
        if connection.health_check_interval and response in self.health_check_response:
            return None
        if self._renewals and not isinstance(response, list) and str_if_bytes(response) == "OK":
            self._renewals -= 1
            return None
        return response

    async def _ready_connection(self, pool: MonitoredConnectionPool, deadline: float) -> AbstractConnection | None:
        """Return the connection, reconnected if it was lost; ``None`` if that took too long, or it was closed."""
        connection: AbstractConnection | None = self.connection
        if connection is None or self._is_ready(connection):
            return connection
        is_reconnected = await self._wait_reconnected(pool, deadline)
        # If nothing is subscribed any more, the confirmation of that was lost as well.
        return cast("AbstractConnection", self.connection) if is_reconnected and self.subscribed else None

    async def _wait_reconnected(self, pool: MonitoredConnectionPool, deadline: float) -> bool:
        """Wait for an attempt to reconnect; return whether it has succeeded in time.

        An attempt that takes longer goes on, and raises its error to the next call that waits.
        """
        self._ready.clear()
        if self._reconnecting is None:
            if monotonic() < self._retry_at:
                return False
            self._reconnecting = asyncio.create_task(self._reconnect_once(pool), context=without_span())
            self._reconnecting.add_done_callback(self._on_reconnected)
        reconnecting = self._reconnecting
        await asyncio.wait([reconnecting], timeout=None if deadline == inf else max(0.0, deadline - monotonic()))
        if not reconnecting.done():
            return False
        self._reconnecting = None
        if not reconnecting.cancelled():
            reconnecting.result()
        return not reconnecting.cancelled()

    async def _reconnect_once(self, pool: MonitoredConnectionPool) -> None:
        async with self._locked_connection(pool):
            pass

    def _on_reconnected(self, reconnecting: "asyncio.Task[None]") -> None:
        # Its error is looked at here, as no call may wait for it any more.
        if reconnecting.cancelled() or reconnecting.exception() is None:
            self._reconnecting = None

    async def _report_reconnected(self, response: Any) -> None:
        if self._unconfirmed and isinstance(response, list) and str_if_bytes(response[0]) in _CONFIRMATIONS:
            self._unconfirmed -= 1
        if self._unconfirmed != 0:
            return
        self._unconfirmed = None
        name = getattr(self.connection_pool, "name", type(self.connection_pool).__name__)
        _LOGGER.warning("pool %r: subscribed again on a new connection: messages published meanwhile are lost", name)
        self._recorder.record(self._recorder.instruments.pubsub_reconnects, 1)
        if self._on_reconnect is not None:
            result = self._on_reconnect()
            if isawaitable(result):
                await result

    async def aclose(self) -> None:
        """End all subscriptions, and give the connection back.

        A call that is subscribing meanwhile raises ``PinnedConnectionLostError``, unless it is sending already.
        """
        self._closings += 1
        await complete_shielded("closing subscriptions", self._close, _CLOSE_SECONDS)

    async def _close(self) -> None:
        if self._reconnecting is not None and self.connection is not None:
            self._reconnecting.cancel()
            await self.connection.disconnect(nowait=True)
        # It waits for redis-py's lock: an attempt to reconnect must not use a connection that another caller has.
        await super().aclose()
        if self._reconnecting is not None:
            # It was begun meanwhile, and waits for the lock.
            self._reconnecting.cancel()
        # Calls that wait wake up, and see that it is closed.
        self._ready.set()
        self._ready.clear()
        self._reconnecting, self._unconfirmed = None, None
        self._failures, self._retry_at = 0, 0.0

    # Handling messages.

    def process(self, message: Mapping[str, Any]) -> ProcessSpan:
        """Handle a message: ``with pubsub.process(message): …``.

        The block is a span of kind CONSUMER, which is current in it and linked to the span that has published the
        message if the message carried that, and a point of ``messaging.process.duration``. Another task may leave the
        block, as one that closes an async generator does: the span ends, but stays current in the task that entered.

        Args:
            message: What ``get_message`` or ``listen`` has returned; another ``dict`` made of it has lost the link.
        """
        carriers = [message.carrier] if isinstance(message, TracedMessage) else []
        return ProcessSpan(self._recorder, message["channel"], carriers, self.server_span)

    async def handle_message(self, response: Any, ignore_subscribe_messages: bool = False) -> Any:
        """Make a message of a response, or hand it to its handler, as redis-py does."""
        kind = str_if_bytes(response[0]) if isinstance(response, list) else None
        if kind not in self.PUBLISH_MESSAGE_TYPES:
            return await super().handle_message(response, ignore_subscribe_messages)
        handlers = {"message": self.channels, "pmessage": self.patterns, "smessage": self.shard_channels}[kind]
        _, subscription, *_ = response
        *place, data = response
        payload, carrier = unseal(data)
        unwrapped = [*place, payload]
        if handlers.get(subscription):
            with ProcessSpan(self._recorder, place[-1], [] if carrier is None else [carrier], self.server_span):
                return await super().handle_message(unwrapped, ignore_subscribe_messages)
        message = await super().handle_message(unwrapped, ignore_subscribe_messages)
        return message if carrier is None else TracedMessage(message, carrier)


async def publish_in_envelope(
    client: Redis, command: str, channel: ChannelT, message: EncodableT, options: dict[str, Any]
) -> int:
    """Publish a message in an envelope, and return how many subscribers have received it.

    Args:
        client: A client of this package.
        command: ``PUBLISH`` or ``SPUBLISH``.
        channel: The channel.
        message: The message.
        options: Those of ``execute_command``.
    """
    executor = require_executor(client)
    # For redis-py's own metrics.
    record_pubsub_message(
        PubSubDirection.PUBLISH, argument_text(channel, MAX_NAME_LENGTH), sharded=command == "SPUBLISH" or None
    )
    if executor.overrides_execute(client):
        span = executor.server_span
        context = None if span is None else trace.set_span_in_context(span)
        wrapped = _wrap(client, message, context)
        return cast("int", await execute_command(client, command, channel, wrapped, **options))

    async def publish(operation: Operation | None) -> int:
        wrapped = _wrap(client, message, None if operation is None else operation.start_span())
        return cast("int", await executor.execute_part(client, operation, command, channel, wrapped, **options))

    return await executor.execute_recorded(client, (command, channel, message), options, publish)


def _wrap(client: Redis, message: EncodableT, context: Context | None) -> EncodableT:
    carrier = inject(context)
    return seal(get_encoder(client).encode(message), carrier) if carrier else message
