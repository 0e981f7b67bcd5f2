"""Adapter of RQ: a worker that does not fork, with a no-op job. It runs one job at a time, and does not await.

Results are not kept (``result_ttl``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import rq
from queue_meter import Handler, Queue, QueueMeasurement
from redis import Redis

handlers: list[Handler] = []


def job(message: bytes) -> None:
    """Handle a message; the worker imports this job by name."""
    handlers[0].one(message)


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a queue."""
    with Redis.from_url(measurement.url) as client:
        queue = rq.Queue(connection=client)

        async def put(messages: list[bytes]) -> None:
            queue.enqueue_many([queue.prepare_data(job, (message,), result_ttl=0) for message in messages])

        async def consume(handler: Handler) -> None:
            handlers.append(handler)
            rq.SimpleWorker([queue], connection=client).work(max_jobs=measurement.messages, logging_level="WARNING")

        async def remaining() -> int:
            return len(queue) + len(queue.started_job_registry)

        yield Queue(f"RQ {version('rq')}", put, consume, remaining)
