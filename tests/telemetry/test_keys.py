"""Keys in telemetry: shown, hidden or as templates; and hot keys."""

import pytest
from support.internals import (
    cached_command_specs_of,
    cached_messaging_specs_of,
    forget_logged_failures,
    queue_spec_of,
    recorder_of,
)

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, TelemetryOptions

DURATION = "db.client.operation.duration"
TEMPLATE = "aioredis_monitored.key.template"
HOT = "aioredis_monitored.hot_keys.rate"


@pytest.fixture
def make(make_pool, server):
    def make_client(**options):
        return MonitoredRedisConnection(connection_pool=make_pool(server.url, telemetry=TelemetryOptions(**options)))

    return make_client


def template(key):
    return f"{key.partition(':')[0]}:{{id}}"


async def test_query_text_hides_keys_with_show_keys_off(make, telemetry):
    client = make(show_keys=False)
    await client.hset("user:1", "name", "value")
    await client.pipeline().get("user:17").mget("a", "b").execute()

    assert ["HSET ? ? ?", "GET ?; MGET ? ?"] == [span.attributes["db.query.text"] for span in telemetry.spans]


async def test_key_template_replaces_key_in_spans_and_points(make, telemetry):
    client = make(key_template=template)
    await client.set("user:17", "value")
    await client.set(b"user:18", "value")
    await client.mget("user:17", "user:18")
    await client.mget("user:17", "order:1")
    await client.ping()
    await client.pipeline().get("user:17").execute()

    assert [
        ("SET user:{id} ?", "user:{id}"),
        ("SET user:{id} ?", "user:{id}"),
        ("MGET user:{id} user:{id}", "user:{id}"),
        ("MGET user:{id} order:{id}", None),
        ("PING", None),
        ("GET user:{id}", "user:{id}"),
    ] == [(span.attributes["db.query.text"], span.attributes.get(TEMPLATE)) for span in telemetry.spans]
    assert {"SET user:{id}": 2, "MGET user:{id}": 1, "MGET": 1, "PING": 1, "GET user:{id}": 1} == telemetry.tally(
        DURATION, "db.operation.name", TEMPLATE
    )


async def test_key_template_is_attribute_of_hidden_key(make, telemetry):
    await make(key_template=template, show_keys=False).get("user:17")

    attributes = telemetry.span("GET").attributes
    assert ("GET ?", "user:{id}") == (attributes["db.query.text"], attributes[TEMPLATE])


async def test_raising_key_template_hides_only_the_key(make, telemetry, monkeypatch, caplog):
    forget_logged_failures(monkeypatch)

    def broken(key):
        raise LookupError(key)

    client = make(key_template=broken)
    await client.set("user:17", "value")

    assert b"value" == await client.get("user:17")
    assert ["SET ? ?", "GET ?"] == [span.attributes["db.query.text"] for span in telemetry.spans]
    assert {"SET": 1, "GET": 1} == telemetry.tally(DURATION, "db.operation.name", TEMPLATE)
    assert 1 == len(caplog.records)
    assert "user:17" not in caplog.text


@pytest.mark.parametrize("answer", [None, 17, b"user"])
async def test_non_text_key_template_hides_key(make, telemetry, answer):
    await make(key_template=lambda _: answer).get("user:17")

    assert "GET ?" == telemetry.span("GET").attributes["db.query.text"]


async def test_key_templates_beyond_cardinality_limit_become_other(make, telemetry):
    client = make(key_template=lambda key: key)
    for number in range(1_100):
        await client.get(f"key:{number}")

    tally = telemetry.tally(DURATION, "db.operation.name", TEMPLATE)
    assert 100 == tally["GET _OTHER"]
    assert 1_001 == len([name for name in tally if name.startswith("GET ")])


async def test_command_spec_cache_is_bounded(make, telemetry):
    recorder = recorder_of(make(key_template=lambda key: key))
    for number in range(900):
        for command in ("GET", "TTL", "TYPE"):
            call = recorder.command_spec((command, f"key:{number}"))
            assert (command, f"key:{number}") == (
                call.span_attributes["db.operation.name"],
                call.span_attributes[TEMPLATE],
            )
            assert len(cached_command_specs_of(recorder)) <= 2_000

    assert recorder.command_spec(("GET", "key:899")) is recorder.command_spec(("GET", "key:899"))


# Hot keys.


async def test_hot_keys_rank_reads_and_writes_separately(make, telemetry):
    client = make(hot_keys=1.0)
    for _ in range(10):
        await client.get("hot")
    await client.pipeline().set("hot", 1).set("hot", 2).get("warm").execute()
    await client.mget("warm", "hot")
    await client.ping()

    top = client.connection_pool.telemetry.hot_keys.top(10)
    assert [("hot", "read"), ("warm", "read"), ("hot", "write")] == [(hot.key, hot.access) for hot in top]
    rates = [hot.rate for hot in top]
    assert [11, 2, 2] == [pytest.approx(rate / rates[0] * 11, rel=0.05) for rate in rates]
    assert [0, 0, 0] == [hot.error for hot in top]
    assert ["hot read", "warm read", "hot write"] == list(
        telemetry.tally(HOT, "aioredis_monitored.key", "aioredis_monitored.key.access")
    )


async def test_hot_keys_include_commands_of_watching_pipeline(make):
    client = make(hot_keys=1.0)
    async with client.pipeline() as pipe:
        await pipe.watch("watched")
        await pipe.get("read")
        pipe.multi()
        await pipe.set("written", 1).execute()

    top = client.connection_pool.telemetry.hot_keys.top(10)
    assert {("read", "read"), ("written", "write")} <= {(hot.key, hot.access) for hot in top}


async def test_hot_keys_aggregate_by_key_template(make):
    client = make(hot_keys=1.0, key_template=template)
    for number in range(5):
        await client.get(f"user:{number}")

    (hot,) = client.connection_pool.telemetry.hot_keys.top(10)
    assert ("user:{id}", "read") == (hot.key, hot.access)


async def test_hot_keys_count_nothing_by_default(make, telemetry):
    client = make()
    await client.get("key")

    assert [] == client.connection_pool.telemetry.hot_keys.top(10)
    assert [] == telemetry.points(HOT)


async def test_hot_keys_send_no_extra_commands(make, inspector):
    client = make(hot_keys=1.0)
    await client.get("key")
    before = inspector.info("commandstats")
    for _ in range(10):
        await client.get("key")
    after = inspector.info("commandstats")

    called = {
        name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after if name != "cmdstat_info"
    }
    assert {"cmdstat_get": 10} == {name: calls for name, calls in called.items() if calls}


async def test_hot_keys_count_no_key_whose_template_cannot_be_made(make):
    def failing(key):
        if key.startswith("secret:"):
            raise ValueError(key)
        return key

    client = make(hot_keys=1.0, key_template=failing)
    for key in ("secret:1", "user:1"):
        await client.get(key)

    assert ["user:1"] == [each.key for each in client.connection_pool.telemetry.hot_keys.top(10)]


async def test_messaging_spec_caches_are_bounded(make):
    client = make()
    recorder = recorder_of(client)
    for number in range(2_100):
        queue = MessageQueue(f"queue:{number}", client.connection_pool)
        spec = queue_spec_of(queue)
        assert f"queue:{number}" in str(recorder.messaging_spec(("LPOP", "key"), spec).span_attributes)
        assert recorder.message_attributes(spec)

    assert all(len(each) <= 2_000 for each in cached_messaging_specs_of(recorder))
