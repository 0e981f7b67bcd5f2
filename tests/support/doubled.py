"""A program of test_doubles.py: make calls of every kind beside another tool; print who has recorded them, as JSON.

A separate program, as these tools patch the whole process.
"""

import asyncio
import json
import logging
import sys
from contextlib import nullcontext

import redis
import redis.asyncio
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio.lock import Lock

OURS = "aioredis_monitored"
SCRIPT = "return redis.call('EXISTS', KEYS[1])"


class Nothing:
    """No tool at all."""

    def __init__(self, provider):
        pass

    def patch(self):
        pass

    unpatch = patch

    def around(self):
        return nullcontext()

    def take(self):
        return []


class Contrib(Nothing):
    def __init__(self, provider):
        from opentelemetry.instrumentation.redis import RedisInstrumentor

        self.exporter = InMemorySpanExporter()
        self.provider = provider or TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.instrumentor = RedisInstrumentor()

    def patch(self):
        self.instrumentor.instrument(tracer_provider=self.provider)

    def unpatch(self):
        self.instrumentor.uninstrument()

    def take(self):
        spans = [span for span in self.exporter.get_finished_spans() if span.instrumentation_scope.name != OURS]
        self.exporter.clear()
        return [[span.name, span.attributes["net.peer.port"]] for span in spans]


class Datadog(Nothing):
    def __init__(self, provider):
        from ddtrace.trace import TraceFilter, tracer

        spans = self.spans = []

        class Keep(TraceFilter):
            def process_trace(self, trace):
                spans.extend(trace)

        tracer.configure(trace_processors=[Keep()])

    def patch(self):
        from ddtrace.contrib.internal.redis.patch import patch

        patch()

    def unpatch(self):
        from ddtrace.contrib.internal.redis.patch import unpatch

        unpatch()

    def take(self):
        taken = [[span.resource, span.get_tag("server.address")] for span in self.spans]
        self.spans.clear()
        return taken


class Sentry(Nothing):
    def __init__(self, provider):
        self.events = []

    def patch(self):
        import sentry_sdk
        from sentry_sdk.integrations.redis import RedisIntegration
        from sentry_sdk.transport import Transport

        events = self.events

        class Keep(Transport):
            def capture_envelope(self, envelope):
                events.extend(item.payload.json for item in envelope.items)

        sentry_sdk.init(
            dsn="http://key@localhost/1",
            traces_sample_rate=1.0,
            transport=Keep,
            default_integrations=False,
            integrations=[RedisIntegration()],
        )

    def unpatch(self):
        import sentry_sdk

        # Sentry's patches stay in place.
        sentry_sdk.init()

    def around(self):
        import sentry_sdk

        return sentry_sdk.start_transaction(name="request")

    def take(self):
        taken = [[span["description"], span["data"]["server.port"]] for event in self.events for span in event["spans"]]
        self.events.clear()
        return taken


TOOLS = {"contrib": Contrib, "ddtrace": Datadog, "sentry": Sentry, "nothing": Nothing}


async def watch(client):
    async with client.pipeline() as pipe:
        await pipe.watch("number")
        value = int(await pipe.get("number") or 0)
        pipe.multi()
        pipe.set("number", value)
        return await pipe.execute()


async def publish(client):
    # redis-py's client has no envelopes.
    options = {} if type(client) is redis.asyncio.Redis else {"propagate": True}
    return await client.publish("channel", "message", **options)


async def run_script(client):
    return await client.register_script(SCRIPT)(keys=["key"])


async def load_scripts(client):
    # redis-py makes three calls for a script that the server does not know.
    for script in (SCRIPT, Lock.LUA_RELEASE_SCRIPT):
        await client.script_load(script)


async def lock(client):
    async with client.lock("lock", timeout=5) as held:
        return held.name


CALLS = {
    "command": lambda client: client.set("key", "value"),
    "error": lambda client: client.lpush("key", "value"),
    "blocking": lambda client: client.blpop("list", timeout=1),
    "pipeline": lambda client: client.pipeline().get("key").get("key").execute(),
    "failing pipeline": lambda client: client.pipeline(transaction=False).get("key").lpush("key", "x").execute(),
    "watch": watch,
    "publish": publish,
    "script": run_script,
    "lock": lock,
}


async def outcome(call):
    try:
        return await call
    except redis.RedisError as error:
        return [type(error).__qualname__, str(error).partition(" ")[0]]


def turn_on_native_metrics():
    from redis.observability import OTelConfig, get_observability_instance
    from redis.observability.config import MetricGroup

    get_observability_instance().init(OTelConfig(metric_groups=[MetricGroup.COMMAND]))


async def main(url, tool, exporter, reader, *, is_early):
    from aioredis_monitored import MonitoredRedisConnection

    def begin():
        tool.patch()
        if reader is not None:
            turn_on_native_metrics()

    def counted():
        data = reader and reader.get_metrics_data()
        return {
            scope.scope.name: sum(point.count for point in metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == "db.client.operation.duration"
        }

    def recorded():
        ours = [span.name for span in exporter.get_finished_spans() if span.instrumentation_scope.name == OURS]
        exporter.clear()
        return {"ours": ours, "theirs": tool.take()}

    seen = {}
    reference = redis.asyncio.Redis.from_url(url, decode_responses=True)
    client = MonitoredRedisConnection.from_url(url, decode_responses=True, client_name="doubled")
    plain_pool = redis.asyncio.ConnectionPool.from_url(url, decode_responses=True)
    single = client.client()
    plain = MonitoredRedisConnection(connection_pool=plain_pool)
    await client.ping()
    if not is_early:
        begin()

    with tool.around():
        await asyncio.gather(*[client.get("key") for _ in range(20)])
    await load_scripts(client)
    with redis.Redis.from_url(url) as inspector:
        inspector.rpush("list", *["element"] * 10)
        connections = [info for info in inspector.client_list() if info["name"] == "doubled"]
    exporter.clear()
    tool.take()
    for name, caller in {"pool": client, "single": single, "plain": plain, "redis-py": reference}.items():
        if caller is reference:
            points = counted()
        for kind, call in CALLS.items():
            with tool.around():
                result = await outcome(call(caller))
            seen.setdefault(kind, {})[name] = {"result": result, **recorded()}

    tool.unpatch()
    with tool.around():
        unpatched = {kind: await outcome(call(client)) for kind, call in CALLS.items()}
    unpatched = {"results": unpatched, "theirs": tool.take()}

    for opened in (single, client, reference):
        await opened.aclose()
    await plain_pool.aclose()
    return {"seen": seen, "points": points, "connections": len(connections), "unpatched": unpatched}


if __name__ == "__main__":
    url, tool_name, tracer, order, measured = sys.argv[1:]
    provider = TracerProvider() if tracer == "on" else None
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader() if measured == "measured" else None
    if provider is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    if reader is not None:
        metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("aioredis_monitored.telemetry").addHandler(handler)
    tool = TOOLS[tool_name](provider)
    if order == "before":
        tool.patch()
        if reader is not None:
            turn_on_native_metrics()
    report = asyncio.run(main(url, tool, exporter, reader, is_early=order == "before"))
    print(json.dumps({**report, "logged": logged}))
