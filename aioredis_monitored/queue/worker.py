"""Runs handlers on a queue's messages until it is stopped or cancelled; logs every failure."""

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

# Before a message that failed is requeued, and before the next attempt on a server that is unavailable.
_failure_backoff = exponential_backoff(0.1, 5.0)
# Before the next attempt with credentials that were refused: too many of them lock an account.
_auth_backoff = exponential_backoff(0.1, 30.0)
# How long cancelled handlers may take to end.
_CANCEL_SECONDS: Final = 5.0


class Worker:
    """Loops that each take and handle one message at a time.

    A message whose consumer has died is handled alone: if it kills this process too, no other message's delivery count
    grows.

    Args:
        name: The queue's, for the log.
        leases: The queue's.
        handler: Handles a message; an error that it raises requeues the message at the tail, after a pause.
        concurrency: How many loops.
    """

    def __init__(
        self, name: str, leases: LeaseManager, handler: Callable[[bytes], Awaitable[object]], concurrency: int
    ) -> None:
        self._name = name
        self._leases = leases
        self._handler = handler
        self._concurrency = concurrency
        self._is_draining = False
        # Loops that claim a message, and those of them whose claim is being cancelled, as a message is handled alone.
        self._claiming: set[asyncio.Task[None]] = set()
        self._interrupted: set[asyncio.Task[None]] = set()
        # One loop waits for all: the others would only hold a connection each.
        self._waiting_lock = asyncio.Lock()
        # How many loops hold a message; and set whenever one stops holding or claiming.
        self._holding = 0
        self._released = asyncio.Event()
        # Set while messages may be claimed: not while one is handled alone.
        self._may_claim = asyncio.Event()
        self._may_claim.set()
        # Set while pauses are cut short: a message waits to be handled alone, or the worker is draining.
        self._skip_pauses = asyncio.Event()
        # When refused credentials may be tried again, by the monotonic clock.
        self._next_login = 0.0

    async def run(self) -> None:
        """Take and handle messages until this is stopped or cancelled; then wait for the running handlers.

        A second cancellation cancels the handlers, whose messages are requeued at the head.

        Raises:
            redis.exceptions.RedisError: An error that waiting does not cure.
        """
        loops = [asyncio.create_task(self._loop(), context=without_span()) for _ in range(self._concurrency)]
        try:
            is_stopped = await self._wait_stopped(loops)
        except asyncio.CancelledError:
            for loop in loops:
                loop.cancel()
            await complete_shielded(
                f"queue {self._name!r}: ending its handlers", lambda: asyncio.wait(loops), _CANCEL_SECONDS
            )
            raise
        finally:
            errors = self._errors_of(loops)
        if errors:
            raise errors[0]
        if not is_stopped:
            # A loop was cancelled by itself, by code that cancels every task.
            raise asyncio.CancelledError

    async def _wait_stopped(self, loops: Collection[asyncio.Task[None]]) -> bool:
        """Wait until a loop ends, and then for all of them; return whether ``stop`` caused it."""
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self._is_draining:
                await self._drain(loops)
            raise
        is_stopped = self._is_draining
        await self._drain(loops)
        return is_stopped

    async def _drain(self, loops: Collection[asyncio.Task[None]]) -> None:
        self.stop()
        with shielded():
            await asyncio.wait(loops)

    def stop(self) -> None:
        """Claim no more messages; the loops end when their handlers have."""
        if not self._is_draining:
            self._is_draining = True
            self._skip_pauses.set()
            for loop in self._claiming:
                loop.cancel()

    def _errors_of(self, loops: list[asyncio.Task[None]]) -> list[BaseException]:
        # At most one is raised; asyncio logs each error that is never retrieved.
        ended = [loop for loop in loops if loop.done() and not loop.cancelled()]
        errors = [error for loop in ended if (error := loop.exception()) is not None]
        for error in errors:
            _LOGGER.warning("queue %r: a worker's loop ended with an error: %s", self._name, _kind(error))
        return errors

    async def _loop(self) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        work = partial(self._work, task)
        while not self._is_draining:
            try:
                await retry_until_answered(
                    work,
                    _failure_backoff,
                    after_refusal=self._auth_delay if self._leases.has_renewable_credentials else None,
                    on_failure=self._log_outage,
                    pause=self._pause,
                )
            except asyncio.CancelledError:
                if self._is_draining:
                    return
                # Otherwise only its claim was interrupted (see _claim).
                if task.cancelling():
                    raise

    async def _work(self, task: asyncio.Task[None]) -> None:
        while not self._may_claim.is_set():
            await self._may_claim.wait()
        if not self._is_draining:
            await self._process(await self._claim(task))

    def _auth_delay(self, failures: int) -> float:
        # The same time for all loops: they share an attempt where they share a connection.
        now = monotonic()
        if self._next_login <= now:
            self._next_login = now + _auth_backoff(failures)
        return self._next_login - now

    def _log_outage(self, error: RedisError) -> None:
        _LOGGER.warning("queue %r: server unavailable, retrying: %s", self._name, _kind(error))

    async def _claim(self, task: asyncio.Task[None]) -> Consumer:
        self._claiming.add(task)
        try:
            consumer = await self._leases.take(None, 0)
            if consumer is None:
                async with self._waiting_lock:
                    while consumer is None:
                        consumer = await self._leases.take(None, inf)
        finally:
            self._claiming.discard(task)
            self._released.set()
            if task in self._interrupted:
                self._interrupted.discard(task)
                task.uncancel()
        return consumer

    async def _process(self, consumer: Consumer) -> None:
        self._holding += 1
        is_delivered = False
        try:
            deliveries, deaths = await self._leases.delivery_counts(consumer)
            if deaths and not self._may_claim.is_set():
                await self._leases.nack(consumer, HEAD, is_delivery=False)
            else:
                is_delivered = True
                succeeds = await (self._handle_alone(consumer) if deaths else self._handle(consumer))
                await self._settle(consumer, deliveries, succeeds=succeeds)
        except BaseException:
            # Without effect if it is settled.
            await self._leases.nack(consumer, HEAD, is_delivery=is_delivered)
            raise
        finally:
            self._holding -= 1
            self._released.set()

    async def _handle_alone(self, consumer: Consumer) -> bool:
        self._may_claim.clear()
        self._skip_pauses.set()
        try:
            self._interrupted |= self._claiming
            for loop in self._claiming:
                loop.cancel()
            while self._claiming or self._holding > 1:
                self._released.clear()
                await self._released.wait()
            return await self._handle(consumer)
        finally:
            self._may_claim.set()
            if not self._is_draining:
                self._skip_pauses.clear()

    async def _settle(self, consumer: Consumer, deliveries: int, *, succeeds: bool) -> None:
        if not succeeds:
            await self._pause(_failure_backoff(deliveries + 1))
            await self._leases.nack(consumer, TAIL)
            return
        try:
            await self._leases.ack(consumer)
        except LeaseLostError as error:
            _LOGGER.warning("queue %r: handled, but the acknowledgement failed: %s", self._name, error)
        except RedisError as error:
            is_refusal = isinstance(error, AuthenticationError)
            if not (is_transient(error) or (is_refusal and self._leases.has_renewable_credentials)):
                raise
            _LOGGER.warning("queue %r: handled, but the acknowledgement failed: %s", self._name, _kind(error))

    async def _handle(self, consumer: Consumer) -> bool:
        try:
            with self._leases.process(consumer):
                await self._handler(consumer.messages[0])
        except asyncio.CancelledError:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            _LOGGER.exception("queue %r: a handler was cancelled by something that it awaited", self._name)
        except Exception:
            _LOGGER.exception("queue %r: a handler failed", self._name)
        else:
            return True
        return False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._skip_pauses.wait()


def _kind(error: BaseException) -> str:
    return type(error).__qualname__
