"""The calls that BullMQ makes; its sdist has no tests but one of its imports."""

import asyncio
import os
import uuid

import pytest
import redis.asyncio
from bullmq import FlowProducer, Queue, QueueEvents, Worker

URL = os.environ["COMPAT_URL"]
ADDRESS = {"host": os.environ["COMPAT_HOST"], "port": int(os.environ["COMPAT_PORT"])}


@pytest.fixture(params=["url", "arguments", "client"])
async def connection(request):
    if request.param != "client":
        yield URL if request.param == "url" else ADDRESS
        return
    client = redis.asyncio.Redis.from_url(URL, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def queue(connection):
    name = f"queue-{uuid.uuid4().hex}"
    queue = Queue(name, {"connection": connection})
    yield queue
    # A queue closes a client that it was given.
    closing = Queue(name, {"connection": URL})
    await closing.pause()
    await closing.obliterate(force=True)
    await closing.close()
    await queue.close()


class Done:
    """Counts a worker's events; tests wait for them."""

    def __init__(self, worker, count, event="completed"):
        self.jobs, self.enough = [], asyncio.Event()
        worker.on(event, self.on_job)
        self.count = count

    def on_job(self, job, *results):
        self.jobs.append((job, *results))
        if len(self.jobs) == self.count:
            self.enough.set()

    async def wait(self):
        async with asyncio.timeout(30):
            await self.enough.wait()
        return self.jobs


async def test_jobs_are_added_and_counted(queue):
    job = await queue.add("paint", {"color": "red"}, {"removeOnComplete": True})
    await queue.addBulk([{"name": "paint", "data": {"n": n}} for n in range(3)])
    await queue.add("late", {}, {"delay": 60_000})
    await queue.add("first", {}, {"priority": 1})
    counts = await queue.getJobCounts("wait", "delayed", "prioritized", "active", "completed", "failed")
    assert (4, 1, 1, 0) == tuple(counts[kind] for kind in ("wait", "delayed", "prioritized", "active"))
    assert {"color": "red"} == (await queue.getJob(job.id)).data
    assert "waiting" == await queue.getJobState(job.id)
    assert 4 == len(await queue.getWaiting())
    await job.updateProgress(42)
    assert 42 == (await queue.getJob(job.id)).progress
    assert 1 == await job.log("a line")
    assert ["a line"] == (await queue.getJobLogs(job.id))["logs"]
    await job.remove()
    assert await queue.getJob(job.id) is None


async def test_pause_and_drain(queue):
    await queue.pause()
    assert await queue.isPaused()
    await queue.add("paint", {})
    await queue.resume()
    assert not await queue.isPaused()
    await queue.drain()
    assert 0 == (await queue.getJobCounts("wait"))["wait"]


async def test_a_workers_jobs_complete(queue):
    async def process(job, token):
        return {"doubled": job.data["n"] * 2}

    jobs = await queue.addBulk([{"name": "double", "data": {"n": n}} for n in range(20)])
    worker = Worker(queue.name, process, {"connection": URL, "concurrency": 5})
    results = await Done(worker, 20).wait()
    assert sorted(result["doubled"] for _, result in results) == [2 * n for n in range(20)]
    assert 20 == await queue.getCompletedCount()
    assert await (await queue.getJob(jobs[3].id)).isCompleted()
    await worker.close()


async def test_a_worker_waits_for_jobs(queue):
    async def process(job, token):
        return job.data

    worker = Worker(queue.name, process, {"connection": URL, "drainDelay": 1})
    done = Done(worker, 3)
    for n in range(3):
        await asyncio.sleep(0.7)
        await queue.add("echo", {"n": n})
    assert [{"n": n} for n in range(3)] == [result for _, result in await done.wait()]
    await worker.close()


async def test_a_worker_that_waits_for_jobs_can_be_closed(queue):
    async def process(job, token):
        return None

    worker = Worker(queue.name, process, {"connection": URL, "name": "mine"})
    await asyncio.sleep(0.5)
    async with asyncio.timeout(30):
        await worker.close()


async def test_what_fails_is_tried_again(queue):
    attempts = []

    async def process(job, token):
        attempts.append(job.attemptsMade)
        if len(attempts) < 3:
            raise ValueError("not yet")
        return "done"

    await queue.add("stubborn", {}, {"attempts": 3, "backoff": 100})
    worker = Worker(queue.name, process, {"connection": URL})
    ((_, result),) = await Done(worker, 1).wait()
    assert ("done", 3) == (result, len(attempts))
    await worker.close()


async def test_what_fails_at_last_is_kept(queue):
    async def process(job, token):
        raise ValueError("no")

    added = await queue.add("hopeless", {})
    worker = Worker(queue.name, process, {"connection": URL})
    await Done(worker, 1, "failed").wait()
    job = await queue.getJob(added.id)
    assert ("no", True) == (job.failedReason, await job.isFailed())
    await worker.close()
    await job.retry()
    assert 1 == (await queue.getJobCounts("wait"))["wait"]


async def test_delayed_and_prioritized_jobs_come_in_their_order(queue):
    order = []

    async def process(job, token):
        order.append(job.name)

    await queue.add("low", {}, {"priority": 10})
    await queue.add("high", {}, {"priority": 1})
    await queue.add("delayed", {}, {"delay": 500})
    worker = Worker(queue.name, process, {"connection": URL})
    await Done(worker, 3).wait()
    assert ["high", "low", "delayed"] == order
    await worker.close()


async def test_a_flow_waits_for_its_children(queue):
    async def process(job, token):
        if job.name == "parent":
            return sorted((await job.getChildrenValues()).values())
        return job.data["n"]

    flow = FlowProducer(redisOpts={"connection": URL}) if False else FlowProducer({"connection": URL})
    children = [{"name": "child", "data": {"n": n}, "queueName": queue.name} for n in range(3)]
    await flow.add({"name": "parent", "queueName": queue.name, "data": {}, "children": children})
    worker = Worker(queue.name, process, {"connection": URL})
    results = await Done(worker, 4).wait()
    assert [0, 1, 2] == next(result for job, result in results if job.name == "parent")
    await worker.close()
    await flow.close()


async def test_events_tell_of_jobs(queue):
    events = QueueEvents(queue.name, {"connection": URL, "blockingTimeout": 500, "lastEventId": "0"})
    seen, enough = [], asyncio.Event()

    def completed(*args):
        seen.append(args)
        enough.set()

    events.on("completed", completed)

    async def process(job, token):
        return "result"

    await queue.add("paint", {})
    worker = Worker(queue.name, process, {"connection": URL})
    async with asyncio.timeout(30):
        await enough.wait()
    assert 1 == len(seen)
    await worker.close()
    await events.close()


async def test_schedulers(queue):
    await queue.upsertJobScheduler("tick", {"every": 60_000}, "tick", {"n": 1})
    assert 1 == await queue.getJobSchedulersCount()
    assert "tick" == (await queue.getJobSchedulers())[0]["key"]
    await queue.removeJobScheduler("tick")
    assert 0 == await queue.getJobSchedulersCount()


async def test_workers_are_found_by_their_names(queue):
    async def process(job, token):
        return None

    worker = Worker(queue.name, process, {"connection": URL, "name": "mine"})
    await queue.add("paint", {})
    await Done(worker, 1).wait()
    assert 1 <= await queue.get_workers_count()
    await worker.close()
