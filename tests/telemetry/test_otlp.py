"""What a collector receives: the SDK's exporters send it over HTTP, and the protocol's classes decode it."""

import asyncio

import pytest
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from redis.exceptions import ResponseError
from support.collector import plain

from aioredis_monitored import (
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolExhaustedError,
    RedisContextFactory,
    __version__,
)
from aioredis_monitored._telemetry import semconv
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.testing import TelemetryCapture

DURATION = "db.client.operation.duration"
# Units of the metrics under db.client.connection.
GAUGES = {
    "count": "{connection}",
    "max": "{connection}",
    "idle.max": "{connection}",
    "idle.min": "{connection}",
    "pending_requests": "{request}",
}


class Exported:
    """A capture whose spans and metrics are also exported to a collector, on demand."""

    def __init__(self, collector, sampler):
        self._collector = collector
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{collector.url}/v1/metrics"), float("inf"))
        self.capture = TelemetryCapture(reader, sampler=sampler)
        exporter = OTLPSpanExporter(f"{collector.url}/v1/traces")
        self.capture.tracer_provider.add_span_processor(BatchSpanProcessor(exporter))

    def spans(self):
        assert self.capture.tracer_provider.force_flush()
        return self._collector.spans

    def span(self, name):
        (found,) = (each for each in self.spans() if each.what.name == name)
        return found

    def metric(self, name):
        assert self.capture.meter_provider.force_flush()
        return self._collector.metrics[name]


@pytest.fixture
def sampler():
    return ALWAYS_ON


@pytest.fixture
def exported(collector, sampler):
    exported = Exported(collector, sampler)
    with exported.capture:
        yield exported


@pytest.fixture
async def pool(server, exported):
    async with MonitoredConnectionPool.from_url(server.url, name="test", **exported.capture.providers) as pool:
        yield pool


def amounts(metric):
    return {tuple(plain(point.attributes).values()): point.as_int for point in metric.sum.data_points}


async def test_exported_span_has_all_attributes_and_parent(client, exported, server):
    await client.ping()
    with exported.capture.tracer_provider.get_tracer("test").start_as_current_span("request"):
        await client.set("key", "value")
    received, parent = exported.span(f"SET {server.host}:{server.port}"), exported.span("request").what
    span = received.what

    assert (Span.SPAN_KIND_CLIENT, parent.span_id, parent.trace_id) == (span.kind, span.parent_span_id, span.trace_id)
    assert (Status.STATUS_CODE_UNSET, "") == (span.status.code, span.status.message)
    assert parent.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
    assert {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "SET",
        "db.query.text": "SET key ?",
        "network.peer.address": server.host,
        "network.peer.port": server.port,
        "network.transport": "tcp",
        "server.address": server.host,
        "server.port": server.port,
    } == plain(span.attributes)
    assert ("aioredis_monitored", __version__) == (received.scope.name, received.scope.version)
    assert semconv.SCHEMA_URL == received.schema_url
    assert ([], []) == (list(span.events), list(span.links))


async def test_exported_error_has_type_without_message(client, exported, server):
    await client.set("key", "value")
    with pytest.raises(ResponseError):
        await client.lpush("key", "value")
    span = exported.span(f"LPUSH {server.host}:{server.port}").what

    assert (Status.STATUS_CODE_ERROR, "") == (span.status.code, span.status.message)
    attributes = plain(span.attributes)
    assert ("WRONGTYPE", "WRONGTYPE") == (attributes["error.type"], attributes["db.response.status_code"])
    assert [] == list(span.events)


async def test_exported_pipeline_span_has_its_name_and_batch_size(client, exported):
    await client.pipeline("count-visit").incr("visits").expire("visits", 3600).execute()
    span = exported.span("count-visit").what

    attributes = plain(span.attributes)
    assert ("MULTI", 2) == (attributes["db.operation.name"], attributes["db.operation.batch.size"])
    assert "INCRBY visits ?; EXPIRE visits ?" == attributes["db.query.text"]


async def test_exported_repeated_command_is_span_attribute_and_log_event(server, exported, collector):
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{collector.url}/v1/logs")))
    providers, options = exported.capture.providers, TelemetryOptions(repeated_calls=1)
    async with MonitoredConnectionPool.from_url(
        server.url, telemetry=options, logger_provider=logs, **providers
    ) as pool:
        with exported.capture.tracer_provider.get_tracer("test").start_as_current_span("request") as span:
            client = RedisContextFactory(pool).make_object_for_context("redis", span)
            await client.ping()
            for _ in range(3):
                await client.get("key")
    logs.shutdown()
    request = exported.span("request").what
    (received,) = collector.logs

    attributes = plain(request.attributes)
    repeated = [value.string_value for value in attributes["aioredis_monitored.request.repeated"].values]
    assert (["GET"], 4) == (repeated, attributes["aioredis_monitored.request.calls"])
    assert [] == list(request.events)
    event = received.what
    assert ("aioredis_monitored.request.repeated", SeverityNumber.SEVERITY_NUMBER_WARN) == (
        event.event_name,
        event.severity_number,
    )
    assert {"db.operation.name": "GET", "aioredis_monitored.request.repeated_limit": 1} == plain(event.attributes)
    assert (request.trace_id, request.span_id) == (event.trace_id, event.span_id)
    assert request.start_time_unix_nano <= event.time_unix_nano <= request.end_time_unix_nano
    assert ("aioredis_monitored", semconv.SCHEMA_URL) == (received.scope.name, received.schema_url)


async def test_exported_duration_is_histogram_in_seconds(client, exported, server):
    for _ in range(5):
        await client.get("key")
    received = exported.metric(DURATION)
    metric, (point,) = received.what, received.what.histogram.data_points

    assert ("s", "Duration of database client operations.") == (metric.unit, metric.description)
    assert AGGREGATION_TEMPORALITY_CUMULATIVE == metric.histogram.aggregation_temporality
    assert [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10] == list(point.explicit_bounds)
    assert (5, 5, 12) == (point.count, sum(point.bucket_counts), len(point.bucket_counts))
    assert 0 < point.min <= point.sum / 5 <= point.max < 5
    assert {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "GET",
        "server.address": server.host,
        "server.port": server.port,
    } == plain(point.attributes)
    assert ("aioredis_monitored", __version__) == (received.scope.name, received.scope.version)
    assert semconv.SCHEMA_URL == received.schema_url


async def test_exported_exemplar_links_point_to_span(client, exported, server):
    await client.get("key")
    span = exported.span(f"GET {server.host}:{server.port}").what
    (point,) = exported.metric(DURATION).what.histogram.data_points
    (exemplar,) = point.exemplars

    assert (span.trace_id, span.span_id) == (exemplar.trace_id, exemplar.span_id)
    assert point.sum == exemplar.as_double
    assert {} == plain(exemplar.filtered_attributes)


@pytest.mark.parametrize("sampler", [ALWAYS_OFF])
async def test_exported_point_has_no_exemplar_when_sampling_is_off(client, exported):
    await client.get("key")
    (point,) = exported.metric(DURATION).what.histogram.data_points

    assert (1, []) == (point.count, list(point.exemplars))
    assert [] == exported.spans()


class OnlyRequests(Sampler):
    def should_sample(self, parent_context, trace_id, name, *_, **__):
        return SamplingResult(Decision.RECORD_AND_SAMPLE if name == "request" else Decision.DROP)

    def get_description(self):
        return "only requests"


@pytest.mark.parametrize("sampler", [OnlyRequests()])
async def test_exported_exemplar_links_to_request_when_span_is_dropped(client, exported):
    with exported.capture.tracer_provider.get_tracer("test").start_as_current_span("request"):
        await client.get("key")
    (request,) = exported.spans()
    (point,) = exported.metric(DURATION).what.histogram.data_points

    assert [(request.what.trace_id, request.what.span_id)] == [
        (each.trace_id, each.span_id) for each in point.exemplars
    ]


async def test_exported_pool_gauges_are_non_monotonic_sums(server, exported, until):
    def gauges():
        return {name: exported.metric(f"db.client.connection.{name}").what for name in GAUGES}

    async with MonitoredConnectionPool.from_url(
        server.url, name="test", max_connections=2, multiplex=False, **exported.capture.providers
    ) as pool:
        held = [await pool.get_connection() for _ in range(2)]
        waiting = asyncio.create_task(pool.get_connection())
        await until(lambda: pool.stats().pending == 1)
        busy = gauges()
        for connection in held:
            await pool.release(connection)
        await pool.release(await waiting)
        free = gauges()

    assert {name: (unit, False) for name, unit in GAUGES.items()} == {
        name: (metric.unit, metric.sum.is_monotonic) for name, metric in busy.items()
    }
    limits = {"max": {("test",): 2}, "idle.max": {("test",): 2}, "idle.min": {("test",): 0}}
    assert {"count": {("test", "used"): 2, ("test", "idle"): 0}, "pending_requests": {("test",): 1}} | limits == {
        name: amounts(metric) for name, metric in busy.items()
    }
    assert {"count": {("test", "used"): 0, ("test", "idle"): 2}, "pending_requests": {("test",): 0}} | limits == {
        name: amounts(metric) for name, metric in free.items()
    }


async def test_exported_pool_timeouts_are_monotonic_sum(server, exported):
    async with MonitoredConnectionPool.from_url(
        server.url, name="test", max_connections=1, timeout=0.01, **exported.capture.providers
    ) as pool:
        held = await pool.get_connection()
        with pytest.raises(PoolExhaustedError):
            await MonitoredRedisConnection(connection_pool=pool).get("key")
        await pool.release(held)
        metric = exported.metric("db.client.connection.timeouts").what

    assert (True, "{timeout}", {("test",): 1}) == (metric.sum.is_monotonic, metric.unit, amounts(metric))
