"""What a queue tells: operations on its messages, and what becomes of them."""

from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any, Final

from opentelemetry.trace import Span

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.messaging import ProcessSpan, inject
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored.envelope import seal, unseal

# When a message was sent, in seconds since 1970: beside the trace context in its envelope.
_SENT_AT: Final = "aioredis-monitored-sent-at"
# Ten years, in seconds.
_MAX_QUEUE_SECONDS: Final = 315_360_000


class QueueTelemetry:
    """What is told of a queue.

    Args:
        telemetry: Where to record.
        queue: The key of its list.
        propagate: Whether messages carry the context of their sending.

    Attributes:
        get: What a ``get`` is.
        take: What a ``take`` is.
        put: What a ``put`` is.
        put_bounded: What a ``put`` is that may have to wait for room.
        ack: What an acknowledgement is.
        nack: What giving back is.
        view: What is known of the queue.
    """

    def __init__(self, telemetry: PoolRecorder, queue: str, *, propagate: bool) -> None:
        self._telemetry = telemetry
        self._queue = queue
        send, receive, settle = (
            semconv.OPERATION_TYPE_SEND,
            semconv.OPERATION_TYPE_RECEIVE,
            semconv.OPERATION_TYPE_SETTLE,
        )
        self.get = MessagingSpec(semconv_ext.OPERATION_RECEIVE, receive, queue, propagate)
        self.take = MessagingSpec(semconv_ext.OPERATION_RECEIVE, receive, queue, names_span=True)
        self.put = MessagingSpec(semconv_ext.OPERATION_SEND, send, queue, propagate)
        self.put_bounded = MessagingSpec(semconv_ext.OPERATION_SEND, send, queue, names_span=True)
        self.ack = MessagingSpec(semconv_ext.OPERATION_ACK, settle, queue, names_span=True)
        self.nack = MessagingSpec(semconv_ext.OPERATION_NACK, settle, queue, names_span=True)
        self.stats = telemetry.queue_stats(queue)

    def on_empty(self) -> None:
        """Nothing was there."""
        self.stats.update(depth=0)

    def on_recovered(self, count: int) -> None:
        """Messages of a dead consumer were given back."""
        self._record(self._telemetry.instruments.queue_recovered.add, count)

    def on_lease_lost(self, count: int) -> None:
        """Messages were another consumer's when this one was done with them."""
        self._record(self._telemetry.instruments.queue_lease_lost.add, count)

    def on_unsettled(self) -> None:
        """Something may be lost that was on its way to a cancelled get."""
        self._record(self._telemetry.instruments.queue_unsettled.add, 1)

    def unwrap(self, messages: Sequence[bytes]) -> tuple[list[bytes], list[Mapping[str, str]]]:
        """Messages as they were put, and what came with them; tells how long they were in the queue."""
        payloads: list[bytes] = []
        carriers: list[Mapping[str, str]] = []
        for payload, carrier in map(unseal, messages):
            payloads.append(payload)
            if carrier is not None:
                carriers.append(carrier)
                self._record_queue_time(carrier.get(_SENT_AT, ""))
        return payloads, carriers

    def _record_queue_time(self, sent_at: str) -> None:
        try:
            seconds = time() - float(sent_at)
        except ValueError:
            return
        # Clocks differ; and what is no time would be in the sum for good.
        if seconds <= _MAX_QUEUE_SECONDS:
            self._record(self._telemetry.instruments.queue_time.record, max(0.0, seconds))

    def wrap(self, messages: Sequence[bytes], operation: Operation | None) -> list[bytes]:
        """Messages in envelopes, with the context of their sending."""
        carrier = {**inject(None if operation is None else operation.start_span()), _SENT_AT: repr(time())}
        return [seal(message, carrier) for message in messages]

    def process_span(self, carriers: Sequence[Mapping[str, str]], parent: Span | None) -> ProcessSpan:
        """The record of what is done with messages."""
        return ProcessSpan(self._telemetry, self._queue, carriers, parent, of_queue=True)

    def _record(self, record: Callable[[float, dict[str, Any]], None], value: float) -> None:
        self._telemetry.record(record, value, self.stats.attributes)
