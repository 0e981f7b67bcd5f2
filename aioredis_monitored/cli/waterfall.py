"""Traces as waterfalls: what a terminal and the page of the demo show of each span."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from aioredis_monitored._telemetry import semconv_ext

_NANOSECONDS = 1e6  # in a millisecond


class Row(NamedTuple):
    """A span in a waterfall.

    Attributes:
        label: What it did.
        depth: How many spans are above it.
        start: Milliseconds from the trace's beginning to its own.
        duration: Milliseconds from its beginning to its end.
        remark: Its error, or the number of its redirects; empty if it has neither.
        is_error: Whether it has failed.
    """

    label: str
    depth: int
    start: float
    duration: float
    remark: str
    is_error: bool


def waterfalls(spans: Iterable[ReadableSpan]) -> list[list[Row]]:
    """Return a waterfall for each trace, in the order in which they began."""
    traces: defaultdict[int, list[ReadableSpan]] = defaultdict(list)
    for span in sorted(spans, key=_start):
        traces[span.context.trace_id].append(span)
    return [_rows(trace) for trace in traces.values()]


def _rows(trace: Sequence[ReadableSpan]) -> list[Row]:
    depths: dict[int, int] = {}
    first = _start(trace[0])
    for span in trace:
        depths[span.context.span_id] = depths.get(span.parent.span_id, -1) + 1 if span.parent else 0
    return [
        Row(
            _label(span),
            depths[span.context.span_id],
            (_start(span) - first) / _NANOSECONDS,
            ((span.end_time or 0) - _start(span)) / _NANOSECONDS,
            _remark(span),
            span.status.status_code is StatusCode.ERROR,
        )
        for span in trace
    ]


def _label(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    text = attributes.get("db.query.summary") or attributes.get("db.query.text") or span.name
    size = attributes.get("db.operation.batch.size")
    return f"{text} ({size} commands)" if size else str(text)


def _remark(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    if redirects := attributes.get(semconv_ext.REDIRECTS):
        return f"{redirects} redirect{'' if redirects == 1 else 's'}"
    return str(attributes.get("error.type", ""))


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0
