"""streaQ: a worker with a no-op task.

Results are not kept (``ttl``), and nothing is logged (``silent``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import streaq
from queue_meter import Asked, Handler, Queue


@asynccontextmanager
async def connect(asked: Asked) -> AsyncIterator[Queue]:
    """A worker to put by; what it consumes by is another, for none can be entered twice."""
    worker, job = with_job(asked)

    async def put(messages: list[bytes]) -> None:
        await worker.enqueue_many([job.enqueue(message) for message in messages])

    async def consume(handler: Handler) -> None:
        consumer, _ = with_job(asked, handler)
        await consumer.run_async()

    async with worker:
        yield Queue(f"streaQ {version('streaq')}", put, consume, worker.queue_size)


def with_job(asked: Asked, handler: Handler | None = None) -> tuple[streaq.Worker, Any]:
    """A worker, and its task."""
    worker = streaq.Worker(redis_url=asked.url, concurrency=asked.callers, handle_signals=False)

    @worker.task(name="job", ttl=0, silent=True)
    async def job(message: bytes) -> None:
        handler.one(message)

    return worker, job
