"""Publishing with the trace context, and subscriptions whose messages are handled under a span of their own."""

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, cast

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from redis.asyncio import ConnectionPool
from redis.asyncio.client import PubSub
from redis.observability.attributes import PubSubDirection
from redis.observability.recorder import record_pubsub_message
from redis.typing import ChannelT, EncodableT
from redis.utils import str_if_bytes

from aioredis_monitored.commands import LONGEST_NAME, text_of
from aioredis_monitored.envelope import seal, unseal
from aioredis_monitored.handle import Handle
from aioredis_monitored.telemetry.messaging import Processing, carrier_of
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.telemetry import Telemetry


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

    Args:
        connection_pool: Where its connection comes from.
        telemetry: Where to record.
        server_span: The parent of its spans; ``None`` means the span that is current when a message is handled.
        arguments: Those of ``redis.asyncio.client.PubSub``.
    """

    def __init__(
        self,
        connection_pool: ConnectionPool,
        *,
        telemetry: Telemetry,
        server_span: Span | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(connection_pool, **arguments)
        self.server_span = server_span
        self._telemetry = telemetry

    def process(self, message: Mapping[str, Any]) -> Processing:
        """Handle a message: ``with pubsub.process(message): …``.

        The block is a span of kind CONSUMER, which is current in it and linked to the span that has published the
        message if the message carried that, and a point of ``messaging.process.duration``. Another task may leave
        it, as one does that closes an async generator: the span ends, but stays current in the task that has entered.

        Args:
            message: What ``get_message`` or ``listen`` has returned; another ``dict`` made of it has lost the link.
        """
        carriers = [message.carrier] if isinstance(message, TracedMessage) else []
        return Processing(self._telemetry, message["channel"], carriers, self.server_span)

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
            with Processing(self._telemetry, place[-1], [] if carrier is None else [carrier], self.server_span):
                return await super().handle_message(bare, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        message = await super().handle_message(bare, ignore_subscribe_messages)  # type: ignore[no-untyped-call]
        return message if carrier is None else TracedMessage(message, carrier)


class PubSubMixin(Handle):
    """What the client publishes, and its subscriptions."""

    def pubsub(self, **arguments: Any) -> MonitoredPubSub:
        """Subscriptions; the arguments are those of ``redis.asyncio.Redis.pubsub``."""
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
            PubSubDirection.PUBLISH, text_of(channel, LONGEST_NAME), sharded=name == "SPUBLISH" or None
        )
        if self.is_replaced:
            here = None if self.server_span is None else trace.set_span_in_context(self.server_span)
            return cast("int", await self.execute_command(name, channel, self._sealed(message, here), **options))
        return await self.execute_as(args, options, partial(self._publish_traced, args, options))

    async def _publish_traced(
        self, args: tuple[str, ChannelT, EncodableT], options: dict[str, Any], operation: Operation | None
    ) -> int:
        name, channel, message = args
        sealed = self._sealed(message, None if operation is None else operation.start())
        return cast("int", await self.execute_within(operation, name, channel, sealed, **options))

    def _sealed(self, message: EncodableT, here: Context | None) -> EncodableT:
        carrier = carrier_of(here)
        return seal(self.get_encoder().encode(message), carrier) if carrier else message  # type: ignore[no-untyped-call]
