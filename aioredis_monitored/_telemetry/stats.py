"""What a process knows of a request and of a queue."""

from collections import Counter
from collections.abc import Sized
from time import monotonic
from typing import Any, Final, NamedTuple
from weakref import WeakSet

from opentelemetry.trace import Span

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.guard import log_error

# Seconds after which what was seen is no longer told, at least.
_MIN_FRESH_SECONDS: Final = 60.0


class PoolStats(NamedTuple):
    """The figures of a pool at one time.

    Attributes:
        name: What metrics call the pool.
        max_connections: The most connections that it may have.
        used: The connections that callers have, the shared one included.
        idle: The open connections that no caller has.
        pending: The callers that wait for a connection, or for room on the shared one.
        in_flight: The calls on the shared connection that are owed a reply.
    """

    name: str
    max_connections: int
    used: int
    idle: int
    pending: int
    in_flight: int


class QueueStats:
    """What the consumers and producers of one process know of a queue.

    Args:
        attributes: Those of its points.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self._depth: tuple[int, float] | None = None
        self._dead: tuple[int, float] | None = None
        self._fresh = _MIN_FRESH_SECONDS
        self._holders: WeakSet[Any] = WeakSet()

    def update(self, *, depth: int | None = None, dead: int | None = None) -> None:
        """Take note of how many messages there are in it, or in the list of the dead."""
        now = monotonic()
        if depth is not None:
            self._depth = (depth, now)
        if dead is not None:
            self._dead = (dead, now)

    def track(self, holder: Sized, lease: float) -> None:
        """Count what it holds, for as long as it is there.

        Args:
            holder: Its length is how many it holds.
            lease: In seconds; it looks several times in that.
        """
        self._holders.add(holder)
        self._fresh = max(self._fresh, lease)

    def depth(self) -> int | None:
        """How many messages are in it, if that was seen of late."""
        return self._if_fresh(self._depth)

    def dead(self) -> int | None:
        """How many are dead, if that was seen of late."""
        return self._if_fresh(self._dead)

    def in_flight(self) -> int:
        """How many this process holds."""
        # A copy: exporters look from a thread of their own.
        return sum(len(holder) for holder in list(self._holders))

    def _if_fresh(self, seen: tuple[int, float] | None) -> int | None:
        return seen[0] if seen is not None and monotonic() - seen[1] < self._fresh else None


class RequestStats:
    """Counts the calls of one request.

    Args:
        span: The request's span; once it has ended, it is left alone.
        repeated_calls: How often one command may be called before the span gets an event.
        at_once: Whether the span is told of every call at once, for want of a moment in which the request ends.
    """

    def __init__(self, span: Span, repeated_calls: int, *, eager: bool) -> None:
        self._span = span
        self._repeated_calls = repeated_calls
        self._is_eager = eager
        self._calls = 0
        self._seconds = 0.0
        self._operations: Counter[str] = Counter()

    def record_call(self, operation: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._calls += 1
        self._seconds += seconds
        self._operations[operation] += 1
        is_repeated = self._operations[operation] == self._repeated_calls + 1
        try:
            if is_repeated and self._span.is_recording():
                attributes: dict[str, Any] = {
                    semconv.DB_OPERATION_NAME: operation,
                    semconv_ext.REPEATED_MORE_THAN: self._repeated_calls,
                }
                self._span.add_event(semconv_ext.REPEATED, attributes)
            if self._is_eager:
                self._set_attributes()
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)

    def close(self) -> None:
        """Tell the span what there was."""
        try:
            self._set_attributes()
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)

    def _set_attributes(self) -> None:
        if self._calls and self._span.is_recording():
            self._span.set_attributes(
                {semconv_ext.REQUEST_CALLS: self._calls, semconv_ext.REQUEST_DURATION: self._seconds}
            )


def request_stats(span: Span, repeated_calls: int, *, eager: bool) -> RequestStats | None:
    """What counts the calls of the request with this span, if the span records; the arguments are those of the view."""
    try:
        return RequestStats(span, repeated_calls, eager=eager) if span.is_recording() else None
    except BaseException as trouble:  # noqa: BLE001 - see report
        log_error(trouble)
        return None
