"""The connection pool: made from configuration, bound to one event loop, closed by whoever opened it."""

import asyncio
import warnings
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, cast

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from aioredis_monitored._version import __version__
from aioredis_monitored.abandon import abandon
from aioredis_monitored.config import RedisConfig, read_arguments
from aioredis_monitored.errors import EventLoopError, PoolClosedError
from aioredis_monitored.telemetry import semconv
from aioredis_monitored.telemetry.attributes import command_call, server_of
from aioredis_monitored.telemetry.instruments import SCOPE, Telemetry
from aioredis_monitored.telemetry.operation import Operation

# Once: redis-py would read its version from disk for every connection, in the event loop.
_DRIVER_INFO = DriverInfo().add_upstream_driver(SCOPE, __version__)
_RETRY_ARGUMENTS = ("retry", "retry_on_error", "retry_on_timeout")


class _Condition(asyncio.Condition):
    """Where calls wait for a connection; those that wait when the pool closes do not wait for its next opening."""

    closed = False

    async def wait(self) -> Literal[True]:
        woken = await super().wait()
        if self.closed:
            raise PoolClosedError("closed while waiting for a connection")
        return woken


class MonitoredConnectionPool(BlockingConnectionPool):
    """A blocking connection pool that reports to OpenTelemetry; every client that shares it shares its telemetry.

    Nothing connects before the first command. Leaving ``async with`` (or ``aclose``) closes every connection;
    entering opens the pool again. It belongs to the event loop that first used it.

    Args:
        name: What messages call it; default ``host:port/db``.
        max_connections: The most connections at a time, at least 1; default 50.
        timeout: Seconds to wait for a connection when all are in use; ``None`` waits for ever; default 20.
        tracer_provider: Where spans go; default the global provider.
        meter_provider: Where metrics go; default the global provider.
        connection_arguments: What redis-py's connection classes take: ``host``, ``port``, ``db``, ``password``,
            ``socket_timeout`` (seconds or a timespan), ``connection_class`` and so on.

    Raises:
        ConfigurationError: A value cannot be used; it names every such value at once.
        TypeError: An argument is unknown, or one of redis-py's retry arguments: its retries repeat commands that
            may have run.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        max_connections: int = 50,
        timeout: float | None = 20.0,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        **connection_arguments: Any,
    ) -> None:
        for argument in _RETRY_ARGUMENTS:
            if connection_arguments.pop(argument, None):
                _refuse_retries(argument)
        arguments = read_arguments({"max_connections": max_connections, "timeout": timeout, **connection_arguments})
        # redis-py 8.1's default skips its check for unread replies, and hands one caller another's reply.
        arguments.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
        arguments.setdefault("driver_info", _DRIVER_INFO)
        super().__init__(**arguments)
        # An unknown argument would otherwise be noticed by the first command.
        self.make_connection()
        server = server_of(self)
        self.telemetry = Telemetry(server, tracer_provider=tracer_provider, meter_provider=meter_provider)
        host = server.target or server.attributes.get(semconv.SERVER_ADDRESS, self.connection_class.__name__)
        address = f"{host}/{server.attributes[semconv.DB_NAMESPACE]}"
        self.name = name or address
        self._label = repr(self.name) if self.name == address else f"{self.name!r} ({address})"
        self._condition: _Condition = _Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A pool for a URL, checked as ``pool_from_config`` checks it; keyword arguments win over the URL's options.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        return cls(**{**RedisConfig.from_mapping({"url": url}, "").pool_arguments(), **kwargs})

    def __repr__(self) -> str:
        used, idle = len(self._in_use_connections), sum(c.is_connected for c in self._available_connections)
        state = "closed" if self._closed else f"{used} used, {idle} idle, at most {self.max_connections}"
        return f"<{type(self).__name__} {self._label} [{state}]>"

    async def ping(self) -> None:
        """Return if the server answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: The same as a command would raise, the text begins with the pool's name.
        """
        try:
            await Operation(self.telemetry, command_call(("PING",)), None).observe(self._ping())
        except PoolClosedError:
            raise
        except RedisError as error:
            error.args = (f"pool {self._label}: {error}", *error.args[1:])
            raise

    async def _ping(self) -> None:
        connection = await self.get_connection()
        try:
            await connection.send_command("PING")
            await connection.read_response()
        finally:
            await self.release(connection)

    def set_retry(self, retry: Retry) -> None:  # noqa: ARG002 - redis-py's signature
        """Refuse a retry policy, as the constructor does.

        Raises:
            TypeError: Always.
        """
        _refuse_retries("retry")

    def make_connection(self) -> AbstractConnection:
        """Make a connection that asks this pool whether it may connect."""
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.register_connect_callback(self._on_connect)  # type: ignore[no-untyped-call]
        return connection

    async def _on_connect(self, connection: AbstractConnection) -> None:
        # redis-py reconnects whenever it is asked to send. A connection that was out when the pool closed would come
        # back to life: a WATCH would be forgotten, a subscription would outlive the pool.
        if connection not in self._in_use_connections and connection not in self._available_connections:
            await connection.disconnect(nowait=True)
            raise self._closed_error()

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:  # noqa: ARG002 - redis-py's signature
        """Borrow a connection; give it back with ``release``.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
            redis.exceptions.ConnectionError: No connection became free in time, or the server cannot be reached.
        """
        if self._closed:
            raise self._closed_error()
        self.check_event_loop()
        condition = self._condition
        try:
            return cast("AbstractConnection", await super().get_connection())  # type: ignore[no-untyped-call]
        except BaseException as error:
            async with condition:
                # On Python 3.11, a waiter that is cancelled just as it is woken keeps the wake-up to itself.
                condition.notify()
            if isinstance(error, Exception) and condition is not self._condition:
                raise self._closed_error() from error
            raise

    def can_get_connection(self) -> bool:
        """Whether a connection is free, or may still be made; what waiting calls wait for."""
        if self._closed:
            raise self._closed_error()
        return bool(super().can_get_connection())

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, and leave nothing half-connected behind: without its AUTH and SELECT, for instance."""
        try:
            await super().ensure_connection(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    async def release(self, connection: AbstractConnection) -> None:
        """Give a borrowed connection back."""
        if connection in self._in_use_connections:
            with suppress(KeyError):  # the pool is closed meanwhile
                await super().release(connection)
                return
        await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._loop is not None and self._loop.is_closed():
            self._abandon_connections()
            self._forget()
        else:
            self.check_event_loop()
            await asyncio.shield(self._close_connections())

    async def _close_connections(self) -> None:
        idle, lent, waiting = self._available_connections, self._in_use_connections, self._condition
        self._forget()
        waiting.closed = True
        async with waiting:
            waiting.notify_all()
        for connection in lent:
            # Waiting for the end of what another task may be reading from could take as long as that task does.
            await connection.disconnect(nowait=True)
        closing = (connection.disconnect() for connection in idle)
        errors = [error for error in await asyncio.gather(*closing, return_exceptions=True) if error is not None]
        if errors:
            raise errors[0]

    def _forget(self) -> None:
        """Close the pool to all calls, without what is lent or bound to the loop: opened again, it is like new."""
        self._closed = True
        self._available_connections, self._in_use_connections = [], set()
        self._condition, self._lock, self._loop = _Condition(), asyncio.Lock(), None

    async def __aenter__(self) -> Self:
        self._closed = False
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        # An instance whose constructor raised has no connections.
        if hasattr(self, "_in_use_connections") and self._abandon_connections():
            _warn(f"pool {self.name!r} was never closed: use 'async with' or aclose()", ResourceWarning, source=self)
        super().__del__()

    def check_event_loop(self) -> None:
        """Bind the pool to the running event loop, if it is not yet bound.

        Raises:
            EventLoopError: It is bound to another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            message = f"pool {self.name!r} belongs to another event loop: make one pool for each loop"
            raise EventLoopError(message)

    def _closed_error(self) -> PoolClosedError:
        return PoolClosedError(f"pool {self.name!r} {'is' if self._closed else 'was'} closed")

    def _abandon_connections(self) -> int:
        connected = [c for c in (*self._available_connections, *self._in_use_connections) if c.is_connected]
        for connection in connected:
            abandon(connection, self._loop)
        return len(connected)


def pool_from_config(app_config: Mapping[str, Any], prefix: str = "redis.", **kwargs: Any) -> MonitoredConnectionPool:
    """Make a pool from an application's configuration.

    Keys, each with the prefix in front: ``url`` (required), ``password_file``, and the fields of ``RedisConfig`` from
    ``username`` on. Durations are timespans such as ``200 milliseconds``, or seconds. The prefix without its dot is the
    pool's name.

    Args:
        app_config: The configuration, such as ``config_from_env()``.
        prefix: What the keys of this pool start with; it ends with a dot.
        kwargs: Arguments of ``MonitoredConnectionPool``; they win over the configuration.

    Raises:
        ConfigurationError: Something in the configuration cannot be used; it names every problem at once.
        ValueError: The prefix does not end with a dot.
    """
    if not prefix.endswith("."):
        message = f"prefix must end with a dot: {prefix!r}"
        raise ValueError(message)
    arguments = RedisConfig.from_mapping(app_config, prefix).pool_arguments()
    return MonitoredConnectionPool(**{"name": prefix.removesuffix("."), **arguments, **kwargs})


def check_event_loop(pool: ConnectionPool) -> None:
    """``MonitoredConnectionPool.check_event_loop`` for a call that already holds its connection; other pools pass."""
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_event_loop()


def _refuse_retries(argument: str) -> None:
    message = f"{argument}= is refused: redis-py's retries repeat commands that may already have run"
    raise TypeError(message)
