"""Configuration stored in Redis: its keys, how long an answer is cached, and the result of a broken one."""

import asyncio
import time

import pytest
import redis.exceptions
from support.internals import MAX_CONFIG_ENTRIES, cached_entries_of, read_task_of
from support.sharing import begun, until_answered

from aioredis_monitored import ConfigStore, MonitoredConnectionPool, MonitoredRedisConnection


@pytest.fixture
def clock(monkeypatch):
    """Return the store's clock, which the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("aioredis_monitored.components.store.monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def store(client):
    return ConfigStore(client)


def reads(telemetry):
    return telemetry.tally("db.client.operation.duration", "db.operation.name")["GET"]


async def test_config_store_keeps_json_under_config_type_component(store, client):
    await store.set("redis", "logs", {"url": "redis://localhost", "db": 3})

    assert b'{"db": 3, "url": "redis://localhost"}' == await client.get("config:redis:logs")
    assert {"url": "redis://localhost", "db": 3} == await store.get("redis", "logs")
    assert {} == await store.get("redis", "unheard-of")


async def test_config_store_raises_on_type_with_colon(store):
    await store.set("a", "b:c", {"db": 1})
    with pytest.raises(ValueError, match="the type of a component must not contain ':': 'a:b'"):
        await store.set("a:b", "c", {"db": 2})
    with pytest.raises(ValueError, match="the type of a component must not contain ':': 'a:b'"):
        await store.get("a:b", "c")

    assert {"db": 1} == await store.get("a", "b:c")


async def test_config_store_caches_an_answer_for_wait_seconds(store, client, clock, telemetry):
    await client.set("config:redis:logs", '{"db": 1}')
    await store.get("redis", "logs")
    await client.set("config:redis:logs", '{"db": 2}')
    clock.now += 0.9
    assert {"db": 1} == await store.get("redis", "logs", wait=1)
    assert {"db": 2} == await store.get("redis", "logs", wait=0.5)
    clock.now += 1
    await store.get("redis", "logs")

    assert 3 == reads(telemetry)


async def test_config_store_reads_its_own_write_immediately(store):
    await store.set("redis", "logs", {"db": 1})
    await store.get("redis", "logs")
    await store.set("redis", "logs", {"db": 2})

    assert {"db": 2} == await store.get("redis", "logs", wait=60)


async def test_config_store_returns_copies_that_callers_may_change(store, telemetry):
    config = {"db": 1, "nodes": [{"host": "a"}], "limits": {"get": [1, 2]}}
    await store.set("redis", "logs", config)
    got = await store.get("redis", "logs", wait=60)
    got["db"] = 9
    got["nodes"][0]["host"] = "b"
    got["limits"]["get"].clear()

    assert config == await store.get("redis", "logs", wait=60)
    assert 1 == reads(telemetry)


async def test_config_store_caches_the_most_recently_used_answers(store, telemetry):
    async def ask(*numbers):
        for number in numbers:
            await store.get("redis", f"component-{number}", wait=60)

    await ask(*range(MAX_CONFIG_ENTRIES), 0)
    assert MAX_CONFIG_ENTRIES == reads(telemetry)
    await ask("one more", 0)
    assert MAX_CONFIG_ENTRIES + 1 == reads(telemetry)
    # Component 1 was evicted: it was read least recently.
    await ask(1)
    assert MAX_CONFIG_ENTRIES + 2 == reads(telemetry)
    await ask(*range(10_000, 10_000 + 2 * MAX_CONFIG_ENTRIES))

    assert MAX_CONFIG_ENTRIES == len(cached_entries_of(store))


async def test_config_store_keeps_pending_reads_beyond_its_cache_size(own_server, make_pool, telemetry):
    pool = make_pool(own_server.url, socket_timeout=600)
    store, names = ConfigStore(MonitoredRedisConnection(connection_pool=pool)), [str(number) for number in range(1000)]
    await store.set("redis", "0", {"db": 1})
    own_server.freeze()
    asking = await begun(*(store.get("redis", name, wait=60) for name in names))
    again = await begun(*(store.get("redis", name, wait=60) for name in names))
    own_server.thaw()

    assert [{"db": 1}, *[{}] * 999] * 2 == await asyncio.gather(*asking, *again)
    assert 1000 == reads(telemetry)
    # The thousand reads have ended.
    await store.get("redis", "another")
    assert MAX_CONFIG_ENTRIES == len(cached_entries_of(store))


async def test_config_store_shares_one_read_between_concurrent_readers(store, telemetry):
    await asyncio.gather(*(store.get("redis", "logs", wait=0) for _ in range(50)))

    assert 1 == reads(telemetry)


async def test_cancelled_reader_does_not_disturb_other_readers(own_server, make_pool):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url)))
    await store.set("redis", "logs", {"db": 1})
    own_server.freeze()
    tasks = [asyncio.create_task(store.get("redis", "logs")) for _ in range(3)]
    while not tasks[0].done():
        tasks[0].cancel()
        await asyncio.sleep(0)
    own_server.thaw()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert [{"db": 1}, {"db": 1}] == results[1:]


async def test_config_store_patience_counts_from_the_start_of_the_read(own_server, make_pool):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url)))
    await store.set("redis", "logs", {"db": 1})
    own_server.freeze()
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(20):
        with pytest.raises(TimeoutError, match="reading config:redis:logs takes longer than 1 s"):
            await store.get("redis", "logs", patience=1)
    # Not twenty seconds.
    assert loop.time() - started < 15
    own_server.thaw()

    assert {"db": 1} == await store.get("redis", "logs")


@pytest.mark.parametrize("value", ["not json: hunter2", "[1]", "3", '"hunter2"', "[" * 100_000])
async def test_config_store_raises_without_quoting_when_value_is_no_json_object(store, client, value):
    await client.set("config:redis:logs", value)

    with pytest.raises(ValueError, match=r"^config:redis:logs does not hold a JSON object$") as caught:
        await store.get("redis", "logs")
    assert caught.value.__context__ is None


async def test_config_store_set_raises_when_configuration_is_no_json_object(store):
    with pytest.raises(TypeError, match="config must be a mapping, got list"):
        await store.set("redis", "logs", [1])
    with pytest.raises(TypeError):
        await store.set("redis", "logs", {"url": object()})


async def test_config_store_asks_a_dead_server_once_per_wait(own_server, make_pool, telemetry, clock):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url, socket_timeout=0.5)))
    own_server.kill()
    for _ in range(5):
        with pytest.raises(redis.exceptions.ConnectionError):
            await store.get("redis", "logs")
    assert 1 == reads(telemetry)
    own_server.start()

    def ask_later():
        clock.now += 1
        return store.get("redis", "logs")

    assert {} == await until_answered(ask_later)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, False),
        ("", False),
        ("0", False),
        ("no", False),
        ("False", False),
        ("1", True),
        ("yes", True),
        ("x", True),
    ],
)
@pytest.mark.parametrize("decode_responses", [True, False])
async def test_maintenance_flag_is_true_unless_missing_empty_or_a_word_for_no(
    make_pool, server, value, expected, decode_responses
):
    client = MonitoredRedisConnection(connection_pool=make_pool(server.url, decode_responses=decode_responses))
    if value is not None:
        await client.set("is-under-maintenance", value)

    assert await ConfigStore(client).is_under_maintenance() is expected


async def test_maintenance_flag_is_cached_for_a_second(store, client, clock):
    assert await store.is_under_maintenance() is False
    await client.set("is-under-maintenance", "yes")
    clock.now += 0.9
    assert await store.is_under_maintenance() is False
    clock.now += 0.1

    assert await store.is_under_maintenance() is True


async def test_config_store_returns_cached_answer_when_patience_ends(own_server, make_pool, until):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url)))
    other = MonitoredRedisConnection(connection_pool=make_pool(own_server.url))
    await store.set("redis", "logs", {"db": 1})
    await store.get("redis", "logs")
    await other.set("config:redis:logs", '{"db": 2}')
    own_server.freeze()
    assert {"db": 1} == await store.get("redis", "logs", wait=0, patience=0.01)
    own_server.thaw()
    await until(lambda: cached_entries_of(store)["config:redis:logs"].value == b'{"db": 2}')
    own_server.freeze()

    # An answer is used, however slow the server is.
    assert {"db": 2} == await store.get("redis", "logs", wait=0, patience=0)
    own_server.thaw()
    await store.get("redis", "logs", wait=0)


async def test_config_store_uses_an_answer_received_while_the_event_loop_was_busy(own_server, make_pool):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url)))
    config = {"text": "x" * 1_000_000}
    await store.set("redis", "logs", config)
    own_server.freeze()
    (asking,) = await begun(store.get("redis", "logs", patience=2))
    own_server.thaw()
    time.sleep(4)  # noqa: ASYNC251 - that is the point

    assert config == await asking


async def test_config_store_raises_a_separate_error_for_each_caller(store, client, clock):
    await client.set("config:redis:logs", "{")
    errors = []
    for _ in range(2):
        try:
            raise KeyError("of one caller")
        except KeyError:
            try:
                await store.get("redis", "logs")
            except ValueError as error:
                errors.append(error)

    assert errors[0] is not errors[1]
    assert str(errors[0]) == str(errors[1])


async def test_config_store_restarts_a_read_that_is_cancelled(own_server, make_pool, until):
    store = ConfigStore(MonitoredRedisConnection(connection_pool=make_pool(own_server.url)))
    await store.set("redis", "logs", {"db": 1})
    own_server.freeze()
    asking = asyncio.create_task(store.get("redis", "logs"))
    await until(lambda: "config:redis:logs" in cached_entries_of(store))
    reading = read_task_of(cached_entries_of(store)["config:redis:logs"])
    while not reading.done():
        reading.cancel()
        await asyncio.sleep(0)
    own_server.thaw()

    assert {"db": 1} == await asking


def test_config_store_works_in_the_next_event_loop(server):
    pool = MonitoredConnectionPool.from_url(server.url)
    store = ConfigStore(MonitoredRedisConnection(connection_pool=pool))

    async def serve(db):
        async with pool:
            await store.set("redis", "logs", {"db": db})
            answer = await store.get("redis", "logs")
        with pytest.raises(redis.exceptions.ConnectionError, match="is closed"):
            await store.get("redis", "logs", wait=0)
        return answer

    assert [{"db": 1}, {"db": 2}] == [asyncio.run(serve(db)) for db in (1, 2)]
