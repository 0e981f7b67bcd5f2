"""Handles the messages of a queue until it is cancelled; nothing that befalls it ends that silently."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from typing import Final, cast

from redis.backoff import EqualJitterBackoff
from redis.exceptions import RedisError

from aioredis_monitored.errors import LeaseLostError
from aioredis_monitored.leases import HEAD, TAIL, Consumer, Leases
from aioredis_monitored.patience import finish
from aioredis_monitored.retry import may_pass

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# Seconds before what has failed is tried again, doubled with each failure in a row.
_BACKOFF: Final = EqualJitterBackoff(cap=5.0, base=0.05)
# Seconds that handlers which are cancelled get.
_GRACE: Final = 5.0


class Worker:
    """Some loops that take and handle one message at a time each.

    Args:
        name: Of the queue, for the log.
        leases: Of the queue.
        handler: Handles a message; what it raises gives the message back to the tail, after a pause.
        concurrency: How many loops.
    """

    def __init__(
        self, name: str, leases: Leases, handler: Callable[[bytes], Awaitable[object]], concurrency: int
    ) -> None:
        self._name = name
        self._leases = leases
        self._handler = handler
        self._concurrency = concurrency
        self._draining = asyncio.Event()
        self._idle: set[asyncio.Task[None]] = set()
        # One waits for all: the others would only hold a connection each.
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Work until this is cancelled: then no more is taken, and what was begun comes to its end.

        Cancelled a second time, it cancels the handlers, whose messages go back to the head.

        Raises:
            redis.exceptions.RedisError: The server refuses, which waiting will not change.
        """
        loops = [asyncio.create_task(self._loop()) for _ in range(self._concurrency)]
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._drain()
            try:
                await asyncio.wait(loops)
            except asyncio.CancelledError:
                for loop in loops:
                    loop.cancel()
                await finish(lambda: asyncio.wait(loops), _GRACE)
                raise
            finally:
                self._tell(loops)
        for loop in loops:
            loop.result()

    def _tell(self, loops: list[asyncio.Task[None]]) -> None:
        # One error is raised, or none if this was cancelled; asyncio would complain of each that nobody looks at.
        for loop in loops:
            if loop.done() and not loop.cancelled() and (error := loop.exception()) is not None:
                _LOGGER.warning("queue %r: a worker's loop has ended: %s", self._name, type(error).__qualname__)

    def _drain(self) -> None:
        self._draining.set()
        for loop in self._idle:
            loop.cancel()

    async def _loop(self) -> None:
        failures = 0
        while not self._draining.is_set():
            try:
                consumer = await self._next()
            except asyncio.CancelledError:
                if self._draining.is_set():
                    return
                raise
            except RedisError as error:
                if not may_pass(error):
                    raise
                failures += 1
                _LOGGER.warning("queue %r: nothing can be taken for now: %s", self._name, _kind(error))
                await self._pause(failures)
            else:
                failures = 0 if await self._handled(consumer, failures) else failures + 1

    async def _next(self) -> Consumer:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._idle.add(task)
        try:
            consumer = await self._leases.take(1, 0)
            if consumer is None:
                async with self._turn:
                    while consumer is None:
                        consumer = await self._leases.take(1, inf)
        finally:
            self._idle.discard(task)
        return consumer

    async def _handled(self, consumer: Consumer, failures: int) -> bool:
        side: str | None = HEAD
        try:
            if await self._succeeds(consumer.messages[0]):
                side = None
            else:
                side = TAIL
                await self._pause(failures + 1)
        finally:
            if side is not None:
                await self._leases.give_back(consumer, side)
        if side is not None:
            return False
        try:
            await self._leases.acknowledge(consumer)
        except LeaseLostError as error:
            _LOGGER.warning("queue %r: handled, but not acknowledged: %s", self._name, error)
        except RedisError as error:
            if not may_pass(error):
                raise
            _LOGGER.warning("queue %r: handled, but not acknowledged: %s", self._name, _kind(error))
        return True

    async def _succeeds(self, message: bytes) -> bool:
        try:
            await self._handler(message)
        except asyncio.CancelledError:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            # Of something that the handler has waited for.
            _LOGGER.exception("queue %r: a handler was cancelled", self._name)
        except Exception:
            _LOGGER.exception("queue %r: a handler has failed", self._name)
        else:
            return True
        return False

    async def _pause(self, failures: int) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_BACKOFF.compute(failures)):
                await self._draining.wait()


def _kind(error: Exception) -> str:
    return type(error).__qualname__
