"""The connection pool: made from configuration, bound to one event loop, closed by whoever opened it."""

import asyncio
import logging
import ssl
from collections.abc import Mapping
from typing import Any, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis.asyncio import SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.auth.token import TokenInterface
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from aioredis_monitored._version import __version__
from aioredis_monitored.attributes import AttributeFreeParser
from aioredis_monitored.config import RedisConfig, override, read_arguments
from aioredis_monitored.credentials import PasswordFile, asking_again, may_change
from aioredis_monitored.decoding import decoded, surely_decodes
from aioredis_monitored.errors import PoolClosedError, PoolExhaustedError
from aioredis_monitored.greeting import greet
from aioredis_monitored.multiplexer import Lost, Multiplexer, can_share
from aioredis_monitored.reporting import ReportingPool
from aioredis_monitored.retry import RetryPolicy
from aioredis_monitored.telemetry.attributes import server_of
from aioredis_monitored.telemetry.instruments import SCOPE
from aioredis_monitored.telemetry.observing import begun
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.options import TelemetryOptions
from aioredis_monitored.telemetry.telemetry import Telemetry

_LOGGER = logging.getLogger(__name__)

# Once: redis-py would read its version from disk for every connection, in the event loop.
_DRIVER_INFO = DriverInfo().add_upstream_driver(SCOPE, __version__)
_LEAST_FOR_BULK = 3
# Seconds that what goes on without its caller gets on closing, if a reply had all the time in the world before.
_FINISH_SECONDS = 5.0
_RESP2 = 2
_RETRY_ARGUMENTS = ("retry", "retry_on_error", "retry_on_timeout")


class MonitoredConnectionPool(ReportingPool):
    """A blocking connection pool that reports to OpenTelemetry; every client that shares it shares its telemetry.

    Ordinary commands of all callers share one of its connections; a second one carries what is large. Whatever blocks,
    or alters its connection, gets one of its own. Nothing connects before the first command. Leaving ``async with`` (or
    ``aclose``) closes every connection; entering opens the pool again. It belongs to the event loop that first used it.

    Args:
        name: What messages and metrics call it; default ``host:port/db``. While an open pool has that name, metrics
            call the next one ``name-2``.
        max_connections: The most connections at a time, at least 1; default 50. With 1, none is shared.
        timeout: Seconds to wait for a connection when all are in use; ``None`` waits for ever; default 20.
        multiplex: Whether ordinary commands share a connection; default ``True``.
        retries: How often at most a call that surely did not run is tried again within ``socket_timeout``; default 20.
        retry_backoff: Seconds of the first pause before that, doubled each time, to half a second; default 0.02.
        password_file: The path of a file that holds the password, read at every connect; default ``None``. While it
            cannot be read, the last good password is used.
        client_info: Whether connections tell ``CLIENT LIST`` the name and version of this package, which some proxies
            do not let pass; default ``True``.
        tracer_provider: Where spans go; default the global provider.
        meter_provider: Where metrics go; default the global provider.
        telemetry: What is reported, and how; default ``TelemetryOptions()``.
        connection_arguments: What redis-py's connection classes take: ``host``, ``port``, ``db``, ``password``,
            ``socket_timeout`` (seconds or a timespan), ``connection_class`` and so on. When the server refuses what a
            ``credential_provider`` or the ``password_file`` has given, that is asked once more.

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
        multiplex: bool = True,
        retries: int = 20,
        retry_backoff: float = 0.02,
        client_info: bool = True,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        telemetry: TelemetryOptions | None = None,
        **connection_arguments: Any,
    ) -> None:
        for argument in _RETRY_ARGUMENTS:
            if connection_arguments.pop(argument, None):
                _refuse_retries(argument)
        own: dict[str, Any] = {
            "multiplex": multiplex,
            "retries": retries,
            "retry_backoff": retry_backoff,
            "client_info": client_info,
        }
        arguments = read_arguments(
            {"max_connections": max_connections, "timeout": timeout, **own, **connection_arguments}
        )
        own = {option: arguments.pop(option) for option in own}
        # redis-py 8.1's default skips its check for unread replies, and hands one caller another's reply.
        arguments.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
        arguments.setdefault("driver_info", _DRIVER_INFO if own["client_info"] else None)
        # hiredis counts attributes, which only RESP3 has, as replies.
        arguments.setdefault("parser_class", AttributeFreeParser)
        if arguments.get("protocol") == _RESP2:
            arguments.setdefault("redis_connect_func", greet)
        if (path := arguments.pop("password_file", None)) is not None:
            arguments["credential_provider"] = PasswordFile(path, arguments.pop("username", None))
        if may_change(arguments.get("credential_provider")):
            handshake = arguments.get("redis_connect_func") or AbstractConnection.on_connect
            arguments["redis_connect_func"] = asking_again(handshake)
        super().__init__(**arguments)
        # It is never connected. An unknown argument would otherwise be noticed by the first command.
        self._sample = self.make_connection()
        self._multiplex = own["multiplex"] and self.max_connections > 1 and can_share(self._sample)
        self.decodes = self._sample.encoder.decode_responses
        self.retry_policy = RetryPolicy(own["retries"], own["retry_backoff"], self._sample.socket_timeout)
        reporting = Telemetry(
            server_of(self), telemetry, tracer_provider=tracer_provider, meter_provider=meter_provider
        )
        self.multiplexer = self._make_multiplexer()
        # Last, as gauges look at it from now on, in threads of their own.
        self.report_to(reporting, name)
        if isinstance(self._sample, SSLConnection) and self._sample.cert_reqs == ssl.CERT_NONE:
            _LOGGER.warning(
                "pool %r: ssl_cert_reqs is none, so that anyone on the network can pose as the server and read the "
                "password; leave it out, and give ssl_ca_certs if the server's authority is not the system's",
                self.name,
            )

    def _make_multiplexer(self) -> Multiplexer | None:
        if not self._multiplex:
            return None
        self.reserve()
        # The two shared connections must leave one for what cannot share.
        return Multiplexer(self, self._sample, bulk=self.max_connections >= _LEAST_FOR_BULK)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """A pool for a URL, checked as ``pool_from_config`` checks it; keyword arguments win over the URL's options.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        return cls(**override(RedisConfig.from_mapping({"url": url}, "").pool_arguments(), kwargs))

    def __repr__(self) -> str:
        state = f"{self.used()} used, {self.idle()} idle, at most {self.max_connections}"
        if self.multiplexer is not None:
            state += f"; shared: {self.multiplexer.in_flight()} in flight, {self.multiplexer.waiting()} waiting"
        return f"<{type(self).__name__} {self._label} [{'closed' if self._closed else state}]>"

    async def ping(self) -> None:
        """Return if the server answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: The same as a command would raise, the text begins with the pool's name.
        """
        try:
            operation = begun(self.telemetry, ("PING",), None)
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
                raise reply.error if isinstance(reply, Lost) else reply
        else:
            connection = await self.borrow(None if operation is None else operation.waited)
            try:
                if operation is not None:
                    operation.reached(connection)
                await connection.send_command("PING")
                await connection.read_response()
            finally:
                await self.release(connection)
        self.retry_policy.is_out_of_reach = False

    def set_retry(self, retry: Retry) -> None:  # noqa: ARG002 - redis-py's signature
        """Refuse a retry policy, as the constructor does.

        Raises:
            TypeError: Always.
        """
        _refuse_retries("retry")

    def decode(self, reply: Any) -> Any:
        """A reply of the shared connection as this pool's callers want it."""
        encoder = self._sample.encoder
        return decoded(reply, encoder.encoding, encoder.encoding_errors) if self.decodes else reply

    def surely_decodes(self, reply: Any) -> bool:
        """Whether ``decode`` cannot fail, as far as that is told without doing it."""
        return surely_decodes(reply, self._sample.encoder.encoding)

    def write_pending(self) -> None:
        """Write what the shared connection would write at the end of this tick, if it is connected and has room."""
        if self.multiplexer is not None:
            self.multiplexer.write_pending()

    def renew(self, older_than: float) -> None:
        """Share another connection from now on, if the present one was made before that time (monotonic clock)."""
        if self.multiplexer is not None:
            self.multiplexer.renew(older_than)

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
        unfinished = self.unfinished
        if unfinished:
            await asyncio.wait(unfinished, timeout=self._sample.socket_timeout or _FINISH_SECONDS)
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

    def _forget(self) -> None:
        super()._forget()
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


def _refuse_retries(argument: str) -> None:
    message = f"{argument}= is refused: redis-py's retries repeat commands that may already have run"
    raise TypeError(message)
