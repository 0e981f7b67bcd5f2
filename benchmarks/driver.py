"""One measurement in one process: callers that await in a loop; prints a JSON line.

Usage: python benchmarks/driver.py JSON, which is what ``Measurement`` holds.
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

LONGEST_US = 1_000_000
BACKGROUND_CALLERS = 4
SLICE = 0.06  # seconds, in which the machine mostly keeps its mood
# After a probe, in which the server has had time for everybody's reply.
SETTLING = 0.005
# The same before latencies are counted: a probe must be in none of them.
SETTLED = 0.1
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
    """A short part of a measurement, and how much the machine was disturbed beside it."""

    stolen: int
    probe_ms: float
    commands: float
    seconds: float
    cpu: float  # seconds


class Callers:
    """Tasks that repeat operations until told to stop, and count each call by its latency in whole microseconds.

    A count per microsecond takes the same memory and the same time for a fast client as for a slow one.

    Args:
        load: What they repeat.
        number: How many they are, without those of the background.
    """

    def __init__(self, load: Workload, number: int) -> None:
        self.running = True
        self.waiting_since = [0.0] * number
        self.answered = [0] * number
        self.latencies = array("I", bytes(4 * (LONGEST_US + 1)))
        repeating = [self.repeat(load.operations, caller) for caller in range(number)]
        if load.background is not None:
            repeating += [self.repeat_unmeasured(load.background) for _ in range(BACKGROUND_CALLERS)]
        self.all = asyncio.gather(*repeating)

    async def repeat(self, operations: list[Operation], number: int) -> None:
        """One measured caller; callers start at different operations, so that they do not march in step."""
        latencies, waiting_since, answered = self.latencies, self.waiting_since, self.answered
        for operation in islice(cycle(operations), number % len(operations), None):
            if not self.running:
                return
            waiting_since[number] = started = perf_counter()
            await operation()
            latencies[min(int((perf_counter() - started) * 1e6), LONGEST_US)] += 1
            answered[number] += 1

    async def repeat_unmeasured(self, operation: Operation) -> None:
        """One caller of the background."""
        while self.running:
            await operation()

    async def work(self, seconds: float) -> None:
        """Let them; raise what the first of them raised."""
        await asyncio.wait([self.all], timeout=seconds)
        if self.all.done():
            self.all.result()

    async def stop(self) -> None:
        """Let each of them get its last answer."""
        self.running = False
        await self.all


async def measure(what: Measurement) -> dict[str, Any]:
    """Connect, warm up, measure."""
    adapter, variant = what.client.split("/")
    async with importlib.import_module(f"adapters.{adapter}").connect(variant, what.url, what.callers) as client:
        await check(client)
        measured = await run(workload(what.workload, client, what.seed), what)
        return {**measured, "version": client.version, "telemetry": client.telemetry()}


async def run(load: Workload, what: Measurement) -> dict[str, Any]:
    """Let callers repeat the load: to warm up, then for their latencies, then slice by slice for all else."""
    callers = Callers(load, what.callers)
    await warm_up(what.seconds / 4, callers)
    measured = await latencies(what.seconds / 2, callers)
    slices = await slices_of(what.seconds, callers, load.commands_per_call)
    await callers.stop()
    return {**measured, "slices": slices, "memory_mb": peak_memory_mb()}


async def warm_up(seconds: float, callers: Callers) -> None:
    """Let the callers run for so long, and on while there are callers that get their first answer.

    Connecting 1,024 times takes longer than any fixed time; but waiting for all would never end where some starve.
    """
    before = -1
    while (now := sum(map(bool, callers.answered))) == 0 or before < now < len(callers.answered):
        before = now
        await callers.work(seconds)


async def latencies(seconds: float, callers: Callers) -> dict[str, float]:
    """Latencies over this time, and how much the machine was disturbed."""
    before, none = probe(), array("I", bytes(4 * (LONGEST_US + 1)))
    await callers.work(SETTLED)
    stolen = stolen_ticks()
    callers.latencies[:] = none
    started = perf_counter()
    await callers.work(seconds)
    # No quantile shows them: a call that is never answered is never counted.
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
    """Throughput and CPU in slices of this time, with a probe before and after each; in each, a call is answered."""
    found, after = [], probe()
    for _ in range(round(seconds / SLICE)):
        before = after
        await callers.work(SETTLING)
        calls, stolen = sum(callers.answered), stolen_ticks()
        started, used = perf_counter(), time.process_time()
        answered = 0
        while not answered:
            await callers.work(SLICE)
            answered = sum(callers.answered) - calls
        elapsed, used = perf_counter() - started, time.process_time() - used
        stolen = stolen_ticks() - stolen
        after = probe()
        commands, probe_ms = answered * commands_per_call, max(before, after)
        found.append(Slice(stolen, round(probe_ms, 3), commands, round(elapsed, 6), round(used, 6)))
    return found


def stolen_ticks() -> int:
    """Ticks (10 ms) in which one of the machine's processors was given to another machine."""
    try:
        return int(Path("/proc/stat").read_text("ascii").split(maxsplit=9)[8])
    except OSError:
        return 0


def probe() -> float:
    """How long a fixed piece of Python that touches memory takes now, in milliseconds: the machine's mood."""
    # What the client has left to collect is not the machine's.
    gc.disable()
    taken = min(timed_words() for _ in range(2))
    gc.enable()
    return taken * 1e3


def timed_words() -> float:
    """One piece of work; the second in a row finds the caches as it left them."""
    started = perf_counter()
    found = {word: (word, len(word)) for word in WORDS}
    for word in WORDS:
        found[word][0].encode()
    return perf_counter() - started


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
