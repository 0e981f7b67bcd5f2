"""Compute the figures of one run, and ratios between them."""

import statistics
from operator import itemgetter
from typing import Any, NamedTuple

from matrix import Cell

# A slice is undisturbed if nothing was stolen and the probe took at most this ratio of the run's shortest.
MAX_PROBE_RATIO = 1.1
# With fewer undisturbed slices or repeats, this number of the quickest count.
MIN_SLICES, MIN_REPEATS = 20, 3
LATENCIES = ("p50_ms", "p99_ms")
MEDIANS = ("memory_mb", "starved", "connections", "server_us")


class Result(NamedTuple):
    """The results of one cell's repeats."""

    figures: dict[str, float]
    failures: list[str]
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: list[dict[str, Any]], max_probe_ms: float = 0.0) -> "Result":
        """Compute figures from the runs that succeeded, and keep the failures of the others.

        Figures that depend on the machine's speed come from undisturbed slices (throughput, CPU) and repeats
        (latencies). Stolen ticks and the probe select them, never the figure itself, so that rare events, such as a
        garbage collection, are as frequent in them as elsewhere.

        Args:
            runs: What the driver printed for each repeat, or ``failed`` and the reason.
            max_probe_ms: The longest probe, in milliseconds, of an undisturbed machine.
        """
        succeeded = [run for run in runs if "failed" not in run]
        figures = {**_of_slices(succeeded, max_probe_ms), **_of_repeats(succeeded, max_probe_ms)} if succeeded else {}
        return cls(figures, [run["failed"] for run in runs if "failed" in run], runs)


def _of_slices(runs: list[dict[str, Any]], max_probe_ms: float) -> dict[str, float]:
    # Sorted by stolen ticks, then by the probe.
    slices = sorted(part for run in runs for part in run.get("slices", ()))
    if not slices:
        return {}
    undisturbed = sum(stolen == 0 and probe_ms <= max_probe_ms for stolen, probe_ms, *_ in slices)
    _, probes, commands, seconds, cpu = zip(*slices[: max(undisturbed, MIN_SLICES)], strict=True)
    return {
        "throughput": sum(commands) / sum(seconds),
        "cpu_us": sum(cpu) / sum(commands) * 1e6,
        "probe_ms": max(probes),
        "undisturbed": undisturbed,
    }


def _of_repeats(runs: list[dict[str, Any]], max_probe_ms: float) -> dict[str, float]:
    usual = {name: statistics.median(run[name] for run in runs) for name in MEDIANS if name in runs[0]}
    if not all(name in runs[0] for name in LATENCIES):
        return usual
    quickest = sorted(runs, key=itemgetter("stolen", "probe_ms"))
    undisturbed = sum(run["stolen"] == 0 and run["probe_ms"] <= max_probe_ms for run in runs)
    chosen = quickest[: max(undisturbed, MIN_REPEATS)]
    medians = {name: statistics.median(run[name] for run in chosen) for name in LATENCIES}
    return {**medians, **usual, "undisturbed_repeats": undisturbed}


class Results(dict[Cell, Result]):
    """The results by cell; a missing figure is ``None``."""

    @classmethod
    def of(cls, runs: dict[Cell, list[dict[str, Any]]]) -> "Results":
        """Compute the results of all runs; their shortest probe is the machine's full speed."""
        slices = (part for repeats in runs.values() for run in repeats for part in run.get("slices", ()))
        max_probe_ms = MAX_PROBE_RATIO * min((probe_ms for stolen, probe_ms, *_ in slices if not stolen), default=0.0)
        return cls({cell: Result.of(repeats, max_probe_ms) for cell, repeats in runs.items()})

    def figure(self, cell: Cell, name: str = "throughput") -> float | None:
        """Return the figure with this name."""
        return self[cell].figures.get(name) if cell in self else None

    def ratio(self, cell: Cell, other: Cell, name: str = "throughput") -> float | None:
        """Return a cell's figure divided by another cell's."""
        one, another = self.figure(cell, name), self.figure(other, name)
        return None if one is None or another is None else one / another

    def difference(self, cell: Cell, other: Cell, name: str) -> float | None:
        """Return a cell's figure minus another cell's."""
        one, another = self.figure(cell, name), self.figure(other, name)
        return None if one is None or another is None else one - another

    def disturbed(self) -> list[Cell]:
        """List the cells that have too few undisturbed slices or repeats."""
        measured = {cell: result.figures for cell, result in self.items() if result.figures}
        return [
            cell
            for cell, figures in measured.items()
            if figures.get("undisturbed", MIN_SLICES) < MIN_SLICES
            or figures.get("undisturbed_repeats", MIN_REPEATS) < MIN_REPEATS
        ]

    def failed(self, cell: Cell) -> bool:
        """Return whether every measurement of the cell failed."""
        return cell in self and not self[cell].figures

    def telemetry(self, cell: Cell, name: str) -> list[Any]:
        """Return the values that the runs' telemetry reports under this name."""
        runs = self[cell].runs if cell in self else []
        return [run["telemetry"][name] for run in runs if name in run.get("telemetry", {})]
