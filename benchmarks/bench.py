"""Run a benchmark's cells in shuffled order, each repeat in a separate process, and write the results."""

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
POLL_SECONDS = 0.2
DEADLINE_SECONDS = 60.0


class MeasurementError(Exception):
    """A measurement failed; the message is the reason."""


class Bench:
    """One run on one server.

    Args:
        count_connections: Returns the number of connections to the servers that the clients use.
        contestants: The clients by name.
        command: Returns the script and arguments with which Python measures a cell once.
        arguments: The parsed command line.
    """

    def __init__(
        self,
        count_connections: Callable[[], int],
        contestants: dict[str, Contestant],
        command: Callable[[Cell], list[str]],
        arguments: argparse.Namespace,
    ) -> None:
        self.count_connections = count_connections
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
                summary = summarize(Result.of([outcome]).figures)
            except MeasurementError as failure:
                outcome = {"failed": str(failure)}
                summary = f"failed: {failure}"
            runs[cell].append(outcome)
            progress = f"{number}/{len(chosen) * self.arguments.repeats} {time.monotonic() - started:5.0f} s"
            print_line(f"{progress}  {cell.client:16} {cell.workload:7} {cell.callers:5} {cell.loop:8} {summary}")
        return Results.of(runs)

    def plan(self, runs: dict[Cell, list[dict[str, Any]]]) -> Iterator[Cell]:
        """Yield each cell ``repeats`` times, then disturbed cells until the time limit.

        The machine's speed changes from minute to minute: each repeat has a different order, in which cells that are
        compared follow each other.
        """
        order = random.Random(self.arguments.seed)  # noqa: S311 - not for security
        end = time.monotonic() + 60 * self.arguments.minutes

        def shuffled(cells: Iterable[Cell]) -> list[Cell]:
            place: dict[Any, float] = defaultdict(order.random)
            return sorted(cells, key=lambda cell: (place[cell.group], order.random()))

        for _ in range(self.arguments.repeats):
            yield from shuffled(runs)
        while disturbed := Results.of(runs).disturbed():
            for cell in shuffled(disturbed):
                if time.monotonic() > end:
                    return
                yield cell

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell once.

        Raises:
            MeasurementError: The cell could not be measured.
        """
        environment = self.contestants[cell.client].environment
        if environment in self.missing:
            raise MeasurementError(f"no environment: {self.missing[environment]}")
        process = subprocess.Popen(  # noqa: S603 - this project's script
            [self.python[environment], *self.command(cell)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE,
        )
        connections, deadline = 0, time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                output, errors = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                connections = max(connections, self.count_connections())
        else:
            process.kill()
            process.communicate()
            raise MeasurementError(f"no result within {DEADLINE_SECONDS:.0f} s")
        if process.returncode:
            raise MeasurementError(failure_reason(errors, process.returncode))
        return {**json.loads(output), "connections": connections}


def summarize(figures: dict[str, float]) -> str:
    """Format the most important figures."""
    if "throughput" not in figures:
        return f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms"
    return f"{figures['throughput']:10,.0f}/s {figures['cpu_us']:7.1f} µs, probe {figures['probe_ms']:.2f} ms"


def failure_reason(errors: str, status: int) -> str:
    """Return why a process failed: the last line of its traceback."""
    return errors.strip().splitlines()[-1][:200] if errors.strip() else f"exit status {status}"


def print_line(text: str) -> None:
    """Print at once, even if the output is a pipe."""
    print(text, flush=True)  # noqa: T201 - a script's output


def command_line(parser: argparse.ArgumentParser, minutes: float) -> argparse.Namespace:
    """Parse the arguments that all benchmarks share, and those that the parser already has.

    Args:
        parser: The parser of one benchmark.
        minutes: For how long a whole run may repeat disturbed cells.
    """
    parser.add_argument("--quick", action="store_true", help="measure only the cells of the bounds")
    parser.add_argument("--repeats", type=int, help="repeats of each cell; default 5, quick 1")
    parser.add_argument("--minutes", type=float, help=f"time to repeat disturbed cells; default {minutes}, quick 1")
    parser.add_argument("--seconds", type=float, default=0.8, help="duration of each throughput measurement")
    parser.add_argument(
        "--only", default="", help="measure only cells whose client, workload, callers and loop contain this"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311 - not for security
    chosen = parser.parse_args()
    chosen.repeats = chosen.repeats or (1 if chosen.quick else 5)
    if chosen.minutes is None:
        chosen.minutes = 1 if chosen.quick else minutes
    return chosen


def connections_to(*servers: redis.Redis) -> Callable[[], int]:
    """Return what counts the connections to servers beyond those that there are now."""

    def count() -> int:
        return sum(server.info("clients")["connected_clients"] for server in servers)

    before = count()
    return lambda: count() - before


@contextmanager
def benchmark_server() -> Iterator[tuple[str, redis.Redis]]:
    """Start a server, ``redis-server`` if it is installed or the embedded one; yield its URL and a client."""
    choose_server()
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        yield server.url, client


def choose_server() -> None:
    """Let servers be ``redis-server`` if it is installed, or else the embedded one, with many connections."""
    # Servers and clients inherit the limit; 1,024 connections need that many descriptors at each end.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    if found := shutil.which("redis-server"):
        os.environ.setdefault("AIOREDIS_MONITORED_SERVER", found)


def write(name: str, metadata: dict[str, Any], results: Results, text: str) -> Path:
    """Write the JSON file, the tables and the README's tables; return the directory of the files.

    A partial run must not overwrite the results of a whole run, nor the README.
    """
    settings = metadata["settings"]
    is_whole = not (settings["quick"] or settings["only"])
    directory = HERE / "results" if is_whole else HERE / "results" / "partial"
    directory.mkdir(parents=True, exist_ok=True)
    # One line per cell keeps diffs readable.
    lines = ",\n".join(json.dumps({**cell._asdict(), **result._asdict()}) for cell, result in results.items())
    (directory / f"{name}.json").write_text(f'{json.dumps(metadata)[:-1]}, "cells": [\n{lines}\n]}}\n', "utf-8")
    (directory / f"{name}.md").write_text(text, "utf-8")
    if is_whole:
        put_into_readme(name, text)
    return directory


def put_into_readme(name: str, text: str) -> None:
    """Replace the text between the benchmark's markers in the README."""
    begin, end = f"<!-- {name} begin: written by its benchmark -->", f"<!-- {name} end -->"
    readme = HERE / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(begin)
    _, _, after = rest.partition(end)
    readme.write_text(f"{before}{begin}\n{text}{end}{after}", "utf-8")
