"""The figures of one run, and how one compares to another."""

import statistics
from collections.abc import Callable
from operator import sub, truediv
from typing import Any, NamedTuple

from matrix import Cell


class Result(NamedTuple):
    """What the repeats of one cell gave."""

    median: dict[str, float]
    failures: list[str]
    runs: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: list[dict[str, Any]]) -> "Result":
        """The median of each figure over the runs that succeeded, and the reasons of those that did not."""
        succeeded = [run for run in runs if "failed" not in run]
        names = [name for name, value in succeeded[0].items() if isinstance(value, int | float)] if succeeded else []
        return cls(
            {name: statistics.median(run[name] for run in succeeded) for name in names},
            [run["failed"] for run in runs if "failed" in run],
            runs,
        )


class Results(dict[Cell, Result]):
    """The results by cell; a figure that is not there is ``None``."""

    def figure(self, cell: Cell, name: str = "throughput") -> float | None:
        """The median."""
        return self[cell].median.get(name) if cell in self else None

    def ratio(self, cell: Cell, other: Cell, name: str = "throughput") -> float | None:
        """One by another: the median of what each repeat gives."""
        return self._compare(truediv, cell, other, name)

    def difference(self, cell: Cell, other: Cell, name: str) -> float | None:
        """One less another: the median of what each repeat gives."""
        return self._compare(sub, cell, other, name)

    def _compare(self, compare: Callable[[Any, Any], float], cell: Cell, other: Cell, name: str) -> float | None:
        # Within a repeat, what is compared was measured at nearly the same time, in the same mood of the machine.
        if cell not in self or other not in self:
            return None
        repeats = zip(self[cell].runs, self[other].runs, strict=True)
        compared = [compare(one[name], another[name]) for one, another in repeats if name in one and name in another]
        return statistics.median(compared) if compared else None

    def failed(self, cell: Cell) -> bool:
        """Whether it was tried in vain."""
        return cell in self and not self[cell].median

    def telemetry(self, cell: Cell, name: str) -> list[Any]:
        """What each run told of its telemetry under this name."""
        runs = self[cell].runs if cell in self else []
        return [run["telemetry"][name] for run in runs if name in run.get("telemetry", {})]
