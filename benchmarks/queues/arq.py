"""Adapter of arq: a worker with a no-op job.

arq polls, every 0.5 s by default, and starts at most ``max_jobs`` jobs per poll. Without a delay it is fastest, but
polls an empty queue all the time. Results are not kept.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import arq
from queue_meter import Handler, Queue, QueueMeasurement


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a pool, which the worker shares."""
    async with await arq.create_pool(arq.connections.RedisSettings.from_dsn(measurement.url)) as client:

        async def put(messages: list[bytes]) -> None:
            await asyncio.gather(*(client.enqueue_job("job", message) for message in messages))

        async def consume(handler: Handler) -> None:
            async def job(_context: dict[Any, Any], message: bytes) -> None:
                handler.one(message)

            worker = arq.Worker(
                [arq.worker.func(job, name="job")],
                redis_pool=client,
                max_jobs=measurement.callers,
                poll_delay=0,
                keep_result=0,
                handle_signals=False,
            )
            await worker.async_run()

        yield Queue(f"arq {version('arq')}", put, consume, remaining=lambda: client.zcard(client.default_queue_name))
