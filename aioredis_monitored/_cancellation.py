"""How work is awaited and finished while its task is being cancelled."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from math import inf
from typing import Any, Final, TypeVar

from aioredis_monitored._timeouts import lag_tolerant_timeout

_LOGGER: Final = logging.getLogger("aioredis_monitored")

T = TypeVar("T")


def shielded() -> AbstractContextManager[object]:
    """Hold off a cancellation that comes again at every await, as anyio's does, as long as the block runs.

    It holds off what has come already. A cancellation by ``Task.cancel``, which comes once, still gets in: the second
    one is meant for what cleans up.
    """
    # Where anyio is not loaded, no task can be in one of its scopes.
    anyio: Any = sys.modules.get("anyio")
    if anyio is None or anyio.current_effective_deadline() > -inf:
        return nullcontext()
    shield: AbstractContextManager[object] = anyio.CancelScope(shield=True)
    return shield


def is_being_cancelled() -> bool:
    """Whether this is called while its task is being cancelled: what cleans up then must not take long.

    A task that handles the cancellation of another one, for which it has waited, is not cancelled itself.
    """
    if not isinstance(sys.exception(), asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def cleaning_up(what: str) -> Iterator[None]:
    """Clean up in the block, also while this task is being cancelled: then what fails is logged, and not raised.

    Otherwise an error would take the place of the cancellation, and the task would go on.

    Args:
        what: What is done, for the log.
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
    """Wait for a future whatever happens to this task; return whether it is done (see ``patient_timeout``).

    Args:
        future: Not cancelled with this task.
        deadline: When to give up, by the event loop's clock.
    """
    loop = asyncio.get_running_loop()
    while not future.done() and (left := deadline - loop.time()) > 0:
        # The caller is being cancelled already, and raises that in the end.
        with suppress(asyncio.CancelledError, TimeoutError), shielded():
            async with lag_tolerant_timeout(left):
                await asyncio.wait([future])
    return future.done()


async def complete_shielded(what: str, attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Await something that is to come to its end also if this task is cancelled meanwhile, which it is then.

    Args:
        what: What is done, for the log: if it fails while this task is being cancelled, that is not raised.
        attempt: May be repeated.
        seconds: How long it may take once the task is cancelled.
    """
    with shielded():
        try:
            return await attempt()
        except asyncio.CancelledError:
            await complete_cancelled(what, attempt, seconds)
            raise


async def complete_cancelled(what: str, attempt: Callable[[], Awaitable[object]], seconds: float) -> None:
    """Complete something that was cancelled with its task; the caller raises the cancellation then.

    Args:
        what: What is done, for the log: if it fails, that is not raised.
        attempt: May be repeated.
        seconds: How long it may take.
    """
    try:
        await run_to_completion(attempt, seconds)
    except Exception as error:  # noqa: BLE001 - the cancellation goes on
        _log_failure(what, error)


async def run_to_completion(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
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
        if not await wait_shielded(task, deadline):
            task.cancel()
            raise TimeoutError
        if not task.cancelled():
            return task.result()


def _log_failure(what: str, error: Exception) -> None:
    # An error's text may quote arguments.
    _LOGGER.warning("%s failed while its task was being cancelled: %s", what, type(error).__qualname__)
