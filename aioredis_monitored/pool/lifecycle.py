"""The life of a pool: bound to one event loop, opened and closed any number of times, never left open unnoticed."""

import asyncio
import os
import warnings
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any
from weakref import finalize

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored._redispy.sockets import abort_sockets, close_now
from aioredis_monitored.errors import EventLoopError, PoolClosedError
from aioredis_monitored.pool.slots import Slots


class Lifecycle:
    """Whether a pool is open, the event loop that it belongs to, and the tasks that go on without their callers.

    A pool that is garbage-collected with open connections closes them, with a ``ResourceWarning``.

    Args:
        title: What errors and warnings call the pool.
        slots: The connections of the pool.

    Attributes:
        is_closed: Whether calls are refused.
        background_tasks: Tasks that go on when their callers have left; closing the pool waits for them.
    """

    def __init__(self, title: str, slots: Slots[AbstractConnection]) -> None:
        self._title = title
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None
        self.is_closed = False
        self.background_tasks: set[asyncio.Task[Any]] = set()
        self._leak_guard = LeakGuard(title, slots)
        # Not __del__: in a reference cycle, that of asyncio's transports might come first, with warnings of their own.
        finalize(self, self._leak_guard.warn)

    def check_open(self) -> None:
        """Check that a call may begin.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
        """
        if self.is_closed:
            raise self.closed_error()
        if self._loop is not asyncio.get_running_loop():
            self.bind_event_loop()

    def bind_event_loop(self) -> None:
        """Bind the pool to the running event loop, if it is not yet bound.

        Raises:
            EventLoopError: The pool belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._leak_guard.bind(loop)
        elif self._loop is not loop:
            message = f"{self._title} belongs to another event loop: make one pool for each loop"
            raise EventLoopError(message)

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the pool is bound to, if any."""
        return self._loop

    def closed_error(self) -> PoolClosedError:
        """Return what a call raises that the pool's closing has ended or refused."""
        return PoolClosedError(f"{self._title} {'is' if self.is_closed else 'was'} closed")

    def is_loop_closed(self) -> bool:
        """Whether the event loop that the pool belongs to is closed."""
        return self._loop is not None and self._loop.is_closed()

    async def open(self) -> None:
        """Accept calls again; a close that is under way ends first."""
        if self._closing is not None and not self.is_loop_closed():
            # Its caller was cancelled; it would close what is opened now.
            await asyncio.wait([self._closing])
        self.is_closed = False

    async def close(
        self,
        disconnect: Callable[[], Coroutine[Any, Any, None]],
        reset: Callable[[], Iterable[AbstractConnection]],
        grace: float,
    ) -> None:
        """Close the pool once, however many callers ask for it, and whether or not they are cancelled.

        Args:
            disconnect: Calls ``reset``, and closes every connection.
            reset: Makes the pool like new, calling ``Lifecycle.reset``, and returns the connections that it had.
            grace: Seconds that background tasks may still take before they are cancelled.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self.is_loop_closed():
            self._leak_guard.abort()
            reset()
            self._closing = None
            return
        self.bind_event_loop()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(disconnect, grace))
            self._closing.add_done_callback(partial(self._on_closed, reset))
        with cleaning_up(f"{self._title}: closing it"):
            await asyncio.shield(self._closing)

    async def _close(self, disconnect: Callable[[], Coroutine[Any, Any, None]], grace: float) -> None:
        unfinished = self.background_tasks
        if unfinished:
            await asyncio.wait(unfinished, timeout=grace)
        self.is_closed = True
        try:
            await disconnect()
        finally:
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    def _on_closed(self, reset: Callable[[], Iterable[AbstractConnection]], closing: asyncio.Task[None]) -> None:
        self._closing = None
        if closing.cancelled():
            # As the event loop ends; maybe before it has begun.
            for connection in reset():
                close_now(connection)
        else:
            # Retrieved, for asyncio: the callers of close() raise it.
            closing.exception()

    def reset(self) -> None:
        """Refuse calls, and belong to no event loop; an opened pool is bound anew."""
        self.is_closed = True
        self._loop = self._leak_guard.loop = None
        self.background_tasks = set()


class LeakGuard:
    """Closes the connections of a pool that was garbage-collected without being closed, and outlives it for that.

    Args:
        title: What the warning calls the pool.
        slots: The connections of the pool.

    Attributes:
        loop: The event loop that the pool belongs to.
    """

    def __init__(self, title: str, slots: Slots[AbstractConnection]) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._title = title
        self._slots = slots
        self._process = 0

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remember the event loop and the process of the connections."""
        self.loop, self._process = loop, os.getpid()

    def warn(self) -> None:
        """Close what is open, with a ``ResourceWarning``."""
        if self.abort():
            text = f"{self._title} was never closed: use 'async with' or aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)

    def abort(self) -> int:
        """Close all sockets without the event loop; return how many were open."""
        is_forked = os.getpid() != self._process
        connections = (*self._slots.idle, *self._slots.acquired)
        return sum([abort_sockets(each, self.loop, forked=is_forked) for each in connections])
