"""The telemetry of a queue: its operations, the events of its messages, and the envelopes of trace contexts."""

from collections.abc import Mapping, Sequence
from time import monotonic, time
from typing import Final

from opentelemetry.metrics import Counter, Histogram
from opentelemetry.trace import Span

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.messaging import ProcessSpan, inject
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored.envelope import seal, unseal

# The field of an envelope that holds the time of sending, in seconds since 1970.
_SENT_AT: Final = "aioredis-monitored-sent-at"
_MAX_QUEUE_SECONDS: Final = 315_360_000  # ten years


class QueueTelemetry:
    """Records what happens to a queue's messages.

    Args:
        telemetry: Where to record.
        queue: The key of the queue's list.
        propagate: Whether messages carry the trace context of their ``put``.

    Attributes:
        get: Describes the operation of ``get``.
        take: The same of ``take``.
        put: The same of ``put``.
        put_bounded: The same of a ``put`` that may wait for room.
        ack: The same of an acknowledgement.
        nack: The same of requeueing.
        gauges: The queue's depth and counts, as far as this process knows them.
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
        self.gauges = telemetry.queue_gauges(queue)

    def on_empty(self) -> None:
        """Note that the queue was empty."""
        self.gauges.update(depth=0)
        self.gauges.fetched_at = monotonic()

    def on_recovered(self, count: int) -> None:
        """Count messages of dead consumers that were requeued or became dead letters."""
        self._record(self._telemetry.instruments.queue_recovered, count)

    def on_lease_lost(self, count: int) -> None:
        """Count messages that were no longer held when they were acknowledged."""
        self._record(self._telemetry.instruments.queue_lease_lost, count)

    def on_unsettled(self) -> None:
        """Count a cancelled get that may have lost a message."""
        self._record(self._telemetry.instruments.queue_unsettled, 1)

    def unwrap(self, messages: Sequence[bytes]) -> tuple[list[bytes], list[Mapping[str, str]]]:
        """Return the payloads and the carriers of messages, and record how long these were in the queue."""
        self.gauges.fetched_at = monotonic()
        payloads: list[bytes] = []
        carriers: list[Mapping[str, str]] = []
        for payload, carrier in map(unseal, messages):
            payloads.append(payload)
            if carrier is not None:
                carriers.append(carrier)
                if (age := age_of(carrier, time())) is not None:
                    self._record(self._telemetry.instruments.queue_time, age)
        return payloads, carriers

    def wrap(self, messages: Sequence[bytes], operation: Operation | None) -> list[bytes]:
        """Return messages in envelopes with the trace context of the operation and the time."""
        carrier = {**inject(None if operation is None else operation.start_span()), _SENT_AT: repr(time())}
        return [seal(message, carrier) for message in messages]

    def process_span(self, carriers: Sequence[Mapping[str, str]], parent: Span | None) -> ProcessSpan:
        """Return the record of the processing of messages."""
        return ProcessSpan(self._telemetry, self._queue, carriers, parent, of_queue=True)

    def _record(self, instrument: Counter | Histogram, value: float) -> None:
        self._telemetry.record(instrument, value, self.gauges.attributes)


def age_of(carrier: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds ago a message was put; ``None`` if its envelope does not say when.

    Args:
        carrier: What its envelope carries.
        now: The time, in seconds since 1970.
    """
    try:
        seconds = now - float(carrier.get(_SENT_AT, ""))
    except ValueError:
        return None
    # Clocks differ; and a value that is no time would spoil a histogram's sum for good.
    return max(0.0, seconds) if seconds <= _MAX_QUEUE_SECONDS else None
