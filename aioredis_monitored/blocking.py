"""Blocking commands: the time for which the server holds a reply back does not count against ``socket_timeout``."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from math import isinf
from typing import Any

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored import traits


class BlockingCommandsMixin:
    """Makes the blocking commands of a redis-py client or pipeline outlive ``socket_timeout``.

    redis-py 8 reads with a five-second ``socket_timeout`` whatever the command, so that every BLPOP that waits longer
    fails.
    """

    async def _send_command_parse_response(
        self, conn: AbstractConnection, command_name: str | bytes, *args: Any, **options: Any
    ) -> Any:
        if traits.server_wait(args) is None:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]
        async with patience(conn, [args]):
            return await super()._send_command_parse_response(conn, command_name, *args, **options)  # type: ignore[misc]


@asynccontextmanager
async def patience(connection: AbstractConnection, batch: Iterable[Sequence[Any]]) -> AsyncIterator[None]:
    """Add to the connection's ``socket_timeout`` the seconds for which the server may hold these commands back.

    The connection is the caller's alone while it is borrowed.
    """
    socket_timeout = connection.socket_timeout
    wait = sum(traits.server_wait(args) or 0 for args in batch)
    if not wait or socket_timeout is None:
        yield
        return
    # Connecting, if it comes to that, gets no more time than ever.
    await connection.connect()  # type: ignore[no-untyped-call]
    connection.socket_timeout = None if isinf(wait) else socket_timeout + wait
    try:
        yield
    finally:
        connection.socket_timeout = socket_timeout
