"""Records calls directly in a process and in its forked child; prints what each has, as JSON."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support.internals import chances, new_operation, start_recorder


def main():
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    recorder = start_recorder(tracer_provider, MeterProvider([reader], shutdown_on_exit=False))

    def record(count):
        for _ in range(count):
            operation = new_operation(recorder, ("GET", "key"))
            operation.record_on_reply = True
            batch = operation.on_reply(b"value", 1e9, None)
        batch.flush()

    def found():
        [point] = [
            point
            for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
            for metric in scope.metrics
            if metric.name == "db.client.operation.duration"
            for point in metric.data.data_points
        ]
        spans = exporter.get_finished_spans()
        return [len(spans), point.count], spans[-1].resource.to_json()

    record(5)
    readable, writable = os.pipe()
    if (child := os.fork()) == 0:
        record(2)
        os.write(writable, json.dumps(found()).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        of_child = json.loads(pipe.read())
    os.waitpid(child, 0)
    of_parent = found()
    names = ("counts", "resources")
    seen = {name: {"parent": of_parent[n], "child": of_child[n]} for n, name in enumerate(names)}
    print(json.dumps({**seen, "chances": [chance_in_child() for _ in range(3)]}))


def chance_in_child():
    """Return the first random number in a forked child by which calls are kept."""
    readable, writable = os.pipe()
    if os.fork() == 0:
        os.write(writable, str(chances().random()).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        chance = pipe.read()
    os.wait()
    return chance


if __name__ == "__main__":
    main()
