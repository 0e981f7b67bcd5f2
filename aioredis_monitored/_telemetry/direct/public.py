"""The public way to record finished spans and points: the API's, whatever implements it."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, Tracer

from aioredis_monitored._telemetry.guard import log_safely

_logged: set[str] = set()

_ERROR: Final = Status(StatusCode.ERROR)
_SAMPLED: Final = trace.TraceFlags.SAMPLED

# What a point's exemplar refers to: a sampled span, or its context if there is no more of it.
Exemplary = Span | SpanContext | None
# A point, its time in nanoseconds since the epoch, its context, and the span that it is about.
Measured = tuple[float, int, Context | None, Exemplary]


class Series:
    """The points of one instrument that have the same attributes.

    Attributes:
        attributes: Their attributes, which are never changed.
        generation: What ``targets`` were looked up for; ``None`` if they are unknown.
        targets: Where ``DirectPoints`` adds them up.
        is_batched: Whether the points of a batch may be added up one after the other.
        values: The points of a batch that are not added up yet.
        exemplars: Those of them that may be exemplars, with their time, context and span.
    """

    __slots__ = ("attributes", "exemplars", "generation", "is_batched", "targets", "values")

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self.generation: object = None
        self.targets: list[Any] = []
        self.is_batched = False
        self.values: list[float] = []
        self.exemplars: list[Measured] = []


class PublicPoints:
    """Records points of one instrument as its caller asks for it.

    Args:
        instrument: The instrument.
    """

    def __init__(self, instrument: Counter | Histogram) -> None:
        self._record: Callable[..., None] = instrument.add if isinstance(instrument, Counter) else instrument.record

    def record(self, value: float, series: Series, here: Context | None = None, span: Exemplary = None) -> None:
        """Record a point.

        Args:
            value: The point.
            series: Its attributes.
            here: Its context; default ``None``, for the current one.
            span: The span that it is about, if that is sampled and not the current one of the context.
        """
        if span is not None:
            here = trace.set_span_in_context(NonRecordingSpan(span) if isinstance(span, SpanContext) else span, here)
        self._record(value, series.attributes, here)

    # One of a batch: the end of the batch calls ``flush`` before any caller goes on.
    add = record

    def flush(self) -> None:
        """Record what ``add`` has left."""


class PublicSpans:
    """Records finished spans: starts and ends each.

    Args:
        tracer: Where they go.

    Attributes:
        before_others: Called before code that is not the SDK's own gets a span: processors and samplers may look at
            the points that were recorded until then.
    """

    before_others: Callable[[], object]

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self.before_others = _do_nothing

    def record(
        self,
        name: str,
        kind: SpanKind,
        make_attributes: Callable[[float], dict[str, Any]],
        elapsed: float,
        started_ns: int,
        here: Context,
        links: Sequence[Link] | None,
        is_error: bool,
    ) -> Exemplary:
        """Record a span and return it, or its context, if it is sampled.

        Args:
            name: Its name.
            kind: Its kind.
            make_attributes: Makes its attributes, a new dictionary, for ``elapsed``.
            elapsed: Its duration in seconds.
            started_ns: When it started, in nanoseconds since the epoch.
            here: The context, with its parent.
            links: Its links.
            is_error: Whether its status is an error. It has neither a description nor an exception event: the error's
                text may hold arguments.
        """
        self.before_others()
        # The attributes at the span's creation: samplers may decide by them (database-spans.md), and setting them later
        # costs a recorded span three times as much.
        span = self._tracer.start_span(name, here, kind, make_attributes(elapsed), links, started_ns)
        return end_span(span, started_ns + int(elapsed * 1e9), is_error=is_error)


def _do_nothing() -> None:
    pass


def end_span(span: Span, ended_ns: int, *, is_error: bool) -> Span | None:
    """End a span, also if its status cannot be set; return it if it is sampled."""
    try:
        if is_error:
            span.set_status(_ERROR)
    finally:
        span.end(ended_ns)
    return span if span.get_span_context().trace_flags & _SAMPLED else None


def explain(what: str, reason: str) -> None:
    """Log, once, why spans, or points as well, go the public way."""
    if reason not in _logged:
        _logged.add(reason)
        text = "%s go the OpenTelemetry API's way, which costs more than the direct one: %s"
        log_safely(logging.INFO, text, what, reason)
