"""Publishing is a producer's span; processing a message is a consumer's span, linked to it."""

import asyncio
import copy
import pickle

import pytest
import redis.asyncio
import redis.exceptions
from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from support.internals import record_with, recorder_of
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredPubSub, MonitoredRedisConnection, TelemetryOptions
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.context import nested_in
from aioredis_monitored.envelope import seal, unseal

CALLS = "db.client.operation.duration"
PROCESSED = "messaging.process.duration"
SECRET = "s3cr3t-" * 4
SUBSCRIPTIONS = {
    "message": ("subscribe", "news", "publish"),
    "pmessage": ("psubscribe", "n?ws", "publish"),
    "smessage": ("ssubscribe", "news", "spublish"),
}


def spans_of_kind(telemetry, kind):
    return [span for span in telemetry.spans if span.kind is kind]


def messaging(span):
    return {name: value for name, value in span.attributes.items() if name.startswith("messaging.")}


def ids(context):
    return context.trace_id, context.span_id


def linked(span):
    return [ids(link.context) for link in span.links]


@pytest.fixture
def make_recorded(make_pool, server):
    """Make clients whose telemetry is captured."""

    def make(**arguments):
        options = {name: arguments.pop(name) for name in TelemetryOptions.__annotations__ if name in arguments}
        return MonitoredRedisConnection(
            connection_pool=make_pool(server.url, telemetry=TelemetryOptions(**options), **arguments)
        )

    return make


@pytest.fixture
async def subscribe():
    """Subscribe, and wait for the confirmation."""
    subscribed = []

    async def subscribe(client, *channels, method="subscribe", **handlers):
        pubsub = client.pubsub()
        subscribed.append(pubsub)
        await getattr(pubsub, method)(*channels, **handlers)
        for _ in (*channels, *handlers):
            assert method == (await pubsub.get_message(timeout=5))["type"]
        return pubsub

    yield subscribe
    for pubsub in subscribed:
        await pubsub.aclose()


@pytest.fixture
async def plain(server, subscribe):
    """Yield redis-py's subscription to ``news``."""
    async with redis.asyncio.Redis.from_url(server.url) as client:
        yield await subscribe(client, "news")


async def next_of(pubsub):
    message = await pubsub.get_message(timeout=5)
    assert message is not None
    return message


# Publishing.


PUBLISHING = {
    "str": lambda client: client.publish("news", SECRET),
    "bytes": lambda client: client.publish(b"news", SECRET),
    "propagate": lambda client: client.publish("news", SECRET, propagate=True),
    "shard": lambda client: client.spublish("news", SECRET),
    "shard propagate": lambda client: client.spublish("news", SECRET, propagate=True),
    "command": lambda client: client.execute_command("PUBLISH", "news", SECRET),
    "lower": lambda client: client.execute_command("publish", b"news", SECRET),
    "bytes command": lambda client: client.execute_command(b"PUBLISH", "news", SECRET),
    "in one": lambda client: client.execute_command("PUBLISH news", SECRET),
    "batch of one": lambda client: client.pipeline().publish("news", SECRET).execute(),
}


@pytest.mark.parametrize("publish", PUBLISHING.values(), ids=PUBLISHING)
async def test_publish_records_producer_span_and_duration_point(client, telemetry, server, publish):
    await publish(client)
    (span,) = telemetry.spans
    (point,) = telemetry.points(CALLS)

    assert ("publish news", SpanKind.PRODUCER) == (span.name, span.kind)
    assert {
        "messaging.system": "redis",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "news",
    } == messaging(span)
    assert "PUBLISH" in span.attributes["db.operation.name"].upper()
    assert f"{span.attributes['db.operation.name']} ? ?" == span.attributes["db.query.text"]
    assert {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": span.attributes["db.operation.name"],
        "server.address": server.host,
        "server.port": server.port,
    } == dict(point.attributes)


async def test_publish_span_names_its_own_channel(client, telemetry):
    for channel in ("a", "b", "c"):
        await client.publish(channel, "message")
    await client.get("key")

    assert ["a", "b", "c", None] == [span.attributes.get("messaging.destination.name") for span in telemetry.spans]
    assert {"PUBLISH": 3, "GET": 1} == {p.attributes["db.operation.name"]: p.count for p in telemetry.points(CALLS)}


def template(key):
    if "unknown" in key:
        raise LookupError
    return f"{key.partition(':')[0]}:{{id}}"


@pytest.mark.parametrize("propagate", [True, False])
async def test_key_template_replaces_channel_name(make_recorded, telemetry, server, propagate):
    client = make_recorded(key_template=template)
    await client.publish("user:17", "message", propagate=propagate)
    await client.publish("unknown", "message", propagate=propagate)
    known, unknown = telemetry.spans

    assert "publish user:{id}" == known.name
    assert "user:{id}" == known.attributes["messaging.destination.template"]
    assert f"publish {server.host}:{server.port}" == unknown.name
    assert ["user:{id}", None] == [span.attributes.get("aioredis_monitored.key.template") for span in (known, unknown)]
    assert {"user:{id}", None} == {p.attributes.get("aioredis_monitored.key.template") for p in telemetry.points(CALLS)}
    for span in telemetry.spans:
        texts = [value for value in (span.name, *span.attributes.values()) if isinstance(value, str)]
        assert not [text for text in texts if "user:17" in text or "unknown" in text]


@pytest.mark.parametrize("options", [{}, {"key_template": template}])
async def test_channel_is_hidden_with_show_keys_off(make_recorded, telemetry, server, subscribe, options):
    client = make_recorded(show_keys=False, **options)
    pubsub = await subscribe(client, "news:17")
    await client.publish("news:17", "message", propagate=True)
    with pubsub.process(await next_of(pubsub)):
        pass

    target = f"{server.host}:{server.port}"
    assert [f"publish {target}", f"process {target}"] == [span.name for span in telemetry.spans]
    for recorded in (*telemetry.spans, *telemetry.points(CALLS), *telemetry.points(PROCESSED)):
        assert "news" not in str(dict(recorded.attributes))


@pytest.mark.parametrize(
    ("channel", "shown"),
    [
        ("my channel", "my channel"),
        ("line\nbreak", "line\\nbreak"),
        (b"\xff\x00", "\\\\xff\\x00"),
        ("a" * 10_000, "a" * 256),
        ("\x00" * 10_000, ("\\x00" * 256)[:256]),
        (17, "17"),
        (memoryview(b"view"), "view"),
    ],
)
async def test_channel_name_is_shortened_and_made_printable(client, telemetry, channel, shown):
    await client.publish(channel, "message")
    (span,) = telemetry.spans

    assert (f"publish {shown}", shown) == (span.name, span.attributes["messaging.destination.name"])


async def test_empty_channel_name_is_recorded_as_destination(client, telemetry, server):
    await client.publish("", "message")
    (span,) = telemetry.spans

    assert (f"publish {server.host}:{server.port}", "") == (span.name, span.attributes["messaging.destination.name"])


async def test_publish_with_missing_arguments_records_error(client, telemetry):
    for args in (("PUBLISH",), ("PUBLISH", "news")):
        with pytest.raises(redis.exceptions.ResponseError):
            await client.execute_command(*args)

    assert ["ERR", "ERR"] == [span.attributes["error.type"] for span in telemetry.spans]
    assert [SpanKind.CLIENT, SpanKind.PRODUCER] == [span.kind for span in telemetry.spans]


async def test_publish_in_pipeline_is_recorded_as_ordinary_command(client, telemetry):
    await client.pipeline().publish("news", 1).spublish("news", 2).execute()
    await client.pipeline("notify").publish("news", 1).execute()
    batch, single = telemetry.spans

    assert (SpanKind.CLIENT, {}) == (batch.kind, messaging(batch))
    assert ("notify", SpanKind.PRODUCER) == (single.name, single.kind)


async def test_pipeline_publish_rejects_propagation(client):
    pipe = client.pipeline()
    with pytest.raises(TypeError, match="publish with propagate=True on the client"):
        pipe.publish("news", "message", propagate=True)

    assert [0] == await pipe.publish("news", "message", propagate=False).execute()


# The envelope.


@pytest.mark.parametrize("message", [b"bytes \xff", "text ä", 17, 1.5, bytearray(b"array"), memoryview(b"view"), ""])
async def test_publish_adds_envelope_with_trace_when_propagating(client, telemetry, plain, message):
    assert 1 == await client.publish("news", message)
    bare = (await next_of(plain))["data"]
    assert 1 == await client.publish("news", message, propagate=True)
    payload, carrier = unseal((await next_of(plain))["data"])
    sent = telemetry.spans[-1].context

    assert (bare, None) == unseal(bare)
    assert bare == payload
    assert {"traceparent": f"00-{sent.trace_id:032x}-{sent.span_id:016x}-{sent.trace_flags:02x}"} == carrier


async def test_publish_propagates_trace_on_every_kind_of_connection(make_client, server, telemetry, plain):
    async with redis.asyncio.ConnectionPool.from_url(server.url) as plain_pool:
        own_provider = make_client(server.url, is_recorded=True)
        for client in (own_provider, own_provider.client(), MonitoredRedisConnection(connection_pool=plain_pool)):
            record_with(client, recorder_of(own_provider))
            assert 1 == await client.publish("news", "message", propagate=True)
            payload, carrier = unseal((await next_of(plain))["data"])
            await client.aclose()

            assert (b"message", ["traceparent"]) == (payload, list(carrier))
    assert [SpanKind.PRODUCER] * 3 == [span.kind for span in telemetry.spans]


async def test_publish_span_has_parent_of_context_client(client, telemetry, plain):
    tracer = telemetry.tracer_provider.get_tracer("test")
    parent = tracer.start_span("request")
    with tracer.start_as_current_span("elsewhere"):
        await client.in_context("redis", parent).publish("news", "message", propagate=True)
    published = telemetry.spans[0]

    assert parent.get_span_context() == published.parent
    assert f"{published.context.span_id:016x}" in (await next_of(plain))["data"].decode()


async def test_publish_sends_bare_message_without_tracer(make_pool, server, plain):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    assert 1 == await client.publish("news", "message", propagate=True)

    assert b"message" == (await next_of(plain))["data"]


async def test_publish_propagates_current_context_while_telemetry_is_disabled(make_pool, server, telemetry, plain):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    with telemetry.tracer_provider.get_tracer("test").start_as_current_span("job") as job:
        await client.publish("news", "message", propagate=True)

    assert f"{job.get_span_context().span_id:016x}" in (await next_of(plain))["data"].decode()


@pytest.mark.parametrize("options", [{"exclude_commands": {"publish"}}, {"require_parent": True}])
async def test_publish_without_own_span_propagates_current_span(make_recorded, telemetry, plain, options):
    client = make_recorded(**options)
    await client.publish("news", "message", propagate=True)
    tracer = telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("job") as job, nested_in(True):
        await client.publish("news", "message", propagate=True)

    assert b"message" == (await next_of(plain))["data"]
    assert f"{job.get_span_context().span_id:016x}" in (await next_of(plain))["data"].decode()
    assert ["job"] == [span.name for span in telemetry.spans]


async def test_overridden_execute_command_receives_publish_envelope(pool, telemetry, plain):
    seen = []

    class Seeing(MonitoredRedisConnection):
        async def execute_command(self, *args, **options):
            seen.append(args)
            return await super().execute_command(*args, **options)

    parent = telemetry.tracer_provider.get_tracer("test").start_span("request")
    assert 1 == await Seeing(server_span=parent, connection_pool=pool).publish("news", "message", propagate=True)
    payload, carrier = unseal((await next_of(plain))["data"])

    assert [("PUBLISH", "news", seal(b"message", carrier))] == seen
    assert (b"message", f"{parent.get_span_context().span_id:016x}") == (payload, carrier["traceparent"].split("-")[2])


async def test_publish_encodes_text_with_client_encoding_when_propagating(make_recorded, subscribe):
    client = make_recorded(encoding="utf-16")
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message", propagate=True)

    assert "message" == (await next_of(pubsub))["data"].decode("utf-16")


async def test_publish_of_unsupported_type_raises_data_error(client, telemetry):
    for propagates in (False, True):
        with pytest.raises(redis.exceptions.DataError):
            await client.publish("news", object(), propagate=propagates)

    assert ["redis.exceptions.DataError"] * 2 == [span.attributes["error.type"] for span in telemetry.spans]
    assert [StatusCode.ERROR] * 2 == [span.status.status_code for span in telemetry.spans]


class Propagator(TextMapPropagator):
    """An application's propagator, with a test's behaviour."""

    fields = frozenset()

    def __init__(self, inject=None, extract=None):
        self._inject, self._extract = inject, extract

    def inject(self, carrier, context=None, setter=None):
        self._inject(carrier)

    def extract(self, carrier, context=None, getter=None):
        return self._extract(carrier)


def fail(_):
    raise asyncio.CancelledError(SECRET)


@pytest.fixture
def use_propagator():
    """Set the global propagator for a test."""
    before = propagate.get_global_textmap()
    yield lambda **does: propagate.set_global_textmap(Propagator(**does))
    propagate.set_global_textmap(before)


async def test_publish_carrier_comes_from_global_propagator(client, plain, use_propagator):
    use_propagator(inject=lambda carrier: carrier.update(mine="yes", number=1))
    await client.publish("news", "message", propagate=True)

    assert (b"message", {"mine": "yes", "number": "1"}) == unseal((await next_of(plain))["data"])


async def test_raising_propagator_does_not_affect_messages(client, telemetry, subscribe, use_propagator):
    pubsub = await subscribe(client, "news")
    await client.publish("news", "linked", propagate=True)
    use_propagator(inject=fail, extract=fail)
    await client.publish("news", "bare", propagate=True)
    messages = [await next_of(pubsub) for _ in range(2)]
    for message in messages:
        with pubsub.process(message):
            pass

    assert [b"linked", b"bare"] == [message["data"] for message in messages]
    assert dict is type(messages[1])
    assert [(), ()] == [span.links for span in spans_of_kind(telemetry, SpanKind.CONSUMER)]
    assert 2 == sum(point.count for point in telemetry.points(PROCESSED))


# Delivery.


@pytest.mark.parametrize("kind", SUBSCRIPTIONS)
@pytest.mark.parametrize("decode_responses", [True, False])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_pubsub_message_equals_that_of_redis_py(
    make_recorded, server, telemetry, subscribe, kind, decode_responses, protocol
):
    method, subscription, publish = SUBSCRIPTIONS[kind]
    options = {"decode_responses": decode_responses, "protocol": protocol}
    client = make_recorded(**options)
    pubsub = await subscribe(client, subscription, method=method)
    async with redis.asyncio.Redis.from_url(server.url, **options) as theirs:
        their_pubsub = await subscribe(theirs, subscription, method=method)
        await getattr(theirs, publish)("news", "ä")
        expected = await next_of(their_pubsub)
        assert expected == (plain := await next_of(pubsub))
        await getattr(client, publish)("news", "ä", propagate=True)
        traced = await next_of(pubsub)
        await their_pubsub.aclose()

    assert (dict, expected) == (type(plain), traced)
    assert ["traceparent"] == list(traced.carrier)
    assert kind == traced["type"]
    with pubsub.process(traced):
        pass
    published, processed = telemetry.spans
    assert [ids(published.context)] == linked(processed)
    assert "process news" == processed.name


async def test_traced_message_keeps_carrier_when_copied_or_pickled(client, subscribe):
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message", propagate=True)
    message = await next_of(pubsub)

    for twin in (copy.copy(message), copy.deepcopy(message), pickle.loads(pickle.dumps(message))):  # noqa: S301 - ours
        assert (message, message.carrier) == (twin, twin.carrier)


async def test_pubsub_accepts_arguments_of_redis_py(client):
    async with client.pubsub(ignore_subscribe_messages=True, shard_hint="hint") as pubsub:
        await pubsub.subscribe("news")

        assert (MonitoredPubSub, "hint") == (type(pubsub), pubsub.shard_hint)
        assert await pubsub.get_message(timeout=5) is None
        await pubsub.ping()
        assert "pong" == (await next_of(pubsub))["type"]


async def test_pubsub_listen_yields_unwrapped_message(client, subscribe):
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message", propagate=True)

    assert b"message" == (await anext(pubsub.listen()))["data"]


# Processing.


async def test_process_records_consumer_span_linked_to_publish(client, telemetry, server, subscribe):
    tracer = telemetry.tracer_provider.get_tracer("test")
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message", propagate=True)
    message = await next_of(pubsub)
    with tracer.start_as_current_span("worker") as worker:
        with pubsub.process(message):
            await client.get("key")
        assert worker is trace.get_current_span()
    published, called, processed, _ = telemetry.spans

    assert ("process news", SpanKind.CONSUMER) == (processed.name, processed.kind)
    assert {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "news",
        "server.address": server.host,
        "server.port": server.port,
    } == dict(processed.attributes)
    assert [ids(published.context)] == linked(processed)
    assert (worker.get_span_context(), processed.context) == (processed.parent, called.parent)
    assert StatusCode.UNSET is processed.status.status_code
    assert processed.start_time <= called.start_time < called.end_time <= processed.end_time


async def test_process_duration_point_omits_channel(client, telemetry, server, subscribe):
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message")
    with pubsub.process(await next_of(pubsub)):
        pass
    (point,) = telemetry.points(PROCESSED)

    assert (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10) == point.explicit_bounds
    assert 1 == point.count
    assert 0 < point.sum < 5
    assert {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "server.address": server.host,
        "server.port": server.port,
    } == dict(point.attributes)
    assert [telemetry.spans[-1].context.span_id] == [exemplar.span_id for exemplar in point.exemplars]


async def test_process_span_has_no_link_without_envelope(client, telemetry, subscribe):
    pubsub = await subscribe(client, "news")
    await client.publish("news", "message")
    tracer = telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("worker"), pubsub.process(await next_of(pubsub)):
        pass

    assert () == telemetry.spans[-2].links


async def test_process_span_has_no_link_when_carrier_has_no_trace(client, telemetry, subscribe, use_propagator):
    pubsub = await subscribe(client, "news")
    use_propagator(inject=lambda carrier: carrier.update(user="alice"))
    await client.publish("news", "message", propagate=True)
    propagate.set_global_textmap(propagate.composite.CompositePropagator([]))
    tracer = telemetry.tracer_provider.get_tracer("test")
    with tracer.start_as_current_span("worker"), pubsub.process(await next_of(pubsub)):
        pass

    assert () == telemetry.spans[-2].links


async def test_process_duration_point_has_channel_template(make_recorded, telemetry, subscribe):
    client = make_recorded(key_template=template)
    pubsub = await subscribe(client, "user:17")
    await client.publish("user:17", "message", propagate=True)
    with pubsub.process(await next_of(pubsub)):
        pass
    (point,) = telemetry.points(PROCESSED)

    assert "user:{id}" == point.attributes["messaging.destination.template"]
    assert "process user:{id}" == telemetry.spans[-1].name
    assert "17" not in str(messaging(telemetry.spans[-1]))


async def test_process_duration_templates_are_capped(make_recorded, telemetry):
    client = make_recorded(key_template=lambda key: key)
    pubsub = client.pubsub()
    for number in range(1_010):
        with pubsub.process({"channel": f"user:{number}"}):
            pass

    assert 1_001 == len(telemetry.points(PROCESSED))
    assert [10] == [
        point.count
        for point in telemetry.points(PROCESSED)
        if "_OTHER" == point.attributes["messaging.destination.template"]
    ]


@pytest.mark.parametrize(
    ("error", "error_type", "status"),
    [
        (ValueError(SECRET), "ValueError", StatusCode.ERROR),
        (redis.exceptions.ResponseError(f"WRONGTYPE {SECRET}"), "WRONGTYPE", StatusCode.ERROR),
        (asyncio.CancelledError(SECRET), "asyncio.exceptions.CancelledError", StatusCode.UNSET),
        (redis.exceptions.WatchError(SECRET), None, StatusCode.UNSET),
    ],
)
async def test_process_span_records_error_type_without_message(client, telemetry, error, error_type, status):
    with pytest.raises(type(error)) as raised, client.pubsub().process({"channel": "news"}):
        raise error
    (span,) = telemetry.spans
    (point,) = telemetry.points(PROCESSED)

    assert (error, None) == (raised.value, error.__context__)
    assert error_type == span.attributes.get("error.type") == point.attributes.get("error.type")
    assert (status, None, ()) == (span.status.status_code, span.status.description, span.events)
    assert SECRET not in span.to_json()


@pytest.mark.parametrize("kind", SUBSCRIPTIONS)
@pytest.mark.parametrize("decode_responses", [True, False])
@pytest.mark.parametrize("is_async", [True, False])
async def test_pubsub_handler_runs_in_process_span(
    make_recorded, telemetry, subscribe, kind, decode_responses, is_async
):
    method, subscription, publish = SUBSCRIPTIONS[kind]
    seen = []

    def handle(message):
        seen.append((message["data"], trace.get_current_span().get_span_context()))

    async def handle_later(message):
        await asyncio.sleep(0)
        handle(message)

    client = make_recorded(decode_responses=decode_responses)
    pubsub = await subscribe(client, method=method, **{subscription: handle_later if is_async else handle})
    await getattr(client, publish)("news", "message", propagate=True)
    assert await pubsub.get_message(timeout=5) is None
    published, processed = telemetry.spans

    assert [("message" if decode_responses else b"message", processed.context)] == seen
    assert (SpanKind.CONSUMER, "process news") == (processed.kind, processed.name)
    assert [ids(published.context)] == linked(processed)


async def test_pubsub_handler_error_is_recorded_and_raised(client, telemetry, subscribe):
    error = LookupError(SECRET)

    async def handle(_):
        raise error

    pubsub = await subscribe(client, news=handle)
    await client.publish("news", "message")
    with pytest.raises(LookupError) as raised:
        await pubsub.get_message(timeout=5)

    assert error is raised.value
    assert "LookupError" == telemetry.spans[-1].attributes["error.type"]


async def test_pubsub_run_calls_handlers_until_cancelled(client, telemetry, subscribe, until):
    seen = []
    pubsub = await subscribe(client, news=seen.append)
    running = asyncio.create_task(pubsub.run(poll_timeout=0.01))
    await client.publish("news", "message", propagate=True)
    await until(lambda: spans_of_kind(telemetry, SpanKind.CONSUMER))
    running.cancel()
    await asyncio.wait([running])

    assert [b"message"] == [message["data"] for message in seen]


async def test_process_span_ignores_ended_parent_of_long_lived_task(client, telemetry, subscribe):
    tracer = telemetry.tracer_provider.get_tracer("test")
    pubsub = await subscribe(client, "news")
    ended = asyncio.Event()

    async def work():
        with pubsub.process({"channel": "early"}):
            pass
        await ended.wait()
        with pubsub.process({"channel": "late"}):
            pass

    with tracer.start_as_current_span("request") as request:
        working = asyncio.create_task(work())
        await asyncio.sleep(0)
    ended.set()
    await working
    early, _, late = telemetry.spans

    assert (request.get_span_context(), None) == (early.parent, late.parent)
    assert request.get_span_context().trace_id != late.context.trace_id


async def test_process_span_has_parent_of_context_client(client, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    parent = tracer.start_span("request")
    pubsub = client.in_context("redis", parent).pubsub()
    with tracer.start_as_current_span("elsewhere"), pubsub.process({"channel": "news"}):
        pass

    assert parent.get_span_context() == telemetry.spans[0].parent


async def test_process_span_ignores_command_filters(make_recorded, telemetry):
    client = make_recorded(require_parent=True, exclude_commands={"PUBLISH"}, include_commands={"GET"}, slow_only=60)
    with client.pubsub().process({"channel": "news"}):
        pass

    assert ["process news"] == [span.name for span in telemetry.spans]


async def test_process_records_nothing_when_instrumentation_is_suppressed(client, telemetry):
    token = context.attach(context.set_value("suppress_instrumentation", value=True))
    with client.pubsub().process({"channel": "news"}):
        pass
    context.detach(token)

    assert ((), []) == (telemetry.spans, telemetry.points(PROCESSED))


async def test_process_builds_no_spec_while_telemetry_is_disabled(make_pool, server, monkeypatch):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))
    monkeypatch.delattr(type(recorder_of(client)), "process_spec")
    with client.pubsub().process({"channel": "news"}):
        assert trace.INVALID_SPAN is trace.get_current_span()


async def test_process_duration_is_recorded_without_tracer(make_pool, server, telemetry):
    tracer_provider = UNRECORDED["tracer_provider"]
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, tracer_provider=tracer_provider))
    with pytest.raises(LookupError), client.pubsub().process({"channel": "news"}):
        raise LookupError
    (point,) = telemetry.points(PROCESSED)

    assert "LookupError" == point.attributes["error.type"]


async def test_process_span_is_recorded_without_meter(make_pool, server, telemetry):
    meter_provider = UNRECORDED["meter_provider"]
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, meter_provider=meter_provider))
    with client.pubsub().process({"channel": "news"}):
        pass

    assert ["process news"] == [span.name for span in telemetry.spans]


@pytest.mark.parametrize("when", ["on_start", "on_end"])
async def test_process_block_is_unaffected_by_raising_telemetry(make_pool, server, telemetry, when):
    def fail(*_, **__):
        raise asyncio.CancelledError(SECRET)

    provider = TracerProvider()
    provider.add_span_processor(type("Broken", (SpanProcessor,), {when: fail})())
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, tracer_provider=provider))
    recorder_of(client).instruments.process_duration.record = fail
    before, done = context.get_current(), []
    with client.pubsub().process({"channel": "news"}):
        done.append("processed")
    with pytest.raises(LookupError), client.pubsub().process({"channel": "news"}):
        raise LookupError

    assert (["processed"], before) == (done, context.get_current())


def test_messaging_constants_match_semconv_package():
    from opentelemetry.semconv._incubating.attributes import messaging_attributes
    from opentelemetry.semconv._incubating.metrics import messaging_metrics

    known = {**vars(messaging_attributes), **vars(messaging_metrics)}
    ours = {name: value for name, value in vars(semconv).items() if name.startswith("MESSAGING_")}
    kinds = {each.value for each in messaging_attributes.MessagingOperationTypeValues}

    assert ours == {name: known[name] for name in ours}
    assert {semconv.OPERATION_TYPE_PROCESS, semconv.OPERATION_TYPE_SEND} <= kinds
    assert semconv_ext.MESSAGING_SYSTEM_REDIS not in {each.value for each in messaging_attributes.MessagingSystemValues}
