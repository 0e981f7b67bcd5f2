"""Adapter of SAQ: a worker with a no-op job.

Results are not kept (``ttl``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import saq
from queue_meter import Handler, Queue, QueueMeasurement

DISCARD_RESULT = -1


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a queue."""
    queue = saq.Queue.from_url(measurement.url)
    await queue.connect()

    async def put(messages: list[bytes]) -> None:
        for message in messages:
            await queue.enqueue("job", message=message.decode(), ttl=DISCARD_RESULT)

    async def consume(handler: Handler) -> None:
        async def job(_context: dict[str, Any], *, message: str) -> None:
            handler.one(message)

        await saq.Worker(queue, [("job", job)], concurrency=measurement.callers).start()

    try:
        yield Queue(f"SAQ {version('saq')}", put, consume, remaining=lambda: queue.count("incomplete"))
    finally:
        await queue.disconnect()
