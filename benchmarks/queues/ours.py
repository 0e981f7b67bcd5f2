"""This package's queue, without an SDK: one at a time or a hundred, at most once or at least once."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from queue_meter import Asked, Handler, Queue, together

from aioredis_monitored import MessageQueue, MonitoredConnectionPool

BATCH = 100


@asynccontextmanager
async def connect(asked: Asked) -> AsyncIterator[Queue]:
    """Connect; the variant is the method to measure."""
    method = asked.variant
    async with MonitoredConnectionPool.from_url(asked.url) as pool, MessageQueue("bench", pool) as queue:

        async def put(messages: list[bytes]) -> None:
            if method == "put_many":
                await queue.put_many(messages)
            elif len(messages) == 1:
                await queue.put(messages[0])
            else:  # filling, which nobody measures
                await queue.client.rpush(queue.name, *messages)

        async def consume(handler: Handler) -> None:
            if method == "consume":

                async def handle(message: bytes) -> None:
                    handler.one(message)

                await queue.consume(handle, concurrency=asked.callers)
            else:
                await together(asked.callers, consumer(queue, method, handler))

        yield Queue(
            f"aioredis_monitored {version('aioredis_monitored')}",
            put,
            consume,
            left=lambda: left(queue),
            batch=BATCH if method == "put_many" else 1,
        )


def consumer(queue: MessageQueue, method: str, handler: Handler) -> Callable[[], Awaitable[Any]]:
    """A loop over this method."""

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


async def left(queue: MessageQueue) -> int:
    """The messages in all lists: also those that are taken are in one."""
    lists = [key async for key in queue.client.scan_iter(_type="list")]
    return sum([await queue.client.llen(key) for key in lists])
