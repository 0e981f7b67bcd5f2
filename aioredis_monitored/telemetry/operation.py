"""The recorder: one operation is one span and one histogram point, and what goes wrong in telemetry stays here."""

import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeVar

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from aioredis_monitored.telemetry import semconv
from aioredis_monitored.telemetry.attributes import Call, Failure, failure_of
from aioredis_monitored.telemetry.instruments import Telemetry

_logger = logging.getLogger("aioredis_monitored.telemetry")
_reported: set[str] = set()

T = TypeVar("T")

_ERROR = Status(StatusCode.ERROR)


class Operation:
    """The record of one logical call: ``await Operation(…).observe(call)``; what the call raises is its outcome.

    Args:
        telemetry: Where to record.
        call: What is called.
        parent: The parent span; ``None`` means the current one.
    """

    __slots__ = ("_call", "_elapsed", "_failure", "_noted", "_parent", "_span", "_telemetry")

    def __init__(self, telemetry: Telemetry, call: Call, parent: trace.Span | None) -> None:
        self._telemetry = telemetry
        self._call = call
        self._parent = parent
        self._span: trace.Span = trace.INVALID_SPAN
        self._failure: Failure | None = None
        self._noted: tuple[tuple[BaseException, Failure | None], ...] = ()

    async def observe(self, awaitable: Awaitable[T]) -> T:
        """Await the call, record it, and return or raise what it did, the very same object."""
        _guarded(self._start)
        error: BaseException | None = None
        started = perf_counter()
        try:
            result = await awaitable
        except BaseException as caught:  # noqa: BLE001 - raised again below
            error = caught
        # Not in the except block: what an exporter logs there would show the call's error, which quotes arguments, as
        # the context of its own.
        self._elapsed = perf_counter() - started
        if error is None:
            self._end()
            return result
        context = error.__context__
        try:
            self.fail(error)
            self._end()
            raise error
        finally:
            # Raised anew, it would get whatever the caller is handling as its context; and its traceback refers to
            # this frame.
            error.__context__ = context
            del error, context

    def note(self, error: BaseException) -> None:
        """Classify an error before redis-py rewrites its text (a pipeline puts the command's arguments into it)."""
        self._noted += ((error, failure_of(error)),)

    def fail(self, error: BaseException) -> None:
        """Tell the outcome of a call that returns its error instead of raising it."""
        noted = next((failure for known, failure in self._noted if known is error), None)
        self._failure = noted or failure_of(error)

    def _end(self) -> None:
        _guarded(self._add_failure)
        _guarded(self._record_duration)
        _guarded(lambda: self._span.end())  # noqa: PLW0108 - looking it up may fail too

    def _start(self) -> None:
        telemetry, call = self._telemetry, self._call
        attributes = {**telemetry.server.attributes, semconv.DB_OPERATION_NAME: call.operation}
        if call.batch_size is not None:
            attributes[semconv.DB_OPERATION_BATCH_SIZE] = call.batch_size
        if call.stored_procedure is not None:
            attributes[semconv.DB_STORED_PROCEDURE_NAME] = call.stored_procedure
        if call.summary is not None:
            attributes[semconv.DB_QUERY_SUMMARY] = call.summary
        context = None if self._parent is None else trace.set_span_in_context(self._parent)
        self._span = telemetry.tracer.start_span(
            call.span_name(telemetry.server.target),
            context,
            SpanKind.CLIENT,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        # Not at creation: samplers do not need the text, and a span that is not recorded must not pay for it.
        if self._span.is_recording() and (text := call.query_text()):
            self._span.set_attribute(semconv.DB_QUERY_TEXT, text)

    def _add_failure(self) -> None:
        if self._failure is not None:
            # The exception's text may hold arguments, so neither a description nor an exception event carries it.
            self._span.set_attributes(self._failure.attributes())
            if self._failure.is_error:
                self._span.set_status(_ERROR)

    def _record_duration(self) -> None:
        attributes = {**self._telemetry.metric_attributes, semconv.DB_OPERATION_NAME: self._call.operation}
        if self._call.summary is not None:
            attributes[semconv.DB_QUERY_SUMMARY] = self._call.summary
        if self._failure is not None:
            attributes |= self._failure.attributes()
        self._telemetry.operation_duration.record(self._elapsed, attributes)


def _guarded(record: Callable[[], object]) -> None:
    """The one place where an exporter, a processor, a sampler or a view may raise; the caller's call goes on."""
    try:
        record()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever they raise, Redis did not; not even a cancellation is one
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if kind not in _reported:
            _reported.add(kind)
            # Neither its text nor its traceback: both may quote the attributes of the span.
            _logger.warning("Telemetry failed with %s; calls go on, further failures of this kind are not logged", kind)
