"""Measure the SDK alone: one span and one histogram point as this package records them; print a line of JSON.

Usage: python benchmarks/sdk_alone.py JSON, as for ``driver.py``; the variant ``exemplar`` records the point in the
span's context, so that the SDK keeps an exemplar.
"""

import asyncio
import json
import sys
from itertools import cycle
from typing import Any

from driver import Measurement, run
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from telemetry import Recorder
from workloads import Workload

# Records between two readings of the clock: enough that these cost almost nothing.
IN_ONE_TURN = 100
SPAN = {
    "db.system.name": "redis",
    "db.namespace": "0",
    "server.address": "127.0.0.1",
    "server.port": 16379,
    "network.transport": "tcp",
    "db.operation.name": "GET",
    "db.query.text": "GET bench:64",
    "network.peer.address": "127.0.0.1",
    "network.peer.port": 16379,
}
POINT = {name: SPAN[name] for name in SPAN if not name.startswith(("network.", "db.query."))}


async def measure(measurement: Measurement) -> dict[str, Any]:
    """Record as the clients do: with a processor, an exporter and a caller, whose work is therefore in both figures."""
    recorder = Recorder(spans=True, metrics=True)
    tracer = recorder.tracer_provider.get_tracer("bench")
    histogram = recorder.meter_provider.get_meter("bench").create_histogram("db.client.operation.duration", "s")
    in_context = measurement.client.endswith("exemplar")
    turns = cycle([*[False] * (IN_ONE_TURN - 1), True])

    async def record() -> None:
        span = tracer.start_span("GET 127.0.0.1:16379", None, SpanKind.CLIENT, dict(SPAN), record_exception=False)
        histogram.record(0.0001, dict(POINT), trace.set_span_in_context(span) if in_context else None)
        span.end()
        if next(turns):
            await asyncio.sleep(0)

    # No caller ever waits, so that one does the work of many.
    measured = await run(Workload([record]), measurement._replace(callers=1))
    return {**measured, "telemetry": recorder.finish()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Measurement(**json.loads(sys.argv[1]))))))  # noqa: T201 - the result
