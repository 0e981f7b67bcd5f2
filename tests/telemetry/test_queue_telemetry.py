"""A queue's telemetry: spans by the messaging conventions, their metrics, and the number of messages."""

import asyncio
import gc
import inspect

import pytest
import redis.asyncio
from opentelemetry.trace import NoOpTracerProvider, SpanKind
from support.sharing import begun

from aioredis_monitored import LeaseLostError, MessageQueue, MonitoredRedisConnection, TelemetryOptions, TimedOutError
from aioredis_monitored.envelope import seal

OPERATION, QUEUE, ERROR = "messaging.operation.name", "messaging.destination.name", "error.type"
COUNT = "messaging.batch.message_count"
SENT, CONSUMED = "messaging.client.sent.messages", "messaging.client.consumed.messages"
DURATION, PROCESS = "messaging.client.operation.duration", "messaging.process.duration"
DEPTH, IN_FLIGHT, DEAD, RECOVERED, LEASE_LOST, UNSETTLED, TIME = (
    f"aioredis_monitored.queue.{name}"
    for name in ("depth", "in_flight", "dead", "recovered", "lease_lost", "unsettled", "time")
)


@pytest.fixture
def queue(pool):
    return MessageQueue("mail", pool, lease=1, max_deliveries=2)


@pytest.fixture
def propagating(pool):
    return MessageQueue("mail", pool, lease=1, propagate=True)


async def test_ack_reaches_executor_in_at_most_six_calls(queue, pool, monkeypatch):
    send, hops = pool.multiplexer.send, []

    def record_frames(*args):
        frame = inspect.currentframe().f_back
        while frame.f_code.co_name != "__aexit__":
            hops.append(frame.f_code.co_filename)
            frame = frame.f_back
        return send(*args)

    await queue.put_many([b"first", b"second"])
    async with queue.take():
        # The server loads the scripts.
        pass
    async with queue.take():
        monkeypatch.setattr(pool.multiplexer, "send", record_frames)
    assert all("aioredis_monitored" in hop for hop in hops)
    while "_execution" in hops[0]:
        del hops[0]

    assert len(hops) <= 6


async def test_queue_message_records_send_receive_process_and_ack_spans(queue, telemetry, client):
    await queue.put(b"message")
    async with queue.take():
        await client.get("key")

    assert ["RPUSH", "receive mail", "process mail kind=CONSUMER", "  GET", "ack mail"] == telemetry.tree().splitlines()
    for name, operation, kind in (
        ("RPUSH", "send", "send"),
        ("receive mail", "receive", "receive"),
        ("process mail", "process", "process"),
        ("ack mail", "ack", "settle"),
    ):
        (span,) = [span for span in telemetry.spans if span.name.startswith(name)]
        messaging_attributes = {key: value for key, value in span.attributes.items() if key.startswith("messaging.")}
        assert {
            "messaging.system": "redis",
            OPERATION: operation,
            "messaging.operation.type": kind,
            QUEUE: "mail",
        } == messaging_attributes


async def test_failed_take_records_process_error_and_nack_span(queue, telemetry):
    await queue.put_many([b"1", b"2"])
    with pytest.raises(LookupError):
        async with queue.take_many(5):
            raise LookupError("secret")

    assert [
        f"RPUSH {COUNT}=2",
        f"receive mail {COUNT}=2",
        "process mail kind=CONSUMER status=ERROR error.type=LookupError",
        f"nack mail {COUNT}=2",
    ] == telemetry.tree(COUNT, ERROR).splitlines()


async def test_receive_and_process_spans_link_to_send_span(propagating, telemetry):
    for _ in range(2):
        await propagating.put(b"message")
    assert b"message" == await propagating.get()
    async with propagating.take() as message:
        assert b"message" == message

    first, second = (span for span in telemetry.spans if span.name == "send mail")
    assert {SpanKind.PRODUCER} == {first.kind, second.kind}
    sent = [[first], [second], [second]]
    received = [span for span in telemetry.spans if span.name in {"receive mail", "process mail"}]
    assert [[span.context.span_id for span in spans] for spans in sent] == [
        [link.context.span_id for link in span.links] for span in received
    ]


async def test_process_span_has_one_link_per_message(propagating, telemetry):
    await propagating.put(b"1")
    await propagating.put_many([b"2", b"3"])
    async with propagating.take_many(5) as messages:
        assert [b"1", b"2", b"3"] == messages

    links = [link.context.span_id for link in telemetry.span("process mail").links]
    first, second = (span.context.span_id for span in telemetry.spans if span.name == "send mail")
    assert [first, second, second] == links


async def test_queue_get_unwraps_envelopes_and_passes_plain_messages(propagating, queue, client):
    await propagating.put("text")
    await client.rpush("mail", b"plain", b"\x01aioredis_monitored/1 is how this begins")
    raw = await client.lindex("mail", 0)

    assert raw.endswith(b"text")
    assert len(raw) > len(b"text")
    assert [b"text", b"plain", b"\x01aioredis_monitored/1 is how this begins"] == await queue.get_many(5)


async def test_dead_and_requeued_message_keeps_its_envelope(propagating, pool, client):
    queue = MessageQueue("mail", pool, max_deliveries=1)
    await propagating.put(b"message")
    raw = await client.lindex("mail", 0)
    with pytest.raises(LookupError):
        async with queue.take():
            raise LookupError

    assert ([b"message"], raw) == (await queue.dead(), await client.lindex("{mail}:dead", 0))
    assert 1 == await queue.requeue_dead()
    assert raw == await client.lindex("mail", 0)


async def test_propagating_queue_works_on_redis_py_client(server, client):
    async with redis.asyncio.Redis.from_url(server.url) as plain:
        queue = MessageQueue("mail", plain, propagate=True)
        await queue.put(b"message")

        assert b"message" == await queue.get()


async def test_queue_rejects_client_that_overrides_execute_command(pool):
    class Prefixing(MonitoredRedisConnection):
        async def execute_command(self, name, key, *args, **options):
            return await super().execute_command(name, f"app:{key}", *args, **options)

    with pytest.raises(TypeError, match="Prefixing overrides execute_command, which a queue bypasses"):
        MessageQueue("mail", Prefixing(connection_pool=pool))


async def test_messaging_metrics_count_send_receive_process_and_settle(queue, telemetry):
    await queue.put(b"1")
    await queue.put_many([b"2", b"3"])
    await queue.get()
    async with queue.take():
        pass
    with pytest.raises(LookupError):
        async with queue.take():
            raise LookupError
    async with queue.take_many(2, 0):
        pass
    with pytest.raises(TimedOutError):
        await queue.take_many(2, 0).__aenter__()

    counts = {name: telemetry.tally(name, OPERATION, QUEUE, ERROR) for name in (SENT, CONSUMED, DURATION, PROCESS)}
    assert {
        SENT: {"send mail": 3},
        CONSUMED: {"receive mail": 4},
        DURATION: {"send mail": 2, "receive mail": 5, "ack mail": 2, "nack mail": 1},
        PROCESS: {"process mail": 2, "process mail LookupError": 1},
    } == counts


async def test_sent_messages_counts_failed_put_with_error_type(queue, telemetry, client):
    await client.set("mail", "no list")
    with pytest.raises(redis.exceptions.ResponseError):
        await queue.put(b"message")

    assert {"send mail WRONGTYPE": 1} == telemetry.tally(SENT, OPERATION, QUEUE, ERROR)


async def test_bounded_put_records_one_span_while_queue_is_full(pool, telemetry, until):
    queue = MessageQueue("mail", pool, max_length=1)
    await queue.put(b"1")
    (waiting,) = await begun(queue.put(b"2"))
    await until(lambda: telemetry.tally("db.client.operation.duration", "db.operation.name")["EVALSHA"] >= 3)
    await queue.get()
    await waiting

    assert ["send mail kind=PRODUCER", "send mail kind=PRODUCER", "BLPOP"] == telemetry.tree().splitlines()
    assert {"BLPOP", "EVALSHA"} == telemetry.tally("db.client.operation.duration", "db.operation.name").keys()


async def test_queue_script_loading_records_no_error(queue, telemetry, client):
    await queue.put(b"message")
    async with queue.take():
        pass

    assert {} == {name: count for name, count in telemetry.tally(DURATION, ERROR).items() if name}


async def test_queue_gauges_report_depth_in_flight_and_dead(queue, telemetry, until, client):
    await queue.put_many([b"1", b"2", b"3"])
    assert {"test mail": 3} == telemetry.tally(DEPTH, "db.client.connection.pool.name", QUEUE)
    async with queue.take_many(2):
        assert {"mail": 2} == telemetry.tally(IN_FLIGHT, QUEUE)
        # The lease renewal reads the other numbers.
        await client.rpush("{mail}:dead", "dead")
        await until(lambda: {"mail": 1} == telemetry.tally(DEAD, QUEUE) == telemetry.tally(DEPTH, QUEUE))

    assert {"mail": 0} == telemetry.tally(IN_FLIGHT, QUEUE)


async def test_in_flight_gauge_is_zero_after_queue_is_collected(queue, pool, telemetry):
    other = MessageQueue("other", pool)
    await other.put(b"message")
    async with other.take():
        pass
    del other
    gc.collect()

    assert {"other": 0} == {key: count for key, count in telemetry.tally(IN_FLIGHT, QUEUE).items() if key == "other"}


async def test_queue_counters_count_recovered_and_lost_leases(queue, telemetry, client, until):
    assert {"mail": 0} == telemetry.tally(RECOVERED, QUEUE) == telemetry.tally(LEASE_LOST, QUEUE)
    await queue.put(b"message")
    # A dead consumer's messages.
    await client.zadd("{mail}:c", {"dead": 0})
    await client.rpush("{mail}:p:dead", b"left", b"left")

    async def lose_lease():
        async with queue.take():
            (taken,) = set(await client.keys("{mail}:p:*")) - {b"{mail}:p:dead"}
            await client.delete(taken)
            await until(lambda: telemetry.tally(RECOVERED, QUEUE) == {"mail": 2})

    with pytest.raises(LeaseLostError, match="queue 'mail': 1 of 1 messages were no longer held"):
        await lose_lease()
    assert {"mail": 1} == telemetry.tally(LEASE_LOST, QUEUE)


async def test_queue_time_is_recorded_for_messages_with_envelope(propagating, queue, telemetry):
    await propagating.put(b"message")
    await queue.put(b"without an envelope")
    await queue.get_many(2)

    point = telemetry.point(TIME)
    assert 1 == point.count
    assert 0 <= point.sum < 10


@pytest.mark.parametrize(
    ("options", "name", "messaging_attributes"),
    [
        ({"show_keys": False}, "receive", {}),
        ({"key_template": lambda _: "{queue}"}, "receive {queue}", {"messaging.destination.template": "{queue}"}),
        ({"span_name": lambda attributes: attributes[OPERATION]}, "receive", {QUEUE: "mail"}),
    ],
)
async def test_queue_spans_apply_telemetry_options(make_pool, server, telemetry, options, name, messaging_attributes):
    pool = make_pool(server.url, telemetry=TelemetryOptions(**options))
    queue = MessageQueue("mail", pool)
    await queue.put(b"message")
    async with queue.take():
        pass

    (received,) = [span for span in telemetry.spans if span.attributes.get(OPERATION) == "receive"]
    destination = {key: value for key, value in received.attributes.items() if ".destination." in key}
    assert received.name in {name, f"{name} {server.host}:{server.port}"}
    assert messaging_attributes == destination
    assert ("mail" in str(dict(received.attributes))) == (name != "receive {queue}" and options != {"show_keys": False})


async def test_worker_spans_have_no_parent(queue, telemetry, until):
    async def handle(message):
        handled.append(message)

    handled = []
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("startup"):
        working = asyncio.create_task(queue.consume(handle, concurrency=2))
    await queue.put(b"message")
    await until(lambda: telemetry.tally(DURATION, OPERATION).get("ack"))
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)

    parents = {span.name.partition(" ")[0]: span.parent for span in telemetry.spans}
    assert {"startup": None, "RPUSH": None, "receive": None, "process": None, "ack": None} == parents


@pytest.mark.parametrize("sent_at", ["-1e300", "nan", "text"])
async def test_time_in_an_envelope_that_is_no_time_is_not_recorded(queue, client, telemetry, sent_at):
    await client.rpush("mail", seal(b"message", {"aioredis-monitored-sent-at": sent_at}))

    assert b"message" == await queue.get(5)
    assert [] == telemetry.points(TIME)


async def test_queue_is_measured_while_nothing_is_traced(make_pool, server, telemetry):
    queue = MessageQueue("mail", make_pool(server.url, tracer_provider=NoOpTracerProvider()), propagate=True)
    await queue.put(b"message")

    assert b"message" == await queue.get(5)
    assert 1 == telemetry.point(TIME).count
    assert () == telemetry.spans
