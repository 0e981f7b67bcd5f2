"""Records the same operations by the API alone and directly, and compares everything that can be seen of it.

Usage: python -m support.conform [COMBINATIONS] [--seed SEED] [--public]

Each combination of a sampler, processors, an exemplar filter, temporalities, views and limits runs one random script
twice, with the same clock, ids and reservoir randomness. Compared are every public field of the exported spans, the
order and types of their attributes, their OTLP bytes, all metrics, what samplers and processors saw, in which context,
and what was logged. ``mutants.py`` shows what this finds.
"""

import argparse
import contextlib
import contextvars
import copy
import itertools
import json
import logging
import os
import random
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing import get_context
from unittest import mock

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.metrics import (
    AlwaysOffExemplarFilter,
    AlwaysOnExemplarFilter,
    Counter,
    ExemplarFilter,
    Histogram,
    MeterProvider,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics import _internal as sdk_metrics
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import (
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    LastValueAggregation,
    SumAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider, sampling
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, TraceState
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError, WatchError

from aioredis_monitored._multiplexer.connection import MultiplexedConnection
from aioredis_monitored._telemetry import guard
from aioredis_monitored._telemetry.context import nested_in
from aioredis_monitored._telemetry.direct import sdk
from aioredis_monitored._telemetry.messaging import MessagingOperation, ProcessSpan
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import MessagingSpec, Server
from aioredis_monitored.config.telemetry import TelemetryOptions

SERVER = Server(
    {
        "db.system.name": "redis",
        "db.namespace": "0",
        "network.transport": "tcp",
        "server.address": "127.0.0.1",
        "server.port": 6390,
    },
    "127.0.0.1:6390",
)
PEER = ("127.0.0.1", 6390)
STEPS = 30
DIRECT = "aioredis_monitored._telemetry.direct"
DURATION = "db.client.operation.duration"
START = 1_700_000_000_000_000_000
MARK = contextvars.ContextVar("mark", default=None)


# --- What records, and what looks at it ---


class AlteringProcessor(SpanProcessor):
    """Alters each span that starts."""

    def on_start(self, span, parent_context=None):
        span.set_attribute("added", "x")
        span.add_event("started")


class WatchingProcessor(SpanProcessor):
    """Notes each span that has ended, and in which context."""

    def __init__(self):
        self.seen = []

    def on_end(self, span):
        self.seen.append(
            (span.name, dict(span.attributes), MARK.get(), type(span).__name__, sorted(map(str, context.get_current())))
        )


class VendorsBatchProcessor(BatchSpanProcessor):
    """A class of a vendor that adds nothing to what happens when a span ends."""


class FailingProcessor(SpanProcessor):
    """Raises for some of the spans."""

    def on_end(self, span):
        if span.start_time % 3 == 0:
            raise ValueError("a span that the processor does not like")


class WatchingSampler(sampling.Sampler):
    """Decides by what it is given, notes it, and writes into it."""

    def __init__(self):
        self.seen = []

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        attributes = {} if attributes is None else attributes
        text = attributes.get("db.query.text", "")
        decision = list(Decision)[len(text) % 3]
        linked = [(link.context, dict(link.attributes or {})) for link in links or ()]
        parent = trace.get_current_span(parent_context).get_span_context()
        self.seen.append((trace_id, name, kind, list(attributes.items()), linked, parent, MARK.get()))
        if "k3" in text:
            return sampling.SamplingResult(decision, {**attributes, "sampler": 1}, TraceState([("a", "b")]))
        if "k5" in text:
            attributes["written"] = (True, False)
        return sampling.SamplingResult(decision, attributes)

    def get_description(self):
        return "watching"


class OwnFilter(ExemplarFilter):
    """Lets some points be exemplars, by their value."""

    def should_sample(self, value, time_unix_nano, attributes, context):
        return int(value * 1e6) % 2 == 0


def sampler_named(name):
    always_record = getattr(sampling, "AlwaysRecordSampler", lambda root: root)
    return {
        "all": lambda: ParentBased(ALWAYS_ON),
        "always on": lambda: ALWAYS_ON,
        "ratio": lambda: ParentBased(TraceIdRatioBased(0.3)),
        "plain ratio": lambda: TraceIdRatioBased(0.4),
        "by name": lambda: sampling.ParentBasedTraceIdRatio(0.5),
        "off": lambda: ALWAYS_OFF,
        "watching": WatchingSampler,
        "record": lambda: always_record(TraceIdRatioBased(0.3)),
        "each parent": lambda: ParentBased(
            TraceIdRatioBased(0.5),
            remote_parent_sampled=TraceIdRatioBased(0.6),
            remote_parent_not_sampled=ALWAYS_ON,
            local_parent_sampled=ALWAYS_OFF,
            local_parent_not_sampled=TraceIdRatioBased(0.7),
        ),
        "within": lambda: ParentBased(WatchingSampler()),
    }[name]()


SAMPLERS = (
    "all", "always on", "ratio", "plain ratio", "by name", "off", "watching", "record", "each parent", "within",
)  # fmt: skip
PROCESSORS = ("batch", "batch of a vendor", "simple", "altering", "watching", "failing", "none")
FILTERS = {
    "trace": TraceBasedExemplarFilter,
    "on": AlwaysOnExemplarFilter,
    "off": AlwaysOffExemplarFilter,
    "own": OwnFilter,
}
TEMPORALITIES = ("cumulative", "delta", "both")
VIEWS = {
    "none": [],
    "few keys": [View(instrument_name="*", attribute_keys={"db.operation.name", "error.type"})],
    "no keys": [View(instrument_name="db.*", attribute_keys=set())],
    "exponential": [View(instrument_name=DURATION, aggregation=ExponentialBucketHistogramAggregation())],
    "several": [
        View(instrument_name=DURATION, name="a", aggregation=SumAggregation()),
        View(
            instrument_name=DURATION,
            name="b",
            aggregation=ExplicitBucketHistogramAggregation([0.001, 0.1], record_min_max=False),
        ),
        View(instrument_name=DURATION, name="c", aggregation=LastValueAggregation()),
        View(instrument_name=DURATION, name="d", attribute_keys={"db.operation.name"}),
    ],
    "dropped": [View(instrument_name="*", aggregation=DropAggregation())],
}
LIMITS = {
    "default": {},
    "three attributes": {"max_span_attributes": 3},
    "no attributes": {"max_span_attributes": 0},
    "short attributes": {"max_span_attribute_length": 5},
    "none": {"max_span_attributes": SpanLimits.UNSET, "max_events": 2, "max_links": 0},
}


def views_named(name):
    if name != "few series":
        return VIEWS[name]
    # Unknown to SDKs before 1.44.
    return [View(instrument_name=DURATION, aggregation_cardinality_limit=3)]


@dataclass(frozen=True)
class Combination:
    """What the script runs with."""

    sampler: str
    processors: str
    filter: str
    temporality: str
    views: str
    limits: str


def combinations(seed):
    """Yield all combinations in a random order."""
    has_limit = "aggregation_cardinality_limit" in View.__init__.__code__.co_varnames
    views = (*VIEWS, "few series") if has_limit else tuple(VIEWS)
    everything = [
        Combination(*each) for each in itertools.product(SAMPLERS, PROCESSORS, FILTERS, TEMPORALITIES, views, LIMITS)
    ]
    random.Random(seed).shuffle(everything)
    return everything


# --- The script ---


class Clock:
    """A clock that the script sets."""

    def __init__(self):
        self.now = START

    def time_ns(self):
        return self.now

    def perf_counter(self):
        return self.now / 1e9


@dataclass
class Seen:
    """What can be seen of a run."""

    spans: list = field(default_factory=list)
    otlp: bytes = b""
    metrics: list = field(default_factory=list)
    watched: list = field(default_factory=list)
    sampled: list = field(default_factory=list)
    logged: list = field(default_factory=list)

    def differences(self, other):
        """Return which of it differs."""
        compared = ("spans", "otlp", "metrics", "watched", "sampled", "logged")
        return [name for name in compared if getattr(self, name) != getattr(other, name)]


class Run:
    """One run of the script.

    Args:
        combination: What it runs with.
        seed: Of its random choices.
        direct: Whether the direct way is allowed.
    """

    def __init__(self, combination, seed, *, direct):
        self.combination = combination
        self.seed = seed
        self.random = random.Random(seed)
        self.direct = direct
        self.clock = Clock()
        self.exporter = InMemorySpanExporter()
        self.watching = WatchingProcessor()
        self.seen = Seen()
        self.readers = []
        # A command that all calls of a batch of replies are: their points are added up together.
        self.repeated = None

    def run(self):
        """Run it, and return what can be seen."""
        with contextlib.ExitStack() as stack:
            for patch in self._patches():
                stack.enter_context(patch)
            random.seed(self.seed)
            stack.enter_context(self._capturing_logs())
            self._set_up()
            for step in range(STEPS):
                self.clock.now += self.random.randrange(10**6)
                # In a context of its own: what a step attaches ends with it.
                contextvars.copy_context().run(self._step)
                if self.random.random() < 0.15:
                    self._collect()
                self._change(step)
            self._collect()
            self.tracer_provider.force_flush()
            self.tracer_provider.shutdown()
            contextvars.copy_context().run(self._step)
            self._collect()
            spans = list(self.exporter.get_finished_spans())
        self.seen.spans = list(map(span_fields, spans))
        self.seen.otlp = encode_spans(spans).SerializeToString(deterministic=True)
        self.seen.watched = self.watching.seen
        self.seen.sampled = getattr(self.sampler, "seen", None) or getattr(
            getattr(self.sampler, "_root", None), "seen", None
        )
        return self.seen

    @contextlib.contextmanager
    def _capturing_logs(self):
        """Note the warnings of the SDK and the package, which are each logged once in a process otherwise."""
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.seen.logged.append((record.name, record.getMessage()))
        loggers = [logging.getLogger(name) for name in ("opentelemetry", "aioredis_monitored")]
        for logger in loggers:
            logger.addHandler(handler)
            logger.propagate = False
        try:
            with mock.patch.object(guard, "_logged", set()):
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
                logger.propagate = True

    def _patches(self):
        clocks = {
            "aioredis_monitored._telemetry.operation": ("time_ns", "perf_counter"),
            "aioredis_monitored._telemetry.messaging": ("time_ns", "perf_counter"),
            "opentelemetry.sdk.trace": ("time_ns",),
            "opentelemetry.sdk.metrics._internal.instrument": ("time_ns",),
            "opentelemetry.sdk.metrics._internal._view_instrument_match": ("time_ns",),
            "opentelemetry.sdk.metrics._internal.metric_reader_storage": ("time_ns",),
            "opentelemetry.sdk.metrics._internal.measurement_consumer": ("time_ns",),
        }
        unknown = sdk.unknown_part()
        if unknown is None:
            clocks[f"{DIRECT}.points"] = ("time_ns",)
        # With a clock in its place, the SDK's own would be another function.
        yield mock.patch.object(sdk, "unknown_part", return_value=unknown)
        for module, names in clocks.items():
            for name in names:
                yield mock.patch.object(import_module(module), name, getattr(self.clock, name))
        yield mock.patch(
            "opentelemetry.sdk.metrics._internal.exemplar.exemplar_reservoir.randrange",
            lambda start, stop: start + (stop * 2654435761 >> 3) % (stop - start),
        )
        is_observed = str(self.seed % 4 == 0).lower()
        yield mock.patch.dict(os.environ, {"OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": is_observed})

    def _set_up(self):
        chosen = self.combination
        if chosen.temporality in {"cumulative", "both"}:
            self.readers.append(InMemoryMetricReader())
        if chosen.temporality in {"delta", "both"}:
            delta = dict.fromkeys((Histogram, Counter), AggregationTemporality.DELTA)
            self.readers.append(InMemoryMetricReader(preferred_temporality=delta))
        self.meter_provider = MeterProvider(
            metric_readers=self.readers.copy(),
            views=views_named(chosen.views),
            exemplar_filter=FILTERS[chosen.filter](),
            resource=Resource({"r": 1}),
            shutdown_on_exit=False,
        )
        self.sampler = sampler_named(chosen.sampler)
        self.tracer_provider = TracerProvider(
            sampler=self.sampler,
            span_limits=SpanLimits(**LIMITS[chosen.limits]),
            resource=Resource({"service.name": "x"}),
            shutdown_on_exit=False,
            **({"meter_provider": self.meter_provider} if takes_meter_provider() else {}),
        )
        for processor in self._processors(chosen.processors):
            self.tracer_provider.add_span_processor(processor)
        self.recorder = PoolRecorder(
            SERVER,
            TelemetryOptions(direct=self.direct, slow_only=0.001 if self.seed % 5 == 0 else None),
            tracer_provider=self.tracer_provider,
            meter_provider=self.meter_provider,
        )
        self.recorder.set_pool_name("pool")

    def _processors(self, name):
        if name.startswith("batch"):
            kind = BatchSpanProcessor if name == "batch" else VendorsBatchProcessor
            return [kind(self.exporter, max_queue_size=10_000, schedule_delay_millis=1e7)]
        simple = SimpleSpanProcessor(self.exporter)
        return {
            "simple": [simple],
            "altering": [AlteringProcessor(), simple],
            "watching": [self.watching, simple],
            "failing": [simple, FailingProcessor(), self.watching],
            "none": [],
        }[name]

    # Steps.

    def _step(self):
        self.random.choices(
            (
                self._commands,
                self._interleaved_commands,
                self._failed_commands,
                self._pool_points,
                self._messages,
                self._nested,
                self._batch,
            ),
            (10, 2, 2, 2, 2, 1, 2),
        )[0]()

    def _span_context(self, *, is_remote, is_sampled):
        chance = self.random
        flags = TraceFlags(is_sampled | chance.choice((0, 2)))
        state = TraceState([("v", "1")]) if chance.random() < 0.3 else None
        return SpanContext(chance.getrandbits(128) | 1, chance.getrandbits(64) | 1, is_remote, flags, state)

    def _attach(self):
        """Attach a random context, as that of a caller."""
        chance = self.random
        MARK.set(chance.random())
        kind = chance.randrange(9)
        if kind < 4:
            span = NonRecordingSpan(self._span_context(is_remote=kind < 2, is_sampled=kind % 2))
            context.attach(trace.set_span_in_context(span))
        elif kind == 4:
            context.attach(context.set_value("mark", 5))
        elif kind == 5:
            context.attach(context.set_value("suppress_instrumentation", True))
        elif kind == 6:
            span = self.tracer_provider.get_tracer("app").start_span("app")
            context.attach(trace.set_span_in_context(span))
        elif kind == 7:
            context.attach(trace.set_span_in_context(NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)))

    def _args(self):
        if self.repeated is not None:
            return self.repeated
        key = f"k{self.random.randrange(7)}"
        return self.random.choice(
            [
                ("GET", key),
                ("GET", key),
                ("SET", key, "v"),
                ("HGET", key, "f"),
                ("EVAL", "return 1", 0),
                ("DEL", key),
                ("UNKNOWN.CMD", key),
                ("PUBLISH", f"channel {key}", "m"),
                ("BLPOP", key, 1),
            ]
        )

    def _operation(self, make=None):
        chance = self.random
        parent = None
        if chance.random() < 0.2:
            parent = NonRecordingSpan(self._span_context(is_remote=False, is_sampled=chance.random() < 0.5))
        args = self._args()

        def start():
            self._attach()
            if make is None:
                operation = Operation(self.recorder, self.recorder.command_spec(args), args, parent)
            else:
                operation = make(parent)
            operation.start()
            return operation

        if chance.random() < 0.3:
            # So that the durations of a batch are in different buckets.
            self._pause()
        operation = contextvars.copy_context().run(start)
        if chance.random() < 0.1:
            links = [Link(self._span_context(is_remote=True, is_sampled=True), {"a": 1})]
            operation._links = links
        if chance.random() < 0.2:
            operation.add_wait(chance.random() * 0.05, 0.001)
        if chance.random() < 0.05:
            operation.add_redirect()
        if chance.random() < 0.05:
            operation.start_span()
        return operation

    def _single(self, parent):
        """Make the operation of a batch of one command, whose description is made for each."""
        batch = [self._args()]
        spec = self.recorder.batch_spec("PIPELINE", batch, None)
        if self.random.random() < 0.5:
            # Another series for this package, and the same one for the SDK.
            spec = replace(spec, point_attributes=dict(reversed(spec.point_attributes.items())))
        return Operation(self.recorder, spec, batch, parent)

    def _pause(self):
        self.clock.now += self.random.choice(
            (0, 1_000, 90_000, 100_000, 400_000, 7_000_000, 3_000_000_000, 20_000_000_000, -50)
        )

    def _commands(self):
        chance = self.random
        self.repeated = self._args() if chance.random() < 0.5 else None
        operations = [
            self._operation(self._single if chance.random() < 0.2 else None)
            for _ in range(chance.choice((1, 2, 7, 20)))
        ]
        self.repeated = None
        for operation in operations:
            operation.record_on_reply = chance.random() < 0.9
        self._pause()
        replies = [chance.choice([b"v", b"v", b"v", b"v", None, ResponseError("WRONGTYPE x"), 5]) for _ in operations]
        self._reply(list(zip(operations, replies, strict=True)))
        now = self.clock.perf_counter()
        for operation, reply in zip(operations, replies, strict=True):
            if isinstance(reply, Exception):
                operation.set_error(reply)
            operation.end(now, reply)

    def _interleaved_commands(self):
        """Have one read answer several commands in turn, with durations whose sum depends on their order."""
        operations = []
        for number in range(25):
            self.repeated = (("GET", "k"), ("SET", "k", "v"), ("HGET", "k", "f"), ("DEL", "k"), ("LLEN", "k"))[
                number % 5
            ]
            self.clock.now += (1_000_003, 77, 3_000_000_019, 10_007)[number % 4]
            operations.append(self._operation())
            operations[-1].record_on_reply = True
        self.repeated = None
        self._reply([(operation, b"v") for operation in operations])
        for operation in operations:
            operation.end(self.clock.perf_counter(), b"v")

    def _reply(self, completed):
        """Have the shared connection tell the observers, with its own code."""
        connection = types.SimpleNamespace(
            inflight=types.SimpleNamespace(completed=completed),
            _is_located=False,
            _on_resumed=None,
            _peer=self.random.choice((PEER, PEER, ("/tmp/redis.sock", None), None)),  # noqa: S108 - never opened
        )
        MultiplexedConnection._notify(connection, self.clock.perf_counter())

    def _failed_commands(self):
        error = self.random.choice(
            [ResponseError("ERR x"), RedisConnectionError("lost"), WatchError("raced"), TimeoutError(), KeyError("k")]
        )
        operation = self._operation()
        self._pause()
        operation.set_error(error)
        operation.end(self.clock.perf_counter(), error)

    def _batch(self):
        chance = self.random
        batch = [self._args() for _ in range(chance.choice((1, 2, 5)))]
        kind, summary = chance.choice(("MULTI", "PIPELINE")), chance.choice((None, "checkout"))

        def make(parent):
            return Operation(self.recorder, self.recorder.batch_spec(kind, batch, summary), batch, parent)

        operation = self._operation(make)
        operation.record_on_reply = chance.random() < 0.5
        self._pause()
        self._reply([(operation, [b"v"] * len(batch))])
        operation.end(self.clock.perf_counter(), [])

    def _pool_points(self):
        instruments, chance = self.recorder.instruments, self.random
        self._attach()
        for _ in range(chance.choice((1, 3))):
            self._pause()
            instrument = chance.choice((instruments.create_time, instruments.wait_time, instruments.event_loop_lag))
            self.recorder.record(instrument, chance.choice((0, 0.0, 0.0001, 0.02, 1, 70.0, -1.0, float("nan"))))
        self.recorder.record(instruments.timeouts, chance.choice((1, 1, 2, 0.5, 0, -1)))
        kind = {"aioredis_monitored.cluster.redirect": chance.choice(("moved", "ask"))}
        self.recorder.record(instruments.cluster_redirects, 1, kind)

    def _messages(self):
        chance = self.random
        send = chance.random() < 0.5
        messaging = MessagingSpec("put" if send else "get", "send" if send else "receive", "mail", names_span=send)
        args = ("RPUSH", "mail", "m") if send else ("BLPOP", "mail", 1)
        operation = self._operation(lambda parent: MessagingOperation(self.recorder, messaging, args, parent))
        if send:
            operation.start_span()
        self._pause()
        operation.set_message_count(chance.randrange(3), is_batch=chance.random() < 0.5)
        self._reply([(operation, 1)])
        operation.end(self.clock.perf_counter(), 1)
        self._attach()
        carriers = [{"traceparent": f"00-{chance.getrandbits(128) | 1:032x}-{chance.getrandbits(64) | 1:016x}-01"}]
        with contextlib.suppress(KeyError), ProcessSpan(self.recorder, "mail", carriers, None, of_queue=True):
            self._pause()
            self._commands()
            if chance.random() < 0.3:
                raise KeyError("handler")

    def _nested(self):
        args = ("SET", "lock", "token")
        spec = self.recorder.lock_spec("acquire", args)
        operation = self._operation(lambda parent: Operation(self.recorder, spec, args, parent))
        with nested_in(operation):
            self._commands()
        self._pause()
        operation.end(self.clock.perf_counter(), 1)

    # What changes while it runs.

    def _collect(self):
        self.clock.now += 1000
        for reader in self.readers:
            data = reader.get_metrics_data()
            self.seen.metrics.append(data and metrics_text(data))

    def _change(self, step):
        """Change what the seed says, if its step has come; what this version of the SDK cannot do is left out."""
        seed, tracers, meters = self.seed, self.tracer_provider, self.meter_provider
        changes = (
            # As if an application had more series than are kept: others with the same attributes follow.
            (step in {2, 12, 20} and seed % 2 == 1, self.recorder._series.clear),
            (step == 8 and seed % 3 == 0, lambda: tracers.add_span_processor(self.watching)),
            (step == 11 and seed % 6 == 1, lambda: tracers.add_span_processor(AlteringProcessor())),
            (step % 8 == 4 and seed % 3 == 0, self._add_reader),
            (step == 14 and seed % 6 == 0, lambda: meters.remove_metric_reader(self.readers.pop())),
            (step == 16 and seed % 6 == 0, lambda: tracers._update_resource(Resource({"pid": 5}))),
            (step == 18 and seed % 7 == 0, lambda: self._configure_tracers("_disable_tracer_configurator")),
            (step == 21 and seed % 7 == 0, lambda: self._configure_tracers("_default_tracer_configurator")),
            (step == 20 and seed % 4 == 1, lambda: self._configure_meters("_disable_meter_configurator")),
            (step == 23 and seed % 4 == 1, lambda: self._configure_meters("_default_meter_configurator")),
            (step == 25 and seed % 13 == 0, lambda: setattr(self.recorder.tracer, "sampler", sampling.ALWAYS_ON)),
            (step == 26 and seed % 17 == 0, meters.shutdown),
        )
        for is_due, change in changes:
            if is_due:
                with contextlib.suppress(AttributeError) if is_unknown() else contextlib.nullcontext():
                    change()

    def _add_reader(self):
        reader = InMemoryMetricReader()
        self.meter_provider.add_metric_reader(reader)
        self.readers.append(reader)

    def _configure_tracers(self, name):
        self.tracer_provider._set_tracer_configurator(tracer_configurator=getattr(sdk_trace, name))

    def _configure_meters(self, name):
        self.meter_provider._set_meter_configurator(meter_configurator=getattr(sdk_metrics, name))


def takes_meter_provider():
    """Whether this version of the SDK records metrics of its own spans."""
    return (
        "meter_provider" in TracerProvider.__init__.__kwdefaults__ if TracerProvider.__init__.__kwdefaults__ else False
    )


def span_fields(span):
    """Return all that is public of a span, and the types of what others may rely on."""
    attributes = span.attributes
    return (
        span.name,
        span.context,
        span.context.is_valid,
        type(span.context),
        type(span.context.trace_flags),
        span.parent,
        span.kind,
        (span.start_time, span.end_time),
        list(attributes.items()),
        list(map(type, attributes.values())),
        (span.dropped_attributes, span.dropped_events, span.dropped_links),
        [(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events],
        [(link.context, dict(link.attributes or {})) for link in span.links],
        (span.status.status_code, span.status.description),
        span.resource,
        span.instrumentation_scope,
        span.to_json(),
        (type(span), type(attributes), type(span._attributes), type(span.events), type(span.links)),
        (span._attributes.maxlen, span._attributes.max_value_len, span._attributes._immutable),
        # Older versions cannot copy them.
        dict(copy.deepcopy(span._attributes)) if hasattr(span._attributes, "__deepcopy__") else None,
        sorted(vars(span)),
    )


def metrics_text(data):
    """Return metrics as JSON, without those whose values are real times."""
    everything = json.loads(data.to_json())
    for resource in everything["resource_metrics"]:
        for scope in resource["scope_metrics"]:
            scope["metrics"] = [
                each for each in scope["metrics"] if not each["name"].startswith("otel.sdk.metric_reader")
            ]
    return json.dumps(everything)


# --- The comparison ---


class Counted:
    """Counts what goes directly, without a change to it: comparing the public way with itself would show nothing."""

    def __init__(self):
        self.spans = self.points = 0

    @contextlib.contextmanager
    def counting(self):
        """Count in the block."""
        points = import_module(f"{DIRECT}.points").DirectPoints
        spans = import_module(f"{DIRECT}.spans")
        add_up, readable_span = points._add_up, spans.ReadableSpan

        def counted_points(*arguments):
            self.points += len(arguments[4])
            add_up(*arguments)

        def counted_span(*arguments):
            self.spans += 1
            return readable_span(*arguments)

        with (
            mock.patch.object(points, "_add_up", counted_points),
            mock.patch.object(spans, "ReadableSpan", counted_span),
        ):
            yield


def compare(combination, seed, counted=None):
    """Run the script both ways, and return what differs."""
    public = Run(combination, seed, direct=False).run()
    with contextlib.nullcontext() if counted is None else counted.counting():
        direct = Run(combination, seed, direct=True).run()
    return public.differences(direct)


def compare_all(chosen):
    """Compare numbered combinations; return the differences of each, and how much went directly."""
    counted = Counted()
    has_direct = not is_unknown()
    found = {}
    for seed, combination in chosen:
        if differences := compare(combination, seed, counted if has_direct else None):
            found[seed] = (combination, differences)
    return found, counted.spans, counted.points


def is_unknown():
    """Whether this version of the SDK is one for which everything goes the public way."""
    return sdk.unknown_part() is not None


# --- The command ---


def main(words=None):
    """Compare, print the result, and return an exit code."""
    parser = argparse.ArgumentParser(prog="nox -s conform --", description=__doc__.splitlines()[0])
    parser.add_argument("combinations", nargs="?", type=int, default=5_000, help="how many are compared")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="which ones")
    parser.add_argument("--public", action="store_true", help="expect that this SDK is one that is not known")
    asked = parser.parse_args(words)
    chosen = list(enumerate(combinations(asked.seed)))[: asked.combinations]
    workers = os.cpu_count() or 1
    parts = [chosen[part::workers] for part in range(workers)]
    found, spans, points = {}, 0, 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        for differing, direct_spans, direct_points in executor.map(compare_all, parts):
            found |= differing
            spans, points = spans + direct_spans, points + direct_points
    for number, (combination, differences) in sorted(found.items())[:20]:
        print(f"{number}: {', '.join(differences)} differ with {combination}")
    print(
        f"seed {asked.seed}: {len(found)} of {len(chosen)} combinations differ; "
        f"{spans} spans and {points} points went directly"
    )
    is_as_expected = is_unknown() == asked.public and bool(spans and points) != asked.public
    if not is_as_expected:
        print(f"this SDK is unknown: {sdk.unknown_part()}" if is_unknown() else "nothing went directly")
    return int(bool(found) or not is_as_expected)


if __name__ == "__main__":
    sys.exit(main())
