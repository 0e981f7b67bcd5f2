"""The calls that taskiq-redis makes; its sdist has no tests."""

import asyncio
import datetime as dt
import os
import uuid
from contextlib import asynccontextmanager

import pytest
from taskiq import BrokerMessage, ScheduledTask
from taskiq.api import run_receiver_task
from taskiq_redis import (
    ListQueueBroker,
    ListRedisScheduleSource,
    PubSubBroker,
    RedisAsyncResultBackend,
    RedisScheduleSource,
    RedisStreamBroker,
)
from taskiq_redis.exceptions import ResultIsMissingError

URL = os.environ["COMPAT_URL"]
BROKERS = {"list": ListQueueBroker, "pubsub": PubSubBroker, "stream": RedisStreamBroker}


def message(text=b"text", **labels):
    return BrokerMessage(task_id=uuid.uuid4().hex, task_name="task", message=text, labels=labels)


@pytest.fixture
def name():
    return uuid.uuid4().hex


@pytest.fixture(params=BROKERS)
async def broker(request, name):
    made = BROKERS[request.param](URL, queue_name=name)
    await made.startup()
    yield made
    await made.shutdown()


@pytest.fixture
async def results(name):
    made = RedisAsyncResultBackend(URL, prefix_str=name, result_ex_time=60)
    await made.startup()
    yield made
    await made.shutdown()


@asynccontextmanager
async def listening(broker, count):
    """Give a task that returns the broker's next messages."""

    async def listen():
        found = []
        async for received in broker.listen():
            is_bytes = isinstance(received, bytes)
            found.append(received if is_bytes else received.data)
            if not is_bytes:
                await received.ack()
            if len(found) == count:
                return found
        return found

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.3)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_messages_are_sent_and_received(broker):
    async with listening(broker, 20) as receiving:
        for number in range(20):
            await broker.kick(message(str(number).encode()))
        async with asyncio.timeout(20):
            received = await receiving
    assert sorted(received) == sorted(str(number).encode() for number in range(20))


async def test_a_message_may_name_its_queue(broker, name):
    other = type(broker)(URL, queue_name=f"{name}-other")
    await other.startup()
    async with listening(other, 1) as receiving:
        await broker.kick(message(b"elsewhere", queue_name=f"{name}-other"))
        async with asyncio.timeout(20):
            assert await receiving == [b"elsewhere"]
    await other.shutdown()


async def test_a_broker_that_waits_can_be_cancelled(broker):
    async with listening(broker, 1) as receiving:
        receiving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await receiving


async def test_many_messages_at_once(broker):
    async with listening(broker, 100) as receiving:
        await asyncio.gather(*(broker.kick(message(b"%d" % number)) for number in range(100)))
        async with asyncio.timeout(30):
            assert len(await receiving) == 100


async def test_unacknowledged_messages_are_claimed(name):
    first, second = (
        RedisStreamBroker(URL, queue_name=name, consumer_name=consumer, idle_timeout=1, xread_block=100)
        for consumer in ("one", "two")
    )
    await first.startup()
    await first.kick(message(b"kept"))
    async with asyncio.timeout(20):
        assert (await anext(first.listen())).data == b"kept"
    await asyncio.sleep(0.1)
    await second.startup()
    await second.kick(message(b"new"))
    async with asyncio.timeout(20):
        stream = second.listen()
        received = [await anext(stream) for _ in range(2)]
    assert sorted(each.data for each in received) == [b"kept", b"new"]
    await first.shutdown()
    await second.shutdown()


@pytest.mark.parametrize("kind", ["list", "stream"])
async def test_a_workers_tasks_return_results(kind, name, results):
    broker = BROKERS[kind](URL, queue_name=name).with_result_backend(results)

    @broker.task
    async def double(number: int) -> int:
        return 2 * number

    await broker.startup()
    worker = asyncio.create_task(run_receiver_task(broker))
    await asyncio.sleep(0.3)
    tasks = [await double.kiq(number) for number in range(10)]
    found = [await task.wait_result(timeout=20) for task in tasks]
    assert [result.return_value for result in found] == [2 * number for number in range(10)]
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await broker.shutdown()


async def test_results_are_kept(results):
    from taskiq import TaskiqResult

    assert await results.is_result_ready("task") is False
    with pytest.raises(ResultIsMissingError):
        await results.get_result("task")
    await results.set_result("task", TaskiqResult(is_err=False, log="lines", return_value={"a": 1}, execution_time=1))
    assert await results.is_result_ready("task") is True
    assert (await results.get_result("task")).return_value == {"a": 1}
    assert (await results.get_result("task", with_logs=True)).log == "lines"


async def test_results_that_are_read_once(name):
    from taskiq import TaskiqResult

    results = RedisAsyncResultBackend(URL, prefix_str=name, keep_results=False, result_px_time=60_000)
    await results.set_result("task", TaskiqResult(is_err=False, log=None, return_value=1, execution_time=1))
    assert (await results.get_result("task")).return_value == 1
    with pytest.raises(ResultIsMissingError):
        await results.get_result("task")
    await results.shutdown()


async def test_progress(results):
    from taskiq.depends.progress_tracker import TaskProgress, TaskState

    assert await results.get_progress("task") is None
    await results.set_progress("task", TaskProgress(state=TaskState.STARTED, meta="half"))
    assert (await results.get_progress("task")).meta == "half"


def scheduled(**when):
    return ScheduledTask(task_name="task", labels={}, args=[], kwargs={}, schedule_id=uuid.uuid4().hex, **when)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [RedisScheduleSource, ListRedisScheduleSource])
async def test_schedules(kind, name):
    source = kind(URL, prefix=name)
    await source.startup()
    due = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    cron, once = scheduled(cron="* * * * *"), scheduled(time=due)
    for schedule in (cron, once):
        await source.add_schedule(schedule)
    found = await source.get_schedules()
    assert {each.schedule_id for each in found} == {cron.schedule_id, once.schedule_id}
    await source.post_send(once)
    await source.delete_schedule(cron.schedule_id)
    assert await source.get_schedules() == []
    await source.shutdown()
