"""The recorder: one operation is one span and one histogram point, and what goes wrong in telemetry stays here."""

import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from contextvars import copy_context
from time import perf_counter, time_ns
from typing import Any, TypeVar

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

    The span is made when the outcome is known, and begins when the call did: of a batch of replies, all calls are then
    recorded one right after the other, which costs a fifth less than one here and one there.

    Args:
        telemetry: Where to record.
        call: What is called.
        called: The arguments of the command, or the commands of the batch.
        parent: The parent span; ``None`` means the one that is current now.
    """

    __slots__ = (
        "_began",
        "_call",
        "_called",
        "_context",
        "_failure",
        "_noted",
        "_parent",
        "_recorded",
        "_started",
        "_telemetry",
    )

    def __init__(self, telemetry: Telemetry, call: Call, called: Sequence[Any], parent: trace.Span | None) -> None:
        self._telemetry = telemetry
        self._call = call
        self._called = called
        self._parent = parent
        self._recorded = False
        self._failure: Failure | None = None
        self._noted: tuple[tuple[BaseException, Failure | None], ...] = ()
        self._context = copy_context()
        self._began = time_ns()
        self._started = perf_counter()

    async def observe(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call, record it, and return or raise what it did, the very same object."""
        error: BaseException | None = None
        try:
            result = await call
        except BaseException as caught:  # noqa: BLE001 - raised again below
            error = caught
        # Not in the except block: what an exporter logs there would show the call's error, which quotes arguments, as
        # the context of its own.
        if error is None:
            self._end(perf_counter())
            return result
        context = error.__context__
        now = perf_counter()
        try:
            self.fail(error)
            self._end(now)
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
        """Tell the outcome: the error that the call raises, or returns in its place."""
        noted = next((failure for known, failure in self._noted if known is error), None)
        self._failure = noted or failure_of(error)

    def answered(self, reply: object, now: float) -> None:
        """Record the call before its caller goes on; an error is the caller's to raise.

        Args:
            reply: The reply.
            now: When it was read, by the performance counter.
        """
        if not isinstance(reply, Exception):
            self._end(now)

    def _end(self, now: float) -> None:
        if not self._recorded:
            self._recorded = True
            self._context.run(self._record, now - self._started)

    def _record(self, elapsed: float) -> None:
        telemetry, call = self._telemetry, self._call
        span_attributes, point_attributes = call.span_attributes, call.point_attributes
        if self._failure is not None:
            failed = self._failure.attributes()
            span_attributes, point_attributes = {**span_attributes, **failed}, {**point_attributes, **failed}
        if telemetry.is_traced:
            try:
                self._trace(elapsed, span_attributes)
            except BaseException as trouble:  # noqa: BLE001 - see _report
                _report(trouble)
        if telemetry.is_measured:
            try:
                telemetry.operation_duration.record(elapsed, point_attributes)
            except BaseException as trouble:  # noqa: BLE001 - see _report
                _report(trouble)

    def _trace(self, elapsed: float, attributes: dict[str, Any]) -> None:
        began, failure = self._began, self._failure
        # A copy: a sampler may write into it, and what it is told of one call must not be told of the next. With the
        # text: samplers may decide by it (database-spans.md), and set later it costs a recorded span three times that.
        attributes = attributes.copy()
        if text := self._call.text_of(self._called):
            attributes[semconv.DB_QUERY_TEXT] = text
        span = self._telemetry.tracer.start_span(
            self._call.span_name,
            None if self._parent is None else trace.set_span_in_context(self._parent),
            SpanKind.CLIENT,
            attributes,
            start_time=began,
            record_exception=False,
            set_status_on_exception=False,
        )
        try:
            if failure is not None and failure.is_error:
                # The exception's text may hold arguments, so neither a description nor an exception event carries it.
                span.set_status(_ERROR)
        finally:
            span.end(began + int(elapsed * 1e9))


async def observed(
    telemetry: Telemetry, args: Sequence[Any], parent: trace.Span | None, call: Coroutine[Any, Any, T]
) -> T:
    """Await one command's call, and record it if anybody listens."""
    if not telemetry.is_heard():
        return await call
    return await Operation(telemetry, telemetry.command_call(args), args, parent).observe(call)


def _report(trouble: BaseException) -> None:
    """Take note of what an exporter, a processor, a sampler or a view has raised; the caller's call goes on.

    Whatever it is, Redis did not raise it: not even a cancellation is one.
    """
    if isinstance(trouble, KeyboardInterrupt | SystemExit):
        raise trouble
    kind = f"{type(trouble).__module__}.{type(trouble).__qualname__}"
    if kind not in _reported:
        _reported.add(kind)
        # Neither its text nor its traceback: both may quote the attributes of the span.
        text = "Telemetry failed with %s; calls go on, further failures of this kind are not logged"
        with suppress(Exception):  # what a logging filter raises
            _logger.warning(text, kind)
