"""redis-py's lock, which leaves nothing behind: each task releases what it has acquired, also while it is cancelled.

Every ``acquire`` and ``release`` is one span, whatever commands it takes. Two objects outlive a caller that leaves: an
``_Acquisition`` undoes a SET whose caller is gone, a ``_Release`` goes on until the server has answered.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Final, Literal, TypeVar, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.lock import Lock
from redis.exceptions import DataError, LockError, LockNotOwnedError, RedisError
from redis.typing import Number

from aioredis_monitored._cancellation import (
    SETTLE_SECONDS,
    cleaning_up,
    complete_shielded,
    is_being_cancelled,
    wait_shielded,
)
from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._execution.attempts import leave_refusing_server, retry, retry_until_answered
from aioredis_monitored._execution.dedicated import DedicatedCall, DedicatedConnections, dedicated_connections_of
from aioredis_monitored._execution.routing import CommandExecutor, executor_of, reading_primaries, unpinned_copy
from aioredis_monitored._multiplexer import AttemptFailed, CommandFuture
from aioredis_monitored._redispy.overrides import TypedLock, close_after_failure, execute_command, send_and_parse
from aioredis_monitored._telemetry import semconv_ext
from aioredis_monitored._telemetry.context import nested_in
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._timeouts import LagTolerantTimeout
from aioredis_monitored.errors import PinnedConnectionLostError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import exponential_backoff, is_connection_loss, is_error_reply, is_transient
from aioredis_monitored.pool.routes import Route

T = TypeVar("T")

_LOGGER: Final = logging.getLogger("aioredis_monitored.lock")

# For how long a server that does not answer is asked to release what a task has left behind.
_UNDO_SECONDS: Final = 5.0
_undo_backoff = exponential_backoff(0.05, 0.5)
# The lock is in the pool's database, or in one that its client has selected on a connection that may be lost by now.
_UNDO: Final = """
local function undo()
    if redis.pcall('GET', KEYS[1]) == ARGV[1] then
        redis.call('DEL', KEYS[1])
    end
end
undo()
for number = 2, #ARGV do
    if not redis.pcall('SELECT', ARGV[number]).err then
        undo()
    end
end
"""


class _RandomToken(bytes):
    """A token with which only one acquisition can have set the key: releasing by it is safe to repeat at any time."""

    __slots__ = ()


class MonitoredLock(TypedLock):
    """A ``redis.asyncio.lock.Lock`` that records where its client does, and cleans up behind its callers.

    - An ``acquire`` that is cancelled, times out or loses its connection leaves the lock free: if its SET has
      succeeded, or may have and the token is a random one, the lock is released in the background. A server that does
      not answer gets 5 s for that.
    - A ``release`` runs to completion also if it is cancelled, or its task is being cancelled: the task leaves after a
      second at most, and the release goes on in the background. A server that does not answer gets 5 s for that. If it
      fails, that is logged.
    - Each task releases and extends what it has acquired itself. A task that has acquired nothing since its last
      release uses the token that was acquired last, as in redis-py: locks may be handed over. With
      ``thread_local=False`` all tasks share one token.

    Its scripts are its own: redis-py keeps them on the class, bound to the first client of the process, which keeps
    that client, its pool and its event loop alive.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Who holds a lock is known at its primary.
        self.redis = reading_primaries(cast("Redis", self.redis))
        self.local: _Holds | _Hold = _Holds() if self.thread_local else _Hold()

    def register_scripts(self) -> None:
        """Bind the three scripts to this lock's client."""
        self.lua_release = self.redis.register_script(self.LUA_RELEASE_SCRIPT)
        self.lua_extend = self.redis.register_script(self.LUA_EXTEND_SCRIPT)
        self.lua_reacquire = self.redis.register_script(self.LUA_REACQUIRE_SCRIPT)

    # Acquiring.

    async def acquire(
        self, blocking: bool | None = None, blocking_timeout: Number | None = None, token: str | bytes | None = None
    ) -> bool:
        """Acquire the lock, as redis-py does: one span, whatever it takes.

        Args:
            blocking: Whether to wait for it; default: as the lock was made.
            blocking_timeout: How long to wait, in seconds; default: as the lock was made.
            token: The value that identifies the holder; default: a random one. If a SET with a token of yours gets no
                answer, it is not undone, as another holder may have the same token.

        Returns:
            Whether it was acquired.
        """
        if token is None:
            token = _RandomToken(uuid4().hex.encode())
        executor = executor_of(self.redis)
        if executor is None or not executor.recorder.is_enabled():
            acquired: bool = await super().acquire(blocking, blocking_timeout, token)
            return acquired
        # Without the token, which shows nowhere.
        command = self._set_command(b"")
        operation = executor.new_operation(executor.recorder.lock_spec(semconv_ext.LOCK_ACQUIRE, command), command)
        return await operation.observe(
            self._acquire_recorded, executor.recorder, operation, blocking, blocking_timeout, token
        )

    async def _acquire_recorded(self, recorder: PoolRecorder, operation: Operation, *arguments: Any) -> bool:
        # On the pool of one node of a cluster, they have not begun.
        recorder.start_counter(recorder.instruments.lock_contended)
        recorder.start_counter(recorder.instruments.lock_lost)
        polling = _Polling(self, recorder)
        acquired: bool = False
        started = perf_counter()
        try:
            with nested_in(operation):
                acquired = await Lock.acquire(cast("Lock", polling), *arguments)
        finally:
            now = perf_counter()
            if acquired:
                self.local.held_since = now
            recorder.record(recorder.instruments.lock_wait_time, now - started)
            outcome = {semconv_ext.LOCK_ACQUIRED: acquired, semconv_ext.LOCK_POLLS: polling.count}
            operation.spec = operation.spec.with_span_attributes(outcome)
        return acquired

    def _set_command(self, token: str | bytes) -> tuple[Any, ...]:
        expiry = ("PX", int(self.timeout * 1000)) if self.timeout else ()
        return ("SET", self.name, token, "NX", *expiry)

    async def do_acquire(self, token: str | bytes) -> bool:
        """Try to acquire the lock once; redis-py's ``acquire`` calls this."""
        pool = getattr(self.redis, "connection_pool", None)
        if pool is None:
            # A cluster's client.
            return await super().do_acquire(token)
        return await _Acquisition(self, pool, token).wait()

    async def send_set(self, acquisition: "_Acquisition", token: str | bytes) -> bool:
        """Send the SET of an acquisition, which tracks whether it may have run."""
        client: Any = self.redis
        executor = executor_of(client)
        if executor is None or executor.overrides_execute(client):
            return await acquisition.track(super().do_acquire(token))
        command = self._set_command(token)
        send = partial(acquisition.send, executor, client, command)
        return bool(await executor.execute_recorded(client, command, {}, send))

    # Holding and releasing. These are no coroutine functions: what a task holds, it holds also if it has another task
    # await this.

    def owned(self) -> Coroutine[Any, Any, bool]:
        """Return whether the key holds the token of the current task."""
        return self._for_holder(self.local.current(), super().owned())

    def extend(self, additional_time: Number, replace_ttl: bool = False) -> Awaitable[Literal[True]]:
        """Keep the lock for longer, as redis-py does."""
        return self._for_holder(self.local.current(), super().extend(additional_time, replace_ttl))

    def reacquire(self) -> Awaitable[Literal[True]]:
        """Keep the lock for its whole timeout again, as redis-py does."""
        return self._for_holder(self.local.current(), super().reacquire())

    async def _for_holder(self, hold: "_Hold", call: Awaitable[T]) -> T:
        with self.local.adopted(hold):
            try:
                return await call
            except LockNotOwnedError:
                self._end_hold(hold, is_lost=True)
                raise

    def release(self) -> Coroutine[Any, Any, None]:
        """Release the lock: one span.

        It runs to completion also if it is cancelled, or called while its task is being cancelled: then it leaves after
        a second at most, and goes on in the background until the server has answered, for 5 s at most. If the
        connection breaks, it is tried once more.

        Raises:
            LockError: The current task holds no lock.
            LockNotOwnedError: The task has held the lock for longer than its ``timeout``.
            redis.exceptions.RedisError: The server cannot be reached, or refuses. While the task is being cancelled,
                none of these is raised, but logged.
        """
        return self._release(self.local.current())

    async def _release(self, hold: "_Hold") -> None:
        executor = executor_of(self.redis)
        with cleaning_up(f"lock {self.name!r}: releasing it"):
            token = hold.token
            if token is None:
                message = "Cannot release a lock that's not owned or is already unlocked."
                raise LockError(message, lock_name=cast("str", self.name))
            release = _Release(self, hold, token)
            if executor is None or not executor.recorder.is_enabled():
                await release.run()
                return
            command = ("EVALSHA", self.lua_release.sha, 1, self.name, b"")
            operation = executor.new_operation(executor.recorder.lock_spec(semconv_ext.LOCK_RELEASE, command), command)
            await operation.observe(self._release_recorded, operation, release)

    async def _release_recorded(self, operation: Operation, release: "_Release") -> None:
        with nested_in(operation):
            error = await release.run()
        if error is not None:
            operation.set_error(error)

    def on_released(self, hold: "_Hold", token: str | bytes, *, is_lost: bool = False) -> None:
        """Record that a hold has ended.

        Args:
            hold: The hold.
            token: The value that was released.
            is_lost: Whether another holder had the lock by then; default ``False``.
        """
        self._end_hold(hold, is_lost=is_lost)
        self.local.give_up(hold, token)

    def on_reacquired(self) -> None:
        """Record that the last hold, if it was never released, was lost: the lock was acquired again."""
        self._end_hold(self.local.last, is_lost=True)

    def _end_hold(self, hold: "_Hold", *, is_lost: bool = False) -> None:
        executor, since = executor_of(self.redis), hold.held_since
        if since is None or executor is None:
            return
        # redis-py keeps the token of a lock that extend has found lost; it is counted once.
        hold.held_since = None
        recorder = executor.recorder
        recorder.record(recorder.instruments.lock_hold_time, perf_counter() - since)
        if is_lost:
            recorder.record(recorder.instruments.lock_lost, 1)


class _Polling:
    """Stands in for a lock in redis-py's loop that polls for it: tasks may share the lock, but not the count."""

    def __init__(self, lock: MonitoredLock, recorder: PoolRecorder) -> None:
        self._lock = lock
        self._recorder = recorder
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    async def do_acquire(self, token: str | bytes) -> bool:
        self.count += 1
        acquired = await self._lock.do_acquire(token)
        if acquired:
            self._lock.on_reacquired()
        elif self.count == 1:
            # At once: an operator who looks at the metrics may look for what this waits for.
            self._recorder.record(self._recorder.instruments.lock_contended, 1)
        return acquired


class _Acquisition:
    """One SET of a lock, in a task of its own: if its caller leaves, it runs to completion and is undone.

    Args:
        lock: The lock.
        pool: The pool of its client.
        token: The value.
    """

    def __init__(self, lock: MonitoredLock, pool: ConnectionPool, token: str | bytes) -> None:
        loop = asyncio.get_running_loop()
        self._lock = lock
        self._connections = dedicated_connections_of(pool)
        self._token = token
        self._is_random = isinstance(token, _RandomToken)
        # On the shared connection, the future; on another one, whether the SET is sent and not answered.
        self._future: CommandFuture | None = None
        self._is_sent = False
        # Whether the answer to an earlier attempt was lost.
        self._outcome_unknown = False
        self._outcome: asyncio.Future[bool] = loop.create_future()
        self._is_received: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._run())

    async def wait(self) -> bool:
        """Return whether the lock was acquired; a caller that is cancelled leaves at once."""
        try:
            acquired = await self._outcome
        except asyncio.CancelledError:
            self._is_received.cancel()
            if self._outcome.done() and not self._outcome.cancelled():
                # asyncio would log that its error was never retrieved.
                self._outcome.exception()
            self._connections.keep(self._task)
            if not self._may_have_run():
                self._task.cancel()
                await wait_shielded(self._task, asyncio.get_running_loop().time() + SETTLE_SECONDS)
            raise
        self._is_received.set_result(None)
        return acquired

    def _may_have_run(self) -> bool:
        """Whether the SET was sent and not answered yet, or an answer was lost."""
        return self._outcome_unknown or self._is_sent or (self._future is not None and not self._future.is_queued)

    async def _run(self) -> None:
        try:
            acquired = await self._lock.send_set(self, self._token)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the caller raises it
            must_undo = self._is_random and self._may_have_run()
            if must_undo:
                self._connections.keep(self._task)
            self._fail(error)
        else:
            must_undo = not acquired and self._is_random and self._outcome_unknown
            if not self._outcome.done():
                self._outcome.set_result(acquired)
            if acquired:
                # The caller may be cancelled in the tick in which the SET succeeds.
                await wait_shielded(self._is_received, asyncio.get_running_loop().time() + SETTLE_SECONDS)
                must_undo = not self._is_received.done() or self._is_received.cancelled()
        if must_undo:
            await complete_shielded(f"lock {self._lock.name!r}: undoing an acquisition", self._undo, SETTLE_SECONDS)

    def _fail(self, error: BaseException) -> None:
        if self._outcome.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._outcome.cancel()
        else:
            self._outcome.set_exception(error)

    async def send(
        self, executor: CommandExecutor, client: Redis, command: tuple[Any, ...], operation: Operation | None
    ) -> Any:
        """Return the reply to the SET, after as many attempts as the pool's policy allows."""
        pool = executor.shared_pool
        if pool is not None and pool.is_sharing:
            route = pool.route([command], operation)
            attempt = partial(self._attempt_shared, route, command, operation)
            return await retry(route, traits_of(command), attempt, 0, operation)
        call = DedicatedCall([command], traits_of(command), close_after_failure(client))
        return await executor.dedicated.run(
            client,
            executor.pin,
            call,
            lambda connection: self.track(send_and_parse(client, connection, command[0], command, {})),
            operation,
        )

    async def _attempt_shared(
        self,
        route: Route[MonitoredConnectionPool],
        command: tuple[Any, ...],
        operation: Operation | None,
        seconds: float | None,
        _losses: int,
    ) -> Any:
        pool = await route.target()
        multiplexer = pool.multiplexer
        if multiplexer is None:
            raise AttemptFailed(pool.closed_error(), may_have_run=False)
        started = monotonic()
        self._future = multiplexer.send(command, None, operation)
        reply = await self._future.wait_for(seconds)
        self._future = None
        if isinstance(reply, Exception):
            failed = reply if isinstance(reply, AttemptFailed) else AttemptFailed(reply, may_have_run=True)
            self._outcome_unknown |= failed.may_have_run and not is_error_reply(failed.error)
            leave_refusing_server(pool, reply, since=started)
            raise failed
        pool.retry_policy.server_unreachable = False
        return reply

    async def track(self, sending: Awaitable[T]) -> T:
        """Await the answer to a SET that is sent now on a connection that no other call uses."""
        self._is_sent = True
        try:
            answer = await sending
        except RedisError as error:
            self._outcome_unknown |= not is_error_reply(error) and not isinstance(error, DataError)
            self._is_sent = False
            raise
        self._is_sent = False
        return answer

    async def _undo(self) -> None:
        attempt = partial(_release_on_side_channel, self._lock, self._connections, self._token)
        try:
            async with LagTolerantTimeout(_UNDO_SECONDS):
                await retry_until_answered(attempt, _undo_backoff)
        except (RedisError, TimeoutError) as error:
            _LOGGER.warning(
                "lock %r: an acquisition that was given up may hold it until its timeout: %s",
                self._lock.name,
                type(error).__qualname__,
            )


class _Release:
    """One release of a lock: if its caller is cancelled, it goes on in a task of its own.

    Args:
        lock: The lock.
        hold: What is released.
        token: The value.
    """

    def __init__(self, lock: MonitoredLock, hold: "_Hold", token: str | bytes) -> None:
        pool: ConnectionPool | None = getattr(lock.redis, "connection_pool", None)
        self._lock = lock
        self._hold = hold
        self._token = token
        # None of a cluster's client.
        self._connections = None if pool is None else dedicated_connections_of(pool)
        self._what = f"lock {lock.name!r}: releasing it"
        self._may_be_released = False
        self._was_tried_on_client = False
        self._failure: Exception | None = None

    async def run(self) -> Exception | None:
        """Release the lock; return what was logged instead of being raised, as the task is being cancelled.

        Raises:
            redis.exceptions.RedisError: It failed, and the task is not being cancelled.
        """
        if is_being_cancelled():
            return await self._run_in_background()
        try:
            await self._attempt_twice()
        except asyncio.CancelledError:
            await self._run_in_background()
            raise
        return None

    async def _run_in_background(self) -> Exception | None:
        """Go on in a task of its own, and wait for it for as long as a task that is being cancelled may take."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancellations = task.cancelling()
        releasing = asyncio.ensure_future(complete_shielded(self._what, self._persist, SETTLE_SECONDS))
        if self._connections is not None:
            self._connections.keep(releasing)
        is_done = await wait_shielded(releasing, asyncio.get_running_loop().time() + SETTLE_SECONDS)
        if task.cancelling() > cancellations:
            # Cancelled again: the caller may not raise the cancellation before.
            raise asyncio.CancelledError
        return releasing.result() if is_done and not releasing.cancelled() else TimeoutError()

    async def _persist(self) -> Exception | None:
        try:
            async with asyncio.timeout(_UNDO_SECONDS):
                if self._connections is None or not isinstance(self._token, _RandomToken):
                    # Another holder may have the same token soon.
                    await self._attempt_twice()
                else:
                    attempt = partial(self._attempt_anywhere, self._connections)
                    await retry_until_answered(attempt, _undo_backoff, on_failure=self._on_failure)
        except Exception as error:  # noqa: BLE001 - the caller has left, or is being cancelled
            failure = self._failure if self._failure and isinstance(error, TimeoutError) else error
            # An error's text may quote arguments.
            kind = type(failure).__qualname__
            _LOGGER.warning("%s failed while its task was being cancelled: %s", self._what, kind)
            return failure
        return None

    def _on_failure(self, error: RedisError) -> None:
        self._failure = error

    async def _attempt_anywhere(self, connections: DedicatedConnections) -> None:
        """Release on the client, which may have selected a database; then without it, as it may be closed."""
        if not self._was_tried_on_client:
            self._was_tried_on_client = True
            with suppress(PinnedConnectionLostError):
                await self._attempt()
                return
        await _release_on_side_channel(self._lock, connections, self._token)
        self._lock.on_released(self._hold, self._token)

    async def _attempt_twice(self) -> None:
        try:
            await self._attempt()
        except RedisError as error:
            if not is_connection_loss(error) or not is_transient(error):
                raise
            # If the first attempt has released the lock, this one finds nothing.
            await self._attempt()

    async def _attempt(self) -> None:
        is_repeated, self._may_be_released = self._may_be_released, True
        try:
            await self._lock.do_release(cast("bytes", self._token))
        except LockNotOwnedError:
            self._lock.on_released(self._hold, self._token, is_lost=not is_repeated)
            if not is_repeated:
                raise
        else:
            self._lock.on_released(self._hold, self._token)


async def _release_on_side_channel(lock: MonitoredLock, connections: DedicatedConnections, token: str | bytes) -> None:
    """Delete the key if it has the token, a random one, independently of the client's connection.

    Raises:
        redis.exceptions.RedisError: That failed.
    """
    client: Any = lock.redis
    executor = executor_of(client)
    databases = () if executor is None or executor.pin is None else executor.pin.databases
    command = ("EVAL", _UNDO, 1, lock.name, token, *databases)
    if executor is not None and executor.overrides_execute(client):
        # The key may have another name there.
        await execute_command(unpinned_copy(client), *command)
        return
    # After what was sent earlier, if that was sent on the shared connection, and it is still there.
    reply = await connections.side_channel()(*command)
    if isinstance(reply, Exception):
        raise reply.error if isinstance(reply, AttemptFailed) else reply


class _Hold:
    """What a holder of a lock has; alone, it is what all holders share.

    Attributes:
        token: The value of the key; ``None`` if it holds nothing.
        held_since: When it was acquired, by the performance counter; ``None`` if that is not known.
        number: The number of acquisitions when it was acquired, or else given up.
    """

    __slots__ = ("held_since", "number", "token")

    def __init__(self, token: str | bytes | None = None, number: int = 0) -> None:
        self.token = token
        self.held_since: float | None = None
        self.number = number

    def current(self) -> "_Hold":
        return self

    @property
    def last(self) -> "_Hold":
        return self

    def adopted(self, hold: "_Hold") -> AbstractContextManager[object]:
        """See ``_Holds``."""
        return nullcontext(hold)

    def give_up(self, hold: "_Hold", token: str | bytes) -> None:
        """See ``_Holds``; another holder may have acquired the lock meanwhile."""
        if hold.token == token:
            hold.token = None


class _Holds(threading.local):
    """What each task of a thread holds.

    Attributes:
        last: What was acquired last.
    """

    def __init__(self) -> None:
        self.last = _Hold()
        self._count = 0
        self._of_tasks: WeakKeyDictionary[asyncio.Task[Any], _Hold] = WeakKeyDictionary()

    def current(self) -> _Hold:
        """Return what the current task has acquired, or else what was acquired last since it released."""
        task = _current_task()
        hold = None if task is None else self._of_tasks.get(task)
        if hold is None or (hold.token is None and hold.number < self.last.number):
            return self.last
        return hold

    @contextmanager
    def adopted(self, hold: _Hold) -> Iterator[None]:
        """Let the current task hold what another one has acquired, for the block."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        before = self._of_tasks.get(task)
        self._of_tasks[task] = hold
        try:
            yield
        finally:
            if before is None:
                del self._of_tasks[task]
            else:
                self._of_tasks[task] = before

    def give_up(self, hold: _Hold, _token: str | bytes) -> None:
        """Hold it no more."""
        hold.token = None
        hold.number = self._count

    @property
    def token(self) -> str | bytes | None:
        """The current task's token, as in redis-py."""
        return self.current().token

    @token.setter
    def token(self, token: str | bytes | None) -> None:
        if token is None:
            self.give_up(self.current(), b"")
            return
        self._count += 1
        self.last = _Hold(token, self._count)
        task = _current_task()
        if task is not None:
            self._of_tasks[task] = self.last

    @property
    def held_since(self) -> float | None:
        """When the current task has acquired it, by the performance counter; ``None`` if that is not known."""
        return self.current().held_since

    @held_since.setter
    def held_since(self, since: float) -> None:
        self.current().held_since = since


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
