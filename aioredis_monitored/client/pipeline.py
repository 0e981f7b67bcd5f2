"""Pipelines: one operation for each batch, and one for each command that runs immediately because of a WATCH."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool, Redis
from redis.asyncio.client import CommandStackT
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, RedisError, ResponseError, WatchError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.typing import ChannelT, EncodableT

from aioredis_monitored._cancellation import cleaning_up, is_being_cancelled
from aioredis_monitored._commands.table import operation_name
from aioredis_monitored._commands.traits import Traits, blocking_timeout, traits_of, traits_of_batch
from aioredis_monitored._execution.attempts import (
    DedicatedConnection,
    dedicated_attempt,
    leave_refusing_server,
    retry,
)
from aioredis_monitored._execution.dedicated import DedicatedCall, PlainConnections
from aioredis_monitored._execution.pinned import PinnedConnection, discard_if_altered
from aioredis_monitored._execution.routing import CommandExecutor
from aioredis_monitored._execution.scatter import Scatter
from aioredis_monitored._execution.targets import TARGET_NODES, resolve_target_pool
from aioredis_monitored._multiplexer import (
    ISOLATE_AFTER,
    AttemptFailed,
    PipelineAdapter,
    ReplyReader,
    is_protocol_error,
)
from aioredis_monitored._redispy.overrides import check_health, send_and_parse
from aioredis_monitored._redispy.sockets import stream_of
from aioredis_monitored._telemetry import semconv_ext
from aioredis_monitored._telemetry.coexistence import EXECUTE, EXECUTE_IMMEDIATELY
from aioredis_monitored._telemetry.operation import NestedCall, Observer, Operation, observe_call, start_operation
from aioredis_monitored._timeouts import ReplyTimeout
from aioredis_monitored._topology.placement import may_read_from_replica
from aioredis_monitored.client.pipeline_commands import PipelineCommands
from aioredis_monitored.errors import ClusterRoutingError, CrossSlotError, decoding_error
from aioredis_monitored.pool.cluster import MonitoredClusterPool, slot_of
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import is_error_reply, is_refused_by_cluster
from aioredis_monitored.pool.routes import Route

if TYPE_CHECKING:
    from aioredis_monitored.client.pipeline_commands import PipelineCommand

# A pipeline ends its watch itself before it gives the connection back.
_ENDED_BY_RESET = frozenset({"UNWATCH", "WATCH"})
_LOST: Final = "the connection that watched the keys was lost"


class MonitoredRedisPipeline(PipelineCommands):
    """A pipeline whose execution is one span; ``MonitoredRedisConnection.pipeline`` makes it.

    Every call raises ``WatchError`` once the connection that watches is lost, until ``watch`` begins anew. So does, as
    in redis-py, the call that was sent and not answered; on a ``MonitoredConnectionPool``, the text says if that may
    have run.

    Args:
        connection_pool: The pool of its connection.
        response_callbacks: Those of the client.
        transaction: Whether the batch is wrapped in MULTI and EXEC.
        shard_hint: Kept for redis-py's sake.
        name: The batch's name, ``db.query.summary``; it becomes the span's name.
        executor: The client's.

    Attributes:
        repeats_on_watch_error: Whether the caller is ``transaction()``, which begins anew after a ``WatchError``: a
            call that may have run raises the connection's error instead, as it must not be repeated. Default ``False``.
    """

    def __init__(
        self,
        connection_pool: ConnectionPool,
        response_callbacks: MutableMapping[str | bytes, Any],
        transaction: bool,
        shard_hint: str | None,
        *,
        name: str | None,
        executor: CommandExecutor,
    ) -> None:
        super().__init__(connection_pool, response_callbacks, transaction, shard_hint)
        self.name = name
        self.repeats_on_watch_error = False
        # A copy: the parent of its spans is that which the client has now.
        self._executor = executor.copied()
        self._pin = _WatchedConnection()
        self._operation: Operation | None = None
        self._is_executing = False
        # The reply with which the server ends the connection, if it has sent one.
        self._protocol_error: ResponseError | None = None

    @property
    def server_span(self) -> Span | None:
        """The parent of its spans; ``None`` means the span that is current when it executes."""
        return self._executor.server_span

    @server_span.setter
    def server_span(self, span: Span | None) -> None:
        self._executor.server_span = span

    # The batch.

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the batch and return its replies, as redis-py does."""
        executor, recorder = self._executor, self._executor.recorder
        if recorder.counts_hot_keys:
            for args, _ in self.command_stack:
                recorder.hot_keys.count(args)
        if recorder.is_enabled():
            batch = [args for args, _ in self.command_stack]
            spec = recorder.batch_spec("MULTI" if self._is_transaction else "PIPELINE", batch, self.name)
            self._operation = executor.new_operation(spec, batch)
        self._is_executing = True
        try:
            call = self._execute(raise_on_error)
            return await observe_call(self._operation, call, recorder, EXECUTE, self, raise_on_error)
        finally:
            self._operation, self._is_executing, self._protocol_error = None, False, None

    @property
    def _is_transaction(self) -> bool:
        return self.is_transaction or self.explicit_transaction

    async def _execute(self, raise_on_error: bool) -> list[Any]:
        results = await self._run(raise_on_error)
        if self._operation is not None and not raise_on_error:
            errors = [result for result in results if isinstance(result, Exception)]
            if errors:
                self._operation.set_error(errors[0])
                failed = {semconv_ext.BATCH_FAILED: len(errors)}
                self._operation.spec = self._operation.spec.with_span_attributes(failed)
        return results

    async def _run(self, raise_on_error: bool) -> list[Any]:
        pool, stack = self._executor.pool, self.command_stack
        if not stack and not self.watching:
            return []
        if pool is None:
            return await self._run_on_plain_connection(raise_on_error)
        pool.bind_event_loop()
        try:
            if self.scripts and isinstance(pool, MonitoredClusterPool):
                stack = self._with_scripts(stack)
            elif self.scripts:
                await self.load_scripts()
            if self.connection is None and not self._is_transaction and isinstance(pool, MonitoredClusterPool):
                return await self._scatter(pool, stack, raise_on_error)
            commands = [args for args, _ in stack]
            traits, wait = traits_of_batch(commands), self._blocking_timeout(stack)
            if self.connection is not None:
                attempt_on = partial(self._execute_on, pool, stack, raise_on_error)
                results: list[Any] = await self._run_dedicated(commands, traits, attempt_on, self._operation, wait)
                return results
            if isinstance(pool, MonitoredClusterPool) and any(TARGET_NODES in options for _, options in stack):
                raise ClusterRoutingError("target_nodes= has no place in a transaction, whose keys choose the node")
            route = pool.route(commands, self._operation)
            attempt = partial(self._attempt_batch, route, traits, stack, raise_on_error)
            return await retry(route, traits, attempt, wait, self._operation)
        finally:
            await self.reset()

    def _with_scripts(self, stack: CommandStackT) -> CommandStackT:
        """Return the commands with the texts of the batch's scripts: who runs them is known when it does."""
        texts: dict[Any, Any] = {script.sha: script.script for script in self.scripts}
        return [
            (("EVAL", texts[args[1]], *args[2:]), options)
            if args[0] == "EVALSHA" and args[1] in texts
            else (args, options)
            for args, options in stack
        ]

    def _blocking_timeout(self, stack: CommandStackT) -> float:
        # Nothing blocks in a transaction.
        return 0 if self._is_transaction else sum(blocking_timeout(args) or 0 for args, _ in stack)

    async def _run_on_plain_connection(self, raise_on_error: bool) -> list[Any]:
        if self.scripts:
            await self.load_scripts()
        stack, execute = self.command_stack, self._execute_batch
        # The batch is kept if there is no connection, as in redis-py.
        acquire = PlainConnections(self.connection_pool).acquire
        await self._pin.acquire(self, acquire, self._operation, self._pin.closings)
        try:
            replies: list[Any] = await self._run_dedicated(
                (),
                traits_of_batch(()),
                lambda connection: execute(connection, stack, raise_on_error),
                self._operation,
                self._blocking_timeout(stack),
            )
            return replies
        finally:
            await self.reset()

    async def _run_dedicated(
        self,
        commands: Collection[Sequence[Any]],
        traits: Traits,
        attempt: Callable[[Any], Awaitable[Any]],
        observer: Observer | None,
        wait: float,
        on_failure: Callable[..., Awaitable[object]] | None = None,
    ) -> Any:
        call = DedicatedCall(commands, traits, on_failure or self._disconnect_raise_on_watching, wait)
        return await self._executor.dedicated.run(self, self._pin, call, attempt, observer)

    async def _scatter(self, pool: MonitoredClusterPool, stack: CommandStackT, raise_on_error: bool) -> list[Any]:
        """Send each command to its node; the results are as those of redis-py's ``_execute_pipeline``."""
        targets = [options.get(TARGET_NODES) for _, options in stack]
        pools: list[MonitoredConnectionPool | None] = []
        if any(each is not None for each in targets):
            pools = [
                None if each is None else await resolve_target_pool(pool, each, self._operation) for each in targets
            ]
        commands = [tuple(args) for args, _ in stack]
        reads = self._executor.reads_replicas and all(map(may_read_from_replica, commands))
        scatter = Scatter(pool, commands, self._operation, pools, reads_replicas=reads)
        replies = ReplyReader(await scatter.run(), pool.decode_reply)
        results: list[Any] = []
        for args, options in stack:
            try:
                for_parsing = {option: value for option, value in options.items() if option != TARGET_NODES}
                results.append(await self.parse_response(replies, args[0], **for_parsing))
            except RedisError as error:
                results.append(error)
        for number, ((args, _), result) in enumerate(zip(stack, results, strict=True), start=1):
            # Also a lost connection, as on one server; redis-py's raise_first_error knows the server's errors alone.
            if raise_on_error and isinstance(result, RedisError):
                self.annotate_exception(result, number, args)
                raise result
        return results

    async def _attempt_batch(
        self,
        route: Route[MonitoredConnectionPool],
        traits: Traits,
        stack: CommandStackT,
        raise_on_error: bool,
        seconds: float | None,
        losses: int,
    ) -> list[Any]:
        """Make one attempt on any connection."""
        pool = await route.target()
        multiplexer, started = pool.multiplexer, monotonic()
        if multiplexer is None or not traits.shareable:
            return await self._attempt_dedicated(pool, stack, raise_on_error, seconds)
        if losses >= ISOLATE_AFTER:
            async with multiplexer.isolated(seconds) as left:
                return await self._attempt_dedicated(pool, stack, raise_on_error, left)
        try:
            adapter = PipelineAdapter(
                multiplexer, pool.decode_reply, seconds, self._operation, losses, is_asking=pool.is_asking
            )
            results = await self._execute_batch(adapter, stack, raise_on_error)
        except RedisError as error:
            leave_refusing_server(pool, error, since=started)
            raise AttemptFailed(error, may_have_run=True) from error
        leave_refusing_server(pool, results, since=started)
        pool.retry_policy.server_unreachable = False
        return results

    async def _attempt_dedicated(
        self, pool: MonitoredConnectionPool, stack: CommandStackT, raise_on_error: bool, seconds: float | None
    ) -> list[Any]:
        acquired = DedicatedConnection(pool, self._operation)
        async with dedicated_attempt(pool, seconds, acquired, self._blocking_timeout(stack)) as connection:
            return await self._execute_on(pool, stack, raise_on_error, connection)

    async def _execute_on(
        self, pool: MonitoredConnectionPool, stack: CommandStackT, raise_on_error: bool, connection: AbstractConnection
    ) -> list[Any]:
        results = await self._execute_batch(connection, stack, raise_on_error)
        leave_refusing_server(pool, results, connection)
        return results

    async def _execute_batch(self, connection: Any, stack: CommandStackT, raise_on_error: bool) -> list[Any]:
        execute = self._execute_transaction if self._is_transaction else self._execute_pipeline
        if isinstance(connection, PipelineAdapter):
            return await execute(connection, stack, raise_on_error)
        self._pin.note_alterations(self.connection_pool, connection, [args for args, _ in stack])
        async with self._disconnected_on_error(connection):
            return await execute(connection, stack, raise_on_error)

    @asynccontextmanager
    async def _disconnected_on_error(self, connection: Any) -> AsyncIterator[None]:
        """Disconnect after an error in the block, which may have kept redis-py from reading all replies."""
        try:
            yield
        except BaseException:
            if self._executor.pool is not None:
                await connection.disconnect(nowait=True)
            raise

    async def _send_command_parse_response(
        self, conn: Any, command_name: str | bytes, *args: Any, **options: Any
    ) -> Any:
        if not traits_of(args).shareable:
            self._pin.note_alterations(self.connection_pool, conn, [args])
        return await super()._send_command_parse_response(conn, command_name, *args, **options)

    async def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """Read one reply of the batch, as redis-py does.

        Raises:
            redis.exceptions.ResponseError: Also for what stands behind a command that the server has answered by
                hanging up: redis-py raises that the connection is gone, which does not say why.
            ReplyDecodingError: The reply is not in the connection's encoding.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except ResponseError as error:
            self._protocol_error = error if is_protocol_error(error) else None
            raise
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None
        except RedisConnectionError:
            if self._protocol_error is None:
                raise
            raise self._protocol_error from None

    def annotate_exception(self, exception: Exception, number: int, command: Iterable[object]) -> None:
        """Write the command into the error's text, as redis-py does but without the values in it."""
        if self._operation is not None:
            self._operation.classify_early(exception)
        shown = self._executor.recorder.span_namer.query_text(tuple(command))
        text = f"Command # {number} ({shown}) of pipeline caused error: {exception.args}"
        exception.args = (text, *exception.args[1:])

    def publish(self, channel: ChannelT, message: EncodableT, **options: Any) -> "PipelineCommand[int]":
        """Publish in the batch, as redis-py does.

        Raises:
            TypeError: ``propagate`` is given, but a batch has one span for all its commands.
        """
        if options.get("propagate"):
            raise TypeError("a pipeline has no span for each message: publish with propagate=True on the client")
        return super().publish(channel, message, **options)

    # Commands that run immediately.

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute one command now: WATCH, a command between it and MULTI, or the loading of a batch's scripts."""
        executor = self._executor
        if self._is_executing:
            part = None if self._operation is None else NestedCall(self._operation)
            return await self._execute_immediately(args, options, part)
        operation = start_operation(executor.recorder, args, executor.server_span, executor.request)
        call = self._execute_immediately(args, options, operation)
        return await observe_call(operation, call, executor.recorder, EXECUTE_IMMEDIATELY, self, *args, **options)

    async def _execute_immediately(
        self, args: tuple[Any, ...], options: dict[str, Any], observer: Observer | None
    ) -> Any:
        pool = self._executor.pool
        if pool is not None:
            pool.bind_event_loop()
            if self._is_executing and self.connection is None:
                return await self._executor.execute(self, pool, args, options, observer)
        if args[0] == "WATCH" and self._pin.is_loss_known:
            self._pin.is_loss_known = self.watching = False
            self._pin.slots.clear()
        return await self._run_dedicated(
            [args],
            traits_of(args),
            lambda connection: send_and_parse(self, connection, args[0], args, options),
            observer,
            blocking_timeout(args) or 0,
            self._disconnect_reset_raise_on_watching,
        )

    async def reset(self) -> None:  # type: ignore[override]  # redis-py's own bases disagree
        """Discard the batch, end the watch and give the connection back, as redis-py does.

        While its task is being cancelled, the connection is closed, which ends the watch: a server that does not answer
        would hold the task up.
        """
        self._pin.closings += 1
        self._pin.is_loss_known = False
        self._pin.slots.clear()
        await self._pin.abort_busy(self)
        if self.connection is None:
            await super().reset()
            return
        with cleaning_up("resetting a pipeline"):
            try:
                if self.watching:
                    await _end_watch(self.connection)
            finally:
                # redis-py would end it again, with a timeout that does not tolerate a busy event loop.
                self.watching = False
                await super().reset()


async def _end_watch(connection: Connection) -> None:
    """End the watch, or else close the connection."""
    if is_being_cancelled():
        await connection.disconnect(nowait=True)
    if not connection.is_connected:
        return
    try:
        async with ReplyTimeout(connection, 0):
            await connection.send_command("UNWATCH")
            await connection.read_response()
    except (RedisConnectionError, RedisTimeoutError):
        await connection.disconnect(nowait=True)


class _WatchedConnection(PinnedConnection):
    """The pinned connection of a pipeline; while it watches keys, its loss is a ``WatchError``.

    Attributes:
        is_loss_known: Whether the caller knows that the watch is lost, because a call has raised it: ``watch`` begins
            anew then. Before, another ``watch`` adds keys, and must not forget the first ones.
    """

    __slots__ = ("is_loss_known",)

    takes_turns = False

    def __init__(self) -> None:
        super().__init__()
        self.is_loss_known = False

    @asynccontextmanager
    async def attempt(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
        observer: Observer | None,
        closings: int,
    ) -> AsyncIterator[AbstractConnection]:
        pipe = cast("MonitoredRedisPipeline", caller)
        kept = pipe.connection
        is_sent = False
        try:
            async with super().attempt(caller, pool, commands, observer, closings) as connection:
                is_sent = True
                yield connection
        except ResponseError as error:
            is_redirect = isinstance(error, AskError)
            # To EXEC, it is the end of the watch as well: without that, the transaction must not be sent again.
            ends_watch = is_redirect or is_refused_by_cluster(error)
            if not ends_watch or not pipe.watching or pipe.connection is None:
                raise
            why = "the slot of the watched keys moves to another node" if is_redirect else str(error)
            raise await self._lost(pipe.connection, why) from error
        except (RedisConnectionError, RedisTimeoutError) as error:
            if kept is None or kept is not pipe.connection or kept.is_connected:
                raise
            if not pipe.watching or is_error_reply(error):
                raise
            may_have_run = is_sent and not traits_of_batch(commands).retry_safe
            doubt = ", and what was sent last may have run" if may_have_run else ""
            lost = await self._lost(kept, f"{_LOST}{doubt}")
            if may_have_run and pipe.repeats_on_watch_error:
                raise
            raise lost from error

    async def enter_node(
        self,
        caller: Redis,
        cluster: MonitoredClusterPool,
        pool: MonitoredConnectionPool,
        commands: Collection[Sequence[Any]],
    ) -> None:
        pipe, slot = cast("MonitoredRedisPipeline", caller), slot_of(commands, is_pinned=True)
        if self.slots and slot is not None and slot not in self.slots:
            raise CrossSlotError(
                "a pipeline that watches keys can use keys of their slot alone: give the keys a common hash tag, as in "
                "{user:1}:name and {user:1}:mail"
            )
        if pipe.watching and pipe.connection is not None and not pool.is_acquired(pipe.connection):
            raise await self._lost(pipe.connection, "the slot of the watched keys has moved to another node")
        await super().enter_node(caller, cluster, pool, commands)

    @asynccontextmanager
    async def in_flight(self, caller: Redis, connection: AbstractConnection, closings: int) -> AsyncIterator[None]:
        async with super().in_flight(caller, connection, closings):
            yield
            if caller.connection is None:
                # The server has answered WATCH, but another task has reset the pipeline meanwhile.
                cast("MonitoredRedisPipeline", caller).watching = False

    async def replace(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        connection: AbstractConnection,
        observer: Observer | None,
    ) -> None:
        if cast("MonitoredRedisPipeline", caller).watching:
            raise await self._lost(connection, _LOST)
        await super().replace(caller, pool, connection, observer)

    async def check_plain(self, caller: Redis, connection: Connection) -> None:
        if not cast("MonitoredRedisPipeline", caller).watching:
            return
        watched_on = stream_of(connection)
        if connection.is_connected:
            # redis-py would do it while it sends, and connect anew if it fails.
            await check_health(connection)
        if not connection.is_connected or stream_of(connection) is not watched_on:
            raise await self._lost(connection, _LOST)

    async def _lost(self, connection: AbstractConnection, why: str) -> WatchError:
        """Make the error of a lost watch: it is known now, and each further call raises it until WATCH begins anew."""
        await connection.disconnect(nowait=True)
        self.is_loss_known = True
        return WatchError(f"{why}: begin again with watch()")

    def note_alterations(
        self, pool: ConnectionPool, connection: AbstractConnection, commands: Collection[Sequence[Any]]
    ) -> None:
        altering = [args for args in commands if operation_name(args).upper() not in _ENDED_BY_RESET]
        if discard_if_altered(pool, connection, altering):
            self._altered = connection
