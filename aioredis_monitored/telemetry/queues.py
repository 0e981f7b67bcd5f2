"""What a queue tells: operations on its messages, and what becomes of them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import time
from typing import Any, Final

from opentelemetry import context
from opentelemetry.trace import Span

from aioredis_monitored.envelope import seal, unseal
from aioredis_monitored.telemetry import own, semconv
from aioredis_monitored.telemetry.ambience import is_suppressed
from aioredis_monitored.telemetry.attributes import About
from aioredis_monitored.telemetry.messaging import Processing, carrier_of, links_of
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.request import RequestView
from aioredis_monitored.telemetry.telemetry import Telemetry
from aioredis_monitored.telemetry.trouble import report

# When a message was sent, in seconds since 1970: beside the trace context in its envelope.
_SENT_AT: Final = "aioredis-monitored-sent-at"
# Ten years, in seconds.
_LONGEST_TIME: Final = 315_360_000


class Delivery(Operation):
    """The record of an operation on messages: a call, and points about the messages.

    Args:
        telemetry: Where to record.
        about: What it is.
        called: The command.
        parent: The parent span; ``None`` means the one that is current now.
        request: The request that it is a part of, if that is known.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        about: About,
        called: Sequence[Any],
        parent: Span | None,
        request: RequestView | None = None,
    ) -> None:
        super().__init__(telemetry, telemetry.about_call(called, about), called, parent, request)
        self._about = about
        self._count = 0

    def wait_for_room(self) -> None:
        """Tell that it waits for others, and not for Redis: its parts alone are points of calls."""
        self.call = replace(self.call, is_measured=False)

    def concern(self, count: int, *, is_batch: bool) -> None:
        """Tell how many messages it is about.

        Args:
            count: How many.
            is_batch: Whether it could have been any number.
        """
        self._count = count
        if is_batch:
            self.call = self.call.with_span_attributes({semconv.MESSAGING_BATCH_MESSAGE_COUNT: count})

    def receive(self, messages: Sequence[bytes], *, is_batch: bool) -> None:
        """Tell which messages it has received."""
        self.concern(len(messages), is_batch=is_batch)
        if self._telemetry.is_traced:
            self._links = links_of(carrier for _, carrier in map(unseal, messages) if carrier is not None)

    def end(self, now: float, reply: object) -> None:
        """Record it; one that was cancelled has received nothing, as what was on its way goes back."""
        has_left = self._about.kind == semconv.OPERATION_TYPE_RECEIVE and isinstance(reply, asyncio.CancelledError)
        super().end(now, None if has_left else reply)

    def _record(self, elapsed: float, reply: object) -> None:
        super()._record(elapsed, reply)
        telemetry, about, instruments = self._telemetry, self._about, self._telemetry.instruments
        if not telemetry.is_measured or is_suppressed(context.get_current()):
            return
        try:
            points = telemetry.message_points(about)
            if self._failure is not None:
                points = points | {semconv.ERROR_TYPE: self._failure.error_type}
            instruments.message_duration.record(elapsed, points)
            if self._count and about.kind == semconv.OPERATION_TYPE_SEND:
                instruments.sent_messages.add(self._count, points)
            elif self._count and about.kind == semconv.OPERATION_TYPE_RECEIVE:
                instruments.consumed_messages.add(self._count, points)
        except BaseException as trouble:  # noqa: BLE001 - see report
            report(trouble)


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

    def __init__(self, telemetry: Telemetry, queue: str, *, propagate: bool) -> None:
        self._telemetry = telemetry
        self._queue = queue
        send, receive, settle = (
            semconv.OPERATION_TYPE_SEND,
            semconv.OPERATION_TYPE_RECEIVE,
            semconv.OPERATION_TYPE_SETTLE,
        )
        self.get = About(own.OPERATION_RECEIVE, receive, queue, propagate)
        self.take = About(own.OPERATION_RECEIVE, receive, queue, renames=True)
        self.put = About(own.OPERATION_SEND, send, queue, propagate)
        self.put_bounded = About(own.OPERATION_SEND, send, queue, renames=True)
        self.ack = About(own.OPERATION_ACK, settle, queue, renames=True)
        self.nack = About(own.OPERATION_NACK, settle, queue, renames=True)
        self.view = telemetry.view_of(queue)

    def note_empty(self) -> None:
        """Nothing was there."""
        self.view.see(depth=0)

    def note_recovered(self, count: int) -> None:
        """Messages of a dead consumer were given back."""
        self._measure(self._telemetry.instruments.queue_recovered.add, count)

    def note_lease_lost(self, count: int) -> None:
        """Messages were another consumer's when this one was done with them."""
        self._measure(self._telemetry.instruments.queue_lease_lost.add, count)

    def note_unsettled(self) -> None:
        """Something may be lost that was on its way to a cancelled get."""
        self._measure(self._telemetry.instruments.queue_unsettled.add, 1)

    def opened(self, messages: Sequence[bytes]) -> tuple[list[bytes], list[Mapping[str, str]]]:
        """Messages as they were put, and what came with them; tells how long they were in the queue."""
        payloads: list[bytes] = []
        carriers: list[Mapping[str, str]] = []
        for payload, carrier in map(unseal, messages):
            payloads.append(payload)
            if carrier is not None:
                carriers.append(carrier)
                self._tell_time(carrier.get(_SENT_AT, ""))
        return payloads, carriers

    def _tell_time(self, sent_at: str) -> None:
        try:
            seconds = time() - float(sent_at)
        except ValueError:
            return
        # Clocks differ; and what is no time would be in the sum for good.
        if seconds <= _LONGEST_TIME:
            self._measure(self._telemetry.instruments.queue_time.record, max(0.0, seconds))

    def sealed(self, messages: Sequence[bytes], operation: Operation | None) -> list[bytes]:
        """Messages in envelopes, with the context of their sending."""
        carrier = {**carrier_of(None if operation is None else operation.start()), _SENT_AT: repr(time())}
        return [seal(message, carrier) for message in messages]

    def processing(self, carriers: Sequence[Mapping[str, str]], parent: Span | None) -> Processing:
        """The record of what is done with messages."""
        return Processing(self._telemetry, self._queue, carriers, parent, of_queue=True)

    def _measure(self, record: Callable[[float, dict[str, Any]], None], value: float) -> None:
        self._telemetry.measure(record, value, self.view.attributes)
