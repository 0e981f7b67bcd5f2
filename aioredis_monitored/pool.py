"""The connection pool: made from configuration, bound to one event loop, closed by whoever opened it."""

import asyncio
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.asyncio import BlockingConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from aioredis_monitored._version import __version__
from aioredis_monitored.config import RedisConfig
from aioredis_monitored.errors import ConfigurationError, EventLoopError, PoolClosedError
from aioredis_monitored.telemetry import semconv
from aioredis_monitored.telemetry.attributes import command_call, server_of
from aioredis_monitored.telemetry.instruments import SCOPE, Telemetry
from aioredis_monitored.telemetry.operation import Operation

# Once: redis-py would read its version from disk for every connection, in the event loop.
_DRIVER_INFO = DriverInfo().add_upstream_driver(SCOPE, __version__)
_RETRY_ARGUMENTS = ("retry", "retry_on_error", "retry_on_timeout")


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
            ``socket_timeout`` (seconds), ``connection_class`` and so on.

    Raises:
        ConfigurationError: ``max_connections`` is less than 1.
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
                message = f"{argument}= is refused: redis-py's retries repeat commands that may already have run"
                raise TypeError(message)
        if max_connections < 1:
            raise ConfigurationError(("max_connections", f"must be at least 1, not {max_connections}"))
        # redis-py 8.1's default skips its check for unread replies, and hands one caller another's reply.
        connection_arguments.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
        connection_arguments.setdefault("driver_info", _DRIVER_INFO)
        super().__init__(max_connections=max_connections, timeout=timeout, **connection_arguments)
        # An unknown argument would otherwise be noticed by the first command.
        self.make_connection()  # type: ignore[no-untyped-call]
        server = server_of(self)
        self.telemetry = Telemetry(server, tracer_provider=tracer_provider, meter_provider=meter_provider)
        address = server.target or server.attributes.get(semconv.SERVER_ADDRESS, self.connection_class.__name__)
        self._address = f"{address}/{server.attributes[semconv.DB_NAMESPACE]}"
        self.name = name or self._address
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A pool for a URL, checked as ``pool_from_config`` checks it; keyword arguments win over the URL's options.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        return cls(**{**RedisConfig.from_mapping({"url": url}, "").pool_arguments(), **kwargs})

    @classmethod
    def from_arguments(
        cls,
        *,
        unix_socket_path: str | None = None,
        ssl: bool = False,
        max_connections: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """A pool for the keyword arguments of ``redis.asyncio.Redis``."""
        if unix_socket_path is not None:
            kwargs |= {"connection_class": UnixDomainSocketConnection, "path": unix_socket_path}
        elif ssl:
            kwargs["connection_class"] = SSLConnection
        if max_connections is not None:
            kwargs["max_connections"] = max_connections
        return cls(**kwargs)

    def __repr__(self) -> str:
        used, idle = len(self._in_use_connections), sum(c.is_connected for c in self._available_connections)
        state = "closed" if self._closed else f"{used} used, {idle} idle, at most {self.max_connections}"
        return f"<{type(self).__name__} {self.name!r} {self._address} [{state}]>"

    async def ping(self) -> None:
        """Return if the server answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: The server cannot be used; the same class that a command would raise, the
                text starts with the pool's name and address.
        """
        with Operation(self.telemetry, command_call(("PING",)), None):
            try:
                connection = await self.get_connection()
                try:
                    await connection.send_command("PING")
                    await connection.read_response()
                finally:
                    await self.release(connection)
            except PoolClosedError:
                raise
            except RedisError as error:
                error.args = (f"pool {self.name!r} ({self._address}): {error}", *error.args[1:])
                raise

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:  # noqa: ARG002 - redis-py's signature
        """Borrow a connection; give it back with ``release``.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
            redis.exceptions.ConnectionError: No connection became free in time, or the server cannot be reached.
        """
        self._check_open()
        self._check_loop()
        connection: AbstractConnection = await super().get_connection()  # type: ignore[no-untyped-call]
        if self._closed:
            # Closed while this call waited; release() closes what a closed pool gets back.
            await self.release(connection)
            self._check_open()
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Give a borrowed connection back."""
        if self._closed:
            await connection.disconnect(nowait=True)
        await super().release(connection)

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``."""
        self._closed = True
        loop, self._loop = self._loop, None
        if loop not in (None, asyncio.get_running_loop()):
            self._abandon_connections()
            return
        await asyncio.shield(super().aclose())

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

    def _check_open(self) -> None:
        if self._closed:
            message = f"pool {self.name!r} is closed"
            raise PoolClosedError(message)

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            message = f"pool {self.name!r} belongs to another event loop: make one pool for each loop"
            raise EventLoopError(message)

    def _abandon_connections(self) -> int:
        """Close the sockets without their event loop, which may be closed; return how many there were."""
        connected = [c for c in (*self._available_connections, *self._in_use_connections) if c.is_connected]
        for connection in connected:
            _abandon(connection)
        return len(connected)


def pool_from_config(app_config: Mapping[str, Any], prefix: str = "redis.", **kwargs: Any) -> MonitoredConnectionPool:
    """Make a pool from an application's configuration.

    Keys, each with the prefix in front: ``url`` (required), ``max_connections``, ``timeout``, ``socket_timeout``,
    ``socket_connect_timeout``, ``health_check_interval``, ``socket_keepalive``, ``client_name``, ``username``,
    ``password``, ``password_file``, ``db``, ``protocol``, ``decode_responses`` and ``ssl_*``. Durations are timespans
    such as ``200 milliseconds``, or seconds. The prefix without its dot is the pool's name.

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


def _abandon(connection: AbstractConnection) -> None:
    writer: Any = connection._writer  # noqa: SLF001 - redis-py offers no way to close without an event loop
    connection._writer = connection._reader = None  # noqa: SLF001
    transport = writer.transport
    try:
        transport.abort()
    except RuntimeError:
        # The loop is closed and will never run the callback that closes the socket.
        sock = getattr(transport, "_sock", None)
        if sock is not None:
            sock.close()
            transport._sock = None  # noqa: SLF001
