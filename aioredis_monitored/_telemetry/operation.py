"""The record of one operation: one span and one histogram point, whatever its outcome."""

import math
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from time import perf_counter, time_ns
from typing import Any, Final, NoReturn, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._redispy.sockets import Peer, peer_address
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.coexistence import PatchPoint, call_patched
from aioredis_monitored._telemetry.context import PARENT_OPERATION, is_suppressed
from aioredis_monitored._telemetry.guard import log_error
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, Failure, port_of
from aioredis_monitored._telemetry.stats import RequestStats

T = TypeVar("T")

_ERROR = Status(StatusCode.ERROR)
_SAMPLED: Final = trace.TraceFlags.SAMPLED
# A call that waited longer, in seconds, or for more than this share of its time, tells where its time went.
_LONG_WAIT_SECONDS: Final = 0.01
_LARGE_SHARE: Final = 0.5

# Whether a reply makes sure that its call will succeed.
Certainty = bool | Callable[[Any], bool]


class Operation:
    """The record of one logical call: ``await Operation(…).observe(call)``; what the call raises is its outcome.

    The span is made when the outcome is known, and begins when the call did: of a batch of replies, all calls are then
    recorded one right after the other, which is faster than one here and one there.

    Args:
        telemetry: Where to record.
        call: What is called.
        called: The arguments of the command, or the commands of the batch.
        parent: The parent span; ``None`` means the one that is current now.
        request: The request that it is a part of, if that is known.

    Attributes:
        call: What is called; whoever learns more of it by its outcome says so here.
        certain: Whether the call is sure to succeed if its reply is no error; default ``False``. Then the call is
            recorded as soon as the reply has come.
    """

    # What most calls have none of is set on those that do, so that making an operation is quick.
    _recorded = False
    record_on_reply: Certainty = False
    _failure: Failure | None = None
    _span: Span | None = None
    _classified: list[tuple[BaseException, Failure | None]] | None = None
    _peer: Peer | None = None
    _links: Sequence[Link] | None = None
    _waited = _connecting = _in_parts = 0.0
    # When its reply was read, unless it went on since.
    _read: float | None = None

    def __init__(
        self,
        telemetry: PoolRecorder,
        call: CallSpec,
        called: Sequence[Any],
        parent: Span | None,
        request: RequestStats | None = None,
    ) -> None:
        self._telemetry = telemetry
        self.spec = call
        self._called = called
        self._parent = parent
        self._request = request
        self._context = copy_context()
        self._began = time_ns()
        self._started = perf_counter()

    async def observe(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call, record it, and return or raise what it did, the very same object."""
        error: BaseException | None = None
        try:
            result = await call
        except BaseException as caught:  # noqa: BLE001 - raised again below
            error = caught
        # Not in the except block: what an exporter logs there would show the call's error, which quotes arguments, as
        # the context of its own.
        if error is not None:
            try:
                self._raise(error)
            finally:
                del error
        if not self._recorded:
            # Most are by now, and take neither a clock nor a call more.
            self.end(perf_counter(), result)
        return result

    def _raise(self, error: BaseException) -> NoReturn:
        """End with this error, and raise it as it is."""
        cause = error.__context__
        now = perf_counter()
        try:
            self.set_error(error)
            self.end(now, error)
            raise error
        finally:
            # Raised anew, it would get whatever the caller is handling as its context; and its traceback refers to
            # this frame.
            error.__context__ = cause
            del error, cause

    def classify_early(self, error: BaseException) -> None:
        """Classify an error before redis-py rewrites its text (a pipeline puts the command's arguments into it)."""
        if self._classified is None:
            self._classified = []
        self._classified.append((error, self._telemetry.failure_of(error)))

    def set_error(self, error: BaseException) -> None:
        """Tell the outcome: the error that the call raises, or returns in its place."""
        noted = next((failure for known, failure in self._classified or () if known is error), None)
        self._failure = noted or self._telemetry.failure_of(error)

    def add_wait(self, seconds: float, connecting: float) -> None:
        """Take note of a wait for a connection, or of a place on the shared one.

        Args:
            seconds: How long it was until the command could be written.
            connecting: How much of that was spent connecting.
        """
        self._waited += seconds - connecting
        self._connecting += connecting
        self._read = None

    def expect_more(self) -> None:
        """Take note that the reply which was read is not the last one."""
        self._read = None

    def set_connection(self, connection: AbstractConnection) -> None:
        """Take note of the connection that is to be used."""
        self._peer = peer_address(connection)
        if semconv.SERVER_ADDRESS not in self.spec.span_attributes:
            host = getattr(connection, "host", None)
            if isinstance(host, str):
                self.spec = self.spec.served_by(host, port_of(getattr(connection, "port", None)))

    def on_reply(self, reply: object, now: float, peer: Peer | None) -> None:
        """Record the call before its caller goes on; an error is the caller's to raise.

        Args:
            reply: The reply.
            now: When it was read, by the performance counter.
            peer: Who has sent it.
        """
        self._peer, self._read = peer, now
        certain = self.record_on_reply
        if certain and not isinstance(reply, Exception) and (certain is True or certain(reply)) and not self._recorded:
            self._recorded = True
            self._context.run(self._record, now - self._started, reply)

    def end(self, now: float, reply: object) -> None:
        """Record the call, unless that is done: it may have been cancelled after its reply had come.

        Args:
            now: By the performance counter, when its caller goes on. It ended when its reply was read.
            reply: What it returns or raises.
        """
        if not self._recorded:
            self._recorded = True
            self._context.run(self._record, (self._read or now) - self._started, reply)

    def _record(self, elapsed: float, reply: object) -> None:  # noqa: C901, PLR0912 - in one: every call more costs
        telemetry, call, failure, peer = self._telemetry, self.spec, self._failure, self._peer
        here = context.get_current()
        whole = None
        if here:
            if is_suppressed(here):
                return
            whole = here.get(PARENT_OPERATION)
        if whole is not None or self._request is not None:
            self._report_to_parent(whole, elapsed)
        if self._parent is not None:
            here = trace.set_span_in_context(self._parent, here)
        point_attributes = call.point_attributes
        if failure is not None:
            failed = failure.attributes()
            point_attributes = {**point_attributes, **failed}
        if telemetry.tracing_enabled and whole is None:
            try:
                span = self._span
                if (
                    span is not None
                    or call.always_recorded
                    or telemetry.wants_span(call, reply, elapsed, failure, here)
                ):
                    # A copy: a sampler may write into it, and what it is told of one call must not be told of the next.
                    attributes = call.span_attributes.copy()
                    if failure is not None:
                        attributes.update(failed)
                    # Samplers may decide by it (database-spans.md), and set later it costs a recorded span three times
                    # that.
                    if text := call.query_text_of(self._called):
                        attributes[semconv.DB_QUERY_TEXT] = text
                    if peer is not None:
                        attributes[semconv.NETWORK_PEER_ADDRESS], port = peer
                        if port is not None:
                            attributes[semconv.NETWORK_PEER_PORT] = port
                    if self._waited or self._connecting:
                        self._add_wait_attributes(elapsed, attributes)
                    if span is None:
                        span = telemetry.tracer.start_span(
                            call.span_name, here, call.kind, attributes, self._links, self._began
                        )
                    else:
                        span.set_attributes(attributes)
                    try:
                        if failure is not None and failure.is_error:
                            # The exception's text may hold arguments: no description, and no event.
                            span.set_status(_ERROR)
                    finally:
                        span.end(self._began + int(elapsed * 1e9))
                    if span.get_span_context().trace_flags & _SAMPLED:
                        # The point leads to the span.
                        here = trace.set_span_in_context(span, here)
            except BaseException as trouble:  # noqa: BLE001 - see report
                log_error(trouble)
        if telemetry.metrics_enabled and call.is_point:
            try:
                telemetry.operation_duration.record(elapsed, point_attributes, here)
            except BaseException as trouble:  # noqa: BLE001 - see report
                log_error(trouble)

    def _report_to_parent(self, whole: object, elapsed: float) -> None:
        """Tell what the call is part of; a request counts every call, but not the parts of another one."""
        if isinstance(whole, Operation):
            whole.merge(self.spec, elapsed, self._waited, self._connecting, self._peer)
        elif whole is None and self._request is not None:
            # What is no point has spent in Redis what its parts have.
            seconds = elapsed if self.spec.is_point else self._in_parts
            self._request.record_call(self.spec.point_attributes[semconv.DB_OPERATION_NAME], seconds)

    def merge(self, part: CallSpec, elapsed: float, waited: float, connecting: float, peer: Peer | None) -> None:
        """Take over what a part of it has learnt."""
        self._in_parts += elapsed
        self._peer = peer or self._peer
        self._waited += waited
        self._connecting += connecting
        if semconv.SERVER_ADDRESS not in self.spec.span_attributes:
            self.spec = self.spec.with_span_attributes(part.address())

    def start_span(self) -> Context:
        """Make the span now, for what has to carry its context, and return that context.

        If the call is not to have a span, it is the context of the parent.
        """
        here = context.get_current()
        try:
            if self._parent is not None:
                here = trace.set_span_in_context(self._parent, here)
            is_silent = is_suppressed(here) or here.get(PARENT_OPERATION)
            telemetry, call = self._telemetry, self.spec
            is_wanted = telemetry.tracing_enabled and not is_silent
            # How long it will take, nobody knows yet.
            if is_wanted and (call.always_recorded or telemetry.wants_span(call, self, math.inf, None, here)):
                attributes = {**call.span_attributes, semconv.DB_QUERY_TEXT: call.query_text_of(self._called)}
                self._span = telemetry.tracer.start_span(call.span_name, here, call.kind, attributes, None, self._began)
                return trace.set_span_in_context(self._span, here)
        except BaseException as trouble:  # noqa: BLE001 - see report
            log_error(trouble)
        return here

    def _add_wait_attributes(self, elapsed: float, attributes: dict[str, Any]) -> None:
        before = self._waited + self._connecting
        # What is no point was in Redis while its parts were, and between them not.
        elapsed = elapsed if self.spec.is_point else self._in_parts
        if before > _LONG_WAIT_SECONDS or before > elapsed * _LARGE_SHARE:
            attributes[semconv_ext.WAIT_DURATION] = self._waited
            attributes[semconv_ext.CONNECT_DURATION] = self._connecting
            if self._peer is not None:
                # Of a call that was never written, the rest is nothing in particular.
                attributes[semconv_ext.WIRE_DURATION] = max(0.0, elapsed - before)


class NestedCall:
    """A call without a record of its own: where its time went, it tells the one that it is a part of.

    Attributes:
        certain: Set as an operation's is, and of no consequence.
    """

    record_on_reply: Certainty = False

    def __init__(self, whole: Operation) -> None:
        whole.expect_more()
        self._parent = whole

    def add_wait(self, seconds: float, connecting: float) -> None:
        """Take note of a wait."""
        self._parent.add_wait(seconds, connecting)

    def set_connection(self, connection: AbstractConnection) -> None:
        """Take note of the connection that is to be used."""
        self._parent.set_connection(connection)

    def on_reply(self, reply: object, now: float, peer: Peer | None) -> None:  # noqa: ARG002 - as an operation is told
        """Take note of who has answered."""
        self._parent.merge(self._parent.spec, 0.0, 0.0, 0.0, peer)


# Who is told how a call goes.
Observer = Operation | NestedCall


def start_operation(
    telemetry: PoolRecorder, args: Sequence[Any], parent: Span | None, request: RequestStats | None = None
) -> Operation | None:
    """The record of one command, if anybody listens."""
    if telemetry.counts_hot_keys:
        telemetry.hot_keys.count(args)
    if not telemetry.is_enabled():
        return None
    return Operation(telemetry, telemetry.command_spec(args), args, parent, request)


async def observe_call(
    operation: Operation | None,
    calling: Coroutine[Any, Any, T],
    telemetry: PoolRecorder,
    seam: PatchPoint,
    caller: Redis,
    /,
    *args: Any,
    **options: Any,
) -> T:
    """Await a call, recorded by us, and by whoever has replaced redis-py's method if we make no span of it.

    Args:
        operation: The record, if anybody listens.
        calling: What is to be awaited.
        telemetry: Where it is recorded.
        seam: Redis-py's method in whose place this is done.
        caller: The client, or the pipeline.
        args: Those of the method.
        options: Its keyword arguments.
    """
    observed = calling if operation is None else operation.observe(calling)
    replacement = None if telemetry.tracing_enabled else seam.replacement()
    if replacement is None:
        return await observed
    try:
        result = await call_patched(replacement, caller, observed, *args, **options)
    finally:
        calling.close()
    if operation is not None:
        # Unless that is done, as in most cases.
        operation.end(perf_counter(), result)
    return result
