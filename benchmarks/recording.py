"""What this client's own telemetry code takes for a command beyond the SDK's calls, in microseconds; prints JSON.

Usage: python benchmarks/recording.py [ROUNDS]

The client's own way of executing a command, and one that knows no telemetry but calls the SDK itself, take turns in one
process over the same stand-in for the connection: it answers at once, because a socket's microseconds vary by more than
what is to be measured. A round counts if the probes around it were quick.
"""

import gc
import json
import statistics
import sys
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any

from driver import probe
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from sdk_alone import POINT, SPAN
from telemetry import Recorder

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection

ROUNDS = 150
COMMANDS = 400
SLOWEST_PROBE = 1.1  # of the quickest
PEER = ("127.0.0.1", 16379)
ARGS = ("GET", "bench:64")


class Answering(MonitoredRedisConnection):
    """The client, but for what becomes of a command once it is described."""

    read = 0.0

    async def _call(self, pool: Any, args: Any, options: Any, operation: Any = None) -> bytes:  # noqa: ARG002
        if operation is not None:
            operation.certain = True
            operation.answered(b"value", self.read, PEER)
        return b"value"


class Bare(Answering):
    """The same without a thought of telemetry, but with the SDK's calls for the span and the point of one command."""

    record: Callable[[], None] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command, and record it as one would who knows it beforehand."""
        if self.record is not None:
            self.record()
        return await self._call(self._pool, args, options)


def sdk_calls(recorder: Recorder) -> Callable[[], None]:
    """One span, if spans are recorded, and one point, in the span's context, for an exemplar."""
    histogram = recorder.meter_provider.get_meter("bench").create_histogram("db.client.operation.duration", "s")
    if recorder.tracer_provider is None:
        return lambda: histogram.record(0.0001, dict(POINT))
    tracer = recorder.tracer_provider.get_tracer("bench")

    def record() -> None:
        span = tracer.start_span("GET 127.0.0.1:16379", None, SpanKind.CLIENT, dict(SPAN), record_exception=False)
        histogram.record(0.0001, dict(POINT), trace.set_span_in_context(span))
        span.end()

    return record


def seconds(client: Answering) -> float:
    """The processor's time for some commands."""
    # The clock is read once for all replies that come together.
    client.read = perf_counter() + 1
    began = thread_time()
    for _ in range(COMMANDS):
        try:
            client.execute_command(*ARGS).send(None)
        except StopIteration:
            continue
    return thread_time() - began


def difference(recorder: Recorder, rounds: int) -> float:
    """Microseconds for a command beyond the SDK's calls: the median of the rounds that count."""
    pool = MonitoredConnectionPool.from_url(
        f"redis://{PEER[0]}:{PEER[1]}",
        tracer_provider=recorder.tracer_provider or NoOpTracerProvider(),
        meter_provider=recorder.meter_provider or NoOpMeterProvider(),
    )
    ours, bare = Answering(connection_pool=pool), Bare(connection_pool=pool)
    bare.record = None if recorder.meter_provider is None else sdk_calls(recorder)
    found = []
    for _ in range(rounds):
        # With the garbage collector, one of the two would pay for both.
        gc.collect()
        gc.disable()
        before = probe()
        found.append((before, seconds(ours) - seconds(bare), probe()))
        gc.enable()
    quickest = min(min(before, after) for before, _, after in found)
    counting = [gap for before, gap, after in found if max(before, after) <= SLOWEST_PROBE * quickest]
    return round(statistics.median(counting or [gap for _, gap, _ in found]) / COMMANDS * 1e6, 2)


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Without an SDK, with metrics, and with every span and metrics."""
    recorders = {"no SDK": Recorder(), "metrics": Recorder(metrics=True)}
    recorders["everything"] = Recorder(spans=True, metrics=True)
    return {name: difference(recorder, rounds) for name, recorder in recorders.items()}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))  # noqa: T201 - the result
