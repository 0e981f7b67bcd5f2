"""Which way spans and points go, decided when a provider appears."""

import sys
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.metrics import Counter, Histogram, NoOpCounter, NoOpHistogram
from opentelemetry.trace import NoOpTracer, Tracer

from aioredis_monitored._telemetry.direct import sdk
from aioredis_monitored._telemetry.direct.public import PublicPoints, PublicSpans, explain

_SDK_TRACE: Final = "opentelemetry.sdk.trace"
_SDK_INSTRUMENT: Final = "opentelemetry.sdk.metrics._internal.instrument"
_SDK_AGGREGATION: Final = "opentelemetry.sdk.metrics._internal.aggregation"


class Recording:
    """The way that the spans and points of one pool go.

    Args:
        spans: Records spans.
        has_direct_points: Whether points go directly.

    Attributes:
        spans: Records spans.
    """

    def __init__(self, spans: PublicSpans, *, has_direct_points: bool) -> None:
        self.spans = spans
        self._has_direct_points = has_direct_points
        self._points: dict[Counter | Histogram, PublicPoints] = {}

    def points(self, instrument: Counter | Histogram) -> PublicPoints:
        """Return what records points of an instrument; it is the same each time."""
        known = self._points.get(instrument)
        if known is None:
            known = self._points[instrument] = self._new_points(instrument)
        return known

    def _new_points(self, instrument: Counter | Histogram) -> PublicPoints:
        real = _real_instrument(instrument)
        if not self._has_direct_points or real is None or _is_altered(real, _SDK_INSTRUMENT, ("add", "record")):
            return PublicPoints(instrument)
        # Loaded only with the SDK that it knows.
        from aioredis_monitored._telemetry.direct.points import DirectPoints  # noqa: PLC0415

        return DirectPoints(real)


def bind(tracer: Tracer, histogram: Histogram, *, is_direct: bool) -> Recording:
    """Return the way for a tracer and the instruments of a meter provider.

    If the direct way cannot be taken, a log line says why. Where points cannot go directly, spans do not either: what
    the SDK's exemplars see of a span must not depend on the way that it went. Later, processors and limits may send
    spans, and not points, the public way.

    Args:
        tracer: The tracer, or the API's stand-in for one that is set later.
        histogram: One of the instruments.
        is_direct: Whether the direct way is allowed.
    """
    real_tracer, real_histogram = _real_tracer(tracer), _real_instrument(histogram)
    if not is_direct or (real_tracer is None and real_histogram is None):
        return Recording(PublicSpans(tracer), has_direct_points=False)
    if (reason := _reason_against(real_tracer, real_histogram)) is not None:
        explain("Spans and points", reason)
        return Recording(PublicSpans(tracer), has_direct_points=False)
    spans = PublicSpans(tracer)
    if real_tracer is not None:
        from aioredis_monitored._telemetry.direct.spans import DirectSpans  # noqa: PLC0415 - as above

        spans = DirectSpans(real_tracer)
    return Recording(spans, has_direct_points=real_histogram is not None)


def _real_tracer(tracer: Tracer) -> Any:
    """Return the tracer that spans go to; ``None`` if they go nowhere, so far."""
    real = getattr(tracer, "_tracer", None) if isinstance(tracer, trace.ProxyTracer) else tracer
    return None if isinstance(real, NoOpTracer) else real


def _real_instrument(instrument: Counter | Histogram) -> Any:
    """Return the instrument that points go to; ``None`` if they go nowhere, so far."""
    real = getattr(instrument, "_real_instrument", instrument)
    return None if isinstance(real, NoOpHistogram | NoOpCounter) else real


def _reason_against(tracer: Any, histogram: Any) -> str | None:
    """Return why the direct way cannot be taken; ``None`` if it can."""
    if tracer is not None and _is_altered(tracer, _SDK_TRACE, ("start_span",)):
        return f"the tracer is not the SDK's own: {type(tracer).__qualname__}"
    if histogram is not None and _is_altered(histogram, _SDK_INSTRUMENT, ("record",)):
        return f"the meter's instruments are not the SDK's own: {type(histogram).__qualname__}"
    if (unknown := sdk.unknown_part()) is not None:
        return f"this version of the SDK is not known, or was altered: {unknown}"
    return None if histogram is None else _reason_against_points(histogram)


def _is_altered(thing: Any, module: str, methods: tuple[str, ...]) -> bool:
    """Return whether a thing is of a class that the SDK's module does not define, or has methods of its own."""
    kind = type(thing)
    return (
        kind.__module__ != module
        or getattr(sys.modules.get(module), kind.__qualname__, None) is not kind
        or not getattr(thing, "__dict__", {}).keys().isdisjoint(methods)
    )


def _reason_against_points(histogram: Any) -> str | None:
    from opentelemetry.sdk.metrics import (  # noqa: PLC0415 - loaded only if it is in use
        AlwaysOffExemplarFilter,
        AlwaysOnExemplarFilter,
        TraceBasedExemplarFilter,
    )
    from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer  # noqa: PLC0415
    from opentelemetry.sdk.metrics._internal.view import _default_reservoir_factory  # noqa: PLC0415

    consumer = histogram._measurement_consumer
    if type(consumer) is not SynchronousMeasurementConsumer:
        return f"the meter provider has a consumer of its own: {type(consumer).__qualname__}"
    config = consumer._sdk_config
    if type(config.exemplar_filter) not in {AlwaysOffExemplarFilter, AlwaysOnExemplarFilter, TraceBasedExemplarFilter}:
        return f"the meter provider has an exemplar filter of its own: {type(config.exemplar_filter).__qualname__}"
    if any(view._exemplar_reservoir_factory is not _default_reservoir_factory for view in config.views):
        return "a view has an exemplar reservoir of its own"
    aggregations = [view._aggregation for view in config.views]
    for storage in consumer._reader_storages.values():
        aggregations += storage._instrument_class_aggregation.values()
    for aggregation in aggregations:
        # It may choose the reservoir as well.
        if type(aggregation).__module__ != _SDK_AGGREGATION:
            return f"a view or a reader has an aggregation of its own: {type(aggregation).__qualname__}"
    return None
