"""Taking messages, acknowledging them, giving them back: at no time can one be lost."""

import asyncio
import builtins
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from math import isinf
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from redis.exceptions import NoScriptError, RedisError, TimeoutError  # noqa: A004
from redis.typing import EncodableT

from aioredis_monitored._cancellation import cleaning_up, complete_shielded
from aioredis_monitored._execution.attempts import retry_until_answered
from aioredis_monitored._execution.fetch import SETTLE_SECONDS
from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._telemetry.messaging import MessagingOperation, ProcessSpan
from aioredis_monitored._telemetry.operation import NestedCall, Operation
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored._timeouts import DeadlineTimer
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.errors import LeaseLostError, TimedOutError
from aioredis_monitored.pool.credentials import has_renewable_credentials
from aioredis_monitored.queue import scripts
from aioredis_monitored.queue.consumer import Consumer, LeaseConfig, LeaseFetch, QueueKeys
from aioredis_monitored.queue.renewal import LeaseRenewer
from aioredis_monitored.queue.scripts import HEAD, TAIL
from aioredis_monitored.queue.telemetry import QueueTelemetry

if TYPE_CHECKING:
    from aioredis_monitored._telemetry.messaging import ProcessSpan
    from aioredis_monitored.queue.consumer import Consumer


_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# Seconds for which what may be repeated is tried while the server does not answer, and between two attempts.
_MAX_RETRY_SECONDS: Final = 5.0
_RETRY_DELAY_SECONDS: Final = 0.05


class LeaseManager:
    """What the consumers of a queue in this process hold.

    Args:
        client: What to do it on.
        keys: Those of the queue.
        terms: On what terms messages are held.
        telemetry: Of the queue.
    """

    def __init__(
        self, client: MonitoredRedisConnection, keys: QueueKeys, terms: LeaseConfig, telemetry: QueueTelemetry
    ) -> None:
        self._client = client
        self._keys = keys
        self._terms = terms
        self._telemetry = telemetry
        self._take_script = MonitoredScript(client, scripts.TAKE)
        self._ack_script = MonitoredScript(client, scripts.ACK)
        self._nack_script = MonitoredScript(client, scripts.NACK)
        self._counts_script = MonitoredScript(client, scripts.DELIVERY_COUNTS)
        self._free: list[Consumer] = []
        self._alive: set[Consumer] = set()
        self._deadlines = DeadlineTimer()
        self._renewer = LeaseRenewer(client, keys, terms, self._alive, self._recover, telemetry.stats)
        telemetry.stats.track(self, terms.lease)

    @property
    def has_renewable_credentials(self) -> bool:
        """Whether there may be other credentials by and by, when the server refuses those that there are."""
        return has_renewable_credentials(self._client.connection_pool)

    def __len__(self) -> int:
        """How many messages are held."""
        return sum(len(consumer.messages) for consumer in list(self._alive))

    async def take(self, count: int | None, seconds: float) -> Consumer | None:
        """Take what is there, or comes within so many seconds: as many as asked for of the former, one of the latter.

        Args:
            count: How many to take at most; ``None`` for the first one.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            Who holds them now; ``None`` if there are none.

        Raises:
            redis.exceptions.RedisError: The server cannot be reached, or refuses.
        """
        consumer = self._free.pop() if self._free else Consumer(self._keys, self._terms)
        self._alive.add(consumer)
        self._renewer.wake()
        try:
            messages = await self._fetch(consumer, count, seconds)
        except BaseException:
            self._release(consumer, is_clean=False)
            raise
        if messages is None:
            self._release(consumer, is_clean=True)
            return None
        # It may have been stopped meanwhile.
        self._renewer.wake()
        consumer.messages, consumer.carriers = self._telemetry.unwrap(messages)
        consumer.is_batch = count is not None
        return consumer

    async def _fetch(self, consumer: Consumer, count: int | None, seconds: float) -> list[bytes] | None:
        queue, about = self._keys.queue, self._telemetry.take
        fetch = LeaseFetch(consumer, self._keys, self._terms, count, self._telemetry, self._take_script.sha)
        command = ("BLMOVE", queue, consumer.processing, "LEFT", "RIGHT", 0 if isinf(seconds) else seconds)
        return await require_executor(self._client).execute_messaging(
            self._client, about, command, partial(self._fetched, fetch, seconds)
        )

    async def _fetched(
        self, fetch: LeaseFetch, seconds: float, operation: MessagingOperation | None
    ) -> list[bytes] | None:
        messages: list[bytes] | None
        try:
            messages = await require_executor(self._client).fetch_part(self._client, fetch, seconds, operation)
        except NoScriptError:
            if operation is not None:
                operation.expect_more()
            fetch.send_script()
            messages = await require_executor(self._client).fetch_part(self._client, fetch, seconds, operation)
        return messages

    def _release(self, consumer: Consumer, *, is_clean: bool) -> None:
        self._alive.discard(consumer)
        consumer.messages = []
        if is_clean:
            self._free.append(consumer)

    def process(self, consumer: Consumer) -> ProcessSpan:
        """The record of what is done with what it holds."""
        return self._telemetry.process_span(consumer.carriers, self._client.server_span)

    async def ack(self, consumer: Consumer) -> None:
        """Delete what it holds, also if this is cancelled, which is then a second late at most.

        Raises:
            LeaseLostError: It holds that no longer: it went to another consumer, or was deleted.
            redis.exceptions.RedisError: The server has not answered for five seconds, or a lease if that is less; what
                was held comes back when the lease has ended.
        """
        keys = consumer.delivery_keys()
        if consumer not in self._alive:
            message = f"queue {self._keys.queue!r}: what was held went back when the queue was closed"
            raise LeaseLostError(message)
        try:
            await self._settle(
                self._telemetry.ack, consumer, self._ack_script, keys, partial(self._run_ack, consumer, keys)
            )
        except BaseException:
            self._release(consumer, is_clean=False)
            raise
        self._release(consumer, is_clean=not consumer.outcome_unknown)

    async def _run_ack(self, consumer: Consumer, keys: Sequence[str], operation: Operation | None) -> None:
        was_doubted, consumer.outcome_unknown = consumer.outcome_unknown, True

        def doubt(_: RedisError) -> None:
            nonlocal was_doubted
            was_doubted = True

        there = await self._retry_script(self._ack_script, keys, (), operation, self._deadline(), doubt)
        consumer.outcome_unknown = was_doubted
        total = len(consumer.messages)
        lost = total - there
        # After an attempt without an answer, what is no longer there may have been deleted by that.
        if lost and not consumer.outcome_unknown:
            self._telemetry.on_lease_lost(lost)
            message = (
                f"queue {self._keys.queue!r}: {lost} of {total} messages were no longer held: another consumer got "
                "them, as this process had not renewed its lease in time, or they were deleted (FLUSHALL, eviction)"
            )
            raise LeaseLostError(message)

    async def delivery_counts(self, consumer: Consumer) -> tuple[int, int]:
        """How often the message that it holds was delivered in vain, and in how many of these its consumer died.

        Raises:
            redis.exceptions.RedisError: The server has not answered for five seconds, or a lease if that is less.
        """
        if not consumer.may_be_redelivery:
            return 0, 0
        deliveries, deaths = await self._retry_script(
            self._counts_script, consumer.delivery_keys(), (), None, self._deadline()
        )
        return deliveries, deaths

    async def nack(self, consumer: Consumer, side: str, *, counts: bool = True) -> None:
        """Put what it holds back, also if this is cancelled, which is then a second late at most.

        If the server does not answer for five seconds, or a lease if that is less, it comes back when the lease has
        ended.

        Args:
            consumer: Who holds it.
            side: The end of the queue, ``HEAD`` or ``TAIL``.
            counts: Whether it was a delivery; default ``True``.
        """
        if consumer not in self._alive:
            # The queue was closed meanwhile.
            return
        # From now on it holds nothing: whoever acknowledges meanwhile is told.
        self._alive.discard(consumer)
        keys, arguments = consumer.nack_arguments(side, counts=counts, force=True)
        try:
            await self._settle(
                self._telemetry.nack,
                consumer,
                self._nack_script,
                keys,
                partial(self._run_nack, keys, arguments),
            )
        except RedisError as error:
            # Whoever gives back has an error of its own to tell.
            kind = type(error).__qualname__
            _LOGGER.warning("queue %r: what was held comes back when its lease has ended: %s", self._keys.queue, kind)
        finally:
            self._release(consumer, is_clean=False)

    async def _settle(
        self,
        about: MessagingSpec,
        consumer: Consumer,
        script: MonitoredScript,
        keys: Sequence[str],
        settle: Callable[[Operation | None], Coroutine[Any, Any, object]],
    ) -> None:
        async def finished(operation: MessagingOperation | None) -> None:
            if operation is not None:
                operation.set_message_count(len(consumer.messages), is_batch=consumer.is_batch)
            await complete_shielded(
                f"queue {self._keys.queue!r}: {about.name}", lambda: settle(operation), SETTLE_SECONDS
            )

        await require_executor(self._client).execute_messaging(
            self._client, about, ("EVALSHA", script.sha, len(keys), *keys), finished
        )

    async def _run_nack(
        self, keys: Sequence[str], arguments: Sequence[EncodableT], operation: Operation | None
    ) -> None:
        is_more, deadline = True, self._deadline()
        while is_more:
            *_, is_more = await self._retry_script(self._nack_script, keys, arguments, operation, deadline)

    async def _recover(self, consumer: Consumer) -> None:
        keys, arguments = consumer.nack_arguments(scripts.HEAD, counts=True, force=False)
        is_more, deadline = True, self._deadline()
        while is_more:
            back, dead, is_more = await self._retry_script(self._nack_script, keys, arguments, None, deadline)
            # At once: all of it may take longer than there is time.
            if back or dead:
                self._telemetry.on_recovered(back + dead)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + min(_MAX_RETRY_SECONDS, self._terms.lease)

    async def _retry_script(
        self,
        script: MonitoredScript,
        keys: Sequence[str],
        arguments: Sequence[EncodableT],
        operation: Operation | None,
        deadline: float,
        on_failure: Callable[[RedisError], None] | None = None,
    ) -> Any:
        """Run a script that may be repeated until it is answered, or the deadline has come."""
        failure: RedisError | None = None

        async def attempt() -> Any:
            part = None if operation is None else NestedCall(operation)
            return await script.run_part(part, keys, *arguments)

        def note_failure(error: RedisError) -> None:
            nonlocal failure
            failure = error
            if on_failure is not None:
                on_failure(error)

        try:
            # An attempt alone may take as long as the client's socket_timeout.
            return await self._deadlines.run_until(
                deadline, retry_until_answered(attempt, lambda _: _RETRY_DELAY_SECONDS, on_failure=note_failure)
            )
        except builtins.TimeoutError:
            raise failure or TimeoutError("no answer from the server in time") from None

    async def release_all(self) -> None:
        """Give back all that is held, and do no more until something is taken again.

        It takes five seconds at most, or a lease if that is less.
        """
        self._renewer.stop()
        deadline = self._deadline()
        with cleaning_up(f"queue {self._keys.queue!r}: closing it"):
            # All at once, as each may take that long.
            holding = [consumer for consumer in self._alive if consumer.messages]
            await asyncio.gather(*(self.nack(consumer, scripts.HEAD) for consumer in holding))
            if self._free:
                free, self._free = self._free, []
                with suppress(RedisError, builtins.TimeoutError):
                    # Otherwise, another consumer would find that they hold nothing.
                    async with asyncio.timeout_at(deadline):
                        ids = [each.id for each in free]
                        await require_executor(self._client).execute_part(
                            self._client, None, "ZREM", self._keys.consumers, *ids
                        )


T_co = TypeVar("T_co", covariant=True)


class TakeContext(Generic[T_co]):
    """``async with`` it: leaving acknowledges, an error gives back to the tail, a cancellation to the head.

    Args:
        leases: Of the queue.
        count: How many messages to take at most; ``None`` for the first one.
        seconds: How long to wait for the first one; ``math.inf`` for ever, 0 not at all.
        shape: Makes of them what the block gets.
    """

    def __init__(
        self, leases: LeaseManager, count: int | None, seconds: float, shape: Callable[[list[bytes]], T_co]
    ) -> None:
        self._leases = leases
        self._count = count
        self._seconds = seconds
        self._shape = shape
        self._is_entered = False
        self._held: tuple[Consumer, ProcessSpan] | None = None

    async def __aenter__(self) -> T_co:
        if self._is_entered:
            raise RuntimeError("a take holds one message at a time: call take() again for another one")
        self._is_entered, consumer = True, None
        try:
            consumer = await self._leases.take(self._count, self._seconds)
        finally:
            self._is_entered = consumer is not None
        if consumer is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        processing = self._leases.process(consumer)
        processing.__enter__()
        self._held = consumer, processing
        return self._shape(consumer.messages)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        consumer, processing = cast("tuple[Consumer, ProcessSpan]", self._held)
        self._is_entered, self._held = False, None
        processing.__exit__(kind, error, traceback)
        if error is None:
            await self._leases.ack(consumer)
        else:
            await self._leases.nack(consumer, TAIL if isinstance(error, Exception) else HEAD)
