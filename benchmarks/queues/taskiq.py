"""Adapter of taskiq: taskiq-redis's broker that acknowledges, and a no-op task.

There is no result backend, which is the default. Arguments are not parsed (``taskiq worker --no-parse``), and as many
messages are prefetched as tasks may run.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from queue_meter import Handler, Queue, QueueMeasurement
from redis.asyncio import Redis
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a broker, which creates the consumer group; earlier messages would not be delivered."""
    broker = RedisStreamBroker(measurement.url)
    handlers: list[Handler] = []

    @broker.task(task_name="job")
    async def job(message: str) -> None:
        handlers[0].one(message)

    async def put(messages: list[bytes]) -> None:
        for message in messages:
            await job.kiq(message.decode())

    async def consume(handler: Handler) -> None:
        handlers.append(handler)
        receiver = Receiver(
            broker,
            validate_params=False,
            max_async_tasks=measurement.callers,
            max_prefetch=measurement.callers,
            run_startup=False,
        )
        await receiver.listen(asyncio.Event())

    async with Redis.from_url(measurement.url) as client:

        async def remaining() -> int:
            (group,) = await client.xinfo_groups(broker.queue_name)
            return group["pending"] + group["lag"]

        await broker.startup()
        yield Queue(f"taskiq-redis {version('taskiq-redis')}", put, consume, remaining)
        await broker.shutdown()
