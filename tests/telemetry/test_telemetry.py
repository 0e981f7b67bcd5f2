"""Spans and the duration metric of commands, pipelines and transactions, by the semantic conventions."""

import asyncio
import logging
import re
from collections import Counter
from inspect import cleandoc

import pytest
import redis.asyncio
import redis.exceptions
from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind, StatusCode
from support.internals import forget_logged_failures
from support.sharing import UNRECORDED, begun, frozen

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection, TelemetryOptions, __version__
from aioredis_monitored._telemetry import semconv
from aioredis_monitored.testing import FaultProxy, TelemetryCapture

DURATION = "db.client.operation.duration"
SECRET = "s3cr3t-" * 4


async def test_command_span_has_client_kind_and_semconv_attributes(client, telemetry, server):
    await client.ping()
    await client.set("key", SECRET)
    span = telemetry.span("SET")

    assert f"SET {server.host}:{server.port}" == span.name
    assert SpanKind.CLIENT is span.kind
    assert StatusCode.UNSET is span.status.status_code
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
    } == dict(span.attributes)


async def test_command_records_duration_point_with_semconv_attributes(client, telemetry, server):
    await client.get("key")
    point = telemetry.point(DURATION)

    assert (1, 0.0001, 10.0) == (point.count, point.explicit_bounds[0], point.explicit_bounds[-1])
    assert 0 < point.sum < 5
    assert {
        "db.system.name": "redis",
        "db.namespace": "0",
        "db.operation.name": "GET",
        "server.address": server.host,
        "server.port": server.port,
    } == dict(point.attributes)


async def test_instrumentation_scope_has_package_version_and_schema(client, telemetry):
    await client.get("key")

    scope = telemetry.span("GET").instrumentation_scope
    assert ("aioredis_monitored", __version__, semconv.SCHEMA_URL) == (scope.name, scope.version, scope.schema_url)


def test_server_attributes_follow_semconv_for_each_kind_of_url():
    def attributes(url, **arguments):
        pool = MonitoredConnectionPool.from_url(url, **arguments)
        return pool.telemetry.server.attributes, pool.telemetry.server.target

    default, named = attributes("redis://cache.example.com"), attributes("redis://cache.example.com:7000/3")
    unix, _ = attributes("unix:///run/redis.sock")

    assert "server.port" not in default[0]
    assert "cache.example.com:6379" == default[1]
    assert (7000, "3", "cache.example.com:7000") == (named[0]["server.port"], named[0]["db.namespace"], named[1])
    assert ("/run/redis.sock", "unix") == (unix["server.address"], unix["network.transport"])


async def test_command_span_name_has_no_target_on_unix_socket(make_pool, server, telemetry):
    await MonitoredRedisConnection(connection_pool=make_pool(f"unix://{server.unix_socket_path}")).get("key")

    assert "GET" == telemetry.span("GET").name


def test_custom_connection_class_has_no_server_address():
    class Elsewhere(redis.asyncio.connection.AbstractConnection):
        _connect = _host_error = repr_pieces = lambda self: None

    pool = MonitoredConnectionPool(connection_class=Elsewhere)

    assert {"db.system.name": "redis", "db.namespace": "0"} == pool.telemetry.server.attributes
    assert "Elsewhere/0" == pool.name


async def test_script_and_function_spans_name_stored_procedure(client, telemetry):
    script = client.register_script("return KEYS[1]")
    await script(keys=["key"])
    await client.function_load("#!lua name=lib\nredis.register_function('mine', function(keys) return keys[1] end)")
    await client.fcall("mine", 1, "key")

    expected = f"""
        EVALSHA {script.sha} db.stored_procedure.name={script.sha}
        FUNCTION LOAD
        FCALL mine db.stored_procedure.name=mine
    """
    assert cleandoc(expected) == telemetry.tree("db.stored_procedure.name")


async def test_operation_name_keeps_spelling_of_caller(client, telemetry, server):
    await client.execute_command("get", "key")
    await client.execute_command("CONFIG", "GET", "maxmemory")
    await client.config_get("maxmemory")

    expected = """
        get db.operation.name=get
        CONFIG GET db.operation.name=CONFIG GET
        CONFIG GET db.operation.name=CONFIG GET
    """
    assert cleandoc(expected) == telemetry.tree("db.operation.name")


BATCHES = [
    (True, [], "MULTI", 0, None),
    (False, [], "PIPELINE", 0, None),
    (True, [("GET", "a")], "GET", None, "GET a"),
    (False, [("GET", "a")], "GET", None, "GET a"),
    (True, [("GET", "a"), ("GET", "b")], "MULTI GET", 2, "GET a; GET b"),
    (False, [("GET", "a"), ("GET", "a")], "PIPELINE GET", 2, "GET a"),
    (True, [("SET", "a", SECRET), ("GET", "a")], "MULTI", 2, "SET a ?; GET a"),
    (False, [("SET", "a", SECRET), ("GET", "a")], "PIPELINE", 2, "SET a ?; GET a"),
]


@pytest.mark.parametrize(("transaction", "commands", "operation_name", "size", "text"), BATCHES)
@pytest.mark.parametrize("name", [None, "cart"])
async def test_pipeline_span_follows_semconv_batch_rules(
    client, telemetry, server, name, transaction, commands, operation_name, size, text
):
    pipe = client.pipeline(name, transaction)
    for command in commands:
        pipe.execute_command(*command)
    results = await pipe.execute()
    span = telemetry.span(operation_name)
    point = telemetry.point(DURATION)

    assert len(commands) == len(results)
    assert (name or f"{operation_name} {server.host}:{server.port}") == span.name
    assert name == span.attributes.get("db.query.summary") == point.attributes.get("db.query.summary")
    assert operation_name == span.attributes["db.operation.name"] == point.attributes["db.operation.name"]
    assert size == span.attributes.get("db.operation.batch.size")
    assert text == span.attributes.get("db.query.text")
    assert "db.operation.batch.size" not in point.attributes


async def test_pipeline_query_text_is_truncated_for_long_batch(client, telemetry):
    pipe = client.pipeline(transaction=False)
    for number in range(5000):
        pipe.get(f"key:{number}" * 10)
    await pipe.execute()

    text = telemetry.span("PIPELINE GET").attributes["db.query.text"]
    assert text.endswith("; …")
    assert len(text) < 6000


async def test_pipeline_query_text_shows_at_most_hundred_commands(client, telemetry):
    pipe = client.pipeline(transaction=False)
    for number in range(150):
        pipe.get(f"k{number}")
    await pipe.execute()

    expected = "; ".join([*(f"GET k{number}" for number in range(100)), "…"])
    assert expected == telemetry.span("PIPELINE GET").attributes["db.query.text"]


async def test_transaction_records_commands_sent_while_watching(client, telemetry):
    async def body(pipe):
        await pipe.get("stock")
        pipe.multi()
        pipe.decr("stock").get("stock")

    await client.transaction(body, "stock")

    assert ["WATCH", "GET", "MULTI"] == telemetry.tree().split()


async def test_watch_error_records_no_error_type(client, telemetry):
    async with client.pipeline("guarded") as pipe:
        await pipe.watch("key")
        await client.set("key", "changed")
        pipe.multi()
        pipe.get("key").get("key")
        with pytest.raises(redis.exceptions.WatchError):
            await pipe.execute()

    assert ["WATCH", "SET", "guarded"] == telemetry.tree("error.type").splitlines()


async def test_error_type_is_prefix_of_error_reply(client, telemetry):
    await client.set("string", "value")
    with telemetry.block() as block:
        with pytest.raises(redis.exceptions.ResponseError):
            await client.lpush("string", SECRET)
        with pytest.raises(redis.exceptions.ResponseError):
            await client.execute_command("NOSUCHCOMMAND", SECRET)
        with pytest.raises(redis.exceptions.NoScriptError):
            await client.evalsha("0", 0)

    expected = """
        LPUSH status=ERROR error.type=WRONGTYPE db.response.status_code=WRONGTYPE
        NOSUCHCOMMAND status=ERROR error.type=ERR db.response.status_code=ERR
        EVALSHA 0 status=ERROR error.type=NOSCRIPT db.response.status_code=NOSCRIPT
    """
    assert cleandoc(expected) == block.tree("error.type", "db.response.status_code")
    assert {(None, ())} == {(span.status.description, span.events) for span in block.spans}


async def test_error_types_of_scripts_are_capped(client, telemetry):
    for number in range(300):
        with pytest.raises(redis.exceptions.ResponseError):
            await client.eval("return redis.error_reply(ARGV[1])", 0, f"MADE{number} up")

    types = {span.attributes["error.type"] for span in telemetry.spans}
    assert {"_OTHER"} == types - {f"MADE{number}" for number in range(200)}
    assert types == {point.attributes["error.type"] for point in telemetry.points(DURATION)}
    assert types == {span.attributes["db.response.status_code"] for span in telemetry.spans}


async def test_operation_names_of_unknown_commands_are_capped(client, telemetry):
    for number in range(300):
        with pytest.raises(redis.exceptions.ResponseError):
            await client.execute_command(f"MADE{number}")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.pipeline(transaction=False).execute_command("MORE").execute_command("MORE").execute()
    await client.execute_command("get", "key")

    names = {span.attributes["db.operation.name"] for span in telemetry.spans}
    assert {*(f"MADE{number}" for number in range(200)), "_OTHER", "PIPELINE _OTHER", "get"} == names
    assert names == {point.attributes["db.operation.name"] for point in telemetry.points(DURATION)}
    assert {name.split()[0] for name in names} == {span.name.split()[0] for span in telemetry.spans}


@pytest.mark.parametrize("transaction", [True, False])
@pytest.mark.parametrize("raise_on_error", [True, False])
async def test_pipeline_span_has_error_type_of_failed_command(client, telemetry, transaction, raise_on_error):
    await client.set("string", "value")
    pipe = client.pipeline("failing", transaction).get("string").lpush("string", SECRET).get("string")
    if raise_on_error:
        with pytest.raises(redis.exceptions.ResponseError, match="of pipeline caused error"):
            await pipe.execute()
    else:
        assert isinstance((await pipe.execute(raise_on_error=False))[1], redis.exceptions.ResponseError)

    assert [
        "SET",
        "failing status=ERROR error.type=WRONGTYPE db.response.status_code=WRONGTYPE",
    ] == telemetry.tree("error.type", "db.response.status_code").splitlines()
    assert "WRONGTYPE" == telemetry.point(DURATION, {"db.query.summary": "failing"}).attributes["error.type"]


async def test_pipeline_span_counts_failed_commands(client, telemetry):
    await client.set("string", "value")
    pipe = client.pipeline("failing").lpush("string", "x").get("string").sadd("string", "x")
    await pipe.execute(raise_on_error=False)

    assert 2 == telemetry.span("failing").attributes["aioredis_monitored.batch.failed"]


async def test_rejected_transaction_has_error_type_of_first_error(client, telemetry):
    pipe = client.pipeline("refused").set("a", 1).execute_command("NOSUCHCOMMAND", SECRET)
    with pytest.raises(redis.exceptions.ResponseError, match="unknown command"):
        await pipe.execute()

    assert "refused status=ERROR error.type=ERR" == telemetry.tree("error.type")


async def test_command_span_parent_is_given_span_or_current_span(pool, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    given = tracer.start_span("given")
    with tracer.start_as_current_span("current"):
        await MonitoredRedisConnection("redis", given, pool).get("a")
        await MonitoredRedisConnection("redis", given, pool).pipeline("b").get("b").execute()
        await MonitoredRedisConnection("redis", None, pool).get("c")
    given.end()

    expected = """
        given kind=INTERNAL
          GET db.query.text=GET a
          b db.query.text=GET b
        current kind=INTERNAL
          GET db.query.text=GET c
    """
    assert cleandoc(expected) == telemetry.tree("db.query.text")


async def test_sampler_receives_all_attributes_including_outcome(server):
    seen = []

    class Curious(Sampler):
        def should_sample(
            self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None
        ):
            seen.append((name, attributes))
            return SamplingResult(Decision.DROP)

        def get_description(self):
            return "curious"

    telemetry = TelemetryCapture(sampler=Curious())
    async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
        await client.ping()
        await client.set("key", SECRET)
        with pytest.raises(redis.exceptions.ResponseError):
            await client.lpush("key", SECRET)

    server_attributes = {
        "network.peer.address": "127.0.0.1",
        "network.peer.port": server.port,
        "db.system.name": "redis",
        "db.namespace": "0",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "network.transport": "tcp",
    }
    success = {"db.operation.name": "SET", "db.query.text": "SET key ?"}
    failure = {
        "db.operation.name": "LPUSH",
        "db.query.text": "LPUSH key ?",
        "error.type": "WRONGTYPE",
        "db.response.status_code": "WRONGTYPE",
    }
    assert [
        (f"SET 127.0.0.1:{server.port}", server_attributes | success),
        (f"LPUSH 127.0.0.1:{server.port}", server_attributes | failure),
    ] == seen[1:]
    assert () == telemetry.spans


class Broken(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise RuntimeError(SECRET)

    def on_end(self, span):
        raise RuntimeError(SECRET)


class BrokenAtTheEnd(SpanProcessor):
    def on_end(self, span):
        raise ValueError(SECRET)


class Cancelling(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise asyncio.CancelledError(SECRET)

    def on_end(self, span):
        raise GeneratorExit(SECRET)


class BrokenMeterProvider(MeterProvider):
    def get_meter(self, *arguments, **keywords):
        meter = super().get_meter(*arguments, **keywords)
        real = meter.create_histogram

        def create_histogram(*args, **kwargs):
            histogram = real(*args, **kwargs)

            def record(*_, **__):
                raise KeyError(SECRET)

            histogram.record = record
            return histogram

        meter.create_histogram = create_histogram
        return meter


async def cancelled_while_blocked(client):
    """Cancel a BLPOP while the server holds its reply back.

    Not earlier: on Python 3.11, the ``asyncio.wait_for`` in which redis-py writes may swallow a cancellation.
    """
    task = asyncio.create_task(client.blpop("nothing", timeout=0))
    async with redis.asyncio.Redis.from_url(_url(client)) as observer:
        while not (await observer.info("clients"))["blocked_clients"]:
            assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    return task


def _url(client):
    arguments = client.connection_pool.connection_kwargs
    return f"redis://{arguments['host']}:{arguments['port']}"


async def outcomes(client):
    """Make the same calls, successful, failing and cancelled; return what each returned or raised."""
    await client.set("string", "value")
    pipe = client.pipeline().get("string").lpush("string", "x")
    blocked = await cancelled_while_blocked(client)
    results = await asyncio.gather(
        client.get("string"),
        client.lpush("string", "x"),
        pipe.execute(),
        client.pipeline(False).get("string").execute(),
        blocked,
        return_exceptions=True,
    )
    return [(type(result), str(result)) for result in results]


@pytest.mark.parametrize("processor", [Broken, BrokenAtTheEnd, Cancelling])
async def test_raising_telemetry_does_not_change_results_and_errors(server, telemetry, processor, caplog, monkeypatch):
    forget_logged_failures(monkeypatch)
    telemetry.tracer_provider.add_span_processor(processor())
    async with redis.asyncio.Redis.from_url(server.url) as plain:
        # The one intentional difference: the error texts of a pipeline hide values.
        expected = [(kind, text.replace("LPUSH string x", "LPUSH string ?")) for kind, text in await outcomes(plain)]

    with caplog.at_level(logging.WARNING):
        async with MonitoredRedisConnection.from_url(
            server.url, tracer_provider=telemetry.tracer_provider, meter_provider=BrokenMeterProvider()
        ) as broken:
            assert expected == await outcomes(broken)
    async with MonitoredRedisConnection.from_url(server.url) as off:
        assert expected == await outcomes(off)

    logged = [record.getMessage() for record in caplog.records if record.name == "aioredis_monitored.telemetry"]
    assert 2 == len(logged)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("how", ["current", "given"])
@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_raising_parent_span_does_not_affect_other_commands(make_pool, own_server, telemetry, until, how, error):
    asked = []

    class Broken(trace.NonRecordingSpan):
        def get_span_context(self):
            asked.append(self)
            raise error

    pool = make_pool(own_server.url, telemetry=TelemetryOptions(require_parent=True))
    client = MonitoredRedisConnection(connection_pool=pool)
    parent = Broken(trace.INVALID_SPAN_CONTEXT)
    tracer = telemetry.tracer_provider.get_tracer("test")

    async def call_of_another(number):
        with tracer.start_as_current_span(f"request {number}"):
            return await client.echo(number)

    async def call():
        if how == "given":
            return await client.in_context("redis", parent).echo("broken")
        context.attach(trace.set_span_in_context(parent))
        return await client.echo("broken")

    connection = await client.client_id()
    async with frozen(own_server):
        # All are answered in one piece, and the one in the middle is recorded before those behind it.
        calls = [call_of_another(number) for number in range(10)]
        tasks = await begun(*calls[:5], call(), *calls[5:])
        await until(lambda: pool.stats().in_flight == 11)
    replies = await asyncio.gather(*tasks, return_exceptions=True)

    assert [b"0", b"1", b"2", b"3", b"4", b"broken", b"5", b"6", b"7", b"8", b"9"] == replies
    assert asked
    assert [f"request {number} kind=INTERNAL\n  ECHO" for number in range(10)] == re.findall(
        r"request.*\n  ECHO", telemetry.tree()
    )
    assert connection == await client.client_id()


class Interrupted(SpanProcessor):
    def on_start(self, span, parent_context=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["GET key", "HGETALL key", "NOSUCH"])
def test_keyboard_interrupt_in_span_processor_propagates(server, telemetry, command):
    telemetry.tracer_provider.add_span_processor(Interrupted())

    async def main():
        async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
            await client.execute_command(*command.split())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


def test_keyboard_interrupt_in_a_log_handler_propagates(server, telemetry, monkeypatch):
    class Failing(SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise LookupError

    class Interrupting(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt

    async def main():
        async with MonitoredRedisConnection.from_url(server.url, **telemetry.providers) as client:
            await client.get("key")

    forget_logged_failures(monkeypatch)
    telemetry.tracer_provider.add_span_processor(Failing())
    logger, handler = logging.getLogger("aioredis_monitored.telemetry"), Interrupting()
    logger.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        logger.removeHandler(handler)


async def test_exporter_failure_log_does_not_quote_command_error(client, telemetry, caplog):
    class Exporter(SpanExporter):
        def export(self, spans):
            raise RuntimeError("the collector is down")

    telemetry.tracer_provider.add_span_processor(SimpleSpanProcessor(Exporter()))
    await client.set("string", "value")
    for failing in (client.execute_command("NOSUCH", SECRET), client.pipeline().lpush("string", SECRET).execute()):
        with pytest.raises(redis.exceptions.ResponseError):
            await failing

    assert "the collector is down" in caplog.text
    assert SECRET not in caplog.text


async def test_custom_error_without_init_reaches_caller_and_span(client, telemetry):
    class Careless(redis.exceptions.ResponseError):
        def __init__(self):
            pass

    def callback(reply, **_):
        raise Careless

    client.set_response_callback("GET", callback)
    with pytest.raises(Careless):
        await client.get("key")

    assert telemetry.span("GET").attributes["error.type"].endswith(".Careless")


class Raising(redis.exceptions.RedisError):
    @property
    def status_code(self):
        raise LookupError

    @status_code.setter
    def status_code(self, code):
        pass


class Listed(redis.exceptions.ResponseError):
    status_code = property(lambda _: ["NO", "TEXT"], lambda *_: None)


class Numbered(redis.exceptions.ResponseError):
    status_code = property(lambda _: 17, lambda *_: None)


class Unencodable(redis.exceptions.ResponseError):
    status_code = property(lambda _: "a\ud800b", lambda *_: None)


@pytest.mark.parametrize("cls", [Raising, Listed, Numbered, Unencodable])
@pytest.mark.parametrize("call", ["command", "pipeline"])
async def test_custom_error_with_invalid_status_code_reaches_caller(client, telemetry, cls, call):
    error = cls("mine")

    def callback(reply, **_):
        raise error

    client.set_response_callback("GET", callback)
    with pytest.raises(cls) as raised:
        await (client.get("key") if call == "command" else client.pipeline().get("key").execute())

    assert error is raised.value
    for attributes in (telemetry.span("GET").attributes, telemetry.point(DURATION).attributes):
        assert attributes["error.type"] in {"_OTHER", f"{__name__}.{cls.__name__}"}
        assert "db.response.status_code" not in attributes


def strings_of(name, attributes):
    return [name, *(text for item in attributes.items() for text in item if isinstance(text, str))]


async def test_unencodable_text_is_escaped_in_spans_and_points(make_pool, server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, name="po\ud800ol"))
    await client.pipeline("na\ud800me").get("a").get("b").execute()
    await client.pipeline("o\udfffne").get("a").execute()
    with pytest.raises(redis.exceptions.ResponseError):
        await client.execute_command(b"NO\xffSUCH", "x")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.execute_command("FCALL", b"f\xff", 0)

    points = [*telemetry.points(DURATION), *telemetry.points("db.client.connection.max")]
    texts = [text for span in telemetry.spans for text in strings_of(span.name, span.attributes)]
    texts += [text for point in points for text in strings_of("", point.attributes)]
    assert [4, 5] == [len(telemetry.spans), len(points)]
    assert texts == [text.encode().decode() for text in texts]
    assert "po\ud800ol" == client.connection_pool.name


async def test_connection_error_while_watching_records_error_type(server, make_pool, telemetry):
    async with FaultProxy(server.host, server.port) as proxy:
        pool = make_pool(proxy.url)
        async with MonitoredRedisConnection(connection_pool=pool).pipeline("broken") as pipe:
            await pipe.watch("key")
            pipe.multi()
            pipe.set("key", 1)
            pipe.get("key")
            proxy.cut_replies = 1
            with pytest.raises(redis.exceptions.WatchError):
                await pipe.execute()
        await pool.aclose()

    assert [
        "WATCH",
        "broken status=ERROR error.type=redis.exceptions.ConnectionError",
    ] == telemetry.tree("error.type").splitlines()


async def test_error_type_ignores_exception_that_caller_is_handling(client, telemetry):
    async with client.pipeline("guarded") as pipe:
        await pipe.watch("key")
        await client.set("key", "changed")
        pipe.multi()
        pipe.get("key")
        pipe.get("key")
        try:
            raise redis.exceptions.ConnectionError("of another server")
        except redis.exceptions.ConnectionError:
            with pytest.raises(redis.exceptions.WatchError):
                await pipe.execute()

    assert ["WATCH", "SET", "guarded"] == telemetry.tree("error.type").splitlines()


async def test_exception_context_chain_equals_that_of_redis_py(server):
    def chain(error):
        while error is not None:
            yield type(error)
            error = error.__context__

    async def fail(client, proxy):
        try:
            raise KeyError
        except KeyError:
            async with client.pipeline() as pipe:
                await pipe.watch("key")
                pipe.multi()
                pipe.set("key", 1)
                proxy.cut_replies = 1
                try:
                    await pipe.execute()
                except redis.exceptions.WatchError as error:
                    return list(chain(error))

    async with FaultProxy(server.host, server.port) as proxy:
        async with redis.asyncio.Redis.from_url(proxy.url) as plain:
            expected = await fail(plain, proxy)
        async with MonitoredRedisConnection.from_url(proxy.url) as monitored:
            assert expected == await fail(monitored, proxy)

    assert redis.exceptions.ConnectionError in expected


async def test_pipeline_loading_its_scripts_records_one_span(client, telemetry):
    script = client.register_script("return KEYS[1]")
    pipe = client.pipeline("scripted")
    await script(keys=["a"], client=pipe)
    await script(keys=["b"], client=pipe)

    assert [b"a", b"b"] == await pipe.execute()
    assert "scripted" == telemetry.tree()


async def test_response_error_is_raised_as_same_object(make_pool, server):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=False))
    await client.set("string", "value")
    raised = []

    class Spy(MonitoredRedisConnection):
        async def parse_response(self, connection, command_name, **options):
            try:
                return await super().parse_response(connection, command_name, **options)
            except redis.exceptions.ResponseError as error:
                raised.append(error)
                raise

    with pytest.raises(redis.exceptions.ResponseError) as caught:
        await Spy(connection_pool=client.connection_pool).lpush("string", "x")

    assert raised == [caught.value]


async def test_mixed_outcomes_record_one_point_and_span_each(make_pool, server, telemetry):
    async with FaultProxy(server.host, server.port) as proxy:
        client = MonitoredRedisConnection(connection_pool=make_pool(proxy.url))
        for number in range(90):
            await client.set("string", number)
        for _ in range(5):
            with pytest.raises(redis.exceptions.ResponseError):
                await client.lpush("string", "x")
        for _ in range(3):
            proxy.cut_replies = 1
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.rpush("list", "x")
            proxy.cut_replies = 0
            # Reconnect with an unrecorded call, so that the next cut hits a reply and not a handshake.
            await client.connection_pool.multiplexer.send(("PING",))
        for _ in range(2):
            assert (await cancelled_while_blocked(client)).cancelled()
        await client.connection_pool.aclose()

    assert {
        "SET": 90,
        "LPUSH WRONGTYPE": 5,
        "RPUSH redis.exceptions.ConnectionError": 3,
        "BLPOP asyncio.exceptions.CancelledError": 2,
    } == telemetry.tally(DURATION, "db.operation.name", "error.type")
    assert {
        "SET": 90,
        "LPUSH status=ERROR error.type=WRONGTYPE": 5,
        "RPUSH status=ERROR error.type=redis.exceptions.ConnectionError": 3,
        "BLPOP error.type=asyncio.exceptions.CancelledError": 2,
    } == Counter(telemetry.tree("error.type").splitlines())


async def test_cancelled_command_span_has_error_type_without_error_status(client, telemetry):
    assert (await cancelled_while_blocked(client)).cancelled()
    assert "BLPOP error.type=asyncio.exceptions.CancelledError" == telemetry.tree("error.type")


async def test_span_name_option_renames_spans(make_pool, server, telemetry):
    options = TelemetryOptions(span_name=lambda attributes: f"redis {attributes['db.operation.name'].lower()}")
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=options))
    await client.get("key")
    await client.pipeline("cart").get("a").set("b", 1).execute()
    await client.publish("news", "message")

    assert ["redis get", "redis multi", "redis publish"] == [span.name for span in telemetry.spans]


@pytest.mark.parametrize("answer", [None, "", b"GET", LookupError()])
async def test_invalid_span_name_falls_back_to_semconv_name(make_pool, server, telemetry, answer):
    def span_name(_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    options = TelemetryOptions(span_name=span_name)
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=options))

    assert await client.get("key") is None
    assert [f"GET {server.host}:{server.port}"] == [span.name for span in telemetry.spans]


async def test_span_name_option_cannot_change_recorded_attributes(make_pool, server, telemetry):
    options = TelemetryOptions(span_name=lambda attributes: str(attributes.clear()))
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=options))
    await client.get("key")

    assert "GET" == telemetry.span("None").attributes["db.operation.name"]


@pytest.mark.parametrize("call", ["command", "pipeline"])
async def test_successful_retry_records_one_point_without_error(make_pool, proxy, telemetry, call):
    client = MonitoredRedisConnection(connection_pool=make_pool(proxy.url))
    await client.ping()
    proxy.cut_after, proxy.cut_replies = 0, 1
    with telemetry.block() as block:
        await (client.get("key") if call == "command" else client.pipeline(transaction=False).get("key").execute())

    assert 2 == proxy.accepted
    assert "GET" == block.tree("error.type", "db.response.status_code")
    assert {"GET": 1} == block.tally(DURATION, "db.operation.name", "error.type")


def broken(*_):
    raise LookupError


@pytest.mark.parametrize("hooks", [{}, {"key_template": broken, "span_name": broken}], ids=["no hooks", "broken hooks"])
@pytest.mark.parametrize("is_on", [True, False], ids=["on", "off"])
async def test_results_and_errors_are_passed_through_unchanged(make_pool, server, telemetry, is_on, hooks):
    providers = telemetry.providers if is_on else UNRECORDED
    client = MonitoredRedisConnection(
        connection_pool=make_pool(server.url, telemetry=TelemetryOptions(**hooks), **providers)
    )
    outcomes = [object(), LookupError("mine"), asyncio.CancelledError("mine"), KeyError()]

    def outcome_of(reply, **_):
        outcome = outcomes[int(reply)]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    client.set_response_callback("ECHO", outcome_of)
    for number, outcome in enumerate(outcomes):
        for call in (client.echo(number), client.pipeline().echo(number).execute()):
            if not isinstance(outcome, BaseException):
                assert await call in (outcome, [outcome])
                continue
            with pytest.raises(type(outcome)) as raised:
                await call
            assert outcome is raised.value
            assert None is outcome.__context__ is outcome.__cause__
