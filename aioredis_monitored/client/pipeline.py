"""Pipelines: one operation for each batch, and one for each command that runs at once because of a WATCH."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.client import CommandStackT, Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError  # noqa: A004
from redis.typing import ChannelT, EncodableT

from aioredis_monitored._cancellation import cleaning_up, is_being_cancelled
from aioredis_monitored._commands.table import operation_name
from aioredis_monitored._commands.traits import Traits, blocking_timeout, traits_of, traits_of_batch
from aioredis_monitored._execution.attempts import (
    AcquireConnection,
    Attempt,
    dedicated_attempt,
    dedicated_connection,
    is_lost,
    leave_refusing_server,
    retry,
)
from aioredis_monitored._execution.routing import CallsMixin
from aioredis_monitored._multiplexer import ISOLATE_AFTER, AttemptFailed, PipelineAdapter, is_protocol_error
from aioredis_monitored._telemetry import semconv_ext
from aioredis_monitored._telemetry.coexistence import EXECUTE, EXECUTE_IMMEDIATELY
from aioredis_monitored._telemetry.operation import NestedCall, Observer, Operation, observe_call, start_operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored._timeouts import reply_timeout
from aioredis_monitored.errors import decoding_error
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_error_reply

T = TypeVar("T")

_UNDONE = frozenset({"UNWATCH", "WATCH"})


def _lost_watch(*, may_have_run: bool) -> WatchError:
    doubt = ", and what was sent last may have run" if may_have_run else ""
    return WatchError(f"the connection that watched the keys was lost{doubt}: begin again with watch()")


class MonitoredRedisPipeline(CallsMixin, Pipeline):  # type: ignore[misc]  # redis-py's own bases disagree
    """A pipeline whose execution is one span; ``MonitoredRedisConnection.pipeline`` makes it.

    On a ``MonitoredConnectionPool``, it raises ``WatchError`` at every call once the connection that watches is lost,
    until ``watch`` begins anew. So does, as in redis-py, the call that was sent and not answered; the text says if that
    may have run.

    Args:
        connection_pool: Where its connection comes from.
        response_callbacks: Those of the client.
        transaction: Whether the batch is wrapped in MULTI and EXEC.
        shard_hint: Kept for redis-py's sake.
        name: The batch's name, ``db.query.summary``; it becomes the span's name.
        telemetry: Where to record.
        server_span: The parent span; ``None`` means the current one.
        request: The request that it is a part of, if that is known.

    Attributes:
        is_repeated: Whether its caller repeats whatever raises ``WatchError``: what may have run raises its own error
            then. Default ``False``.
    """

    def __init__(
        self,
        connection_pool: ConnectionPool,
        response_callbacks: MutableMapping[str | bytes, Any],
        transaction: bool,
        shard_hint: str | None,
        *,
        name: str | None,
        telemetry: PoolRecorder,
        server_span: Span | None,
        request: RequestStats | None,
    ) -> None:
        super().__init__(connection_pool, response_callbacks, transaction, shard_hint)
        self.name = name
        self.server_span = server_span
        self._telemetry = telemetry
        self._request = request
        self._operation: Operation | None = None
        self._is_executing = False
        self.is_repeated = False
        self._refusal: ResponseError | None = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the batch and return its replies, as redis-py does."""
        telemetry = self._telemetry
        if telemetry.counts_hot_keys:
            for args, _ in self.command_stack:
                telemetry.hot_keys.count(args)
        if telemetry.is_enabled():
            batch = [args for args, _ in self.command_stack]
            call = telemetry.batch_spec("MULTI" if self._is_transaction else "PIPELINE", batch, self.name)
            self._operation = Operation(telemetry, call, batch, self.server_span, self._request)
        self._is_executing = True
        try:
            executing = self._execute(raise_on_error)
            return await observe_call(self._operation, executing, telemetry, EXECUTE, self, raise_on_error)
        finally:
            self._operation, self._is_executing, self._refusal = None, False, None

    @property
    def _is_transaction(self) -> bool:
        return self.is_transaction or self.explicit_transaction

    async def _execute(self, raise_on_error: bool) -> list[Any]:
        results = await self._run(raise_on_error)
        if self._operation is not None and not raise_on_error:
            errors = [result for result in results if isinstance(result, Exception)]
            if errors:
                self._operation.set_error(errors[0])
                self._operation.spec = self._operation.spec.with_span_attributes(
                    {semconv_ext.BATCH_FAILED: len(errors)}
                )
        return results

    async def _run(self, raise_on_error: bool) -> list[Any]:
        pool, stack = self.connection_pool, self.command_stack
        if not stack and not self.watching:
            return []
        if not isinstance(pool, MonitoredConnectionPool):
            return await self._run_on_plain_connection(raise_on_error)
        pool.bind_event_loop()
        traits = traits_of_batch([args for args, _ in stack])
        attempt: Attempt[list[Any]]
        if self.connection is None:
            attempt = partial(self._attempt_batch, pool, traits, stack, raise_on_error)
        else:
            pinned = partial(self._pinned, pool, [args for args, _ in stack], self._operation, self._closings)
            attempt = partial(self._attempt_pinned_batch, pinned, pool, stack, raise_on_error)
        try:
            if self.scripts:
                await self.load_scripts()  # type: ignore[no-untyped-call]
            return await retry(pool, traits, attempt, self._wait(stack), self._operation)
        finally:
            await self.reset()

    def _wait(self, stack: CommandStackT) -> float:
        """The seconds for which the server may hold back the replies."""
        # Nothing blocks in a transaction.
        return 0 if self._is_transaction else sum(blocking_timeout(args) or 0 for args, _ in stack)

    def _note_altered(self, connection: Any, commands: Collection[Sequence[Any]]) -> None:
        # What it watches, it unwatches itself before it gives the connection back.
        super()._note_altered(connection, [args for args in commands if operation_name(args).upper() not in _UNDONE])

    async def _run_on_plain_connection(self, raise_on_error: bool) -> list[Any]:
        """As redis-py does, on a plain pool's connection; but see ``foreign``."""
        stack = self.command_stack
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        if self.scripts:
            await self.load_scripts()  # type: ignore[no-untyped-call]
        # If there is none, the batch is kept, as in redis-py.
        await self._kept_connection(self._operation, self._closings)
        try:
            results: list[Any] = await self._retried_elsewhere(
                self._operation,
                lambda connection: execute(connection, stack, raise_on_error),
                self._disconnect_raise_on_watching,
            )
            return results
        finally:
            await self.reset()

    async def _retried_elsewhere(
        self,
        operation: Observer | None,
        attempt: Callable[[Connection], Awaitable[T]],
        on_failure: Callable[[Connection, Exception], Awaitable[object]],
    ) -> T:
        closings = self._closings
        connection = await self._kept_connection(operation, closings)
        if operation is not None:
            operation.set_connection(connection)
        async with self._in_flight_on(connection, closings):
            return await self._retried_on_plain(connection, attempt, on_failure, closings)

    async def _attempt_batch(
        self,
        pool: MonitoredConnectionPool,
        traits: Traits,
        stack: CommandStackT,
        raise_on_error: bool,
        seconds: float | None,
        losses: int,
    ) -> list[Any]:
        multiplexer, started = pool.multiplexer, monotonic()
        if multiplexer is None or not traits.shareable:
            return await self._attempt_borrowed(pool, stack, raise_on_error, seconds)
        if losses >= ISOLATE_AFTER:
            async with multiplexer.isolated(seconds) as left:
                return await self._attempt_borrowed(pool, stack, raise_on_error, left)
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        try:
            ride = PipelineAdapter(multiplexer, pool.decode_reply, seconds, self._operation, losses)
            results = await execute(ride, stack, raise_on_error)
        except RedisError as error:
            leave_refusing_server(pool, error, since=started)
            raise AttemptFailed(error, written=True) from error
        leave_refusing_server(pool, results, since=started)
        pool.retry_policy.server_unreachable = False
        return results

    async def _attempt_borrowed(
        self, pool: MonitoredConnectionPool, stack: CommandStackT, raise_on_error: bool, seconds: float | None
    ) -> list[Any]:
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        async with dedicated_attempt(
            pool, seconds, dedicated_connection(pool, self._operation), self._wait(stack)
        ) as connection:
            results = await execute(connection, stack, raise_on_error)
            leave_refusing_server(pool, results, connection)
            return results

    async def _attempt_pinned_batch(
        self,
        connecting: AcquireConnection,
        pool: MonitoredConnectionPool,
        stack: CommandStackT,
        raise_on_error: bool,
        seconds: float | None,
        losses: int,  # noqa: ARG002 - no other call uses this connection
    ) -> list[Any]:
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        async with dedicated_attempt(pool, seconds, connecting(), self._wait(stack)) as connection:
            results = await execute(connection, stack, raise_on_error)
            leave_refusing_server(pool, results, connection)
            return results

    @asynccontextmanager
    async def _pinned(
        self,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
        operation: Observer | None,
        closings: int,
    ) -> AsyncIterator[AbstractConnection]:
        kept = self.connection
        is_sent = False
        try:
            async with super()._pinned(pool, commands, operation, closings) as connection:
                is_sent = True
                yield connection
        except (ConnectionError, TimeoutError) as error:
            is_lost = kept is not None and kept is self.connection and not kept.is_connected
            if not (self.watching and is_lost) or is_error_reply(error):
                raise
            may_have_run = is_sent and not traits_of_batch(commands).retry_safe
            if may_have_run and self.is_repeated:
                raise
            raise _lost_watch(may_have_run=may_have_run) from error

    async def _make_usable(
        self, pool: MonitoredConnectionPool, connection: AbstractConnection, operation: Observer | None
    ) -> None:
        if self.watching and is_lost(pool, connection):
            # It watches as long as it is not said to begin anew, so that each further call raises this as well.
            await connection.disconnect(nowait=True)
            raise _lost_watch(may_have_run=False)
        await super()._make_usable(pool, connection, operation)

    @asynccontextmanager
    async def _in_flight_on(self, connection: AbstractConnection, closings: int) -> AsyncIterator[None]:
        async with super()._in_flight_on(connection, closings):
            yield
            if self.connection is None:
                # A WATCH that was answered, but another task has reset this meanwhile.
                self.watching = False

    async def reset(self) -> None:  # type: ignore[override]  # redis-py's own bases disagree
        """Forget the batch, end the watch and give the connection back, as redis-py does.

        While its task is being cancelled, the watch ends with the connection: a server that does not answer would hold
        the task up.
        """
        self._closings += 1
        await self._leave_busy()
        if self.connection is None:
            await super().reset()  # type: ignore[no-untyped-call]
            return
        with cleaning_up("resetting a pipeline"):
            try:
                if self.watching:
                    await self._end_watch(self.connection)
            finally:
                # redis-py would end it once more, by the clock alone.
                self.watching = False
                await super().reset()  # type: ignore[no-untyped-call]

    async def _end_watch(self, connection: Connection) -> None:
        """End the watch, with the connection if need be."""
        if is_being_cancelled():
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            return
        try:
            async with reply_timeout(connection, 0):
                await connection.send_command("UNWATCH")
                await connection.read_response()
        except (ConnectionError, TimeoutError):
            await connection.disconnect(nowait=True)

    async def _execute_transaction(self, connection: Any, commands: CommandStackT, raise_on_error: bool) -> list[Any]:
        if isinstance(connection, PipelineAdapter):
            return await super()._execute_transaction(connection, commands, raise_on_error)  # type: ignore[arg-type,no-any-return]
        # Nothing blocks in a transaction.
        self._note_altered(connection, [args for args, _ in commands])
        async with self._doubted(connection):
            replies: list[Any] = await super()._execute_transaction(connection, commands, raise_on_error)
            return replies

    async def _execute_pipeline(self, connection: Any, commands: CommandStackT, raise_on_error: bool) -> list[Any]:
        if isinstance(connection, PipelineAdapter):
            return await super()._execute_pipeline(connection, commands, raise_on_error)  # type: ignore[arg-type,no-any-return]
        async with self._heeded(connection, [args for args, _ in commands]), self._doubted(connection):
            replies: list[Any] = await super()._execute_pipeline(connection, commands, raise_on_error)
            return replies

    async def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Read one reply of the batch, as redis-py does.

        Raises:
            redis.exceptions.ResponseError: Also for what stands behind a command that the server has answered by
                hanging up: redis-py raises that the connection is gone, which does not say why.
            ReplyDecodingError: It is not in the connection's encoding.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except ResponseError as error:
            self._refusal = error if is_protocol_error(error) else None
            raise
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None
        except ConnectionError:
            if self._refusal is None:
                raise
            raise self._refusal from None

    @asynccontextmanager
    async def _doubted(self, connection: Any) -> AsyncIterator[None]:
        """Close a connection after an error, which may have kept redis-py from reading all replies."""
        try:
            yield
        except BaseException:
            if isinstance(self.connection_pool, MonitoredConnectionPool):
                await connection.disconnect(nowait=True)
            raise

    def publish(self, channel: ChannelT, message: EncodableT, **options: Any) -> Any:
        """Publish in the batch, as redis-py does.

        Raises:
            TypeError: The trace context is to go with the message, but a batch has one span for all its commands.
        """
        if options.get("propagate"):
            raise TypeError("a pipeline has no span for each message: let the client publish what is to carry one")
        return super().publish(channel, message, **options)

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command now: WATCH, what is read between it and MULTI, or the loading of a batch's scripts."""
        if self._is_executing:
            # Its scripts are looked for, and loaded.
            part = None if self._operation is None else NestedCall(self._operation)
            return await self._execute_immediately(args, options, part)
        operation = start_operation(self._telemetry, args, self.server_span, self._request)
        call = self._execute_immediately(args, options, operation)
        return await observe_call(operation, call, self._telemetry, EXECUTE_IMMEDIATELY, self, *args, **options)

    async def _execute_immediately(
        self, args: tuple[Any, ...], options: dict[str, Any], operation: Observer | None
    ) -> Any:
        pool = self.connection_pool
        if isinstance(pool, MonitoredConnectionPool):
            pool.bind_event_loop()
            if self._is_executing and self.connection is None:
                return await self._call(pool, args, options, operation=operation)
            if args[0] == "WATCH" and self.connection is not None and not self.connection.is_connected:
                # A call has raised since it was lost.
                self.watching = False
            pinned = partial(self._pinned, pool, [args], operation, self._closings)
            attempt = partial(self._attempt_on, pinned, pool, args, options)
            return await retry(pool, traits_of(args), attempt, blocking_timeout(args) or 0, operation)
        return await self._retried_elsewhere(
            operation,
            lambda connection: self._send_command_parse_response(connection, args[0], *args, **options),
            self._disconnect_reset_raise_on_watching,
        )

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        """Write the command into the error's text, as redis-py does but without the values in it."""
        if self._operation is not None:
            self._operation.classify_early(exception)
        shown = self._telemetry.span_namer.query_text(tuple(command))
        text = f"Command # {number} ({shown}) of pipeline caused error: {exception.args}"
        exception.args = (text, *exception.args[1:])
