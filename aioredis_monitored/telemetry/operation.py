"""The recorder: one operation is one span and one histogram point, and what goes wrong in telemetry stays here."""

import logging
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Self, TypeVar

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
    """The record of one logical call, as a context manager around it; the exception that leaves it is its outcome.

    Args:
        telemetry: Where to record.
        call: What is called.
        parent: The parent span; ``None`` means the current one.
    """

    __slots__ = ("_call", "_elapsed", "_failure", "_noted", "_parent", "_span", "_started", "_telemetry")

    def __init__(self, telemetry: Telemetry, call: Call, parent: trace.Span | None) -> None:
        self._telemetry = telemetry
        self._call = call
        self._parent = parent
        self._failure: Failure | None = None
        self._noted: tuple[tuple[BaseException, Failure | None], ...] = ()

    def __enter__(self) -> Self:
        self._span = _guarded(self._start_span) or trace.INVALID_SPAN
        if self._span.is_recording():
            _guarded(self._add_query_text)
        self._started = perf_counter()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._elapsed = perf_counter() - self._started
        if exc is not None:
            self.fail(exc)
        _guarded(self._add_failure)
        _guarded(self._record_duration)
        _guarded(self._span.end)

    def note(self, error: BaseException) -> None:
        """Classify an error before redis-py rewrites its text (a pipeline puts the command's arguments into it)."""
        self._noted += ((error, failure_of(error)),)

    def fail(self, error: BaseException) -> None:
        """Tell the outcome of a call that returns its error instead of raising it."""
        noted = next((failure for known, failure in self._noted if known is error), None)
        self._failure = noted or failure_of(error)

    def _start_span(self) -> trace.Span:
        telemetry, call = self._telemetry, self._call
        attributes = {**telemetry.server.attributes, semconv.DB_OPERATION_NAME: call.operation}
        if call.batch_size is not None:
            attributes[semconv.DB_OPERATION_BATCH_SIZE] = call.batch_size
        if call.stored_procedure is not None:
            attributes[semconv.DB_STORED_PROCEDURE_NAME] = call.stored_procedure
        if call.summary is not None:
            attributes[semconv.DB_QUERY_SUMMARY] = call.summary
        context = None if self._parent is None else trace.set_span_in_context(self._parent)
        return telemetry.tracer.start_span(
            call.span_name(telemetry.server.target),
            context,
            SpanKind.CLIENT,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        )

    def _add_query_text(self) -> None:
        # Not at creation: samplers do not need it, and a span that is not recorded must not pay for it.
        self._span.set_attribute(semconv.DB_QUERY_TEXT, self._call.query_text())

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


def _guarded(record: Callable[[], T]) -> T | None:
    """The one place where an exporter, a processor, a sampler or a view may raise; the caller's call goes on."""
    try:
        return record()
    except Exception as error:  # noqa: BLE001 - whatever they raise, Redis did not
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        if kind not in _reported:
            _reported.add(kind)
            # Neither its text nor its traceback: both may quote the attributes of the span.
            _logger.warning("Telemetry failed with %s; calls go on, further failures of this kind are not logged", kind)
        return None
