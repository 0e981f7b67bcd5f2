"""Where the calls on one pool are reported: whether anybody listens, and what these calls have in common."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from opentelemetry import metrics, trace
from opentelemetry.context import Context

from aioredis_monitored._commands.table import PUBLISHING, SIMPLE, channel_of, escape_surrogates, keys_of
from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.coexistence import warn_native_metrics
from aioredis_monitored._telemetry.guard import CardinalityLimit, log_error
from aioredis_monitored._telemetry.hotkeys import HotKeys
from aioredis_monitored._telemetry.instruments import SCOPE, Instruments, instruments_of
from aioredis_monitored._telemetry.spans import CallSpec, Failure, MessagingSpec, Server, SpanNamer, failure_of
from aioredis_monitored._telemetry.stats import QueueStats
from aioredis_monitored._version import __version__
from aioredis_monitored.config.telemetry import TelemetryOptions

# More than an application can have.
_MAX_TEMPLATES: Final = 1_000
# An application names its queues; one that makes up names has more than anybody wants to see.
_MAX_QUEUES: Final = 200
# Servers and modules have some eighty; a script's error_reply makes one of anything.
_MAX_PREFIXES: Final = 200
# Descriptions that are kept: of every command there is, or of some commands with their templates.
_MAX_SPECS: Final = 2_000
# More keys of one command are not looked at.
_MAX_KEYS: Final = 16
# A stream's name, and what there is in it.
_PAIR: Final = 2


class PoolRecorder:
    """Where the calls on one pool are reported.

    Args:
        server: The server that the pool connects to.
        options: What users have chosen.
        tracer_provider: Default: the global one, also when it is set later.
        meter_provider: Default: the global one, also when it is set later.

    Attributes:
        is_traced: Whether spans are started, as far as ``is_heard`` has seen.
        is_measured: Whether points are recorded, as far as ``is_heard`` has seen.
        pool_attributes: Those of points about the pool.
        queues: The queues on it.
        hot_keys: Which keys are called most, if that is counted.
        counts_keys: Whether it is.
    """

    def __init__(
        self,
        server: Server,
        options: TelemetryOptions | None = None,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self.server = server
        self.options = options or TelemetryOptions()
        self._slow_only = cast("float | None", self.options.slow_only)  # the constructor has read it
        self._has_templates = self.options.key_template is not None
        self.counts_hot_keys = self.options.hot_keys > 0
        self.span_namer = SpanNamer(server, self.options)
        self.hot_keys = HotKeys(self.options.hot_keys, self.span_namer.template_of if self._has_templates else None)
        self.tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, semconv.SCHEMA_URL)
        self.instruments: Instruments = instruments_of(meter_provider)
        self.pool_attributes: dict[str, Any] = {}
        histogram = self.instruments.operation_duration
        self._awaits_tracer = isinstance(self.tracer, trace.ProxyTracer)
        self._awaits_meter = getattr(histogram, "_real_instrument", self) is None
        self.operation_duration = self.instruments.operation_duration
        self.tracing_enabled = not self._awaits_tracer and not isinstance(self.tracer, trace.NoOpTracer)
        self.metrics_enabled = not self._awaits_meter and not isinstance(histogram, metrics.NoOpHistogram)
        self._specs: dict[str | tuple[str, str], CallSpec] = {}
        self._publications: dict[str, CallSpec] = {}
        self._messaging_specs: dict[tuple[str, MessagingSpec], CallSpec] = {}
        self._message_attributes: dict[MessagingSpec, dict[str, Any]] = {}
        self._templates, self._prefixes = CardinalityLimit(_MAX_TEMPLATES), CardinalityLimit(_MAX_PREFIXES)
        self._queues = CardinalityLimit(_MAX_QUEUES)
        self.queues: dict[tuple[tuple[str, str], ...], QueueStats] = {}
        warn_native_metrics()

    def is_enabled(self) -> bool:
        """Whether spans or points go anywhere; while nobody listens, nothing is built.

        The API's own way to find out costs more than all else that a command does here, hence the private attributes;
        should they go away, calls are recorded for nobody.
        """
        if self._awaits_tracer and getattr(trace, "_TRACER_PROVIDER", self) is not None:
            # A provider may be there and record nothing, as with OTEL_SDK_DISABLED.
            real_tracer = getattr(self.tracer, "_tracer", None)
            self._awaits_tracer, self.tracing_enabled = False, not isinstance(real_tracer, trace.NoOpTracer)
        if self._awaits_meter:
            real_histogram = getattr(self.operation_duration, "_real_instrument", self)
            if real_histogram is not None:
                self._awaits_meter, self.metrics_enabled = False, not isinstance(real_histogram, metrics.NoOpHistogram)
                self._start_counters()
        return self.tracing_enabled or self.metrics_enabled

    def set_pool_name(self, name: str) -> None:
        """Tell how points about the pool are to call it."""
        self.pool_attributes = {semconv.DB_CLIENT_CONNECTION_POOL_NAME: name}
        self._start_counters()

    def _start_counters(self) -> None:
        # What is not there before its first event shows no increase by it.
        instruments = self.instruments
        pools = (instruments.timeouts, instruments.lock_contended, instruments.lock_lost, instruments.pubsub_reconnects)
        for counter in pools:
            self.record(counter.add, 0)
        for counter in (instruments.queue_recovered, instruments.queue_lease_lost, instruments.queue_unsettled):
            for view in self.queues.values():
                self.record(counter.add, 0, view.attributes)

    def command_spec(self, args: Sequence[Any]) -> CallSpec:
        """One command; those that differ only in their arguments are described once."""
        name = args[0] if args else None
        if not self._has_templates and type(name) is str and (known := self._specs.get(name)) is not None:
            return known
        return self._described(name, args, self._template(args) if self._has_templates else None)

    def _described(self, name: Any, args: Sequence[Any], template: str | None) -> CallSpec:
        if type(name) is not str or name not in SIMPLE:
            call = self.span_namer.command(args)
            return call if template is None else call.with_template(template)
        if name in PUBLISHING:
            return self._publication(name, args, template)
        place = name if template is None else (name, template)
        known = self._specs.get(place)
        if known is None:
            # They may have been turned on after the pool was made; and here it costs next to nothing.
            warn_native_metrics()
            if len(self._specs) >= _MAX_SPECS:
                self._specs.clear()
            known = self.span_namer.command(args)
            known = self._specs[place] = known if template is None else known.with_template(template)
        return known

    def _publication(self, name: str, args: Sequence[Any], template: str | None) -> CallSpec:
        """What publishes: all but the channel is described once."""
        known = self._publications.get(name)
        if known is None:
            known = self._publications[name] = self.span_namer.command((name,))
        call = self.span_namer.publication(known, args)
        return call if template is None else call.with_template(template)

    def _template(self, args: Sequence[Any]) -> str | None:
        """What the keys of a command have in common, if they do, or the template of its channel."""
        keys = keys_of(args, _MAX_KEYS)
        if not keys and self.options.show_keys and (channel := channel_of(args)) is not None:
            keys = [channel]
        templates = {self.span_namer.template_of(key) for key in keys}
        template = templates.pop() if len(templates) == 1 else None
        return None if template is None else self._templates.cap(template)

    def process_spec(self, channel: object, *, of_queue: bool = False) -> CallSpec:
        """What is done with a message from a channel, or from a queue."""
        call = self.span_namer.processing(channel, of_queue=of_queue)
        self._bound_destinations(call.point_attributes)
        return call

    def messaging_spec(self, args: Sequence[Any], about: MessagingSpec) -> CallSpec:
        """A command by which messages are sent, received or settled; those of one queue are described once."""
        place = (args[0], about)
        known = self._messaging_specs.get(place)
        if known is None:
            if len(self._messaging_specs) >= _MAX_SPECS:
                self._messaging_specs.clear()
            known = self._messaging_specs[place] = self.span_namer.messaging(args, about)
        template = self._template(args) if self._has_templates else None
        return known if template is None else known.with_template(template)

    def message_attributes(self, about: MessagingSpec) -> dict[str, Any]:
        """What the points of such operations have in common, for no more queues than can be counted."""
        known = self._message_attributes.get(about)
        if known is None:
            if len(self._message_attributes) >= _MAX_SPECS:
                self._message_attributes.clear()
            known = self._message_attributes[about] = self.span_namer.message_attributes(about)
            self._bound_destinations(known)
        return known

    def queue_stats(self, queue: str) -> QueueStats:
        """What is known of a queue, whoever in this process uses it."""
        attributes, _ = self.span_namer.destination_of(queue)
        self._bound_destinations(attributes)
        # Those that are not told apart are one.
        view = self.queues.get(place := tuple(attributes.items()))
        if view is None:
            view = self.queues[place] = QueueStats(attributes)
            self._start_counters()
        return view

    def _bound_destinations(self, attributes: dict[str, Any]) -> None:
        for key, bound in (
            (semconv.MESSAGING_DESTINATION_TEMPLATE, self._templates),
            (semconv.MESSAGING_DESTINATION_NAME, self._queues),
        ):
            if key in attributes:
                attributes[key] = bound.cap(attributes[key])

    def batch_spec(self, kind: str, batch: Sequence[Sequence[Any]], summary: str | None) -> CallSpec:
        """A batch, ``kind`` being ``MULTI`` or ``PIPELINE``."""
        call = self.span_namer.batch(kind, batch, None if summary is None else escape_surrogates(summary))
        template = self._template(batch[0]) if self._has_templates and len(batch) == 1 else None
        return call if template is None else call.with_template(template)

    def lock_spec(self, name: str, args: Sequence[Any]) -> CallSpec:
        """What is done with a lock, by commands of which this one stands for all.

        It is no point: its commands are, and acquiring waits for the holder of the lock, and not for Redis.
        """
        call = replace(self.span_namer.command(args, name), is_point=False)
        template = self._template(args) if self._has_templates else None
        return call if template is None else call.with_template(template)

    def failure_of(self, error: BaseException) -> Failure | None:
        """Classify an exception, with no more error prefixes than can be counted; ``None``: it is no failure."""
        try:
            failure = failure_of(error)
            if failure is None or failure.status_code is None:
                return failure
            prefix = self._prefixes.cap(failure.status_code)
            return failure._replace(error_type=prefix, status_code=prefix)
        except BaseException as trouble:  # noqa: BLE001 - see report
            # An application's own class may have anything for its status_code.
            log_error(trouble)
            return Failure(semconv.OTHER, None, isinstance(error, Exception))

    def wants_span(self, call: CallSpec, reply: object, elapsed: float, failure: Failure | None, here: Context) -> bool:
        """Whether a call gets a span that is not sure of one.

        Args:
            call: What was called.
            reply: What it returned or raised.
            elapsed: Seconds that it took.
            failure: How it failed.
            here: Its context, with the parent of the span.
        """
        if not call.is_included:
            return False
        if call.polls_for_data and is_empty_reply(reply):
            # What consumers do while there is nothing to consume.
            return False
        if self._slow_only is not None and elapsed < self._slow_only and failure is None:
            return False
        return not self.options.require_parent or trace.get_current_span(here).get_span_context().is_valid

    def record(
        self, record: Callable[[float, dict[str, Any]], None], value: float, attributes: dict[str, Any] | None = None
    ) -> None:
        """Record a point about the pool.

        Args:
            record: The method of an instrument.
            value: What it is given.
            attributes: Those of something on the pool.
        """
        if self.is_enabled() and self.metrics_enabled:
            try:
                record(value, self.pool_attributes | attributes if attributes else self.pool_attributes)
            except BaseException as trouble:  # noqa: BLE001 - see report
                log_error(trouble)


def is_empty_reply(reply: object) -> bool:
    """Whether a reply, or that of the one command of a batch, says that there is nothing to consume."""
    if isinstance(reply, dict):
        return all(map(is_empty_reply, reply.values()))
    if isinstance(reply, list):
        # Of a stream, there is its name in any case.
        return all(is_empty_reply(each[1] if isinstance(each, list) and len(each) == _PAIR else each) for each in reply)
    return reply is None
