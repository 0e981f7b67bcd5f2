"""Captured telemetry: an SDK whose spans and metrics stay in memory, in a form that tests compare."""

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
    """A data point of the SDK, and whether its metric adds up or, as gauges do, tells how things are now."""

    metric: str
    point: Any
    adds_up: bool

    @property
    def amount(self) -> float:
        """The number of a histogram's measurements, the value of anything else."""
        amount: float = self.point.count if isinstance(self.point, HistogramDataPoint) else self.point.value
        return amount

    def since(self, before: Self) -> Self:
        """The same without what there was before; nobody knows the extremes of the rest."""
        now, then = self.point, before.point
        if not self.adds_up:
            return self
        if not isinstance(now, HistogramDataPoint):
            return self._replace(point=replace(now, value=now.value - then.value))
        rest = replace(
            now,
            count=now.count - then.count,
            sum=now.sum - then.sum,
            bucket_counts=[n - t for n, t in zip(now.bucket_counts, then.bucket_counts, strict=True)],
            min=math.nan,
            max=math.nan,
        )
        return self._replace(point=rest)


class Recording:
    """Spans and metrics from its beginning on; a context manager, at whose end it stays as it is.

    Args:
        read_spans: The spans so far.
        read_series: The data points so far.
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
        """The spans that have ended, in the order in which they did."""
        return self._read_spans()

    def span(self, name: str) -> ReadableSpan:
        """The one span of this name, with or without the server's address, or of this operation (``GET``).

        Raises:
            AssertionError: There is none, or there are several; it shows what was recorded.
        """
        found = [span for span in self.spans if name in _names(span)]
        return _only(found, f"spans {name!r}", self.tree(semconv.DB_QUERY_TEXT, semconv.ERROR_TYPE))

    def tree(self, *attributes: str) -> str:
        """The spans as text, a line for each in the order in which they began, children indented under their parents.

        A line is the name without the server's address, as ports differ from run to run; then the kind unless it is
        ``CLIENT``, the status if it is ``ERROR``, and the attributes: ``LPUSH status=ERROR error.type=WRONGTYPE``.

        Args:
            attributes: The names of the attributes to show, of the spans that have them.
        """
        spans = sorted(self.spans, key=lambda span: (span.start_time or 0, span.context.span_id))
        known = {span.context.span_id for span in spans}
        children: defaultdict[int | None, list[ReadableSpan]] = defaultdict(list)
        for span in spans:
            parent = span.parent.span_id if span.parent else None
            # One that has not ended, or was recorded elsewhere, is none.
            children[parent if parent in known else None].append(span)

        def lines(parent: int | None, indent: str) -> Iterator[str]:
            for span in children[parent]:
                yield indent + _line(span, attributes)
                yield from lines(span.context.span_id, indent + "  ")

        return "\n".join(lines(None, ""))

    def points(self, name: str) -> list[Any]:
        """The SDK's data points of the metric ``name``, one for each set of attributes; none if nothing was measured.

        Those of histograms have ``count`` and ``sum``, those of counters and gauges have ``value``.
        """
        return [series.point for series in self._read_series().values() if series.metric == name]

    def point(self, name: str, attributes: Mapping[str, Any] | None = None) -> Any:
        """The one point of the metric ``name`` whose attributes include these.

        Raises:
            AssertionError: There is none, or there are several; it shows what was recorded.
        """
        wanted = dict(attributes or {})
        found = [point for point in self.points(name) if wanted.items() <= point.attributes.items()]
        recorded = (
            f"{_words(each.metric, each.point.attributes)}: {each.amount}" for each in self._read_series().values()
        )
        return _only(found, f"points {_words(repr(name), wanted)}", "\n".join(recorded))

    def tally(self, name: str, *attributes: str) -> dict[str, float]:
        """How much of the metric ``name`` there is, by the values of these attributes: ``{"GET": 2, "GET ERR": 1}``.

        Of a histogram it is the number of measurements, of a counter or a gauge the value.
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


def _line(span: ReadableSpan, attributes: Sequence[str]) -> str:
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
    """An SDK of its own that keeps what it gets; give its ``providers`` to a pool.

    Use it as a context manager, which shuts the providers down at its end; what was captured stays.

    Args:
        metric_readers: Further readers, for metrics that go elsewhere as well.
        sampler: Which spans to keep; one that decides by the ids of traces needs random ones. Default: all.
        id_generator: Default: the ids of spans are 1, 2, 3, …, and so are those of traces.
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
        """What is recorded in a block, by pools that may be older: ``with capture.block() as block:``.

        A call is recorded when it ends, its span and its point together, and belongs to the block in which it does.
        Counters and histograms begin at nothing; gauges and up/down counters tell how things are. The ``min`` and
        ``max`` of a point that there was before are not a number.
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
    """Ids that are the same in every run; ``next`` of a ``count`` is a single step, whichever thread takes it."""

    def __init__(self) -> None:
        self._span_ids, self._trace_ids = count(1), count(1)

    def generate_span_id(self) -> int:
        return next(self._span_ids)

    def generate_trace_id(self) -> int:
        return next(self._trace_ids)
