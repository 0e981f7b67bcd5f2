"""At least once: a message is held under a lease until it is acknowledged, and never lost meanwhile."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from math import isinf
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._cancellation import SETTLE_SECONDS, cleaning_up, complete_cancelled, shielded
from aioredis_monitored._execution.attempts import retry_until_answered
from aioredis_monitored._execution.fetch import MAX_WAIT_SECONDS
from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._telemetry.messaging import MessagingOperation, ProcessSpan
from aioredis_monitored._telemetry.operation import NestedCall, Observer, Operation
from aioredis_monitored._telemetry.spans import MessagingSpec
from aioredis_monitored._timeouts import DeadlineTimer
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.errors import LeaseLostError, TimedOutError
from aioredis_monitored.pool.credentials import has_renewable_credentials
from aioredis_monitored.queue.consumer import Consumer, LeaseConfig, QueueKeys, register_command
from aioredis_monitored.queue.renewal import LeaseRenewer
from aioredis_monitored.queue.scripts import ACK, DELIVERY_COUNTS, HEAD, NACK, TAIL, TAKE, LuaScript
from aioredis_monitored.queue.telemetry import QueueTelemetry

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# How long a script is repeated while the server does not answer, at most a lease, and the delay between two attempts.
_MAX_RETRY_SECONDS: Final = 5.0
_RETRY_DELAY_SECONDS: Final = 0.05
_NO_REPLY: Final = "no reply from the server in time"

T_co = TypeVar("T_co", covariant=True)


class TakeContext(Generic[T_co]):
    """Holds messages while a block runs: ``async with``.

    Leaving the block acknowledges them, an error requeues them at the tail, a cancellation at the head.

    Args:
        leases: The queue's.
        count: How many messages to take at most; ``None`` for one.
        seconds: How long to wait for the first one; ``math.inf`` for ever, 0 not at all.
        shape: Makes what the block gets of the messages.
    """

    def __init__(
        self, leases: "LeaseManager", count: int | None, seconds: float, shape: Callable[[list[bytes]], T_co]
    ) -> None:
        self._leases = leases
        self._count = count
        self._seconds = seconds
        self._shape = shape
        self._is_entered = False
        self._held: tuple[Consumer, ProcessSpan] | None = None

    async def __aenter__(self) -> T_co:
        if self._is_entered:
            raise RuntimeError("this take() is in use: call take() again for another message")
        self._is_entered, consumer = True, None
        try:
            consumer = await self._leases.take(self._count, self._seconds)
        finally:
            self._is_entered = consumer is not None
        if consumer is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        span = self._leases.process(consumer)
        span.__enter__()
        self._held = consumer, span
        return self._shape(consumer.messages)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        consumer, span = cast("tuple[Consumer, ProcessSpan]", self._held)
        self._is_entered, self._held = False, None
        span.__exit__(kind, error, traceback)
        if error is None:
            await self._leases.ack(consumer)
        else:
            await self._leases.nack(consumer, TAIL if isinstance(error, Exception) else HEAD)


class LeaseManager:
    """Takes messages under leases and settles them: the messages that this process holds of a queue.

    Args:
        client: Runs the commands.
        keys: The queue's.
        config: The lease and the limit of deliveries.
        telemetry: The queue's.
    """

    def __init__(
        self, client: MonitoredRedisConnection, keys: QueueKeys, config: LeaseConfig, telemetry: QueueTelemetry
    ) -> None:
        self._client = client
        self._executor = require_executor(client)
        self._keys = keys
        self._config = config
        self._telemetry = telemetry
        # Consumers that may take again, and those that take or hold messages.
        self._free: list[Consumer] = []
        self._active: set[Consumer] = set()
        self._timer = DeadlineTimer()
        self._renewer = LeaseRenewer(client, keys, config, self._active, self._recover, telemetry.gauges)
        telemetry.gauges.track(self, config.lease)

    @property
    def has_renewable_credentials(self) -> bool:
        """Whether the pool may get other credentials later when the server refuses the present ones."""
        return has_renewable_credentials(self._client.connection_pool)

    def __len__(self) -> int:
        """Return how many messages this process holds."""
        # A copy: exporters read from another thread.
        return sum(len(consumer.messages) for consumer in list(self._active))

    async def take(self, count: int | None, seconds: float) -> Consumer | None:
        """Take the messages that are in the queue, or wait for one.

        Args:
            count: How many to take at most; ``None`` for one.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            The consumer that holds the messages; ``None`` if none came.

        Raises:
            redis.exceptions.RedisError: The server cannot be reached, or refuses.
        """
        consumer = self._free.pop() if self._free else Consumer(self._keys, self._config)
        self._active.add(consumer)
        self._renewer.wake()
        try:
            messages = await self._fetch(consumer, count, seconds)
        except BaseException:
            self._release(consumer, is_reusable=False)
            raise
        if messages is None:
            self._release(consumer, is_reusable=True)
            return None
        # release_all() may have stopped it during the wait.
        self._renewer.wake()
        consumer.messages, consumer.carriers = self._telemetry.unwrap(messages)
        consumer.is_batch = count is not None
        return consumer

    def _fetch(self, consumer: Consumer, count: int | None, seconds: float) -> Coroutine[Any, Any, list[bytes] | None]:
        fetch = LeaseFetch(consumer, self._keys, self._config, count, self._telemetry)
        command = ("BLMOVE", self._keys.queue, consumer.processing, "LEFT", "RIGHT", 0 if isinf(seconds) else seconds)
        return self._executor.execute_messaging(
            self._client, self._telemetry.take, command, partial(self._run_fetch, fetch, seconds)
        )

    async def _run_fetch(
        self, fetch: "LeaseFetch", seconds: float, operation: MessagingOperation | None
    ) -> list[bytes] | None:
        messages: list[bytes] | None
        try:
            messages = await self._executor.fetch_part(self._client, fetch, seconds, operation)
        except NoScriptError:
            if operation is not None:
                operation.expect_more()
            fetch.send_script()
            messages = await self._executor.fetch_part(self._client, fetch, seconds, operation)
        return messages

    def _release(self, consumer: Consumer, *, is_reusable: bool) -> None:
        self._active.discard(consumer)
        consumer.messages = []
        if is_reusable:
            self._free.append(consumer)

    def process(self, consumer: Consumer) -> ProcessSpan:
        """Return the record of the processing of what a consumer holds."""
        return self._telemetry.process_span(consumer.carriers, self._client.server_span)

    async def delivery_counts(self, consumer: Consumer) -> tuple[int, int]:
        """Return how often its message was delivered and not acknowledged, and how often its consumer died of that.

        Raises:
            redis.exceptions.RedisError: The server has not answered for five seconds, or a lease if that is less.
        """
        if not consumer.may_be_redelivery:
            return 0, 0
        deliveries, deaths = await self._run(_ScriptCall(DELIVERY_COUNTS, consumer.delivery_keys()), None)
        return deliveries, deaths

    async def ack(self, consumer: Consumer) -> None:
        """Delete what a consumer holds; a cancellation is raised when that is done, within a second.

        Raises:
            LeaseLostError: The consumer no longer holds it: another consumer got it, or it was deleted.
            redis.exceptions.RedisError: The server has not answered for five seconds, or a lease if that is less; the
                messages are redelivered when the lease expires.
        """
        if consumer not in self._active:
            message = f"queue {self._keys.queue!r}: the message was requeued when the queue was closed"
            raise LeaseLostError(message)
        call = _ScriptCall(ACK, consumer.delivery_keys(), (), partial(self._check_held, consumer))
        try:
            await self._settle(self._telemetry.ack, consumer, call)
        except BaseException:
            self._release(consumer, is_reusable=False)
            raise
        self._release(consumer, is_reusable=not call.outcome_unknown)

    def _check_held(self, consumer: Consumer, held: int, outcome_unknown: bool) -> bool:
        total = len(consumer.messages)
        lost = total - held
        # An earlier attempt without a reply may have deleted them.
        if lost and not outcome_unknown:
            self._telemetry.on_lease_lost(lost)
            message = (
                f"queue {self._keys.queue!r}: {lost} of {total} messages were no longer held: another consumer got "
                "them, as this process had not renewed its lease in time, or they were deleted (FLUSHALL, eviction)"
            )
            raise LeaseLostError(message)
        return False

    async def nack(self, consumer: Consumer, side: str, *, is_delivery: bool = True) -> None:
        """Requeue what a consumer holds; a cancellation is raised when that is done, within a second.

        If the server does not answer for five seconds, or a lease if that is less, the messages are redelivered when
        the lease expires; that is logged.

        Args:
            consumer: Holds the messages. If the queue was closed meanwhile, it holds none and nothing happens.
            side: The end of the queue, ``HEAD`` or ``TAIL``.
            is_delivery: Whether it counts as a delivery; default ``True``.
        """
        if consumer not in self._active:
            return
        # From now on it holds nothing: an ack meanwhile raises LeaseLostError.
        self._active.discard(consumer)
        call = _ScriptCall(NACK, *consumer.nack_arguments(side, is_delivery=is_delivery, recovers=False), _has_more)
        try:
            await self._settle(self._telemetry.nack, consumer, call)
        except RedisError as error:
            # The caller has an error to raise already.
            _LOGGER.warning(
                "queue %r: nack failed; the message will be redelivered when its lease expires: %s",
                self._keys.queue,
                type(error).__qualname__,
            )
        finally:
            self._release(consumer, is_reusable=False)

    async def _recover(self, consumer: Consumer) -> None:
        """Requeue what an expired consumer of any process holds."""

        def on_reply(reply: Sequence[int], outcome_unknown: bool) -> bool:
            back, dead, _ = reply
            # At once: all of it may take longer than there is time.
            if back or dead:
                self._telemetry.on_recovered(back + dead)
            return _has_more(reply, outcome_unknown)

        arguments = consumer.nack_arguments(HEAD, is_delivery=True, recovers=True)
        await self._run(_ScriptCall(NACK, *arguments, on_reply), None)

    # Every coroutine between TakeContext and the client costs each acknowledgement time: there are ack, _run_settling
    # and _run.

    def _settle(self, spec: MessagingSpec, consumer: Consumer, call: "_ScriptCall") -> Coroutine[Any, Any, None]:
        command = call.script.evalsha(call.keys)
        return self._executor.execute_messaging(
            self._client, spec, command, partial(self._run_settling, spec, consumer, call)
        )

    async def _run_settling(
        self, spec: MessagingSpec, consumer: Consumer, call: "_ScriptCall", operation: MessagingOperation | None
    ) -> None:
        """Run a settling script to completion; a cancellation is raised when that is done, within a second."""
        if operation is not None:
            operation.set_message_count(len(consumer.messages), is_batch=consumer.is_batch)
        with shielded():
            try:
                await self._run(call, operation)
            except asyncio.CancelledError:
                call.outcome_unknown = True
                what = f"queue {self._keys.queue!r}: {spec.name}"
                await complete_cancelled(what, partial(self._run, call, operation), SETTLE_SECONDS)
                raise

    async def _run(self, call: "_ScriptCall", operation: Operation | None) -> Any:
        """Run a script until it has no more to do, within five seconds, or a lease if that is less.

        Returns:
            The last reply.

        Raises:
            redis.exceptions.RedisError: The server has not answered in time, or refuses.
        """
        # The operation's outcome is not known with a reply: the script may have more to do.
        observer = None if operation is None else NestedCall(operation)
        command = call.script.evalsha(call.keys, call.arguments)
        deadline = self._deadline()
        while True:
            failure: RedisError | None = None
            try:
                # An attempt alone may take the client's socket_timeout.
                with self._timer.until(deadline):
                    reply = await self._executor.execute_part(self._client, observer, *command)
            except RedisError as error:
                failure = error
            except TimeoutError:
                raise RedisTimeoutError(_NO_REPLY) from None
            if failure is not None:
                reply = await self._retry(call, observer, deadline, failure)
            if call.has_more is None or not call.has_more(reply, call.outcome_unknown):
                return reply

    async def _retry(self, call: "_ScriptCall", observer: Observer | None, deadline: float, failure: RedisError) -> Any:
        # A server that does not know the script has certainly not run it.
        last = None if isinstance(failure, NoScriptError) else failure

        def on_failure(error: RedisError) -> None:
            nonlocal last
            last, call.outcome_unknown = error, True

        # With the script itself: a server that has restarted does not know it.
        attempt = partial(
            self._executor.execute_part, self._client, observer, *call.script.eval(call.keys, call.arguments)
        )
        try:
            with self._timer.until(deadline):
                return await retry_until_answered(
                    attempt, lambda _: _RETRY_DELAY_SECONDS, on_failure=on_failure, failure=last
                )
        except TimeoutError:
            raise last or RedisTimeoutError(_NO_REPLY) from None

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + min(_MAX_RETRY_SECONDS, self._config.lease)

    async def release_all(self) -> None:
        """Requeue all that is held, and stop renewing leases until the next take.

        It takes five seconds at most, or a lease if that is less.
        """
        self._renewer.stop()
        deadline = self._deadline()
        with cleaning_up(f"queue {self._keys.queue!r}: closing it"):
            # All at once, as each may take that long.
            holding = [consumer for consumer in self._active if consumer.messages]
            await asyncio.gather(*(self.nack(consumer, HEAD) for consumer in holding))
            if self._free:
                free, self._free = self._free, []
                with suppress(RedisError, TimeoutError):
                    # Otherwise, another consumer would look for what they hold when their leases have expired.
                    async with asyncio.timeout_at(deadline):
                        ids = [consumer.id for consumer in free]
                        await self._executor.execute_part(self._client, None, "ZREM", self._keys.consumers, *ids)


class LeaseFetch:
    """Fetches messages into a consumer's processing list (see ``Fetch``).

    Args:
        consumer: Takes them.
        keys: The queue's.
        config: The lease.
        count: How many at most; ``None`` for one.
        telemetry: The queue's.
    """

    def __init__(
        self, consumer: Consumer, keys: QueueKeys, config: LeaseConfig, count: int | None, telemetry: QueueTelemetry
    ) -> None:
        self._consumer = consumer
        self._keys = keys
        self._config = config
        self._count = count or 1
        self._command = TAKE.evalsha
        self.is_batch = count is not None
        self.messaging = telemetry.take
        self.on_empty = telemetry.on_empty
        # A wait ends before the lease does, in which the consumer must register again.
        self.max_wait = min(MAX_WAIT_SECONDS, config.lease / 3)

    def poll_command(self) -> tuple[Any, ...]:
        """See ``Fetch``."""
        return self._command(*self._consumer.take_arguments(self._count))

    def send_script(self) -> None:
        """Send the script itself from now on: the server does not know it, or has forgotten it."""
        self._command = TAKE.eval

    def parse_poll(self, reply: Any) -> Any:
        """See ``Fetch``."""
        messages, self._consumer.may_be_redelivery = reply
        return messages or None

    def blocking_commands(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; the consumer is registered before it can hold anything, as its process may have been frozen.

        And again behind that: a FLUSHALL during the wait deletes the registration, and without one nothing finds the
        message of a consumer that dies.
        """
        register = register_command(self._keys, self._config, (self._consumer,))
        move = ("BLMOVE", self._keys.queue, self._consumer.processing, "LEFT", "RIGHT", seconds)
        return register, move, register, ("EXISTS", self._keys.deliveries)

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """See ``Fetch``."""
        _, message, _, self._consumer.may_be_redelivery = replies
        return None if message is None else [message]

    def restore_commands(self, _found: Any, /) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; no caller has seen the messages, so this counts as no delivery."""
        return (NACK.eval(*self._consumer.nack_arguments(HEAD, is_delivery=False, recovers=False)),)

    def on_unsettled(self) -> None:
        """See ``Fetch``; nothing to do, as the messages are redelivered when the lease expires."""


class _ScriptCall:
    """A call of a script that may be repeated, as a second run does no harm.

    Args:
        script: The script.
        keys: The keys that it touches.
        arguments: Its other arguments.
        has_more: Called with each reply, and with whether an earlier attempt may have run without a reply; returns
            whether the script is to run again. Default ``None``: it runs once.

    Attributes:
        outcome_unknown: Whether an attempt may have run without a reply.
    """

    __slots__ = ("arguments", "has_more", "keys", "outcome_unknown", "script")

    def __init__(
        self,
        script: LuaScript,
        keys: Sequence[str],
        arguments: Sequence[Any] = (),
        has_more: Callable[[Any, bool], bool] | None = None,
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.has_more = has_more
        self.outcome_unknown = False


def _has_more(reply: Sequence[int], _: bool) -> bool:
    return bool(reply[2])
