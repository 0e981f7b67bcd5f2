"""A run of a benchmark: its cells in shuffled order, each repeat in a process of its own; and where the results go."""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from environments import pythons
from figures import Result, Results
from matrix import Cell, Contestant

from aioredis_monitored.testing import RedisServer

HERE = Path(__file__).parent
LOOK_EVERY = 0.2
DEADLINE = 60.0


class Failed(Exception):  # noqa: N818 - the outcome of a measurement
    """A measurement that could not be made, with its reason."""


class Bench:
    """One run on one server.

    Args:
        server: The server.
        contestants: The clients by name.
        command: What a Python is given to measure a cell once: a script and its arguments.
        arguments: The command line.
    """

    def __init__(
        self,
        server: redis.Redis,
        contestants: dict[str, Contestant],
        command: Callable[[Cell], list[str]],
        arguments: argparse.Namespace,
    ) -> None:
        self.server = server
        self.contestants = contestants
        self.command = command
        self.arguments = arguments
        self.python: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def run(self, chosen: list[Cell]) -> Results:
        """Measure all cells."""
        self.python, self.missing = pythons({self.contestants[cell.client].environment for cell in chosen})
        runs: dict[Cell, list[dict[str, Any]]] = {cell: [] for cell in chosen}
        started = time.monotonic()
        for number, cell in enumerate(self.plan(runs), 1):
            try:
                outcome = self.measure(cell)
                told = briefly(Result.of([outcome]).figures)
            except Failed as failure:
                outcome = {"failed": str(failure)}
                told = f"failed: {failure}"
            runs[cell].append(outcome)
            progress = f"{number}/{len(chosen) * self.arguments.repeats} {time.monotonic() - started:5.0f} s"
            say(f"{progress}  {cell.client:16} {cell.workload:7} {cell.callers:5} {cell.loop:8} {told}")
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
        environment = self.contestants[cell.client].environment
        if environment in self.missing:
            raise Failed(f"no environment: {self.missing[environment]}")
        process = subprocess.Popen(  # noqa: S603 - our own script
            [self.python[environment], *self.command(cell)],
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


def briefly(figures: dict[str, float]) -> str:
    """The figures that tell most."""
    if "throughput" not in figures:
        return f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    return f"{figures['throughput']:10,.0f}/s {figures['cpu_us']:7.1f} µs, probe {figures['probe_ms']:.2f} ms"


def reason(errors: str, status: int) -> str:
    """Why a process failed: the end of its traceback."""
    return errors.strip().splitlines()[-1][:200] if errors.strip() else f"exit status {status}"


def say(text: str) -> None:
    """Print, also when the output is a pipe."""
    print(text, flush=True)  # noqa: T201 - a script's output


def command_line(parser: argparse.ArgumentParser, minutes: float) -> argparse.Namespace:
    """The arguments of all benchmarks, and those that the parser knows already.

    Args:
        parser: The benchmark's own.
        minutes: How long a whole run may repeat what was disturbed.
    """
    parser.add_argument("--quick", action="store_true", help="only what must and aim need")
    parser.add_argument("--repeats", type=int, help="default 5, quick 1")
    parser.add_argument(
        "--minutes", type=float, help=f"for which to repeat what was disturbed; default {minutes}, quick 1"
    )
    parser.add_argument("--seconds", type=float, default=0.8, help="that throughput is measured, each time")
    parser.add_argument("--only", default="", help="only cells whose client, workload, callers and loop contain this")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311 - nothing to guess
    chosen = parser.parse_args()
    chosen.repeats = chosen.repeats or (1 if chosen.quick else 5)
    if chosen.minutes is None:
        chosen.minutes = 1 if chosen.quick else minutes
    return chosen


@contextmanager
def own_server() -> Iterator[tuple[str, redis.Redis]]:
    """The URL of a server, ``redis-server`` before the embedded one, and a connection to it."""
    # Servers and clients inherit it; a connection for each of 1,024 callers takes a descriptor at both ends.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if found := shutil.which("redis-server"):
        os.environ.setdefault("AIOREDIS_MONITORED_SERVER", found)
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        yield server.url, client


def write(name: str, named: dict[str, Any], results: Results, told: str) -> Path:
    """Write the JSON file and the tables, and the tables into the README; where the files are.

    What is a part must not take the place of the whole.
    """
    settings = named["settings"]
    is_whole = not (settings["quick"] or settings["only"])
    directory = HERE / "results" if is_whole else HERE / "results" / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    # A line for each cell, which a diff shows well.
    lines = ",\n".join(json.dumps({**cell._asdict(), **result._asdict()}) for cell, result in results.items())
    (directory / f"{name}.json").write_text(f'{json.dumps(named)[:-1]}, "cells": [\n{lines}\n]}}\n', "utf-8")
    (directory / f"{name}.md").write_text(told, "utf-8")
    if is_whole:
        put_into_readme(name, told)
    return directory


def put_into_readme(name: str, text: str) -> None:
    """Replace what stands between the marks."""
    begin, end = f"<!-- {name} begin: written by its benchmark -->", f"<!-- {name} end -->"
    readme = HERE / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{text}{end}{after}", "utf-8")
