"""An SDK whose spans and metrics stay in memory, all of them or those of a block."""

from collections.abc import Hashable
from itertools import count
from types import TracebackType
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, MetricReader, Sum
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from aioredis_monitored.testing.recording import Recording, Series


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

        def added() -> dict[Hashable, Series]:
            now = {key: s.since(before[key]) if key in before else s for key, s in self._read_series().items()}
            return {key: series for key, series in now.items() if series.amount or not series.adds_up}

        return Recording(lambda: self.spans[first:], added)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(exc_type, exc, traceback)
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()

    def _series(self) -> dict[Hashable, Series]:
        data = self._reader.get_metrics_data()
        return {
            (scope.scope, metric.name, frozenset((point.attributes or {}).items())): Series(
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
