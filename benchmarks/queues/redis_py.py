"""Adapter of redis-py, the baseline: RPUSH, and BLPOP in a loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from queue_meter import Handler, Queue, QueueMeasurement, run_concurrently
from redis.asyncio import BlockingConnectionPool, Redis

NAME = "bench"
# Short, and repeated: redis-py bounds a blocking command by its socket_timeout.
BLOCK_SECONDS = 1


@asynccontextmanager
async def connect(measurement: QueueMeasurement) -> AsyncIterator[Queue]:
    """Connect a list, for ``blpop`` and ``rpush`` alike."""
    pool = BlockingConnectionPool.from_url(measurement.url, max_connections=50)
    async with Redis.from_pool(pool) as client:

        async def consume(handler: Handler) -> None:
            async def consumer() -> None:
                while True:
                    if found := await client.blpop(NAME, BLOCK_SECONDS):
                        handler.one(found[1])

            await run_concurrently(measurement.callers, consumer)

        yield Queue(
            f"redis-py {version('redis')}",
            put=lambda messages: client.rpush(NAME, *messages),
            consume=consume,
            remaining=lambda: client.llen(NAME),
        )
