"""Draw the throughput of every client at 1, 16, 128 and 1,024 callers, as ratios to redis-py's at 128."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from figures import Results
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matrix import MANY, Cell, Chart

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
CALLERS = {1: "o", 16: "^", 128: "s", 1024: "D"}
# Readable on a white and on a black background.
TEXT, GRID, OURS, OTHERS = "#808890", "#80889055", "#e0701a", "#4a90d0"


def plot(path: Path, results: Results, chart: Chart) -> None:
    """Write the chart as SVG; the same results give the same bytes."""
    # The chart of an earlier run must not stay beside the tables of this one.
    path.unlink(missing_ok=True)

    def figure_of(client: str, callers: int) -> float | None:
        return results.figure(Cell(client, chart.workload, callers))

    one = figure_of(chart.base, MANY)
    clients = [client for client in chart.contestants if figure_of(client, MANY)]
    if not one or not clients:
        return
    clients.sort(key=lambda client: figure_of(client, MANY) or 0)
    mpl.rcParams.update(
        {"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    )
    figure = Figure(figsize=(9, 0.34 * len(clients) + 1.3), layout="constrained")
    axes = figure.subplots()
    for row, client in enumerate(clients):
        colour = OURS if client.startswith("ours/") else OTHERS
        found = {n: value / one for n in CALLERS if (value := figure_of(client, n))}
        axes.plot([min(found.values()), max(found.values())], [row, row], color=colour, linewidth=1, alpha=0.6)
        for callers, value in found.items():
            axes.plot(value, row, CALLERS[callers], color=colour, **fill(callers))
        axes.text(1.02, row, f"{found[MANY]:.2g}", color=colour, va="center", transform=axes.get_yaxis_transform())
    for callers, marker in CALLERS.items():
        axes.plot([], [], marker, color=TEXT, label=f"{callers:,}", **fill(callers))
    axes.set_xscale("log")
    axes.axvline(1, color=TEXT, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(clients)), [chart.contestants[client].label for client in clients])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([t for t in TICKS if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]])
    axes.grid(axis="x", color=GRID)
    axes.tick_params(colors=TEXT)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(TEXT)
    figure.legend(loc="outside upper right", ncols=len(CALLERS), frameon=False, labelcolor=TEXT, handletextpad=0)
    figure.suptitle(chart.title, color=TEXT, fontsize=11, x=0.01, ha="left")
    figure.supxlabel(f"1 = {chart.one} at {MANY} callers", color=TEXT, fontsize=10)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def fill(callers: int) -> dict[str, Any]:
    """Return the style of a marker: filled for the number of callers of most comparisons."""
    return {"markersize": 6, "fillstyle": "full" if callers == MANY else "none"}
