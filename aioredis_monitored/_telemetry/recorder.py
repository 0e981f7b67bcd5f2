"""The recorder of one pool: whether telemetry goes anywhere, and what calls that look alike have in common."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

from opentelemetry import metrics, trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.context import Context
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.trace import Span

from aioredis_monitored._commands.table import PUBLISHING, SIMPLE, channel_of, escape_surrogates, keys_of
from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.coexistence import warn_native_metrics
from aioredis_monitored._telemetry.direct import PublicSpans, Recording, Series, bind
from aioredis_monitored._telemetry.guard import CardinalityLimit, guarded, log_error
from aioredis_monitored._telemetry.hotkeys import HotKeys
from aioredis_monitored._telemetry.instruments import SCOPE, Instruments, instruments_of
from aioredis_monitored._telemetry.spans import CallSpec, Failure, MessagingSpec, Server, SpanNamer, failure_of
from aioredis_monitored._telemetry.stats import QueueGauges, RequestStats
from aioredis_monitored._version import __version__
from aioredis_monitored.config.telemetry import TelemetryOptions

# More than an application has.
_MAX_TEMPLATES: Final = 1_000
# An application that makes up names of queues has more than a dashboard can show.
_MAX_QUEUES: Final = 200
# Servers and modules have about 80; error_reply in a script makes a prefix of any word.
_MAX_ERROR_PREFIXES: Final = 200
# Room for every command there is, or for some commands with their templates.
_MAX_SPECS: Final = 2_000
# More than the SDK exports of one instrument.
_MAX_SERIES: Final = 4_000
# Further keys of a command have no influence on its template.
_MAX_KEYS: Final = 16
_64_BITS: Final = 2**64 - 1
# XREAD's reply: pairs of a stream's name and its entries.
_PAIR: Final = 2


class PoolRecorder:
    """Records the calls on one pool.

    Args:
        server: The server that the pool connects to.
        options: What the application has chosen; default ``TelemetryOptions()``.
        tracer_provider: Where spans go; default the global provider, also if it is set later.
        meter_provider: Where points go; default the global provider, also if it is set later.
        logger_provider: Where log events go; default ``None``, for nowhere.

    Attributes:
        tracing_enabled: Whether spans are started, as of the last ``is_enabled``.
        metrics_enabled: Whether points are recorded, as of the last ``is_enabled``.
        recording: The way that spans and points go, as of the last ``is_enabled``.
        operation_points: Records the points of calls.
        pool_attributes: The attributes of points about the pool.
        queues: The queues on the pool, by the attributes of their points.
        counts_hot_keys: Whether the keys of calls are counted.
        hot_keys: The most called keys.
    """

    def __init__(
        self,
        server: Server,
        options: TelemetryOptions | None = None,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        self.server = server
        self.options = options or TelemetryOptions()
        self._slow_only = cast("float | None", self.options.slow_only)  # its constructor has parsed it
        self._keep = self.options.keep
        self._has_templates = self.options.key_template is not None
        self.counts_hot_keys = self.options.hot_keys > 0
        self.span_namer = SpanNamer(server, self.options)
        self.hot_keys = HotKeys(self.options.hot_keys, self.span_namer.template_of if self._has_templates else None)
        self.tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, semconv.SCHEMA_URL)
        self._event_logger = (
            None if logger_provider is None else logger_provider.get_logger(SCOPE, __version__, semconv.SCHEMA_URL)
        )
        self.instruments: Instruments = instruments_of(meter_provider)
        self.pool_attributes: dict[str, Any] = {}
        self.operation_duration = histogram = self.instruments.operation_duration
        self._awaits_tracer = isinstance(self.tracer, trace.ProxyTracer)
        self._awaits_meter = getattr(histogram, "_real_instrument", self) is None
        self.tracing_enabled = not self._awaits_tracer and not isinstance(self.tracer, trace.NoOpTracer)
        self.metrics_enabled = not self._awaits_meter and not isinstance(histogram, metrics.NoOpHistogram)
        self._series: dict[tuple[Counter | Histogram, tuple[tuple[str, Any], ...]], Series] = {}
        self._bind()
        self._specs: dict[str | tuple[str, str], CallSpec] = {}
        self._publications: dict[str, CallSpec] = {}
        self._messaging_specs: dict[tuple[str, MessagingSpec], CallSpec] = {}
        self._message_attributes: dict[MessagingSpec, dict[str, Any]] = {}
        self._template_limit = CardinalityLimit(_MAX_TEMPLATES)
        self._prefix_limit = CardinalityLimit(_MAX_ERROR_PREFIXES)
        self._queue_limit = CardinalityLimit(_MAX_QUEUES)
        self.queues: dict[tuple[tuple[str, str], ...], QueueGauges] = {}
        self._counters: list[tuple[Counter, dict[str, Any] | None]] = []
        warn_native_metrics()

    def is_enabled(self) -> bool:
        """Return whether spans or points go anywhere; otherwise nothing is built.

        The API's way to find out costs more than everything else that a command does here, hence its private
        attributes; without them, a provider that is set later is never noticed.
        """
        if self._awaits_tracer or self._awaits_meter:
            try:
                # Without a call, as every command asks.
                awaits_all = (not self._awaits_tracer or trace._TRACER_PROVIDER is None) and (  # noqa: SLF001
                    not self._awaits_meter or self.operation_duration._real_instrument is None  # type: ignore[attr-defined]  # noqa: SLF001
                )
            except AttributeError:
                awaits_all = False
            if not awaits_all:
                self._look_for_providers()
        return self.tracing_enabled or self.metrics_enabled

    def _look_for_providers(self) -> None:
        if self._awaits_tracer and getattr(trace, "_TRACER_PROVIDER", self) is not None:
            # A provider may be set and record nothing, as with OTEL_SDK_DISABLED.
            real_tracer = getattr(self.tracer, "_tracer", None)
            self._awaits_tracer, self.tracing_enabled = False, not isinstance(real_tracer, trace.NoOpTracer)
            self._bind()
        if self._awaits_meter:
            real_histogram = getattr(self.operation_duration, "_real_instrument", self)
            if real_histogram is not None:
                self._awaits_meter, self.metrics_enabled = False, not isinstance(real_histogram, metrics.NoOpHistogram)
                self._bind()
                self._start_counters()

    def _bind(self) -> None:
        self.recording = Recording(PublicSpans(self.tracer), has_direct_points=False)
        with guarded:
            self.recording = bind(self.tracer, self.operation_duration, is_direct=self.options.direct)
        self.operation_points = self.recording.points(self.operation_duration)
        self.recording.spans.before_others = self.operation_points.flush

    def set_pool_name(self, name: str) -> None:
        """Set the name of the pool in its points."""
        self.pool_attributes = {semconv.DB_CLIENT_CONNECTION_POOL_NAME: name}
        self._start_counters()

    def start_counter(self, counter: Counter, attributes: dict[str, Any] | None = None) -> None:
        """Let a counter begin with 0, once: one that begins with its first event shows no increase by it.

        Args:
            counter: The counter.
            attributes: Those of its points beside the pool's name; default ``None``.
        """
        if (counter, attributes) not in self._counters:
            self._counters.append((counter, attributes))
            self.record(counter, 0, attributes)

    def _start_counters(self) -> None:
        for counter, attributes in self._counters:
            self.record(counter, 0, attributes)
        instruments = self.instruments
        for counter in (instruments.queue_recovered, instruments.queue_lease_lost, instruments.queue_unsettled):
            for queue in self.queues.values():
                self.record(counter, 0, queue.attributes)

    def command_spec(self, args: Sequence[Any]) -> CallSpec:
        """Return the spec of a command; commands that differ in their arguments alone share one."""
        name = args[0] if args else None
        if not self._has_templates and type(name) is str and (known := self._specs.get(name)) is not None:
            return known
        template = self._template_of(args) if self._has_templates else None
        if type(name) is not str or name not in SIMPLE:
            return _with_template(self.span_namer.command(args), template)
        if name in PUBLISHING:
            return _with_template(self._publication_spec(name, args), template)
        key = name if template is None else (name, template)
        known = self._specs.get(key)
        if known is None:
            # They may be turned on after the pool was made; here, looking costs next to nothing.
            warn_native_metrics()
            if len(self._specs) >= _MAX_SPECS:
                self._specs.clear()
            known = self._specs[key] = _with_template(self.span_namer.command(args), template)
        return known

    def _publication_spec(self, name: str, args: Sequence[Any]) -> CallSpec:
        known = self._publications.get(name)
        if known is None:
            known = self._publications[name] = self.span_namer.command((name,))
        return self.span_namer.publication(known, args)

    def batch_spec(self, kind: str, batch: Sequence[Sequence[Any]], summary: str | None) -> CallSpec:
        """Return the spec of a batch.

        Args:
            kind: ``MULTI`` or ``PIPELINE``.
            batch: The commands.
            summary: The name that the application has given it, if it has.
        """
        spec = self.span_namer.batch(kind, batch, None if summary is None else escape_surrogates(summary))
        return _with_template(spec, self._template_of(batch[0]) if self._has_templates and len(batch) == 1 else None)

    def lock_spec(self, name: str, args: Sequence[Any]) -> CallSpec:
        """Return the spec of what is done with a lock.

        It is no point: its commands are points, and acquiring waits for the owner of the lock, and not for Redis.

        Args:
            name: The name of the span.
            args: A command that stands for all commands that it takes.
        """
        spec = replace(self.span_namer.command(args, name), is_point=False)
        return _with_template(spec, self._template_of(args) if self._has_templates else None)

    def messaging_spec(self, args: Sequence[Any], messaging: MessagingSpec) -> CallSpec:
        """Return the spec of a command that sends, receives or settles messages; those of a queue share one."""
        key = (args[0], messaging)
        known = self._messaging_specs.get(key)
        if known is None:
            if len(self._messaging_specs) >= _MAX_SPECS:
                self._messaging_specs.clear()
            known = self._messaging_specs[key] = self.span_namer.messaging(args, messaging)
        return _with_template(known, self._template_of(args)) if self._has_templates else known

    def message_attributes(self, messaging: MessagingSpec) -> dict[str, Any]:
        """Return the attributes of the points of such operations; the number of queues among them is limited."""
        known = self._message_attributes.get(messaging)
        if known is None:
            if len(self._message_attributes) >= _MAX_SPECS:
                self._message_attributes.clear()
            known = self._message_attributes[messaging] = self.span_namer.message_attributes(messaging)
            self._cap_destinations(known)
        return known

    def process_spec(self, channel: object, *, of_queue: bool = False) -> CallSpec:
        """Return the spec of processing a message from a channel, or from a queue."""
        spec = self.span_namer.processing(channel, of_queue=of_queue)
        self._cap_destinations(spec.point_attributes)
        return spec

    def queue_gauges(self, queue: str) -> QueueGauges:
        """Return what this process knows about a queue; all its users of that queue share it."""
        attributes, _ = self.span_namer.destination_of(queue)
        self._cap_destinations(attributes)
        # Queues with the same attributes, as with a template, are one.
        gauges = self.queues.get(key := tuple(attributes.items()))
        if gauges is None:
            gauges = self.queues[key] = QueueGauges(attributes)
            self._start_counters()
        return gauges

    def request_stats(self, span: Span, *, eager: bool) -> RequestStats | None:
        """Return what counts the calls of a request; ``None`` if its span does not record.

        Args:
            span: The request's span.
            eager: Whether the span is updated after every call, because the end of the request is not known.
        """
        with guarded:
            if span.is_recording():
                return RequestStats.of(span, self.options.repeated_calls, eager=eager, logger=self._event_logger)
        return None

    def _template_of(self, args: Sequence[Any]) -> str | None:
        """Return the template that the keys of a command, or its channel, have in common."""
        keys = keys_of(args, _MAX_KEYS)
        if not keys and self.options.show_keys and (channel := channel_of(args)) is not None:
            keys = [channel]
        templates = {self.span_namer.template_of(key) for key in keys}
        template = templates.pop() if len(templates) == 1 else None
        return None if template is None else self._template_limit.cap(template)

    def _cap_destinations(self, attributes: dict[str, Any]) -> None:
        for name, limit in (
            (semconv.MESSAGING_DESTINATION_TEMPLATE, self._template_limit),
            (semconv.MESSAGING_DESTINATION_NAME, self._queue_limit),
        ):
            if name in attributes:
                attributes[name] = limit.cap(attributes[name])

    def failure_of(self, error: BaseException) -> Failure | None:
        """Classify an exception, with a limited number of error prefixes; ``None`` means that it is no failure."""
        with guarded:
            failure = failure_of(error)
            if failure is None or failure.status_code is None:
                return failure
            prefix = self._prefix_limit.cap(failure.status_code)
            return failure._replace(error_type=prefix, status_code=prefix)
        # The status_code of an application's exception class may be anything.
        return Failure(semconv.OTHER, None, isinstance(error, Exception))

    def adjusted_count(
        self, spec: CallSpec, reply: object, elapsed: float, failure: Failure | None, here: Context, chance: float
    ) -> float:
        """Return how many calls the span of one stands for whose spec is not ``always_recorded``; 0 for no span.

        Args:
            spec: What was called.
            reply: What it returned or raised.
            elapsed: Its duration in seconds.
            failure: How it failed.
            here: Its context, with the parent of the span.
            chance: A random number from 0 to 1, which decides for a call that has no parent span.
        """
        if not spec.is_included:
            return 0.0
        if spec.polls_for_data and is_empty_reply(reply):
            # Consumers of empty queues and streams call it all the time.
            return 0.0
        parent = trace.get_current_span(here).get_span_context()
        if self.options.require_parent and not parent.is_valid:
            return 0.0
        is_slow = self._slow_only is not None and elapsed >= self._slow_only
        if failure is not None or is_slow or (self._slow_only is None and self._keep is None):
            return 1.0
        if not self._keep:
            return 0.0
        place = _place_of(parent.trace_id) if parent.is_valid else chance
        return 1 / self._keep if place < self._keep else 0.0

    def record(
        self,
        instrument: Counter | Histogram,
        value: float,
        attributes: dict[str, Any] | None = None,
        here: Context | None = None,
    ) -> None:
        """Record a point about the pool.

        Args:
            instrument: The instrument.
            value: The point.
            attributes: The attributes of a part of the pool, such as a queue.
            here: Its context; default ``None``, for the current one.
        """
        if self.is_enabled() and self.metrics_enabled:
            all_attributes = self.pool_attributes | attributes if attributes else self.pool_attributes
            self.record_point(instrument, value, all_attributes, here)

    def record_point(
        self, instrument: Counter | Histogram, value: float, attributes: dict[str, Any], here: Context | None = None
    ) -> None:
        """Record a point with these attributes alone; the arguments are those of ``record``."""
        try:
            self.recording.points(instrument).record(value, self._series_of(instrument, attributes), here)
        except BaseException as error:  # noqa: BLE001 - see log_error
            log_error(error)

    def series_of_calls(self, spec: CallSpec, failure: Failure | None) -> Series:
        """Return the points of the calls with a spec that have failed in this way, or succeeded."""
        attributes = spec.point_attributes if failure is None else spec.point_attributes | failure.attributes()
        series = spec.series[failure] = self._series_of(self.operation_duration, attributes)
        return series

    def _series_of(self, instrument: Counter | Histogram, attributes: dict[str, Any]) -> Series:
        key = (instrument, tuple(attributes.items()))
        known = self._series.get(key)
        if known is None:
            if len(self._series) >= _MAX_SERIES:
                self._series.clear()
            known = self._series[key] = Series(attributes)
        return known


def _place_of(trace_id: int) -> float:
    """Return a number from 0 to 1, and less than 1, for a trace; it is independent of the id's size and its low bits.

    Samplers compare these: by the same comparison, a share of what a sampler keeps would be all of it. It is the
    finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    """
    mixed = (trace_id ^ trace_id >> 64) & _64_BITS
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _64_BITS
    # As many bits as a float has: more would be rounded up to 1.
    return ((mixed ^ mixed >> 31) >> 11) / 2**53


def _with_template(spec: CallSpec, template: str | None) -> CallSpec:
    return spec if template is None else spec.with_template(template)


def is_empty_reply(reply: object) -> bool:
    """Return whether a reply, or that of the only command of a batch, contains nothing to consume."""
    if isinstance(reply, dict):
        return all(map(is_empty_reply, reply.values()))
    if isinstance(reply, list):
        # A stream's name is there even if it has no entries.
        return all(is_empty_reply(each[1] if isinstance(each, list) and len(each) == _PAIR else each) for each in reply)
    return reply is None
