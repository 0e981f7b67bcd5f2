"""Dedicated connections of both kinds of pools: ours, and redis-py's own, behind one interface.

A call on a ``MonitoredConnectionPool`` is retried by that pool's policy. A plain pool of redis-py keeps its own
settings: a call there is retried by its connection's ``retry``, as redis-py does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from math import isinf
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol, TypeVar, cast

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._cancellation import wait_shielded
from aioredis_monitored._commands.traits import Traits
from aioredis_monitored._execution.attempts import (
    AcquireConnection,
    DedicatedConnection,
    dedicated_attempt,
    reject_write_counting,
    retry,
)
from aioredis_monitored._execution.fetch import (
    Fetch,
    SideChannel,
    fetch_blocking,
    fetch_in_turns,
    fetch_on,
    side_channel_of,
    spare_channel_of,
)
from aioredis_monitored._execution.pinned import PinnedConnection
from aioredis_monitored._redispy.connections import with_safe_send
from aioredis_monitored._redispy.overrides import connect, get_connection, should_reconnect
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.routes import Route

T = TypeVar("T")

# Makes one attempt of a call on the given connection.
AttemptOn = Callable[[Any], Awaitable[T]]
# What redis-py does after a failed attempt on a plain pool's connection.
OnFailure = Callable[[Connection, Exception], Awaitable[object]]

# How long a caller of a plain pool that leaves waits until its connection is given back.
_RELEASE_SECONDS: Final = 1.0
# An event loop keeps no task alive.
_background: set[asyncio.Task[Any]] = set()


class DedicatedCall(NamedTuple):
    """What a call on a dedicated connection is, for the pools to decide about its attempts.

    Attributes:
        commands: What it sends.
        traits: Those of the commands; redis-py's retry policy, on a plain pool, does not ask for them.
        on_failure: What redis-py does after a failed attempt, on a plain pool alone.
        wait: Seconds for which the server may hold all replies back, in addition to ``socket_timeout``; ``None`` if the
            attempt bounds them itself. Default 0. On a plain pool, the bound is one of each reply.
    """

    commands: Collection[Sequence[Any]]
    traits: Traits
    on_failure: OnFailure
    wait: float | None = 0


class DedicatedConnections(Protocol):
    """The connections of a pool that one call has at a time."""

    async def run(
        self,
        caller: Redis,
        pin: PinnedConnection | None,
        call: DedicatedCall,
        attempt: AttemptOn[T],
        observer: Observer | None,
    ) -> T:
        """Make a call, in as many attempts as the pool allows.

        Args:
            caller: The client or pipeline.
            pin: The connection that it keeps to; ``None`` for any connection.
            call: What the call is.
            attempt: Makes one attempt.
            observer: Is given the connections, and the time that it takes to get them.
        """

    async def fetch(
        self, caller: Redis, pin: PinnedConnection | None, fetch: Fetch, seconds: float, observer: Observer | None
    ) -> Any:
        """Fetch what arrives in time; ``None`` if nothing does."""

    def side_channel(self) -> SideChannel:
        """Open what sends commands while a connection blocks, or after its caller has left."""

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Keep a task that goes on without its caller; closing a ``MonitoredConnectionPool`` waits for it."""


def dedicated_connections_of(pool: ConnectionPool) -> DedicatedConnections:
    """Return the interface to the pool's dedicated connections."""
    return MonitoredConnections(pool) if isinstance(pool, MonitoredConnectionPool) else PlainConnections(pool)


class MonitoredConnections:
    """Those of a ``MonitoredConnectionPool``; see ``DedicatedConnections``."""

    __slots__ = ("pool",)

    def __init__(self, pool: MonitoredConnectionPool) -> None:
        self.pool = pool

    def _for_attempts(
        self,
        caller: Redis,
        pin: PinnedConnection | None,
        commands: Collection[Sequence[Any]],
        observer: Observer | None,
    ) -> AcquireConnection:
        """Return what gives each attempt of a call that begins now its connection; the arguments are those of ``run``.

        Raises:
            DedicatedConnectionError: A command counts the writes of its connection, and nothing is pinned.
        """
        if pin is None:
            for args in commands:
                reject_write_counting(args)
            return partial(DedicatedConnection, observer=observer)
        return partial(self._pinned_connection, caller, pin, commands, observer, pin.closings)

    @asynccontextmanager
    async def _pinned_connection(
        self,
        caller: Redis,
        pin: PinnedConnection,
        commands: Collection[Sequence[Any]],
        observer: Observer | None,
        closings: int,
        pool: MonitoredConnectionPool,
    ) -> AsyncIterator[AbstractConnection]:
        pool.bind_event_loop()
        async with pin.exclusive(caller, observer):
            if isinstance(self.pool, MonitoredClusterPool):
                await pin.enter_node(caller, self.pool, pool, commands)
            async with pin.attempt(caller, pool, commands, observer, closings) as connection:
                yield connection

    def _route(
        self,
        caller: Redis,
        pin: PinnedConnection | None,
        commands: Collection[Sequence[Any]],
        observer: Observer | None,
    ) -> Route[MonitoredConnectionPool]:
        if pin is None:
            return self.pool.route(commands, observer)
        return self.pool.route(commands, observer, lambda: caller.connection)

    async def run(
        self,
        caller: Redis,
        pin: PinnedConnection | None,
        call: DedicatedCall,
        attempt: AttemptOn[T],
        observer: Observer | None,
    ) -> T:
        acquire = self._for_attempts(caller, pin, call.commands, observer)
        route = self._route(caller, pin, call.commands, observer)

        async def attempt_once(seconds: float | None, _losses: int) -> T:
            pool = await route.target()
            async with dedicated_attempt(pool, seconds, acquire(pool), call.wait) as connection:
                return await attempt(connection)

        return await retry(route, call.traits, attempt_once, call.wait or 0, observer)

    async def fetch(
        self, caller: Redis, pin: PinnedConnection | None, fetch: Fetch, seconds: float, observer: Observer | None
    ) -> Any:
        acquire = self._for_attempts(caller, pin, [fetch.poll_command()], observer)

        async def fetch_once(wait: float) -> Any:
            route = self._route(caller, pin, [fetch.poll_command()], observer)
            return await fetch_blocking(self.pool, route, fetch, wait, observer, acquire)

        return await fetch_in_turns(fetch_once, fetch, seconds)

    def side_channel(self) -> SideChannel:
        return side_channel_of(self.pool)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        _keep_in(self.pool.background_tasks, task)


class PlainConnections:
    """Those of a pool of redis-py; see ``DedicatedConnections``."""

    __slots__ = ("pool",)

    def __init__(self, pool: ConnectionPool) -> None:
        self.pool = pool

    async def acquire(self, observer: Observer | None) -> AbstractConnection:
        """Acquire a connection that ``pool.release`` gives back, and report it to the observer of a call.

        A task of its own does it: the connection may have to be made, and redis-py may swallow a cancellation then (see
        ``with_safe_send``).
        """
        started = perf_counter()
        acquiring: asyncio.Future[AbstractConnection] = asyncio.ensure_future(get_connection(self.pool))
        try:
            await asyncio.wait([acquiring])
        except asyncio.CancelledError:
            acquiring.cancel()
            releasing = asyncio.ensure_future(self._release_acquired(acquiring))
            await wait_shielded(releasing, asyncio.get_running_loop().time() + _RELEASE_SECONDS)
            raise
        finally:
            if observer is not None:
                # The pool does not say how much of that was connecting.
                observer.add_wait(perf_counter() - started, 0)
        connection = with_safe_send(acquiring.result())
        if observer is not None:
            observer.set_connection(connection)
        return connection

    async def _release_acquired(self, acquiring: "asyncio.Future[AbstractConnection]") -> None:
        await asyncio.wait([acquiring])
        if not acquiring.cancelled() and acquiring.exception() is None:
            connection = acquiring.result()
            # The pool may be closed meanwhile.
            await connection.disconnect(nowait=True)
            await self.pool.release(connection)

    @asynccontextmanager
    async def _connection(
        self, caller: Redis, pin: PinnedConnection | None, observer: Observer | None, closings: int
    ) -> AsyncIterator[Connection]:
        if pin is None:
            connection = cast("Connection", await self.acquire(observer))
            try:
                yield connection
            finally:
                await self.pool.release(connection)
            return
        async with pin.exclusive(caller, observer):
            connection = await pin.acquire(caller, self.acquire, observer, closings)
            if observer is not None:
                observer.set_connection(connection)
            async with pin.in_flight(caller, connection, closings):
                try:
                    yield connection
                finally:
                    if pin.takes_turns and should_reconnect(connection):
                        await connection.disconnect()
                        await connect(connection)

    async def run(
        self,
        caller: Redis,
        pin: PinnedConnection | None,
        call: DedicatedCall,
        attempt: AttemptOn[T],
        observer: Observer | None,
    ) -> T:
        closings = 0 if pin is None else pin.closings

        def is_open() -> bool:
            return pin is None or pin.closings == closings

        async with self._connection(caller, pin, observer, closings) as connection:

            async def attempt_once() -> T:
                if pin is not None:
                    pin.check_open(closings)
                    await pin.check_plain(caller, connection)
                async with extended_timeout(connection, call.wait or 0):
                    return await attempt(connection)

            return await connection.retry.call_with_retry(
                attempt_once, partial(call.on_failure, connection), is_retryable=lambda _: is_open()
            )

    async def fetch(
        self, caller: Redis, pin: PinnedConnection | None, fetch: Fetch, seconds: float, observer: Observer | None
    ) -> Any:
        connection = partial(self._connection, caller, pin, observer, 0 if pin is None else pin.closings)
        channel = self.side_channel
        return await fetch_in_turns(lambda wait: fetch_on(connection(), channel, channel, fetch, wait), fetch, seconds)

    def side_channel(self) -> SideChannel:
        return spare_channel_of(self.pool)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        _keep_in(_background, task)


@asynccontextmanager
async def extended_timeout(connection: AbstractConnection, wait: float) -> AsyncIterator[None]:
    """Extend a connection's ``socket_timeout`` in the block by what its commands may block.

    redis-py reads with a timeout of five seconds whatever the command: every BLPOP that waits longer would fail. A
    ``MonitoredConnectionPool`` limits all replies of an attempt together (see ``ReplyTimeout``).
    """
    socket_timeout = connection.socket_timeout
    if not wait or socket_timeout is None:
        yield
        return
    # Connecting, if it comes to that, gets no more time.
    await connect(connection)
    connection.socket_timeout = None if isinf(wait) else socket_timeout + wait
    try:
        yield
    finally:
        connection.socket_timeout = socket_timeout


def _keep_in(tasks: "set[asyncio.Task[Any]]", task: "asyncio.Task[Any]") -> None:
    tasks.add(task)
    task.add_done_callback(tasks.discard)
