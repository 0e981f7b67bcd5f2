"""Handles the messages of a queue until it is stopped or cancelled, and logs every failure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import Final, cast

from redis.exceptions import AuthenticationError, RedisError

from aioredis_monitored._cancellation import complete_shielded, shielded
from aioredis_monitored._execution.attempts import retry_until_answered
from aioredis_monitored._telemetry.context import without_span
from aioredis_monitored.errors import LeaseLostError
from aioredis_monitored.pool.retry import exponential_backoff, is_transient
from aioredis_monitored.queue.consumer import Consumer
from aioredis_monitored.queue.leases import LeaseManager
from aioredis_monitored.queue.scripts import HEAD, TAIL

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# Seconds before what has failed is tried again, doubled with each failure in a row.
_failure_backoff = exponential_backoff(0.1, 5.0)
# The same where credentials were refused: too many attempts lock an account.
_auth_backoff = exponential_backoff(0.1, 30.0)
# Seconds that handlers which are cancelled get.
_CANCEL_SECONDS: Final = 5.0


class Worker:
    """Some loops that take and handle one message at a time each.

    A message whose consumer has died is handled alone: when it kills this one too, it must not count against others.

    Args:
        name: Of the queue, for the log.
        leases: Of the queue.
        handler: Handles a message; what it raises gives the message back to the tail, after a pause.
        concurrency: How many loops.
    """

    def __init__(
        self, name: str, leases: LeaseManager, handler: Callable[[bytes], Awaitable[object]], concurrency: int
    ) -> None:
        self._name = name
        self._leases = leases
        self._handler = handler
        self._concurrency = concurrency
        self._draining = asyncio.Event()
        # Loops that wait for a message, and those of them that are to stop, as one is handled alone.
        self._idle: set[asyncio.Task[None]] = set()
        self._stopped: set[asyncio.Task[None]] = set()
        # One waits for all: the others would only hold a connection each.
        self._waiting_lock = asyncio.Lock()
        # How many loops hold a message; set when one lets go of its own, or no longer waits for one.
        self._holding = 0
        self._released = asyncio.Event()
        # Whether messages may be taken, and whether nobody pauses: not while one is handled alone.
        self._open, self._hurry = asyncio.Event(), asyncio.Event()
        self._open.set()
        # When credentials are tried again that were refused, by the monotonic clock.
        self._next_login = 0.0

    async def run(self) -> None:
        """Work until this is stopped or cancelled: then no more is taken, and what was begun comes to its end.

        Cancelled after that, it cancels the handlers, whose messages go back to the head.

        Raises:
            redis.exceptions.RedisError: The server refuses, which waiting will not change.
        """
        loops = [asyncio.create_task(self._loop(), context=without_span()) for _ in range(self._concurrency)]
        try:
            is_stopped = await self._wait_stopped(loops)
        except asyncio.CancelledError:
            for loop in loops:
                loop.cancel()
            await complete_shielded(
                f"queue {self._name!r}: the end of its handlers", lambda: asyncio.wait(loops), _CANCEL_SECONDS
            )
            raise
        finally:
            errors = self._errors_of(loops)
        if errors:
            raise errors[0]
        if not is_stopped:
            # Something has cancelled a loop and not this.
            raise asyncio.CancelledError

    async def _wait_stopped(self, loops: Collection[asyncio.Task[None]]) -> bool:
        """Wait until this is to end and the loops have ended; return whether it was stopped."""
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self._draining.is_set():
                await self._drain(loops)
            raise
        is_stopped = self._draining.is_set()
        await self._drain(loops)
        return is_stopped

    async def _drain(self, loops: Collection[asyncio.Task[None]]) -> None:
        self.stop()
        with shielded():
            await asyncio.wait(loops)

    def stop(self) -> None:
        """Take no more, and end with what was begun."""
        if not self._draining.is_set():
            self._draining.set()
            self._hurry.set()
            for loop in self._idle:
                loop.cancel()

    def _errors_of(self, loops: list[asyncio.Task[None]]) -> list[BaseException]:
        # One is raised, or none if this was cancelled; asyncio would complain of each that nobody looks at.
        ended = [loop for loop in loops if loop.done() and not loop.cancelled()]
        errors = [error for loop in ended if (error := loop.exception()) is not None]
        for error in errors:
            _LOGGER.warning("queue %r: a worker's loop has ended: %s", self._name, _kind(error))
        return errors

    async def _loop(self) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        work = partial(self._work, task)
        while not self._draining.is_set():
            try:
                await retry_until_answered(
                    work,
                    _failure_backoff,
                    after_refusal=self._auth_delay if self._leases.has_renewable_credentials else None,
                    on_failure=self._log_outage,
                    pause=self._pause,
                )
            except asyncio.CancelledError:
                if self._draining.is_set():
                    return
                # One that was to stop waiting is no longer being cancelled.
                if task.cancelling():
                    raise

    async def _work(self, task: asyncio.Task[None]) -> None:
        while not self._open.is_set():
            await self._open.wait()
        if not self._draining.is_set():
            await self._process(await self._claim(task))

    def _auth_delay(self, failures: int) -> float:
        # All at the same time: then they share an attempt where they share a connection.
        now = monotonic()
        if self._next_login <= now:
            self._next_login = now + _auth_backoff(failures)
        return self._next_login - now

    def _log_outage(self, error: RedisError) -> None:
        _LOGGER.warning("queue %r: server unavailable, retrying: %s", self._name, _kind(error))

    async def _claim(self, task: asyncio.Task[None]) -> Consumer:
        self._idle.add(task)
        try:
            consumer = await self._leases.take(None, 0)
            if consumer is None:
                async with self._waiting_lock:
                    while consumer is None:
                        consumer = await self._leases.take(None, inf)
        finally:
            self._idle.discard(task)
            self._released.set()
            if task in self._stopped:
                self._stopped.discard(task)
                task.uncancel()
        return consumer

    async def _process(self, consumer: Consumer) -> None:
        self._holding += 1
        is_delivered = False
        try:
            deliveries, deaths = await self._leases.delivery_counts(consumer)
            if deaths and not self._open.is_set():
                await self._leases.nack(consumer, HEAD, is_delivery=False)
            else:
                is_delivered = True
                succeeds = await (self._handle_alone(consumer) if deaths else self._handle(consumer))
                await self._settle(consumer, deliveries, succeeds=succeeds)
        except BaseException:
            # Unless it was, by now.
            await self._leases.nack(consumer, HEAD, is_delivery=is_delivered)
            raise
        finally:
            self._holding -= 1
            self._released.set()

    async def _handle_alone(self, consumer: Consumer) -> bool:
        self._open.clear()
        self._hurry.set()
        try:
            self._stopped |= self._idle
            for loop in self._idle:
                loop.cancel()
            while self._idle or self._holding > 1:
                self._released.clear()
                await self._released.wait()
            return await self._handle(consumer)
        finally:
            self._open.set()
            if not self._draining.is_set():
                self._hurry.clear()

    async def _settle(self, consumer: Consumer, deliveries: int, *, succeeds: bool) -> None:
        if not succeeds:
            await self._pause(_failure_backoff(deliveries + 1))
            await self._leases.nack(consumer, TAIL)
            return
        try:
            await self._leases.ack(consumer)
        except LeaseLostError as error:
            _LOGGER.warning("queue %r: handled, but not acknowledged: %s", self._name, error)
        except RedisError as error:
            is_refusal = isinstance(error, AuthenticationError)
            if not (is_transient(error) or (is_refusal and self._leases.has_renewable_credentials)):
                raise
            _LOGGER.warning("queue %r: handled, but not acknowledged: %s", self._name, _kind(error))

    async def _handle(self, consumer: Consumer) -> bool:
        try:
            with self._leases.process(consumer):
                await self._handler(consumer.messages[0])
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

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()


def _kind(error: BaseException) -> str:
    return type(error).__qualname__
