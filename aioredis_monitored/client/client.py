"""The client: redis-py's, with every call recorded as a span and a histogram point."""

import asyncio
import copy
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from inspect import isawaitable, signature
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload
from weakref import WeakKeyDictionary

from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.client import ResponseCallbackT
from redis.asyncio.keyspace_notifications import AbstractAsyncKeyspaceNotifications
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.commands.core import AsyncScript
from redis.event import EventDispatcher
from redis.typing import ChannelT, EncodableT, KeyT, ScriptTextT

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored._commands.traits import blocking_timeout, traits_of
from aioredis_monitored._execution.dedicated import extended_timeout
from aioredis_monitored._execution.executors import executor_for
from aioredis_monitored._execution.fetch import FETCH
from aioredis_monitored._execution.pinned import discard_if_altered
from aioredis_monitored._execution.routing import CommandExecutor, require_executor
from aioredis_monitored._redispy.overrides import TypedRedis
from aioredis_monitored._telemetry.coexistence import EXECUTE_COMMAND
from aioredis_monitored._telemetry.operation import Operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import server_of
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored._topology.node import TargetNodes
from aioredis_monitored.client.cluster_pubsub import MonitoredClusterPubSub
from aioredis_monitored.client.keyspace import MonitoredClusterKeyspaceNotifications
from aioredis_monitored.client.lock import MonitoredLock
from aioredis_monitored.client.monitor import MonitoredMonitor
from aioredis_monitored.client.pipeline import MonitoredRedisPipeline
from aioredis_monitored.client.pubsub import MonitoredPubSub, publish_in_envelope
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.errors import ClusterRoutingError, decoding_error
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool

_ADDRESS = ("host", "unix_socket_path", "path")
_RETRY = ("retry", "retry_on_error", "retry_on_timeout")
_PARAMETERS = signature(Redis.__init__).parameters
_TCP_ARGUMENTS = frozenset(signature(Connection).parameters)
_SSL_ARGUMENTS = frozenset(signature(SSLConnection).parameters)

_ValueT = TypeVar("_ValueT")
_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

_plain_recorders: WeakKeyDictionary[ConnectionPool, PoolRecorder] = WeakKeyDictionary()


def _coroutine_function(function: _FunctionT) -> _FunctionT:
    """Mark a function that returns a coroutine for those who ask: ``unittest.mock`` makes an ``AsyncMock`` of it."""
    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(function)
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    return function


class MonitoredRedisConnection(TypedRedis):
    """A ``redis.asyncio.Redis`` that records what it does; a light handle on a pool.

    Args:
        context_name: The name under which the application knows it; default ``redis``.
        server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
        connection_pool: The pool, which its owner closes; redis-py's own pools work too, and keep their own settings.
            Without one, the client makes a ``MonitoredConnectionPool`` and closes it.
        single_connection_client: Keep to one connection, as ``client()`` does; default ``False``.
        auto_close_connection_pool: Whether closing the client closes a pool that it has made; default ``True``.
        event_dispatcher: As in ``redis.asyncio.Redis``.
        connection_arguments: Without a pool: those of ``redis.asyncio.Redis`` and of ``MonitoredConnectionPool``; no
            arguments at all mean a server on this machine.

    Raises:
        TypeError: An argument is unknown, or has no effect beside a pool, or is no name or span: a host is given as
            ``host=``.
    """

    def __init__(
        self,
        context_name: str | None = None,
        server_span: Span | None = None,
        connection_pool: ConnectionPool | None = None,
        *,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        event_dispatcher: EventDispatcher | None = None,
        **connection_arguments: Any,
    ) -> None:
        _check_types(context_name, server_span)
        if connection_pool is not None:
            owns_pool = False
            _check_without_effect(connection_arguments)
        else:
            owns_pool = auto_close_connection_pool is not False
            if context_name is not None and all(connection_arguments.get(name) is None for name in _ADDRESS):
                message = (
                    f"{context_name!r} is taken for the name of a context, and there is neither a pool nor a server: "
                    f"give connection_pool=, host= or unix_socket_path=, or use from_url()"
                )
                raise TypeError(message)
            connection_pool = _make_pool(**connection_arguments)
        # First: redis-py's constructor sets connection_pool.
        self._command_executor = executor_for(
            connection_pool,
            _recorder_of(connection_pool),
            server_span,
            is_pinned=single_connection_client,
            # A subclass that parses replies itself gets them on a connection, as redis-py hands them over.
            shares=type(self).parse_response is _PARSE_RESPONSE,
            execute_command=_EXECUTE_COMMAND,
        )
        super().__init__(
            connection_pool=connection_pool,
            single_connection_client=single_connection_client,
            event_dispatcher=event_dispatcher,
        )
        self.auto_close_connection_pool = owns_pool
        self.context_name = "redis" if context_name is None else context_name

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a client with a ``MonitoredConnectionPool`` of its own for this URL, closed with the client.

        Args:
            url: As in ``MonitoredConnectionPool.from_url``.
            single_connection_client: Keep to one connection, as ``client()`` does; default ``False``.
            auto_close_connection_pool: Whether closing the client closes the pool; default ``True``.
            kwargs: Arguments of ``MonitoredConnectionPool``, over which the URL wins.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        client = cls(
            connection_pool=MonitoredConnectionPool.from_url(url, **kwargs),
            single_connection_client=single_connection_client,
        )
        client.auto_close_connection_pool = auto_close_connection_pool is not False
        return client

    @property
    def server_span(self) -> Span | None:
        """The parent of this client's spans; ``None`` means the span that is current when a command is called."""
        return self._command_executor.server_span

    @server_span.setter
    def server_span(self, span: Span | None) -> None:
        self._command_executor.server_span = span

    @property
    def connection_pool(self) -> ConnectionPool:
        """The pool; another one may be assigned while no call is in flight."""
        return self._command_executor.connection_pool

    @connection_pool.setter
    def connection_pool(self, pool: ConnectionPool) -> None:
        before = self._command_executor
        if pool is not before.connection_pool:
            self._command_executor = executor_for(
                pool,
                _recorder_of(pool),
                before.server_span,
                is_pinned=before.pin is not None,
                shares=before.shares,
                execute_command=_EXECUTE_COMMAND,
            )
            self._command_executor.request = before.request

    def __copy__(self) -> Self:
        executor = self._command_executor
        client = self.__class__.__new__(self.__class__)
        client.__dict__.update(
            self.__dict__, _command_executor=executor.in_context(executor.server_span, executor.request)
        )
        return client

    # Commands.

    @_coroutine_function
    def execute_command(self, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        """Execute one command and return its parsed reply, as redis-py does.

        It returns the coroutine that does so: one of its own around that would cost a call some 5 %. On Python 3.11,
        ``inspect.iscoroutinefunction`` does not take it for a coroutine function; ``asyncio.iscoroutinefunction`` does.

        Raises:
            DedicatedConnectionError: The command is about its own connection, and this client keeps to none.
        """
        executor = self._command_executor
        pool, recorder = executor.shared_pool, executor.recorder
        if pool is None or (options and FETCH in options) or Redis.execute_command is not EXECUTE_COMMAND.original:
            return _execute_unusual(self, executor, args, options)
        if recorder.counts_hot_keys:
            recorder.hot_keys.count(args)
        if not recorder.is_enabled():
            return executor.execute(self, pool, args, options)
        # As start_operation, but without its call.
        operation = Operation(recorder, recorder.command_spec(args), args, executor.server_span, executor.request)
        return operation.observe(executor.execute, self, pool, args, options, operation)

    async def parse_response(self, connection: Connection, command_name: str | bytes, **options: Any) -> Any:
        """Read a reply on a dedicated connection, as redis-py does.

        Raises:
            ReplyDecodingError: The reply is not in the connection's encoding.
        """
        try:
            return await super().parse_response(connection, command_name, **options)
        except UnicodeDecodeError as error:
            raise decoding_error(error) from None

    async def _send_command_parse_response(
        self, conn: Any, command_name: str | bytes, *args: Any, **options: Any
    ) -> Any:
        if traits_of(args).shareable:
            return await super()._send_command_parse_response(conn, command_name, *args, **options)
        executor = self._command_executor
        if executor.pin is None:
            discard_if_altered(executor.connection_pool, conn, [args])
        else:
            executor.pin.note_alterations(executor.connection_pool, conn, [args])
        # The pool's own attempts have extended it already: for a subclass that calls redis-py's execute_command.
        wait = 0 if executor.pool is None else blocking_timeout(args) or 0
        async with extended_timeout(conn, wait):
            return await super()._send_command_parse_response(conn, command_name, *args, **options)

    def set_response_callback(self, command: str, callback: ResponseCallbackT) -> None:
        """Set how replies to ``command`` are parsed, for this client alone: others share the callbacks it had."""
        self.response_callbacks = copy.copy(self.response_callbacks)
        super().set_response_callback(command, callback)

    # Other clients on the same pool.

    def in_context(self, context_name: str, server_span: Span | None, request: RequestStats | None = None) -> Self:
        """Make another client on the same pool, which it does not own; it costs a fraction of a constructor's call.

        Args:
            context_name: The name under which the application knows it.
            server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
            request: Counts its calls.
        """
        client = self.__class__.__new__(self.__class__)
        client.__dict__.update(
            self.__dict__,
            context_name=context_name,
            connection=None,
            auto_close_connection_pool=False,
            _usage_counter=0,
            _command_executor=self._command_executor.in_context(server_span, request),
        )
        return client

    def client(self) -> Self:
        """Make a client that keeps to one connection; close it to give the connection back.

        If the connection is lost, the client gets another one, unless a command was sent on it that alters a connection
        (SELECT, CLIENT SETNAME, WATCH, MULTI, an unknown command, …): then every further call raises
        ``PinnedConnectionLostError``, and so does WAIT on another connection than the first. A call that is in flight
        while another task closes the client raises it, too.
        """
        executor = self._command_executor
        client = self.__class__(
            self.context_name, executor.server_span, self.connection_pool, single_connection_client=True
        )
        require_executor(client).request = executor.request
        return client

    # Opening and closing.

    async def initialize(self) -> Self:
        """Acquire the connection of a client that keeps to one, as redis-py does."""
        if self.single_connection_client and self.connection is None:
            await self._command_executor.connect(self)
        return await super().initialize()

    async def __aenter__(self) -> Self:
        if self.auto_close_connection_pool:
            await self.connection_pool.__aenter__()
        try:
            return await super().__aenter__()
        except asyncio.CancelledError:
            self._usage_counter -= 1
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # redis-py's closes nothing if it is cancelled.
        self._usage_counter -= 1

        async def close_unless_entered() -> None:
            # Another task may have entered since.
            if not self._usage_counter:
                await self.aclose()

        if not self._usage_counter:
            with cleaning_up(f"client {self.context_name!r}: closing it"):
                await asyncio.shield(asyncio.ensure_future(close_unless_entered()))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Give the connection back if this client keeps to one, and close the pool if the client has made it.

        Args:
            close_connection_pool: Whether to close the pool; default: if the client has made it.
        """
        pin = self._command_executor.pin
        with cleaning_up(f"client {self.context_name!r}: closing it"):
            if pin is not None:
                pin.closings += 1
                # The next user of the connection must not get the reply to a call that is not answered yet.
                await pin.abort_busy(self)
            if self.connection is not None and self._single_conn_lock.locked():
                # redis-py sends new credentials on it.
                await self.connection.disconnect(nowait=True)
            await super().aclose(close_connection_pool)

    def get_retry(self) -> Retry | None:
        """Return the retry policy of the pool, in redis-py's terms."""
        pool = self._command_executor.pool
        return super().get_retry() if pool is None else pool.get_retry()

    def set_retry(self, retry: Retry) -> None:
        """Set the retry policy of the pool; a ``MonitoredConnectionPool`` takes its number of retries alone."""
        if self._command_executor.pool is None:
            super().set_retry(retry)
        else:
            # redis-py would set it on connections, which would repeat what may have run.
            self._command_executor.pool.set_retry(retry)

    # What the client makes.

    @overload
    def pipeline(
        self, name: str | None = None, transaction: bool = True, shard_hint: str | None = None
    ) -> MonitoredRedisPipeline: ...

    @overload
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> MonitoredRedisPipeline: ...

    def pipeline(  # type: ignore[misc]  # each form has names of its own, which one signature cannot show
        self,
        name: str | bool | None = None,
        transaction: bool | str | None = True,
        shard_hint: str | None = None,
    ) -> MonitoredRedisPipeline:
        """Make a pipeline: ``pipeline("checkout")``, or as in redis-py ``pipeline()``, ``pipeline(False)``.

        Its replies have ``socket_timeout`` all together, from the moment in which the batch was written, and not each
        of them as in redis-py; commands in it that block extend that. Divide a batch that takes longer.

        Args:
            name: What the batch does; it becomes ``db.query.summary`` and the span's name, so keep it to a few values.
            transaction: Wrap the batch in MULTI and EXEC; default ``True``.
            shard_hint: Kept for redis-py's sake.

        Raises:
            TypeError: The name is neither text nor, as in redis-py's form, a truth value.
        """
        if isinstance(name, int):
            name, transaction, shard_hint = None, name, transaction if isinstance(transaction, str) else shard_hint
        if not isinstance(name, str | None):
            message = f"a pipeline's name must be text, got {type(name).__name__}"
            raise TypeError(message)
        return MonitoredRedisPipeline(
            self.connection_pool,
            self.response_callbacks,
            bool(transaction),
            shard_hint,
            name=name or None,
            executor=self._command_executor,
        )

    @overload
    async def transaction(
        self,
        func: Callable[[MonitoredRedisPipeline], object],
        *watches: KeyT,
        shard_hint: str | None = None,
        value_from_callable: Literal[False] = False,
        watch_delay: float | None = None,
    ) -> list[Any]: ...

    @overload
    async def transaction(
        self,
        func: Callable[[MonitoredRedisPipeline], Awaitable[_ValueT]],
        *watches: KeyT,
        shard_hint: str | None = None,
        value_from_callable: Literal[True],
        watch_delay: float | None = None,
    ) -> _ValueT: ...

    @overload
    async def transaction(
        self,
        func: Callable[[MonitoredRedisPipeline], _ValueT],
        *watches: KeyT,
        shard_hint: str | None = None,
        value_from_callable: Literal[True],
        watch_delay: float | None = None,
    ) -> _ValueT: ...

    @overload
    async def transaction(
        self,
        func: Callable[[MonitoredRedisPipeline], object],
        *watches: KeyT,
        shard_hint: str | None = None,
        value_from_callable: bool = False,
        watch_delay: float | None = None,
    ) -> Any: ...

    async def transaction(
        self,
        func: Callable[[MonitoredRedisPipeline], object],
        *watches: KeyT,
        shard_hint: str | None = None,
        **options: Any,
    ) -> Any:
        """Run a function on a pipeline that watches keys, again while any of them changes meanwhile, as redis-py does.

        A batch that was sent and not answered is not repeated if it may have run: its error is raised.

        Args:
            func: Is given the pipeline.
            watches: The keys.
            shard_hint: Kept for redis-py's sake.
            options: Those of ``redis.asyncio.Redis.transaction``.
        """

        async def run(pipe: Any) -> Any:
            pipe.repeats_on_watch_error = True
            result = func(pipe)
            return await result if isawaitable(result) else result

        return await super().transaction(run, *watches, shard_hint=shard_hint, **options)

    def lock(
        self,
        name: KeyT,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        lock_class: type[Lock] | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
    ) -> Lock:
        """Make a distributed lock; the arguments are those of ``redis.asyncio.Redis.lock``, durations in seconds."""
        return super().lock(
            name,
            timeout,
            sleep,
            blocking,
            blocking_timeout,
            lock_class or MonitoredLock,
            thread_local,
            raise_on_release_error,
        )

    def register_script(self, script: ScriptTextT) -> AsyncScript:  # type: ignore[override]  # redis-py's own bases disagree
        """Make a script; where the server does not know it, the operation that runs it loads it.

        A subclass that overrides ``execute_command`` sees every command of it, as in redis-py: each is an operation.
        """
        return MonitoredScript(self, script)

    def monitor(self, target_node: TargetNodes | None = None) -> MonitoredMonitor:
        """Show every command that a server gets, as redis-py does.

        Args:
            target_node: In a cluster, the node: a ``ClusterNode``, or what else ``target_nodes=`` takes, if it names
                one node. Entering the monitor raises what ``execute_command`` does if it does not. Default ``None``,
                for a server that is alone.

        Raises:
            ClusterRoutingError: The pool is that of a cluster, and no node is named.
            TypeError: A node is named, and the pool is that of a single server.
        """
        if not isinstance(self.connection_pool, MonitoredClusterPool):
            if target_node is not None:
                message = f"target_node must be None on the pool of a single server, got {target_node!r}"
                raise TypeError(message)
        elif target_node is None:
            raise ClusterRoutingError(
                "MONITOR shows the commands of one node: name it, as in "
                "cluster.monitor(target_node=cluster.get_node_from_key(key)), cluster being a MonitoredRedisCluster"
            )
        return MonitoredMonitor(self.connection_pool, target_node)

    def pubsub(self, **arguments: Any) -> MonitoredPubSub:
        """Make subscriptions; the arguments are those of ``redis.asyncio.Redis.pubsub``, and ``on_reconnect``.

        See ``MonitoredPubSub``; in a cluster, it is a ``MonitoredClusterPubSub``.
        """
        pool = self.connection_pool
        arguments = {
            "recorder": self._command_executor.recorder,
            "server_span": self._command_executor.server_span,
            "event_dispatcher": self._event_dispatcher,
            **arguments,
        }
        if isinstance(pool, MonitoredClusterPool):
            return MonitoredClusterPubSub(pool, **arguments)
        return MonitoredPubSub(pool, **arguments)

    def keyspace_notifications(  # type: ignore[override]  # in a cluster, another class of the same base
        self, key_prefix: str | bytes | None = None, ignore_subscribe_messages: bool = True
    ) -> AbstractAsyncKeyspaceNotifications:
        """Subscribe to what happens to keys, as redis-py does; in a cluster, at every primary.

        See ``MonitoredClusterKeyspaceNotifications``.

        Args:
            key_prefix: Notify of keys with this prefix alone, and show them without it; default ``None``, for all.
            ignore_subscribe_messages: Whether confirmations are no messages; default ``True``.
        """
        if not isinstance(self.connection_pool, MonitoredClusterPool):
            return super().keyspace_notifications(key_prefix, ignore_subscribe_messages)
        return MonitoredClusterKeyspaceNotifications(
            self.connection_pool,
            self._command_executor.server_span,
            self._event_dispatcher,
            key_prefix=key_prefix,
            ignore_subscribe_messages=ignore_subscribe_messages,
        )

    def publish(
        self, channel: ChannelT, message: EncodableT, *, propagate: bool = False, **options: Any
    ) -> Awaitable[int]:
        """Publish a message, as redis-py does, and return how many subscribers have received it.

        Args:
            channel: The channel.
            message: The message.
            propagate: Wrap the message in an envelope with what the application's propagators inject, by default the
                trace context of this call's span and the baggage; if they inject nothing, there is no envelope.
                ``MonitoredPubSub`` unwraps it, all other subscribers receive it. In a subclass that overrides
                ``execute_command``, it is the context in which this is called. Default ``False``.
            options: Those of ``execute_command``.
        """
        if propagate:
            return publish_in_envelope(self, "PUBLISH", channel, message, options)
        publishing: Awaitable[int] = super().publish(channel, message, **options)
        return publishing

    def spublish(self, shard_channel: ChannelT, message: EncodableT, *, propagate: bool = False) -> Awaitable[int]:
        """Publish a message in a shard channel; the arguments are those of ``publish``."""
        if propagate:
            return publish_in_envelope(self, "SPUBLISH", shard_channel, message, {})
        publishing: Awaitable[int] = super().spublish(shard_channel, message)
        return publishing


async def _execute_unusual(
    client: MonitoredRedisConnection, executor: CommandExecutor, args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Execute a command that fetches, one on a dedicated connection, or one that another tool observes as well."""
    if options and FETCH in options:
        return await executor.fetch(client, options.pop(FETCH), args, blocking_timeout(args) or 0)
    pool = executor.shared_pool

    def execute(operation: Operation | None) -> Coroutine[Any, Any, Any]:
        if pool is None:
            return executor.execute_dedicated(client, args, options, operation)
        return executor.execute(client, pool, args, options, operation)

    return await executor.execute_recorded(client, args, options, execute)


# Ours, whatever is put in their place later.
_EXECUTE_COMMAND: Final = MonitoredRedisConnection.execute_command
_PARSE_RESPONSE: Final = MonitoredRedisConnection.parse_response


def _check_types(context_name: object, server_span: object) -> None:
    for name, value, expected in (("context_name", context_name, str), ("server_span", server_span, Span)):
        if not isinstance(value, expected | None):
            message = (
                f"{name} must be a {expected.__name__}, got {type(value).__name__}; give a server as "
                f"MonitoredRedisConnection(host=…, port=…), a pool as connection_pool=…"
            )
            raise TypeError(message)


def _check_without_effect(arguments: Mapping[str, Any]) -> None:
    """Reject what redis-py ignores beside a pool, but for defaults, and what is documented to be ignored."""
    without_effect = [
        name
        for name, value in arguments.items()
        if name not in _PARAMETERS or (name not in _RETRY and value != _PARAMETERS[name].default)
    ]
    if without_effect:
        message = f"cannot be combined with connection_pool: {', '.join(without_effect)}"
        raise TypeError(message)


def _make_pool(*, unix_socket_path: str | None = None, ssl: bool = False, **arguments: Any) -> MonitoredConnectionPool:
    """Make the pool for the arguments of ``redis.asyncio.Redis``, which ignores those that do not apply."""
    ignored: frozenset[str] = frozenset()
    if unix_socket_path is not None:
        arguments |= {"connection_class": UnixDomainSocketConnection, "path": unix_socket_path}
        ignored = _TCP_ARGUMENTS | _SSL_ARGUMENTS
    elif ssl:
        arguments["connection_class"] = SSLConnection
    elif "connection_class" not in arguments:
        ignored = _SSL_ARGUMENTS
    return MonitoredConnectionPool(**{name: value for name, value in arguments.items() if name not in ignored})


def _recorder_of(pool: ConnectionPool) -> PoolRecorder:
    """Return the recorder of a pool; all clients of a plain pool share one."""
    # A mock of our pool has none.
    if isinstance(recorder := getattr(pool, "telemetry", None), PoolRecorder):
        return recorder
    try:
        recorder = _plain_recorders.get(pool)
        if recorder is None:
            recorder = _plain_recorders[pool] = PoolRecorder(server_of(pool))
    except TypeError:
        # What stands in for a pool need not be hashable, or weakly referable.
        return PoolRecorder(server_of(pool))
    return recorder
