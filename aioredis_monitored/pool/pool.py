"""The connection pool: made from configuration, shared by clients, connecting and closing what its slots hold."""

import asyncio
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from time import perf_counter
from types import TracebackType
from typing import Any, ClassVar, Final, Self, cast
from weakref import ref

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection
from redis.asyncio.retry import Retry
from redis.auth.token import TokenInterface
from redis.backoff import EqualJitterBackoff
from redis.exceptions import RedisError
from redis.retry import AbstractRetry
from redis.utils import SENTINEL

from aioredis_monitored._credentials.renewals import ConnectCredentials
from aioredis_monitored._multiplexer import AttemptFailed, Multiplexer, supports_multiplexing
from aioredis_monitored._redispy.connections import (
    close_connection,
    decode_reply,
    is_decodable,
    make_safe_connection,
    replies_on,
    wait_closed,
    with_safe_send,
    with_shared_context,
)
from aioredis_monitored._redispy.located import abort_transport
from aioredis_monitored._redispy.overrides import (
    TypedPool,
    announce_release,
    connect,
    forget_re_auth_token,
    register_connect_callback,
    should_reconnect,
)
from aioredis_monitored._redispy.sockets import close_now
from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.operation import Operation, start_operation
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored._telemetry.spans import Server, server_of
from aioredis_monitored._telemetry.stats import PoolStats
from aioredis_monitored._timeouts import LagTolerantTimeout, ReplyTimeout
from aioredis_monitored.config.schema import (
    RedisConfig,
    override,
    override_credentials,
    url_arguments,
    validate_arguments,
)
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.config.url import Topology, scheme_of
from aioredis_monitored.errors import (
    ConfigurationError,
    PoolClosedError,
    PoolExhaustedError,
    copied,
)
from aioredis_monitored.pool.arguments import (
    RESP2,
    retries_of,
    warn_ignored,
    warn_unverified,
    with_own_defaults,
    without_defaults,
)
from aioredis_monitored.pool.connecting import Connector
from aioredis_monitored.pool.health import PoolHealth, ServerCheck, ServerHealth
from aioredis_monitored.pool.lifecycle import Lifecycle
from aioredis_monitored.pool.metrics import PoolMetrics
from aioredis_monitored.pool.retry import MAX_DELAY_SECONDS, RetryPolicy
from aioredis_monitored.pool.routes import Route, RouteObserver
from aioredis_monitored.pool.slots import Slots

# What a redirect means where there is no cluster's pool.
_OF_A_CLUSTER: Final = "the server is a node of a cluster: use a redis+cluster:// or rediss+cluster:// URL"
# The two shared connections must leave one for commands that need their own.
_MIN_CONNECTIONS_FOR_BULK: Final = 3
# How long background tasks may still run after a close began, if the pool has no socket_timeout.
_CLOSE_GRACE_SECONDS: Final = 5.0
# How long what connects may take to end when the pool closes, which takes some turns of the event loop.
_INTERRUPT_SECONDS: Final = 1.0
_DEFAULT_MAX_CONNECTIONS: Final = 50
_DEFAULT_RETRIES: Final = 20


class MonitoredConnectionPool(TypedPool):
    """A blocking connection pool that reports to OpenTelemetry; every client that shares it shares its telemetry.

    Ordinary commands of all callers share one of its connections; a second one carries large values. A command that
    blocks, or alters its connection, gets a dedicated one; callers that wait for one get it in the order in which they
    came. Nothing connects before the first command. Leaving ``async with`` (or ``aclose``) closes every connection;
    entering opens the pool again. The pool belongs to the event loop that first used it.

    Args:
        max_connections: The most connections at a time, at least 1; default 50. With 1, none is shared.
        timeout: Seconds to wait for a connection when all are in use; ``None`` waits for ever; default 20.
        connection_class: The class of the connections; default redis-py's ``Connection``.
        queue_class: Ignored; redis-py has it.
        name: What messages and metrics call the pool; default ``host:port/db``. While an open pool has that name,
            metrics call the next one ``name-2``.
        multiplex: Whether ordinary commands share a connection; default ``True``.
        retries: How often at most a call that certainly did not run is retried within ``socket_timeout``; default 20,
            or the number of ``retry``.
        retry_backoff: Seconds of the first delay before a retry, doubled each time, up to half a second; default 0.02.
        password_file: The path of a file that holds the password, read at every connect; default ``None``. While the
            file cannot be read, the last good password is used.
        client_info: Whether connections report the name and version of this package to ``CLIENT LIST``, which some
            proxies refuse; default ``True``.
        tracer_provider: Where spans go; default the global provider.
        meter_provider: Where metrics go; default the global provider.
        logger_provider: Where log events about repeated commands go; default ``None``, for nowhere.
        telemetry: What is reported, and how; default ``TelemetryOptions()``.
        retry: A retry policy of redis-py, of which only the number of retries counts: a call that may have run is never
            retried, whatever its error, and delays are those of ``retry_backoff``. A negative number means any number;
            ``None``, as in redis-py, means none. ``retries`` takes precedence.
        retry_on_error: Ignored, with a warning in the log, for the same reason.
        retry_on_timeout: Ignored in the same way.
        connection_arguments: Arguments of the connection class: ``host``, ``port``, ``db``, ``password``,
            ``socket_timeout`` (seconds or a timespan) and others. When the server refuses the credentials of a
            ``credential_provider`` or of the ``password_file``, these are asked for once more. What a
            ``StreamingCredentialProvider`` pushes reaches every pool that it was given to.

    Attributes:
        name: What messages call the pool.
        telemetry: The recorder of every call on the pool.

    Raises:
        ConfigurationError: A value cannot be used; the error names every such value at once.
        TypeError: An argument is unknown, or ``retry`` is no retry policy.
    """

    # Whether each command must follow ASKING (see AskingPool), whether an application's reads may go to replicas, and
    # whether an application has given the arguments, which are checked then.
    is_asking = False
    # Whether its server is a node of a cluster, as far as is known from the start.
    _is_node = False
    reads_replicas = False
    checks_arguments = True

    # The counters that begin with 0: those of what happens on this pool, and not on one that it has made, or that has
    # made it.
    _counters: ClassVar[tuple[str, ...]] = ("timeouts", "lock_contended", "lock_lost", "pubsub_reconnects")

    # The classes of the pools for other topologies: their modules import this one.
    _topology_classes: ClassVar[dict[Topology, type["MonitoredConnectionPool"]]] = {}
    _topology_name: ClassVar[Topology] = "standalone"

    def __init_subclass__(cls, *, topology: Topology | None = None, **kwargs: Any) -> None:
        """Register the class as that of the pools for a topology.

        Args:
            topology: The topology; default ``None``, for that of the base class, which stays registered.
            kwargs: Arguments of other base classes.
        """
        super().__init_subclass__(**kwargs)
        if topology is not None:
            cls._topology_name = topology
            cls._topology_classes[topology] = cls

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
                "max_connections": _DEFAULT_MAX_CONNECTIONS if max_connections is None else max_connections,
                "timeout": timeout,
                **own,
                **without_defaults(connection_arguments),
                "connection_class": connection_class,
            },
            self._topology_name,
            checks_server=self.checks_arguments,
        )
        own = {option: arguments.pop(option) for option in own}
        # First, as redis-py's constructor sets attributes that the slots hold.
        self._slots: Slots[AbstractConnection] = Slots(
            arguments["max_connections"], partial(_make_connection, ref(self))
        )
        super().__init__(**with_own_defaults(arguments, client_info=own["client_info"]))
        # Never connected. Without it, the first command would be the first to notice an unknown argument.
        self._template = self._make_template()
        self._multiplex = own["multiplex"] and self.max_connections > 1 and supports_multiplexing(self._template)
        self.decodes_replies = self._template.encoder.decode_responses
        self._retry_backoff: float = own["retry_backoff"]
        self._set_retries(own["retries"] if retries is not None or retry is SENTINEL else retries_of(retry))
        server = self._describe_server()
        self.telemetry = PoolRecorder(
            server,
            telemetry,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            logger_provider=logger_provider,
        )
        self._address = self._address_of(server)
        self.name = name or self._address
        self._metrics = self._make_metrics()
        self._lifecycle = Lifecycle(self._title, self._slots)
        self._connector = Connector(self._slots, self._metrics, self._lifecycle.closed_error)
        self._server_check = ServerCheck(knows_hello=arguments.get("protocol") != RESP2, is_node=self._is_node)
        # None while the pool closes, and if no connection is shared.
        self.multiplexer = self._metrics.multiplexer = self._make_multiplexer()
        # Last: from here on, gauges read the pool in other threads.
        self._metrics.register()
        for counter in self._counters:
            self.telemetry.start_counter(getattr(self.telemetry.instruments, counter))
        if self.checks_arguments:
            warn_unverified(self.name, self._template)
            warn_ignored(self.name, self._retries, retry, retry_on_error, retry_on_timeout)
            # Pools of nodes get what is pushed from the pool that has made them.
            if isinstance(provider := self.connection_kwargs.get("credential_provider"), ConnectCredentials):
                provider.follow_renewals(self, self._lifecycle)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Self:
        """Make a pool for a URL, which has the meaning that redis-py gives it; its options win over keyword arguments.

        ``redis+cluster://`` and ``redis+sentinel://`` make a pool of the class for that topology; a subclass makes
        itself, and takes only URLs of its topology.

        ``valkey://`` and ``valkeys://`` work too, and so do the options of this pool. Other than in redis-py, booleans
        are read as such (``decode_responses=False``), durations may be timespans (``timeout=200ms``), and what redis-py
        overlooks is refused: ``redis:/host`` and ``redis:///run/redis.sock``, which it takes for localhost;
        ``redis://host/name``, which it takes for database 0, and ``redis://host/1/2``, for 12; a host before a Unix
        socket's path; unknown options, and options that are given twice.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        topology, arguments = url_arguments(url)
        return cls.for_topology(topology)(**{**kwargs, **arguments})

    @classmethod
    def for_topology(cls, topology: Topology) -> type[Self]:
        """Return the class of a pool for a topology: this one, or, of ``MonitoredConnectionPool``, a subclass.

        Raises:
            ConfigurationError: This subclass is for another topology.
        """
        if topology == cls._topology_name:
            return cls
        if cls is not MonitoredConnectionPool:
            expected, actual = scheme_of(cls._topology_name), scheme_of(topology)
            raise ConfigurationError(("url", f"must be a {expected} URL for {cls.__name__}, got {actual}"))
        return cast("type[Self]", cls._topology_classes[topology])

    # What it is called, and how it is

    def _describe_server(self) -> Server:
        return server_of(self)

    def _address_of(self, server: Server) -> str:
        kind = self.connection_class
        host = (
            server.target
            or server.attributes.get(semconv.SERVER_ADDRESS)
            or getattr(kind, "__name__", type(kind).__name__)
        )
        return f"{host}/{server.attributes[semconv.DB_NAMESPACE]}"

    def _make_metrics(self) -> PoolMetrics:
        return PoolMetrics(self.name, self.telemetry, self._slots)

    def __repr__(self) -> str:
        state = "closed" if self._lifecycle.is_closed else self._describe_state()
        return f"<{type(self).__name__} {self._label} [{state}]>"

    def _describe_state(self) -> str:
        stats = self.stats()
        state = f"{stats.used} used, {stats.idle} idle, at most {stats.max_connections}"
        if self.multiplexer is not None:
            state += f"; shared: {self.multiplexer.in_flight()} in flight, {self.multiplexer.queued()} waiting"
        return state

    @property
    def _title(self) -> str:
        return f"pool {self.name!r}"

    @property
    def _label(self) -> str:
        return repr(self.name) if self.name == self._address else f"{self.name!r} ({self._address})"

    def stats(self) -> PoolStats:
        """Return how many connections and calls there are now, as the gauges do; may be called in any thread."""
        return self._metrics.stats()

    # The readiness check

    async def ping(self) -> None:
        """Return if the server answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: As a command raises it; its text begins with the pool's name.
        """
        with self._named_errors():
            await self._ping()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Put the pool's name in front of the text of an error that the block raises."""
        try:
            yield
        except (PoolClosedError, PoolExhaustedError):
            # They have it.
            raise
        except RedisError as error:
            error.args = (f"pool {self._label}: {error}", *error.args[1:])
            raise

    async def _ping(self) -> None:
        operation = start_operation(self.telemetry, ("PING",), None)
        await (self._ping_as(None) if operation is None else operation.observe(self._ping_as, operation))

    async def _ping_as(self, operation: Operation | None) -> None:
        if self.multiplexer is not None:
            reply = await self.multiplexer.send(("PING",), None, operation)
            if isinstance(reply, Exception):
                raise reply.error if isinstance(reply, AttemptFailed) else reply
        else:
            connection = await self.acquire(None if operation is None else operation.add_wait)
            try:
                if operation is not None:
                    operation.set_connection(connection)
                async with ReplyTimeout(connection, 0):
                    await connection.send_command("PING")
                    await connection.read_response()
            finally:
                await self.release(connection)
        self.retry_policy.server_unreachable = False

    async def health(self) -> PoolHealth:
        """Return whether the pool's servers take calls, and why not, in one attempt; it never raises.

        It sends ``PING`` as a command is sent, and asks the rest on a connection of its own. Each of the two takes
        ``socket_connect_timeout`` and ``socket_timeout`` at most. It writes nothing. The user needs no rights for it;
        with ``+eval`` it says whether writes are accepted, and with ``+info`` how many replicas there are. What the
        user has no right to ask is not asked again for ten minutes.
        """
        server = await self.server_health()
        return PoolHealth(self._topology_name, (server,), server.problem)

    async def server_health(self) -> ServerHealth:
        """Return whether the server that calls go to takes them; it never raises."""
        return await self._server_check.run(self._address, self._ping_in_time, self._ask)

    async def _ping_in_time(self) -> None:
        """Send ``PING``, and wait for a connection no longer than for the server."""
        connecting, replying = self._template.socket_connect_timeout, self._template.socket_timeout
        bound = None if connecting is None or replying is None else connecting + replying
        try:
            async with LagTolerantTimeout(bound):
                await self._ping()
        except TimeoutError:
            raise exceptions.TimeoutError(f"no connection became free in {bound:g} s") from None

    async def _ask(self, commands: Sequence[tuple[Any, ...]]) -> Sequence[Any]:
        """Return the replies to commands, which no telemetry mentions; error replies are values.

        They have a connection of their own, which the pool does not count: a server that holds back writes would hold
        back the calls behind them. There are no replies if it cannot be made, as when the server has no room for it.
        """
        connection = make_safe_connection(self)
        try:
            try:
                await connect(connection)
            except (RedisError, OSError):
                return ()
            async with ReplyTimeout(connection, 0):
                return await replies_on(connection, commands)
        finally:
            await close_connection(connection)

    # How calls are retried

    def set_retry(self, retry: AbstractRetry[Any]) -> None:  # a blocking one works as well
        """Take the number of retries of a policy of redis-py, as the constructor does.

        Raises:
            TypeError: It is no retry policy.
        """
        self._set_retries(retries_of(retry))
        if self.checks_arguments:
            warn_ignored(self.name, self._retries, retry)

    def get_retry(self) -> Retry:
        """Return how calls are retried, as a policy of redis-py: how often, and with which delays."""
        return Retry(EqualJitterBackoff(cap=MAX_DELAY_SECONDS, base=self._retry_backoff / 2), self._retries)

    def _set_retries(self, retries: int) -> None:
        self._retries = retries
        # A negative number is redis-py's for any number.
        most = sys.maxsize if retries < 0 else retries
        self.retry_policy = RetryPolicy(most, self._retry_backoff, self._template.socket_timeout)

    # Opening and closing

    async def __aenter__(self) -> Self:
        if self._lifecycle.is_loop_closed():
            # What it has was that event loop's.
            await self.aclose()
        await self._lifecycle.open()
        self._metrics.register()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        grace = self._template.socket_timeout or _CLOSE_GRACE_SECONDS
        await self._lifecycle.close(self._disconnect, self.detach_connections, grace)

    async def _disconnect(self) -> None:
        multiplexer, self.multiplexer, self._metrics.multiplexer = self.multiplexer, None, None
        try:
            if multiplexer is not None:
                await multiplexer.aclose(self.closed_error())
        finally:
            await self._disconnect_all()

    async def _disconnect_all(self) -> None:
        interrupted = self._connector.interrupt()
        connections = self.detach_connections()
        try:
            for connection in connections:
                await connection.disconnect(nowait=True)
        finally:
            # At the end of the event loop, that may be cancelled before it begins.
            for connection in connections:
                close_now(connection)
            if interrupted:
                await asyncio.wait(interrupted, timeout=_INTERRUPT_SECONDS)
            await wait_closed(connections)

    def detach_connections(self) -> tuple[AbstractConnection, ...]:
        """Make the pool like new, and closed; return the connections that it had, which are not closed by this."""
        self._lifecycle.reset()
        connections = self._slots.reset(self.closed_error)
        self._connector.reset()
        self._metrics.unregister()
        # redis-py's, which belongs to an event loop.
        self._lock = asyncio.Lock()
        self.multiplexer = self._metrics.multiplexer = self._make_multiplexer()
        return connections

    def _make_multiplexer(self) -> Multiplexer | None:
        if not self._multiplex:
            return None
        self._slots.reserve_slot()
        return Multiplexer(self, self._template, bulk=self.max_connections >= _MIN_CONNECTIONS_FOR_BULK)

    def check_open(self) -> None:
        """Check that a call may begin.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
        """
        self._lifecycle.check_open()

    def bind_event_loop(self) -> None:
        """Bind the pool to the running event loop, if it is not yet bound.

        Raises:
            EventLoopError: The pool belongs to another event loop.
        """
        self._lifecycle.bind_event_loop()

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that first used the pool; ``None`` before that, and after the pool was closed."""
        return self._lifecycle.event_loop

    def closed_error(self) -> PoolClosedError:
        """Return what a call raises that the pool's closing has ended or refused."""
        return self._lifecycle.closed_error()

    @property
    def background_tasks(self) -> set[asyncio.Task[Any]]:
        """Tasks that go on when their callers have left; closing the pool waits for them."""
        return self._lifecycle.background_tasks

    # Acquiring and releasing

    # The slots hold these three attributes of redis-py, for its own code and for tools that look at them.

    @property
    def max_connections(self) -> int:
        """The most connections at a time."""
        return self._slots.max_connections

    @max_connections.setter
    def max_connections(self, most: int) -> None:
        self._slots.resize(most)

    @property
    def _available_connections(self) -> list[AbstractConnection]:
        return self._slots.idle

    @_available_connections.setter
    def _available_connections(self, connections: list[AbstractConnection]) -> None:
        self._slots.idle = connections

    @property
    def _in_use_connections(self) -> set[AbstractConnection]:
        return self._slots.acquired

    @_in_use_connections.setter
    def _in_use_connections(self, connections: set[AbstractConnection]) -> None:
        self._slots.acquired = connections

    async def get_connection(self, *_arguments: Any, **_options: Any) -> AbstractConnection:
        """Acquire a connection, which must be given back by ``release``.

        Raises:
            PoolClosedError: The pool was closed.
            EventLoopError: The pool belongs to another event loop.
            PoolExhaustedError: No connection became free in time.
            redis.exceptions.ConnectionError: The server cannot be reached.
        """
        return await self.acquire()

    async def acquire(self, on_waited: Callable[[float, float], object] | None = None) -> AbstractConnection:
        """Acquire a connection, as ``get_connection`` does.

        Args:
            on_waited: Called with total and connecting seconds, also on failure.
        """
        self._lifecycle.check_open()
        asked = perf_counter()
        assigned = inf
        try:
            connection = self._slots.acquire()
            if connection is None:
                connection = await self._wait_for_slot()
            assigned = perf_counter()
            await self._connector.connect(connection, self)
        finally:
            now = perf_counter()
            if on_waited is not None:
                on_waited(now - asked, max(0.0, now - assigned))
        self._metrics.start_use(connection, asked, now)
        return connection

    async def acquire_for_sharing(self, *, reserved: bool) -> AbstractConnection:
        """Acquire a connection that is connected anew: its last caller may have altered it unseen.

        Args:
            reserved: Whether it takes the slot that is reserved for the shared connection, or, while a predecessor
                still holds that, the next one that is free.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        self._lifecycle.check_open()
        connection = self._slots.acquire(reserved=reserved)
        if connection is None:
            connection = await self._wait_for_slot(reserved=reserved)
        await self._connector.connect(connection, self, anew=True)
        return connection

    async def _wait_for_slot(self, *, reserved: bool = False) -> AbstractConnection:
        waiter = self._slots.enqueue(asyncio.get_running_loop(), reserved=reserved)
        try:
            async with LagTolerantTimeout(self.timeout):
                return await waiter
        except BaseException as error:
            if (connection := self._slots.leave(waiter)) is not None:
                await self.release(connection)
            if isinstance(error, TimeoutError):
                self._metrics.on_timeout()
                message = f"pool {self.name!r}: no connection became free in {self.timeout} s"
                raise PoolExhaustedError(message) from error
            raise

    # Connecting: redis-py's methods, which its own code and tools call as well

    def _make_template(self) -> AbstractConnection:
        return self.make_connection()

    def make_connection(self) -> AbstractConnection:
        """Make a connection that asks this pool whether it may connect."""
        connection = with_safe_send(with_shared_context(super().make_connection()))
        register_connect_callback(connection, self._on_connect)
        return connection

    async def _on_connect(self, connection: AbstractConnection) -> None:
        """Check a connection after each handshake; subclasses add to that."""
        await self._connector.check_connectable(connection)

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, and leave no connection half-connected, such as one without its AUTH and SELECT."""
        await self._connector.ensure(connection, super().ensure_connection)

    async def reconnect(self, connection: AbstractConnection) -> None:
        """Connect an acquired connection anew; it stays acquired, also if that fails.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        await self._connector.reconnect(connection)

    async def release(self, connection: AbstractConnection) -> None:
        """Give an acquired connection back; one that was acquired before the pool closed is disconnected."""
        if connection not in self._slots.acquired:
            self._slots.forget(connection)
            await connection.disconnect(nowait=True)
            return
        try:
            if self._slots.will_discard(connection) or should_reconnect(connection):
                await connection.disconnect(nowait=True)
            if not connection.is_connected:
                # redis-py would connect it to send them.
                forget_re_auth_token(connection)
            # Sends credentials that have changed since it was acquired.
            await announce_release(self, connection)
        except RedisError:
            await connection.disconnect(nowait=True)
        finally:
            self.return_closed(connection)

    def return_closed(self, connection: AbstractConnection) -> None:
        """Take back an acquired connection that is closed, or as good as new."""
        if connection in self._slots.acquired:
            self._metrics.end_use(connection)
            forget_re_auth_token(connection)  # connecting uses the newest
            self._slots.release(connection, is_connected=connection.is_connected)

    def has_free_connection(self) -> bool:
        """Whether acquiring would not have to wait."""
        return self._slots.has_free_slot()

    def is_acquired(self, connection: AbstractConnection) -> bool:
        """Whether a connection is acquired from this pool, which was not closed since."""
        return connection in self._slots.acquired

    def is_current(self, connection: AbstractConnection) -> bool:
        """Whether further calls may be sent on a connection: on each that is acquired."""
        return self.is_acquired(connection)

    def is_connected(self) -> bool:
        """Whether there is a connection on which the server has answered, acquired or idle."""
        return self._connector.is_connected()

    def discard_on_release(self, connection: AbstractConnection) -> None:
        """Mark an acquired connection as altered: it is closed when it is released."""
        self._slots.discard_on_release(connection)

    def will_discard(self, connection: AbstractConnection) -> bool:
        """Whether an acquired connection is altered."""
        return self._slots.will_discard(connection)

    def was_reconnected(self, connection: AbstractConnection) -> bool:
        """Whether an acquired connection was connected anew since it was acquired."""
        return self._slots.was_reconnected(connection)

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Use new credentials on every connection; it is called when a streaming provider has renewed them.

        The shared connection gets them at once, an acquired one when it is released. An idle one is closed, and gets
        them when it connects again: redis-py would send on it while a caller may acquire it.
        """
        if self.multiplexer is not None:
            self.multiplexer.re_authenticate(token)
        for connection in self._slots.acquired:
            connection.set_re_auth_token(token)
        for connection in list(self._slots.idle):
            await connection.disconnect(nowait=True)

    # Where calls go: a cluster's pool decides it for each attempt, this one for all calls at once.

    def route(
        self,
        _commands: Collection[Sequence[Any]],
        _observer: RouteObserver | None,
        _pinned: Callable[[], AbstractConnection | None] | None = None,
        /,
    ) -> "Route[MonitoredConnectionPool]":
        """Return where the attempts of a call go.

        Its arguments are what the call sends; what is given the server of each attempt, if that is not always the same;
        and, of a caller that keeps to one connection, what returns that, or ``None`` as long as the caller has none.
        """
        return self

    async def target(self) -> "MonitoredConnectionPool":
        """Return the pool of the server that the next attempt of a call goes to: this one."""
        return self

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Return ``None``: no failed attempt is a redirect to another server that is followed."""
        if isinstance(failure.error, exceptions.AskError):
            failure.error = copied(failure.error)
            failure.error.args = (f"{failure.error}: {_OF_A_CLUSTER}",)
        return None

    # The shared connection

    def silent_seconds(self) -> float:
        """For how long the server owes replies on the shared connection and has sent none; 0 if it owes none."""
        return 0.0 if self.multiplexer is None else self.multiplexer.silent_seconds()

    def close_silent(self, seconds: float) -> None:
        """Close the shared connections on which a server that was replaced owes replies, and has sent none for so long.

        Dedicated connections are closed as well, if there is such a shared one.
        """
        if self.multiplexer is not None and self.multiplexer.silent_seconds() >= seconds:
            self.multiplexer.close_silent(
                seconds, lambda: exceptions.ConnectionError("the server was replaced, and owes a reply")
            )
            self.close_dedicated()

    def close_dedicated(self) -> None:
        """Close the connections that are in use: their callers see them break."""
        for connection in list(self._slots.acquired):
            if connection.is_connected:
                abort_transport(connection)

    @property
    def is_dedicated_in_use(self) -> bool:
        """Whether a caller has a connection of its own."""
        return self._metrics.in_use() > 0

    async def answers_within(self, seconds: float) -> bool:
        """Return whether the server answers a PING in time, on the shared connection or else on one of its own."""
        connection = None
        try:
            async with LagTolerantTimeout(seconds):
                if self.multiplexer is not None:
                    return not isinstance(await self.multiplexer.send(("PING",)), AttemptFailed)
                connection = make_safe_connection(self)
                await connect(connection)
                return True
        except (RedisError, OSError):
            return False
        finally:
            if connection is not None:
                await close_connection(connection)

    @property
    def is_sharing(self) -> bool:
        """Whether ordinary commands share a connection; false while the pool closes."""
        return self.multiplexer is not None

    def decode_reply(self, reply: Any) -> Any:
        """Return a reply of the shared connection as callers of this pool get it: text or bytes."""
        encoder = self._template.encoder
        return decode_reply(reply, encoder.encoding, encoder.encoding_errors) if self.decodes_replies else reply

    def is_decodable(self, reply: Any) -> bool:
        """Whether ``decode_reply`` cannot fail, as far as that is known without decoding."""
        return is_decodable(reply, self._template.encoder.encoding)

    def write_pending(self) -> None:
        """Write what the shared connection would write at the end of this tick, if it is connected and has room."""
        if self.multiplexer is not None:
            self.multiplexer.write_pending()

    def retire_connections(self, older_than: float) -> None:
        """Share another connection from now on, if the present one was made before that time (monotonic clock)."""
        if self.multiplexer is not None:
            self.multiplexer.retire_connections(older_than)

    def on_acquired(self, seconds: float) -> None:
        """Record how long a call has waited for the shared connection, or for room on it."""
        self._metrics.on_acquired(seconds)

    def on_timeout(self) -> None:
        """Count a call that got no room on the shared connection in time."""
        self._metrics.on_timeout()

    def on_lag(self, seconds: float) -> None:
        """Record the time from the reading of replies until their callers resumed."""
        self._metrics.on_lag(seconds)


def pool_from_config(app_config: Mapping[str, Any], prefix: str = "redis.", **kwargs: Any) -> MonitoredConnectionPool:
    """Make a pool from an application's configuration, of the class for the topology in its URL.

    Keys, each with the prefix in front: ``url`` (required), and the fields of ``RedisConfig`` from ``username`` on.
    Durations are timespans such as ``200 milliseconds``, or seconds. The prefix without its dot is the pool's name.

    Args:
        app_config: The configuration, such as ``config_from_env()``.
        prefix: What the keys of this pool start with; it ends with a dot.
        kwargs: Arguments of the pool; they win over the configuration. Only of ``telemetry``, the configuration wins:
            operators decide what is recorded.

    Raises:
        ConfigurationError: Something in the configuration cannot be used; it names every problem at once.
        ValueError: The prefix does not end with a dot.
    """
    if not prefix.endswith("."):
        message = f"prefix must end with a dot: {prefix!r}"
        raise ValueError(message)
    config = override_credentials(RedisConfig.from_mapping(app_config, prefix), kwargs)
    pool_class = MonitoredConnectionPool.for_topology(config.topology)
    arguments = config.pool_arguments(kwargs.pop("telemetry", None), prefix)
    return pool_class(**{"name": prefix.removesuffix("."), **override(arguments, kwargs)})


def _make_connection(pool: "ref[MonitoredConnectionPool]") -> AbstractConnection:
    # A weak reference makes no cycle, in which a forgotten pool would be noticed later.
    return cast("MonitoredConnectionPool", pool()).make_connection()
