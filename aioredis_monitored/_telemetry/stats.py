"""What this process knows about one pool, one request and one queue."""

from collections import Counter
from collections.abc import Sized
from time import monotonic, time_ns
from typing import Any, ClassVar, Final, NamedTuple
from weakref import WeakSet, WeakValueDictionary

from opentelemetry import trace
from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.trace import Span

from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.guard import guarded

# The lower bound of the age at which a length that was seen is no longer reported.
_MIN_FRESH_SECONDS: Final = 60.0


class PoolStats(NamedTuple):
    """The state of a pool at one time.

    Attributes:
        name: The name of the pool in metrics.
        max_connections: The maximum number of connections.
        used: The number of acquired connections, the shared ones included.
        idle: The number of open connections that are not acquired.
        pending: The number of callers that wait for a connection, or for room on the shared one.
        in_flight: The number of calls on the shared connection that have no reply yet.
    """

    name: str
    max_connections: int
    used: int
    idle: int
    pending: int
    in_flight: int


class RequestStats:
    """Counts the calls of one request, and reports them on the request's span until the span has ended.

    Args:
        span: The request's span.
        repeated_calls: The number of calls of one command above which the span reports it as repeated.
        eager: Whether the span is updated after every call, because the end of the request is not known.
        logger: Where repeated commands are also reported as log events; default ``None``, for nowhere.
    """

    # By the id of the span, which they keep alive; they live as long as a connection object or a middleware has them.
    _of_spans: ClassVar[WeakValueDictionary[int, "RequestStats"]] = WeakValueDictionary()

    def __init__(self, span: Span, repeated_calls: int, *, eager: bool, logger: Logger | None = None) -> None:
        self._span = span
        self._repeated_calls = repeated_calls
        self._is_eager = eager
        self._logger = logger
        self._calls = 0
        self._seconds = 0.0
        self._operations: Counter[str] = Counter()
        self._repeated: list[str] = []

    @classmethod
    def of(cls, span: Span, repeated_calls: int, *, eager: bool, logger: Logger | None = None) -> "RequestStats":
        """Return what counts the calls of a span, on all pools of the request; the strictest of these decides how."""
        if (stats := cls._of_spans.get(id(span))) is None:
            stats = cls._of_spans[id(span)] = cls(span, repeated_calls, eager=eager, logger=logger)
        stats._repeated_calls = min(stats._repeated_calls, repeated_calls)
        stats._is_eager |= eager
        stats._logger = stats._logger or logger
        return stats

    def record_call(self, operation: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._calls += 1
        self._seconds += seconds
        self._operations[operation] += 1
        if self._operations[operation] == self._repeated_calls + 1:
            self._report_repeated(operation)
        if self._is_eager:
            self._report_calls()

    def _report_repeated(self, operation: str) -> None:
        with guarded:
            if not self._span.is_recording():
                return
            self._repeated.append(operation)
            self._span.set_attribute(semconv_ext.REQUEST_REPEATED, tuple(self._repeated))
        if self._logger is not None:
            with guarded:
                self._logger.emit(
                    timestamp=time_ns(),
                    # Not the current context: the event belongs to the request, whichever span is current.
                    context=trace.set_span_in_context(self._span, Context()),
                    severity_number=SeverityNumber.WARN,
                    event_name=semconv_ext.REQUEST_REPEATED,
                    attributes={
                        semconv.DB_OPERATION_NAME: operation,
                        semconv_ext.REQUEST_REPEATED_LIMIT: self._repeated_calls,
                    },
                )

    def close(self) -> None:
        """Report the number of calls and their time on the span: the request ends."""
        self._report_calls()

    def _report_calls(self) -> None:
        with guarded:
            if self._calls and self._span.is_recording():
                self._span.set_attributes(
                    {semconv_ext.REQUEST_CALLS: self._calls, semconv_ext.REQUEST_DURATION: self._seconds}
                )


class QueueGauges:
    """What the consumers and producers of this process know about one queue.

    Args:
        attributes: The attributes of the queue's points.

    Attributes:
        fetched_at: When this process last took messages, or was told that there are none, by the monotonic clock;
            ``None`` if never.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self.fetched_at: float | None = None
        self._depth: tuple[int, float] | None = None
        self._dead: tuple[int, float] | None = None
        self._fresh_seconds = _MIN_FRESH_SECONDS
        self._holders: WeakSet[Any] = WeakSet()

    def update(self, *, depth: int | None = None, dead: int | None = None) -> None:
        """Set the length of the queue, of its list of dead letters, or both."""
        now = monotonic()
        if depth is not None:
            self._depth = (depth, now)
        if dead is not None:
            self._dead = (dead, now)

    def track(self, holder: Sized, lease: float) -> None:
        """Count the messages of a holder until it is garbage collected.

        Args:
            holder: Its length is the number of messages.
            lease: The lease in seconds; the holder updates the lengths several times during one.
        """
        self._holders.add(holder)
        self._fresh_seconds = max(self._fresh_seconds, lease)

    def depth(self) -> int | None:
        """Return the number of messages in the queue, ``None`` if it is unknown or too old."""
        return self._if_fresh(self._depth)

    def dead(self) -> int | None:
        """Return the number of dead letters, ``None`` if it is unknown or too old."""
        return self._if_fresh(self._dead)

    def in_flight(self) -> int:
        """Return the number of messages that this process holds."""
        # A copy: exporters read it from a thread of their own.
        return sum(len(holder) for holder in list(self._holders))

    def _if_fresh(self, seen: tuple[int, float] | None) -> int | None:
        return seen[0] if seen is not None and monotonic() - seen[1] < self._fresh_seconds else None
