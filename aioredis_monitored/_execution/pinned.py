"""The one connection that a caller keeps to: a client that ``client()`` has made, or a pipeline that watches keys.

redis-py keeps it in ``caller.connection``, and replaces it unseen when it is lost. Here it is replaced only while that
changes nothing, and a caller that is closed while a call is in flight gives it back when the call has ended.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from time import perf_counter
from typing import Any, Final, cast

from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._commands.table import MAX_WORD_LENGTH, argument_text, parse_command
from aioredis_monitored._commands.traits import counts_connection_writes, traits_of
from aioredis_monitored._execution.attempts import ConnectionInUse, acquire_from, is_lost
from aioredis_monitored._redispy.overrides import (
    forget_re_auth_token,
    re_auth,
    should_reconnect,
    single_connection_lock,
)
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored.errors import DedicatedConnectionError, PinnedConnectionLostError
from aioredis_monitored.pool.cluster import MonitoredClusterPool, slot_of
from aioredis_monitored.pool.connecting import PINNED_CONNECTION_LOST
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_error_reply

# Acquires a connection of some pool, and reports it to the observer of the call.
Acquire = Callable[[Observer | None], Awaitable[AbstractConnection]]

_CLOSED: Final = "this handle was closed, or reset, while the call was in flight"


class PinnedConnection:
    """The state of a caller's pinned connection; the connection itself is in ``caller.connection``.

    Attributes:
        closings: How often the caller was closed or reset. A call that began earlier must not acquire a connection
            later, as nothing would give that back.
        databases: The databases, other than the pool's, that SELECT has named on the connection.
        slots: In a cluster, those of the keys that were used on the connection.
        has_moved: Whether the connection is to another node of a cluster than that of the caller's first key.
        is_identified: Whether the caller knows the connection's id, which another connection does not have.
        takes_turns: Whether several tasks may use the caller, one after the other, and need not know about each other:
            a plain pool's connection that asks to be reconnected is reconnected between two calls.
    """

    __slots__ = ("_altered", "_busy", "closings", "databases", "has_moved", "is_identified", "slots")

    takes_turns = True

    def __init__(self) -> None:
        self.closings = 0
        self.databases: frozenset[str] = frozenset()
        self.slots: set[int] = set()
        self.has_moved = self.is_identified = False
        # The connection, while a call is in flight on it.
        self._busy: AbstractConnection | None = None
        # The connection that a command has altered. Its pool knows that as well, while it is open.
        self._altered: AbstractConnection | None = None

    def check_open(self, closings: int) -> None:
        """Check that the caller was not closed since a call began.

        Raises:
            PinnedConnectionLostError: It was.
        """
        if closings != self.closings:
            raise PinnedConnectionLostError(_CLOSED)

    def exclusive(self, caller: Redis, observer: Observer | None) -> AbstractAsyncContextManager[None]:
        """Wait until no other call of the caller uses the connection."""
        return _locked(caller, observer) if self.takes_turns else nullcontext()

    async def acquire(self, caller: Redis, acquire: Acquire, observer: Observer | None, closings: int) -> Connection:
        """Return the connection; the caller's first call acquires it.

        Raises:
            PinnedConnectionLostError: The caller was closed since the call began.
        """
        self.check_open(closings)
        if caller.connection is None:
            connection = await acquire(observer)
            if caller.connection is None and closings == self.closings:
                caller.connection = cast("Connection", connection)
            else:
                await caller.connection_pool.release(connection)
                self.check_open(closings)
        return cast("Connection", caller.connection)

    @asynccontextmanager
    async def attempt(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
        observer: Observer | None,
        closings: int,
    ) -> AsyncIterator[AbstractConnection]:
        """Give the connection to one attempt of a call (see ``dedicated_attempt``).

        A lost connection is replaced only if no command was sent on it that alters a connection.

        Args:
            caller: The client or pipeline.
            pool: That of the connection: in a cluster, the node's.
            commands: What the attempt sends.
            observer: Is given the connection, and the time that it takes to get it.
            closings: How often the caller had been closed when the call began.

        Raises:
            PinnedConnectionLostError: The connection was lost, and with it what earlier calls have changed or counted
                there; or the caller was closed since the call began.
        """
        is_kept = caller.connection is not None
        connection = await self.acquire(caller, lambda observer: acquire_from(pool, observer), observer, closings)
        async with self.in_flight(caller, connection, closings):
            if is_kept:
                await self.restore(caller, pool, observer)
            if self.has_moved or pool.was_reconnected(connection):
                _check_counts_nothing(commands)
            leaves = False
            try:
                async with ConnectionInUse(pool, connection):
                    if is_kept:
                        await _renew_credentials(connection)
                    yield connection
            except ReadOnlyError:
                # Another server may answer behind the same name.
                leaves = True
                raise
            finally:
                leaves |= should_reconnect(connection)
                if leaves and not pool.will_discard(connection):
                    await connection.disconnect(nowait=True)

    async def enter_node(
        self,
        caller: Redis,
        cluster: MonitoredClusterPool,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
    ) -> None:
        """Give up a connection to another node of the cluster, if a slot has moved and nothing on it is lost by that.

        Args:
            caller: The client or pipeline.
            cluster: Its pool.
            pool: That of the node that serves the keys of the call.
            commands: What the call sends.

        Raises:
            DedicatedConnectionError: The keys are at another node than those of earlier calls.
            PinnedConnectionLostError: The slot has moved, and earlier calls have changed the connection.
        """
        slot, connection = slot_of(commands, is_pinned=True), caller.connection
        if connection is not None and not pool.is_acquired(connection):
            # Otherwise its node was removed.
            if cluster.is_acquired(connection) and slot not in self.slots and (self.slots or self.is_identified):
                raise DedicatedConnectionError(
                    f"this handle keeps to a connection to {cluster.owner_name(connection)}, where its first command "
                    f"went, and the keys are at {pool.name}: make a handle (client()) for each node, and call a "
                    f"command with a key first"
                )
            if connection is self._altered or (self.is_identified and not cluster.is_acquired(connection)):
                raise PinnedConnectionLostError(f"the slot has moved to another node: {PINNED_CONNECTION_LOST}")
            caller.connection = None
            await cluster.release(connection)
            # Before the first key, nothing was written.
            self.has_moved |= bool(self.slots)
        if slot is not None:
            self.slots.add(slot)

    @asynccontextmanager
    async def in_flight(self, caller: Redis, connection: AbstractConnection, closings: int) -> AsyncIterator[None]:
        """Mark a call in flight in the block; if the caller is closed meanwhile, the block's end gives it back.

        Closing the caller disconnects the connection as well (see ``abort_busy``).

        Raises:
            PinnedConnectionLostError: The caller was closed before the answer came.
        """
        self._busy = connection
        try:
            yield
        except Exception as error:
            is_disconnected = isinstance(error, RedisConnectionError | RedisTimeoutError) and not is_error_reply(error)
            # Or redis-py was about to write, and the connection has no writer any more.
            if is_disconnected or (isinstance(error, AttributeError) and error.obj is None):
                self.check_open(closings)
            raise
        finally:
            self._busy = None
            if connection is not caller.connection:
                await caller.connection_pool.release(connection)

    async def restore(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        observer: Observer | None,
    ) -> None:
        """Replace the connection if it is lost; the errors are those of ``replace``."""
        connection = cast("Connection", caller.connection)
        # Asked once: a connection that ends between two answers would be as good as new, and not watch any more.
        if not pool.is_acquired(connection) or is_lost(pool, connection):
            await self.replace(caller, pool, connection, observer)
        if observer is not None:
            observer.set_connection(connection)

    async def replace(
        self,
        caller: Redis,  # noqa: ARG002 - subclasses use it
        pool: MonitoredConnectionPool,
        connection: AbstractConnection,
        observer: Observer | None,
    ) -> None:
        """Reconnect the connection, which is lost.

        Raises:
            PoolClosedError: The pool was closed since the connection was acquired.
            PinnedConnectionLostError: A command had altered it.
        """
        if not pool.is_acquired(connection):
            raise pool.closed_error()
        if pool.will_discard(connection):
            raise PinnedConnectionLostError(PINNED_CONNECTION_LOST)
        started = perf_counter()
        try:
            await pool.reconnect(connection)
        finally:
            if observer is not None:
                seconds = perf_counter() - started
                observer.add_wait(seconds, seconds)

    async def check_plain(self, caller: Redis, connection: Connection) -> None:
        """Check, before an attempt on a plain pool, that nothing is lost if redis-py connects anew while it sends.

        Raises:
            redis.exceptions.WatchError: A watch would be.
        """

    def note_alterations(
        self, pool: ConnectionPool, connection: AbstractConnection, commands: Collection[Sequence[Any]]
    ) -> None:
        """Record what commands that are sent now do to the connection."""
        if discard_if_altered(pool, connection, commands):
            self._altered = connection
        for args in commands:
            command = parse_command(args)
            if command.name.upper() == "SELECT" and command.arguments:
                pools_database = str(pool.connection_kwargs.get("db") or 0)
                self.databases |= {argument_text(command.arguments[0], MAX_WORD_LENGTH)} - {pools_database}

    async def abort_busy(self, caller: Redis) -> None:
        """Disconnect the connection if a call is in flight on it; that call then gives it back."""
        connection = caller.connection
        if connection is not None and connection is self._busy:
            caller.connection = None
            await connection.disconnect(nowait=True)


def discard_if_altered(
    pool: ConnectionPool, connection: AbstractConnection, commands: Collection[Sequence[Any]]
) -> bool:
    """Have the pool close the connection on release if a command alters it; return whether one does.

    redis-py gives a connection on which SELECT was sent to the next caller as it is.
    """
    if not isinstance(pool, MonitoredConnectionPool) or not any(traits_of(args).alters_connection for args in commands):
        return False
    pool.discard_on_release(connection)
    return True


async def _renew_credentials(connection: AbstractConnection) -> None:
    """Send credentials that were renewed, if any: the pool could do it only when the connection is released.

    If the server refuses them, redis-py has closed the connection.
    """
    try:
        await re_auth(connection)
    finally:
        forget_re_auth_token(connection)


def _check_counts_nothing(commands: Collection[Sequence[Any]]) -> None:
    for args in commands:
        if counts_connection_writes(args):
            message = f"{args[0]} would not count what was written on the connection that this handle has lost"
            raise PinnedConnectionLostError(f"{message}: make a new handle (client()), and write again")


@asynccontextmanager
async def _locked(caller: Redis, observer: Observer | None) -> AsyncIterator[None]:
    started = perf_counter()
    lock = single_connection_lock(caller)
    try:
        await lock.acquire()
    finally:
        if observer is not None:
            observer.add_wait(perf_counter() - started, 0)
    try:
        yield
    finally:
        lock.release()
