"""What goes with a message: the trace context that it carries, and the recorder of what is done with it."""

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
from aioredis_monitored._telemetry.guard import log_error
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, MessagingSpec
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.envelope import unseal


def inject(here: Context | None) -> dict[str, str]:
    """What the application's propagators have to say of a context, or of the current one; nothing if nobody traces."""
    carrier: dict[str, str] = {}
    try:
        propagate.inject(carrier, here)
        return {str(name): str(value) for name, value in carrier.items()}
    except BaseException as trouble:  # noqa: BLE001 - see report
        log_error(trouble)
        return {}


def extract_links(carriers: Iterable[Mapping[str, str]]) -> list[Link]:
    """Links to the spans that have sent messages."""
    links = []
    for carrier in carriers:
        try:
            # Into an empty context: what a carrier does not tell must not be taken from the current one.
            sent = trace.get_current_span(propagate.extract(carrier, Context())).get_span_context()
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
        else:
            if sent.is_valid:
                links.append(Link(sent))
    return links


class ProcessSpan:
    """The record of what is done with a message: ``with Processing(…):`` is a span and a point of its own.

    A sibling of ``Operation``, with the same rules for failures and for broken telemetry. It is no call to the server:
    what users have chosen about calls, such as ``require_parent`` or ``exclude_commands``, does not touch it. Its span
    is there from the beginning, to be the parent of what is called in the block; to the span that has sent the message
    it is linked (messaging-spans.md: "span link as default").

    It may be left in another task than it was entered in, as an async generator's block is that is closed by another
    task. That task goes on with its own context. The one that has entered keeps the span as its current one, although
    it has ended: no other task can change that.

    Args:
        telemetry: Where to record.
        channel: Where the message came from.
        carriers: What it carried, if it had an envelope; those of several that are handled at once.
        parent: The parent span; ``None`` means the one that is current, unless that has ended: a task that was created
            in a request keeps the request's span for life.
        of_queue: Whether the channel is a queue, of which there are few; default ``False``.
    """

    __slots__ = (
        "_attached",
        "_began",
        "_call",
        "_carriers",
        "_channel",
        "_here",
        "_of_queue",
        "_parent",
        "_span",
        "_started",
        "_telemetry",
    )

    def __init__(
        self,
        telemetry: PoolRecorder,
        channel: object,
        carriers: Iterable[Mapping[str, str]],
        parent: Span | None,
        *,
        of_queue: bool = False,
    ) -> None:
        self._telemetry = telemetry
        self._channel = channel
        self._carriers = carriers
        self._parent = parent
        self._of_queue = of_queue
        self._call: CallSpec | None = None
        self._span: Span | None = None

    def __enter__(self) -> None:
        self._here = context.get_current()
        self._began = time_ns()
        self._started = perf_counter()
        if not self._telemetry.is_enabled() or is_suppressed(self._here):
            return
        try:
            self._call = self._telemetry.process_spec(self._channel, of_queue=self._of_queue)
            if self._telemetry.tracing_enabled:
                self._start_span(self._call)
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)

    def _start_span(self, call: CallSpec) -> None:
        links = extract_links(self._carriers)
        parent = self._parent or trace.get_current_span(self._here)
        # Only the SDK's spans know that they have ended.
        if getattr(parent, "end_time", None) is not None:
            parent = trace.INVALID_SPAN
        self._span = self._telemetry.tracer.start_span(
            call.span_name,
            trace.set_span_in_context(parent, self._here),
            call.kind,
            call.span_attributes,
            links,
            self._began,
            record_exception=False,
            set_status_on_exception=False,
        )
        self._here = trace.set_span_in_context(self._span, self._here)
        self._attached = AttachedContext(self._here)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        elapsed = perf_counter() - self._started
        if self._span is not None:
            self._attached.detach()
        if self._call is None:
            return
        failure = None if error is None else self._telemetry.failure_of(error)
        failed: dict[str, Any] = {} if failure is None else {semconv.ERROR_TYPE: failure.error_type}
        try:
            if self._span is not None:
                self._end_span(self._span, elapsed, failed, is_error=failure is not None and failure.is_error)
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
        try:
            if self._telemetry.metrics_enabled:
                histogram = self._telemetry.instruments.process_duration
                histogram.record(elapsed, self._call.point_attributes | failed, self._here)
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)

    def _end_span(self, span: Span, elapsed: float, failed: dict[str, Any], *, is_error: bool) -> None:
        try:
            span.set_attributes(failed)
            if is_error:
                # The exception's text may quote the message.
                span.set_status(Status(StatusCode.ERROR))
        finally:
            span.end(self._began + int(elapsed * 1e9))


class MessagingOperation(Operation):
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
        telemetry: PoolRecorder,
        about: MessagingSpec,
        called: Sequence[Any],
        parent: Span | None,
        request: RequestStats | None = None,
    ) -> None:
        super().__init__(telemetry, telemetry.messaging_spec(called, about), called, parent, request)
        self._messaging = about
        self._count = 0

    def exclude_wait(self) -> None:
        """Tell that it waits for others, and not for Redis: its parts alone are points of calls."""
        self.spec = replace(self.spec, is_point=False)

    def set_message_count(self, count: int, *, is_batch: bool) -> None:
        """Tell how many messages it is about.

        Args:
            count: How many.
            is_batch: Whether it could have been any number.
        """
        self._count = count
        if is_batch:
            self.spec = self.spec.with_span_attributes({semconv.MESSAGING_BATCH_MESSAGE_COUNT: count})

    def set_received(self, messages: Sequence[bytes], *, is_batch: bool) -> None:
        """Tell which messages it has received."""
        self.set_message_count(len(messages), is_batch=is_batch)
        if self._telemetry.tracing_enabled:
            self._links = extract_links(carrier for _, carrier in map(unseal, messages) if carrier is not None)

    def end(self, now: float, reply: object) -> None:
        """Record it; one that was cancelled has received nothing, as what was on its way goes back."""
        has_left = self._messaging.kind == semconv.OPERATION_TYPE_RECEIVE and isinstance(reply, asyncio.CancelledError)
        super().end(now, None if has_left else reply)

    def _record(self, elapsed: float, reply: object) -> None:
        super()._record(elapsed, reply)
        telemetry, about, instruments = self._telemetry, self._messaging, self._telemetry.instruments
        if not telemetry.metrics_enabled or is_suppressed(context.get_current()):
            return
        try:
            points = telemetry.message_attributes(about)
            if self._failure is not None:
                points = points | {semconv.ERROR_TYPE: self._failure.error_type}
            instruments.message_duration.record(elapsed, points)
            if self._count and about.kind == semconv.OPERATION_TYPE_SEND:
                instruments.sent_messages.add(self._count, points)
            elif self._count and about.kind == semconv.OPERATION_TYPE_RECEIVE:
                instruments.consumed_messages.add(self._count, points)
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
