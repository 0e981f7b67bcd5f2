"""Spans as waterfalls and metrics as a table, in a terminal."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aioredis_monitored._telemetry import semconv_ext
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.testing.capture import Recording

_NANOSECONDS = 1e6  # in a millisecond


def print_waterfalls(console: Console, spans: Sequence[ReadableSpan]) -> None:
    """Print each trace: a line for each span, with a bar that shows when it ran."""
    traces: defaultdict[int, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=_start):
        traces[span.context.trace_id].append(span)
    remark_columns = max(1, *(len(_remark(span)) for span in spans))
    bar_columns = max(6, console.width // 4)
    mark = "=" if console.options.ascii_only else "━"
    for trace in traces.values():
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
        table.add_column(no_wrap=True, overflow="crop", ratio=1)
        table.add_column(no_wrap=True, width=bar_columns)
        table.add_column(no_wrap=True, justify="right", width=10)
        table.add_column(no_wrap=True, width=remark_columns)
        first, last = _start(trace[0]), max(_end(span) for span in trace)
        for span, depth in _tree(trace):
            failed = span.status.status_code is StatusCode.ERROR
            style = "red" if failed else "cyan" if depth else "bold"
            label = Text("  " * depth + _label(span), style=style)
            bar = Text(_bar(span, first, last, mark * bar_columns), style=style)
            milliseconds = (_end(span) - _start(span)) / _NANOSECONDS
            table.add_row(label, bar, f"{milliseconds:.2f} ms", Text(_remark(span), style=style))
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


def _label(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    text = attributes.get("db.query.summary") or attributes.get("db.query.text") or span.name
    size = attributes.get("db.operation.batch.size")
    return f"{text} ({size} commands)" if size else str(text)


def _server(point: Any) -> str:
    address, port = (point.attributes.get(name, "") for name in ("server.address", "server.port"))
    return address_text(str(address), port) if port else str(address)


def _remark(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    if redirects := attributes.get(semconv_ext.REDIRECTS):
        return f"{redirects} redirect{'' if redirects == 1 else 's'}"
    return str(attributes.get("error.type", ""))


def _tree(trace: Sequence[ReadableSpan]) -> Iterator[tuple[ReadableSpan, int]]:
    depths: dict[int, int] = {}
    for span in trace:
        depth = depths.get(span.parent.span_id, -1) + 1 if span.parent else 0
        depths[span.context.span_id] = depth
        yield span, depth


def _bar(span: ReadableSpan, first: int, last: int, full: str) -> str:
    column = (last - first) / len(full) or 1
    begin = min(int((_start(span) - first) / column), len(full) - 1)
    length = max(1, round((_end(span) - _start(span)) / column))
    return (" " * begin + full[:length])[: len(full)]


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0


def _end(span: ReadableSpan) -> int:
    return span.end_time or 0
