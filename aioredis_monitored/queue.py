"""An asynchronous message queue on a Redis list."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.typing import EncodableT

from aioredis_monitored.client import MonitoredRedisConnection
from aioredis_monitored.errors import TimedOutError
from aioredis_monitored.fetching import FETCH
from aioredis_monitored.leases import Consumer, Keys, Leases, Terms

_MOST_SECONDS = 1_000_000_000  # thirty years; Redis refuses what overflows its clock
_LEAST_LEASE = 1.0

T = TypeVar("T")


class MessageQueue:
    """Messages in a Redis list: ``put`` appends, ``get`` and ``take`` fetch from the head.

    ``close()`` and ``unlink()`` DELETE the list and every message in it. ``aclose()`` and leaving ``async with`` only
    let go of the queue, give back what this queue's takers hold, and never delete a message.

    Messages are bytes and are never decoded, whatever the client does; anything may be pushed to or popped from the
    list by others. How surely a message is delivered is chosen by each call:

    - ``get()``: at most once. A ``get`` that is cancelled puts back what was on its way to it; what is lost is what a
      connection that breaks, or a process that dies, has in its hands.
    - ``async with take() as message``: at least once. It is another consumer's when this one dies, or fails.

    Args:
        name: The key of the list.
        client: A pool or a client; a pool is not closed by the queue.
        lease: Seconds after which what a dead consumer has taken is somebody else's; default 30, at least 1. While a
            consumer lives it keeps what it has taken, for however long.
        max_deliveries: After how many deliveries without an acknowledgement a message goes to ``{name}:dead``; default
            ``None``, for never. Messages of the same bytes are counted together.

    Raises:
        TypeError: ``client`` is neither a pool nor a client.
        ValueError: The name is empty or has braces that are no hash tag's; another argument is out of range.
    """

    def __init__(
        self,
        name: str,
        client: ConnectionPool | Redis,
        *,
        lease: float = 30.0,
        max_deliveries: int | None = None,
    ) -> None:
        if not name:
            raise ValueError("a queue needs a name")
        self.name = name
        if isinstance(client, MonitoredRedisConnection):
            self.client = client
        else:
            pool = client.connection_pool if isinstance(client, Redis) else client
            if not isinstance(pool, ConnectionPool):
                message = f"a queue needs a pool or a client, not {type(client).__name__}"
                raise TypeError(message)
            self.client = MonitoredRedisConnection(connection_pool=pool)
        self._keys = Keys(name)
        self._leases = Leases(self.client, self._keys, Terms(lease, max_deliveries))
        self._pop = _Pop(name)

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
        seconds = _whole_seconds(timeout)
        command = ("LPOP", self.name) if seconds == 0 else ("BLPOP", self.name, seconds or 0)
        message: bytes | None = await self.client.execute_command(*command, **{FETCH: self._pop})
        if message is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        return message

    def take(self, timeout: float | None = None) -> "AbstractAsyncContextManager[bytes]":
        return _Taking(self._leases, 1, _seconds(timeout), lambda messages: messages[0])

    def take_many(self, count: int, timeout: float | None = None) -> "AbstractAsyncContextManager[list[bytes]]":
        return _Taking(self._leases, count, _seconds(timeout), list)

    async def put(self, message: EncodableT, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as in get()
        """Append a message.

        Args:
            message: bytes, or a str, int or float, which are encoded as redis-py does.
            timeout: Accepted for the sake of bounded queues; a Redis list has no bound to wait for.

        Raises:
            redis.exceptions.DataError: The message is of another type.
            ValueError: The timeout is negative, not a number, or more than a billion seconds.
        """
        _whole_seconds(timeout)
        await self.client.rpush(self.name, message)

    async def unlink(self) -> None:
        """Delete the list and every message in it; the queue can be used again."""
        await self.client.delete(self.name)

    async def close(self) -> None:
        """Delete the list and every message in it, as ``unlink`` does."""
        await self.unlink()

    async def aclose(self) -> None:
        """Let go of the queue; messages stay where they are, and a pool or client belongs to whoever made it."""
        await self._leases.let_go()

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


def _whole_seconds(timeout: Any) -> int | None:
    """BLPOP's timeout: rounded up, since 0 would mean for ever and older servers take no fractions."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout <= _MOST_SECONDS:
        message = f"timeout must be None or a number of seconds from 0 to {_MOST_SECONDS}, not {timeout!r}"
        raise ValueError(message)
    return math.ceil(float(timeout))


def _seconds(timeout):
    seconds = _whole_seconds(timeout)
    return math.inf if seconds is None else seconds


class _Taking:
    def __init__(self, leases, count, seconds, shape):
        self._leases = leases
        self._count = count
        self._seconds = seconds
        self._shape = shape

    async def __aenter__(self):
        taken = await self._leases.take(self._count, self._seconds)
        if taken is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        self._consumer, messages = taken
        return self._shape(messages)

    async def __aexit__(self, kind, error, traceback):
        if error is None:
            await self._leases.acknowledge(self._consumer)
        else:
            await self._leases.give_back(self._consumer, "RIGHT" if isinstance(error, Exception) else "LEFT")


class _Pop:
    """Fetches the message at the head."""

    longest_wait = 60.0

    def __init__(self, name):
        self._name = name

    def at_once(self):
        return "LPOP", self._name

    def found(self, reply):
        return reply

    def waiting(self, seconds):
        return [("BLPOP", self._name, math.ceil(seconds))]

    def arrived(self, reply):
        return None if reply is None else reply[1]

    def putting_back(self, found):
        return "LPUSH", self._name, found

    def note_unsettled(self):
        pass
