"""The client: redis-py's, with every call recorded as a span and a histogram point."""

import asyncio
import copy
from collections.abc import Callable, Mapping
from inspect import isawaitable, signature
from types import TracebackType
from typing import Any, Self, cast, overload
from weakref import WeakKeyDictionary

from opentelemetry.trace import Span
from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.client import ResponseCallbackT
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.commands.core import AsyncScript
from redis.event import EventDispatcher
from redis.typing import KeyT, ScriptTextT

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored._execution.routing import Handle
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import server_of
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.client.lock import MonitoredLock
from aioredis_monitored.client.monitor import MonitoredMonitor
from aioredis_monitored.client.pipeline import MonitoredRedisPipeline
from aioredis_monitored.client.pubsub import PubSubMixin
from aioredis_monitored.client.script import MonitoredScript
from aioredis_monitored.pool.pool import MonitoredConnectionPool

_ADDRESS = ("host", "unix_socket_path", "path")
_RETRY = ("retry", "retry_on_error", "retry_on_timeout")
_PARAMETERS = signature(Redis.__init__).parameters
_TCP_ARGUMENTS = frozenset(signature(Connection).parameters)
_SSL_ARGUMENTS = frozenset(signature(SSLConnection).parameters)

_plain_pools: WeakKeyDictionary[ConnectionPool, PoolRecorder] = WeakKeyDictionary()


class MonitoredRedisConnection(PubSubMixin, Handle):  # type: ignore[misc]  # redis-py's own bases disagree
    """A ``redis.asyncio.Redis`` that records what it does; a light handle on a pool.

    Args:
        context_name: The name under which the application knows it; default ``redis``.
        server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
        connection_pool: The pool, which whoever made it closes; redis-py's own pools work too, and keep their own
            settings. Without one, a ``MonitoredConnectionPool`` is made and closed with this client.
        single_connection_client: Keep to one connection, as ``client()`` does; default ``False``.
        auto_close_connection_pool: Whether a pool that is made here is closed with this client; default ``True``.
        event_dispatcher: As in ``redis.asyncio.Redis``.
        connection_arguments: Without a pool: those of ``redis.asyncio.Redis`` and of ``MonitoredConnectionPool``; no
            arguments at all mean a server on this machine.

    Raises:
        TypeError: An argument is unknown, is given beside a pool where it has no effect, or is no name or span: a host
            is given as ``host=``.
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
        _check_handle(context_name, server_span)
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
            connection_pool = _own_pool(**connection_arguments)
        super().__init__(
            connection_pool=connection_pool,
            single_connection_client=single_connection_client,
            credential_provider=connection_arguments.get("credential_provider"),
            event_dispatcher=event_dispatcher,
        )
        self.auto_close_connection_pool = owns_pool
        self.context_name = "redis" if context_name is None else context_name
        self.server_span = server_span
        self._request: RequestStats | None = None
        self.telemetry = _telemetry_of(self.connection_pool)
        # A subclass that parses replies itself gets them on a connection, as redis-py hands them over.
        parses = type(self).parse_response is not Handle.parse_response
        is_ours = isinstance(connection_pool, MonitoredConnectionPool) and not single_connection_client and not parses
        self._pool = cast("MonitoredConnectionPool", connection_pool) if is_ours else None

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A client with a ``MonitoredConnectionPool`` of its own for this URL, closed with the client.

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

    def in_context(self, context_name: str, server_span: Span | None, request: RequestStats | None = None) -> Self:
        """Another handle on the same pool, which it does not own; it costs a fraction of a constructor's call.

        Args:
            context_name: The name under which the application knows it.
            server_span: The parent of its spans; ``None`` means the span that is current when a command is called.
            request: Counts its calls.
        """
        handle = self.__class__.__new__(self.__class__)
        handle.__dict__.update(
            self.__dict__,
            context_name=context_name,
            server_span=server_span,
            _request=request,
            connection=None,
            auto_close_connection_pool=False,
            _usage_counter=0,
        )
        return handle

    def client(self) -> Self:
        """A handle that keeps to one connection; close it to give the connection back.

        If the connection is lost, the handle gets another one, unless something was sent on it that alters a connection
        (SELECT, CLIENT SETNAME, WATCH, MULTI, an unknown command, …): then every further call raises
        ``PinnedConnectionLostError``, and so does WAIT on another connection than the first. A call that is in flight
        while another task closes the handle raises it, too.
        """
        handle = self.__class__(
            self.context_name, self.server_span, self.connection_pool, single_connection_client=True
        )
        handle._request = self._request  # noqa: SLF001 - of its own class
        return handle

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
        if not self._usage_counter:
            with cleaning_up(f"client {self.context_name!r}: closing it"):
                await asyncio.shield(asyncio.ensure_future(self._close_unless_used()))

    async def _close_unless_used(self) -> None:
        # Somebody may have entered since.
        if not self._usage_counter:
            await self.aclose()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Give the connection of this handle back if it keeps to one, and close the pool if it is the handle's own.

        Args:
            close_connection_pool: Whether to close the pool; default: if the handle has made it.
        """
        self._closings += self.single_connection_client
        with cleaning_up(f"client {self.context_name!r}: closing it"):
            # The next user of the connection must not get the reply to a call that is not answered yet.
            await self._leave_busy()
            if self.connection is not None and self._single_conn_lock.locked():
                # redis-py sends new credentials on it.
                await self.connection.disconnect(nowait=True)
            await super().aclose(close_connection_pool)

    def get_retry(self) -> Retry | None:
        """The retry policy of the pool, in redis-py's terms."""
        pool = self.connection_pool
        return pool.get_retry() if isinstance(pool, MonitoredConnectionPool) else super().get_retry()

    def set_retry(self, retry: Retry) -> None:
        """Set the retry policy of the pool; of it, a ``MonitoredConnectionPool`` takes the number of retries alone."""
        if isinstance(self.connection_pool, MonitoredConnectionPool):
            # Not its connection_kwargs: connections would repeat what may have run.
            self.connection_pool.set_retry(retry)
        else:
            super().set_retry(retry)

    def set_response_callback(self, command: str, callback: ResponseCallbackT) -> None:
        """Set how replies to ``command`` are parsed, for this handle alone: others share the callbacks it had."""
        self.response_callbacks = copy.copy(self.response_callbacks)
        super().set_response_callback(command, callback)

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
        """A pipeline: ``pipeline("checkout")``, or as in redis-py ``pipeline()``, ``pipeline(False)``.

        Its replies have ``socket_timeout`` all together, from the moment in which the batch was written, and not each
        of them as in redis-py; where commands in it block, so much longer. What takes longer has to be divided.

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
            message = f"a pipeline's name is text, not {type(name).__name__}"
            raise TypeError(message)
        return MonitoredRedisPipeline(
            self.connection_pool,
            self.response_callbacks,
            bool(transaction),
            shard_hint,
            name=name or None,
            telemetry=self.telemetry,
            server_span=self.server_span,
            request=self._request,
        )

    async def transaction(
        self, func: Callable[[Any], Any], *watches: KeyT, shard_hint: str | None = None, **options: Any
    ) -> Any:
        """Run a function on a pipeline that watches keys, until none of them has changed meanwhile, as redis-py does.

        What was sent and not answered is not repeated if it may have run: its error is raised.

        Args:
            func: Is given the pipeline.
            watches: The keys.
            shard_hint: Kept for redis-py's sake.
            options: Those of ``redis.asyncio.Redis.transaction``.
        """

        async def run(pipe: Any) -> Any:
            pipe.is_repeated = True
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
        """A distributed lock; the arguments are those of ``redis.asyncio.Redis.lock``, durations in seconds."""
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

    def monitor(self) -> MonitoredMonitor:
        """Show every command that the server gets, as redis-py does."""
        return MonitoredMonitor(self.connection_pool)

    def register_script(self, script: ScriptTextT) -> AsyncScript:  # type: ignore[override]  # redis-py's own bases disagree
        """A script; where it is missing, it is loaded by the operation that runs it.

        A subclass that replaces ``execute_command`` sees every command of it, as in redis-py: each is an operation.
        """
        return MonitoredScript(self, script)


def _check_handle(context_name: object, server_span: object) -> None:
    for name, value, expected in (("context_name", context_name, str), ("server_span", server_span, Span)):
        if not isinstance(value, expected | None):
            message = (
                f"{name} must be a {expected.__name__}, not {type(value).__name__}; a server is given as "
                f"MonitoredRedisConnection(host=…, port=…), a pool as connection_pool=…"
            )
            raise TypeError(message)


def _check_without_effect(arguments: Mapping[str, Any]) -> None:
    """Refuse what redis-py ignores beside a pool, but for what says nothing, or is documented to be ignored."""
    without_effect = [
        name
        for name, value in arguments.items()
        if name not in _PARAMETERS or (name not in _RETRY and value != _PARAMETERS[name].default)
    ]
    if without_effect:
        message = f"cannot be combined with connection_pool: {', '.join(without_effect)}"
        raise TypeError(message)


def _own_pool(*, unix_socket_path: str | None = None, ssl: bool = False, **arguments: Any) -> MonitoredConnectionPool:
    """The pool for the arguments of ``redis.asyncio.Redis``, which ignores those that do not apply."""
    ignored: frozenset[str] = frozenset()
    if unix_socket_path is not None:
        arguments |= {"connection_class": UnixDomainSocketConnection, "path": unix_socket_path}
        ignored = _TCP_ARGUMENTS | _SSL_ARGUMENTS
    elif ssl:
        arguments["connection_class"] = SSLConnection
    elif "connection_class" not in arguments:
        ignored = _SSL_ARGUMENTS
    return MonitoredConnectionPool(**{name: value for name, value in arguments.items() if name not in ignored})


def _telemetry_of(pool: ConnectionPool) -> PoolRecorder:
    # A mock of ours has none, although it is one of ours.
    if isinstance(own := getattr(pool, "telemetry", None), PoolRecorder):
        return own
    try:
        telemetry = _plain_pools.get(pool)
        if telemetry is None:
            telemetry = _plain_pools[pool] = PoolRecorder(server_of(pool))
    except TypeError:
        # What stands in for a pool need not be hashable, or weakly referable.
        return PoolRecorder(server_of(pool))
    return telemetry
