"""All emitted names are in the semantic conventions' model, or listed in ``semconv_ext.py`` with a reason."""

import asyncio
import re
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from inspect import getsource
from pkgutil import iter_modules
from typing import get_type_hints

import pytest
from opentelemetry.metrics import Counter, Histogram
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv.schemas import Schemas
from redis.exceptions import LockError, ResponseError
from support.internals import recorder_of

from aioredis_monitored import (
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    PoolExhaustedError,
    RedisContextFactory,
)
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.instruments import COUNTER, HISTOGRAM, INSTRUMENTS, SCOPE, Instruments
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.testing import TelemetryCapture

# Constants that this test cannot make the client emit, each with the reason.
UNREACHED = {"OTHER": "it takes hundreds of kinds of errors, or of keys; test_telemetry.py and test_keys.py have it"}
# The conventions list some values of these attributes and allow others.
OPEN = {"error.type", "messaging.system"}
# The registry has types, its Python package has not: these are numbers there, all others that we use are text.
NUMBERS = {
    "db.operation.batch.size",
    "messaging.batch.message_count",
    "messaging.message.body.size",
    "messaging.message.envelope.size",
    "network.peer.port",
    "server.port",
}
# The package does not have the required attributes of a metric's points either, here by prefix of the metric's name.
REQUIRED = {
    "db.client.operation.": {"db.system.name", "db.operation.name"},
    "db.client.connection.": {"db.client.connection.pool.name"},
    "db.client.connection.count": {"db.client.connection.state"},
    "messaging.": {"messaging.system", "messaging.operation.name"},
}


# The package's model.


def model_of(kind):
    """Return module, name and value of the constants for ``attributes`` or ``metrics`` that are not deprecated."""
    for package in (f"opentelemetry.semconv._incubating.{kind}", f"opentelemetry.semconv.{kind}"):
        for found in iter_modules(import_module(package).__path__):
            module = import_module(f"{package}.{found.name}")
            replaced = deprecated(module)
            yield from ((module, name, value) for name, value in texts(module).items() if name not in replaced)


def texts(module):
    """Return the public text constants of a module."""
    return {name: value for name, value in vars(module).items() if re.match("[A-Z]", name) and isinstance(value, str)}


def deprecated(module):
    """Return the constants that were replaced by others, which only the docstring of each says."""
    return set(re.findall(r'^(\w+): Final = [^"]*"[^"]+"\s+"""\s+Deprecated: ', getsource(module), re.MULTILINE))


def values_of(module, constant):
    """Return the values that an attribute may have, if the package lists them."""
    return {each.value for each in getattr(module, f"{constant.title().replace('_', '')}Values", ())}


def metrics_of_the_model(names):
    """Return the metrics as the SDK exports those that the package's functions create."""
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader]).get_meter("model")
    for module, constant, name in model_of("metrics"):
        create = getattr(module, f"create_{constant.lower()}", None)
        if name in names and create is not None:
            instrument = create(meter)
            (instrument.record if hasattr(instrument, "record") else instrument.add)(1)
    return metrics_in(reader.get_metrics_data())


def metrics_in(data, scope="model"):
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for each in resource.scope_metrics
        for metric in each.metrics
        if each.scope.name == scope
    }


def described(metric):
    return metric.unit, metric.description, type(metric.data).__name__, getattr(metric.data, "is_monotonic", None)


# What we emit.


@asynccontextmanager
async def everything(server, cluster, telemetry, logger_provider):
    """Have the client emit everything once; the pools and their gauges are closed at the end."""

    def pool_of(url, **arguments):
        return MonitoredConnectionPool.from_url(url, **arguments, **telemetry.providers)

    options = TelemetryOptions(key_template=lambda _: "template", hot_keys=1, repeated_calls=1)
    tracer = telemetry.tracer_provider.get_tracer("request")
    async with (
        pool_of(server.url, telemetry=options, logger_provider=logger_provider) as pool,
        pool_of(server.url, max_connections=1) as narrow,
        pool_of(server.url, max_connections=1, timeout=0.01) as full,
        pool_of(f"unix://{server.unix_socket_path}", telemetry=TelemetryOptions(keep=0.999_999)) as unix,
        pool_of("redis+sentinel://127.0.0.1:1/mymaster"),
    ):
        with tracer.start_as_current_span("request") as request:
            client = RedisContextFactory(pool).make_object_for_context("redis", request)
            await call(client)
            await lock(client)
            await tell(client)
        # Without a template, the channel's name is the destination.
        await MonitoredRedisConnection(connection_pool=unix).publish("news", "message")
        waiting = MonitoredRedisConnection(connection_pool=narrow)
        await asyncio.gather(waiting.blpop("nothing", 0.05), waiting.get("key"))
        held = await full.get_connection()
        with pytest.raises(PoolExhaustedError):
            await MonitoredRedisConnection(connection_pool=full).get("key")
        await full.release(held)
        async with pool_of(cluster.url) as routing:
            await redirect(MonitoredRedisConnection(connection_pool=routing), cluster)
            yield


async def call(client):
    await client.set("key", "value")
    # Several at a time, to measure the event loop's lag.
    await asyncio.gather(*(client.get("key") for _ in range(3)))
    with pytest.raises(ResponseError):
        await client.lpush("key", "value")
    await client.register_script("return 1")()
    await client.pipeline("batch").get("key").lpush("key", "value").execute(raise_on_error=False)


async def lock(client):
    async def hold():
        async with client.lock("lock", timeout=5, sleep=0.001):
            await client.ping()

    await asyncio.gather(hold(), hold())
    with suppress(LockError):
        async with client.lock("lost", timeout=0.001):
            while await client.exists("lost"):
                pass


async def tell(client):
    async with client.pubsub() as subscription:
        await subscription.subscribe("news")
        assert "subscribe" == (await subscription.get_message(timeout=5))["type"]
        await client.publish("news", "message")
        with subscription.process(await subscription.get_message(timeout=5)):
            await client.ping()
    async with MessageQueue("orders", client.connection_pool, lease=1, propagate=True) as queue:
        await queue.put_many([b"message", b"other"])
        await queue.get(timeout=5)
        with pytest.raises(LookupError):
            async with queue.take():
                raise LookupError
        (view,) = recorder_of(client).queues.values()
        deadline = asyncio.get_running_loop().time() + 30
        async with queue.take():
            while view.dead() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.001)


async def redirect(client, cluster):
    slot, source = key_slot("key"), cluster.owner("key")
    target = next(node for node in cluster.primaries() if node is not source)
    await client.get("key")
    cluster.migrate(slot, target)
    await client.get("key")
    cluster.migrate(slot, source)


class Emitted:
    """All names that we emit, metrics as the SDK exports them, and attributes with all of their values."""

    def __init__(self, spans, metrics, events):
        points = [point for metric in metrics.values() for point in metric.data.data_points]
        self.span_events = {event.name for span in spans for event in span.events}
        self.spans = [span for span in spans if span.instrumentation_scope.name == SCOPE]
        self.metrics = metrics
        self.events = {event.event_name for event in events}
        self.attributes = defaultdict(set)
        # On spans of other scopes as well: the request's statistics are on the request's span.
        for place in (*spans, *events, *(link for span in spans for link in span.links), *points):
            for name, value in (place.attributes or {}).items():
                self.attributes[name].add(value)
        schemas = {span.instrumentation_scope.schema_url for span in self.spans}
        values = {value for values in self.attributes.values() for value in values}
        self.texts = (
            {span.name for span in spans} | self.events | metrics.keys() | self.attributes.keys() | values | schemas
        )


@pytest.fixture(scope="module")
def emitted(server, cluster):
    reader = InMemoryMetricReader()  # with units and kinds, as exporters get them
    exporter, logs = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))

    async def main():
        async with everything(server, cluster, telemetry, logs):
            events = [each.log_record for each in exporter.get_finished_logs()]
            return Emitted(telemetry.spans, metrics_in(reader.get_metrics_data(), SCOPE), events)

    with TelemetryCapture(reader) as telemetry:
        return asyncio.run(main())


OWN = set(texts(semconv_ext).values())


def test_schema_url_equals_newest_of_semconv_package(emitted):
    assert list(Schemas)[-1].value == semconv.SCHEMA_URL
    assert {semconv.SCHEMA_URL} == {span.instrumentation_scope.schema_url for span in emitted.spans}


def test_attributes_are_in_semconv_or_own_namespace(emitted):
    conventional = {name for *_, name in model_of("attributes")}

    assert set() == emitted.attributes.keys() - conventional - OWN
    assert set() == conventional & OWN
    # The model lacks replaced attributes.
    assert {"db.query.text"} == conventional & {"db.query.text", "db.statement", "db.system"}


def test_enum_attribute_values_are_members_of_semconv_enum(emitted):
    lists = defaultdict(set)
    for module, constant, name in model_of("attributes"):
        lists[name] |= values_of(module, constant)
    listed = {name: values for name, values in emitted.attributes.items() if lists[name] and name not in OPEN}

    assert {"db.system.name", "db.client.connection.state", "network.transport"} <= listed.keys()
    assert {} == {name: values - lists[name] for name, values in listed.items() if not values <= lists[name]}


def test_attribute_types_match_semconv_registry(emitted):
    types = {name: {type(value) for value in values} for name, values in emitted.attributes.items()}

    assert {} == {
        name: found for name, found in types.items() if name not in OWN and found != {int if name in NUMBERS else str}
    }
    assert {} == {name: found for name, found in types.items() if len(found) > 1}


def test_metrics_match_semconv_definition_or_are_own(emitted):
    conventional = metrics_of_the_model(emitted.metrics)

    assert emitted.metrics.keys() - OWN == conventional.keys()
    assert {name: described(metric) for name, metric in conventional.items()} == {
        name: described(emitted.metrics[name]) for name in conventional
    }


def test_own_metrics_have_unit_and_description(emitted):
    assert set() == {name for name, metric in emitted.metrics.items() if not (metric.unit and metric.description)}


def test_instrument_table_matches_attributes_of_instruments():
    classes = {COUNTER: Counter, HISTOGRAM: Histogram}

    assert get_type_hints(Instruments) == {row.attribute: classes[row.kind] for row in INSTRUMENTS}
    assert {COUNTER: {False}, HISTOGRAM: {True}} == {
        kind: {bool(row.bounds) for row in INSTRUMENTS if row.kind == kind} for kind in classes
    }


def test_points_carry_attributes_that_semconv_requires(emitted):
    lacking = [
        (name, attribute)
        for name, metric in emitted.metrics.items()
        for point in metric.data.data_points
        for beginning, attributes in REQUIRED.items()
        if name.startswith(beginning)
        for attribute in attributes - point.attributes.keys()
    ]

    assert [] == lacking
    assert {"db.client.operation.", "db.client.connection."} <= {
        beginning for beginning in REQUIRED for name in emitted.metrics if name.startswith(beginning)
    }


def test_events_are_log_events_listed_in_own_namespace(emitted):
    assert {semconv_ext.REQUEST_REPEATED} <= emitted.events
    assert set() == emitted.events - OWN
    # Span events are deprecated.
    assert set() == emitted.span_events


def test_semconv_constants_exist_in_semconv_package():
    known = {name for *_, name in model_of("metrics")} | {schema.value for schema in Schemas}
    for module, constant, name in model_of("attributes"):
        known |= {name} | values_of(module, constant)

    assert set() == set(texts(semconv).values()) - known


@pytest.mark.parametrize("module", [semconv, semconv_ext], ids=["of the conventions", "our own"])
def test_semconv_constants_are_all_emitted(emitted, module):
    unseen = {name for name, value in texts(module).items() if value not in emitted.texts}

    assert {name for name in UNREACHED if name in texts(module)} == unseen


def test_own_semconv_constants_have_a_reason_comment():
    groups = [
        group for group in getsource(semconv_ext).split("\n\n") if re.search(r"^[A-Z]\w*: Final", group, re.MULTILINE)
    ]

    assert len(groups) > 1
    assert [] == [group for group in groups if not group.startswith("# ")]
