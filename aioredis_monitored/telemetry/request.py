"""What a request has asked of Redis, told on the request's own span."""

from collections import Counter
from typing import Any

from opentelemetry.trace import Span

from aioredis_monitored.telemetry import own, semconv
from aioredis_monitored.telemetry.trouble import report


class RequestView:
    """Counts the calls of one request.

    Args:
        span: The request's span; once it has ended, it is left alone.
        repeated_calls: How often one command may be called before the span gets an event.
        at_once: Whether the span is told of every call at once, for want of a moment in which the request ends.
    """

    def __init__(self, span: Span, repeated_calls: int, *, at_once: bool) -> None:
        self._span = span
        self._repeated_calls = repeated_calls
        self._at_once = at_once
        self._calls = 0
        self._seconds = 0.0
        self._operations: Counter[str] = Counter()

    def add(self, operation: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._calls += 1
        self._seconds += seconds
        self._operations[operation] += 1
        is_repeated = self._operations[operation] == self._repeated_calls + 1
        try:
            if is_repeated and self._span.is_recording():
                attributes: dict[str, Any] = {
                    semconv.DB_OPERATION_NAME: operation,
                    own.REPEATED_MORE_THAN: self._repeated_calls,
                }
                self._span.add_event(own.REPEATED, attributes)
            if self._at_once:
                self._tell()
        except BaseException as trouble:  # noqa: BLE001 - see report
            report(trouble)

    def end(self) -> None:
        """Tell the span what there was."""
        try:
            self._tell()
        except BaseException as trouble:  # noqa: BLE001 - see report
            report(trouble)

    def _tell(self) -> None:
        if self._calls and self._span.is_recording():
            self._span.set_attributes({own.REQUEST_CALLS: self._calls, own.REQUEST_DURATION: self._seconds})


def view_of(span: Span, repeated_calls: int, *, at_once: bool) -> RequestView | None:
    """What counts the calls of the request with this span, if the span records; the arguments are those of the view."""
    try:
        return RequestView(span, repeated_calls, at_once=at_once) if span.is_recording() else None
    except BaseException as trouble:  # noqa: BLE001 - see report
        report(trouble)
        return None
