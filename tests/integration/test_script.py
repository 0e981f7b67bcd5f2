"""Scripts: one operation each, also when they must first be loaded."""

import asyncio
from time import perf_counter

import pytest
import redis.asyncio
import redis.exceptions
from opentelemetry.trace import StatusCode
from support.internals import recorder_of
from support.scripted import scripted
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.config.telemetry import TelemetryOptions

DURATION = "db.client.operation.duration"
COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def durations(recording):
    return recording.tally(DURATION, "db.operation.name", "error.type")


@pytest.mark.parametrize("keeps_one", [False, True], ids=["pool", "single"])
async def test_script_is_one_operation_without_error_when_loaded_on_demand(make_client, server, telemetry, keeps_one):
    async with make_client(server.url, is_recorded=True) as made, made.client() if keeps_one else made as client:
        script = client.register_script(COUNT)
        assert isinstance(script, MonitoredScript)
        assert 2 == await script(keys=["counter"], args=[2])
    (span,) = telemetry.spans

    assert f"EVALSHA {script.sha}" == span.name
    assert StatusCode.UNSET is span.status.status_code
    assert {"EVALSHA": 1} == durations(telemetry)
    assert telemetry.point(DURATION).sum == pytest.approx((span.end_time - span.start_time) / 1e9, rel=0.01)


async def test_script_is_loaded_on_a_plain_pool(server):
    async with (
        redis.asyncio.ConnectionPool.from_url(server.url) as pool,
        MonitoredRedisConnection(connection_pool=pool) as client,
    ):
        assert 2 == await client.register_script(COUNT)(keys=["counter"], args=[2])


async def test_script_span_has_sha_as_procedure_and_shows_keys(client, telemetry, server):
    script = client.register_script(COUNT)
    await script(keys=["counter"], args=[2])
    attributes = telemetry.span("EVALSHA").attributes

    assert script.sha == attributes["db.stored_procedure.name"]
    assert "EVALSHA ? ? counter ?" == attributes["db.query.text"]
    assert (server.host, server.port) == (attributes["network.peer.address"], attributes["network.peer.port"])


async def test_script_is_loaded_again_after_a_script_flush(client, telemetry, inspector):
    script = client.register_script(COUNT)
    for expected in (1, 2, 3):
        assert expected == await script(keys=["counter"], args=[1])
        inspector.script_flush()

    assert [f"EVALSHA {script.sha}"] * 3 == [span.name for span in telemetry.spans]
    assert {"EVALSHA": 3} == durations(telemetry)


async def test_script_succeeds_for_concurrent_callers_when_missing(client, telemetry):
    script = client.register_script(COUNT)

    assert list(range(1, 11)) == sorted(await asyncio.gather(*(script(keys=["counter"], args=[1]) for _ in range(10))))
    assert {"EVALSHA": 10} == durations(telemetry)


async def test_evalsha_raises_no_script_error_where_the_script_is_missing(client, telemetry):
    with pytest.raises(redis.exceptions.NoScriptError):
        await client.evalsha("0" * 40, 0)

    assert {"EVALSHA NOSCRIPT": 1} == durations(telemetry)


async def test_script_error_is_recorded_as_error(client, telemetry):
    script = client.register_script("return redis.error_reply('MINE is wrong')")
    for _ in range(2):
        with pytest.raises(redis.exceptions.ResponseError, match="MINE"):
            await script()

    assert [StatusCode.ERROR] * 2 == [span.status.status_code for span in telemetry.spans]
    assert {"EVALSHA MINE": 2} == durations(telemetry)


async def test_script_that_cannot_be_loaded_is_recorded_as_one_error(client, telemetry):
    with pytest.raises(redis.exceptions.ResponseError, match="compiling") as caught:
        await client.register_script("this is no Lua")()

    assert caught.value.__cause__ is None
    assert ["ERR"] == [span.attributes["error.type"] for span in telemetry.spans]
    assert {"EVALSHA ERR": 1} == durations(telemetry)


@pytest.mark.parametrize("transaction", [True, False])
async def test_batch_with_scripts_is_one_operation(client, telemetry, transaction):
    script = client.register_script(COUNT)
    async with client.pipeline("counting", transaction=transaction) as pipe:
        await script(keys=["counter"], args=[1], client=pipe)
        await script(keys=["counter"], args=[2], client=pipe)
        assert [1, 3] == await pipe.execute()

    assert "counting" == telemetry.tree("error.type")
    assert {"": 1} == telemetry.tally(DURATION)


async def test_pipeline_registers_its_own_scripts(client):
    async with client.pipeline() as pipe:
        await pipe.register_script(COUNT)(keys=["counter"], args=[4])
        assert [4] == await pipe.execute()


async def test_script_runs_on_a_redis_py_client_unrecorded(client, server, telemetry):
    script = client.register_script(COUNT)
    async with redis.asyncio.Redis.from_url(server.url) as plain:
        assert 2 == await script(keys=["counter"], args=[2], client=plain)

    assert () == telemetry.spans


async def test_script_records_in_the_context_of_the_given_client(client, make_pool, server, telemetry):
    tracer = telemetry.tracer_provider.get_tracer("test")
    script = client.register_script(COUNT)
    span = tracer.start_span("request")
    request = RequestStats(span, 20, eager=False)
    await script(keys=["counter"], args=[2], client=client.in_context("redis", span, request))
    request.close()
    span.end()

    assert f"request kind=INTERNAL aioredis_monitored.request.calls=1\n  EVALSHA {script.sha}" == telemetry.tree(
        "aioredis_monitored.request.calls"
    )


async def test_script_uses_the_sha_reported_by_the_server(client, make_pool, server):
    script = client.register_script("return 'é'")
    before = script.sha
    latin = MonitoredRedisConnection(connection_pool=make_pool(server.url, encoding="latin-1"))

    assert b"\xe9" == await script(client=latin)
    assert before != script.sha
    assert [True] == await client.script_exists(script.sha)


async def test_script_counts_its_hot_keys_once(make_pool, server, telemetry):
    pool = make_pool(server.url, telemetry=TelemetryOptions(hot_keys=1))
    client = MonitoredRedisConnection(connection_pool=pool)
    await client.register_script(COUNT)(keys=["scripted"], args=[1])
    await client.incr("counter")
    scripted, counter = sorted(recorder_of(client).hot_keys.top(2), key=lambda hot: hot.key, reverse=True)

    assert ("scripted", "counter") == (scripted.key, counter.key)
    assert scripted.rate == pytest.approx(counter.rate, rel=0.1)


async def test_script_calls_an_overridden_execute_command_for_each_command(pool):
    seen = []

    class Prefixing(MonitoredRedisConnection):
        async def execute_command(self, *args, **options):
            seen.append(args[0])
            return await super().execute_command(*args, **options)

    client = Prefixing(connection_pool=pool)
    await client.register_script(COUNT)(keys=["counter"], args=[1])
    await MonitoredRedisConnection(connection_pool=pool).register_script(COUNT)(
        keys=["counter"], args=[1], client=client
    )

    assert ["EVALSHA", "SCRIPT LOAD", "EVALSHA", "EVALSHA"] == seen


async def test_script_runs_without_recorded_telemetry(make_pool, server, telemetry):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, **UNRECORDED))

    assert 2 == await client.register_script(COUNT)(keys=["counter"], args=[2])
    assert {} == durations(telemetry)


async def test_script_calls_a_replaced_redis_py_execute_command_once(make_pool, server, telemetry, monkeypatch):
    seen = []
    own = redis.asyncio.Redis.execute_command

    async def replacement(self, *args, **options):
        seen.append(args[0])
        return await own(self, *args, **options)

    monkeypatch.setattr(redis.asyncio.Redis, "execute_command", replacement)
    pool = make_pool(server.url, tracer_provider=UNRECORDED["tracer_provider"])
    script = MonitoredRedisConnection(connection_pool=pool).register_script(COUNT)

    assert 1 == await script(keys=["counter"], args=[1])
    assert ["EVALSHA"] == seen
    assert {"EVALSHA": 1} == durations(telemetry)


async def test_script_cancelled_while_loading_records_its_full_duration(make_pool, telemetry, until):
    loading, is_over = [], asyncio.Event()

    async def never():
        loading.append(perf_counter())
        await is_over.wait()

    def answer(_, args):
        return never() if args[0] == b"SCRIPT" else b"-NOSCRIPT No matching script.\r\n"

    async with scripted(answer) as port:
        client = MonitoredRedisConnection(connection_pool=make_pool(f"redis://127.0.0.1:{port}", protocol=2))
        call = asyncio.ensure_future(client.register_script(COUNT)(keys=["counter"], args=[1]))
        await until(lambda: loading)
        await until(lambda: perf_counter() > loading[0] + 0.1)
        call.cancel()
        await asyncio.wait([call])
        is_over.set()
    (span,) = telemetry.spans

    assert (span.end_time - span.start_time) / 1e9 >= 0.1
    assert {"EVALSHA asyncio.exceptions.CancelledError": 1} == durations(telemetry)


@pytest.mark.parametrize("multiplex", [True, False])
async def test_batch_with_an_unloadable_script_records_error_type_and_peer(make_pool, server, telemetry, multiplex):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, multiplex=multiplex))
    pipe = client.pipeline("wrong")
    await client.register_script("this is no Lua")(client=pipe)
    with pytest.raises(redis.exceptions.ResponseError, match="compiling"):
        await pipe.execute()
    (span,) = telemetry.spans

    assert ("ERR", server.port) == (span.attributes["error.type"], span.attributes["network.peer.port"])
