"""Sending a command while the connection that matters waits."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError, ResponseError

from aioredis_monitored.fetching.fetch import SETTLE_SECONDS
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.sending import sending_soundly

Aside = Callable[..., "asyncio.Future[Any]"]


def aside_of(pool: ConnectionPool) -> Aside:
    """Sends a command while a connection waits; the result is a future of the reply, errors being values."""
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_usable()
        if (multiplexer := pool.multiplexer) is not None:
            return lambda *args: multiplexer.send(args)
    return lambda *args: asyncio.ensure_future(_on_spare_connection(pool, args))


def is_answered(reply: "asyncio.Future[Any]") -> bool:
    """Whether a command that was sent aside has succeeded."""
    return reply.done() and not reply.cancelled() and not isinstance(reply.result(), Exception)


def is_refused(reply: "asyncio.Future[Any]") -> bool:
    """Whether the server has answered it with an error."""
    return reply.done() and not reply.cancelled() and isinstance(reply.result(), ResponseError)


async def _on_spare_connection(pool: ConnectionPool, args: Sequence[Any]) -> Any:
    # Past our pool's own way: this one is not lent, and a pool that is used up could lend none.
    connection = sending_soundly(ConnectionPool.make_connection(pool))  # type: ignore[no-untyped-call]
    # By then it is given up.
    connection.socket_timeout = connection.socket_connect_timeout = SETTLE_SECONDS
    try:
        await connection.connect()
        await connection.send_command(*args)
        return await connection.read_response()
    except (RedisError, OSError) as error:
        return error
    finally:
        await connection.disconnect(nowait=True)
