"""Whether the SDK is one that this room knows: digests of the functions whose work it does itself, and of classes.

A comparison of versions would not do: the SDK's insides change in most minor releases, and once in a patch, and other
tools replace its functions at run time. A digest covers what a function does, and not its text: its code, its names and
what these name now, its constants and its defaults. They are of bytecode, and hence one for each minor version of
Python.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from operator import is_
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final

_METRICS: Final = "opentelemetry.sdk.metrics._internal"
_EXEMPLAR: Final = f"{_METRICS}.exemplar"

# Of a default value, in its text.
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

# The parts of a function that can be replaced.
_MUTABLE: Final = ("__code__", "__defaults__", "__kwdefaults__")

# What the direct way stands for, by module.
RELIED_ON: Final[dict[str, tuple[str, ...]]] = {
    "opentelemetry.attributes": (
        "BoundedAttributes.__init__",
        "BoundedAttributes.__setitem__",
        "BoundedAttributes._set_items",
        "BoundedAttributes._setitem_locked",
        "BoundedAttributes.copy",
        "_clean_attribute_value",
    ),
    "opentelemetry.context": ("get_current", "get_value", "set_value"),
    "opentelemetry.trace.propagation": ("get_current_span", "set_span_in_context"),
    "opentelemetry.trace.span": ("SpanContext.__new__", "NonRecordingSpan.get_span_context"),
    "opentelemetry.sdk.trace": (
        "ReadableSpan.__init__",
        "_Span",
        "_Span.__init__",
        "_Span.__new__",
        "_Span._new_events",
        "_Span._new_links",
        "_Span._readable_span",
        "_Span.end",
        "_Span.get_span_context",
        "_Span.set_status",
        "_Span.start",
        "Span",
        "SpanProcessor._on_ending",
        "SpanProcessor.on_end",
        "SpanProcessor.on_start",
        "SynchronousMultiSpanProcessor._on_ending",
        "SynchronousMultiSpanProcessor.add_span_processor",
        "SynchronousMultiSpanProcessor.on_end",
        "SynchronousMultiSpanProcessor.on_start",
        "Tracer.__init__",
        "Tracer._is_enabled",
        "Tracer._set_resource",
        "Tracer._set_tracer_config",
        "Tracer.start_span",
    ),
    "opentelemetry.sdk.trace._tracer_metrics": ("NoOpTracerMetrics.start_span", "noop"),
    "opentelemetry.sdk.trace.export": (
        "BatchSpanProcessor.on_end",
        "BatchSpanProcessor.on_start",
        "SimpleSpanProcessor.on_start",
    ),
    "opentelemetry.sdk.trace.id_generator": (
        "RandomIdGenerator.generate_span_id",
        "RandomIdGenerator.generate_trace_id",
        "RandomIdGenerator.is_trace_id_random",
    ),
    "opentelemetry.sdk.trace.sampling": (
        "Decision.is_recording",
        "Decision.is_sampled",
        "ParentBased.should_sample",
        "SamplingResult.__init__",
        "StaticSampler.should_sample",
        "TraceIdRatioBased.should_sample",
        "_get_parent_trace_state",
    ),
    f"{_METRICS}._view_instrument_match": (
        "_ViewInstrumentMatch._get_or_create_aggregation",
        "_ViewInstrumentMatch.collect",
        "_ViewInstrumentMatch.consume_measurement",
        "_hash_attributes",
    ),
    f"{_METRICS}.aggregation": (
        "_Aggregation._collect_exemplars",
        "_Aggregation._sample_exemplar",
        "_DropAggregation.aggregate",
        "_ExplicitBucketHistogramAggregation._get_empty_bucket_counts",
        "_ExplicitBucketHistogramAggregation.aggregate",
        "_ExplicitBucketHistogramAggregation.collect",
    ),
    f"{_EXEMPLAR}.exemplar_filter": (
        "AlwaysOffExemplarFilter.should_sample",
        "AlwaysOnExemplarFilter.should_sample",
        "TraceBasedExemplarFilter.should_sample",
    ),
    f"{_EXEMPLAR}.exemplar_reservoir": (
        "AlignedHistogramBucketExemplarReservoir._find_bucket_index",
        "ExemplarBucket.collect",
        "ExemplarBucket.offer",
        "FixedSizeExemplarReservoirABC.collect",
        "FixedSizeExemplarReservoirABC.offer",
    ),
    f"{_METRICS}.instrument": ("Counter.add", "Histogram.record", "_Synchronous._is_enabled"),
    f"{_METRICS}.measurement": ("Measurement.__init__", "Measurement.__post_init__"),
    f"{_METRICS}.measurement_consumer": (
        "SynchronousMeasurementConsumer.add_metric_reader",
        "SynchronousMeasurementConsumer.collect",
        "SynchronousMeasurementConsumer.consume_measurement",
        "SynchronousMeasurementConsumer.remove_metric_reader",
    ),
    f"{_METRICS}.metric_reader_storage": (
        "MetricReaderStorage._get_or_init_view_instrument_match",
        "MetricReaderStorage._new_view_instrument_match",
        "MetricReaderStorage.collect",
        "MetricReaderStorage.consume_measurement",
    ),
}


# All that is relied on, as it was when it was last found to be known; where it looks names up, and what was there then.
_found_known: list[Any] = []
_places: list[tuple[dict[str, Any], str]] = []
_found_there: list[Any] = []


def digests() -> dict[str, str]:
    """Return the digests of what is relied on, as it is now; that of something missing is empty."""
    return {name: _digest(found) for name, found in _relied_on()}


def unknown_part() -> str | None:
    """Return the first part that is not as it was when the digests were made; ``None`` if all of them are."""
    now = [part for _, found in _relied_on() for part in (found, *(getattr(found, name, None) for name in _MUTABLE))]
    # Every pool asks, and digests take a millisecond.
    if _are_same(now, _found_known) and _are_same([names.get(name) for names, name in _places], _found_there):
        return None
    known = _known()
    unknown = next((name for name, each in digests().items() if not each or each not in known.get(name, ())), None)
    if unknown is None:
        _found_known[:] = now
        _places[:] = [place for _, found in _relied_on() for place in _places_of(found)]
        _found_there[:] = [names.get(name) for names, name in _places]
    return unknown


def _are_same(some: list[Any], others: list[Any]) -> bool:
    # What wraps something else may equal it.
    return len(some) == len(others) and all(map(is_, some, others))


def _known() -> dict[str, list[str]]:
    try:
        everything = json.loads(files(__package__).joinpath("digests.json").read_text("utf-8"))
    except (OSError, ValueError):
        # What bundles an application may leave out files of data.
        return {}
    known: dict[str, list[str]] = everything.get(f"{sys.version_info.major}.{sys.version_info.minor}", {})
    return known


def _relied_on() -> Iterator[tuple[str, Any]]:
    for module, names in RELIED_ON.items():
        for name in names:
            yield f"{module}.{name}", _look_up(module, name)


def _look_up(module: str, name: str) -> Any:
    try:
        found: Any = sys.modules.get(module) or import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (AttributeError, ImportError):
        return None
    return found


def _digest(found: Any) -> str:
    # Not by isinstance: what wraps a function or a class passes for one.
    if issubclass(type(found), type):
        content = [repr((found.__module__, [each.__qualname__ for each in found.__mro__], sorted(vars(found))))]
    elif type(found) is FunctionType:
        content = list(_parts_of(found))
    else:
        return ""
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]


def _parts_of(function: FunctionType) -> Iterator[str]:
    for defaults in (function.__defaults__, function.__kwdefaults__):
        yield _ADDRESS.sub("", repr(defaults))
    yield from _parts_of_code(function.__code__)
    yield from sorted(
        f"{names['__name__']} {name} {_description(names[name])}"
        for names, name in _places_of(function)
        if name in names
    )
    for cell in function.__closure__ or ():
        if type(cell.cell_contents) is FunctionType:
            # What a decorator wraps.
            yield from _parts_of(cell.cell_contents)


def _places_of(function: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield where a function looks up the names in its code: in its module, and by way of it in other modules."""
    if type(function) is not FunctionType:
        return
    names, own = dict.fromkeys(_names_in(function.__code__)), function.__globals__
    for name in names:
        # Also what is not there: it is the interpreter's own, until something is put in front of it.
        yield own, name
        if isinstance(module := own.get(name), ModuleType):
            # Not what is there only if it was imported.
            others = (other for other in names if not isinstance(vars(module).get(other, module), ModuleType))
            yield from ((vars(module), other) for other in others)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _description(thing: Any) -> str:
    """Return what a thing is; of most objects, only the class."""
    kind = type(thing)
    if kind is ModuleType:
        return str(thing.__name__)
    named = thing if issubclass(kind, type | FunctionType | BuiltinFunctionType) else kind
    text = f"{kind.__qualname__} {named.__module__}.{named.__qualname__}"
    if kind in {bool, float, int}:
        return f"{text} {thing}"
    if kind is FunctionType and named.__module__.startswith("opentelemetry."):
        # A replacement may have its name. Python's own functions differ between patch releases.
        return "\n".join([text, *_parts_of_code(thing.__code__)])
    return text


def _parts_of_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts_of_code(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        else:
            yield repr(constant)
