"""Fetching what must not be lost: what is on its way to a caller that leaves is put back."""

import asyncio
import builtins
from asyncio import sleep  # see attempts
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, Protocol

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ConnectionError,  # noqa: A004
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from aioredis_monitored._cancellation import run_to_completion, shielded, wait_shielded
from aioredis_monitored._commands.traits import traits_of, traits_of_batch
from aioredis_monitored._execution.attempts import AcquireConnection, dedicated_attempt, leave_refusing_server, retry
from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._redispy.connections import with_safe_send
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored._timeouts import LATE_SECONDS, lag_tolerant_timeout
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import exponential_backoff

# The option of execute_command that holds what a command fetches.
FETCH: Final = "FETCH"
# Seconds that the server may be asked to wait, so that one finds out when it is gone. Then the connection is given
# back: whoever else needs it, to acknowledge for instance, need not wait for ever.
MAX_WAIT_SECONDS: Final = 15.0
# Seconds that a caller which leaves waits until what was on its way is put back.
SETTLE_SECONDS: Final = 1.0


class Fetch(Protocol):
    """What to fetch, and how to put it back.

    Attributes:
        longest_wait: Seconds that the server may be asked to wait; it is asked again and again.
        about: What operation it is.
        is_batch: Whether it may be any number of messages.
    """

    max_wait: float
    messaging: MessagingSpec
    is_batch: bool

    def poll_command(self) -> tuple[Any, ...]:
        """The command that fetches what is there."""

    def parse_poll(self, reply: Any) -> Any:
        """What that has fetched; ``None`` if nothing was there."""

    def blocking_commands(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """Commands of which one waits for so many seconds."""

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """What these have fetched, ``None`` standing for errors; ``None`` if nothing came."""

    def restore_commands(self, found: Any) -> Sequence[tuple[Any, ...]]:
        """The commands that put it back, each of them if the server refuses those before it."""

    def on_empty(self) -> None:
        """Take note that nothing was there."""

    def on_unsettled(self) -> None:
        """Take note of something that may be lost."""


SideChannel = Callable[..., "asyncio.Future[Any]"]


def side_channel(pool: ConnectionPool) -> SideChannel:
    """Sends a command while a connection waits; the result is a future of the reply, errors being values."""
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_open()
        if (multiplexer := pool.multiplexer) is not None:
            return lambda *args: multiplexer.send(args)
    return lambda *args: asyncio.ensure_future(_on_spare_connection(pool, args))


def is_success(reply: "asyncio.Future[Any]") -> bool:
    """Whether a command that was sent aside has succeeded."""
    return reply.done() and not reply.cancelled() and not isinstance(reply.result(), Exception)


def is_rejected(reply: "asyncio.Future[Any]") -> bool:
    """Whether the server has answered it with an error."""
    return reply.done() and not reply.cancelled() and isinstance(reply.result(), ResponseError)


async def _on_spare_connection(pool: ConnectionPool, args: Sequence[Any]) -> Any:
    # Past our pool's own way: this one is not lent, and a pool that is used up could lend none.
    connection = with_safe_send(ConnectionPool.make_connection(pool))  # type: ignore[no-untyped-call]
    # By then it is given up.
    connection.socket_timeout = connection.socket_connect_timeout = SETTLE_SECONDS
    try:
        await connection.connect()
        await connection.send_command(*args)
        return await connection.read_response()
    except (RedisError, OSError) as error:
        return error
    finally:
        await connection.disconnect(nowait=True)


# Of the first attempt to unblock a connection, doubled each time: a command can be overtaken by what is to end it.
_UNBLOCK_DELAY_SECONDS: Final = 0.005
# So many seconds before the end the server's clock and ours agree that it is over.
CLOCK_TOLERANCE_SECONDS: Final = 0.01
# Seconds between one look and the next while the server has no memory for waiting.
_poll_backoff = exponential_backoff(0.02, 0.5)


class BlockingFetch:
    """Waits on a connection of one's own until there is something to fetch.

    Args:
        connection: A connected one.
        fetch: What to fetch.
        send_aside: Sends a command while this connection waits.
    """

    def __init__(self, connection: AbstractConnection, fetch: Fetch, send_aside: SideChannel) -> None:
        self._connection = connection
        self._fetch = fetch
        self._side_channel = send_aside
        self._answer_within = connection.socket_timeout
        self._owed = 0
        self._replies: list[Any] = []
        self._may_be_unblocked = False
        # Until when what a caller has left is settled, and whether that was put off.
        self._settle_deadline = inf
        self._was_busy = False

    async def fetch(self, seconds: float) -> Any:
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
            deadline = loop.time() + seconds
            found = None
            if seconds == 0 or fetch.is_batch:
                found = await self._poll()
            failures = 0
            while found is None and (left := deadline - loop.time()) > CLOCK_TOLERANCE_SECONDS:
                wait = min(left, fetch.max_wait)
                try:
                    found = await self._ask(fetch.blocking_commands(wait), wait, fetch.parse_blocking)
                except OutOfMemoryError:
                    # Waiting may need memory, also if nothing comes; what is there can be fetched without.
                    found = await self._poll()
                    failures += 1
                    if found is None:
                        await sleep(min(left, _poll_backoff(failures)))
            if found is None:
                fetch.on_empty()
            return found
        finally:
            connection.socket_timeout = self._answer_within
            if self._owed or self._may_be_unblocked:
                await connection.disconnect(nowait=True)

    async def _poll(self) -> Any:
        fetch = self._fetch
        return await self._ask([fetch.poll_command()], 0, lambda replies: _parse_poll(fetch, replies))

    async def _ask(
        self, commands: Sequence[tuple[Any, ...]], wait: float, found_in: Callable[[Sequence[Any]], Any]
    ) -> Any:
        limit = None if self._answer_within is None else wait + self._answer_within
        try:
            async with lag_tolerant_timeout(limit):
                # Its id is for unblocking it.
                await self._send(("CLIENT", "ID"), *commands)
                await self._read_replies()
        except asyncio.CancelledError:
            self._begin_to_settle()
            with suppress(builtins.TimeoutError):
                # It ends by then by itself; later, the connection is closed.
                await run_to_completion(partial(self._settle, found_in), 3 * SETTLE_SECONDS)
            raise
        except builtins.TimeoutError:
            raise TimeoutError(f"no reply in {limit:.3g} s") from None
        _, *replies = self._replies
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        found = found_in(_without_errors(replies))
        if error is not None:
            if found is not None:
                self._begin_to_settle()
                await self._put_back(found)
            raise error
        return found

    async def _send(self, *commands: tuple[Any, ...]) -> None:
        connection = self._connection
        self._owed, self._replies = len(commands), []
        if not connection.is_connected:
            # redis-py would connect anew.
            raise ConnectionError("Connection closed.")
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _read_replies(self) -> None:
        """Read what is owed; it may be cancelled and called again."""
        while self._owed:
            try:
                reply = await self._connection.read_response(True, inf, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._owed -= 1
            self._replies.append(reply)

    def _begin_to_settle(self) -> None:
        self._settle_deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._was_busy = False

    def _may_settle(self) -> bool:
        """Whether there is time to settle; an event loop that was busy at its end has not read what came by then."""
        now = asyncio.get_running_loop().time()
        if not self._was_busy and now - self._settle_deadline > LATE_SECONDS:
            self._was_busy = True
            self._settle_deadline = now + SETTLE_SECONDS
        return now < self._settle_deadline

    async def _settle(self, found_in: Callable[[Sequence[Any]], Any]) -> None:
        """Let the waiting end, and put back what it has brought."""
        asked = await self._unblock()
        if self._owed:
            self._fetch.on_unsettled()
        else:
            found = found_in(_without_errors(self._replies[1:]))
            if found is not None:
                await self._put_back(found)
        for each in asked:
            if not await wait_shielded(each, self._settle_deadline):
                # It would unblock whoever has the connection then.
                self._may_be_unblocked = True
                each.cancel()

    async def _unblock(self) -> list["asyncio.Future[Any]"]:
        asked: list[asyncio.Future[Any]] = []
        pause = _UNBLOCK_DELAY_SECONDS
        while self._owed and self._may_settle():
            if self._replies and isinstance(self._replies[0], int):
                asked.append(self._side_channel("CLIENT", "UNBLOCK", self._replies[0]))
            if not await self._read_for(pause):
                break
            pause *= 2
        return asked

    async def _put_back(self, found: Any) -> None:
        for command in self._fetch.restore_commands(found):
            with suppress(RedisError, asyncio.CancelledError, builtins.TimeoutError):
                async with self._in_time(inf):
                    await self._send(command)
            while self._owed and self._may_settle():
                if not await self._read_for(inf):
                    break
            if self._owed or not isinstance(self._replies[0], Exception):
                break
        if self._owed or isinstance(self._replies[0], Exception):
            self._fetch.on_unsettled()

    async def _read_for(self, seconds: float) -> bool:
        """Read what is owed, whatever happens to this task; return whether that can be gone on with."""
        try:
            with shielded():
                async with self._in_time(seconds):
                    await self._read_replies()
        except (asyncio.CancelledError, builtins.TimeoutError):
            return True
        except RedisError:
            return False
        return True

    def _in_time(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return lag_tolerant_timeout(max(0.0, min(seconds, self._settle_deadline - asyncio.get_running_loop().time())))


def _parse_poll(fetch: Fetch, replies: Sequence[Any]) -> Any:
    (reply,) = replies
    return None if reply is None else fetch.parse_poll(reply)


def _without_errors(replies: Sequence[Any]) -> list[Any]:
    return [None if isinstance(reply, Exception) else reply for reply in replies]


async def fetch_shared(pool: MonitoredConnectionPool, fetch: Fetch, operation: Observer | None) -> Any:
    """What is there, fetched on the shared connection; ``None`` if there is nothing.

    Raises:
        redis.exceptions.RedisError: As for any call.
    """
    args = fetch.poll_command()
    return await retry(pool, traits_of(args), partial(_attempt_shared, pool, fetch, args, operation), 0, operation)


async def _attempt_shared(
    pool: MonitoredConnectionPool,
    fetch: Fetch,
    args: tuple[Any, ...],
    operation: Observer | None,
    seconds: float | None,
    losses: int,  # noqa: ARG001 - it is never repeated once it was written
) -> Any:
    multiplexer = pool.multiplexer
    if multiplexer is None:
        raise AttemptFailed(pool.closed_error(), written=False)
    started = monotonic()
    leftover = _Restore(pool, fetch)
    call = multiplexer.send(args, leftover, operation)
    try:
        reply = await call.wait_for(seconds)
    except asyncio.CancelledError:
        # The handler is called with the reply, unless none is to come.
        if not call.is_queued and (call.cancelled() or not isinstance(call.result(), AttemptFailed)):
            await leftover.wait_settled()
        raise
    if isinstance(reply, Exception):
        leave_refusing_server(pool, reply, since=started)
        raise reply if isinstance(reply, AttemptFailed) else AttemptFailed(reply, written=True)
    pool.retry_policy.server_unreachable = False
    return fetch.parse_poll(reply)


async def fetch_in_turns(fetched: Callable[[float], Awaitable[Any]], fetch: Fetch, wait: float) -> Any:
    """What comes within so many seconds; between one wait and the next, the connection is given back.

    Args:
        fetched: Fetches what comes within so many seconds.
        fetch: What to fetch.
        wait: How many seconds it all may take; 0 for what is there.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    found = await fetched(min(wait, fetch.max_wait))
    while found is None and (left := deadline - loop.time()) > CLOCK_TOLERANCE_SECONDS:
        found = await fetched(min(left, fetch.max_wait))
    return found


async def fetch_blocking(
    pool: MonitoredConnectionPool, fetch: Fetch, wait: float, operation: Observer | None, connecting: AcquireConnection
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
    traits = traits_of_batch(fetch.blocking_commands(fetch.max_wait))
    return await retry(pool, traits, partial(_attempt_blocking, pool, fetch, wait, connecting), wait, operation)


async def _attempt_blocking(
    pool: MonitoredConnectionPool,
    fetch: Fetch,
    wait: float,
    connecting: AcquireConnection,
    seconds: float | None,
    losses: int,  # noqa: ARG001 - it has a connection of its own anyway
) -> Any:
    return await fetch_on(dedicated_attempt(pool, seconds, connecting()), pool, fetch, wait)


async def fetch_on(
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
            found = await BlockingFetch(connection, fetch, side_channel(pool)).fetch(wait)
    except BaseException:
        if found is not None:
            # Giving back a connection may take a while too.
            leftover = _Restore(pool, fetch)
            leftover.start(found)
            await leftover.wait_settled()
        raise
    return found


class _Restore:
    """What was fetched for a caller that has left; called with the reply, it puts it back."""

    __slots__ = ("_fetch", "_is_settled", "_pool", "_waiter", "_ways")

    def __init__(self, pool: ConnectionPool, fetch: Fetch) -> None:
        self._pool = pool
        self._fetch = fetch
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._ways: Iterator[tuple[Any, ...]] = iter(())

    def __call__(self, reply: Any) -> None:
        found = None if isinstance(reply, Exception) else self._fetch.parse_poll(reply)
        if found is None:
            self._settle()
        else:
            self.start(found)

    def start(self, found: Any) -> None:
        """Begin to put it back."""
        self._ways = iter(self._fetch.restore_commands(found))
        self._try(next(self._ways))

    def _try(self, command: tuple[Any, ...]) -> None:
        try:
            putting = side_channel(self._pool)(*command)
        except RedisError:
            # The pool was closed; nobody waits for long.
            self._fetch.on_unsettled()
            self._settle()
        else:
            putting.add_done_callback(self._on_reply, context=Context())

    def _on_reply(self, putting: asyncio.Future[Any]) -> None:
        if not is_success(putting):
            # Refused, it certainly has not run.
            if is_rejected(putting) and (command := next(self._ways, None)) is not None:
                self._try(command)
                return
            self._fetch.on_unsettled()
        self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_settled(self) -> None:
        """Wait until it is put back, or not much longer."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if not self._is_settled and not await wait_shielded(self._waiter, loop.time() + SETTLE_SECONDS):
            self._fetch.on_unsettled()
