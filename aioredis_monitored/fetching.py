"""Fetching what must not be lost: what is on its way to a caller that leaves is put back."""

import asyncio
import builtins
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, Protocol

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError  # noqa: A004

from aioredis_monitored.attempts import persist
from aioredis_monitored.calls import borrowed, heed_demotion
from aioredis_monitored.multiplexer import Lost
from aioredis_monitored.patience import patiently
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.telemetry.part import Observer
from aioredis_monitored.traits import traits_of

# The option of execute_command that holds what a command fetches.
FETCH: Final = "FETCH"
# Seconds that a caller which leaves waits until what was on its way is put back.
SETTLE_SECONDS: Final = 1.0
# Of the first attempt to unblock a connection, doubled each time: a command can be overtaken by what is to end it.
_FIRST_PAUSE: Final = 0.005
# So many seconds before the end the server's clock and ours agree that it is over.
_CLOSE_ENOUGH: Final = 0.01


class Fetch(Protocol):
    """What to fetch, and how to put it back.

    Attributes:
        longest_wait: Seconds that the server may be asked to wait: it is asked again and again, so that one finds out
            when it is gone.
    """

    longest_wait: float

    def at_once(self) -> tuple[Any, ...]:
        """The command that fetches what is there."""

    def found(self, reply: Any) -> Any:
        """What that has fetched; ``None`` if nothing was there."""

    def waiting(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """Commands of which the last one waits for so many seconds."""

    def arrived(self, reply: Any) -> Any:
        """What the last of these has fetched; ``None`` if nothing came."""

    def putting_back(self, found: Any) -> tuple[Any, ...]:
        """The command that puts it back."""

    def note_unsettled(self) -> None:
        """Take note of something that may be lost."""


async def fetched_at_once(pool: MonitoredConnectionPool, fetch: Fetch, operation: Observer | None) -> Any:
    """What is there, fetched on the shared connection; ``None`` if there is nothing.

    Raises:
        redis.exceptions.RedisError: As for any call.
    """
    started = monotonic()
    args = fetch.at_once()
    attempt = partial(_attempt_at_once, pool, fetch, args, operation)
    try:
        return await attempt(None)
    except Lost as lost:
        failure = lost
    return await persist(pool, traits_of(args), attempt, failure, started, 0, operation)


async def _attempt_at_once(
    pool: MonitoredConnectionPool,
    fetch: Fetch,
    args: tuple[Any, ...],
    operation: Observer | None,
    seconds: float | None,
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
        heed_demotion(pool, reply, since=started)
        raise reply if isinstance(reply, Lost) else Lost(reply, written=True)
    pool.retry_policy.is_out_of_reach = False
    return fetch.found(reply)


async def fetched_waiting(
    pool: MonitoredConnectionPool, fetch: Fetch, wait: float, operation: Observer | None
) -> Any:
    """What comes within so many seconds, awaited on a borrowed connection; ``None`` if nothing comes.

    Raises:
        redis.exceptions.RedisError: As for any call that waits.
    """
    started = monotonic()
    traits = traits_of(fetch.waiting(fetch.longest_wait)[-1])
    attempt = partial(_attempt_waiting, pool, fetch, wait, operation)
    try:
        return await attempt(None)
    except Lost as lost:
        failure = lost
    return await persist(pool, traits, attempt, failure, started, wait, operation)


async def _attempt_waiting(
    pool: MonitoredConnectionPool, fetch: Fetch, wait: float, operation: Observer | None, seconds: float | None
) -> Any:
    found = None
    try:
        async with borrowed(pool, seconds, operation) as connection:
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

    __slots__ = ("_fetch", "_is_settled", "_pool", "_waiter")

    def __init__(self, pool: MonitoredConnectionPool, fetch: Fetch) -> None:
        self._pool = pool
        self._fetch = fetch
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None

    def __call__(self, reply: Any) -> None:
        found = None if isinstance(reply, Exception) else self._fetch.found(reply)
        if found is None:
            self._settle()
        else:
            self.put_back(found)

    def put_back(self, found: Any) -> None:
        """Begin to put it back."""
        try:
            putting = aside_of(self._pool)(*self._fetch.putting_back(found))
        except RedisError:
            # The pool was closed; nobody waits for long.
            self._fetch.note_unsettled()
            self._settle()
        else:
            putting.add_done_callback(self._has_put_back, context=Context())

    def _has_put_back(self, putting: asyncio.Future[Any]) -> None:
        if not is_answered(putting):
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


Aside = Callable[..., "asyncio.Future[Any]"]


def aside_of(pool: ConnectionPool) -> Aside:
    """Sends a command while a connection waits; the result is a future of the reply, errors being values."""
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_usable()
        if (multiplexer := pool.multiplexer) is not None:
            return lambda *args: multiplexer.send(args)
    return lambda *args: asyncio.ensure_future(_on_spare_connection(pool, args))


def is_answered(reply: "asyncio.Future[Any]") -> bool:
    """Whether a command that was sent aside has succeeded."""
    return reply.done() and not reply.cancelled() and not isinstance(reply.result(), Exception)


async def _on_spare_connection(pool: ConnectionPool, args: Sequence[Any]) -> Any:
    # Past our pool's own way: this one is not lent, and a pool that is used up could lend none.
    connection = ConnectionPool.make_connection(pool)  # type: ignore[no-untyped-call]
    try:
        await connection.connect()
        await connection.send_command(*args)
        return await connection.read_response()
    except (RedisError, OSError) as error:
        return error
    finally:
        await connection.disconnect(nowait=True)


class Waiting:
    """Waits on a connection of one's own until there is something to fetch.

    Args:
        connection: A connected one.
        fetch: What to fetch.
        send_aside: Sends a command while this connection waits.
    """

    def __init__(self, connection: AbstractConnection, fetch: Fetch, send_aside: Aside) -> None:
        self._connection = connection
        self._fetch = fetch
        self._send_aside = send_aside
        self._answer_within = connection.socket_timeout
        self._owed = 0
        self._replies: list[Any] = []
        self._may_be_unblocked = False

    async def fetched(self, seconds: float) -> Any:
        """What comes within so many seconds, or is there if that is 0; ``None`` if nothing comes.

        Raises:
            redis.exceptions.ConnectionError: The connection broke; what was on its way is lost.
            redis.exceptions.TimeoutError: The server does not answer, not even that there is nothing.
            redis.exceptions.ResponseError: The server's error.
        """
        connection, fetch, loop = self._connection, self._fetch, asyncio.get_running_loop()
        # With one, redis-py would write in steps between which it can be cancelled.
        connection.socket_timeout = None
        try:
            if seconds == 0:
                return await self._ask([fetch.at_once()], 0, fetch.found)
            deadline = loop.time() + seconds
            found = None
            while found is None and (left := deadline - loop.time()) > _CLOSE_ENOUGH:
                wait = min(left, fetch.longest_wait)
                found = await self._ask(fetch.waiting(wait), wait, fetch.arrived)
            return found
        finally:
            connection.socket_timeout = self._answer_within
            if self._owed or self._may_be_unblocked:
                await connection.disconnect(nowait=True)

    async def _ask(self, commands: Sequence[tuple[Any, ...]], wait: float, found_in: Callable[[Any], Any]) -> Any:
        limit = None if self._answer_within is None else wait + self._answer_within
        try:
            async with asyncio.timeout(limit):
                # Its id is for unblocking it.
                await self._say(("CLIENT", "ID"), *commands)
                await self._hear()
        except asyncio.CancelledError:
            await self._settle(found_in)
            raise
        except builtins.TimeoutError:
            raise TimeoutError(f"no reply in {limit} s") from None
        _, *replies = self._replies
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        found = None if isinstance(replies[-1], Exception) else found_in(replies[-1])
        if error is not None:
            if found is not None:
                await self._put_back(found, asyncio.get_running_loop().time() + SETTLE_SECONDS)
            raise error
        return found

    async def _say(self, *commands: tuple[Any, ...]) -> None:
        connection = self._connection
        if not connection.is_connected:
            # redis-py would connect anew.
            raise ConnectionError("Connection closed.")
        self._owed, self._replies = len(commands), []
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _hear(self) -> None:
        """Read what is owed; it may be cancelled and called again."""
        while self._owed:
            try:
                reply = await self._connection.read_response(True, inf, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._owed -= 1
            self._replies.append(reply)

    async def _settle(self, found_in: Callable[[Any], Any]) -> None:
        """Let the waiting end, and put back what it has brought; not much longer."""
        deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        asked = await self._unblock(deadline)
        if self._owed:
            self._fetch.note_unsettled()
        else:
            reply = self._replies[-1]
            found = None if isinstance(reply, Exception) else found_in(reply)
            if found is not None:
                await self._put_back(found, deadline)
        for each in asked:
            # One that comes late would unblock whoever has the connection then.
            self._may_be_unblocked |= not await patiently(each, deadline)

    async def _unblock(self, deadline: float) -> list["asyncio.Future[Any]"]:
        asked: list[asyncio.Future[Any]] = []
        pause = _FIRST_PAUSE
        while self._owed and asyncio.get_running_loop().time() < deadline:
            if self._replies and isinstance(self._replies[0], int):
                try:
                    asked.append(self._send_aside("CLIENT", "UNBLOCK", self._replies[0]))
                except RedisError:
                    break
            if not await self._hear_until(min(deadline, asyncio.get_running_loop().time() + pause)):
                break
            pause *= 2
        return asked

    async def _put_back(self, found: Any, deadline: float) -> None:
        try:
            await self._say(self._fetch.putting_back(found))
        except RedisError:
            self._owed = 1
        while self._owed and asyncio.get_running_loop().time() < deadline:
            if not await self._hear_until(deadline):
                break
        if self._owed or isinstance(self._replies[0], Exception):
            self._fetch.note_unsettled()

    async def _hear_until(self, deadline: float) -> bool:
        """Read what is owed, whatever happens to this task; return whether that can be gone on with."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._hear()
        except (asyncio.CancelledError, builtins.TimeoutError):
            return True
        except RedisError:
            return False
        return True
