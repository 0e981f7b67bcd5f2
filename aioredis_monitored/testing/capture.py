"""Spans and metrics of a block of code, kept in memory by the real SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class TelemetryCapture:
    """An SDK of its own whose exporters keep what they get; hand its two providers to a pool."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider(metric_readers=[self._reader])

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


@contextmanager
def capture_telemetry() -> Iterator[TelemetryCapture]:
    """A ``TelemetryCapture`` for a ``with`` block; shut down at its end."""
    capture = TelemetryCapture()
    try:
        yield capture
    finally:
        capture.tracer_provider.shutdown()
        capture.meter_provider.shutdown()
