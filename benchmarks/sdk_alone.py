"""What the SDK alone takes for one span and one histogram point as this package records them; prints a JSON line.

Usage: python benchmarks/sdk_alone.py JSON, as for ``driver.py``; the variant ``exemplar`` records the point in the
context of the span, so that the SDK keeps an exemplar.
"""

import json
import sys
import time
from typing import Any

from driver import Measurement
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from telemetry import Recorder
from workloads import peak_memory_mb

BETWEEN_LOOKS = 100
SPAN = {
    "db.system.name": "redis",
    "db.namespace": "0",
    "server.address": "127.0.0.1",
    "server.port": 16379,
    "network.transport": "tcp",
    "db.operation.name": "GET",
    "db.query.text": "GET bench:64",
}
POINT = {name: value for name, value in SPAN.items() if name not in {"network.transport", "db.query.text"}}


def measure(what: Measurement) -> dict[str, Any]:
    """Record in a loop, with the same processor and exporter as the clients have."""
    recorder = Recorder(spans=True, metrics=True)
    tracer = recorder.tracer_provider.get_tracer("bench")
    histogram = recorder.meter_provider.get_meter("bench").create_histogram("db.client.operation.duration", "s")
    in_context = what.client.endswith("exemplar")

    def record() -> None:
        span = tracer.start_span("GET 127.0.0.1:16379", None, SpanKind.CLIENT, dict(SPAN), record_exception=False)
        histogram.record(0.0001, dict(POINT), trace.set_span_in_context(span) if in_context else None)
        span.end()

    repeat(record, what.warm_up)
    started, used = time.perf_counter(), time.process_time()
    count = repeat(record, what.seconds)
    elapsed, used = time.perf_counter() - started, time.process_time() - used
    return {
        "throughput": count / elapsed,
        "cpu_us": used / count * 1e6,
        "memory_mb": peak_memory_mb(),
        "calls": count,
        "version": "opentelemetry-sdk",
        "telemetry": recorder.finish(),
    }


def repeat(record: Any, seconds: float) -> int:
    """How often it was recorded in this time."""
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(BETWEEN_LOOKS):
            record()
        count += BETWEEN_LOOKS
    return count


if __name__ == "__main__":
    print(json.dumps(measure(Measurement(**json.loads(sys.argv[1])))))  # noqa: T201 - the result
