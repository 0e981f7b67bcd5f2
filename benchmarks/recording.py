"""Measure what this client's telemetry code costs a command beyond the SDK's calls, in microseconds; print JSON.

Usage: python benchmarks/recording.py [ROUNDS]

The client's ``execute_command``, and one that only makes the SDK's calls, alternate in one process over the same
stand-in for the connection. It answers at once, because a socket's time varies by more than the difference to measure.
A round counts if the probes before and after it were quick.
"""

import gc
import json
import statistics
import sys
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any, ClassVar

from driver import probe
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from sdk_alone import POINT, SPAN
from telemetry import Recorder

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored._execution.routing import CommandExecutor

ROUNDS = 150
COMMANDS = 400
MAX_PROBE_RATIO = 1.1  # to the quickest probe
PEER = ("127.0.0.1", 16379)
ARGS = ("GET", "bench:64")


class Responder(CommandExecutor):
    """An executor that answers at once in place of a server."""

    __slots__ = ()
    now: ClassVar[float] = 0.0

    async def execute(self, *args: Any, **_: Any) -> bytes:
        """Answer a command, and report the reply to its observer as the shared connection does."""
        observer = args[4] if len(args) > 4 else None  # noqa: PLR2004 - the position of the argument
        if observer is not None:
            observer.record_on_reply = True
            # As at the end of a read with one reply.
            if (batch := observer.on_reply(b"value", self.now, PEER)) is not None:
                batch.flush()
        return b"value"


class Client(MonitoredRedisConnection):
    """The client with a stand-in for the connection."""

    def __init__(self, pool: MonitoredConnectionPool) -> None:
        super().__init__(connection_pool=pool)
        self._command_executor.__class__ = Responder


class BareClient(Client):
    """The same without telemetry code, but with the SDK's calls for a command's span and point."""

    record: Callable[[], None] | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Record a call whose attributes are known beforehand, and execute the command."""
        if self.record is not None:
            self.record()
        return await self._command_executor.execute(self, self.connection_pool, args, options, None)


def sdk_calls(recorder: Recorder) -> Callable[[], None]:
    """Return a function that records a point, and a span if spans are recorded, in whose context the point is."""
    histogram = recorder.meter_provider.get_meter("bench").create_histogram("db.client.operation.duration", "s")
    if recorder.tracer_provider is None:
        return lambda: histogram.record(0.0001, dict(POINT))
    tracer = recorder.tracer_provider.get_tracer("bench")

    def record() -> None:
        span = tracer.start_span("GET 127.0.0.1:16379", None, SpanKind.CLIENT, dict(SPAN), record_exception=False)
        histogram.record(0.0001, dict(POINT), trace.set_span_in_context(span))
        span.end()

    return record


def cpu_seconds(client: Client) -> float:
    """Measure the CPU time of ``COMMANDS`` commands."""
    # The client reads the clock once for all replies of a socket read. This one is far ahead of commands on a machine
    # that stops for a while: the SDK drops a negative duration.
    Responder.now = perf_counter() + 3600
    started = thread_time()
    for _ in range(COMMANDS):
        try:
            client.execute_command(*ARGS).send(None)
        except StopIteration:
            continue
    return thread_time() - started


def difference(recorder: Recorder, rounds: int) -> float:
    """Return the microseconds per command beyond the SDK's calls: the median of the rounds that count."""
    pool = MonitoredConnectionPool.from_url(
        f"redis://{PEER[0]}:{PEER[1]}",
        tracer_provider=recorder.tracer_provider or NoOpTracerProvider(),
        meter_provider=recorder.meter_provider or NoOpMeterProvider(),
    )
    ours, bare = Client(pool), BareClient(pool)
    bare.record = None if recorder.meter_provider is None else sdk_calls(recorder)
    gaps = []
    for _ in range(rounds):
        # A garbage collection would charge one client for the garbage of both.
        gc.collect()
        gc.disable()
        before = probe()
        gaps.append((before, cpu_seconds(ours) - cpu_seconds(bare), probe()))
        gc.enable()
    quickest = min(min(before, after) for before, _, after in gaps)
    counting = [gap for before, gap, after in gaps if max(before, after) <= MAX_PROBE_RATIO * quickest]
    return round(statistics.median(counting or [gap for _, gap, _ in gaps]) / COMMANDS * 1e6, 2)


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """Measure without an SDK, with metrics, and with every span and metrics."""
    recorders = {"no SDK": Recorder(), "metrics": Recorder(metrics=True)}
    recorders["everything"] = Recorder(spans=True, metrics=True)
    return {name: difference(recorder, rounds) for name, recorder in recorders.items()}


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))  # noqa: T201 - the result
