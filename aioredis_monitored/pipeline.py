"""Pipelines: one operation for each batch, and one for each command that runs at once because of a WATCH."""

from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.client import CommandStackT, Pipeline
from redis.exceptions import ConnectionError, RedisError, ResponseError  # noqa: A004
from redis.typing import ChannelT, EncodableT

from aioredis_monitored.attempts import attempted
from aioredis_monitored.calls import CallsMixin, borrowed, heed_demotion, lent
from aioredis_monitored.commands import operation_name
from aioredis_monitored.foreign import EXECUTE, EXECUTE_IMMEDIATELY
from aioredis_monitored.multiplexer import ALONE, Lost, Ride, is_refusal
from aioredis_monitored.patience import cleaning_up
from aioredis_monitored.pool import MonitoredConnectionPool
from aioredis_monitored.telemetry import own
from aioredis_monitored.telemetry.observing import begun, recorded
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.part import Observer, Part
from aioredis_monitored.telemetry.request import RequestView
from aioredis_monitored.telemetry.telemetry import Telemetry
from aioredis_monitored.traits import Traits, server_wait, traits_of_batch

_UNDONE = frozenset({"UNWATCH", "WATCH"})


class MonitoredRedisPipeline(CallsMixin, Pipeline):  # type: ignore[misc]  # redis-py's own bases disagree
    """A pipeline whose execution is one span; ``MonitoredRedisConnection.pipeline`` makes it.

    Args:
        connection_pool: Where its connection comes from.
        response_callbacks: Those of the client.
        transaction: Whether the batch is wrapped in MULTI and EXEC.
        shard_hint: Kept for redis-py's sake.
        name: The batch's name, ``db.query.summary``; it becomes the span's name.
        telemetry: Where to record.
        server_span: The parent span; ``None`` means the current one.
        request: The request that it is a part of, if that is known.
    """

    def __init__(
        self,
        connection_pool: ConnectionPool,
        response_callbacks: MutableMapping[str | bytes, Any],
        transaction: bool,
        shard_hint: str | None,
        *,
        name: str | None,
        telemetry: Telemetry,
        server_span: Span | None,
        request: RequestView | None,
    ) -> None:
        super().__init__(connection_pool, response_callbacks, transaction, shard_hint)
        self.name = name
        self.server_span = server_span
        self._telemetry = telemetry
        self._request = request
        self._operation: Operation | None = None
        self._is_executing = False
        self._refusal: ResponseError | None = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the batch and return its replies, as redis-py does."""
        telemetry = self._telemetry
        if telemetry.counts_keys:
            for args, _ in self.command_stack:
                telemetry.hot_keys.see(args)
        if telemetry.is_heard():
            batch = [args for args, _ in self.command_stack]
            call = telemetry.batch_call("MULTI" if self._is_transaction else "PIPELINE", batch, self.name)
            self._operation = Operation(telemetry, call, batch, self.server_span, self._request)
        self._is_executing = True
        try:
            executing = self._execute(raise_on_error)
            return await recorded(self._operation, executing, telemetry, EXECUTE, self, raise_on_error)
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
                self._operation.fail(errors[0])
                self._operation.call = self._operation.call.with_span_attributes({own.BATCH_FAILED: len(errors)})
        return results

    async def _run(self, raise_on_error: bool) -> list[Any]:
        pool, stack = self.connection_pool, self.command_stack
        if not isinstance(pool, MonitoredConnectionPool) or self.connection is not None or not stack:
            return await self._run_on_own_connection(raise_on_error)
        traits = traits_of_batch([args for args, _ in stack])
        attempt = partial(self._attempt_batch, pool, traits, stack, raise_on_error)
        # Nothing blocks in a transaction.
        wait = 0 if self._is_transaction else sum(server_wait(args) or 0 for args, _ in stack)
        try:
            if self.scripts:
                await self.load_scripts()  # type: ignore[no-untyped-call]
            return await attempted(pool, traits, attempt, wait, self._operation)
        finally:
            await self.reset()

    def _note_altered(self, connection: Any, commands: Collection[Sequence[Any]]) -> None:
        # What it watches, it unwatches itself before it gives the connection back.
        super()._note_altered(connection, [args for args in commands if operation_name(args).upper() not in _UNDONE])

    async def _run_on_own_connection(self, raise_on_error: bool) -> list[Any]:
        """As redis-py does, on the connection that watches or on a plain pool's; but see ``foreign``."""
        stack = self.command_stack
        if not stack and not self.watching:
            return []
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        if self.scripts:
            await self.load_scripts()  # type: ignore[no-untyped-call]
        connection = await self._own_connection(self._operation)
        try:
            results: list[Any] = await connection.retry.call_with_retry(
                lambda: execute(connection, stack, raise_on_error),
                partial(self._disconnect_raise_on_watching, connection),
            )
            return results
        finally:
            await self.reset()

    async def _own_connection(self, operation: Observer | None) -> Connection:
        if isinstance(self.connection_pool, MonitoredConnectionPool):
            self.connection_pool.check_event_loop()
        if self.connection is None:
            self.connection = await lent(self.connection_pool, operation)
        elif operation is not None:
            operation.reached(self.connection)
        return self.connection

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
        if multiplexer is None or not traits.shares:
            return await self._attempt_borrowed(pool, stack, raise_on_error, seconds)
        if losses >= ALONE:
            async with multiplexer.alone(seconds) as left:
                return await self._attempt_borrowed(pool, stack, raise_on_error, left)
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        try:
            ride = Ride(multiplexer, pool.decode, seconds, self._operation, losses)
            results = await execute(ride, stack, raise_on_error)
        except RedisError as error:
            heed_demotion(pool, error, since=started)
            raise Lost(error, written=True) from error
        heed_demotion(pool, results, since=started)
        pool.retry_policy.is_out_of_reach = False
        return results

    async def _attempt_borrowed(
        self, pool: MonitoredConnectionPool, stack: CommandStackT, raise_on_error: bool, seconds: float | None
    ) -> list[Any]:
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        # Nothing blocks in a transaction.
        wait = 0 if self._is_transaction else sum(server_wait(args) or 0 for args, _ in stack)
        async with borrowed(pool, seconds, self._operation, wait) as connection:
            results = await execute(connection, stack, raise_on_error)
            heed_demotion(pool, results, connection)
            return results

    async def _execute_transaction(self, connection: Any, commands: CommandStackT, raise_on_error: bool) -> list[Any]:
        if isinstance(connection, Ride):
            return await super()._execute_transaction(connection, commands, raise_on_error)  # type: ignore[arg-type,no-any-return]
        # Nothing blocks in a transaction.
        self._note_altered(connection, [args for args, _ in commands])
        with self._doubted(connection):
            replies: list[Any] = await super()._execute_transaction(connection, commands, raise_on_error)
            return replies

    async def _execute_pipeline(self, connection: Any, commands: CommandStackT, raise_on_error: bool) -> list[Any]:
        if isinstance(connection, Ride):
            return await super()._execute_pipeline(connection, commands, raise_on_error)  # type: ignore[arg-type,no-any-return]
        async with self._heeded(connection, [args for args, _ in commands]):
            with self._doubted(connection):
                replies: list[Any] = await super()._execute_pipeline(connection, commands, raise_on_error)
                return replies

    async def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Read one reply of the batch, as redis-py does.

        Raises:
            redis.exceptions.ResponseError: Also for what stands behind a command that the server has answered by
                hanging up: redis-py raises that the connection is gone, which does not say why.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except ResponseError as error:
            self._refusal = error if is_refusal(error) else None
            raise
        except ConnectionError:
            if self._refusal is None:
                raise
            raise self._refusal from None

    @contextmanager
    def _doubted(self, connection: Any) -> Iterator[None]:
        """Lend a connection to nobody else after an error: it may have kept redis-py from reading all replies."""
        try:
            yield
        except BaseException:
            if isinstance(self.connection_pool, MonitoredConnectionPool):
                self.connection_pool.alter(connection)
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
            part = None if self._operation is None else Part(self._operation)
            return await self._execute_immediately(args, options, part)
        operation = begun(self._telemetry, args, self.server_span, self._request)
        call = self._execute_immediately(args, options, operation)
        return await recorded(operation, call, self._telemetry, EXECUTE_IMMEDIATELY, self, *args, **options)

    async def _execute_immediately(
        self, args: tuple[Any, ...], options: dict[str, Any], operation: Observer | None
    ) -> Any:
        pool = self.connection_pool
        if isinstance(pool, MonitoredConnectionPool) and self._is_executing and self.connection is None:
            return await self._call(pool, args, options, operation=operation)
        connection = await self._own_connection(operation)
        return await connection.retry.call_with_retry(
            lambda: self._send_command_parse_response(connection, args[0], *args, **options),
            partial(self._disconnect_reset_raise_on_watching, connection),
        )

    async def reset(self) -> None:  # type: ignore[override]  # redis-py's own bases disagree
        """Forget the commands, and give the connection back, which watches nothing more."""
        if self.connection is None:
            await super().reset()  # type: ignore[no-untyped-call]
            return
        with cleaning_up("resetting a pipeline"):
            await super().reset()  # type: ignore[no-untyped-call]

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        """Write the command into the error's text, as redis-py does but without the values in it."""
        if self._operation is not None:
            self._operation.note(exception)
        shown = self._telemetry.describer.query_text(tuple(command))
        text = f"Command # {number} ({shown}) of pipeline caused error: {exception.args}"
        exception.args = (text, *exception.args[1:])
