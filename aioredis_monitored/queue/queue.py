"""The public message queue: checks arguments, and hands them to the producer, the pop, the leases or a worker."""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import iscoroutinefunction
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, cast

from redis.asyncio import ConnectionPool, Redis
from redis.typing import EncodableT

from aioredis_monitored._execution.fetch import FETCH
from aioredis_monitored._execution.routing import reading_primaries, require_executor
from aioredis_monitored._redispy.overrides import NEVER_DECODE
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.envelope import unseal
from aioredis_monitored.errors import DedicatedConnectionError, TimedOutError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.health import problem_of
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.queue.consumer import LeaseConfig, QueueKeys
from aioredis_monitored.queue.health import QueueHealth
from aioredis_monitored.queue.inspection import QueueInspector, QueueStats
from aioredis_monitored.queue.leases import LeaseManager, TakeContext
from aioredis_monitored.queue.pop import PopFetch
from aioredis_monitored.queue.producer import Producer
from aioredis_monitored.queue.scripts import DROP_DEAD, REQUEUE_DEAD
from aioredis_monitored.queue.telemetry import QueueTelemetry
from aioredis_monitored.queue.worker import Worker

_MAX_SECONDS: Final = 1_000_000_000  # thirty years; Redis refuses what overflows its clock
_MIN_LEASE_SECONDS: Final = 1
# A wait takes up to 15 s, and an answer may be late.
_MIN_WITHIN_SECONDS: Final = 20
# A larger batch of dead letters would block the server for long.
_MAX_DEAD_BATCH: Final = 100


class MessageQueue:
    """Messages in a Redis list: ``put`` appends, ``get`` and ``take`` fetch from the head.

    ``close()`` and ``unlink()`` DELETE the list and every message in it. ``aclose()`` and leaving ``async with`` never
    delete a message; they requeue what is held in ``take``.

    Messages are bytes and are never decoded, whatever the client does; other programs may push to the list and pop from
    it. Each call chooses its delivery guarantee:

    - ``get()``: at most once. A cancelled ``get`` puts back the message that it was receiving. A message can be lost
      when a process dies, or a connection breaks, that was receiving it.
    - ``take()``: at least once. If its consumer fails, is cancelled or dies, the message is delivered again.

    A cancelled ``get`` or ``take`` may take a second to end if the server is slow to answer.

    A server that is out of memory refuses ``put``; everything else works, as it frees memory. Set the server's
    ``maxmemory-policy`` to ``noeviction`` or one of ``volatile-*``: ``allkeys-*`` deletes messages when memory is
    short, of which a queue whose messages are taken logs one warning.

    Args:
        name: The key of the list. The other keys of the queue are ``{name}:c``, ``:n``, ``:dead``, ``:sweeper`` and
            ``:p:…``, or ``name::c`` and so on if the name has a hash tag; no two queues share a key.
        client: A pool or a client; the queue does not close it.
        lease: Seconds after which a dead consumer's messages are delivered to another consumer that uses ``take`` or
            ``consume`` with the same lease, or up to half a lease later; at least 1, default 30. A live consumer keeps
            what it holds for any length of time.
        max_deliveries: The number of deliveries without an acknowledgement after which a message becomes a dead letter
            (see ``dead``); default ``None``, for never. Equal messages share a count. A message that fails in ``take``
            and is then popped otherwise leaves its count behind; all counts are deleted when the queue is empty and no
            message is held, or when there are 10,000 more counts than messages.
        max_length: How many messages the queue may hold, not counting requeued ones; default ``None``, for any number.
            It limits only those who put through a queue with this argument.
        propagate: Put messages into an envelope with the time and what the application's propagators inject for the
            span of ``put``, by default its trace context. ``get`` and ``take`` unwrap it, also without this argument;
            other readers get the envelope. Default ``False``.

    Raises:
        TypeError: ``client`` is neither a pool nor a client, or overrides ``execute_command``.
        ValueError: The name is empty, has braces that are not those of a hash tag, or is that of another queue's key;
            or another argument is out of range.
    """

    def __init__(
        self,
        name: str,
        client: ConnectionPool | Redis,
        *,
        lease: float = 30.0,
        max_deliveries: int | None = None,
        max_length: int | None = None,
        propagate: bool = False,
    ) -> None:
        if not name:
            raise ValueError("a queue needs a name")
        if not isinstance(name, str):
            message = f"name must be text, got {type(name).__name__}"
            raise TypeError(message)
        if not _is_number(lease) or not _MIN_LEASE_SECONDS <= lease <= _MAX_SECONDS:
            message = f"lease must be a number of seconds from {_MIN_LEASE_SECONDS} to {_MAX_SECONDS}, got {lease!r}"
            raise ValueError(message)
        self.name = name
        self.client = _client_of(client)
        self._keys = QueueKeys(name)
        self._telemetry = QueueTelemetry(require_executor(self.client).recorder, name, propagate=propagate)
        self._pop = PopFetch(name, self._telemetry)
        config = LeaseConfig(float(lease), None if max_deliveries is None else _count("max_deliveries", max_deliveries))
        # The renewal of leases must not wait until a client's only connection is free.
        is_pinned = self.client.single_connection_client
        unpinned = _client_of(self.client.connection_pool) if is_pinned else self.client
        self._leases = LeaseManager(unpinned, self._keys, config, self._telemetry)
        self._workers: set[Worker] = set()
        self._is_stopped = False
        self._max_length = None if max_length is None else _count("max_length", max_length)
        self._producer = Producer(self.client, name, self._max_length, self._telemetry, propagate=propagate)
        self._inspector = QueueInspector(self.client, self._keys)
        self._requeue_script = MonitoredScript(self.client, REQUEUE_DEAD.text)
        self._drop_script = MonitoredScript(self.client, DROP_DEAD.text)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.client.connection_pool!r}>"

    async def get(self, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the server keeps the time
        """Pop the message at the head, waiting for one if there is none.

        Args:
            timeout: Seconds to wait, rounded up to whole ones (https://redis.io/docs/latest/commands/blpop/);
                ``None``, the default, waits for ever; 0 does not wait.

        Raises:
            TimedOutError: The queue stayed empty for that long.
            ValueError: The timeout is negative, not a number, or more than a billion seconds.
            redis.exceptions.ConnectionError: The server cannot be reached, which is not an empty queue.
            redis.exceptions.TimeoutError: The server did not answer, not even that the queue is empty.
        """
        (message,) = await self._pop_messages(self._pop, timeout)
        return message

    async def get_many(self, count: int, timeout: float | None = None) -> list[bytes]:  # noqa: ASYNC109 - as in get()
        """Pop up to ``count`` messages: those in the queue, or the first one that comes.

        Args:
            count: How many at most.
            timeout: As in ``get``; so are the errors raised.
        """
        return await self._pop_messages(PopFetch(self.name, self._telemetry, _count("count", count)), timeout)

    async def _pop_messages(self, pop: PopFetch, wait: float | None) -> list[bytes]:
        self._check_database()
        seconds = _whole_seconds(wait)
        args = pop.poll_command() if seconds == 0 else ("BLPOP", self.name, seconds or 0)
        messages: list[bytes] | None = await self.client.execute_command(*args, **{FETCH: pop})
        if messages is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        payloads, _ = self._telemetry.unwrap(messages)
        return payloads

    def take(self, timeout: float | None = None) -> TakeContext[bytes]:
        """Hold the message at the head while a block runs: ``async with queue.take() as message: …``.

        Leaving the block acknowledges the message, which deletes it. An exception requeues it at the tail, a
        cancellation at the head. Acknowledging and requeueing complete despite cancellation, within a second then; if
        the server does not answer, they are given up after five seconds, or a lease if that is less. Another task may
        leave the block, as when it closes an async generator: the block's span ends, but stays current in the task that
        entered.

        Args:
            timeout: As in ``get``; so are the errors raised on entering.

        Raises:
            LeaseLostError: On leaving: this process did not renew its lease in time and another consumer got the
                message, or the message was deleted, by FLUSHALL for instance.
            redis.exceptions.RedisError: On leaving: the server did not answer the acknowledgement for five seconds, or
                a lease if that is less. The message may be delivered again.
        """
        self._check_database()
        return TakeContext(self._leases, None, _seconds(timeout), _single)

    def take_many(self, count: int, timeout: float | None = None) -> TakeContext[list[bytes]]:
        """Hold up to ``count`` messages: those in the queue, or the first one that comes.

        All of them are acknowledged, or all are requeued.

        Args:
            count: How many at most.
            timeout: As in ``take``; so are the errors raised.
        """
        self._check_database()
        return TakeContext(self._leases, _count("count", count), _seconds(timeout), list)

    async def consume(self, handler: Callable[[bytes], Awaitable[object]], *, concurrency: int = 8) -> None:
        """Take messages and handle them, until ``stop`` is called or this is cancelled.

        Both end the taking and wait for the running handlers: after ``stop`` it returns, cancelled it raises
        ``CancelledError``. A cancellation while it waits for the handlers cancels them. A handler that raises requeues
        its message at the tail, after a pause of 0.1 s that doubles with each failure in a row, up to 5 s. While the
        server is unavailable, it retries after such pauses, or of up to 30 s while the server refuses the credentials
        of a ``credential_provider`` or ``password_file``. It logs every failure that does not end it.

        Args:
            handler: A coroutine function that gets a message.
            concurrency: How many handlers run at a time, at most; default 8.

        Raises:
            TypeError: The handler is no coroutine function.
            redis.exceptions.RedisError: An error that waiting does not cure, such as a wrong ``password``.
            PoolClosedError: The pool was closed.
        """
        if not iscoroutinefunction(handler) and not iscoroutinefunction(type(handler).__call__):
            message = f"handler must be a coroutine function, got {handler!r}"
            raise TypeError(message)
        self._check_database()
        worker = Worker(self.name, self._leases, handler, _count("concurrency", concurrency))
        if self._is_stopped:
            return
        self._workers.add(worker)
        try:
            await worker.run()
        finally:
            self._workers.discard(worker)

    def stop(self) -> None:
        """Make every ``consume`` of this queue take no more messages, and return when its handlers have ended.

        It returns at once, does nothing when repeated, and can handle a signal:
        ``loop.add_signal_handler(signal.SIGTERM, queue.stop)``. It is final: a later ``consume`` returns at once, as
        the signal may come before it; another ``MessageQueue`` of the same name can consume. All other methods go on
        working.
        """
        self._is_stopped = True
        for worker in self._workers:
            worker.stop()

    async def put(self, message: EncodableT, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in get()
        """Append a message.

        Args:
            message: bytes, or a str, int or float, which are encoded as redis-py does.
            timeout: Seconds to wait for room, as in ``get``; without ``max_length`` it has no effect.

        Raises:
            TimedOutError: There was no room for that long.
            redis.exceptions.DataError: The message is of another type.
            ValueError: The timeout is negative, not a number, or more than a billion seconds.
        """
        await self._put((message,), timeout, is_batch=False)

    async def put_many(self, messages: Iterable[EncodableT], timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in get()
        """Append messages in one step, all or none.

        Args:
            messages: Any number of messages, each as in ``put``.
            timeout: As in ``put``; so are the errors raised, beside these.

        Raises:
            TypeError: ``messages`` is a single message.
            ValueError: There are more than ``max_length``.
        """
        if isinstance(messages, str | bytes | bytearray | memoryview):
            message = f"put_many() expects an iterable of messages, got {type(messages).__name__}"
            raise TypeError(message)
        await self._put(tuple(messages), timeout, is_batch=True)

    async def _put(self, messages: Sequence[EncodableT], wait: float | None, *, is_batch: bool) -> None:
        self._check_database()
        seconds = _seconds(wait)
        if self._max_length is not None and len(messages) > self._max_length:
            message = f"{len(messages)} messages exceed the queue's max_length of {self._max_length}"
            raise ValueError(message)
        if messages:
            await self._producer.put(messages, seconds, is_batch=is_batch)

    async def dead(self, count: int | None = None) -> list[bytes]:
        """Return the dead letters, which were delivered ``max_deliveries`` times, the oldest first, and keep them.

        Args:
            count: How many at most; default ``None``, for all.
        """
        last = -1 if count is None else _count("count", count) - 1
        messages = await self.client.execute_command("LRANGE", self._keys.dead, 0, last, **{NEVER_DECODE: True})
        if count is None:
            self._telemetry.gauges.update(dead=len(messages))
        return [unseal(message)[0] for message in messages]

    async def requeue_dead(self, count: int | None = None) -> int:
        """Move dead letters to the tail of the queue, with their delivery counts at zero; return how many.

        Args:
            count: How many at most, the oldest ones; default ``None``, for all that there are now.
        """
        return await self._remove_dead(self._requeue_script, [self._keys.dead, self.name], count)

    async def drop_dead(self, count: int | None = None) -> int:
        """Delete dead letters; return how many.

        Args:
            count: How many at most, the oldest ones; default ``None``, for all that there are now.
        """
        return await self._remove_dead(self._drop_script, [self._keys.dead], count)

    async def _remove_dead(self, script: MonitoredScript, keys: list[str], count: int | None) -> int:
        if count is not None:
            _count("count", count)
        total = await self.client.llen(self._keys.dead)
        left = wanted = total if count is None else min(total, count)
        while left > 0 and (removed := await script(keys, [min(left, _MAX_DEAD_BATCH)])):
            left -= removed
        self._telemetry.gauges.update(dead=total - wanted + left)
        return wanted - left

    async def stats(self) -> QueueStats:
        """Return what the queue holds and how many consumers are alive, of all processes.

        It is not read in one step: a message that is moved meanwhile may be counted twice or not at all.

        Raises:
            redis.exceptions.RedisError: The server cannot be reached, or refuses.
        """
        stats = await self._inspector.stats()
        self._telemetry.gauges.update(depth=stats.depth, dead=stats.dead)
        return stats

    async def health(self, within: float | None = None) -> QueueHealth:
        """Return whether the queue's server takes calls, and whether this process consumes; it never raises.

        The server is asked as ``MonitoredConnectionPool.health`` does it, in one attempt.

        Args:
            within: Seconds within which this process must have taken a message, or have been told that there is none,
                by any ``MessageQueue`` of this name on the same pool; at least 20, as a wait takes up to 15. A handler
                that takes longer while no other one is free counts as an outage too. Default ``None``: it need not
                consume.

        Raises:
            ValueError: ``within`` is out of range.
        """
        if within is not None and (not _is_number(within) or not _MIN_WITHIN_SECONDS <= within <= _MAX_SECONDS):
            message = f"within must be a number of seconds from {_MIN_WITHIN_SECONDS} to {_MAX_SECONDS}, got {within!r}"
            raise ValueError(message)
        problem = await self._server_problem()
        fetched_at = self._telemetry.gauges.fetched_at
        idle = None if fetched_at is None else monotonic() - fetched_at
        if not problem and within is not None and (idle is None or idle > within):
            problem = "this process has never consumed" if idle is None else f"nothing was taken for {idle:.0f} s"
        return QueueHealth(idle, problem)

    async def _server_problem(self) -> str:
        pool = self.client.connection_pool
        try:
            if not isinstance(pool, MonitoredConnectionPool):
                await self.client.ping()
                return ""
            health = await pool.health()
            if not isinstance(pool, MonitoredClusterPool) or not health.servers:
                return health.problem
            # Other nodes have other queues.
            node = await pool.of(("LLEN", self.name)).server_health()
        except Exception as error:  # noqa: BLE001 - also what a credential provider raises
            return problem_of(error)
        return node.problem

    async def unlink(self) -> None:
        """Delete the list and every message in it; the queue can be used again."""
        await self.client.delete(self.name, self._keys.deliveries)
        self._telemetry.gauges.update(depth=0)

    async def close(self) -> None:
        """Delete the list and every message in it, as ``unlink`` does."""
        await self.unlink()

    async def aclose(self) -> None:
        """Requeue what is held in ``take``; delete no message, and close no pool or client.

        If the server does not answer for five seconds, or a lease if that is less, the messages are redelivered when
        the lease expires.
        """
        await self._leases.release_all()

    def _check_database(self) -> None:
        """Check that the client works on the database of its pool, where leases are renewed and messages requeued.

        Raises:
            DedicatedConnectionError: The client has selected another one.
        """
        pin = require_executor(self.client).pin
        if pin is not None and pin.databases:
            message = f"this client has selected database {', '.join(sorted(pin.databases))}"
            raise DedicatedConnectionError(f"{message}: give the queue a pool with that db")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await self.get()


def _client_of(client: ConnectionPool | Redis) -> MonitoredRedisConnection:
    if isinstance(client, MonitoredRedisConnection):
        if require_executor(client).overrides_execute(client):
            message = f"{type(client).__name__} overrides execute_command, which a queue bypasses: pass its pool"
            raise TypeError(message)
        return cast("MonitoredRedisConnection", reading_primaries(client))
    pool = client.connection_pool if isinstance(client, Redis) else client
    if not isinstance(pool, ConnectionPool):
        message = f"client must be a pool or a client, got {type(client).__name__}"
        raise TypeError(message)
    return cast("MonitoredRedisConnection", reading_primaries(MonitoredRedisConnection(connection_pool=pool)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        message = f"{name} must be an integer of at least 1, got {value!r}"
        raise ValueError(message)
    return value


def _whole_seconds(timeout: Any) -> int | None:
    """Round a timeout up for BLPOP, where 0 means for ever and older servers refuse fractions."""
    if timeout is None:
        return None
    if not _is_number(timeout) or not 0 <= timeout <= _MAX_SECONDS:
        message = f"timeout must be None or a number of seconds from 0 to {_MAX_SECONDS}, got {timeout!r}"
        raise ValueError(message)
    return math.ceil(float(timeout))


def _seconds(timeout: Any) -> float:
    seconds = _whole_seconds(timeout)
    return math.inf if seconds is None else seconds


def _single(messages: list[bytes]) -> bytes:
    return messages[0]
