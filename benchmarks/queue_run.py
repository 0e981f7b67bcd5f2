"""Measure this package's queue beside redis-py's BLPOP and other libraries' workers; fail if it is too slow.

Usage: python benchmarks/queue_run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]
"""

import argparse
import json
import sys

from bench import HERE, Bench, benchmark_server, command_line, connections_to, print_line, write
from environments import machine
from matrix import Cell
from queue_matrix import CONTESTANTS, cells, messages, quick_cells
from queue_meter import QueueMeasurement
from queue_report import missed, tables


def command(cell: Cell, url: str, seconds: float) -> list[str]:
    """Return the command that measures this cell once."""
    measurement = QueueMeasurement(*cell, url, messages(cell, seconds))
    return [str(HERE / "queue_driver.py"), json.dumps(measurement._asdict())]


def main() -> None:
    """Measure, write the results, and exit with the missed bounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments = command_line(parser, minutes=2)
    chosen = [c for c in (quick_cells() if arguments.quick else cells()) if arguments.only in " ".join(map(str, c))]
    print_line(f"seed {arguments.seed}: {len(chosen)} cells, {arguments.repeats} repeats of {arguments.seconds} s")
    with benchmark_server() as (url, server):
        metadata = {"machine": machine(url, ("redis", "hiredis")), "settings": vars(arguments)}
        bench = Bench(
            connections_to(server), CONTESTANTS, lambda cell: command(cell, url, arguments.seconds), arguments
        )
        results = bench.run(chosen)
    text = tables(metadata, results)
    print_line(f"\n{text}\nwritten to {write('queue', metadata, results, text)}")
    if slow := missed(results, is_part=bool(arguments.only)):
        sys.exit(f"missed: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
