"""The pool of a service that Redis Sentinel looks after: connections to its primary, and to replicas for reading."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, Final, cast
from weakref import finalize, ref

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.utils import str_if_bytes

from aioredis_monitored._redispy.located import LocatedConnection, abort_transport, located_class
from aioredis_monitored._topology.node import REPLICA_ROLES, role_in
from aioredis_monitored._topology.sentinel import MAX_HOLD_SECONDS, PrimaryTracker
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.addresses import Address, address_text
from aioredis_monitored.config.readers import ReadFrom
from aioredis_monitored.pool.credentials import PasswordFile
from aioredis_monitored.pool.discovery import PrimaryLocation, SentinelDiscovery
from aioredis_monitored.pool.health import ServerHealth
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.replicas import Replicas
from aioredis_monitored.pool.sentinel_connections import SentinelConnections
from aioredis_monitored.pool.servers import validate_servers

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")

# How old the sentinels' word about replicas may be while calls read; they ask a replica for its state every 10 s.
_REPLICAS_SECONDS: Final = 5.0


class MonitoredSentinelPool(MonitoredConnectionPool, topology="sentinel"):
    """A pool of connections to the primary of a service, which it follows through failovers.

    Whenever a connection is made, all sentinels are asked at the same time, and the primary that most of them name is
    taken if it says itself that it is one. The pool knows the sentinels that are given, all addresses of their names,
    and those that these know, and follows what each of them announces: when a replica is about to be promoted, calls
    are held until it is, for at most 2 s and half of ``socket_timeout``; and when it is, all connections to other
    servers end. Tasks in the background do that from the first connect until the pool is closed.

    Args:
        sentinels: The sentinels: a name or address, and a port, of each. One that is up would do.
        service: The name under which the sentinels know the service, such as ``mymaster``.
        max_connections: As of ``MonitoredConnectionPool``.
        timeout: As of ``MonitoredConnectionPool``.
        connection_class: redis-py's ``Connection``, which is the default, or ``SSLConnection``, or a subclass. With
            ``SSLConnection``, connections to sentinels are encrypted too, with the same ``ssl_…`` arguments.
        sentinel_username: The user for the sentinels; default ``None``. They get no other credentials than these.
        sentinel_password: The password for the sentinels; default ``None``.
        sentinel_password_file: The path of a file that holds that password, as ``password_file``; default ``None``.
        read_from: ``primary``, or ``replica`` to send an application's calls that only read to replicas, which may lag
            behind: never SCAN and its like, scripts, pipelines, blocking calls, those of ``client()``, or what locks,
            queues and ``ConfigStore`` read. Without a replica in sync, and where it fails, they go to the primary.
            ``max_connections`` counts for each replica, whose pool has the name of this one, ``@``, host and port.
            Default ``primary``.
        address_map: Where servers are reached that announce other addresses to the sentinels, as in
            ``10.0.0.1:6379=proxy.example:7000``; default ``None``.
        name: What messages and metrics call the pool; default: the service.
        arguments: All others of ``MonitoredConnectionPool``, except those that name a server.

    Attributes:
        sentinel_credential_provider: Gives the credentials for the sentinels; ``None`` if they never change.

    Raises:
        ConfigurationError: A value cannot be used; the error names every such value at once.
    """

    _counters = ("timeouts", "lock_contended", "lock_lost", "pubsub_reconnects", "failovers")

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        max_connections: int | None = None,
        timeout: float | None = 20.0,
        connection_class: Callable[..., AbstractConnection] = Connection,
        *,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        sentinel_password_file: str | None = None,
        read_from: ReadFrom = "primary",
        address_map: AddressMap | Mapping[str, str] | str | None = None,
        name: str | None = None,
        **arguments: Any,
    ) -> None:
        given, read = validate_servers(
            "sentinels",
            sentinels,
            {
                "max_connections": max_connections,
                "timeout": timeout,
                "connection_class": connection_class,
                "sentinel_username": sentinel_username,
                "sentinel_password": sentinel_password,
                "sentinel_password_file": sentinel_password_file,
                "read_from": read_from,
                "address_map": address_map,
                **arguments,
            },
            self._topology_name,
            _problems_of(service),
        )
        self.reads_replicas = read["read_from"] == "replica"
        # Read once: the pool of a replica must not load the authorities to check them.
        arguments = {key: read[key] for key in arguments if key in read}
        kind: Any = connection_class
        super().__init__(
            max_connections,
            timeout,
            located_class(kind),
            name=name or service,
            locate=partial(_locate, ref(self)),
            **arguments,
        )
        deadline = self.retry_policy.deadline
        username = read["sentinel_username"]
        credentials: dict[str, Any] = {"username": username, "password": read["sentinel_password"]}
        if read["sentinel_password_file"] is not None:
            credentials = {"credential_provider": PasswordFile(read["sentinel_password_file"], username)}
        self.sentinel_credential_provider = credentials.get("credential_provider")
        tls = {name: value for name, value in self.connection_kwargs.items() if name.startswith("ssl_")}
        self._discovery = SentinelDiscovery(
            PrimaryTracker(service, MAX_HOLD_SECONDS if deadline is None else min(MAX_HOLD_SECONDS, deadline / 2)),
            given,
            SentinelConnections(
                service,
                credentials | tls,
                uses_tls=issubclass(kind, SSLConnection),
                asks_replicas=self.reads_replicas,
            ),
            map_address=(lambda *where: where) if read["address_map"] is None else read["address_map"].resolve,
            listener=self,
            deadline=self._template.socket_connect_timeout if deadline is None else deadline,
            name=self.name,
        )
        self._replicas = Replicas(
            self.name,
            {**arguments, "max_connections": max_connections, "connection_class": kind, **self._brief_timeouts()},
        )
        self._address = f"{','.join(address_text(*each) for each in given)}/{service}/{self._template.db}"
        # The primary that connections were made to last.
        self._served_by: Address | None = None
        # Its tasks would keep on following.
        finalize(self, self._discovery.end)

    def _brief_timeouts(self) -> dict[str, float | None]:
        """Return the timeouts of a replica's pool, of which none takes the half of a deadline that is the primary's."""
        timeouts = {
            "timeout": self.timeout,
            "socket_timeout": self._template.socket_timeout,
            "socket_connect_timeout": self._template.socket_connect_timeout,
        }
        deadline = self.retry_policy.deadline
        if deadline is None:
            return timeouts
        half = deadline / 2
        return {name: half if seconds is None else min(seconds, half) for name, seconds in timeouts.items()}

    # Connecting.

    async def locate(self) -> PrimaryLocation:
        """Return where the primary is, waiting while a failover is about to replace it.

        Raises:
            redis.exceptions.AuthenticationError: All sentinels that answer refuse the credentials.
            redis.exceptions.NoPermissionError: All that answer forbid their user to ask.
            redis.exceptions.ConnectionError: No sentinel that answers knows the service.
            PoolClosedError: The pool was closed meanwhile.
        """
        # Connections are still made until they notice that the pool has closed; they must not ask the sentinels again.
        if self._lifecycle.is_closed:
            raise self.closed_error()
        return await self._discovery.locate()

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Connect, and leave no connection half-connected, such as one without its AUTH and SELECT."""
        try:
            await super().ensure_connection(connection)
        except RedisConnectionError as error:
            _raise_refusal(error)
            raise

    async def reconnect(self, connection: AbstractConnection) -> None:
        """Connect an acquired connection anew; it stays acquired, also if that fails.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        try:
            await super().reconnect(connection)
        except RedisConnectionError as error:
            _raise_refusal(error)
            raise

    async def _on_connect(self, connection: AbstractConnection) -> None:
        await super()._on_connect(connection)
        location = _location_of(connection)
        where = address_text(location.host, location.port)
        if await _is_replica(connection):
            self._discovery.refute(location.announced)
            await connection.disconnect(nowait=True)
            message = f"{where} is a replica, and not the primary of {self._service!r}"
            raise RedisConnectionError(message)
        if not self.is_current(connection):
            await connection.disconnect(nowait=True)
            raise RedisConnectionError(f"the primary of {self._service!r} was replaced while a connection was made")
        before, self._served_by = self._served_by, location.announced
        if before not in {None, location.announced}:
            self.telemetry.record(self.telemetry.instruments.failovers, 1)
            _LOGGER.warning("pool %r: the primary of %r is %s now", self.name, self._service, where)

    async def server_health(self) -> ServerHealth:
        """Return whether the primary takes calls; it never raises."""
        found = await super().server_health()
        return found if self._served_by is None else replace(found, server=address_text(*self._served_by))

    @property
    def _service(self) -> str:
        return self._discovery.tracker.service

    def is_current(self, connection: AbstractConnection) -> bool:
        """Whether further calls may be sent on a connection: no failover has begun since it was made."""
        location, tracker = _location_of(connection), self._discovery.tracker
        is_primary = tracker.believed(monotonic()) in {None, location.announced}
        return is_primary and location.generation == tracker.generation

    async def release(self, connection: AbstractConnection) -> None:
        """Give an acquired connection back; one that was made before a failover began is closed."""
        if self.is_acquired(connection) and connection.is_connected and not self.is_current(connection):
            self.discard_on_release(connection)
        await super().release(connection)

    # Failovers.

    def on_hold(self) -> None:
        """Begin no further call on a present connection: another primary is about to be promoted.

        Calls in flight go on: what the primary still answers in time, its replica has.
        """
        if self.multiplexer is not None:
            self.multiplexer.retire_all()
        for connection in self._slots.idle:
            if connection.is_connected:
                abort_transport(connection)

    def on_switch(self, host: str, port: int) -> None:
        """End all connections to other servers than this one, which is the primary now."""
        for connection in (*self._slots.idle, *self._slots.acquired):
            if connection.is_connected and _address_of(connection) != (host, port):
                abort_transport(connection)
        self.retry_policy.server_unreachable = False

    # Reading from replicas.

    def on_replicas(self, addresses: frozenset[Address]) -> None:
        """Take the replicas that are in sync."""
        if not self._lifecycle.is_closed:
            self._replicas.update(addresses)

    def choose_replica(self) -> MonitoredConnectionPool | None:
        """Return the pool of the replica for a call that only reads; ``None`` if none is in sync and answers."""
        self._discovery.ask_unless_recent(_REPLICAS_SECONDS)
        return self._replicas.choose()

    def on_replica_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call that a replica has failed."""
        self._replicas.on_failed(pool, error)

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Use new credentials on every connection; it is called when a streaming provider has renewed them."""
        await super().re_auth_callback(token)
        for pool in self._replicas:
            await pool.re_auth_callback(token)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close all connections; the pool connects again when it is used."""
        await super().disconnect(inuse_connections)
        for pool in self._replicas:
            await pool.disconnect(inuse_connections)

    # Closing.

    async def aclose(self) -> None:
        """Close every connection, those in use as well; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._lifecycle.is_loop_closed():
            await self._replicas.aclose()
        await super().aclose()

    async def _disconnect(self) -> None:
        try:
            await self._replicas.aclose()
        finally:
            try:
                await super()._disconnect()
            finally:
                await self._discovery.wait_ended()

    def detach_connections(self) -> tuple[AbstractConnection, ...]:
        """Make the pool like new, and closed; return all connections to servers, which are not closed by this."""
        self._served_by = None
        self._discovery.end()
        return (*self._replicas.detach_connections(), *super().detach_connections())


async def _locate(pool: "ref[MonitoredSentinelPool]") -> PrimaryLocation:
    return await cast("MonitoredSentinelPool", pool()).locate()


def _raise_refusal(error: RedisConnectionError) -> None:
    # redis-py makes this of whatever is raised before the handshake; but waiting changes no credentials and no rights.
    if isinstance(error.__cause__, AuthenticationError | NoPermissionError):
        raise error.__cause__ from None


def _problems_of(service: object) -> list[tuple[str, str]]:
    if isinstance(service, str) and len(service.split()) == 1:
        return []
    return [("service", "must be the name under which sentinels know the service")]


def _location_of(connection: AbstractConnection) -> PrimaryLocation:
    return cast("PrimaryLocation", cast("LocatedConnection", connection).location)


def _address_of(connection: AbstractConnection) -> Address:
    located = cast("LocatedConnection", connection)
    return located.host, located.port


async def _is_replica(connection: AbstractConnection) -> bool:
    """Whether a server says that it is a replica; false if it does not say what it is.

    ``HELLO`` without arguments changes nothing, and no user can be forbidden to call it. Servers before 6.0, which have
    RESP2 alone, do not know it; ``ROLE`` is refused to users without ``@dangerous``.
    """
    for command in ("HELLO", "ROLE"):
        await connection.send_command(command, check_health=False)
        try:
            reply = await connection.read_response()
        except ResponseError:
            continue
        if command == "HELLO":
            return role_in(reply) in REPLICA_ROLES
        return bool(reply) and str_if_bytes(reply[0]) in REPLICA_ROLES
    return False
