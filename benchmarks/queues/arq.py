"""arq: a worker with a no-op job.

It polls, every 0.5 s by default, and each time starts no more jobs than may run beside each other. Without a delay it
is fastest, though it then polls an empty queue all the time. Results are not kept.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import arq
from queue_meter import Asked, Handler, Queue


@asynccontextmanager
async def connect(asked: Asked) -> AsyncIterator[Queue]:
    """A pool; the worker shares it."""
    async with await arq.create_pool(arq.connections.RedisSettings.from_dsn(asked.url)) as client:

        async def put(messages: list[bytes]) -> None:
            await asyncio.gather(*(client.enqueue_job("job", message) for message in messages))

        async def consume(handler: Handler) -> None:
            async def job(_context: dict[Any, Any], message: bytes) -> None:
                handler.one(message)

            worker = arq.Worker(
                [arq.worker.func(job, name="job")],
                redis_pool=client,
                max_jobs=asked.callers,
                poll_delay=0,
                keep_result=0,
                handle_signals=False,
            )
            await worker.async_run()

        yield Queue(f"arq {version('arq')}", put, consume, left=lambda: client.zcard(client.default_queue_name))
