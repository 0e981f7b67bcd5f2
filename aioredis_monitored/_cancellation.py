"""Awaiting and completing work while its task is being cancelled."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import inf
from typing import Any, Final, TypeVar

from aioredis_monitored._timeouts import LagTolerantTimeout

_LOGGER: Final = logging.getLogger("aioredis_monitored")

# How long a caller that leaves waits until what it has begun is undone or settled: a fetch, a lock, an acknowledgement.
SETTLE_SECONDS: Final = 1.0

T = TypeVar("T")


def shielded() -> AbstractContextManager[object]:
    """Return a context manager that shields its block from anyio's cancellation, which repeats at every await.

    It shields from a cancellation that has arrived already. A ``Task.cancel``, which arrives once, still interrupts the
    block: a second one is meant for the cleanup.
    """
    # Without anyio being imported, no task is in one of its scopes.
    anyio: Any = sys.modules.get("anyio")
    if anyio is None or anyio.current_effective_deadline() > -inf:
        return nullcontext()
    shield: AbstractContextManager[object] = anyio.CancelScope(shield=True)
    return shield


def is_being_cancelled() -> bool:
    """Return whether the current task is handling its cancellation: cleanup must not take long then.

    A task that handles the cancellation of another task, which it has awaited, is not being cancelled.
    """
    if not isinstance(sys.exception(), asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def cleaning_up(what: str) -> Iterator[None]:
    """Run the block as cleanup: while the task is being cancelled, an error of the block is logged instead of raised.

    Raised, it would replace the cancellation, and the task would continue.

    Args:
        what: The name of the cleanup, for the log.
    """
    is_cancelled = is_being_cancelled()
    with shielded():
        try:
            yield
        except Exception as error:
            if not is_cancelled:
                raise
            _log_failure(what, error)


async def wait_shielded(future: asyncio.Future[Any], deadline: float) -> bool:
    """Wait for a future, ignoring cancellations of this task, and return whether it is done.

    Args:
        future: The future; it is not cancelled with this task.
        deadline: When to give up, by the event loop's clock (see ``LagTolerantTimeout``).
    """
    loop = asyncio.get_running_loop()
    while not future.done() and (remaining := deadline - loop.time()) > 0:
        # The caller is being cancelled already, and raises that in the end.
        with suppress(asyncio.CancelledError, TimeoutError), shielded():
            async with LagTolerantTimeout(remaining):
                await asyncio.wait([future])
    return future.done()


async def complete_shielded(what: str, attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Await work; if this task is cancelled meanwhile, run the work to completion before raising the cancellation.

    Args:
        what: The name of the work, for the log: an error while this task is being cancelled is logged, not raised.
        attempt: Makes the work; it may be called again.
        seconds: How long the work may take after the cancellation.

    Raises:
        CancelledError: This task was cancelled; the work may be complete.
    """
    with shielded():
        try:
            return await attempt()
        except asyncio.CancelledError:
            await complete_cancelled(what, attempt, seconds)
            raise


async def complete_cancelled(what: str, attempt: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Run work to completion after it was cancelled with its task; the caller raises the cancellation afterwards.

    Args:
        what: The name of the work, for the log: an error is logged, not raised.
        attempt: Makes the work; it may be called again.
        seconds: How long the work may take.
    """
    try:
        await run_to_completion(attempt, seconds)
    except Exception as error:  # noqa: BLE001 - the caller raises the cancellation
        _log_failure(what, error)


async def run_to_completion(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Run work in a task, despite cancellation, and run it again if that task is cancelled.

    The end of an event loop (``asyncio.run``) cancels every task, also that one.

    Args:
        attempt: Makes the work; it may be called again.
        seconds: How long all attempts together may take.

    Raises:
        TimeoutError: They took longer.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        task = asyncio.ensure_future(attempt())
        if not await wait_shielded(task, deadline):
            task.cancel()
            raise TimeoutError
        if not task.cancelled():
            return task.result()


def _log_failure(what: str, error: Exception) -> None:
    # Without the error's text, which may quote arguments.
    _LOGGER.warning("%s failed while its task was being cancelled: %s", what, type(error).__qualname__)
