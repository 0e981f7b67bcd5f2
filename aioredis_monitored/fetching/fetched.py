"""What was fetched: at once on the shared connection, or by waiting on a borrowed one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from aioredis_monitored.attempts import Connecting, attempt_on, attempted
from aioredis_monitored.calls import leave_if_refused
from aioredis_monitored.fetching.aside import aside_of, is_answered, is_refused
from aioredis_monitored.fetching.fetch import SETTLE_SECONDS, Fetch
from aioredis_monitored.fetching.waiting import CLOSE_ENOUGH, Waiting
from aioredis_monitored.multiplexer import Lost
from aioredis_monitored.patience import patiently
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.traits import traits_of, traits_of_batch


async def fetched_at_once(pool: MonitoredConnectionPool, fetch: Fetch, operation: Observer | None) -> Any:
    """What is there, fetched on the shared connection; ``None`` if there is nothing.

    Raises:
        redis.exceptions.RedisError: As for any call.
    """
    args = fetch.at_once()
    return await attempted(pool, traits_of(args), partial(_attempt_at_once, pool, fetch, args, operation), 0, operation)


async def _attempt_at_once(
    pool: MonitoredConnectionPool,
    fetch: Fetch,
    args: tuple[Any, ...],
    operation: Observer | None,
    seconds: float | None,
    losses: int,  # noqa: ARG001 - it is never repeated once it was written
) -> Any:
    multiplexer = pool.multiplexer
    if multiplexer is None:
        raise Lost(pool.closed_error(), written=False)
    started = monotonic()
    leftover = _Leftover(pool, fetch)
    call = multiplexer.send(args, leftover, operation)
    try:
        reply = await call.within(seconds)
    except asyncio.CancelledError:
        # The handler is called with the reply, unless none is to come.
        if not call.waits and (call.cancelled() or not isinstance(call.result(), Lost)):
            await leftover.settled()
        raise
    if isinstance(reply, Exception):
        leave_if_refused(pool, reply, since=started)
        raise reply if isinstance(reply, Lost) else Lost(reply, written=True)
    pool.retry_policy.is_out_of_reach = False
    return fetch.found(reply)


async def in_turns(fetched: Callable[[float], Awaitable[Any]], fetch: Fetch, wait: float) -> Any:
    """What comes within so many seconds; between one wait and the next, the connection is given back.

    Args:
        fetched: Fetches what comes within so many seconds.
        fetch: What to fetch.
        wait: How many seconds it all may take; 0 for what is there.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    found = await fetched(min(wait, fetch.longest_wait))
    while found is None and (left := deadline - loop.time()) > CLOSE_ENOUGH:
        found = await fetched(min(left, fetch.longest_wait))
    return found


async def fetched_waiting(
    pool: MonitoredConnectionPool, fetch: Fetch, wait: float, operation: Observer | None, connecting: Connecting
) -> Any:
    """What comes within ``wait`` seconds, awaited on a dedicated connection; ``None`` if nothing comes.

    Args:
        pool: Where connections come from.
        fetch: What to fetch.
        wait: How many seconds.
        operation: Learns of the pauses between attempts.
        connecting: Gives the connection for one attempt, and gives it back.

    Raises:
        redis.exceptions.RedisError: As for any call that waits.
    """
    traits = traits_of_batch(fetch.waiting(fetch.longest_wait))
    return await attempted(pool, traits, partial(_attempt_waiting, pool, fetch, wait, connecting), wait, operation)


async def _attempt_waiting(
    pool: MonitoredConnectionPool,
    fetch: Fetch,
    wait: float,
    connecting: Connecting,
    seconds: float | None,
    losses: int,  # noqa: ARG001 - it has a connection of its own anyway
) -> Any:
    return await fetched_on(attempt_on(pool, seconds, connecting()), pool, fetch, wait)


async def fetched_on(
    connecting: AbstractAsyncContextManager[AbstractConnection], pool: ConnectionPool, fetch: Fetch, wait: float
) -> Any:
    """What comes within so many seconds on a connection; ``None`` if nothing comes.

    Args:
        connecting: Gives the connection, and gives it back.
        pool: Where others come from.
        fetch: What to fetch.
        wait: How many seconds; 0 for what is there.

    Raises:
        redis.exceptions.RedisError: As for any call that waits.
    """
    found = None
    try:
        async with connecting as connection:
            await connection.connect()  # type: ignore[no-untyped-call]
            found = await Waiting(connection, fetch, aside_of(pool)).fetched(wait)
    except BaseException:
        if found is not None:
            # Giving back a connection may take a while too.
            leftover = _Leftover(pool, fetch)
            leftover.put_back(found)
            await leftover.settled()
        raise
    return found


class _Leftover:
    """What was fetched for a caller that has left; called with the reply, it puts it back."""

    __slots__ = ("_fetch", "_is_settled", "_pool", "_waiter", "_ways")

    def __init__(self, pool: ConnectionPool, fetch: Fetch) -> None:
        self._pool = pool
        self._fetch = fetch
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._ways: Iterator[tuple[Any, ...]] = iter(())

    def __call__(self, reply: Any) -> None:
        found = None if isinstance(reply, Exception) else self._fetch.found(reply)
        if found is None:
            self._settle()
        else:
            self.put_back(found)

    def put_back(self, found: Any) -> None:
        """Begin to put it back."""
        self._ways = iter(self._fetch.putting_back(found))
        self._put_back_by(next(self._ways))

    def _put_back_by(self, command: tuple[Any, ...]) -> None:
        try:
            putting = aside_of(self._pool)(*command)
        except RedisError:
            # The pool was closed; nobody waits for long.
            self._fetch.note_unsettled()
            self._settle()
        else:
            putting.add_done_callback(self._has_put_back, context=Context())

    def _has_put_back(self, putting: asyncio.Future[Any]) -> None:
        if not is_answered(putting):
            # Refused, it certainly has not run.
            if is_refused(putting) and (command := next(self._ways, None)) is not None:
                self._put_back_by(command)
                return
            self._fetch.note_unsettled()
        self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def settled(self) -> None:
        """Wait until it is put back, or not much longer."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if not self._is_settled and not await patiently(self._waiter, loop.time() + SETTLE_SECONDS):
            self._fetch.note_unsettled()
