"""Spans and metrics of a block of code, kept in memory by the real SDK."""

from types import TracebackType
from typing import Any, Self

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class TelemetryCapture:
    """An SDK of its own that keeps what it gets; hand its two providers to a pool.

    Use it as a context manager, which shuts the providers down at its end; what was captured stays.

    Args:
        metric_readers: Further readers, for metrics that go elsewhere as well.
    """

    def __init__(self, *metric_readers: MetricReader) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider(metric_readers=[self._reader, *metric_readers])

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, in the order in which they did."""
        return self._exporter.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        """The data points of the metric ``name`` so far, one for each set of attributes; none if it has no points."""
        data = self._reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()
