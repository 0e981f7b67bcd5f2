"""The calls that FastStream makes; its sdist has no tests."""

import asyncio
import os
import uuid

import pytest
from faststream.redis import ListSub, PubSub, RedisBroker, StreamSub

URL = os.environ["COMPAT_URL"]


@pytest.fixture
def name():
    return uuid.uuid4().hex


@pytest.fixture
def broker():
    return RedisBroker(URL, apply_types=False)


class Received:
    """What a subscriber got; tests wait for it."""

    def __init__(self):
        self.messages = []

    async def __call__(self, message):
        self.messages.append(message)

    async def wait(self, count):
        async with asyncio.timeout(20):
            while len(self.messages) < count:
                await asyncio.sleep(0.01)
        return self.messages


def subscribe(broker, **where):
    received = Received()

    @broker.subscriber(**where)
    async def handle(message):
        await received(message)

    return received


def places(name):
    return {
        "channel": ({"channel": name}, {"channel": name}),
        "pattern": ({"channel": PubSub(f"{name}.*", pattern=True)}, {"channel": f"{name}.logs"}),
        "list": ({"list": name}, {"list": name}),
        "stream": ({"stream": name}, {"stream": name}),
        "group": ({"stream": StreamSub(name, group="workers", consumer="one")}, {"stream": name}),
    }


KINDS = ["channel", "pattern", "list", "stream", "group"]


@pytest.mark.parametrize("kind", KINDS)
async def test_messages_are_published_and_received(broker, name, kind):
    where, to = places(name)[kind]
    received = subscribe(broker, **where)
    async with broker:
        await broker.start()
        await asyncio.sleep(0.3)
        for number in range(10):
            await broker.publish({"number": number}, **to)
        assert await received.wait(10) == [{"number": number} for number in range(10)]


@pytest.mark.parametrize("kind", ["list", "stream"])
async def test_batches(broker, name, kind):
    made = {"list": ListSub(name, batch=True, max_records=5), "stream": StreamSub(name, batch=True)}[kind]
    received = subscribe(broker, **{kind: made})
    async with broker:
        await broker.start()
        await asyncio.sleep(0.3)
        if kind == "list":
            await broker.publish_batch("one", "two", "three", list=name)
        else:
            for text in ("one", "two", "three"):
                await broker.publish(text, stream=name)
        async with asyncio.timeout(20):
            while sum(map(len, received.messages)) < 3:
                await asyncio.sleep(0.01)
    assert [text for batch in received.messages for text in batch] == ["one", "two", "three"]


@pytest.mark.parametrize("kind", ["channel", "list", "stream"])
async def test_requests_are_answered(broker, name, kind):
    @broker.subscriber(**{kind: name})
    async def double(number):
        return 2 * number

    async with broker:
        await broker.start()
        await asyncio.sleep(0.3)
        answers = [await broker.request(number, timeout=20, **{kind: name}) for number in range(3)]
        assert [await answer.decode() for answer in answers] == [0, 2, 4]


async def test_a_handlers_result_is_published(broker, name):
    received = subscribe(broker, channel=f"{name}-out")

    @broker.subscriber(name)
    @broker.publisher(f"{name}-out")
    async def pass_on(message):
        return message.upper()

    async with broker:
        await broker.start()
        await asyncio.sleep(0.3)
        await broker.publish("text", name)
        assert await received.wait(1) == ["TEXT"]


async def test_messages_are_sent_through_a_pipeline(broker, name):
    received = subscribe(broker, list=name)
    async with broker:
        await broker.start()
        client = await broker.connect()
        async with client.pipeline() as pipe:
            for number in range(5):
                await broker.publish(number, list=name, pipeline=pipe)
            await pipe.execute()
        assert sorted(await received.wait(5)) == list(range(5))


async def test_a_group_reads_each_message_once(name):
    brokers = [RedisBroker(URL, apply_types=False) for _ in range(2)]
    received = [
        subscribe(broker, stream=StreamSub(name, group="workers", consumer=f"consumer-{number}"))
        for number, broker in enumerate(brokers)
    ]
    for broker in brokers:
        await broker.start()
    await asyncio.sleep(0.3)
    for number in range(20):
        await brokers[0].publish(number, stream=name)
    async with asyncio.timeout(20):
        while sum(len(each.messages) for each in received) < 20:
            await asyncio.sleep(0.01)
    assert sorted(number for each in received for number in each.messages) == list(range(20))
    for broker in brokers:
        await broker.stop()


@pytest.mark.parametrize("kind", ["channel", "list", "stream"])
async def test_one_message_is_asked_for(broker, name, kind):
    subscriber = broker.subscriber(**{kind: name})
    async with broker:
        await broker.start()
        asking = asyncio.create_task(subscriber.get_one(timeout=20))
        await asyncio.sleep(0.3)
        await broker.publish("text", **{kind: name})
        assert await (await asking).decode() == "text"
        assert await subscriber.get_one(timeout=0.2) is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_broker_that_waits_stops_and_starts_again(broker, name, kind):
    where, to = places(name)[kind]
    received = subscribe(broker, **where)
    for number in range(2):
        await broker.start()
        await asyncio.sleep(0.3)
        async with asyncio.timeout(20):
            await broker.publish(number, **to)
            await received.wait(number + 1)
            await broker.stop()
    assert received.messages == [0, 1]


async def test_ping(broker):
    async with broker:
        await broker.start()
        assert await broker.ping(timeout=5)
