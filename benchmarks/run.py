"""Measures everything in one run, in shuffled order, each figure in a process of its own; writes the results.

Usage: python benchmarks/run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]
"""

import argparse
import json
import subprocess
import sys
from typing import Any

from bench import HERE, Bench, command_line, own_server, reason, say, write
from calls import COMMANDS
from driver import Measurement
from environments import machine
from matrix import CONTESTANTS, SDK_ALONE, Cell, cells, quick_cells
from plot import plot
from recording import ROUNDS
from report import tables
from verdict import verdict
from workloads import SIZES

QUICK_CALLS, QUICK_ROUNDS = 256, 40


def told_by(script: str, *arguments: int) -> dict[str, float] | str:
    """What another script prints as JSON, or why it failed."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own scripts
    return f"failed: {reason(told.stderr, told.returncode)}" if told.returncode else json.loads(told.stdout)


def main() -> None:
    """Measure, write, and tell what was reached."""
    asked = command_line(argparse.ArgumentParser(description=__doc__.splitlines()[0]), minutes=40)
    chosen = [c for c in (quick_cells() if asked.quick else cells()) if asked.only in " ".join(map(str, c))]
    say(f"seed {asked.seed}: {len(chosen)} cells, {asked.repeats} repeats of {asked.seconds} s")
    with own_server() as (url, server):

        def command(cell: Cell) -> list[str]:
            script = "sdk_alone.py" if cell.client in SDK_ALONE else "driver.py"
            what = Measurement(*cell, url, asked.seed, asked.seconds)
            return [str(HERE / script), json.dumps(what._asdict())]

        for key, size in SIZES.items():
            server.set(key, b"x" * size)
        named: dict[str, Any] = {"machine": machine(url), "settings": vars(asked)}
        results = Bench(server, CONTESTANTS, command, asked).run(chosen)
    if not asked.only:
        named["calls"] = told_by("calls.py", QUICK_CALLS if asked.quick else COMMANDS)
        named["recording"] = told_by("recording.py", QUICK_ROUNDS if asked.quick else ROUNDS)
    told = f"{tables(named, results)}\n{verdict(named, results)}"
    directory = write("results", named, results, told)
    plot(directory / "throughput.svg", results)
    say(f"\n{told}\nwritten to {directory}")


if __name__ == "__main__":
    main()
