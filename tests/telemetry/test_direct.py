"""The direct way of spans and points: when it is taken, what says why it is not, threads, forks, and its mutants."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock, patch

import pytest
import wrapt
from opentelemetry import context, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk import trace as sdk_trace
from opentelemetry.sdk.metrics import (
    AlwaysOnExemplarFilter,
    ExemplarFilter,
    Histogram,
    MeterProvider,
    SimpleFixedSizeExemplarReservoir,
    TraceBasedExemplarFilter,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    Tracer,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, SamplingResult
from opentelemetry.trace import NoOpTracerProvider
from support import conform, forking, mutants
from support.internals import (
    forget_explanations,
    forget_known_functions,
    goes_directly,
    new_operation,
    sizes_of_additions,
    start_recorder,
)

import aioredis_monitored
from aioredis_monitored import MonitoredRedisConnection, TelemetryOptions, pool_from_config

DURATION = "db.client.operation.duration"
LOGGER = "aioredis_monitored.telemetry"

is_known = pytest.mark.skipif(conform.is_unknown(), reason="on this version, everything goes the public way")


@pytest.fixture(autouse=True)
def explanations(monkeypatch, caplog):
    """Have each test log its reasons anew."""
    forget_explanations(monkeypatch)
    caplog.set_level(logging.INFO, LOGGER)


class Providers:
    """An SDK of one test, and what is recorded there."""

    def __init__(self, tracing=None, metrics=None, *, processor=None, reader=None):
        self.exporter, self.reader = InMemorySpanExporter(), reader or InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False, **(metrics or {}))
        self.tracer_provider = TracerProvider(shutdown_on_exit=False, **(tracing or {}))
        for each in (processor, SimpleSpanProcessor(self.exporter)):
            if each is not None:
                self.tracer_provider.add_span_processor(each)

    def client(self, make_pool, url, **options):
        pool = make_pool(
            url,
            tracer_provider=self.tracer_provider,
            meter_provider=self.meter_provider,
            telemetry=TelemetryOptions(**options),
        )
        return MonitoredRedisConnection(connection_pool=pool)

    def count(self):
        """Return the numbers of spans and points."""
        return len(self.exporter.get_finished_spans()), count_of(self.reader)


def count_of(reader):
    return sum(point.count for point in points_of(reader))


def record_calls(recorder, calls, *, as_batch):
    for args in calls:
        operation = new_operation(recorder, args)
        if as_batch:
            operation.record_on_reply = True
            batch = operation.on_reply(b"v", 1e9, None)
        else:
            operation.end(1e9, b"v")
    if as_batch:
        batch.flush()


def points_of(reader):
    data = reader.get_metrics_data()
    return [
        point
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == DURATION
        for point in metric.data.data_points
    ]


def reasons(caplog):
    return [record.getMessage() for record in caplog.records if "costs more than the direct one" in record.getMessage()]


# --- Which way ---


@is_known
async def test_spans_and_points_go_directly_without_a_log_line(make_pool, server, caplog):
    providers = Providers()
    client = providers.client(make_pool, server.url)
    await asyncio.gather(*(client.get("key") for _ in range(10)))

    assert (True, True) == goes_directly(client)
    assert (10, 10) == providers.count()
    assert [] == reasons(caplog)


async def test_direct_way_is_switched_off_by_the_application_or_the_operator(make_pool, server, caplog):
    providers = Providers()
    client = providers.client(make_pool, server.url, direct=False)
    await client.get("key")
    keys = {"redis.url": server.url, "redis.telemetry_direct": "false"}
    async with pool_from_config(keys, tracer_provider=providers.tracer_provider) as pool:
        configured = MonitoredRedisConnection(connection_pool=pool)
        await configured.get("key")

        assert [(False, False)] * 2 == [goes_directly(client), goes_directly(configured)]
    assert (2, 1) == providers.count()
    assert [] == reasons(caplog)


class StartingProcessor(SpanProcessor):
    def on_start(self, span, parent_context=None):
        span.set_attribute("started", True)


class EndingProcessor(SpanProcessor):
    def _on_ending(self, span):
        assert span.end_time


class OwnFilter(ExemplarFilter):
    def should_sample(self, value, time_unix_nano, attributes, context):
        return True


class OwnReservoir(SimpleFixedSizeExemplarReservoir):
    def __init__(self, size=1, **_):
        super().__init__(size)


class OwnAggregation(ExplicitBucketHistogramAggregation):
    pass


def processor_with_on_start_of_its_own():
    processor = SpanProcessor()
    processor.on_start = lambda span, parent_context=None: span.set_attribute("started", True)
    return processor


def processor_with_wrapped(method):
    """Return a processor of which an instrumentation has wrapped a method."""
    kind = type("Wrapped", (SpanProcessor,), {})
    wrapt.wrap_function_wrapper(kind, method, lambda wrapped, _, args, options: wrapped(*args, **options))
    return kind()


REASONS = {
    "wrapped": (lambda: Providers(processor=processor_with_wrapped("on_start")), "on_start of its own: Wrapped"),
    "on_start": (lambda: Providers(processor=StartingProcessor()), "on_start of its own: StartingProcessor"),
    "on_ending": (lambda: Providers(processor=EndingProcessor()), "on_start of its own: EndingProcessor"),
    "instance": (lambda: Providers(processor=processor_with_on_start_of_its_own()), "on_start of its own"),
    "concurrent": (
        lambda: Providers({"active_span_processor": ConcurrentMultiSpanProcessor()}),
        "has a ConcurrentMultiSpanProcessor",
    ),
    "subclass": (
        lambda: Providers({"active_span_processor": type("Own", (SynchronousMultiSpanProcessor,), {})()}),
        "has a Own",
    ),
    "length": (lambda: Providers({"span_limits": SpanLimits(max_span_attribute_length=9)}), "a length limit"),
    "filter": (lambda: Providers(metrics={"exemplar_filter": OwnFilter()}), "exemplar filter of its own: OwnFilter"),
    "filter subclass": (
        lambda: Providers(metrics={"exemplar_filter": type("Filter", (TraceBasedExemplarFilter,), {})()}),
        "exemplar filter of its own: Filter",
    ),
    "reservoir": (
        lambda: Providers(
            metrics={"views": [View(instrument_name="*", exemplar_reservoir_factory=lambda _: OwnReservoir)]}
        ),
        "exemplar reservoir of its own",
    ),
    "aggregation of a view": (
        lambda: Providers(metrics={"views": [View(instrument_name="*", aggregation=OwnAggregation())]}),
        "aggregation of its own: OwnAggregation",
    ),
    "aggregation of a reader": (
        lambda: Providers(reader=InMemoryMetricReader(preferred_aggregation={Histogram: OwnAggregation()})),
        "aggregation of its own: OwnAggregation",
    ),
}


@is_known
@pytest.mark.parametrize("kind", REASONS)
async def test_what_the_direct_way_cannot_do_goes_the_public_way_and_is_logged_once(make_pool, server, caplog, kind):
    make, reason = REASONS[kind]
    is_altered = kind in {"on_start", "instance"}
    providers = make()
    for _ in range(2):
        client = providers.client(make_pool, server.url)
        await asyncio.gather(*(client.get("key") for _ in range(5)))

    [line] = reasons(caplog)
    assert reason in line
    assert (10, 10) == providers.count()
    altered = ["started" in span.attributes for span in providers.exporter.get_finished_spans()]
    assert [is_altered] * 10 == altered


@is_known
@pytest.mark.parametrize(
    ("part", "name", "named"),
    [
        (Tracer, "start_span", "opentelemetry.sdk.trace.Tracer.start_span"),
        (Histogram, "record", "opentelemetry.sdk.metrics._internal.instrument.Histogram.record"),
        (SynchronousMultiSpanProcessor, "on_end", "SynchronousMultiSpanProcessor.on_end"),
    ],
)
async def test_function_of_the_sdk_that_another_tool_has_replaced_is_called(
    make_pool, server, caplog, monkeypatch, part, name, named
):
    seen, original = [], getattr(part, name)

    def replacement(self, *args, **options):
        seen.append(args)
        return original(self, *args, **options)

    monkeypatch.setattr(part, name, replacement)
    providers = Providers()
    client = providers.client(make_pool, server.url)
    await client.get("key")

    [line] = reasons(caplog)
    assert f"was altered: {named}" in line.replace("opentelemetry.sdk.trace.Syn", "Syn")
    assert seen
    assert (1, 1) == providers.count()


@is_known
@pytest.mark.parametrize(
    ("module", "path"),
    [
        ("opentelemetry.sdk.trace", "Tracer.start_span"),
        ("opentelemetry.sdk.trace", "ReadableSpan.__init__"),
        ("opentelemetry.sdk.trace.export", "BatchSpanProcessor.on_start"),
        ("opentelemetry.sdk.metrics._internal.instrument", "Histogram.record"),
        ("opentelemetry.context", "get_current"),
        ("opentelemetry.attributes", "_is_non_custom_str"),
    ],
)
def test_function_that_an_instrumentation_has_wrapped_is_called(make_pool, server, caplog, monkeypatch, module, path):
    # Such a wrapper has the code of what it wraps, and equals it.
    assert (True, True) == goes_directly(Providers().client(make_pool, server.url))
    parent, name, original = wrapt.resolve_path(module, path)
    wrapper = wrapt.FunctionWrapper(original, lambda wrapped, _, args, options: wrapped(*args, **options))
    monkeypatch.setattr(parent, name, wrapper)

    assert (False, False) == goes_directly(Providers().client(make_pool, server.url))
    [line] = reasons(caplog)
    assert "was altered: opentelemetry." in line


@is_known
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("opentelemetry.trace", "get_current_span"),
        ("opentelemetry.trace", "SpanContext"),
        ("opentelemetry.sdk.trace", "ReadableSpan"),
        ("opentelemetry.sdk.trace", "BoundedAttributes"),
        ("opentelemetry.sdk.metrics._internal.instrument", "Measurement"),
        ("opentelemetry.sdk.metrics._internal._view_instrument_match", "_hash_attributes"),
    ],
)
async def test_name_that_the_sdk_looks_up_and_that_was_replaced_is_used(make_pool, server, caplog, module, name):
    original = getattr(import_module(module), name)
    with patch(f"{module}.{name}", MagicMock(side_effect=original)):
        client = Providers().client(make_pool, server.url)

        assert (False, False) == goes_directly(client)
        [line] = reasons(caplog)
        assert "was altered: opentelemetry." in line
    # It is there no more.
    assert (True, True) == goes_directly(Providers().client(make_pool, server.url))


@is_known
async def test_tracer_or_instrument_with_a_method_of_its_own_goes_the_public_way(make_pool, server, caplog):
    providers, seen = Providers(), []
    client = providers.client(make_pool, server.url)
    tracer = client.connection_pool.telemetry.tracer
    original = tracer.start_span
    tracer.start_span = lambda *args, **options: seen.append(args) or original(*args, **options)
    client = providers.client(make_pool, server.url)
    await client.get("key")

    assert 1 == len(seen)
    assert ["the tracer is not the SDK's own: Tracer"] == [line.rpartition("one: ")[2] for line in reasons(caplog)]


@is_known
async def test_unknown_sdk_goes_the_public_way(make_pool, server, caplog, monkeypatch):
    forget_known_functions(monkeypatch)
    providers = Providers()
    client = providers.client(make_pool, server.url)
    await client.get("key")

    [line] = reasons(caplog)
    assert "this version of the SDK is not known, or was altered: opentelemetry.attributes." in line
    assert (False, False) == goes_directly(client)
    assert (1, 1) == providers.count()


class VendorTracer(trace.Tracer):
    """A tracer that is not the SDK's."""

    def __init__(self):
        self.names = []

    def start_span(self, name, *args, **options):
        self.names.append(name)
        return trace.INVALID_SPAN

    def start_as_current_span(self, name, *args, **options):
        raise NotImplementedError


class VendorProvider(trace.TracerProvider):
    def __init__(self):
        self.tracer = VendorTracer()

    def get_tracer(self, *args, **options):
        return self.tracer


async def test_tracer_of_a_vendor_is_used_as_it_is(make_pool, server, caplog):
    provider = VendorProvider()
    client = MonitoredRedisConnection(
        connection_pool=make_pool(server.url, tracer_provider=provider, meter_provider=NoOpMeterProvider())
    )
    await client.get("key")

    assert 1 == len(provider.tracer.names)
    assert ["the tracer is not the SDK's own: VendorTracer"] == [
        line.rpartition("one: ")[2] for line in reasons(caplog)
    ]


async def test_nothing_is_logged_where_nothing_is_recorded(make_pool, server, caplog):
    pool = make_pool(server.url, tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider())
    await MonitoredRedisConnection(connection_pool=pool).get("key")

    assert [] == reasons(caplog)


@is_known
def test_looking_whether_the_sdk_is_known_takes_a_moment():
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(event) if event in {"call", "c_call"} else None)
    try:
        conform.is_unknown()
    finally:
        sys.setprofile(None)

    # A tenth of a millisecond: digests are made once.
    assert len(calls) < 2_000


def test_newest_sdk_is_known_on_every_python_that_was_compared():
    # Otherwise every test above is skipped.
    if version("opentelemetry-sdk") == "1.45.2" and sys.version_info[:2] in {(3, 11), (3, 12), (3, 13)}:
        assert not conform.is_unknown()


def test_only_the_direct_way_and_testing_know_the_sdk():
    package = Path(aioredis_monitored.__file__).parent
    others = [
        path
        for path in package.rglob("*.py")
        if not {"direct", "testing", "cli"}.intersection(path.relative_to(package).parts)
    ]

    assert len(others) > 80
    assert [] == [path for path in others if "opentelemetry.sdk" in path.read_text("utf-8")]


@is_known
async def test_class_of_spans_that_another_tool_has_replaced_is_noticed(make_pool, server, caplog, monkeypatch):
    class Span(sdk_trace._Span):  # noqa: SLF001 - what tools replace
        def end(self, end_time=None):
            self.set_attribute("own", 1)
            super().end(end_time)

    monkeypatch.setattr(sdk_trace, "_Span", Span)
    providers = Providers()
    await providers.client(make_pool, server.url).get("key")

    [line] = reasons(caplog)
    assert "was altered: opentelemetry.sdk.trace._Span" in line
    assert 1 == providers.exporter.get_finished_spans()[0].attributes["own"]


class Delegating:
    """Looks like a processor, and is none."""

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.processor, name)


class NoSpan:
    """A sampler without a dictionary of attributes, that is none of the SDK's."""

    __slots__ = ()

    def should_sample(self, parent_context, *_, **__):
        return SamplingResult(Decision.DROP)

    def get_description(self):
        return "no span"


@is_known
async def test_what_is_added_while_spans_are_recorded_is_used_from_the_next_one(make_pool, server):
    providers = Providers()
    client = providers.client(make_pool, server.url)
    await client.get("a")
    providers.tracer_provider.add_span_processor(Delegating(StartingProcessor()))
    await client.get("b")
    await client.get("c")
    client.connection_pool.telemetry.tracer.sampler = NoSpan()
    await client.get("d")

    assert [False, True, True] == ["started" in span.attributes for span in providers.exporter.get_finished_spans()]
    assert 4 == count_of(providers.reader)


@is_known
async def test_log_that_fails_loses_no_span(make_pool, server):
    class Raising(logging.Filter):
        def filter(self, record):
            raise ValueError

    logging.getLogger(LOGGER).addFilter(failing := Raising())
    try:
        providers = Providers()
        client = providers.client(make_pool, server.url)
        await client.get("a")
        providers.tracer_provider.add_span_processor(StartingProcessor())
        await client.get("b")
    finally:
        logging.getLogger(LOGGER).removeFilter(failing)

    assert (2, 2) == providers.count()


class RaisingSpan(trace.NonRecordingSpan):
    def get_span_context(self):
        raise ValueError


@is_known
@pytest.mark.parametrize(
    ("exemplar_filter", "expected"), [(TraceBasedExemplarFilter, [8, 8]), (AlwaysOnExemplarFilter, [9, 9])]
)
async def test_span_of_the_application_that_raises_loses_no_point_of_others(
    make_pool, server, exemplar_filter, expected
):
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers, exemplar_filter=exemplar_filter(), shutdown_on_exit=False)
    client = MonitoredRedisConnection(
        connection_pool=make_pool(server.url, tracer_provider=NoOpTracerProvider(), meter_provider=provider)
    )
    for _ in range(2):
        await client.get("key")

    async def call(number):
        if number == 3:
            context.attach(trace.set_span_in_context(RaisingSpan(trace.INVALID_SPAN_CONTEXT)))
        await client.get("key")

    await asyncio.gather(*map(call, range(7)))

    # By the filter of traces, the point of such a span fails, as by the API.
    assert expected == list(map(count_of, readers))


class CollectingProcessor(SpanProcessor):
    """Looks at the metrics whenever a span has ended."""

    def __init__(self, reader):
        self.reader = reader
        self.counts = []

    def on_end(self, span):
        self.counts.append(count_of(self.reader))


@is_known
async def test_processor_that_collects_sees_the_points_before_it(make_pool, server):
    providers = Providers()
    collecting = CollectingProcessor(providers.reader)
    providers.tracer_provider.add_span_processor(collecting)
    client = providers.client(make_pool, server.url)
    await client.get("key")
    await asyncio.gather(*(client.get("key") for _ in range(10)))

    assert list(range(11)) == collecting.counts


class BatchProcessorOfAVendor(BatchSpanProcessor):
    def __init__(self):
        super().__init__(InMemorySpanExporter())


def processor_with_on_end_of_its_own():
    processor = SpanProcessor()
    processor.on_end = lambda span: None
    return processor


@is_known
@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        (lambda: BatchSpanProcessor(InMemorySpanExporter()), {10}),
        (BatchProcessorOfAVendor, {10}),
        (SpanProcessor, {10}),
        (lambda: SimpleSpanProcessor(InMemorySpanExporter()), {1}),
        (processor_with_on_end_of_its_own, {1}),
        (lambda: processor_with_wrapped("on_end"), {1}),
    ],
)
def test_points_of_a_batch_are_added_up_together_unless_a_processor_may_look_at_them(processor, sizes, monkeypatch):
    tracing, metrics = TracerProvider(shutdown_on_exit=False), MeterProvider([InMemoryMetricReader()])
    tracing.add_span_processor(processor())
    recorder = start_recorder(tracing, metrics)
    record_calls(recorder, [("GET", "key")], as_batch=False)
    seen = sizes_of_additions(monkeypatch, recorder)
    record_calls(recorder, [("GET", "key")] * 10, as_batch=True)
    tracing.shutdown()
    metrics.shutdown()

    assert sizes == set(seen)
    assert 10 == sum(seen)


# --- When ---


@is_known
async def test_points_of_a_batch_are_recorded_before_its_callers_resume(make_pool, server):
    providers = Providers()
    client = providers.client(make_pool, server.url)
    await client.get("key")
    seen = []

    async def call():
        await client.get("key")
        seen.append(count_of(providers.reader))

    await asyncio.gather(*(call() for _ in range(20)))

    assert all(count > number for number, count in enumerate(seen, 1))
    assert 21 == count_of(providers.reader)


@is_known
@pytest.mark.parametrize("exemplar_filter", [TraceBasedExemplarFilter, AlwaysOnExemplarFilter])
async def test_exemplars_refer_to_the_spans(make_pool, server, exemplar_filter):
    providers = Providers(metrics={"exemplar_filter": exemplar_filter()})
    client = providers.client(make_pool, server.url)
    await asyncio.gather(*(client.get("key") for _ in range(5)))

    spans = {span.context.span_id: span for span in providers.exporter.get_finished_spans()}
    exemplars = [exemplar for point in points_of(providers.reader) for exemplar in point.exemplars]
    assert exemplars
    assert all(each.trace_id == spans[each.span_id].context.trace_id for each in exemplars)


@is_known
def test_threads_that_collect_beside_threads_that_record_lose_and_repeat_nothing():
    temporality = {Histogram: AggregationTemporality.DELTA}
    cumulative, delta = InMemoryMetricReader(), InMemoryMetricReader(preferred_temporality=temporality)
    provider = MeterProvider([cumulative, delta], shutdown_on_exit=False)
    recorders = [start_recorder(NoOpTracerProvider(), provider) for _ in range(3)]
    rounds, calls = 300, [("GET", "k"), ("SET", "k", "v"), ("DEL", "k")] * 10
    collected, is_over, uneven = [], threading.Event(), []

    def collect():
        while not is_over.is_set():
            collected.append(count_of(delta))
            uneven.extend(each for each in points_of(cumulative) if each.count != sum(each.bucket_counts))

    def record(recorder):
        for number in range(rounds):
            # Some at once, as errors are, and others as a batch.
            record_calls(recorder, calls, as_batch=number % 5 != 0)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=collect) for _ in range(2)]
        recording = [threading.Thread(target=record, args=(each,)) for each in recorders]
        for thread in [*threads, *recording]:
            thread.start()
        for thread in recording:
            thread.join()
        is_over.set()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    expected = len(recorders) * rounds * len(calls)
    assert [expected] * 2 == [count_of(cumulative), sum(collected) + count_of(delta)]
    assert [] == uneven


@is_known
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_records_its_own_spans_and_points():
    command = [sys.executable, forking.__file__]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)  # noqa: S603 - this Python

    # A number that chooses the calls to keep is another one in each child.
    assert 3 == len(set(found["chances"]))
    # The child has the parent's points as well, as those of the public way.
    assert {"parent": [5, 5], "child": [7, 7]} == found["counts"]
    assert found["resources"]["parent"] != found["resources"]["child"]


# --- execute_command returns a coroutine, and is no coroutine function itself ---


async def test_command_starts_when_it_is_awaited(client, telemetry):
    coroutine = client.get("key")
    assert "PONG" == str(await client.ping()).replace("True", "PONG")
    await coroutine

    assert "PING\nGET" == telemetry.tree()
    [ping, get] = telemetry.spans
    assert ping.end_time <= get.start_time


async def test_execute_command_is_a_coroutine_function_for_those_who_ask(client):
    assert asyncio.iscoroutinefunction(client.execute_command)
    with patch.object(client, "execute_command") as replaced:
        assert isinstance(replaced, AsyncMock)
        replaced.return_value = b"value"
        assert b"value" == await client.get("key")


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_task_that_is_cancelled_before_it_starts_leaves_no_coroutine(make_pool, server, is_recorded):
    providers = {} if is_recorded else {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **providers))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = asyncio.create_task(client.get("key"))
        task.cancel()
        assert [asyncio.CancelledError] == [type(each) for each in await asyncio.gather(task, return_exceptions=True)]
        gc.collect()

    assert [] == [str(each.message) for each in caught]


# --- Conformance: some of the combinations; nox -s conform has thousands ---


@pytest.mark.parametrize("part", range(4))
def test_direct_way_shows_what_the_public_way_shows(part, caplog):
    seed = int.from_bytes(os.urandom(3))
    print("seed", seed)
    chosen = list(enumerate(conform.combinations(seed)))[part * 50 : (part + 1) * 50]
    found, spans, points = conform.compare_all(chosen)

    assert {} == found
    assert conform.is_unknown() or min(spans, points) > 200


@is_known
def test_every_mutant_is_a_fault_of_the_code_as_it_is():
    assert len({(module, text, faulty) for module, text, faulty in mutants.MUTANTS}) >= 20
    for mutant in mutants.MUTANTS:
        with mutants.mutated(*mutant):
            pass


@is_known
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_comparison_finds_mutants():
    # nox -s mutants finds all of them.
    counts = mutants.counts_of_mutants(12, seed=5)

    assert sum(map(bool, counts)) >= 20
