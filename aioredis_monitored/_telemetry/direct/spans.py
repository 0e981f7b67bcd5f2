"""Finished spans, made by the SDK's own constructor and given to its processors, if these see no unfinished ones."""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, Final

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, Tracer
from opentelemetry.sdk.trace._tracer_metrics import NoOpTracerMetrics
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import _SPAN_KEY
from opentelemetry.trace.span import DEFAULT_TRACE_STATE

from aioredis_monitored._telemetry.direct.public import Exemplary, PublicSpans, explain
from aioredis_monitored._telemetry.direct.sampling import decision_of

_UNSET: Final = Status(StatusCode.UNSET)
_ERROR: Final = Status(StatusCode.ERROR)
_SAMPLED: Final = TraceFlags.SAMPLED
_RANDOM: Final = TraceFlags.RANDOM_TRACE_ID
# By their numbers: making one takes longer than all else that is done with it.
_FLAGS: Final = tuple(map(TraceFlags, range(4)))
_SAMPLE: Final = Decision.RECORD_AND_SAMPLE
_DROP: Final = Decision.DROP
_IGNORE_START: Final = [each.on_start for each in (SpanProcessor, SimpleSpanProcessor, BatchSpanProcessor)]
_IGNORE_ENDING: Final = [each._on_ending for each in (SpanProcessor, SimpleSpanProcessor, BatchSpanProcessor)]
# The others export, or are the application's own: they may look at the metrics.
_ONLY_QUEUE_ENDED: Final = [each.on_end for each in (SpanProcessor, BatchSpanProcessor)]


def _sees_unfinished_spans(processor: SpanProcessor) -> bool:
    """Return whether a processor does anything when a span starts or is about to end: it may alter the span."""
    return not (_has(processor, "on_start", _IGNORE_START) and _has(processor, "_on_ending", _IGNORE_ENDING))


def _only_queues_ended_spans(processor: SpanProcessor) -> bool:
    """Return whether a processor leaves an ended span to another thread, or to no one."""
    return _has(processor, "on_end", _ONLY_QUEUE_ENDED)


def _has(processor: SpanProcessor, name: str, methods: list[Any]) -> bool:
    """Return whether a processor's method is one of these, and neither its own nor what wraps one."""
    # What only looks like a processor may have none on its class.
    method = getattr(type(processor), name, None)
    return any(method is each for each in methods) and name not in getattr(processor, "__dict__", ())


def _reason_against(tracer: Tracer, multi: SpanProcessor, processors: tuple[SpanProcessor, ...]) -> str | None:
    """Return why the spans of a tracer must go the public way; ``None`` if they need not."""
    if type(multi) is not SynchronousMultiSpanProcessor:
        return f"the tracer provider has a {type(multi).__qualname__}"
    if tracer._span_limits.max_span_attribute_length is not None:
        return "span attributes have a length limit"
    if type(tracer._tracer_metrics) is not NoOpTracerMetrics:
        return "the SDK records metrics of its own spans"
    for processor in processors:
        if _sees_unfinished_spans(processor):
            return f"a span processor has an on_start of its own: {type(processor).__qualname__}"
    return None


class DirectSpans(PublicSpans):
    """Records finished spans of a tracer of the SDK; the public way, if a processor sees them unfinished.

    Args:
        tracer: The SDK's tracer.
    """

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(tracer)
        self._sdk_tracer = tracer
        self._look_again()

    def _look_again(self) -> None:
        """Look at what may have changed: processors are added while spans are recorded."""
        tracer = self._sdk_tracer
        multi, sampler, limits = tracer.span_processor, tracer.sampler, tracer._span_limits
        # Replaced when one is added, and never altered.
        processors: tuple[SpanProcessor, ...] = getattr(multi, "_span_processors", ())
        reason = _reason_against(tracer, multi, processors)
        decide = decision_of(sampler)
        if reason is not None:
            explain("Spans", reason)
        # At the end: after an error, it is looked at again.
        self._is_possible = reason is None
        self._decide = decide
        self._is_quiet = all(map(_only_queues_ended_spans, processors))
        self._multi, self._processors, self._sampler, self._limits = multi, processors, sampler, limits

    def record(  # noqa: PLR0912 - in one: every further call costs
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
        """Record a span, as ``PublicSpans`` does; the context of it must be the current one."""
        tracer = self._sdk_tracer
        multi = tracer.span_processor
        if (
            multi is not self._multi
            or getattr(multi, "_span_processors", ()) is not self._processors
            or tracer.sampler is not self._sampler
            or tracer._span_limits is not self._limits
        ):
            self._look_again()
        current = here.get(_SPAN_KEY) if here else None
        parent = current.get_span_context() if current is not None and isinstance(current, Span) else None
        if (
            not self._is_possible
            or links
            or self._limits.max_span_attribute_length is not None
            or not tracer._tracer_config.is_enabled
            or not (parent is None or type(parent) is SpanContext)
        ):
            return super().record(name, kind, make_attributes, elapsed, started_ns, here, links, is_error)
        ids = tracer.id_generator
        if parent is None or not parent.is_valid:
            parent, trace_id, trace_state = None, ids.generate_trace_id(), DEFAULT_TRACE_STATE
        else:
            trace_id, trace_state = parent.trace_id, parent.trace_state
        attributes: Mapping[str, Any] | None = None
        if self._decide is not None:
            # Before the attributes are made: those of a span that is dropped are for no one.
            decision = self._decide(trace_id, parent)
        else:
            self.before_others()
            result = self._sampler.should_sample(here, trace_id, name, kind, make_attributes(elapsed), ())
            decision, attributes = result.decision, result.attributes
            trace_state = DEFAULT_TRACE_STATE if result.trace_state is None else result.trace_state
        flags = _SAMPLED if decision is _SAMPLE else 0
        if ids.is_trace_id_random() if parent is None else parent.trace_flags & _RANDOM:
            flags |= _RANDOM
        span_id = ids.generate_span_id()
        if decision is _DROP:
            return None
        if type(ids) is RandomIdGenerator:
            # Its ids are valid, which is all that the constructor finds out.
            made: SpanContext = tuple.__new__(SpanContext, (trace_id, span_id, False, _FLAGS[flags], trace_state, True))
        else:
            made = SpanContext(trace_id, span_id, False, _FLAGS[flags], trace_state)
        limit = self._limits.max_span_attributes
        if attributes is None:
            bounded = _bounded(make_attributes(elapsed), limit)
        else:
            bounded = BoundedAttributes(limit, attributes)
        span = ReadableSpan(
            name,
            made,
            parent,
            tracer.resource,
            bounded,
            (),
            (),
            kind,
            tracer.instrumentation_info,
            _ERROR if is_error else _UNSET,
            started_ns,
            started_ns + int(elapsed * 1e9),
            tracer._instrumentation_scope,
        )
        if not self._is_quiet:
            self.before_others()
        multi.on_end(span)
        return made if flags & _SAMPLED else None


def _bounded(attributes: dict[str, Any], limit: int | None) -> BoundedAttributes:
    """Return the SDK's attributes of a span; they are this dictionary, unless it exceeds the limit."""
    if limit is not None and len(attributes) > limit:
        return BoundedAttributes(limit, attributes)
    # Its constructor would clean and copy what is clean and new.
    bounded = BoundedAttributes.__new__(BoundedAttributes)
    bounded._dict = attributes
    bounded.maxlen = limit
    bounded.dropped = 0
    bounded.max_value_len = None
    bounded._lock = Lock()
    bounded._immutable = True
    return bounded
