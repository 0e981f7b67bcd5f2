"""Waterfalls and metrics in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aioredis_monitored._telemetry import semconv_ext
from aioredis_monitored.cli.waterfall import Row
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.testing.capture import Recording

_DURATION_COLUMNS = 10
_MIN_BAR_COLUMNS = 6
_INDENT = 2


def print_waterfalls(console: Console, waterfalls: Sequence[Sequence[Row]]) -> None:
    """Print each trace: a line for each span, with a bar that shows when it ran.

    In a narrow terminal, bars give way to labels, and what is still too long goes on in the next line.
    """
    rows = [row for waterfall in waterfalls for row in waterfall]
    remark_columns = max([1, *(cell_len(row.remark) for row in rows)])
    label_columns = max([1, *(_INDENT * row.depth + cell_len(row.label) for row in rows)])
    left = console.width - label_columns - _DURATION_COLUMNS - remark_columns - 3
    bar_columns = max(_MIN_BAR_COLUMNS, min(console.width // 4, left))
    has_bars = left >= _MIN_BAR_COLUMNS
    mark = "=" if console.options.ascii_only else "━"
    for waterfall in waterfalls:
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
        table.add_column(overflow="fold", ratio=1)
        if has_bars:
            table.add_column(no_wrap=True, width=bar_columns)
        table.add_column(no_wrap=True, justify="right", width=_DURATION_COLUMNS)
        if has_bars:
            table.add_column(no_wrap=True, width=remark_columns)
        total = max(row.start + row.duration for row in waterfall)
        for row in waterfall:
            style = "red" if row.is_error else "cyan" if row.depth else "bold"
            text = row.label if has_bars or not row.remark else f"{row.label} {row.remark}"
            cells: list[RenderableType] = [Padding(Text(text, style=style), (0, 0, 0, _INDENT * row.depth))]
            cells.append(f"{row.duration:.2f} ms")
            if has_bars:
                cells.insert(1, Text(_bar(row, total, mark * bar_columns), style=style))
                cells.append(Text(row.remark, style=style))
            table.add_row(*cells)
        console.print(table)
        console.print()


def print_durations(console: Console, points: Sequence[Any]) -> None:
    """Print ``db.client.operation.duration``, a row for each operation and outcome."""
    table = Table(title="db.client.operation.duration", title_justify="left", title_style="bold")
    table.add_column("operation")
    servers = {_server(point) for point in points}
    if len(servers) > 1:
        table.add_column("server")
    table.add_column("error.type")
    table.add_column("calls", justify="right")
    table.add_column("mean", justify="right")
    for point in sorted(points, key=lambda point: -point.count):
        name = point.attributes.get("db.query.summary") or point.attributes["db.operation.name"]
        error = Text(point.attributes.get("error.type", ""), style="red")
        server = [_server(point)] if len(servers) > 1 else []
        table.add_row(name, *server, error, str(point.count), f"{point.sum / point.count * 1000:.2f} ms")
    console.print(table)


def print_cluster(console: Console, recording: Recording) -> None:
    """Print the metrics of a cluster, a row for each."""
    table = Table(show_header=False)
    for kind, count in sorted(recording.tally(semconv_ext.CLUSTER_REDIRECTS, semconv_ext.CLUSTER_REDIRECT).items()):
        table.add_row(f"{semconv_ext.CLUSTER_REDIRECTS} {kind}", f"{count:g}")
    for name in (semconv_ext.CLUSTER_REFRESHES, semconv_ext.FAILOVERS):
        table.add_row(name, f"{sum(recording.tally(name).values()):g}")
    console.print(table)


def _bar(row: Row, total: float, full: str) -> str:
    column = total / len(full) or 1
    begin = min(int(row.start / column), len(full) - 1)
    length = max(1, round(row.duration / column))
    return (" " * begin + full[:length])[: len(full)]


def _server(point: Any) -> str:
    address, port = (point.attributes.get(name, "") for name in ("server.address", "server.port"))
    return address_text(str(address), port) if port else str(address)
