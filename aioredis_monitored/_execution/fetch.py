"""Fetching what must not be lost: a message on its way to a caller that leaves is restored.

A fetch polls the shared connection first. If nothing is there, it blocks on a dedicated connection. A caller that is
cancelled meanwhile leaves within ``SETTLE_SECONDS``: until then, what the server has sent is put back.
"""

import asyncio
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
from redis.exceptions import AskError, MovedError, OutOfMemoryError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._cancellation import SETTLE_SECONDS, run_to_completion, shielded, wait_shielded
from aioredis_monitored._commands.traits import traits_of, traits_of_batch
from aioredis_monitored._execution.attempts import AcquireConnection, dedicated_attempt, leave_refusing_server, retry
from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._redispy.connections import close_connection, make_safe_connection
from aioredis_monitored._redispy.overrides import connect
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored._timeouts import LATE_SECONDS, LagTolerantTimeout
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import exponential_backoff
from aioredis_monitored.pool.routes import Route

# What a server has told to ask another one for, that takes over the slot of the keys: by the number of commands that
# were sent together, the positions of those that it has not run.
Redirected = dict[int, list[int]]

_ASKING: Final = ("ASKING",)
# Seconds before that server is asked again, if nothing was there.
_ASKED_SECONDS: Final = 0.1
# The option of execute_command that holds what a command fetches.
FETCH: Final = "FETCH"
# The longest that the server is asked to block at a time. Each time, the connection goes back to the pool, where others
# may need it to acknowledge messages, and a server that is gone is noticed.
MAX_WAIT_SECONDS: Final = 15.0
# Before the first attempt to unblock a connection; doubled each time, as UNBLOCK can overtake the blocking command.
_UNBLOCK_DELAY_SECONDS: Final = 0.005
# By how much the server's clock and ours may differ about the end of a wait.
CLOCK_TOLERANCE_SECONDS: Final = 0.01
# Seconds between two polls while the server has no memory for blocking.
_poll_backoff = exponential_backoff(0.02, 0.5)


class Fetch(Protocol):
    """What to fetch, and how to restore it.

    Attributes:
        max_wait: The longest, in seconds, that the server is asked to block at a time.
        messaging: What the operation is in the terms of the conventions.
        is_batch: Whether it fetches any number of messages.
    """

    max_wait: float
    messaging: MessagingSpec
    is_batch: bool

    def poll_command(self) -> tuple[Any, ...]:
        """Return the command that fetches without blocking."""

    def parse_poll(self, reply: Any) -> Any:
        """Return what its reply brings; ``None`` if it brings nothing."""

    def blocking_commands(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """Return the commands of which one blocks for that long."""

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """Return what their replies bring, in which ``None`` stands for errors; ``None`` if they bring nothing."""

    def restore_commands(self, found: Any, /) -> Sequence[tuple[Any, ...]]:
        """Return the commands that restore it; each is tried if the server rejects the one before."""

    def on_empty(self) -> None:
        """Record that nothing was there."""

    def on_unsettled(self) -> None:
        """Record that something may be lost."""


# Sends a command while another connection blocks; returns a future of its reply, in which errors are values.
SideChannel = Callable[..., "asyncio.Future[Any]"]


def side_channel_of(pool: MonitoredConnectionPool) -> SideChannel:
    """Open a side channel: the shared connection, or else a spare one.

    Raises:
        PoolClosedError, EventLoopError: The pool cannot be used.
    """
    pool.check_open()
    if (multiplexer := pool.multiplexer) is not None:
        return lambda *args: multiplexer.send(args)
    if isinstance(pool, MonitoredClusterPool):
        return lambda *args: asyncio.ensure_future(_send_routed(pool, args))
    return spare_channel_of(pool)


async def _send_routed(pool: MonitoredClusterPool, args: tuple[Any, ...]) -> Any:
    route = pool.route([args], None)

    async def attempt(_seconds: float | None, _losses: int) -> Any:
        reply = await side_channel_of(await route.target())(*args)
        if isinstance(reply, Exception):
            raise reply if isinstance(reply, AttemptFailed) else AttemptFailed(reply, may_have_run=True)
        return reply

    try:
        return await retry(route, traits_of(args), attempt, 0, None)
    except RedisError as error:
        return error


def spare_channel_of(pool: ConnectionPool) -> SideChannel:
    """Open a side channel whose every command gets a connection of its own, which the pool does not count."""
    return lambda *args: asyncio.ensure_future(_send_on_spare_connection(pool, args))


async def _send_on_spare_connection(pool: ConnectionPool, args: Sequence[Any]) -> Any:
    # redis-py's way to make it, not our pool's: an exhausted pool could give none.
    connection = make_safe_connection(pool)
    connection.socket_timeout = connection.socket_connect_timeout = SETTLE_SECONDS
    try:
        await connect(connection)
        await connection.send_command(*args)
        return await connection.read_response()
    except (RedisError, OSError) as error:
        return error
    finally:
        await close_connection(connection)


def is_success(reply: "asyncio.Future[Any]") -> bool:
    """Whether a command on a side channel has succeeded."""
    return reply.done() and not reply.cancelled() and not isinstance(reply.result(), Exception)


def is_rejected(reply: "asyncio.Future[Any]") -> bool:
    """Whether the server has answered it with an error."""
    return reply.done() and not reply.cancelled() and isinstance(reply.result(), ResponseError)


# Polling on the shared connection.


async def fetch_shared(pool: MonitoredConnectionPool, fetch: Fetch, observer: Observer | None) -> Any:
    """Poll once on the shared connection; return ``None`` if nothing is there.

    Raises:
        redis.exceptions.RedisError: As for any call.
    """
    args = fetch.poll_command()
    route = pool.route([args], observer)
    return await retry(route, traits_of(args), partial(_poll_shared, pool, route, fetch, args, observer), 0, observer)


async def _poll_shared(
    whole: MonitoredConnectionPool,
    route: Route[MonitoredConnectionPool],
    fetch: Fetch,
    args: tuple[Any, ...],
    observer: Observer | None,
    seconds: float | None,
    _losses: int,
) -> Any:
    pool = await route.target()
    multiplexer = pool.multiplexer
    if multiplexer is None:
        raise AttemptFailed(pool.closed_error(), may_have_run=False)
    started = monotonic()
    restore = _Restore(fetch, partial(side_channel_of, whole))
    future = multiplexer.send(args, restore, observer)
    try:
        reply = await future.wait_for(seconds)
    except asyncio.CancelledError:
        # The handler gets the reply, unless none will come.
        if not future.is_queued and (future.cancelled() or not isinstance(future.result(), AttemptFailed)):
            await restore.wait_settled()
        raise
    if isinstance(reply, Exception):
        leave_refusing_server(pool, reply, since=started)
        raise reply if isinstance(reply, AttemptFailed) else AttemptFailed(reply, may_have_run=True)
    pool.retry_policy.server_unreachable = False
    found = fetch.parse_poll(reply)
    if found is None:
        fetch.on_empty()
    return found


# Blocking on a dedicated connection.


async def fetch_in_turns(fetch_once: Callable[[float], Awaitable[Any]], fetch: Fetch, seconds: float) -> Any:
    """Fetch what arrives in time; between two turns, the connection is given back.

    Args:
        fetch_once: Fetches what arrives within the given seconds.
        fetch: What to fetch.
        seconds: How long all turns may take; 0 polls once.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    found = await fetch_once(min(seconds, fetch.max_wait))
    while found is None and (left := deadline - loop.time()) > CLOCK_TOLERANCE_SECONDS:
        found = await fetch_once(min(left, fetch.max_wait))
    return found


async def fetch_blocking(
    pool: MonitoredConnectionPool,
    route: Route[MonitoredConnectionPool],
    fetch: Fetch,
    wait: float,
    observer: Observer | None,
    acquire: AcquireConnection,
) -> Any:
    """Fetch what arrives within ``wait`` seconds, in as many attempts as the policy allows.

    Args:
        pool: The pool, which restores what is fetched in vain.
        route: Where the attempts go.
        fetch: What to fetch.
        wait: How many seconds; 0 polls once.
        observer: Is given the delays between attempts.
        acquire: Gives the connection for one attempt.

    Returns:
        ``None`` if nothing arrives.

    Raises:
        redis.exceptions.RedisError: As for any call that blocks.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    redirected: Redirected = {}

    async def attempt(seconds: float | None, _losses: int) -> Any:
        server = await route.target()
        acquired = dedicated_attempt(server, seconds, acquire(server))
        left = max(0.0, deadline - loop.time())
        channels = partial(side_channel_of, server), partial(side_channel_of, pool)
        return await fetch_on(acquired, *channels, fetch, left, redirected)

    return await retry(route, traits_of_batch(fetch.blocking_commands(fetch.max_wait)), attempt, wait, observer)


async def fetch_on(
    acquired: AbstractAsyncContextManager[AbstractConnection],
    open_unblocking: Callable[[], SideChannel],
    open_restoring: Callable[[], SideChannel],
    fetch: Fetch,
    wait: float,
    redirected: Redirected | None = None,
) -> Any:
    """Fetch what arrives within ``wait`` seconds on one connection.

    Args:
        acquired: Gives the connection.
        open_unblocking: Opens the side channel that unblocks the connection, to the same server.
        open_restoring: Opens the one that restores what it brings in vain.
        fetch: What to fetch.
        wait: How many seconds; 0 polls once.
        redirected: What the attempt before was told to ask this server for. It is given what this attempt is told.
            Default ``None``: nothing.

    Returns:
        ``None`` if nothing arrives.

    Raises:
        redis.exceptions.RedisError: As for any call that blocks.
    """
    found = None
    try:
        async with acquired as connection:
            await connect(connection)
            redirected = {} if redirected is None else redirected
            blocking = _BlockingFetch(connection, fetch, open_unblocking(), open_restoring, redirected)
            found = await blocking.fetch(wait)
    except BaseException:
        if found is not None:
            # The task may be cancelled while the connection is given back.
            restore = _Restore(fetch, open_restoring)
            restore.start(found)
            await restore.wait_settled()
        raise
    return found


class _BlockingFetch:
    """Fetches on one dedicated connection, and restores what arrives for a caller that has left.

    Args:
        connection: A connected one.
        fetch: What to fetch.
        side_channel: Sends a command to the same server while this connection blocks.
        open_restoring: Opens the side channel that restores what this connection cannot restore itself.
        redirected: As of ``fetch_on``.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        fetch: Fetch,
        side_channel: SideChannel,
        open_restoring: Callable[[], SideChannel],
        redirected: Redirected,
    ) -> None:
        self._connection = connection
        self._fetch = fetch
        self._side_channel = side_channel
        self._open_restoring = open_restoring
        self._asked = dict(redirected)
        self._redirected = redirected
        redirected.clear()
        self._reply_timeout = connection.socket_timeout
        self._owed = 0
        self._replies: list[Any] = []
        self._may_be_unblocked = False
        # When settling ends after the caller has left, and whether a busy event loop has extended that.
        self._settle_deadline = inf
        self._is_extended = False

    async def fetch(self, seconds: float) -> Any:
        """Return what arrives in time, or is there if that is 0; ``None`` if nothing does.

        Raises:
            redis.exceptions.ConnectionError: The connection broke; what was on its way is lost.
            redis.exceptions.TimeoutError: The server does not answer, not even that nothing is there.
            redis.exceptions.ResponseError: The server's error.
        """
        connection, fetch, loop = self._connection, self._fetch, asyncio.get_running_loop()
        # With a timeout, redis-py would write in steps between which it can be cancelled.
        connection.socket_timeout = None
        try:
            deadline = loop.time() + seconds
            found = None
            if seconds == 0 or fetch.is_batch:
                found = await self._poll()
            failures = 0
            while found is None and (left := deadline - loop.time()) > CLOCK_TOLERANCE_SECONDS:
                wait = min(left, fetch.max_wait)
                if self._asked and len(fetch.blocking_commands(wait)) not in self._asked:
                    # The server that has told to poll here may not tell the same about these.
                    await sleep(min(left, _ASKED_SECONDS))
                    break
                try:
                    found = await self._ask(fetch.blocking_commands(wait), wait, fetch.parse_blocking)
                except (OutOfMemoryError, TryAgainError) as error:
                    # Blocking may need memory even if nothing arrives; polling needs none. While a slot moves, nothing
                    # blocks for keys of which some have moved.
                    if isinstance(error, OutOfMemoryError):
                        found = await self._poll()
                    failures += 1
                    if found is None:
                        await sleep(min(left, _poll_backoff(failures)))
            if found is None:
                fetch.on_empty()
            return found
        finally:
            connection.socket_timeout = self._reply_timeout
            if self._owed or self._may_be_unblocked:
                await connection.disconnect(nowait=True)

    async def _poll(self) -> Any:
        fetch = self._fetch
        return await self._ask([fetch.poll_command()], 0, lambda replies: _parse_poll(fetch, replies))

    async def _ask(
        self, commands: Sequence[tuple[Any, ...]], wait: float, parse: Callable[[Sequence[Any]], Any]
    ) -> Any:
        count = len(commands)
        asked = self._asked.get(count)
        if asked is not None:
            commands = [each for position in asked for each in (_ASKING, commands[position])]
            parse = _of_asked(parse, asked, count)
        limit = None if self._reply_timeout is None else wait + self._reply_timeout
        try:
            async with LagTolerantTimeout(limit):
                # CLIENT UNBLOCK needs the connection's id.
                await self._send(("CLIENT", "ID"), *commands)
                await self._read_replies()
        except asyncio.CancelledError:
            self._begin_to_settle()
            with suppress(TimeoutError):
                # A backstop, where the connection is closed: settling ends within SETTLE_SECONDS, or twice that if the
                # event loop is busy.
                await run_to_completion(partial(self._settle, parse), 3 * SETTLE_SECONDS)
            raise
        except TimeoutError:
            raise RedisTimeoutError(f"no reply in {limit:.3g} s") from None
        _, *replies = self._replies
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        found = parse(_without_errors(replies))
        if error is not None:
            if asked is None and _is_ask(error):
                self._redirected[count] = [at for at, reply in enumerate(replies) if _is_ask(reply)]
            if found is not None:
                self._begin_to_settle()
                await self._restore(found)
            raise error
        return found

    async def _send(self, *commands: tuple[Any, ...]) -> None:
        connection = self._connection
        self._owed, self._replies = len(commands), []
        if not connection.is_connected:
            # redis-py would reconnect.
            raise RedisConnectionError("Connection closed.")
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _read_replies(self) -> None:
        """Read the replies that are owed; it may be cancelled and called again."""
        while self._owed:
            try:
                reply = await self._connection.read_response(True, inf, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._owed -= 1
            self._replies.append(reply)

    def _begin_to_settle(self) -> None:
        self._settle_deadline = asyncio.get_running_loop().time() + SETTLE_SECONDS
        self._is_extended = False

    def _may_settle(self) -> bool:
        """Whether there is time to settle; an event loop that was busy at the deadline gets it once more, to read."""
        now = asyncio.get_running_loop().time()
        if not self._is_extended and now - self._settle_deadline > LATE_SECONDS:
            self._is_extended = True
            self._settle_deadline = now + SETTLE_SECONDS
        return now < self._settle_deadline

    async def _settle(self, parse: Callable[[Sequence[Any]], Any]) -> None:
        """End the blocking command, and restore what it has brought."""
        unblocking = await self._unblock()
        if self._owed:
            self._fetch.on_unsettled()
        else:
            found = parse(_without_errors(self._replies[1:]))
            if found is not None:
                await self._restore(found)
        for each in unblocking:
            if not await wait_shielded(each, self._settle_deadline):
                # It would unblock the connection's next user.
                self._may_be_unblocked = True
                each.cancel()

    async def _unblock(self) -> list["asyncio.Future[Any]"]:
        unblocking: list[asyncio.Future[Any]] = []
        delay = _UNBLOCK_DELAY_SECONDS
        while self._owed and self._may_settle():
            if self._replies and isinstance(self._replies[0], int):
                unblocking.append(self._side_channel("CLIENT", "UNBLOCK", self._replies[0]))
            if not await self._read_for(delay):
                break
            delay *= 2
        return unblocking

    async def _restore(self, found: Any) -> None:
        for command in self._fetch.restore_commands(found):
            with suppress(RedisError, asyncio.CancelledError, TimeoutError):
                async with self._settle_timeout(inf):
                    await self._send(command)
            while self._owed and self._may_settle():
                if not await self._read_for(inf):
                    break
            if self._owed or not isinstance(self._replies[0], Exception):
                break
        if not self._owed and isinstance(self._replies[0], AskError):
            # Another server has the place by now.
            restore = _Restore(self._fetch, self._open_restoring)
            restore.start(found)
            await restore.wait_settled()
        elif self._owed or isinstance(self._replies[0], Exception):
            self._fetch.on_unsettled()

    async def _read_for(self, seconds: float) -> bool:
        """Read the replies that are owed, also if this task is cancelled; return whether the connection still works."""
        try:
            with shielded():
                async with self._settle_timeout(seconds):
                    await self._read_replies()
        except (asyncio.CancelledError, TimeoutError):
            return True
        except RedisError:
            return False
        return True

    def _settle_timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        left = self._settle_deadline - asyncio.get_running_loop().time()
        return LagTolerantTimeout(max(0.0, min(seconds, left)))


def _parse_poll(fetch: Fetch, replies: Sequence[Any]) -> Any:
    (reply,) = replies
    return None if reply is None else fetch.parse_poll(reply)


def _of_asked(
    parse: Callable[[Sequence[Any]], Any], asked: Sequence[int], count: int
) -> Callable[[Sequence[Any]], Any]:
    """Return what parses the replies to those of ``count`` commands that were sent, each after ASKING."""

    def parse_asked(replies: Sequence[Any]) -> Any:
        of_all: list[Any] = [None] * count
        for position, reply in zip(asked, replies[1::2], strict=False):
            of_all[position] = reply
        return parse(of_all)

    return parse_asked


def _is_ask(reply: object) -> bool:
    return isinstance(reply, AskError) and not isinstance(reply, MovedError)


def _without_errors(replies: Sequence[Any]) -> list[Any]:
    return [None if isinstance(reply, Exception) else reply for reply in replies]


class _Restore:
    """Restores what was fetched for a caller that has left; as an orphan handler, it is called with the reply.

    Args:
        fetch: What was fetched.
        open_side_channel: Opens what restores it.
    """

    __slots__ = ("_commands", "_fetch", "_is_settled", "_open_side_channel", "_waiter")

    def __init__(self, fetch: Fetch, open_side_channel: Callable[[], SideChannel]) -> None:
        self._fetch = fetch
        self._open_side_channel = open_side_channel
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._commands: Iterator[tuple[Any, ...]] = iter(())

    def __call__(self, reply: Any) -> None:
        found = None if isinstance(reply, Exception) else self._fetch.parse_poll(reply)
        if found is None:
            self._settle()
        else:
            self.start(found)

    def start(self, found: Any) -> None:
        """Begin to restore it."""
        self._commands = iter(self._fetch.restore_commands(found))
        self._try(next(self._commands))

    def _try(self, command: tuple[Any, ...]) -> None:
        try:
            restoring = self._open_side_channel()(*command)
        except RedisError:
            # The pool was closed.
            self._fetch.on_unsettled()
            self._settle()
        else:
            restoring.add_done_callback(self._on_reply, context=Context())

    def _on_reply(self, restoring: asyncio.Future[Any]) -> None:
        if not is_success(restoring):
            # A rejected command has certainly not run.
            if is_rejected(restoring) and (command := next(self._commands, None)) is not None:
                self._try(command)
                return
            self._fetch.on_unsettled()
        self._settle()

    def _settle(self) -> None:
        self._is_settled = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_settled(self) -> None:
        """Wait until it is restored, or for ``SETTLE_SECONDS``."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if not self._is_settled and not await wait_shielded(self._waiter, loop.time() + SETTLE_SECONDS):
            self._fetch.on_unsettled()
