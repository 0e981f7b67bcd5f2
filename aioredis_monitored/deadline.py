"""Timeouts that judge by what has arrived."""

import asyncio
import builtins
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import isinf
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import TimeoutError  # noqa: A004

# Seconds by which a timer is late if the event loop was busy with something else.
LATE: Final = 0.01


@asynccontextmanager
async def patient_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """As ``asyncio.timeout``, but an event loop that was busy when the time was over reads what came meanwhile.

    For that, it gets the time by which it is late, and no more than the timeout itself.

    Args:
        seconds: How long the block may take; ``None`` for any time.

    Raises:
        builtins.TimeoutError: It took longer; ``expired()`` of what is yielded is true then.
    """
    async with asyncio.timeout(None) as limit:
        if seconds is None:
            yield limit
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        timers: list[asyncio.TimerHandle] = []

        def expire() -> None:
            late = loop.time() - due
            if late > LATE and len(timers) == 1:
                timers.append(loop.call_later(min(late, seconds), expire))
            else:
                limit.reschedule(loop.time())

        timers.append(loop.call_at(due, expire))
        try:
            yield limit
        finally:
            timers[-1].cancel()


@asynccontextmanager
async def replies_in_time(connection: AbstractConnection, wait: float) -> AsyncIterator[None]:
    """Bound the time of all replies together, which redis-py bounds one by one, and by the clock alone.

    Args:
        connection: Whose ``socket_timeout`` counts; ``None`` bounds nothing.
        wait: Seconds that they may take beside that; ``inf`` for any time.

    Raises:
        redis.exceptions.TimeoutError: They took longer.
    """
    socket_timeout = connection.socket_timeout
    if socket_timeout is None:
        yield
        return
    bound = socket_timeout + wait
    connection.socket_timeout = None
    try:
        async with patient_timeout(None if isinf(bound) else bound) as limit:
            yield
    except builtins.TimeoutError:
        if not limit.expired():
            raise
        raise TimeoutError(f"no reply in {bound:g} s") from None
    finally:
        connection.socket_timeout = socket_timeout
