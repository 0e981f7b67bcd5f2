"""Measure all cells in one run, in shuffled order, each in a separate process; write the results.

Usage: python benchmarks/run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from bench import HERE, Bench, benchmark_server, command_line, connections_to, failure_reason, print_line, write
from calls import COMMANDS
from driver import Measurement
from environments import machine
from matrix import CHART, CONTESTANTS, SDK_ALONE, Cell, cells, quick_cells
from plot import plot
from recording import ROUNDS
from report import tables
from verdict import verdict
from workloads import SIZES

QUICK_CALLS, QUICK_ROUNDS = 256, 40


def run_script(script: str, *arguments: int) -> dict[str, float] | str:
    """Run another script; return the JSON that it prints, or why it failed."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    process = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our scripts
    return (
        f"failed: {failure_reason(process.stderr, process.returncode)}"
        if process.returncode
        else json.loads(process.stdout)
    )


def main() -> None:
    """Measure, write the results, and print which bounds were met."""
    arguments = command_line(argparse.ArgumentParser(description=__doc__.splitlines()[0]), minutes=40)
    chosen = [c for c in (quick_cells() if arguments.quick else cells()) if arguments.only in " ".join(map(str, c))]
    print_line(f"seed {arguments.seed}: {len(chosen)} cells, {arguments.repeats} repeats of {arguments.seconds} s")
    with benchmark_server() as (url, server):

        def command(cell: Cell) -> list[str]:
            script = "sdk_alone.py" if cell.client in SDK_ALONE else "driver.py"
            measurement = Measurement(*cell, url, arguments.seed, arguments.seconds)
            return [str(HERE / script), json.dumps(measurement._asdict())]

        for key, size in SIZES.items():
            server.set(key, b"x" * size)
        metadata: dict[str, Any] = {"machine": machine(url), "settings": vars(arguments)}
        results = Bench(connections_to(server), CONTESTANTS, command, arguments).run(chosen)
    if not arguments.only:
        metadata["calls"] = run_script("calls.py", QUICK_CALLS if arguments.quick else COMMANDS)
        metadata["recording"] = run_script("recording.py", QUICK_ROUNDS if arguments.quick else ROUNDS)
    text = f"{tables(metadata, results)}\n{verdict(metadata, results)}"
    directory = write("results", metadata, results, text)
    plot(directory / "throughput.svg", results, CHART)
    print_line(f"\n{text}\nwritten to {directory}")


if __name__ == "__main__":
    main()
