"""The figures of one run, and how one compares to another."""

import statistics
from operator import itemgetter
from typing import Any, NamedTuple

from matrix import Cell

# How many slices give throughput and CPU, and how many repeats the latencies: those in which the machine was quickest.
SLICES, REPEATS = 8, 3
# Up to what ratio of probes the machine was as quick.
AS_QUICK = 1.2
LATENCIES = ("p50_ms", "p99_ms")
USUAL = ("memory_mb", "starved", "connections")


class Result(NamedTuple):
    """What the repeats of one cell gave."""

    figures: dict[str, float]
    failures: list[str]
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: list[dict[str, Any]]) -> "Result":
        """The figures of the runs that succeeded, and the reasons of those that did not.

        What the machine's mood changes comes from its quickest moments. What is stolen and a probe tell them, and not
        the figure itself: what comes seldom, as a garbage collection, is in them as often as elsewhere.
        """
        succeeded = [run for run in runs if "failed" not in run]
        figures = {**_of_slices(succeeded), **_of_repeats(succeeded)} if succeeded else {}
        return cls(figures, [run["failed"] for run in runs if "failed" in run], runs)


def _of_slices(runs: list[dict[str, Any]]) -> dict[str, float]:
    # By what was stolen, then by the probe.
    slices = sorted(cut for run in runs for cut in run["slices"])
    stolen, probes, commands, seconds, cpu = zip(*slices[:SLICES], strict=True)
    return {
        "throughput": sum(commands) / sum(seconds),
        "cpu_us": sum(cpu) / sum(commands) * 1e6,
        "stolen": sum(stolen),
        "probe_ms": max(probes),
    }


def _of_repeats(runs: list[dict[str, Any]]) -> dict[str, float]:
    quickest = sorted(runs, key=itemgetter("stolen", "probe_ms"))[:REPEATS]
    chosen = {**dict.fromkeys(LATENCIES, quickest), **dict.fromkeys(USUAL, runs)}
    return {name: statistics.median(run[name] for run in chosen[name]) for name in chosen}


class Results(dict[Cell, Result]):
    """The results by cell; a figure that is not there is ``None``."""

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
        """The cells that the machine was not as quick for as it can be."""
        measured = {cell: result.figures for cell, result in self.items() if result.figures}
        quickest = min((figures["probe_ms"] for figures in measured.values() if not figures["stolen"]), default=0)
        return [
            cell for cell, figures in measured.items() if figures["stolen"] or figures["probe_ms"] > AS_QUICK * quickest
        ]

    def failed(self, cell: Cell) -> bool:
        """Whether it was tried in vain."""
        return cell in self and not self[cell].figures

    def telemetry(self, cell: Cell, name: str) -> list[Any]:
        """What each run told of its telemetry under this name."""
        runs = self[cell].runs if cell in self else []
        return [run["telemetry"][name] for run in runs if name in run.get("telemetry", {})]
