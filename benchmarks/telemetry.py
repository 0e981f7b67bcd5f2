"""Set up OpenTelemetry as a service does, with an exporter that counts spans, so that dropped ones show."""

import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

METRICS_EVERY_MS = 1000


class CountingExporter(SpanExporter):
    """Counts spans, and passes them to another exporter if there is one."""

    def __init__(self, target: SpanExporter | None) -> None:
        self.target = target
        self.exported = 0
        self.attributes = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans and count them."""
        result = SpanExportResult.SUCCESS if self.target is None else self.target.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.exported += len(spans)
            self.attributes = len(spans[-1].attributes or ())
        return result

    def shutdown(self) -> None:
        """Shut down the other exporter."""
        if self.target is not None:
            self.target.shutdown()


class CountingQueue(deque[ReadableSpan]):
    """The queue of a batch processor, which drops spans when it is full, with a count of recorded spans.

    A processor with an ``on_end`` of its own would not do: it might look at the metrics, so that points would go to the
    SDK one at a time.
    """

    recorded = 0

    @classmethod
    def put_into(cls, processor: BatchSpanProcessor) -> Self:
        """Replace the queue of a processor that has no spans yet."""
        batches: Any = processor._batch_processor  # noqa: SLF001 - the SDK counts no spans unless asked for metrics
        queue = cls(maxlen=batches._max_queue_size)  # noqa: SLF001
        batches._queue = queue  # noqa: SLF001
        return queue

    def appendleft(self, span: ReadableSpan) -> None:
        """Count a recorded span."""
        self.recorded += 1
        super().appendleft(span)


class Recorder:
    """The providers of one process; a provider that is not wanted is ``None``, which means the API's default.

    Args:
        spans: Record spans.
        metrics: Record metrics.
        ratio: The share of root spans to sample.
        otlp: Export over OTLP/HTTP to a receiver in a separate process; by default nothing is exported.
    """

    def __init__(self, *, spans: bool = False, metrics: bool = False, ratio: float = 1.0, otlp: bool = False) -> None:
        self.tracer_provider: TracerProvider | None = None
        self.meter_provider: MeterProvider | None = None
        self._receiver: subprocess.Popen[str] | None = None
        endpoint = self._start_receiver() if otlp else None
        if spans:
            self._exporter = CountingExporter(_span_exporter(endpoint))
            processor = BatchSpanProcessor(self._exporter)
            self._queue = CountingQueue.put_into(processor)
            self.tracer_provider = TracerProvider(ParentBased(TraceIdRatioBased(ratio)))
            self.tracer_provider.add_span_processor(processor)
        if metrics:
            self._memory = InMemoryMetricReader()
            readers: list[MetricReader] = [self._memory]
            if endpoint:
                readers.append(_otlp_reader(endpoint))
            self.meter_provider = MeterProvider(readers)

    def _start_receiver(self) -> str:
        command = [sys.executable, str(Path(__file__).with_name("receiver.py"))]
        self._receiver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this project's script
        return self._receiver.stdout.readline().strip()

    def finish(self) -> dict[str, Any]:
        """Export the rest; return the numbers of recorded and dropped spans and of points, and if any has exemplars."""
        summary: dict[str, Any] = {}
        if self.meter_provider is not None:
            summary |= self._points()
        if self.tracer_provider is not None:
            self.tracer_provider.force_flush()
            summary |= {
                "spans": self._queue.recorded,
                "dropped": self._queue.recorded - self._exporter.exported,
                "span_attributes": self._exporter.attributes,
            }
        if self._receiver is not None:
            # Before the receiver ends: the exporters would retry until their deadline.
            self.tracer_provider.shutdown()
            self.meter_provider.shutdown()
            self._receiver.kill()
            self._receiver.wait()
        return summary

    def _points(self) -> dict[str, Any]:
        data = self._memory.get_metrics_data()
        durations = [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "db.client.operation.duration"
            for point in metric.data.data_points
        ]
        return {"points": sum(p.count for p in durations), "exemplars": any(p.exemplars for p in durations)}


def _span_exporter(endpoint: str | None) -> SpanExporter | None:
    if endpoint is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - not for peers

    return OTLPSpanExporter(f"{endpoint}/v1/traces")


def _otlp_reader(endpoint: str) -> MetricReader:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415

    return PeriodicExportingMetricReader(OTLPMetricExporter(f"{endpoint}/v1/metrics"), METRICS_EVERY_MS)
