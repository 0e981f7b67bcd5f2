"""Which connection a command is sent on, and how its reply gets to the caller.

There are three kinds of connections (see the glossary): shared by all callers; dedicated, to one call at a time; and
pinned, which is dedicated to one client or pipeline for as long as that lives.

``CommandExecutor.execute`` is the path of every ordinary command: it writes to the shared connection if the command's
traits allow that, else it acquires a dedicated one. ``MonitoredPipeline._attempt_batch`` decides the same for a batch.
A client or pipeline that has pinned a connection, or is on a plain pool of redis-py, goes through
``execute_dedicated``. Which of the shared connections it is, the main one or that for bulk, ``Multiplexer.send``
decides.
"""

from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import Any, Self, TypeVar, cast

from opentelemetry.trace import Span
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from aioredis_monitored._commands.traits import FIXED_TRAITS, blocking_timeout, traits_of
from aioredis_monitored._execution.attempts import (
    Attempt,
    DedicatedConnection,
    dedicated_attempt,
    leave_refusing_server,
    reject_write_counting,
    retry_failed,
)
from aioredis_monitored._execution.dedicated import DedicatedCall, dedicated_connections_of
from aioredis_monitored._execution.fetch import Fetch, fetch_shared
from aioredis_monitored._execution.pinned import PinnedConnection
from aioredis_monitored._multiplexer import ISOLATE_AFTER, AttemptFailed
from aioredis_monitored._redispy.overrides import (
    EMPTY_RESPONSE,
    NEVER_DECODE,
    bool_ok,
    close_after_failure,
    parse_himport_set,
    parse_set_result,
    send_and_parse,
)
from aioredis_monitored._telemetry.coexistence import EXECUTE_COMMAND
from aioredis_monitored._telemetry.messaging import MessagingOperation
from aioredis_monitored._telemetry.operation import Observer, Operation, observe_call, start_operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import CallSpec, MessagingSpec
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.errors import PoolClosedError, decoding_error
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.routes import FailureRoute

T = TypeVar("T")

# The response callbacks that raise for no reply.
_NEVER_FAIL = frozenset(map(id, (bool, bool_ok, parse_set_result)))
# The options that redis-py takes out before it parses a reply; "keys" is for its client-side cache.
NOT_FOR_PARSING = frozenset({NEVER_DECODE, EMPTY_RESPONSE, "keys"})
_PING = traits_of(("PING",))


class CommandExecutor:
    """Executes the commands of one client, and of the pipelines, locks, scripts and queues on it.

    It does not refer to the client, which is the ``caller`` of each call: a reference cycle would keep a forgotten pool
    alive.

    Args:
        connection_pool: The client's pool, of any kind.
        recorder: Where calls are recorded.
        server_span: The parent of their spans; ``None`` means the span that is current when a command is called.
        is_pinned: Whether the client keeps to one connection.
        shares: Whether the client's own commands may go on the shared connection.
        execute_command: The ``execute_command`` that goes through this object. A client whose class has another one
            sees every command there, as in redis-py.

    Attributes:
        connection_pool: The client's pool, of any kind.
        dedicated: The pool's dedicated connections.
        pin: The connection that the client keeps to; ``None`` if it keeps to none.
        pool: The pool, if it is a ``MonitoredConnectionPool``.
        reads_replicas: Whether calls that only read may go to replicas.
        request: What counts the calls of the request that they are part of; default ``None``.
        shared_pool: The pool, if the client's own commands may go on its shared connection.
        shares: Whether they may, as far as the client is concerned.
    """

    __slots__ = (
        "_execute_command",
        "connection_pool",
        "dedicated",
        "pin",
        "pool",
        "reads_replicas",
        "recorder",
        "request",
        "server_span",
        "shared_pool",
        "shares",
    )

    def __init__(
        self,
        connection_pool: ConnectionPool,
        recorder: PoolRecorder,
        server_span: Span | None,
        *,
        is_pinned: bool,
        shares: bool,
        execute_command: Callable[..., object],
    ) -> None:
        self.connection_pool = connection_pool
        self.recorder = recorder
        self.server_span = server_span
        self.request: RequestStats | None = None
        self.dedicated = dedicated_connections_of(connection_pool)
        self.pin = PinnedConnection() if is_pinned else None
        self.pool = connection_pool if isinstance(connection_pool, MonitoredConnectionPool) else None
        self.reads_replicas = self.pool is not None and self.pool.reads_replicas
        self.shared_pool = self.pool if shares and not is_pinned else None
        self.shares = shares
        self._execute_command = execute_command

    def overrides_execute(self, caller: Redis) -> bool:
        """Whether the client's class has an ``execute_command`` of its own, also one that it got later."""
        # What stands in for a client may have none on its class.
        return getattr(type(caller), "execute_command", None) is not self._execute_command

    def in_context(self, server_span: Span | None, request: RequestStats | None) -> Self:
        """Return the same for another client on the pool, whose calls have that parent and are part of that request."""
        executor = self.copied()
        executor.server_span = server_span
        executor.request = request
        executor.pin = None if self.pin is None else PinnedConnection()
        return executor

    def unpinned(self) -> Self:
        """Return the same without a pinned connection, for what goes on when that may be lost or closed."""
        executor = self.copied()
        executor.pin = None
        return executor

    def copied(self) -> Self:
        """Return a copy, whose ``server_span`` may change by itself."""
        # copy.copy takes ten times as long, and a web application does this for each request.
        executor = object.__new__(type(self))
        for name in CommandExecutor.__slots__:
            setattr(executor, name, getattr(self, name))
        return executor

    # One command.

    async def execute(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None = None,
        seconds: float | None = None,
        losses: int | None = None,
    ) -> Any:
        """Execute one command on the shared connection, or on a dedicated one if it cannot be shared.

        It is one coroutine, as each further one costs a call some 3 %.

        Args:
            caller: The client or pipeline.
            pool: Its pool.
            args: The command.
            options: Those of redis-py's ``execute_command``.
            observer: Is given the connection, the waiting and the reply: if it is certain then that the call succeeds,
                the call is recorded at once.
            seconds: How long the attempt may take; default ``None``, for no bound but the pool's.
            losses: Of a further attempt, how many connections the call was written to and that were lost. Default
                ``None``: this is the first attempt, and others follow where that is safe.

        Raises:
            AttemptFailed: A further attempt has failed.
        """
        started = monotonic()
        name = args[0]
        # Past the function, which is a call.
        known = FIXED_TRAITS.get(name) if name.__class__ is str else None
        traits = traits_of(args) if known is None else known
        multiplexer = pool.multiplexer
        try:
            if multiplexer is None or not traits.shareable:
                return await self._execute_once(caller, pool, args, options, seconds, observer)
            if losses is not None and losses >= ISOLATE_AFTER:
                async with multiplexer.isolated(seconds) as left:
                    return await self._execute_once(caller, pool, args, options, left, observer)
            callbacks: Any = caller.response_callbacks
            # Past the look-up of redis-py's dict class, which is in Python.
            callback = dict.get(callbacks, name.upper() if known is None else name)
            decodes = pool.decodes_replies and NEVER_DECODE not in options
            if observer is not None and (callback is None or (not options and id(callback) in _NEVER_FAIL)):
                observer.record_on_reply = pool.is_decodable if decodes else True
            future = multiplexer.send(args, None, observer, losses)
            reply = await (future if seconds is None else future.wait_for(seconds))
            if isinstance(reply, Exception):
                return _raise_or_empty(pool, reply, options, started)
            pool.retry_policy.server_unreachable = False
            if decodes:
                reply = pool.decode_reply(reply)
            if callback is None:
                return reply
            parsed = apply_callback(callback, reply, options)
            return await parsed if isawaitable(parsed) else parsed
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None
        except (AttemptFailed, PoolClosedError) as error:
            failure = _failed_attempt(error, is_node_pool=pool is not self.pool)
        if losses is not None:
            raise failure
        route, attempt = self._further_attempts(caller, pool, args, options, observer)
        return await retry_failed(route, traits, attempt, failure, started, blocking_timeout(args) or 0, observer)

    def _further_attempts(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> tuple[FailureRoute, Attempt[Any]]:
        """Return where a command goes after its first attempt has failed, and what makes an attempt."""
        return pool, partial(self.execute, caller, pool, args, options, observer)

    async def _execute_once(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        seconds: float | None,
        observer: Observer | None,
    ) -> Any:
        """Make one attempt on a dedicated connection."""
        reject_write_counting(args)
        decoding = {NEVER_DECODE: True} if NEVER_DECODE in options else {}
        acquired = DedicatedConnection(pool, observer)
        async with dedicated_attempt(pool, seconds, acquired, blocking_timeout(args) or 0) as connection:
            try:
                # Under a name without a callback: a callback's error is neither the server's nor the connection's.
                reply = await send_and_parse(caller, connection, "", args, decoding)
            except ResponseError:
                if EMPTY_RESPONSE in options:
                    return options[EMPTY_RESPONSE]
                raise
        callbacks: Any = caller.response_callbacks
        callback = dict.get(callbacks, args[0].upper())
        # redis-py sends several commands for HIMPORT SET, and has parsed its reply.
        if callback is None or parse_himport_set(args):
            return reply
        parsed = apply_callback(callback, reply, options)
        return await parsed if isawaitable(parsed) else parsed

    async def execute_dedicated(
        self, caller: Redis, args: tuple[Any, ...], options: dict[str, Any], observer: Observer | None
    ) -> Any:
        """Execute one command on the pinned connection, or else on any dedicated one; redis-py parses the reply there.

        Raises:
            DedicatedConnectionError: The command counts the writes of its connection, and the client keeps to none.
        """
        call = DedicatedCall([args], traits_of(args), close_after_failure(caller), blocking_timeout(args) or 0)
        return await self.dedicated.run(
            caller,
            self.pin,
            call,
            lambda connection: send_and_parse(caller, connection, args[0], args, options),
            observer,
        )

    def execute_part(
        self, caller: Redis, observer: Observer | None, *args: Any, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        """Execute one command that is part of an operation, without a record of its own; return its reply.

        Args:
            caller: The client.
            observer: Is given the connection and the reply; ``None`` if more calls follow.
            args: The command.
            options: Those of ``execute_command``.
        """
        if self.shared_pool is None:
            return self.execute_dedicated(caller, args, options, observer)
        return self.execute(caller, self.shared_pool, args, options, observer)

    async def connect(self, caller: Redis) -> None:
        """Acquire the connection that the client keeps to."""
        call = DedicatedCall((), _PING, close_after_failure(caller), wait=None)
        await self.dedicated.run(caller, self.pin, call, _do_nothing, None)

    # Operations that are more than one command.

    async def execute_recorded(
        self,
        caller: Redis,
        args: Sequence[Any],
        options: dict[str, Any],
        call: Callable[[Operation | None], Coroutine[Any, Any, T]],
    ) -> T:
        """Await a call that stands for one command, recorded as ``execute_command`` records that.

        Args:
            caller: The client.
            args: The command.
            options: Those of ``execute_command``.
            call: Is given the operation, or ``None`` if nothing records it.
        """
        operation = start_operation(self.recorder, args, self.server_span, self.request)
        return await self._observe(operation, call(operation), caller, args, options)

    async def execute_messaging(
        self,
        caller: Redis,
        spec: MessagingSpec,
        args: Sequence[Any],
        call: Callable[[MessagingOperation | None], Coroutine[Any, Any, T]],
    ) -> T:
        """Await a call that is an operation on messages.

        Args:
            caller: The client.
            spec: What the operation is.
            args: The command that stands for it.
            call: Is given the operation, or ``None`` if nothing records it.
        """
        recorder = self.recorder
        if recorder.counts_hot_keys:
            recorder.hot_keys.count(args)
        operation = None
        if recorder.is_enabled():
            operation = MessagingOperation(recorder, spec, args, self.server_span, self.request)
        return await self._observe(operation, call(operation), caller, args, {})

    def _observe(
        self,
        operation: Operation | None,
        call: Coroutine[Any, Any, T],
        caller: Redis,
        args: Sequence[Any],
        options: dict[str, Any],
    ) -> Coroutine[Any, Any, T]:
        # As in the client's execute_command: what others do beside us costs nothing where they do nothing.
        if not self.recorder.tracing_enabled and Redis.execute_command is not EXECUTE_COMMAND.original:
            return observe_call(operation, call, self.recorder, EXECUTE_COMMAND, caller, *args, **options)
        return call if operation is None else operation.observe(lambda: call)

    def new_operation(self, spec: CallSpec, args: Sequence[Any]) -> Operation:
        """Return the record of what takes several calls, which begins with ``observe``.

        Args:
            spec: What it is.
            args: The command that stands for all of them.
        """
        return Operation(self.recorder, spec, args, self.server_span, self.request)

    # Fetching.

    async def fetch(self, caller: Redis, fetch: Fetch, args: Sequence[Any], seconds: float) -> Any:
        """Fetch what is there, or arrives in time; what is on its way to a caller that leaves is restored.

        Args:
            caller: The client.
            fetch: What to fetch.
            args: The command that stands for it.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            ``None`` if nothing arrives.
        """
        return await self.execute_messaging(
            caller, fetch.messaging, args, partial(self.fetch_part, caller, fetch, seconds)
        )

    async def fetch_part(
        self, caller: Redis, fetch: Fetch, seconds: float, operation: MessagingOperation | None
    ) -> Any:
        """Fetch as ``fetch`` does, without a record of its own."""
        found = await self._fetch(caller, fetch, seconds, operation)
        if operation is not None and found is not None:
            operation.set_received(found, is_batch=fetch.is_batch)
        return found

    async def _fetch(self, caller: Redis, fetch: Fetch, seconds: float, operation: Operation | None) -> Any:
        pool = self.shared_pool
        if pool is not None and pool.is_sharing:
            found = await fetch_shared(pool, fetch, operation)
            if found is not None:
                return found
            fetch.on_empty()
            if not seconds:
                return None
            if operation is not None:
                operation.expect_more()
        return await self.dedicated.fetch(caller, self.pin, fetch, seconds, operation)


def executor_of(client: object) -> CommandExecutor | None:
    """Return the executor of a client of this package; ``None`` of any other, and of a pipeline."""
    executor = None if isinstance(client, Pipeline) else getattr(client, "_command_executor", None)
    # A mock has every attribute.
    return executor if isinstance(executor, CommandExecutor) else None


def require_executor(client: object) -> CommandExecutor:
    """Return the executor of a client that is known to be of this package."""
    return cast("CommandExecutor", executor_of(client))


def unpinned_copy(client: Redis) -> Redis:
    """Return a copy of a client of this package that keeps to no connection, for what goes on when that is lost."""
    unpinned = copy(client)
    vars(unpinned).update(
        connection=None, single_connection_client=False, _command_executor=require_executor(client).unpinned()
    )
    return unpinned


def reading_primaries(client: Redis) -> Redis:
    """Return a client that never reads from replicas, for what must see the last write: the given one, or a copy."""
    executor = executor_of(client)
    if executor is None or not executor.reads_replicas:
        return client
    other = copy(client)
    require_executor(other).reads_replicas = False
    return other


def apply_callback(callback: Callable[..., Any], reply: Any, options: dict[str, Any]) -> Any:
    """Return a reply as a response callback of redis-py parses it, or an awaitable of that."""
    return callback(reply, **{option: options[option] for option in options.keys() - NOT_FOR_PARSING})


def _raise_or_empty(pool: MonitoredConnectionPool, error: Exception, options: dict[str, Any], since: float) -> Any:
    """Raise an error of the shared connection; return the empty response if the call has one for the server's errors.

    Raises:
        AttemptFailed: The error, in all other cases.
    """
    if EMPTY_RESPONSE in options and isinstance(error, ResponseError):
        return options[EMPTY_RESPONSE]
    leave_refusing_server(pool, error, since=since)
    raise error if isinstance(error, AttemptFailed) else AttemptFailed(error, may_have_run=True)


def _failed_attempt(error: AttemptFailed | PoolClosedError, *, is_node_pool: bool) -> AttemptFailed:
    """Return the failure of an attempt, also if a cluster's node was removed: its slots belong to another one.

    Raises:
        PoolClosedError: The whole pool is closed.
    """
    if isinstance(error, AttemptFailed):
        return error
    if not is_node_pool:
        raise error
    return AttemptFailed(error, may_have_run=False)


async def _do_nothing(_: object) -> None:
    pass
