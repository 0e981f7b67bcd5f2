"""The life of a pool: one event loop, opened and closed any number of times, and nothing outlives a close."""

import asyncio
import os
import warnings
from types import TracebackType
from typing import Any, Self
from weakref import finalize

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored._redispy.overrides import TypedPool
from aioredis_monitored._redispy.sockets import abort_socket, close_now
from aioredis_monitored.errors import EventLoopError, PoolClosedError


class LivingPool(TypedPool):
    """redis-py's blocking pool, bound to one event loop from the first use to the close."""

    name: str

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        # What goes on when its callers have left, and is to end before the pool is closed.
        self.background_tasks: set[asyncio.Task[Any]] = set()
        self._leak_guard = LeakGuard(self._available_connections, self._in_use_connections)
        # Not __del__: in a reference cycle, that of asyncio's transports might come first, with warnings of their own.
        finalize(self, self._leak_guard.warn)

    def check_open(self) -> None:
        """See that a call may begin.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: It is bound to another event loop.
        """
        if self._closed:
            raise self.closed_error()
        self.bind_event_loop()

    def bind_event_loop(self) -> None:
        """Bind the pool to the running event loop, if it is not yet bound.

        Raises:
            EventLoopError: It is bound to another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._leak_guard.loop, self._leak_guard.process, self._leak_guard.name = loop, os.getpid(), self.name
        elif self._loop is not loop:
            message = f"pool {self.name!r} belongs to another event loop: make one pool for each loop"
            raise EventLoopError(message)

    def closed_error(self) -> PoolClosedError:
        """What a call on a closed pool raises."""
        return PoolClosedError(f"pool {self.name!r} {'is' if self._closed else 'was'} closed")

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._loop is not None and self._loop.is_closed():
            self._leak_guard.abort()
            self._reset()
            self._closing = None
            return
        self.bind_event_loop()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close_connections())
            self._closing.add_done_callback(self._on_closed)
        with cleaning_up(f"pool {self.name!r}: closing it"):
            await asyncio.shield(self._closing)

    def _on_closed(self, closing: asyncio.Task[None]) -> None:
        self._closing = None
        if closing.cancelled():
            # Maybe before it has begun, as the event loop ends.
            connections = (*self._available_connections, *self._in_use_connections)
            self._reset()
            for connection in connections:
                close_now(connection)
        else:
            # Whoever has waited for it has been told.
            closing.exception()

    async def _close_connections(self) -> None:
        idle, lent = self._available_connections, self._in_use_connections
        self._reset()
        try:
            for connection in lent:
                # Waiting for the end of what another task may be reading from could take as long as that task does.
                await connection.disconnect(nowait=True)
            closing = (connection.disconnect() for connection in idle)
            errors = [error for error in await asyncio.gather(*closing, return_exceptions=True) if error is not None]
        finally:
            # At the end of the event loop, all of that may be cancelled before it begins.
            for connection in (*lent, *idle):
                close_now(connection)
        if errors:
            raise errors[0]

    def _reset(self) -> None:
        """Close the pool to all calls, without what is lent or bound to the loop: opened again, it is like new."""
        self._closed = True
        self._available_connections, self._in_use_connections = [], set()
        self._lock, self._loop, self.background_tasks = asyncio.Lock(), None, set()
        self._leak_guard.idle, self._leak_guard.acquired, self._leak_guard.loop = (
            self._available_connections,
            self._in_use_connections,
            None,
        )

    async def __aenter__(self) -> Self:
        if self._closing is not None:
            # An earlier one, whose caller was cancelled, would close what is opened now.
            await asyncio.wait([self._closing])
        self._closed = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class LeakGuard:
    """The connections of a pool, which outlive it for a moment if it is forgotten."""

    def __init__(self, idle: list[AbstractConnection], lent: set[AbstractConnection]) -> None:
        self.idle = idle
        self.acquired = lent
        self.loop: asyncio.AbstractEventLoop | None = None
        self.process = 0
        self.name = ""

    def abort(self) -> int:
        """Close all sockets without the event loop; return how many there were."""
        connected = [connection for connection in (*self.idle, *self.acquired) if connection.is_connected]
        for connection in connected:
            abort_socket(connection, self.loop, forked=os.getpid() != self.process)
        return len(connected)

    def warn(self) -> None:
        """Close what a pool has left open that nobody closed."""
        if self.abort():
            text = f"pool {self.name!r} was never closed: use 'async with' or aclose()"
            warnings.warn(text, ResourceWarning, stacklevel=2)
