"""A timeout that judges by what has arrived."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

# Seconds by which a timer is late if the event loop was busy with something else.
LATE: Final = 0.01


@asynccontextmanager
async def patient_timeout(seconds: float | None) -> AsyncIterator[asyncio.Timeout]:
    """As ``asyncio.timeout``, but an event loop that was busy when the time was over reads what came meanwhile.

    For that, it gets the time by which it is late, and no more than the timeout itself.

    Args:
        seconds: How long the block may take; ``None`` for any time.

    Raises:
        TimeoutError: It took longer; ``expired()`` of what is yielded is true then.
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
