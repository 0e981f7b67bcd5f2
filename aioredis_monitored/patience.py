"""What has to come to its end although the task that waits for it is being cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def patiently(future: asyncio.Future[Any], deadline: float) -> bool:
    """Wait for a future whatever happens to this task; return whether it is done.

    Args:
        future: Not cancelled with this task.
        deadline: When to give up, by the event loop's clock.
    """
    loop = asyncio.get_running_loop()
    while not future.done() and (left := deadline - loop.time()) > 0:
        # Whoever calls this is being cancelled already, and says so in the end.
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future], timeout=left)
    return future.done()


async def finish(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Await something that is to come to its end also if this task is cancelled meanwhile, which it is then.

    Args:
        attempt: May be repeated.
        seconds: How long it may take once the task is cancelled.
    """
    try:
        return await attempt()
    except asyncio.CancelledError:
        # What it raises now is nobody's; whoever counts has done so in it.
        with suppress(Exception):
            await insist(attempt, seconds)
        raise


async def insist(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Await attempts until one is not cancelled, as a task of its own: what ends an event loop cancels every task.

    Args:
        attempt: May be repeated.
        seconds: How long it all may take.

    Raises:
        TimeoutError: It took longer.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        task = asyncio.ensure_future(attempt())
        if not await patiently(task, deadline):
            task.cancel()
            raise TimeoutError
        if not task.cancelled():
            return task.result()
