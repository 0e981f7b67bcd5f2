"""An asynchronous message queue on a Redis list."""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, Final, Self

from redis.asyncio import ConnectionPool, Redis
from redis.typing import EncodableT

from aioredis_monitored._execution.fetch import FETCH
from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._redispy.overrides import NEVER_DECODE
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.envelope import unseal
from aioredis_monitored.errors import DedicatedConnectionError, TimedOutError
from aioredis_monitored.queue.consumer import LeaseConfig, QueueKeys
from aioredis_monitored.queue.leases import LeaseManager, TakeContext
from aioredis_monitored.queue.pop import PopFetch
from aioredis_monitored.queue.producer import Producer
from aioredis_monitored.queue.scripts import REQUEUE_DEAD
from aioredis_monitored.queue.telemetry import QueueTelemetry
from aioredis_monitored.queue.worker import Worker

_MAX_SECONDS: Final = 1_000_000_000  # thirty years; Redis refuses what overflows its clock
_MIN_LEASE_SECONDS: Final = 1
# More would keep the server from all else for long.
_MAX_REQUEUE_BATCH: Final = 100


class MessageQueue:
    """Messages in a Redis list: ``put`` appends, ``get`` and ``take`` fetch from the head.

    ``close()`` and ``unlink()`` DELETE the list and every message in it. ``aclose()`` and leaving ``async with`` only
    let go of the queue and never delete a message; what is held in ``take`` goes back.

    Messages are bytes and are never decoded, whatever the client does; anything may be pushed to or popped from the
    list by others. How surely a message is delivered, each call decides:

    - ``get()``: at most once. A ``get`` that is cancelled puts back what was on its way to it. What can be lost is what
      a process that dies, or a connection that breaks, has in its hands.
    - ``take()``: at least once. If its consumer fails, is cancelled or dies, the message is delivered again.

    A ``get`` or ``take`` that is cancelled may take a second to end, if the server is slow to answer.

    A server whose memory is full refuses ``put``; all else goes on, as it makes room. Set its ``maxmemory-policy`` to
    ``noeviction`` or one of ``volatile-*``: one of ``allkeys-*`` deletes messages when memory is short, which a queue
    whose messages are taken says once in the log.

    Args:
        name: The key of the list. The other keys of the queue are ``{name}:c``, ``:n``, ``:dead``, ``:sweeper`` and
            ``:p:…``, or ``name::c`` and so on if the name has a hash tag; no two queues have one in common.
        client: A pool or a client; a pool is not closed by the queue.
        lease: Seconds after which what a dead consumer has held is delivered to another one that uses ``take`` or
            ``consume`` with the same lease, a half more at most; at least 1, default 30. A consumer that lives keeps
            what it holds, for however long.
        max_deliveries: After so many deliveries without an acknowledgement a message goes to the list of the ``dead``;
            default ``None``, for never. Equal messages are counted as one. A message that fails in ``take`` and is then
            popped otherwise leaves its count behind; all counts are deleted when the queue is empty and none of it is
            held, or when there are 10,000 more than messages.
        max_length: How many messages the queue may hold, those not counted that are given back; default ``None``, for
            any number. It binds who puts through a queue with this argument.
        propagate: Put messages into an envelope, with what the application's propagators have to say of the span of
            ``put``, by default its trace context, and the time. ``get`` and ``take`` take it off, also without this
            argument; all others get it. Default ``False``.

    Raises:
        TypeError: ``client`` is neither a pool nor a client, or one that replaces ``execute_command``.
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
            message = f"a queue's name is text, not {type(name).__name__}"
            raise TypeError(message)
        if not _is_number(lease) or not _MIN_LEASE_SECONDS <= lease <= _MAX_SECONDS:
            message = f"lease must be a number of seconds from {_MIN_LEASE_SECONDS} to {_MAX_SECONDS}, not {lease!r}"
            raise ValueError(message)
        self.name = name
        self.client = _client_of(client)
        self._keys = QueueKeys(name)
        self._telemetry = QueueTelemetry(require_executor(self.client).recorder, name, propagate=propagate)
        self._pop = PopFetch(name, self._telemetry)
        terms = LeaseConfig(float(lease), None if max_deliveries is None else _count("max_deliveries", max_deliveries))
        # What renews leases must not wait until the one connection of a handle is free.
        kept = self.client.single_connection_client
        shared = MonitoredRedisConnection(connection_pool=self.client.connection_pool) if kept else self.client
        self._leases = LeaseManager(shared, self._keys, terms, self._telemetry)
        self._workers: set[Worker] = set()
        self._is_stopped = False
        self._max_length = None if max_length is None else _count("max_length", max_length)
        self._producer = Producer(self.client, name, self._max_length, self._telemetry, propagate=propagate)
        self._requeue_script = MonitoredScript(self.client, REQUEUE_DEAD.text)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} on {self.client.connection_pool!r}>"

    async def get(self, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the server keeps the time
        """Take the message at the head, waiting for one if there is none.

        Args:
            timeout: Seconds to wait, rounded up to whole ones (https://redis.io/docs/latest/commands/blpop/);
                ``None``, the default, waits for ever; 0 does not wait.

        Raises:
            TimedOutError: The queue stayed empty for that long.
            ValueError: The timeout is negative, not a number, or more than a billion seconds.
            redis.exceptions.ConnectionError: The server cannot be reached; a queue that cannot be seen is not empty.
            redis.exceptions.TimeoutError: The server did not answer, not even that the queue is empty.
        """
        (message,) = await self._popped(self._pop, timeout)
        return message

    async def get_many(self, count: int, timeout: float | None = None) -> list[bytes]:  # noqa: ASYNC109 - as in get()
        """Take up to ``count`` messages: those that are there, or the first one that comes.

        Args:
            count: How many at most.
            timeout: As in ``get``, and so is what is raised.
        """
        return await self._popped(PopFetch(self.name, self._telemetry, _count("count", count)), timeout)

    async def _popped(self, pop: PopFetch, timeout: float | None) -> list[bytes]:  # noqa: ASYNC109 - as in get()
        self._check_database()
        seconds = _whole_seconds(timeout)
        args = pop.poll_command() if seconds == 0 else ("BLPOP", self.name, seconds or 0)
        messages: list[bytes] | None = await self.client.execute_command(*args, **{FETCH: pop})
        if messages is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        payloads, _ = self._telemetry.unwrap(messages)
        return payloads

    def take(self, timeout: float | None = None) -> TakeContext[bytes]:
        """Hold the message at the head while a block runs: ``async with queue.take() as message: …``.

        Leaving the block acknowledges it: it is deleted. If the block raises, it goes back, to the tail; if it is
        cancelled, to the head. Acknowledging and giving back come to their end also if they are cancelled, within a
        second then; if the server does not answer, they are given up after five seconds, or a lease if that is less.
        Another task may leave it, as one does that closes an async generator: the block's span ends, but stays current
        in the task that has entered.

        Args:
            timeout: As in ``get``, and so is what is raised on entering.

        Raises:
            LeaseLostError: On leaving: this process has stood still for so long that another consumer has got the
                message meanwhile, or the message was deleted, by FLUSHALL for instance.
            redis.exceptions.RedisError: On leaving: the acknowledgement has got no answer for five seconds, or a lease
                if that is less. The message may come again.
        """
        self._check_database()
        return TakeContext(self._leases, None, _seconds(timeout), _single)

    def take_many(self, count: int, timeout: float | None = None) -> TakeContext[list[bytes]]:
        """Hold up to ``count`` messages: those that are there, or the first one that comes.

        They are acknowledged all together, or go back all together.

        Args:
            count: How many at most.
            timeout: As in ``take``, and so is what is raised.
        """
        self._check_database()
        return TakeContext(self._leases, _count("count", count), _seconds(timeout), list)

    async def consume(self, handler: Callable[[bytes], Awaitable[object]], *, concurrency: int = 8) -> None:
        """Take messages and handle them, until ``stop`` is called or this is cancelled.

        Either way it takes no more, and ends when the handlers have: after ``stop`` it returns, cancelled it raises
        ``CancelledError``. Cancelled while it waits for the handlers, it cancels them. A handler that raises gives its
        message back to the tail, after a pause of 0.1 s that doubles with each failure in a row, to 5 s. While the
        server cannot be reached, it tries again in such a way, and with pauses of up to 30 s while the server refuses
        what a ``credential_provider`` or ``password_file`` gives. It logs what it survives.

        Args:
            handler: A coroutine function that gets a message.
            concurrency: How many of them run at a time, at most; default 8.

        Raises:
            TypeError: The handler is no coroutine function.
            redis.exceptions.RedisError: What waiting will not change, such as a wrong ``password``.
            PoolClosedError: The pool was closed.
        """
        if not iscoroutinefunction(handler) and not iscoroutinefunction(getattr(type(handler), "__call__", None)):  # noqa: B004
            message = f"a handler is a coroutine function, not {handler!r}"
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
        """Let every ``consume`` of this queue take no more, and return when its handlers have ended.

        It returns at once, does nothing the second time, and can handle a signal:
        ``loop.add_signal_handler(signal.SIGTERM, queue.stop)``. It is for good: a ``consume`` that is called later
        returns at once, as the signal may come before it; another ``MessageQueue`` of the same name consumes. All other
        methods go on as before.
        """
        self._is_stopped = True
        for worker in self._workers:
            worker.stop()

    async def put(self, message: EncodableT, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in get()
        """Append a message.

        Args:
            message: bytes, or a str, int or float, which are encoded as redis-py does.
            timeout: Seconds to wait for room if the queue has a ``max_length``, as in ``get``.

        Raises:
            TimedOutError: There was no room for that long.
            redis.exceptions.DataError: The message is of another type.
            ValueError: The timeout is negative, not a number, or more than a billion seconds.
        """
        await self._put((message,), timeout, is_batch=False)

    async def put_many(self, messages: Iterable[EncodableT], timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in get()
        """Append messages in one piece, all or none; the arguments, and what is raised, are as in ``put``.

        Raises:
            TypeError: They are one message and not several.
            ValueError: They are more than ``max_length``.
        """
        if isinstance(messages, str | bytes | bytearray | memoryview):
            message = f"several messages are wanted, not one {type(messages).__name__}"
            raise TypeError(message)
        await self._put(tuple(messages), timeout, is_batch=True)

    async def _put(self, messages: Sequence[EncodableT], timeout: float | None, *, is_batch: bool) -> None:  # noqa: ASYNC109 - as in get()
        self._check_database()
        seconds = _seconds(timeout)
        if self._max_length is not None and len(messages) > self._max_length:
            message = f"{len(messages)} messages at once in a queue for {self._max_length}"
            raise ValueError(message)
        if messages:
            await self._producer.put(messages, seconds, is_batch=is_batch)

    async def dead(self) -> list[bytes]:
        """The messages that were delivered ``max_deliveries`` times, the oldest first; they stay where they are."""
        messages = await self.client.execute_command("LRANGE", self._keys.dead, 0, -1, **{NEVER_DECODE: True})
        self._telemetry.stats.update(dead=len(messages))
        return [unseal(message)[0] for message in messages]

    async def requeue_dead(self) -> int:
        """Put those messages back to the tail of the queue, as if they had never been delivered; return how many."""
        left = total = await self.client.llen(self._keys.dead)
        while left > 0 and (
            moved := await self._requeue_script([self._keys.dead, self.name], [min(left, _MAX_REQUEUE_BATCH)])
        ):
            left -= moved
        self._telemetry.stats.update(dead=left)
        return total - left

    async def unlink(self) -> None:
        """Delete the list and every message in it; the queue can be used again."""
        await self.client.delete(self.name, self._keys.deliveries)
        self._telemetry.stats.update(depth=0)

    async def close(self) -> None:
        """Delete the list and every message in it, as ``unlink`` does."""
        await self.unlink()

    async def aclose(self) -> None:
        """Let go of the queue; messages stay where they are, and a pool or client is not closed.

        What is held in ``take`` goes back. If the server does not answer, that is given up after five seconds, or a
        lease if that is less, and it goes back when the lease has ended.
        """
        await self._leases.release_all()

    def _check_database(self) -> None:
        """Refuse to put where this queue does not take from, and to fetch what would go back elsewhere.

        Raises:
            OwnConnectionError: The client, or the application on it, has selected another one.
        """
        pin = require_executor(self.client).pin
        if pin is not None and pin.databases:
            message = f"this client has selected database {', '.join(sorted(pin.databases))}"
            raise DedicatedConnectionError(f"{message}: a queue needs a pool whose db that is")

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
        if require_executor(client).overrides_execute:
            message = f"{type(client).__name__} replaces execute_command, which sees nothing of a queue: pass its pool"
            raise TypeError(message)
        return client
    pool = client.connection_pool if isinstance(client, Redis) else client
    if not isinstance(pool, ConnectionPool):
        message = f"a queue needs a pool or a client, not {type(client).__name__}"
        raise TypeError(message)
    return MonitoredRedisConnection(connection_pool=pool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        message = f"{name} must be a whole number from 1 on, not {value!r}"
        raise ValueError(message)
    return value


def _whole_seconds(timeout: Any) -> int | None:
    """BLPOP's timeout: rounded up, since 0 would mean for ever and older servers take no fractions."""
    if timeout is None:
        return None
    if not _is_number(timeout) or not 0 <= timeout <= _MAX_SECONDS:
        message = f"timeout must be None or a number of seconds from 0 to {_MAX_SECONDS}, not {timeout!r}"
        raise ValueError(message)
    return math.ceil(float(timeout))


def _seconds(timeout: Any) -> float:
    seconds = _whole_seconds(timeout)
    return math.inf if seconds is None else seconds


def _single(messages: list[bytes]) -> bytes:
    return messages[0]
