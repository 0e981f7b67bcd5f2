"""Adapter of this package's queue without an SDK: single messages or batches of 100, at most or at least once."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from queue_meter import Handler, Queue, QueueMeasurement, run_concurrently

from aioredis_monitored import MessageQueue, MonitoredConnectionPool

BATCH = 100


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect; the variant is the method to measure."""
    method = measurement.variant
    async with MonitoredConnectionPool.from_url(measurement.url) as pool, MessageQueue("bench", pool) as queue:

        async def put(messages: list[bytes]) -> None:
            if method == "put_many":
                await queue.put_many(messages)
            elif len(messages) == 1:
                await queue.put(messages[0])
            else:  # filling is not measured
                await queue.client.rpush(queue.name, *messages)

        async def consume(handler: Handler) -> None:
            if method == "consume":

                async def handle(message: bytes) -> None:
                    handler.one(message)

                await queue.consume(handle, concurrency=measurement.callers)
            else:
                await run_concurrently(measurement.callers, consumer(queue, method, handler))

        yield Queue(
            f"aioredis_monitored {version('aioredis_monitored')}",
            put,
            consume,
            remaining=lambda: remaining(queue),
            batch=BATCH if method == "put_many" else 1,
        )


def consumer(queue: MessageQueue, method: str, handler: Handler) -> Callable[[], Awaitable[Any]]:
    """Return a coroutine function that calls this method in a loop."""

    async def get() -> None:
        while True:
            handler.one(await queue.get())

    async def get_many() -> None:
        while True:
            handler.many(await queue.get_many(BATCH))

    async def take() -> None:
        while True:
            async with queue.take() as message:
                handler.one(message)

    async def take_many() -> None:
        while True:
            async with queue.take_many(BATCH) as messages:
                handler.many(messages)

    return {"get": get, "get_many": get_many, "take": take, "take_many": take_many}[method]


async def remaining(queue: MessageQueue) -> int:
    """Return the number of messages in all lists; held messages are in one, too."""
    lists = [key async for key in queue.client.scan_iter(_type="list")]
    return sum([await queue.client.llen(key) for key in lists])
