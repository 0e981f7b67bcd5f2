"""Telemetry of messages: the trace context that they carry, the records of sending, receiving and processing them."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter, time_ns
from types import TracebackType
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode

from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.context import AttachedContext, is_suppressed
from aioredis_monitored._telemetry.guard import guarded
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, MessagingSpec
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.envelope import unseal


def inject(here: Context | None) -> dict[str, str]:
    """Return what the application's propagators inject for a context, default the current one; nothing if they fail."""
    with guarded:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, here)
        return {str(name): str(value) for name, value in carrier.items()}
    return {}


def extract_links(carriers: Iterable[Mapping[str, str]]) -> list[Link]:
    """Return links to the spans that have sent messages."""
    links = []
    for carrier in carriers:
        with guarded:
            # Into an empty context: the current one must not fill in what a carrier lacks.
            sent = trace.get_current_span(propagate.extract(carrier, Context())).get_span_context()
            if sent.is_valid:
                links.append(Link(sent))
    return links


class ProcessSpan:
    """The record of processing a message: ``with ProcessSpan(…):`` is a span and a point.

    It treats failures and broken telemetry as ``Operation`` does. It is no call to the server, so the options about
    calls, such as ``require_parent`` or ``exclude_commands``, do not apply. Its span starts with the block, as the
    parent of the calls in it, and is linked to the span that has sent the message (messaging-spans.md: "span link as
    default").

    It may end in another task than it started in, as the block of an async generator does that another task closes.
    That task continues with its own context. The task that started it keeps the span as its current one, although it
    has ended: no other task can change that.

    Args:
        recorder: The recorder of the pool.
        channel: Where the message came from.
        carriers: The trace contexts of the messages that are processed together, one for each that has an envelope.
        parent: The parent span; ``None`` means the current one, unless that has ended: a task that was created in a
            request keeps the request's span for life.
        of_queue: Whether the channel is a queue, of which there are few; default ``False``.
    """

    __slots__ = (
        "_attached",
        "_carriers",
        "_channel",
        "_here",
        "_of_queue",
        "_parent",
        "_recorder",
        "_span",
        "_spec",
        "_started_at",
        "_started_ns",
    )

    def __init__(
        self,
        recorder: PoolRecorder,
        channel: object,
        carriers: Iterable[Mapping[str, str]],
        parent: Span | None,
        *,
        of_queue: bool = False,
    ) -> None:
        self._recorder = recorder
        self._channel = channel
        self._carriers = carriers
        self._parent = parent
        self._of_queue = of_queue
        self._spec: CallSpec | None = None
        self._span: Span | None = None

    def __enter__(self) -> None:
        self._here = context.get_current()
        self._started_ns = time_ns()
        self._started_at = perf_counter()
        if not self._recorder.is_enabled() or is_suppressed(self._here):
            return
        with guarded:
            self._spec = self._recorder.process_spec(self._channel, of_queue=self._of_queue)
            if self._recorder.tracing_enabled:
                self._start_span(self._spec)

    def _start_span(self, spec: CallSpec) -> None:
        links = extract_links(self._carriers)
        parent = self._parent or trace.get_current_span(self._here)
        # The API does not say whether a span has ended; the SDK's spans have an end_time.
        if getattr(parent, "end_time", None) is not None:
            parent = trace.INVALID_SPAN
        self._span = self._recorder.tracer.start_span(
            spec.span_name,
            trace.set_span_in_context(parent, self._here),
            spec.kind,
            spec.span_attributes,
            links,
            self._started_ns,
            record_exception=False,
            set_status_on_exception=False,
        )
        self._here = trace.set_span_in_context(self._span, self._here)
        self._attached = AttachedContext(self._here)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        elapsed = perf_counter() - self._started_at
        if self._span is not None:
            self._attached.detach()
        if self._spec is None:
            return
        failure = None if error is None else self._recorder.failure_of(error)
        failed: dict[str, Any] = {} if failure is None else {semconv.ERROR_TYPE: failure.error_type}
        if self._span is not None:
            with guarded:
                self._end_span(self._span, elapsed, failed, is_error=failure is not None and failure.is_error)
        if self._recorder.metrics_enabled:
            histogram = self._recorder.instruments.process_duration
            self._recorder.record_point(histogram, elapsed, self._spec.point_attributes | failed, self._here)

    def _end_span(self, span: Span, elapsed: float, failed: dict[str, Any], *, is_error: bool) -> None:
        try:
            span.set_attributes(failed)
            if is_error:
                # Without a description: the exception's text may quote the message.
                span.set_status(Status(StatusCode.ERROR))
        finally:
            span.end(self._started_ns + int(elapsed * 1e9))


class MessagingOperation(Operation):
    """The record of a command that sends, receives or settles messages: a call, and points about the messages.

    Args:
        recorder: The recorder of the pool.
        messaging: What the command does with messages.
        called: The arguments of the command.
        parent: The parent span; ``None`` means the current one.
        request: The request that the call is part of, if it is known.
    """

    def __init__(
        self,
        recorder: PoolRecorder,
        messaging: MessagingSpec,
        called: Sequence[Any],
        parent: Span | None,
        request: RequestStats | None = None,
    ) -> None:
        super().__init__(recorder, recorder.messaging_spec(called, messaging), called, parent, request)
        self._messaging = messaging
        self._count = 0

    def exclude_wait(self) -> None:
        """Record no point of the call: it waits for others, and not for Redis; its parts are the points."""
        self.spec = replace(self.spec, is_point=False)

    def set_message_count(self, count: int, *, is_batch: bool) -> None:
        """Set the number of messages that the operation is about.

        Args:
            count: The number.
            is_batch: Whether the operation takes any number of messages.
        """
        self._count = count
        if is_batch:
            self.spec = self.spec.with_span_attributes({semconv.MESSAGING_BATCH_MESSAGE_COUNT: count})

    def set_received(self, messages: Sequence[bytes], *, is_batch: bool) -> None:
        """Set the messages that the operation has received."""
        self.set_message_count(len(messages), is_batch=is_batch)
        if self._recorder.tracing_enabled:
            self._links = extract_links(carrier for _, carrier in map(unseal, messages) if carrier is not None)

    def end(self, now: float, reply: object) -> None:
        """Record the operation; a cancelled one has received nothing, because the message is restored."""
        is_restored = self._messaging.operation_type == semconv.OPERATION_TYPE_RECEIVE and isinstance(
            reply, asyncio.CancelledError
        )
        super().end(now, None if is_restored else reply)

    def _record(self, elapsed: float, reply: object, in_batch: bool = False) -> None:
        super()._record(elapsed, reply, in_batch)
        recorder, messaging, instruments = self._recorder, self._messaging, self._recorder.instruments
        if not recorder.metrics_enabled or is_suppressed(context.get_current()):
            return
        with guarded:
            points = recorder.message_attributes(messaging)
            if self.spec.lacks_server:
                points = points | self.spec.address()
            if self._failure is not None:
                points = points | {semconv.ERROR_TYPE: self._failure.error_type}
            recorder.record_point(instruments.message_duration, elapsed, points)
            if self._count and messaging.operation_type == semconv.OPERATION_TYPE_SEND:
                recorder.record_point(instruments.sent_messages, self._count, points)
            elif self._count and messaging.operation_type == semconv.OPERATION_TYPE_RECEIVE:
                recorder.record_point(instruments.consumed_messages, self._count, points)
