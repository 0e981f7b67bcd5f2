"""Make one measurement in one process, with callers that await calls in a loop; print a line of JSON.

Usage: python benchmarks/driver.py JSON, which has the fields of ``Measurement``.
"""

import asyncio
import gc
import importlib
import json
import sys
import time
from array import array
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from workloads import Operation, Workload, check, peak_memory_mb, workload

MAX_LATENCY_US = 1_000_000
BACKGROUND_CALLERS = 4
SLICE_SECONDS = 0.06  # short enough that the machine's speed seldom changes within a slice
# After a probe: the server has answered all callers meanwhile.
SETTLING_SECONDS = 0.005
# Before latencies are counted, so that none includes a probe.
SETTLED_SECONDS = 0.1
WORDS = [str(number) for number in range(3000)]


class Measurement(NamedTuple):
    """What to measure."""

    client: str  # "adapter/variant"
    workload: str
    callers: int
    loop: str
    url: str
    seed: int
    seconds: float


class Slice(NamedTuple):
    """A short part of a measurement, and how much the machine was disturbed before and after it."""

    stolen: int
    probe_ms: float
    commands: float
    seconds: float
    cpu: float  # seconds


class Callers:
    """Tasks that repeat operations until stopped, and count calls by latency in whole microseconds.

    A counter per microsecond costs fast and slow clients the same memory and time.

    Args:
        load: The operations to repeat.
        number: The number of measured callers, without the background's.
    """

    def __init__(self, load: Workload, number: int) -> None:
        self.running = True
        self.waiting_since = [0.0] * number
        self.answered = [0] * number
        self.latencies = array("I", bytes(4 * (MAX_LATENCY_US + 1)))
        repeating = [self.repeat(load.operations, caller) for caller in range(number)]
        if load.background is not None:
            repeating += [self.repeat_unmeasured(load.background) for _ in range(BACKGROUND_CALLERS)]
        self.all = asyncio.gather(*repeating)

    async def repeat(self, operations: list[Operation], number: int) -> None:
        """Run one measured caller; each starts at a different operation, so that they do not run in step."""
        latencies, waiting_since, answered = self.latencies, self.waiting_since, self.answered
        for operation in islice(cycle(operations), number % len(operations), None):
            if not self.running:
                return
            waiting_since[number] = started = perf_counter()
            await operation()
            latencies[min(int((perf_counter() - started) * 1e6), MAX_LATENCY_US)] += 1
            answered[number] += 1

    async def repeat_unmeasured(self, operation: Operation) -> None:
        """Run one caller of the background."""
        while self.running:
            await operation()

    async def run_for(self, seconds: float) -> None:
        """Let the callers run; raise the first error of a caller."""
        await asyncio.wait([self.all], timeout=seconds)
        if self.all.done():
            self.all.result()

    async def stop(self) -> None:
        """Stop the callers after their current call."""
        self.running = False
        await self.all


async def measure(measurement: Measurement) -> dict[str, Any]:
    """Connect, check the client, warm up and measure."""
    adapter, variant = measurement.client.split("/")
    async with importlib.import_module(f"adapters.{adapter}").connect(
        variant, measurement.url, measurement.callers
    ) as client:
        await check(client)
        measured = await run(workload(measurement.workload, client, measurement.seed), measurement)
        return {**measured, "version": client.version, "telemetry": client.telemetry()}


async def run(load: Workload, measurement: Measurement) -> dict[str, Any]:
    """Let callers repeat the load to warm up, then to measure latencies, then slices for all other figures."""
    callers = Callers(load, measurement.callers)
    await warm_up(measurement.seconds / 4, callers)
    measured = await latencies(measurement.seconds / 2, callers)
    slices = await slices_of(measurement.seconds, callers, load.commands_per_call)
    await callers.stop()
    return {**measured, "slices": slices, "memory_mb": peak_memory_mb()}


async def warm_up(seconds: float, callers: Callers) -> None:
    """Let the callers run for ``seconds``, and again as long as further callers get their first answer.

    No fixed time is enough for 1,024 connections, and a wait for all callers never ends if some starve.
    """
    before = -1
    while (now := sum(map(bool, callers.answered))) == 0 or before < now < len(callers.answered):
        before = now
        await callers.run_for(seconds)


async def latencies(seconds: float, callers: Callers) -> dict[str, float]:
    """Measure latencies for ``seconds``, and how much the machine was disturbed."""
    before, none = probe(), array("I", bytes(4 * (MAX_LATENCY_US + 1)))
    await callers.run_for(SETTLED_SECONDS)
    stolen = stolen_ticks()
    callers.latencies[:] = none
    started = perf_counter()
    await callers.run_for(seconds)
    # No quantile shows starved callers: a call without an answer is never counted.
    starved = sum(since < started for since in callers.waiting_since)
    counts = callers.latencies[:]
    stolen = stolen_ticks() - stolen
    if not (calls := sum(counts)):
        raise RuntimeError("no call was answered")
    return {
        "stolen": stolen,
        "probe_ms": max(before, probe()),
        "p50_ms": quantile(counts, calls * 0.50) / 1e3,
        "p99_ms": quantile(counts, calls * 0.99) / 1e3,
        "starved": starved,
    }


async def slices_of(seconds: float, callers: Callers, commands_per_call: float) -> list[Slice]:
    """Measure throughput and CPU in slices with a probe before and after each; each slice has at least one answer."""
    found, after = [], probe()
    for _ in range(round(seconds / SLICE_SECONDS)):
        before = after
        await callers.run_for(SETTLING_SECONDS)
        calls, stolen = sum(callers.answered), stolen_ticks()
        started, used = perf_counter(), time.process_time()
        answered = 0
        while not answered:
            await callers.run_for(SLICE_SECONDS)
            answered = sum(callers.answered) - calls
        elapsed, used = perf_counter() - started, time.process_time() - used
        stolen = stolen_ticks() - stolen
        after = probe()
        commands, probe_ms = answered * commands_per_call, max(before, after)
        found.append(Slice(stolen, round(probe_ms, 3), commands, round(elapsed, 6), round(used, 6)))
    return found


def stolen_ticks() -> int:
    """Return the ticks of 10 ms in which the hypervisor gave a processor to another machine; 0 if unknown."""
    try:
        return int(Path("/proc/stat").read_text("ascii").split(maxsplit=9)[8])
    except OSError:
        return 0


def probe() -> float:
    """Return the milliseconds that a fixed piece of Python which touches memory takes: the machine's current speed."""
    # The client's garbage must not count as the machine's slowness.
    gc.disable()
    taken = min(timed_words() for _ in range(2))
    gc.enable()
    return taken * 1e3


def timed_words() -> float:
    """Time the fixed piece of Python; a second call in a row finds its data in the caches."""
    started = perf_counter()
    found = {word: (word, len(word)) for word in WORDS}
    for word in WORDS:
        found[word][0].encode()
    return perf_counter() - started


def quantile(latencies: array, rank: float) -> int:
    """Return the latency in microseconds that ``rank`` calls do not exceed."""
    for microseconds, count in enumerate(latencies):
        rank -= count
        if rank <= 0:
            return microseconds
    return MAX_LATENCY_US


def loop_factory(name: str) -> Any:
    """Return the factory of the event loop with this name."""
    if name == "uvloop":
        import uvloop  # noqa: PLC0415 - importing it costs time and memory

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop


if __name__ == "__main__":
    measurement = Measurement(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=loop_factory(measurement.loop)) as runner:
        print(json.dumps(runner.run(measure(measurement))))  # noqa: T201 - the result
