"""The record of one operation: one span and one histogram point, whatever its outcome.

A caller starts an operation and awaits its call through ``observe_call`` or ``Operation.observe``; the code that runs
the call adds what it learns (waits, the connection, the reply); the outcome ends the operation, which records it.
"""

import math
import os
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from random import Random
from time import perf_counter, time_ns
from typing import Any, Final, NoReturn, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._redispy.sockets import Peer, peer_address
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.coexistence import PatchPoint, call_patched
from aioredis_monitored._telemetry.context import PARENT_OPERATION, get_current, is_suppressed
from aioredis_monitored._telemetry.direct import Exemplary, PublicPoints, end_span
from aioredis_monitored._telemetry.guard import guarded, log_error
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, Failure, Server, port_of, server_at
from aioredis_monitored._telemetry.stats import RequestStats

T = TypeVar("T")

# One of its own: an application may seed Python's.
_random: Final = Random()  # noqa: S311 - it chooses which calls show, and nothing secret
if hasattr(os, "register_at_fork"):
    # Otherwise all children would choose the same.
    os.register_at_fork(after_in_child=_random.seed)

# The span of a call that waited longer, or for a larger share of its duration, shows where its time went.
_LONG_WAIT_SECONDS: Final = 0.01
_LONG_WAIT_SHARE: Final = 0.5

# Whether a reply implies that its call succeeds.
Certainty = bool | Callable[[Any], bool]


class Operation:
    """The record of one logical call: ``await Operation(…).observe(call, *arguments)``.

    The span is created when the outcome is known, with the start time of the call: the calls of a batch of replies are
    then recorded in a row, which is faster than recording each where its caller resumes.

    Args:
        recorder: The recorder of the pool.
        spec: What is called.
        called: The arguments of the command, or the commands of the batch.
        parent: The parent span; ``None`` means the current one.
        request: The request that the call is part of, if it is known.

    Attributes:
        spec: What is called; callers may replace it when they learn more.
        record_on_reply: Whether the call certainly succeeds if its reply is no error, or a function of the reply that
            says so; default ``False``. Such a call is recorded as soon as its reply has arrived.
        on_resumed: Called with the time of the reply, if it was read from a shared connection, when the caller resumes.
    """

    # Defaults of what few calls set, because assigning each in the constructor costs every call time.
    _is_recorded = False
    record_on_reply: Certainty = False
    on_resumed: Callable[[float], object] | None = None
    _failure: Failure | None = None
    _span: Span | None = None
    _classified: list[tuple[BaseException, Failure | None]] | None = None
    _peer: Peer | None = None
    _links: Sequence[Link] | None = None
    _waited = _connecting = _in_parts = 0.0
    # When the reply was read, unless the call continued after it.
    _replied_at: float | None = None
    # How often the call was redirected to another server.
    _redirects = 0
    # How many calls its span stands for; and what decides whether it gets one: once, as it may be asked twice.
    _adjusted_count = 1.0
    _chance = -1.0

    def __init__(
        self,
        recorder: PoolRecorder,
        spec: CallSpec,
        called: Sequence[Any],
        parent: Span | None,
        request: RequestStats | None = None,
    ) -> None:
        self._recorder = recorder
        self.spec = spec
        self._called = called
        self._parent = parent
        self._request = request

    def start(self) -> None:
        """Note the time, and the context of the caller."""
        self._context = copy_context()
        self._started_ns = time_ns()
        self._started_at = perf_counter()

    async def observe(self, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Make the call, record it, and return its result or raise its error, the same object.

        The operation starts when this is awaited, and not before. A task that is cancelled before it starts has made no
        call, of which Python would warn that it is never awaited.

        Args:
            call: Makes the call.
            arguments: Its arguments.
        """
        self.start()
        error: BaseException | None = None
        try:
            result = await call(*arguments)
        except BaseException as caught:  # noqa: BLE001 - raised again below
            error = caught
        if self.on_resumed is not None and self._replied_at is not None:
            self.on_resumed(self._replied_at)
        # Not in the except block: an error that an exporter logs there would show the call's error, which quotes
        # arguments, as its context.
        if error is not None:
            try:
                self._raise(error)
            finally:
                del error
        if not self._is_recorded:
            # Most calls are recorded already, and need neither a clock nor another call.
            self.end(perf_counter(), result)
        return result

    def _raise(self, error: BaseException) -> NoReturn:
        """End with this error, and raise it unchanged."""
        cause = error.__context__
        now = perf_counter()
        try:
            self.set_error(error)
            self.end(now, error)
            raise error
        finally:
            # Raising sets the error that the caller is handling as its context; its traceback refers to this frame.
            error.__context__ = cause
            del error, cause

    def start_span(self) -> Context:
        """Start the span now, for a message that carries its context, and return that context.

        Returns:
            The context of the parent if the call gets no span.
        """
        here = context.get_current()
        with guarded:
            if self._parent is not None:
                here = trace.set_span_in_context(self._parent, here)
            recorder, spec = self._recorder, self.spec
            is_silent = is_suppressed(here) or here.get(PARENT_OPERATION)
            if not recorder.tracing_enabled or is_silent:
                return here
            # Its duration is not known yet: no call is too fast for slow_only.
            if spec.always_recorded or self._is_kept(self, math.inf, here):
                attributes = {**spec.span_attributes, semconv.DB_QUERY_TEXT: spec.query_text_of(self._called)}
                self._span = recorder.tracer.start_span(
                    spec.span_name, here, spec.kind, attributes, None, self._started_ns
                )
                return trace.set_span_in_context(self._span, here)
        return here

    def add_wait(self, seconds: float, connecting: float) -> None:
        """Add a wait for a connection, or for room on the shared one.

        Args:
            seconds: The time until the command could be written.
            connecting: The part of it that was spent connecting.
        """
        self._waited += seconds - connecting
        self._connecting += connecting
        self._replied_at = None

    def expect_more(self) -> None:
        """Take the reply that was read for one of several: the call ends later."""
        self._replied_at = None

    def set_connection(self, connection: AbstractConnection) -> None:
        """Set the connection that the call uses."""
        self._peer = peer_address(connection)
        if self.spec.lacks_server:
            host = getattr(connection, "host", None)
            if isinstance(host, str):
                self.spec = self.spec.served_by(server_at(host, port_of(getattr(connection, "port", None))))

    def set_server(self, server: Server) -> None:
        """Set the server of the next attempt, in place of that of the one before; one without an address is several."""
        try:
            # Past the method, which costs every call in a cluster as much as finding the node.
            served: CallSpec = self.spec.served[server.target]
        except KeyError:
            served = self.spec.served_by(server)
        if served is not self.spec:
            self.spec, self._peer = served, None

    def add_redirect(self) -> None:
        """Count a redirect of the call, or of one command of it, to another server."""
        self._redirects += 1
        self._replied_at = None

    def on_reply(self, reply: object, now: float, peer: Peer | None) -> PublicPoints | None:
        """Record the call before its caller resumes if it certainly succeeds; the caller raises errors.

        Args:
            reply: The reply.
            now: When it was read, by the performance counter.
            peer: The server's address.

        Returns:
            What is to be flushed after a batch of replies.
        """
        self._peer, self._replied_at = peer, now
        certain = self.record_on_reply
        if (
            certain
            and not isinstance(reply, Exception)
            and (certain is True or certain(reply))
            and not self._is_recorded
        ):
            self._is_recorded = True
            self._context.run(self._record, now - self._started_at, reply, True)
            return self._recorder.operation_points
        return None

    def classify_early(self, error: BaseException) -> None:
        """Classify an error before redis-py rewrites its text (a pipeline adds the command's arguments to it)."""
        if self._classified is None:
            self._classified = []
        self._classified.append((error, self._recorder.failure_of(error)))

    def set_error(self, error: BaseException) -> None:
        """Set the outcome to the error that the call raises, or returns as its result."""
        classified = next((failure for known, failure in self._classified or () if known is error), None)
        self._failure = classified or self._recorder.failure_of(error)

    def end(self, now: float, reply: object) -> None:
        """Record the call unless it is recorded: it may be cancelled after its reply has arrived.

        Args:
            now: When its caller resumes, by the performance counter. The call ended when its reply was read.
            reply: What it returns or raises.
        """
        if not self._is_recorded:
            self._is_recorded = True
            self._context.run(self._record, (self._replied_at or now) - self._started_at, reply)

    def _record(self, elapsed: float, reply: object, in_batch: bool = False) -> None:  # noqa: C901 - in one: every further call costs
        recorder, spec, failure = self._recorder, self.spec, self._failure
        here = get_current()
        enclosing = None
        if here:
            if is_suppressed(here):
                return
            enclosing = here.get(PARENT_OPERATION)
        if enclosing is not None or self._request is not None:
            self._report_to_parent(enclosing, elapsed)
        if self._parent is not None:
            here = trace.set_span_in_context(self._parent, here)
        span: Exemplary = None
        if recorder.tracing_enabled and enclosing is None:
            try:
                if self._span is not None:
                    span = self._end_span(self._span, elapsed)
                elif spec.always_recorded or self._is_kept(reply, elapsed, here):
                    is_error = failure is not None and failure.is_error
                    span = recorder.recording.spans.record(
                        spec.span_name,
                        spec.kind,
                        self._span_attributes,
                        elapsed,
                        self._started_ns,
                        here,
                        self._links,
                        is_error,
                    )
            except BaseException as error:  # noqa: BLE001 - see log_error
                log_error(error)
        if recorder.metrics_enabled and spec.is_point:
            try:
                series = spec.series.get(failure) or recorder.series_of_calls(spec, failure)
                points = recorder.operation_points
                if in_batch:
                    points.add(elapsed, series, here, span)
                else:
                    points.record(elapsed, series, here, span)
            except BaseException as error:  # noqa: BLE001 - see log_error
                log_error(error)

    def _is_kept(self, reply: object, elapsed: float, here: Context) -> bool:
        if self._chance < 0:
            self._chance = _random.random()
        self._adjusted_count = self._recorder.adjusted_count(
            self.spec, reply, elapsed, self._failure, here, self._chance
        )
        return self._adjusted_count > 0

    def _span_attributes(self, elapsed: float) -> dict[str, Any]:
        spec, peer = self.spec, self._peer
        # A copy: a sampler may write into it, and all calls with this spec share the original.
        attributes = spec.span_attributes.copy()
        if self._failure is not None:
            attributes.update(self._failure.attributes())
        if text := spec.query_text_of(self._called):
            attributes[semconv.DB_QUERY_TEXT] = text
        if peer is not None:
            attributes[semconv.NETWORK_PEER_ADDRESS], port = peer
            if port is not None:
                attributes[semconv.NETWORK_PEER_PORT] = port
        if self._waited or self._connecting:
            self._add_wait_attributes(elapsed, attributes)
        if self._redirects:
            attributes[semconv_ext.REDIRECTS] = self._redirects
        if self._adjusted_count != 1:
            attributes[semconv_ext.ADJUSTED_COUNT] = self._adjusted_count
        return attributes

    def _end_span(self, span: Span, elapsed: float) -> Exemplary:
        if self._failure is not None:
            # Each failed call has a span; before the outcome was known, the share of all others has decided.
            self._adjusted_count = 1.0
        span.set_attributes(self._span_attributes(elapsed))
        is_error = self._failure is not None and self._failure.is_error
        return end_span(span, self._started_ns + int(elapsed * 1e9), is_error=is_error)

    def _add_wait_attributes(self, elapsed: float, attributes: dict[str, Any]) -> None:
        before = self._waited + self._connecting
        # An operation that is no point was in Redis while its parts were, and not between them.
        elapsed = elapsed if self.spec.is_point else self._in_parts
        if before > _LONG_WAIT_SECONDS or before > elapsed * _LONG_WAIT_SHARE:
            attributes[semconv_ext.WAIT_DURATION] = self._waited
            attributes[semconv_ext.CONNECT_DURATION] = self._connecting
            if self._peer is not None:
                # A call without a peer was never written.
                attributes[semconv_ext.WIRE_DURATION] = max(0.0, elapsed - before)

    def _report_to_parent(self, enclosing: object, elapsed: float) -> None:
        """Report the call to what it is part of; a request counts every call, but not the parts of an operation."""
        if isinstance(enclosing, Operation):
            enclosing.merge(self.spec, elapsed, self._waited, self._connecting, self._peer)
        elif enclosing is None and self._request is not None:
            # An operation that is no point spends in Redis what its parts do.
            seconds = elapsed if self.spec.is_point else self._in_parts
            self._request.record_call(self.spec.point_attributes[semconv.DB_OPERATION_NAME], seconds)

    def merge(self, part: CallSpec, elapsed: float, waited: float, connecting: float, peer: Peer | None) -> None:
        """Take over what a part of the operation has learned.

        Args:
            part: What the part called.
            elapsed: Its duration in seconds.
            waited: The seconds that it waited.
            connecting: The seconds that it spent connecting.
            peer: The address of its server; ``None`` if it was never written.
        """
        self._in_parts += elapsed
        self._peer = peer or self._peer
        self._waited += waited
        self._connecting += connecting
        if self.spec.lacks_server:
            self.spec = self.spec.as_part(part)


class NestedCall:
    """A call without a record: it reports its waits and its connection to the operation that it is part of.

    Args:
        parent: The operation.

    Attributes:
        record_on_reply: Exists because an operation has it, and has no effect; as ``on_resumed``.
    """

    record_on_reply: Certainty = False
    on_resumed: Callable[[float], object] | None = None

    def __init__(self, parent: Operation) -> None:
        parent.expect_more()
        self._parent = parent

    def add_wait(self, seconds: float, connecting: float) -> None:
        """Add a wait to the operation."""
        self._parent.add_wait(seconds, connecting)

    def set_connection(self, connection: AbstractConnection) -> None:
        """Set the connection of the operation."""
        self._parent.set_connection(connection)

    def set_server(self, server: Server) -> None:
        """Set the server of the operation."""
        self._parent.set_server(server)

    def add_redirect(self) -> None:
        """Count a redirect of the operation."""
        self._parent.add_redirect()

    def on_reply(self, _reply: object, _now: float, peer: Peer | None) -> None:
        """Set the server of the operation."""
        self._parent.merge(self._parent.spec, 0.0, 0.0, 0.0, peer)


# What learns how a call goes.
Observer = Operation | NestedCall


def start_operation(
    recorder: PoolRecorder, args: Sequence[Any], parent: Span | None, request: RequestStats | None = None
) -> Operation | None:
    """Start the record of one command; return ``None`` if neither spans nor points go anywhere."""
    if recorder.counts_hot_keys:
        recorder.hot_keys.count(args)
    if not recorder.is_enabled():
        return None
    return Operation(recorder, recorder.command_spec(args), args, parent, request)


async def observe_call(
    operation: Operation | None,
    call: Coroutine[Any, Any, T],
    recorder: PoolRecorder,
    patch_point: PatchPoint,
    caller: Redis,
    /,
    *args: Any,
    **options: Any,
) -> T:
    """Await a call and record it; if it gets no span here, go through redis-py's method if that was replaced.

    Args:
        operation: The record; ``None`` records nothing.
        call: What to await.
        recorder: The recorder of the pool.
        patch_point: The method of redis-py that the call takes the place of.
        caller: The client, or the pipeline.
        args: The arguments of the method.
        options: Its keyword arguments.
    """
    observed = call if operation is None else operation.observe(lambda: call)
    replacement = None if recorder.tracing_enabled else patch_point.replacement()
    if replacement is None:
        return await observed
    if operation is not None:
        # The replacement may answer by itself.
        operation.start()
    try:
        result = await call_patched(replacement, caller, observed, *args, **options)
    finally:
        call.close()
    if operation is not None:
        # Most calls have ended; not one that the replacement answered itself.
        operation.end(perf_counter(), result)
    return result
