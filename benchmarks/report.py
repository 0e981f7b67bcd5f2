"""Format a run's tables as markdown: one row per client, figures as ratios to redis-py."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from figures import Results
from matrix import BASE, CONTESTANTS, MANY, SDK_ALONE, Cell, Contestant

MISSING, FAILED = "-", "failed"
CLIENTS = [client for client in CONTESTANTS if client not in SDK_ALONE]

SMALL_GETS = """\
GET of 64 bytes, asyncio's loop. Throughput by number of callers, the rest at 128 callers; throughput, CPU and latency
as ratios to redis-py's `BlockingConnectionPool(50)` in the same run. *Starved* are callers that got no answer at all
during the measurement, which no quantile shows.
"""
OTHERS = """\
Other values, commands and loops: throughput as a ratio to the same pool in the same cell; the last two columns are
ratios to redis-py's `Redis` at 128 callers of the first table.
"""

Column = Callable[[str], str]


def tables(metadata: dict[str, Any], results: Results) -> str:
    """Format the machine and all tables."""

    def versus_pool(*cell: Any, name: str = "throughput", unit: str = "/s") -> Column:
        return lambda client: as_ratio(results, Cell(client, *cell), Cell(BASE, *cell), name, unit)

    def versus_redis(name: str, unit: str) -> Column:
        at_128 = ("get", MANY)
        return lambda client: as_ratio(results, Cell(client, *at_128), Cell("redis_py/redis", *at_128), name, unit)

    def number(*cell: Any, name: str) -> Column:
        return lambda client: as_number(results, Cell(client, *cell), name)

    cpu = {"name": "cpu_us", "unit": " µs"}
    return "\n".join(
        [
            provenance(metadata, results),
            SMALL_GETS,
            table(
                {
                    "1": versus_pool("get", 1),
                    "16": versus_pool("get", 16),
                    "128": versus_pool("get", MANY),
                    "1,024": versus_pool("get", 1024),
                    "CPU/command": versus_pool("get", MANY, **cpu),
                    "p50": versus_pool("get", MANY, name="p50_ms", unit=" ms"),
                    "p99": versus_pool("get", MANY, name="p99_ms", unit=" ms"),
                    "starved": number("get", MANY, name="starved"),
                    "connections": number("get", MANY, name="connections"),
                    "… of 1,024": number("get", 1024, name="connections"),
                    "MB": number("get", MANY, name="memory_mb"),
                    "spans dropped": lambda client: dropped_spans(results, Cell(client, "get", MANY)),
                }
            ),
            OTHERS,
            table(
                {
                    "10 kB, 1": versus_pool("10kB", 1),
                    "10 kB, 128": versus_pool("10kB", MANY),
                    "mix, 128": versus_pool("mix", MANY),
                    "uvloop, 1": versus_pool("get", 1, "uvloop"),
                    "uvloop, 128": versus_pool("get", MANY, "uvloop"),
                    "throughput / `Redis`": versus_redis("throughput", "/s"),
                    "CPU / `Redis`": versus_redis("cpu_us", " µs"),
                }
            ),
            "Eight callers of small GETs beside four that read 1 MB in a loop: the small GETs.\n",
            table(
                {
                    "p99": versus_pool("large", 8, name="p99_ms", unit=" ms"),
                    "p50": versus_pool("large", 8, name="p50_ms", unit=" ms"),
                    "throughput": versus_pool("large", 8),
                }
            ),
            "CPU time of the SDK alone.\n",
            table({"µs": number("get", MANY, name="cpu_us")}, SDK_ALONE),
            calls_table(metadata.get("calls", "not counted")),
            failures(results),
        ]
    )


def table(
    columns: dict[str, Column], clients: Iterable[str] = CLIENTS, contestants: dict[str, Contestant] = CONTESTANTS
) -> str:
    """Format a table with a row for each client that has a measurement."""
    rows = [[contestants[client].label, *(column(client) for column in columns.values())] for client in clients]
    lines = [["client", *columns], ["---", *("--:" for _ in columns)], *(r for r in rows if set(r[1:]) != {MISSING})]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_ratio(results: Results, cell: Cell, base: Cell, name: str, unit: str) -> str:
    """Format the ratio; in the baseline's row, the value that 1 stands for."""
    if cell == base and (one := results.figure(base, name)) is not None:
        return f"1 = {format_figure(one)}{unit}"
    value = results.ratio(cell, base, name)
    return missing_figure(results, cell) if value is None else format_figure(value)


def as_number(results: Results, cell: Cell, name: str) -> str:
    """Format the figure without a ratio."""
    value = results.figure(cell, name)
    return missing_figure(results, cell) if value is None else format_figure(value)


def dropped_spans(results: Results, cell: Cell) -> str:
    """Format the share of recorded spans that the batch processor dropped."""
    recorded, dropped = sum(results.telemetry(cell, "spans")), sum(results.telemetry(cell, "dropped"))
    return f"{dropped / recorded:.1%}" if recorded else missing_figure(results, cell)


def missing_figure(results: Results, cell: Cell) -> str:
    """Return the text for a missing figure: failed or not measured."""
    return FAILED if results.failed(cell) else MISSING


def format_figure(value: float) -> str:
    """Format the significant digits of a value."""
    if value == int(value) or value >= 100:  # noqa: PLR2004 - three digits are enough
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004 - the same


def calls_table(calls: dict[str, float] | str) -> str:
    """Format the counts of ``calls.py``."""
    if isinstance(calls, str):
        return f"Function calls per command: {calls}\n"
    clients = dict.fromkeys(key.rpartition(", ")[0] for key in calls)
    numbers = dict.fromkeys(key.rpartition(", ")[2] for key in calls)
    lines = ["| function calls per GET | ", " | ".join(f"{number} at once" for number in numbers), " |\n"]
    lines += ["| --- | ", " | ".join("--:" for _ in numbers), " |\n"]
    for client in clients:
        lines += [f"| {client} | ", " | ".join(f"{calls[f'{client}, {number}']:.1f}" for number in numbers), " |\n"]
    return "".join(lines)


def provenance(metadata: dict[str, Any], results: Results) -> str:
    """Describe the machine, the date, the versions, the settings and the probes of the run."""
    machine, settings = metadata["machine"], metadata["settings"]
    packages = {f"{name} {version}" for name, version in machine["packages"].items()}
    clients = {run["version"] for result in results.values() for run in result.runs if "version" in run}
    probes = [part[1] for result in results.values() for run in result.runs for part in run.get("slices", ())]
    counted = [result.figures["probe_ms"] for result in results.values() if "probe_ms" in result.figures]
    probe_text = (
        f" The probe took {min(probes):.2f} to {max(probes):.2f} ms, half of the times more than "
        f"{statistics.median(probes):.2f}; beside the slices that count it took up to {statistics.median(counted):.2f} "
        f"ms in the median cell, and {max(counted):.2f} in the worst."
        if probes
        else ""
    )
    numbers = [len(result.runs) for result in results.values()]
    repeats = " to ".join(str(number) for number in sorted({min(numbers), max(numbers)}))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, {machine['python']}, "
        f"{machine['server']}, {machine['date']}; {', '.join(sorted(packages | clients))}. "
        f"Seed {settings['seed']}; {repeats} repeats of {settings['seconds']} s each.{probe_text}\n"
    )


def failures(results: Results, contestants: dict[str, Contestant] = CONTESTANTS) -> str:
    """List failed measurements with their reasons."""
    lines = [
        f"- {contestants[cell.client].label} ({cell.workload}, {cell.callers}, {cell.loop}): "
        f"{len(result.failures)} of {len(result.runs)} failed: {'; '.join(sorted(set(result.failures)))}\n"
        for cell, result in results.items()
        if result.failures
    ]
    return "Failed:\n\n" + "".join(lines) if lines else "Nothing failed.\n"
