"""redis-py, the baseline: RPUSH, and BLPOP in a loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from queue_meter import Asked, Handler, Queue, together
from redis.asyncio import BlockingConnectionPool, Redis

NAME = "bench"
# Renewed again and again: redis-py gives a command that waits no longer than its socket_timeout.
WAIT = 1


@asynccontextmanager
async def connect(asked: Asked) -> AsyncIterator[Queue]:
    """A list; ``blpop`` and ``rpush`` need the same."""
    pool = BlockingConnectionPool.from_url(asked.url, max_connections=50)
    async with Redis.from_pool(pool) as client:

        async def consume(handler: Handler) -> None:
            async def consumer() -> None:
                while True:
                    if found := await client.blpop(NAME, WAIT):
                        handler.one(found[1])

            await together(asked.callers, consumer)

        yield Queue(
            f"redis-py {version('redis')}",
            put=lambda messages: client.rpush(NAME, *messages),
            consume=consume,
            left=lambda: client.llen(NAME),
        )
