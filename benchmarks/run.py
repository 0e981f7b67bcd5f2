"""Measures everything in one run, in shuffled order, each figure in a process of its own; writes the results.

Usage: python benchmarks/run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis
from calls import COMMANDS
from driver import Measurement
from environments import machine, pythons
from figures import Result, Results
from matrix import CONTESTANTS, SDK_ALONE, Cell, cells, quick_cells
from plot import plot
from recording import ROUNDS
from report import tables
from verdict import verdict
from workloads import SIZES

from aioredis_monitored.testing import RedisServer

HERE = Path(__file__).parent
LOOK_EVERY = 0.2
DEADLINE = 60.0
QUICK_CALLS, QUICK_ROUNDS = 256, 40
BEGIN, END = "<!-- figures begin: written by run.py -->", "<!-- figures end -->"


class Failed(Exception):  # noqa: N818 - the outcome of a measurement
    """A measurement that could not be made, with its reason."""


class Bench:
    """One run on one server.

    Args:
        url: The server.
        python: The Pythons by environment.
        missing: Why an environment is not there.
        arguments: The command line.
    """

    def __init__(
        self, url: str, python: dict[str, str], missing: dict[str, str], arguments: argparse.Namespace
    ) -> None:
        self.url = url
        self.python = python
        self.missing = missing
        self.arguments = arguments
        self.server = redis.Redis.from_url(url)
        for key, size in SIZES.items():
            self.server.set(key, b"x" * size)

    def run(self, chosen: list[Cell]) -> Results:
        """Measure all cells."""
        runs: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in chosen}
        started = time.monotonic()
        for number, cell in enumerate(self.plan(runs), 1):
            try:
                outcome = self.measure(cell)
                now = Result.of([outcome]).figures
                told = f"{now['throughput']:10,.0f}/s {now['cpu_us']:7.1f} µs, probe {now['probe_ms']:.2f} ms"
            except Failed as failure:
                outcome = {"failed": str(failure)}
                told = f"failed: {failure}"
            runs[cell].append(outcome)
            progress = f"{number}/{len(chosen) * self.arguments.repeats} {time.monotonic() - started:5.0f} s"
            say(f"{progress}  {cell.client:16} {cell.workload:5} {cell.callers:5} {cell.loop:8} {told}")
        return Results.of(runs)

    def plan(self, runs: dict[Cell, list[dict[str, Any]]]) -> Iterator[Cell]:
        """All cells as often as asked for, then for a while those that the machine has disturbed.

        It changes its mood between one minute and the next: each repeat has an order of its own, but what is compared
        comes one after the other.
        """
        order = random.Random(self.arguments.seed)  # noqa: S311 - nothing to guess
        end = time.monotonic() + 60 * self.arguments.minutes

        def shuffled(cells: Iterable[Cell]) -> list[Cell]:
            place: dict[Any, float] = defaultdict(order.random)
            return sorted(cells, key=lambda cell: (place[cell.group], order.random()))

        for _ in range(self.arguments.repeats):
            yield from shuffled(runs)
        while left := Results.of(runs).disturbed():
            for cell in shuffled(left):
                if time.monotonic() > end:
                    return
                yield cell

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell once.

        Raises:
            Failed: It could not be measured.
        """
        environment = CONTESTANTS[cell.client].environment
        if environment in self.missing:
            raise Failed(f"no environment: {self.missing[environment]}")
        script = "sdk_alone.py" if cell.client in SDK_ALONE else "driver.py"
        what = Measurement(*cell, self.url, self.arguments.seed, self.arguments.seconds)
        process = subprocess.Popen(  # noqa: S603 - our own script
            [self.python[environment], str(HERE / script), json.dumps(what._asdict())],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE,
        )
        connections, deadline = 0, time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                output, errors = process.communicate(timeout=LOOK_EVERY)
                break
            except subprocess.TimeoutExpired:
                connections = max(connections, self.server.info("clients")["connected_clients"] - 1)
        else:
            process.kill()
            process.communicate()
            raise Failed(f"no result within {DEADLINE:.0f} s")
        if process.returncode:
            raise Failed(reason(errors, process.returncode))
        return {**json.loads(output), "connections": connections}


def reason(errors: str, status: int) -> str:
    """Why a process failed: the end of its traceback."""
    return errors.strip().splitlines()[-1][:200] if errors.strip() else f"exit status {status}"


def told_by(script: str, *arguments: int) -> dict[str, float] | str:
    """What another script prints as JSON, or why it failed."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own scripts
    return f"failed: {reason(told.stderr, told.returncode)}" if told.returncode else json.loads(told.stdout)


def say(text: str) -> None:
    """Print, also when the output is a pipe."""
    print(text, flush=True)  # noqa: T201 - a script's output


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what must and aim need")
    parser.add_argument("--repeats", type=int, help="default 5, quick 1")
    parser.add_argument("--minutes", type=float, help="for which to repeat what was disturbed; default 40, quick 1")
    parser.add_argument("--seconds", type=float, default=0.8, help="that throughput is measured, latency half as long")
    parser.add_argument("--only", default="", help="only cells whose client, workload, callers and loop contain this")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311 - nothing to guess
    chosen = parser.parse_args()
    chosen.repeats = chosen.repeats or (1 if chosen.quick else 5)
    if chosen.minutes is None:
        chosen.minutes = 1 if chosen.quick else 40
    return chosen


def write(directory: Path, named: dict[str, Any], results: Results, told: str) -> None:
    """Write the JSON file, the tables and the plot."""
    directory.mkdir(parents=True, exist_ok=True)
    # A line for each cell, which a diff shows well.
    lines = ",\n".join(json.dumps({**cell._asdict(), **result._asdict()}) for cell, result in results.items())
    (directory / "results.json").write_text(f'{json.dumps(named)[:-1]}, "cells": [\n{lines}\n]}}\n', "utf-8")
    (directory / "results.md").write_text(told, "utf-8")
    plot(directory / "throughput.svg", results)


def put_into_readme(text: str) -> None:
    """Replace what stands between the marks."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}{END}{after}", "utf-8")


def main() -> None:
    """Measure, write, and tell what was reached."""
    asked = arguments()
    chosen = [c for c in (quick_cells() if asked.quick else cells()) if asked.only in " ".join(map(str, c))]
    say(f"seed {asked.seed}: {len(chosen)} cells, {asked.repeats} repeats of {asked.seconds} s")
    # Servers and clients inherit it; a connection for each of 1,024 callers takes a descriptor at both ends.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if found := shutil.which("redis-server"):
        os.environ.setdefault("AIOREDIS_MONITORED_SERVER", found)
    python, missing = pythons({CONTESTANTS[cell.client].environment for cell in chosen})
    with RedisServer() as server:
        named = {"machine": machine(server.url), "settings": vars(asked)}
        results = Bench(server.url, python, missing, asked).run(chosen)
    if not asked.only:
        named["calls"] = told_by("calls.py", QUICK_CALLS if asked.quick else COMMANDS)
        named["recording"] = told_by("recording.py", QUICK_ROUNDS if asked.quick else ROUNDS)
    # A part must not take the place of the whole.
    whole = not asked.quick and not asked.only
    directory = HERE / "results" if whole else HERE / "results" / "partial"
    told = f"{tables(named, results)}\n{verdict(named, results)}"
    write(directory, named, results, told)
    if whole:
        put_into_readme(told)
    say(f"\n{told}\nwritten to {directory}")


if __name__ == "__main__":
    main()
