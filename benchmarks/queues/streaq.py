"""Adapter of streaQ: a worker with a no-op task.

Results are not kept (``ttl``), and nothing is logged (``silent``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import streaq
from queue_meter import Handler, Queue, QueueMeasurement


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a worker that puts; another one consumes, as a worker cannot be entered twice."""
    worker, job = with_job(measurement)

    async def put(messages: list[bytes]) -> None:
        await worker.enqueue_many([job.enqueue(message) for message in messages])

    async def consume(handler: Handler) -> None:
        consumer, _ = with_job(measurement, handler)
        await consumer.run_async()

    async with worker:
        yield Queue(f"streaQ {version('streaq')}", put, consume, worker.queue_size)


def with_job(measurement: QueueMeasurement, handler: Handler | None = None) -> tuple[streaq.Worker, Any]:
    """Return a worker and its task."""
    worker = streaq.Worker(redis_url=measurement.url, concurrency=measurement.callers, handle_signals=False)

    @worker.task(name="job", ttl=0, silent=True)
    async def job(message: bytes) -> None:
        handler.one(message)

    return worker, job
