"""Appends messages to a queue, at once or as soon as it has room."""

import asyncio
from asyncio import sleep  # see attempts
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis.typing import EncodableT

from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._redispy.overrides import get_encoder
from aioredis_monitored._telemetry.context import nested_in
from aioredis_monitored._telemetry.messaging import MessagingOperation
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.errors import TimedOutError
from aioredis_monitored.pool.retry import exponential_backoff
from aioredis_monitored.queue.scripts import PUT
from aioredis_monitored.queue.telemetry import QueueTelemetry

# Between two attempts while the queue is full.
_room_backoff = exponential_backoff(0.002, 0.1)


class Producer:
    """Puts messages.

    Args:
        client: Runs the commands.
        queue: The key of the list.
        max_length: How many messages the queue may hold; ``None`` for any number.
        telemetry: The queue's.
        propagate: Whether messages carry the trace context of their ``put``.
    """

    def __init__(
        self,
        client: MonitoredRedisConnection,
        queue: str,
        max_length: int | None,
        telemetry: QueueTelemetry,
        *,
        propagate: bool,
    ) -> None:
        self._client = client
        self._executor = require_executor(client)
        self._queue = queue
        self._max_length = max_length
        self._telemetry = telemetry
        self._propagate = propagate
        self._script = MonitoredScript(client, PUT.text)

    async def put(self, messages: Sequence[EncodableT], seconds: float, *, is_batch: bool) -> None:
        """Append messages, all or none.

        Args:
            messages: At least one, at most ``max_length``.
            seconds: How long to wait for room.
            is_batch: Whether they come from ``put_many``.

        Raises:
            TimedOutError: There was no room for that long.
            redis.exceptions.RedisError: As for any command that writes.
        """
        telemetry, client = self._telemetry, self._client
        if self._max_length is not None:
            command: tuple[Any, ...] = PUT.evalsha((self._queue,), (self._max_length, *messages))
            bounded = partial(self._append_bounded, messages, self._max_length, seconds, is_batch)
            await self._executor.execute_messaging(client, telemetry.put_bounded, command, bounded)
        else:
            command = ("RPUSH", self._queue, *messages)
            append = partial(self._append, messages, is_batch)
            depth = await self._executor.execute_messaging(client, telemetry.put, command, append)
            telemetry.gauges.update(depth=depth)

    async def _append(
        self, messages: Sequence[EncodableT], is_batch: bool, operation: MessagingOperation | None
    ) -> int:
        if operation is not None:
            operation.set_message_count(len(messages), is_batch=is_batch)
        wrapped = self._wrap(messages, operation)
        depth: int = await self._executor.execute_part(self._client, operation, "RPUSH", self._queue, *wrapped)
        return depth

    async def _append_bounded(
        self,
        messages: Sequence[EncodableT],
        max_length: int,
        seconds: float,
        is_batch: bool,
        operation: MessagingOperation | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if operation is not None:
            operation.exclude_wait()
            operation.set_message_count(len(messages), is_batch=is_batch)
        wrapped = self._wrap(messages, operation)
        attempts = 1
        # No attempt has a span of its own.
        with nested_in(operation or self):
            while True:
                has_room, depth = await self._script([self._queue], [max_length, *wrapped])
                self._telemetry.gauges.update(depth=depth)
                if has_room:
                    return
                if (left := deadline - loop.time()) <= 0:
                    raise TimedOutError("Timed out waiting for room in the message queue.")
                await sleep(min(left, _room_backoff(attempts)))
                attempts += 1

    def _wrap(self, messages: Sequence[EncodableT], operation: MessagingOperation | None) -> Sequence[EncodableT]:
        if not self._propagate:
            return messages
        encode = get_encoder(self._client).encode
        return self._telemetry.wrap([encode(message) for message in messages], operation)
