"""RQ: a worker that does not fork, with a no-op job. It works one job after the other, and does not await.

Results are not kept (``result_ttl``).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import rq
from queue_meter import Asked, Handler, Queue
from redis import Redis

handlers: list[Handler] = []


def job(message: bytes) -> None:
    """The job, which the worker imports by its name."""
    handlers[0].one(message)


@asynccontextmanager
async def connect(asked: Asked) -> AsyncIterator[Queue]:
    """A queue."""
    with Redis.from_url(asked.url) as client:
        queue = rq.Queue(connection=client)

        async def put(messages: list[bytes]) -> None:
            queue.enqueue_many([queue.prepare_data(job, (message,), result_ttl=0) for message in messages])

        async def consume(handler: Handler) -> None:
            handlers.append(handler)
            rq.SimpleWorker([queue], connection=client).work(max_jobs=asked.messages, logging_level="WARNING")

        async def left() -> int:
            return len(queue) + len(queue.started_job_registry)

        yield Queue(f"RQ {version('rq')}", put, consume, left)
