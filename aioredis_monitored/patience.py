"""Pauses between attempts, and what has to come to its end although its task is being cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from redis.backoff import EqualJitterBackoff

T = TypeVar("T")

# With so many, every pause is the longest; from 1,024 on, redis-py computes a power of two that no float holds.
_ENOUGH: Final = 64


def pauses(first: float, longest: float) -> Callable[[int], float]:
    """Pauses that double with each failure, of which up to half is random.

    Args:
        first: Seconds of the first one, at most.
        longest: Seconds of the longest one.

    Returns:
        A function that gives the seconds after so many failures.
    """
    policy = EqualJitterBackoff(cap=longest, base=first / 2)
    return lambda failures: float(policy.compute(min(failures, _ENOUGH)))


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
