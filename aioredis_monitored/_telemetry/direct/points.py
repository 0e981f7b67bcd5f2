"""Points, given to the SDK's own aggregations: those of a batch that have the same attributes all at once."""

from bisect import bisect_left
from math import inf
from threading import get_ident
from time import time_ns
from typing import Any, Final, NamedTuple

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, AlwaysOnExemplarFilter, Counter, Histogram
from opentelemetry.sdk.metrics._internal._view_instrument_match import _hash_attributes, _ViewInstrumentMatch
from opentelemetry.sdk.metrics._internal.aggregation import (
    _Aggregation,
    _DropAggregation,
    _ExplicitBucketHistogramAggregation,
)
from opentelemetry.sdk.metrics._internal.exemplar import AlignedHistogramBucketExemplarReservoir
from opentelemetry.sdk.metrics._internal.measurement import Measurement
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext
from opentelemetry.trace.propagation import _SPAN_KEY

from aioredis_monitored._telemetry.direct.public import Exemplary, Measured, PublicPoints, Series
from aioredis_monitored._telemetry.guard import log_error

_SAMPLED: Final = trace.TraceFlags.SAMPLED
# More series than an application has; all are looked up again then.
_MAX_SERIES: Final = 4_096


class _Target(NamedTuple):
    """Where the points of a series are added up for one reader and one view.

    Attributes:
        match: The view's part of the instrument.
        key: What the series is known by there.
        attributes: Those of the attributes that the view keeps.
        aggregation: Adds them up; ``None`` if it has to be looked up for each point, because each collection begins
            with a new one (delta temporality), or because there was no room for another one.
        is_explicit: Whether that is a histogram with explicit buckets, whose exemplars are the last ones.
    """

    match: _ViewInstrumentMatch
    key: Any
    attributes: dict[str, Any]
    aggregation: _Aggregation[Any] | None
    is_explicit: bool


class DirectPoints(PublicPoints):
    """Records points of an instrument of the SDK.

    A series is looked up after its first point, which goes the public way and creates what there is to be found.

    Args:
        instrument: The SDK's instrument, whose exemplar filter and reservoirs are the SDK's own.
    """

    def __init__(self, instrument: Counter | Histogram) -> None:
        super().__init__(instrument)
        self._instrument = instrument
        consumer: Any = instrument._measurement_consumer
        self._consumer = consumer
        exemplar_filter = type(consumer._sdk_config.exemplar_filter)
        self._offers_none = exemplar_filter is AlwaysOffExemplarFilter
        self._offers_all = exemplar_filter is AlwaysOnExemplarFilter
        # The series with points that are not added up yet, and the thread that has added them.
        self._dirty: list[Series] = []
        self._thread = 0
        self._start_generation()

    def _start_generation(self) -> None:
        # Readers that come and go replace it, and never alter it.
        self._storages: Any = self._consumer._reader_storages
        self._generation = object()
        self._series: dict[Any, Series] = {}

    def add(self, value: float, series: Series, here: Context | None = None, span: Exemplary = None) -> None:
        """Record a point of a batch: at once, or with the next ``flush``."""
        if (
            series.generation is not self._generation
            or self._consumer._reader_storages is not self._storages
            or not series.is_batched
            or not 0.0 <= value < inf
        ):
            self.record(value, series, here, span)
            return
        # First: a span of the application may raise.
        is_offered = not self._offers_none and (span is not None or self._is_offered(here))
        values = series.values
        if not values:
            if not self._dirty:
                self._thread = get_ident()
            self._dirty.append(series)
        values.append(value)
        if is_offered:
            series.exemplars.append((value, time_ns(), here, span))

    def record(self, value: float, series: Series, here: Context | None = None, span: Exemplary = None) -> None:
        """Record a point at once."""
        if self._dirty and get_ident() == self._thread:
            self.flush()
        if (
            series.generation is not self._generation
            or self._consumer._reader_storages is not self._storages
            or not 0.0 <= value < inf
        ):
            super().record(value, series, here, span)
            self._look_up(series)
        elif self._instrument._is_enabled():
            here = context.get_current() if here is None else here
            is_offered = not self._offers_none and (span is not None or self._is_offered(here))
            self._aggregate(series, [value], [(value, time_ns(), here, span)], is_offered=is_offered)

    def _is_offered(self, here: Context | None) -> bool:
        """Return whether the SDK's filter lets a point without a span of its own be an exemplar."""
        if self._offers_all:
            return True
        current = here.get(_SPAN_KEY) if here else None
        # None first: asking an abstract class costs two calls.
        return (
            current is not None
            and isinstance(current, Span)
            and bool(current.get_span_context().trace_flags & _SAMPLED)
        )

    def _look_up(self, series: Series) -> None:
        """Find where the points of a series are added up."""
        if self._consumer._reader_storages is not self._storages or len(self._series) >= _MAX_SERIES:
            self._start_generation()
        if not self._instrument._is_enabled():
            return
        targets = []
        is_batched = True
        for storage in self._storages.values():
            matches = storage._instrument_view_instrument_matches.get(self._instrument)
            if matches is None:
                # The SDK has ignored that point.
                return
            for match in matches:
                kept = match._view._attribute_keys
                attributes = {name: value for name, value in series.attributes.items() if kept is None or name in kept}
                key = _hash_attributes(attributes)
                aggregation = None if match._reset_on_collect else match._attributes_aggregation.get(key)
                aggregator = type(match._aggregation)
                if aggregator is _DropAggregation:
                    continue
                reservoir = type(match._aggregation._reservoir)
                is_explicit = (
                    aggregator is _ExplicitBucketHistogramAggregation
                    and reservoir is AlignedHistogramBucketExemplarReservoir
                )
                # Sums of floats, and the order in which attribute sets are exported, depend on the order of the points.
                is_batched = is_batched and is_explicit and kept is None and aggregation is not None
                targets.append(_Target(match, key, attributes, aggregation, is_explicit))
        place = _hash_attributes(series.attributes)
        other = self._series.setdefault(place, series)
        if other is not series:
            # The same attributes in another order, or the recorder has forgotten the other one.
            other.is_batched = is_batched = False
        series.targets, series.is_batched, series.generation = targets, is_batched, self._generation

    def flush(self) -> None:
        """Add up what ``add`` has left."""
        dirty = self._dirty
        if not dirty:
            return
        self._dirty = []
        is_enabled = self._instrument._is_enabled()
        for series in dirty:
            values, exemplars = series.values, series.exemplars
            series.values = []
            if exemplars:
                series.exemplars = []
            if is_enabled:
                self._aggregate(series, values, exemplars, is_offered=True)

    def _aggregate(
        self,
        series: Series,
        values: list[float],
        measured: list[Measured],
        *,
        is_offered: bool,
    ) -> None:
        """Add up points of a series for all readers and views.

        Args:
            series: The series.
            values: The points.
            measured: Those that may be exemplars; the only point, if one of the targets has no explicit buckets.
            is_offered: Whether they may be exemplars.
        """
        for target in series.targets:
            match, aggregation = target.match, target.aggregation
            if aggregation is not None:
                self._add_up(target, aggregation, series, values, measured, is_offered)
                continue
            # A collection may discard the aggregations: none may come between.
            with match._lock:
                aggregation = match._attributes_aggregation.get(target.key)
                if aggregation is None:
                    aggregation = match._get_or_create_aggregation(target.key, dict(target.attributes))
                self._add_up(target, aggregation, series, values, measured, is_offered)

    def _add_up(
        self,
        target: _Target,
        aggregation: Any,
        series: Series,
        values: list[float],
        measured: list[Measured],
        is_offered: bool,
    ) -> None:
        if not target.is_explicit:
            [(value, now, here, span)] = measured
            measurement = Measurement(value, now, self._instrument, _with_span(here, span), series.attributes)
            aggregation.aggregate(measurement, is_offered)
            return
        boundaries = aggregation._boundaries
        with aggregation._lock:
            counts = aggregation._value
            if counts is None:
                counts = aggregation._value = aggregation._get_empty_bucket_counts()
            total = aggregation._sum
            for value in values:
                total += value
                counts[bisect_left(boundaries, value)] += 1
            aggregation._sum = total
            if aggregation._record_min_max:
                aggregation._min = min(aggregation._min, *values)
                aggregation._max = max(aggregation._max, *values)
        if measured and is_offered:
            if not self._offers_all and len(measured) > 1:
                # Of each bucket, the last one stays. Where all points are offered, those without a span leave it the
                # span of the one before.
                measured = list({bisect_left(boundaries, each[0]): each for each in measured}.values())
            for value, now, here, span in measured:
                try:
                    aggregation._reservoir.offer(value, now, series.attributes, _with_span(here, span))
                except BaseException as error:  # noqa: BLE001 - see log_error
                    # The points of others come after it.
                    log_error(error)


def _with_span(here: Context | None, span: Exemplary) -> Context:
    here = here or Context()
    if span is None:
        return here
    return Context({**here, _SPAN_KEY: NonRecordingSpan(span) if isinstance(span, SpanContext) else span})
