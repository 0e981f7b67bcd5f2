"""Measures this package's queue beside redis-py's BLPOP and other libraries' workers; fails if it is not fast enough.

Usage: python benchmarks/queue_run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]
"""

import argparse
import json
import sys

from bench import HERE, Bench, command_line, own_server, say, write
from environments import machine
from matrix import Cell
from queue_matrix import CONTESTANTS, cells, messages, quick_cells
from queue_meter import Asked
from queue_report import missed, tables


def command(cell: Cell, url: str, seconds: float) -> list[str]:
    """What measures this cell once."""
    asked = Asked(*cell, url, messages(cell, seconds))
    return [str(HERE / "queue_driver.py"), json.dumps(asked._asdict())]


def main() -> None:
    """Measure, write, and tell what was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked = command_line(parser, minutes=2)
    chosen = [c for c in (quick_cells() if asked.quick else cells()) if asked.only in " ".join(map(str, c))]
    say(f"seed {asked.seed}: {len(chosen)} cells, {asked.repeats} repeats of {asked.seconds} s")
    with own_server() as (url, server):
        named = {"machine": machine(url, ("redis", "hiredis")), "settings": vars(asked)}
        results = Bench(server, CONTESTANTS, lambda cell: command(cell, url, asked.seconds), asked).run(chosen)
    told = tables(named, results)
    say(f"\n{told}\nwritten to {write('queue', named, results, told)}")
    if slow := missed(results, is_part=bool(asked.only)):
        sys.exit(f"missed: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
