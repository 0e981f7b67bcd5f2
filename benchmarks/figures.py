"""The figures of one run, and how one compares to another."""

import statistics
from operator import itemgetter
from typing import Any, NamedTuple

from matrix import Cell

# A moment counts as undisturbed if nothing was stolen and the probe took at most this ratio of the run's shortest.
AS_QUICK = 1.1
# Where there are fewer of them, as many of the quickest slices and repeats count.
SLICES, REPEATS = 20, 3
LATENCIES = ("p50_ms", "p99_ms")
USUAL = ("memory_mb", "starved", "connections", "server_us")


class Result(NamedTuple):
    """What the repeats of one cell gave."""

    figures: dict[str, float]
    failures: list[str]
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: list[dict[str, Any]], quick_ms: float = 0.0) -> "Result":
        """The figures of the runs that succeeded, and the reasons of those that did not.

        What the machine's mood changes comes from its undisturbed moments: throughput and CPU from slices, latencies
        from repeats. What is stolen and a probe tell them, and not the figure itself: what comes seldom, as a garbage
        collection, is in them as often as elsewhere.

        Args:
            runs: What the driver printed, or ``failed`` and a reason.
            quick_ms: What the probe takes at most while the machine is undisturbed.
        """
        succeeded = [run for run in runs if "failed" not in run]
        figures = {**_of_slices(succeeded, quick_ms), **_of_repeats(succeeded, quick_ms)} if succeeded else {}
        return cls(figures, [run["failed"] for run in runs if "failed" in run], runs)


def _of_slices(runs: list[dict[str, Any]], quick_ms: float) -> dict[str, float]:
    # By what was stolen, then by the probe.
    slices = sorted(cut for run in runs for cut in run.get("slices", ()))
    if not slices:
        return {}
    undisturbed = sum(stolen == 0 and probe_ms <= quick_ms for stolen, probe_ms, *_ in slices)
    _, probes, commands, seconds, cpu = zip(*slices[: max(undisturbed, SLICES)], strict=True)
    return {
        "throughput": sum(commands) / sum(seconds),
        "cpu_us": sum(cpu) / sum(commands) * 1e6,
        "probe_ms": max(probes),
        "undisturbed": undisturbed,
    }


def _of_repeats(runs: list[dict[str, Any]], quick_ms: float) -> dict[str, float]:
    usual = {name: statistics.median(run[name] for run in runs) for name in USUAL if name in runs[0]}
    if not all(name in runs[0] for name in LATENCIES):
        return usual
    quickest = sorted(runs, key=itemgetter("stolen", "probe_ms"))
    undisturbed = sum(run["stolen"] == 0 and run["probe_ms"] <= quick_ms for run in runs)
    chosen = quickest[: max(undisturbed, REPEATS)]
    medians = {name: statistics.median(run[name] for run in chosen) for name in LATENCIES}
    return {**medians, **usual, "undisturbed_repeats": undisturbed}


class Results(dict[Cell, Result]):
    """The results by cell; a figure that is not there is ``None``."""

    @classmethod
    def of(cls, runs: dict[Cell, list[dict[str, Any]]]) -> "Results":
        """The results of all runs, the shortest probe of which tells how quick the machine can be."""
        slices = (cut for repeats in runs.values() for run in repeats for cut in run.get("slices", ()))
        quick_ms = AS_QUICK * min((probe_ms for stolen, probe_ms, *_ in slices if not stolen), default=0.0)
        return cls({cell: Result.of(repeats, quick_ms) for cell, repeats in runs.items()})

    def figure(self, cell: Cell, name: str = "throughput") -> float | None:
        """The figure of this name."""
        return self[cell].figures.get(name) if cell in self else None

    def ratio(self, cell: Cell, other: Cell, name: str = "throughput") -> float | None:
        """One by another."""
        one, another = self.figure(cell, name), self.figure(other, name)
        return None if one is None or another is None else one / another

    def difference(self, cell: Cell, other: Cell, name: str) -> float | None:
        """One less another."""
        one, another = self.figure(cell, name), self.figure(other, name)
        return None if one is None or another is None else one - another

    def disturbed(self) -> list[Cell]:
        """The cells for which too few slices or repeats were undisturbed."""
        measured = {cell: result.figures for cell, result in self.items() if result.figures}
        return [
            cell
            for cell, figures in measured.items()
            if figures.get("undisturbed", SLICES) < SLICES or figures.get("undisturbed_repeats", REPEATS) < REPEATS
        ]

    def failed(self, cell: Cell) -> bool:
        """Whether it was tried in vain."""
        return cell in self and not self[cell].figures

    def telemetry(self, cell: Cell, name: str) -> list[Any]:
        """What each run told of its telemetry under this name."""
        runs = self[cell].runs if cell in self else []
        return [run["telemetry"][name] for run in runs if name in run.get("telemetry", {})]
