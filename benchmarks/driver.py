"""One measurement in one process: callers that await in a loop; prints a JSON line.

Usage: python benchmarks/driver.py JSON, which is what ``Measurement`` holds.
"""

import asyncio
import importlib
import json
import sys
import time
from array import array
from itertools import cycle, islice
from operator import ne
from time import perf_counter
from typing import Any, NamedTuple

from workloads import Operation, Workload, check, peak_memory_mb, workload

LONGEST_US = 1_000_000
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

    def __init__(self, number: int) -> None:
        self.running = True
        self.waiting_since = [0.0] * number
        self.latencies = array("I", bytes(4 * (LONGEST_US + 1)))

    async def repeat(self, operations: list[Operation], number: int) -> None:
        """One measured caller; callers start at different operations, so that they do not march in step."""
        latencies, waiting_since = self.latencies, self.waiting_since
        for operation in islice(cycle(operations), number % len(operations), None):
            if not self.running:
                return
            waiting_since[number] = started = perf_counter()
            await operation()
            latencies[min(int((perf_counter() - started) * 1e6), LONGEST_US)] += 1

    async def repeat_unmeasured(self, operation: Operation) -> None:
        """One caller of the background."""
        while self.running:
            await operation()

    def start(self, load: Workload) -> list[asyncio.Task[None]]:
        """All the callers, as tasks."""
        repeating = [self.repeat(load.operations, number) for number in range(len(self.waiting_since))]
        if load.background is not None:
            repeating += [self.repeat_unmeasured(load.background) for _ in range(BACKGROUND_CALLERS)]
        return [asyncio.create_task(coroutine) for coroutine in repeating]


async def measure(what: Measurement) -> dict[str, Any]:
    """Connect, warm up, measure."""
    adapter, variant = what.client.split("/")
    async with importlib.import_module(f"adapters.{adapter}").connect(variant, what.url, what.callers) as client:
        await check(client)
        measured = await run(workload(what.workload, client, what.seed), what)
        return {**measured, "version": client.version, "telemetry": client.telemetry()}


async def run(load: Workload, what: Measurement) -> dict[str, Any]:
    """Let callers repeat the load, and measure all but the time in which they warm up."""
    callers = Callers(what.callers)
    tasks = callers.start(load)
    await warm_up(what.warm_up, callers, tasks)
    callers.latencies[:] = array("I", bytes(4 * (LONGEST_US + 1)))
    started, used = perf_counter(), time.process_time()
    await pause(what.seconds, tasks)
    elapsed, used = perf_counter() - started, time.process_time() - used
    callers.running = False
    latencies = callers.latencies[:]
    # No quantile shows them: a call that is never answered is never counted.
    starved = sum(since < started for since in callers.waiting_since)
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
        "memory_mb": peak_memory_mb(),
        "calls": calls,
        "starved": starved,
    }


async def warm_up(seconds: float, callers: Callers, tasks: list[asyncio.Task[None]]) -> None:
    """Let the callers run for so long, and on while there are callers that get their first answer.

    Connecting 1,024 times takes longer than any fixed time; but waiting for all would never end where some starve.
    """
    await asyncio.sleep(0)
    asked = callers.waiting_since[:]
    answered, before = 0, -1
    while not answered or before < answered < len(asked):
        await pause(seconds, tasks)
        before, answered = answered, sum(map(ne, callers.waiting_since, asked))


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
