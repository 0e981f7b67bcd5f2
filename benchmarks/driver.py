"""One measurement in one process: callers that await in a loop; prints a JSON line.

Usage: python benchmarks/driver.py JSON, which is what ``Measurement`` holds.
"""

import asyncio
import importlib
import json
import resource
import sys
import time
from array import array
from itertools import cycle, islice
from time import perf_counter
from typing import Any, NamedTuple

from workloads import Operation, Workload, check, workload

LONGEST_US = 2_000_000
BACKGROUND_CALLERS = 4


class Measurement(NamedTuple):
    """What to measure."""

    client: str  # "adapter/variant"
    workload: str
    callers: int
    loop: str
    url: str
    seed: int
    warm_up: float  # seconds
    seconds: float


class Callers:
    """Tasks that repeat operations until told to stop, and count each call by its latency in whole microseconds.

    A count per microsecond takes the same memory and the same time for a fast client as for a slow one.
    """

    def __init__(self) -> None:
        self.running = True
        self.latencies = array("L", bytes(8 * (LONGEST_US + 1)))

    async def repeat(self, operations: list[Operation], first: int) -> None:
        """One measured caller; callers start at different operations, so that they do not march in step."""
        latencies = self.latencies
        for operation in cycle([*islice(cycle(operations), first, first + len(operations))]):
            if not self.running:
                return
            started = perf_counter()
            await operation()
            latencies[min(int((perf_counter() - started) * 1e6), LONGEST_US)] += 1

    async def repeat_unmeasured(self, operation: Operation) -> None:
        """One caller of the background."""
        while self.running:
            await operation()

    def start(self, load: Workload, callers: int) -> list[asyncio.Task[None]]:
        """All the callers, as tasks."""
        repeating = [self.repeat(load.operations, number) for number in range(callers)]
        if load.background is not None:
            repeating += [self.repeat_unmeasured(load.background) for _ in range(BACKGROUND_CALLERS)]
        return [asyncio.create_task(coroutine) for coroutine in repeating]


async def measure(what: Measurement) -> dict[str, Any]:
    """Connect, warm up, measure."""
    adapter, variant = what.client.split("/")
    async with importlib.import_module(f"adapters.{adapter}").connect(variant, what.url, what.callers) as client:
        await check(client)
        load = workload(what.workload, client, what.seed)
        callers = Callers()
        tasks = callers.start(load, what.callers)
        await pause(what.warm_up, tasks)
        callers.latencies[:] = array("L", bytes(8 * (LONGEST_US + 1)))
        started, used = perf_counter(), time.process_time()
        await pause(what.seconds, tasks)
        elapsed, used = perf_counter() - started, time.process_time() - used
        callers.running = False
        latencies = callers.latencies[:]
        await asyncio.gather(*tasks)
        calls = sum(latencies)
        if not calls:
            raise RuntimeError("no call was answered")
        commands = calls * load.commands_per_call
        return {
            "throughput": commands / elapsed,
            "cpu_us": used / commands * 1e6,
            "p50_ms": quantile(latencies, calls * 0.50) / 1e3,
            "p99_ms": quantile(latencies, calls * 0.99) / 1e3,
            "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "calls": calls,
            "version": client.version,
            "telemetry": client.telemetry(),
        }


async def pause(seconds: float, tasks: list[asyncio.Task[None]]) -> None:
    """Let the callers run; raise what the first of them raised."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


def quantile(latencies: array, rank: float) -> int:
    """The latency, in microseconds, below which this many calls lie."""
    for microseconds, count in enumerate(latencies):
        rank -= count
        if rank <= 0:
            return microseconds
    return LONGEST_US


def loop_factory(name: str) -> Any:
    """The event loop of this name."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - importing it is a cost

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop


if __name__ == "__main__":
    asked = Measurement(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=loop_factory(asked.loop)) as runner:
        print(json.dumps(runner.run(measure(asked))))  # noqa: T201 - the result
