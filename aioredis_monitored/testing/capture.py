"""Captured telemetry: an SDK that keeps spans and metrics in memory, in forms that tests can compare."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, InMemoryMetricReader, MetricReader, Sum
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from aioredis_monitored._telemetry import semconv

T = TypeVar("T")


class MetricSeries(NamedTuple):
    """A data point of the SDK.

    Attributes:
        metric: The name of the metric.
        point: The data point.
        adds_up: Whether the metric counts events from the start; gauges and up/down counters show the current state.
    """

    metric: str
    point: Any
    adds_up: bool

    @property
    def amount(self) -> float:
        """The number of measurements of a histogram, or the value of any other metric."""
        amount: float = self.point.count if isinstance(self.point, HistogramDataPoint) else self.point.value
        return amount

    def since(self, before: Self) -> Self:
        """Return the series without what an earlier one contains; the minimum and maximum of the rest are NaN."""
        now, earlier = self.point, before.point
        if not self.adds_up:
            return self
        if not isinstance(now, HistogramDataPoint):
            return self._replace(point=replace(now, value=now.value - earlier.value))
        rest = replace(
            now,
            count=now.count - earlier.count,
            sum=now.sum - earlier.sum,
            bucket_counts=[n - e for n, e in zip(now.bucket_counts, earlier.bucket_counts, strict=True)],
            min=math.nan,
            max=math.nan,
        )
        return self._replace(point=rest)


class Recording:
    """Spans and metrics from its start on; a context manager, after which it does not change.

    Args:
        read_spans: Returns the spans so far.
        read_series: Returns the data points so far.
    """

    def __init__(
        self,
        read_spans: Callable[[], tuple[ReadableSpan, ...]],
        read_series: Callable[[], Mapping[Hashable, MetricSeries]],
    ) -> None:
        self._read_spans = read_spans
        self._read_series = read_series

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, in the order of their ends."""
        return self._read_spans()

    def span(self, name: str) -> ReadableSpan:
        """Return the only span with this name, with or without the server's address, or of this operation (``GET``).

        Raises:
            AssertionError: There is no such span, or more than one; the text shows what was recorded.
        """
        found = [span for span in self.spans if name in _names(span)]
        return _only(found, f"spans {name!r}", self.tree(semconv.DB_QUERY_TEXT, semconv.ERROR_TYPE))

    def tree(self, *attributes: str) -> str:
        """Return the spans as text, a line for each in the order of their starts, children below their parents.

        A line has the name without the server's address, whose port differs from run to run, the kind unless it is
        ``CLIENT``, the status if it is ``ERROR``, and attributes: ``LPUSH status=ERROR error.type=WRONGTYPE``.

        Args:
            attributes: The names of the attributes to show where a span has them.
        """
        spans = sorted(self.spans, key=lambda span: (span.start_time or 0, span.context.span_id))
        known = {span.context.span_id for span in spans}
        children: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
        for span in spans:
            parent = span.parent.span_id if span.parent else None
            # The parent may not have ended, or may be recorded elsewhere.
            children[parent if parent in known else None].append(span)

        def lines(parent: int | None, indent: str) -> Iterator[str]:
            for span in children[parent]:
                yield indent + line_of(span, attributes)
                yield from lines(span.context.span_id, indent + "  ")

        return "\n".join(lines(None, ""))

    def points(self, name: str) -> list[Any]:
        """Return the SDK's data points of the metric ``name``, one for each set of attributes.

        Points of histograms have ``count`` and ``sum``, points of counters and gauges have ``value``.
        """
        return [series.point for series in self._read_series().values() if series.metric == name]

    def point(self, name: str, attributes: Mapping[str, Any] | None = None) -> Any:
        """Return the only point of the metric ``name`` whose attributes include these.

        Raises:
            AssertionError: There is no such point, or more than one; the text shows what was recorded.
        """
        wanted = dict(attributes or {})
        found = [point for point in self.points(name) if wanted.items() <= point.attributes.items()]
        recorded = (
            f"{_words(each.metric, each.point.attributes)}: {each.amount}" for each in self._read_series().values()
        )
        return _only(found, f"points {_words(repr(name), wanted)}", "\n".join(recorded))

    def tally(self, name: str, *attributes: str) -> dict[str, float]:
        """Return the amounts of the metric ``name`` by the values of these attributes: ``{"GET": 2, "GET ERR": 1}``.

        The amount of a histogram is the number of its measurements, that of a counter or a gauge its value.
        """
        amounts: defaultdict[str, float] = defaultdict(int)
        for series in self._read_series().values():
            if series.metric == name:
                values = (series.point.attributes.get(attribute) for attribute in attributes)
                amounts[" ".join(str(value) for value in values if value is not None)] += series.amount
        return dict(amounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        spans, series = self._read_spans(), self._read_series()
        self._read_spans = lambda: spans
        self._read_series = lambda: series


def _only(found: Sequence[T], wanted: str, recorded: str) -> T:
    if len(found) != 1:
        raise AssertionError(f"{len(found)} {wanted} instead of one; recorded:\n{recorded or 'nothing'}")
    return found[0]


def _names(span: ReadableSpan) -> set[Any]:
    return {span.name, _title(span), (span.attributes or {}).get(semconv.DB_OPERATION_NAME)}


def _title(span: ReadableSpan) -> str:
    address = (span.attributes or {}).get(semconv.SERVER_ADDRESS)
    return span.name.partition(f" {address}:")[0]


def line_of(span: ReadableSpan, attributes: Sequence[str]) -> str:
    """Return the line of a span, as ``Recording.tree`` shows it."""
    shown: dict[str, Any] = {}
    if span.kind is not SpanKind.CLIENT:
        shown["kind"] = span.kind.name
    if span.status.status_code is StatusCode.ERROR:
        shown["status"] = span.status.status_code.name
    values = span.attributes or {}
    return _words(_title(span), shown | {name: values[name] for name in attributes if name in values})


def _words(name: str, attributes: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in attributes.items())])


class TelemetryCapture(Recording):
    """A separate SDK that keeps spans and metrics in memory; give its ``providers`` to a pool.

    Use it as a context manager, which shuts the providers down at its end; the captured telemetry remains.

    Args:
        metric_readers: Further readers, for metrics that are also exported.
        sampler: Decides which spans are kept; a sampler that decides by trace ids needs random ones. Default: all
            spans are kept.
        id_generator: Generates the ids of spans and traces. Default: both are 1, 2, 3, …

    Attributes:
        tracer_provider: Where spans go.
        meter_provider: Where metrics go.
    """

    def __init__(
        self, *metric_readers: MetricReader, sampler: Sampler = ALWAYS_ON, id_generator: IdGenerator | None = None
    ) -> None:
        exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        super().__init__(exporter.get_finished_spans, self._series)
        self.tracer_provider = TracerProvider(sampler=sampler, id_generator=id_generator or _CountingIds())
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        self.meter_provider = MeterProvider(metric_readers=[self._reader, *metric_readers])

    @property
    def providers(self) -> dict[str, Any]:
        """Both providers, as the keyword arguments of a pool."""
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def block(self) -> Recording:
        """Return a recording of a block, also for pools that were made before it: ``with capture.block() as block:``.

        A call is recorded when it ends, its span and its point together, and belongs to the block in which it ends.
        Counters and histograms start at zero; gauges and up/down counters show the current state. The ``min`` and
        ``max`` of a point that existed before the block are NaN.
        """
        first, before = len(self.spans), self._read_series()

        def added() -> dict[Hashable, MetricSeries]:
            now = {key: s.since(before[key]) if key in before else s for key, s in self._read_series().items()}
            return {key: series for key, series in now.items() if series.amount or not series.adds_up}

        return Recording(lambda: self.spans[first:], added)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(exc_type, exc, traceback)
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def _series(self) -> dict[Hashable, MetricSeries]:
        data = self._reader.get_metrics_data()
        return {
            (scope.scope, metric.name, frozenset((point.attributes or {}).items())): MetricSeries(
                metric.name,
                point,
                isinstance(metric.data, Histogram) or (isinstance(metric.data, Sum) and metric.data.is_monotonic),
            )
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }


class _CountingIds(IdGenerator):
    """Generates the same ids in every run; ``next`` of a ``count`` is atomic."""

    def __init__(self) -> None:
        self._span_ids, self._trace_ids = count(1), count(1)

    def generate_span_id(self) -> int:
        return next(self._span_ids)

    def generate_trace_id(self) -> int:
        return next(self._trace_ids)
