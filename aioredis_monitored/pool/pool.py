"""The connection pool: made from configuration, bound to one event loop, closed by whoever opened it."""

import asyncio
import logging
import ssl
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.asyncio import SSLConnection
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.auth.token import TokenInterface
from redis.backoff import EqualJitterBackoff
from redis.driver_info import DriverInfo, resolve_driver_info
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import AbstractRetry
from redis.utils import SENTINEL

from aioredis_monitored._multiplexer import AttemptFailed, Multiplexer, supports_multiplexing
from aioredis_monitored._redispy.attributes import AttributeFreeParser
from aioredis_monitored._redispy.connections import decode_reply, handshake, is_decodable
from aioredis_monitored._telemetry.instruments import SCOPE
from aioredis_monitored._telemetry.operation import Operation, start_operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import server_of
from aioredis_monitored._timeouts import reply_timeout
from aioredis_monitored._version import __version__
from aioredis_monitored.config.schema import RedisConfig, override, url_arguments, validate_arguments
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.errors import PoolClosedError, PoolExhaustedError
from aioredis_monitored.pool.credentials import PasswordFile, is_renewable, retry_refused
from aioredis_monitored.pool.metrics import ReportingPool
from aioredis_monitored.pool.retry import MAX_DELAY_SECONDS, RetryPolicy

_LOGGER = logging.getLogger("aioredis_monitored.pool")

# Once: redis-py would read its version from disk for every connection, in the event loop.
_DRIVER_INFO = DriverInfo().add_upstream_driver(SCOPE, __version__)
_MIN_CONNECTIONS_FOR_BULK = 3
# Seconds that what goes on without its caller gets on closing, if a reply had all the time in the world before.
_FINISH_SECONDS = 5.0
_RESP2 = 2
_DEFAULT_CONNECTIONS = 50
_DEFAULT_RETRIES = 20
# Where None has no meaning of its own.
_MAY_BE_NONE = ("host", "port", "maint_notifications_config", "redis_connect_func")


class MonitoredConnectionPool(ReportingPool):
    """A blocking connection pool that reports to OpenTelemetry; every client that shares it shares its telemetry.

    Ordinary commands of all callers share one of its connections; a second one carries what is large. Whatever blocks,
    or alters its connection, gets one of its own. Nothing connects before the first command. Leaving ``async with`` (or
    ``aclose``) closes every connection; entering opens the pool again. It belongs to the event loop that first used it.

    Args:
        max_connections: The most connections at a time, at least 1; default 50. With 1, none is shared.
        timeout: Seconds to wait for a connection when all are in use; ``None`` waits for ever; default 20.
        connection_class: What makes connections; default redis-py's ``Connection``.
        queue_class: Kept for redis-py's sake.
        name: What messages and metrics call it; default ``host:port/db``. While an open pool has that name, metrics
            call the next one ``name-2``.
        multiplex: Whether ordinary commands share a connection; default ``True``.
        retries: How often at most a call that surely did not run is tried again within ``socket_timeout``; default 20,
            or what ``retry`` says.
        retry_backoff: Seconds of the first pause before that, doubled each time, to half a second; default 0.02.
        password_file: The path of a file that holds the password, read at every connect; default ``None``. While it
            cannot be read, the last good password is used.
        client_info: Whether connections tell ``CLIENT LIST`` the name and version of this package, which some proxies
            do not let pass; default ``True``.
        tracer_provider: Where spans go; default the global provider.
        meter_provider: Where metrics go; default the global provider.
        logger_provider: Where log events about repeated commands go; default ``None``, for nowhere.
        telemetry: What is reported, and how; default ``TelemetryOptions()``.
        retry: A retry policy of redis-py, of which only the number of retries counts: what may have run is never
            repeated, whatever its errors, and pauses are ``retry_backoff``'s. A negative number means any number;
            ``None``, as in redis-py, means none. ``retries`` wins over it.
        retry_on_error: Ignored, with a line in the log, for the same reason.
        retry_on_timeout: The same.
        connection_arguments: What the connection class takes: ``host``, ``port``, ``db``, ``password``,
            ``socket_timeout`` (seconds or a timespan) and so on. When the server refuses what a
            ``credential_provider`` or the ``password_file`` has given, that is asked once more.

    Raises:
        ConfigurationError: A value cannot be used; it names every such value at once.
        TypeError: An argument is unknown, or ``retry`` is no retry policy.
    """

    def __init__(
        self,
        max_connections: int | None = None,
        timeout: float | None = 20.0,
        connection_class: Callable[..., AbstractConnection] = Connection,
        queue_class: object = None,  # noqa: ARG002 - redis-py's signature
        *,
        name: str | None = None,
        multiplex: bool = True,
        retries: int | None = None,
        retry_backoff: float = 0.02,
        client_info: bool = True,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        telemetry: TelemetryOptions | None = None,
        retry: AbstractRetry[Any] | object | None = SENTINEL,
        retry_on_error: Iterable[type[Exception]] | None = None,
        retry_on_timeout: bool = False,
        **connection_arguments: Any,
    ) -> None:
        own: dict[str, Any] = {
            "multiplex": multiplex,
            "retries": _DEFAULT_RETRIES if retries is None else retries,
            "retry_backoff": retry_backoff,
            "client_info": client_info,
        }
        arguments = validate_arguments(
            {
                "max_connections": _DEFAULT_CONNECTIONS if max_connections is None else max_connections,
                "timeout": timeout,
                **own,
                **{name: value for name, value in connection_arguments.items() if not _is_unset(name, value)},
            }
        )
        own = {option: arguments.pop(option) for option in own}
        # redis-py 8.1's default skips its check for unread replies, and hands one caller another's reply.
        arguments.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
        library = {name: arguments.pop(name) for name in ("lib_name", "lib_version") if name in arguments}
        if library:
            arguments.setdefault("driver_info", resolve_driver_info(**library))
        arguments.setdefault("driver_info", _DRIVER_INFO if own["client_info"] else None)
        # hiredis counts attributes, which only RESP3 has, as replies.
        arguments.setdefault("parser_class", AttributeFreeParser)
        if arguments.get("protocol") == _RESP2:
            arguments.setdefault("redis_connect_func", handshake)
        if (path := arguments.pop("password_file", None)) is not None:
            arguments["credential_provider"] = PasswordFile(path, arguments.pop("username", None))
        if is_renewable(arguments.get("credential_provider")):
            connect_func = arguments.get("redis_connect_func") or AbstractConnection.on_connect
            arguments["redis_connect_func"] = retry_refused(connect_func)
        super().__init__(connection_class=connection_class, **arguments)
        # It is never connected. An unknown argument would otherwise be noticed by the first command.
        self._template = self.make_connection()
        self._multiplex = own["multiplex"] and self.max_connections > 1 and supports_multiplexing(self._template)
        self.decodes_replies = self._template.encoder.decode_responses
        self._retry_backoff: float = own["retry_backoff"]
        self._set_retries(own["retries"] if retries is not None or retry is SENTINEL else _retries_of(retry))
        reporting = PoolRecorder(
            server_of(self),
            telemetry,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger_provider=logger_provider,
        )
        self.multiplexer = self._make_multiplexer()
        # Last, as gauges look at it from now on, in threads of their own.
        self.attach_metrics(reporting, name)
        if isinstance(self._template, SSLConnection) and self._template.cert_reqs == ssl.CERT_NONE:
            _LOGGER.warning(
                "pool %r: ssl_cert_reqs is none, so that anyone on the network can pose as the server and read the "
                "password; leave it out, and give ssl_ca_certs if the server's authority is not the system's",
                self.name,
            )
        self._warn_ignored(retry, retry_on_error, retry_on_timeout)

    def _make_multiplexer(self) -> Multiplexer | None:
        if not self._multiplex:
            return None
        self.reserve_slot()
        # The two shared connections must leave one for what cannot share.
        return Multiplexer(self, self._template, bulk=self.max_connections >= _MIN_CONNECTIONS_FOR_BULK)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A pool for a URL, which means what it does to redis-py, and wins over keyword arguments.

        ``valkey://`` and ``valkeys://`` work too, and so do the options of this pool. Other than in redis-py, truth
        values are read as such (``decode_responses=False``), durations may be timespans (``timeout=200ms``), and what
        redis-py overlooks is refused: ``redis:/host`` and ``redis:///run/redis.sock``, which it takes for localhost;
        ``redis://host/name``, which it takes for database 0, and ``redis://host/1/2``, for 12; a host before a Unix
        socket's path; unknown options, and what is given twice.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        return cls(**{**kwargs, **url_arguments(url)})

    def __repr__(self) -> str:
        state = f"{self.used()} used, {self.idle()} idle, at most {self.max_connections}"
        if self.multiplexer is not None:
            state += f"; shared: {self.multiplexer.in_flight()} in flight, {self.multiplexer.queued()} waiting"
        return f"<{type(self).__name__} {self._label} [{'closed' if self._closed else state}]>"

    async def ping(self) -> None:
        """Return if the server answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: The same as a command would raise, the text begins with the pool's name.
        """
        try:
            operation = start_operation(self.telemetry, ("PING",), None)
            await (self._ping(None) if operation is None else operation.observe(self._ping(operation)))
        except (PoolClosedError, PoolExhaustedError):
            raise
        except RedisError as error:
            error.args = (f"pool {self._label}: {error}", *error.args[1:])
            raise

    async def _ping(self, operation: Operation | None) -> None:
        if self.multiplexer is not None:
            reply = await self.multiplexer.send(("PING",), None, operation)
            if isinstance(reply, Exception):
                raise reply.error if isinstance(reply, AttemptFailed) else reply
        else:
            connection = await self.acquire(None if operation is None else operation.add_wait)
            try:
                if operation is not None:
                    operation.set_connection(connection)
                async with reply_timeout(connection, 0):
                    await connection.send_command("PING")
                    await connection.read_response()
            finally:
                await self.release(connection)
        self.retry_policy.server_unreachable = False

    def set_retry(self, retry: AbstractRetry[Any]) -> None:  # a blocking one will do
        """Take the number of retries of a policy of redis-py, as the constructor does.

        Raises:
            TypeError: It is no retry policy.
        """
        self._set_retries(_retries_of(retry))
        self._warn_ignored(retry)

    def get_retry(self) -> Retry:
        """How calls are tried again, in redis-py's terms: how often, and after which pauses."""
        return Retry(EqualJitterBackoff(cap=MAX_DELAY_SECONDS, base=self._retry_backoff / 2), self._retries)

    def _set_retries(self, retries: int) -> None:
        self._retries = retries
        # In vain for ever, for redis-py.
        most = sys.maxsize if retries < 0 else retries
        self.retry_policy = RetryPolicy(most, self._retry_backoff, self._template.socket_timeout)

    def _warn_ignored(self, retry: object, on_error: object = None, on_timeout: object = False) -> None:
        is_policy = isinstance(retry, AbstractRetry) and self._retries != 0
        given = {"retry": is_policy, "retry_on_error": on_error, "retry_on_timeout": on_timeout}
        if ignored := [name for name, value in given.items() if value]:
            _LOGGER.warning(
                "pool %r: of %s, only a number of retries counts (%d now): a call is tried again only if it certainly "
                "did not run, whatever its error, and after pauses of retry_backoff",
                self.name,
                ", ".join(ignored),
                self._retries,
            )

    def decode_reply(self, reply: Any) -> Any:
        """A reply of the shared connection as this pool's callers want it."""
        encoder = self._template.encoder
        return decode_reply(reply, encoder.encoding, encoder.encoding_errors) if self.decodes_replies else reply

    def is_decodable(self, reply: Any) -> bool:
        """Whether ``decode`` cannot fail, as far as that is told without doing it."""
        return is_decodable(reply, self._template.encoder.encoding)

    def write_pending(self) -> None:
        """Write what the shared connection would write at the end of this tick, if it is connected and has room."""
        if self.multiplexer is not None:
            self.multiplexer.write_pending()

    def retire_connections(self, older_than: float) -> None:
        """Share another connection from now on, if the present one was made before that time (monotonic clock)."""
        if self.multiplexer is not None:
            self.multiplexer.retire_connections(older_than)

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Use new credentials everywhere; redis-py calls it when a streaming provider has renewed them.

        The shared connection gets them at once, a borrowed one when it is given back, an idle one when it is connected
        anew: redis-py would use it while somebody may borrow it.
        """
        if self.multiplexer is not None:
            self.multiplexer.re_authenticate(token)
        for connection in self._in_use_connections:
            connection.set_re_auth_token(token)
        for connection in list(self._available_connections):
            await connection.disconnect(nowait=True)

    async def _close_connections(self) -> None:
        unfinished = self.background_tasks
        if unfinished:
            await asyncio.wait(unfinished, timeout=self._template.socket_timeout or _FINISH_SECONDS)
        multiplexer, self.multiplexer, self._closed = self.multiplexer, None, True
        try:
            if multiplexer is not None:
                await multiplexer.aclose(self.closed_error())
        finally:
            await super()._close_connections()
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)

    def _reset(self) -> None:
        super()._reset()
        self.multiplexer = self._make_multiplexer()


def pool_from_config(app_config: Mapping[str, Any], prefix: str = "redis.", **kwargs: Any) -> MonitoredConnectionPool:
    """Make a pool from an application's configuration.

    Keys, each with the prefix in front: ``url`` (required), and the fields of ``RedisConfig`` from ``username`` on.
    Durations are timespans such as ``200 milliseconds``, or seconds. The prefix without its dot is the pool's name.

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
    return MonitoredConnectionPool(**{"name": prefix.removesuffix("."), **override(arguments, kwargs)})


def _retries_of(retry: object) -> int:
    if retry is None:
        return 0
    if not isinstance(retry, AbstractRetry):
        message = f"retry must be a redis.asyncio.retry.Retry, not {type(retry).__name__}"
        raise TypeError(message)
    return retry.get_retries()


def _is_unset(name: str, value: object) -> bool:
    """Whether an argument that is given says no more than one that is not, as wrappers of redis-py pass them."""
    return value is SENTINEL or (value is None and name in _MAY_BE_NONE)
