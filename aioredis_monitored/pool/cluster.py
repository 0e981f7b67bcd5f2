"""The pool of a cluster, which routes each call to the pool of a node."""

import asyncio
import codecs
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, repeat
from time import perf_counter
from typing import Any, Final, Self

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface
from redis.exceptions import ClusterDownError, RedisError
from redis.retry import AbstractRetry

from aioredis_monitored._commands.table import operation_name
from aioredis_monitored._multiplexer import AttemptFailed, Multiplexer
from aioredis_monitored._redispy.connections import make_safe_connection
from aioredis_monitored._redispy.located import named_class
from aioredis_monitored._telemetry import semconv, semconv_ext
from aioredis_monitored._telemetry.spans import Server
from aioredis_monitored._telemetry.stats import PoolStats
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored._topology.placement import Kind, batch_slot, placement_of, routing_error
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.addresses import Address, address_text
from aioredis_monitored.config.readers import ReadFrom
from aioredis_monitored.errors import ClusterRoutingError
from aioredis_monitored.pool.health import PoolHealth, problem_of
from aioredis_monitored.pool.metrics import PoolMetrics
from aioredis_monitored.pool.node_pool import NodePool, ReadingNodePool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import REDIRECTS, ClusterRoute, note_failure
from aioredis_monitored.pool.routes import RouteObserver
from aioredis_monitored.pool.servers import validate_servers
from aioredis_monitored.pool.topology import ClusterTopology

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")
_DEFAULT_REFRESH_SECONDS: Final = 60.0
# How long after a node has failed a replica has its place: it waits up to a second, and then asks for votes.
_ELECTION_SECONDS: Final = 2.0


class MonitoredClusterPool(MonitoredConnectionPool, topology="cluster"):
    """The pool of a Redis Cluster: a ``MonitoredConnectionPool`` for each node, and the map of the slots.

    Every client on it routes: a ``MonitoredRedisConnection``, a ``MessageQueue`` or whatever takes a pool. Nothing
    connects before the first command. A refresh asks for the slot map in the background: at first use, when a node
    redirects, cannot be reached, or is silent, and every ``topology_refresh`` seconds.

    Args:
        nodes: Host and port of some nodes, of which one must answer; a name stands for all of its addresses. While no
            node that is known answers, these are resolved anew and asked.
        read_from: ``primary``, or ``replica`` to send an application's calls that only read to replicas, which may lag
            behind: never SCAN and its like, scripts, pipelines with a write, or what locks, queues and ``ConfigStore``
            read. A slot without a replica is read at its primary. Default ``primary``.
        topology_refresh: Seconds between two regular refreshes, 0 for none; default 60.
        address_map: Where nodes are connected to, in place of the addresses that they announce; default ``None``, for
            where they say.
        arguments: Those of ``MonitoredConnectionPool`` but ``host`` and ``port``, for each node: ``max_connections``
            counts per node. The name of a node's pool is that of this pool, ``@``, host and port.

    Raises:
        ConfigurationError: A value cannot be used; the error names every such value at once.
        TypeError: An argument is unknown.
    """

    # Connections, and with them the time-outs of those who wait for one, are the nodes' pools'.
    _counters = ("lock_contended", "lock_lost", "pubsub_reconnects", "cluster_refreshes", "failovers")

    def __init__(
        self,
        nodes: Sequence[Address],
        *,
        read_from: ReadFrom = "primary",
        topology_refresh: float = _DEFAULT_REFRESH_SECONDS,
        address_map: AddressMap | None = None,
        **arguments: Any,
    ) -> None:
        self._start_addresses, read = validate_servers(
            "nodes",
            nodes,
            {"read_from": read_from, "topology_refresh": topology_refresh, "address_map": address_map, **arguments},
            self._topology_name,
            _encoding_problems(**arguments),
        )
        self.reads_replicas = read["read_from"] == "replica"
        resolve = (lambda *where: where) if read["address_map"] is None else read["address_map"].resolve
        self.cluster_topology = ClusterTopology(
            self._start_addresses,
            self,
            resolve,
            read["topology_refresh"],
            verifies_names=issubclass(arguments.get("connection_class", Connection), SSLConnection),
        )
        # Read once: the pool of a node must not load the authorities to check them.
        arguments = {key: read[key] for key in arguments if key in read}
        self._node_pool_arguments = {key: value for key, value in arguments.items() if key != "name"}
        super().__init__(**arguments)
        for kind in REDIRECTS:
            self.telemetry.start_counter(
                self.telemetry.instruments.cluster_redirects, {semconv_ext.CLUSTER_REDIRECT: kind}
            )

    # What a pool of one server does once, and this one does for each node.

    def _describe_server(self) -> Server:
        attributes = super()._describe_server().attributes
        unknown = (semconv.SERVER_ADDRESS, semconv.SERVER_PORT)
        return Server({key: value for key, value in attributes.items() if key not in unknown}, None)

    def _address_of(self, server: Server) -> str:
        return f"{address_text(*self._start_addresses[0])}/{server.attributes[semconv.DB_NAMESPACE]}"

    def _describe_state(self) -> str:
        return super()._describe_state() if self.cluster_topology.all_pools() else "no node known yet"

    def _make_metrics(self) -> PoolMetrics:
        return _ClusterMetrics(self.name, self.telemetry, self._slots, topology=self.cluster_topology)

    def _make_multiplexer(self) -> Multiplexer | None:
        return None

    @property
    def is_sharing(self) -> bool:
        """Whether ordinary commands share the connection of a node."""
        return self._multiplex

    def make_pool(self, address: Address, name: str | None) -> MonitoredConnectionPool:
        """Make the pool of a node; see ``PoolFactory``."""
        host, port = address
        kind = ReadingNodePool if self.reads_replicas else NodePool
        return kind(self.name, host, port, **self._node_pool_arguments | self._tls_arguments(name))

    def make_connection_to(self, address: Address, name: str | None) -> AbstractConnection:
        """Make a connection to a node that belongs to no pool; see ``PoolFactory``."""
        host, port = address
        return make_safe_connection(self, host=host, port=port, **self._tls_arguments(name))

    def _tls_arguments(self, name: str | None) -> dict[str, Any]:
        kind: Any = self.connection_class
        if name is None or not issubclass(kind, SSLConnection):
            return {}
        return {"connection_class": named_class(kind), "server_name": name}

    def on_refresh(self) -> None:
        """Count a refresh."""
        self.telemetry.record(self.telemetry.instruments.cluster_refreshes, 1)

    def on_failovers(self, count: int) -> None:
        """Count primaries whose place replicas have taken."""
        self.telemetry.record(self.telemetry.instruments.failovers, count)

    def on_node_timeout(self, seconds: float) -> None:
        """Warn if the deadline of calls is over before the cluster has replaced a node that failed."""
        deadline, needed = self.retry_policy.deadline, seconds + _ELECTION_SECONDS
        if deadline is not None and deadline < needed:
            _LOGGER.warning(
                "pool %r: calls are retried for socket_timeout, %g s, and it takes the cluster about %g s to replace a "
                "node that has failed, as cluster-node-timeout is %g s: calls for its slots will fail. Set "
                "socket_timeout to %g s or more, or lower cluster-node-timeout",
                self.name,
                deadline,
                needed,
                seconds,
                needed,
            )

    def on_redirect(self, kind: str) -> None:
        """Count a redirect, one of ``REDIRECTS``."""
        self.telemetry.record(self.telemetry.instruments.cluster_redirects, 1, {semconv_ext.CLUSTER_REDIRECT: kind})

    def stats(self) -> PoolStats:
        """Return the sums of all nodes; may be called in any thread."""
        stats = [pool.stats() for pool in self.cluster_topology.all_pools()]
        sums = {field: sum(getattr(each, field) for each in stats) for field in PoolStats._fields if field != "name"}
        return PoolStats(name=self._metrics.name, **sums)

    # Nodes, as callers name them.

    def primaries(self) -> list[ClusterNode]:
        """Return the primaries that serve slots, in the order of their slots; none before the first command."""
        return [ClusterNode(*address, "primary") for address in self.cluster_topology.slot_map.primaries]

    def replicas(self) -> list[ClusterNode]:
        """Return the replicas of these primaries."""
        known = self.cluster_topology.slot_map
        return [ClusterNode(*address, "replica") for address in known.addresses[len(known.primaries) :]]

    def nodes(self) -> list[ClusterNode]:
        """Return all of these, the primaries first."""
        return [*self.primaries(), *self.replicas()]

    def nodes_of_slot(self, slot: int) -> list[ClusterNode]:
        """Return the primary that serves a slot and its replicas; none if no known primary serves it."""
        topology = self.cluster_topology
        if (pool := topology.slots[slot]) is None:
            return []
        primary = topology.address_of(pool)
        replicas = topology.slot_map.replicas.get(primary, ())
        return [ClusterNode(*primary, "primary"), *(ClusterNode(*address, "replica") for address in replicas)]

    def pool_of(self, node: ClusterNode) -> MonitoredConnectionPool:
        """Return the pool of a node, which need not serve slots."""
        return self.cluster_topology.visit((node.host, node.port))

    # Routing.

    def of(self, args: Sequence[Any]) -> MonitoredConnectionPool:
        """Return the pool of the node that a command goes to now.

        Raises:
            AttemptFailed: No node serves the slot of its keys, or no node is known.
            ClusterRoutingError: It does not go to one node.
        """
        return self._choose([args])

    def _choose(
        self,
        commands: Collection[Sequence[Any]],
        pinned: Callable[[], AbstractConnection | None] | None = None,
    ) -> MonitoredConnectionPool:
        """Return the pool for a call, in which commands without keys go to the node of the pinned connection."""
        slot = slot_of(commands, is_pinned=pinned is not None)
        if slot is not None:
            return self.pool_of_slot(slot)
        connection = None if pinned is None else pinned()
        owner = None if connection is None else self._owner_of(connection)
        return owner or self.cluster_topology.any_primary_pool()

    def pool_of_slot(self, slot: int) -> MonitoredConnectionPool:
        """Return the pool of the node that serves a slot now.

        Raises:
            AttemptFailed: None does.
        """
        pool = self.cluster_topology.slots[slot]
        if pool is None:
            self.cluster_topology.request_refresh()
            raise AttemptFailed(ClusterDownError(f"no node serves the slot {slot}"), may_have_run=False)
        return pool

    def pool_near_slot(self, slot: int) -> MonitoredConnectionPool:
        """Return the pool of the node that serves a slot now, or of any primary if none does.

        Raises:
            AttemptFailed: No primary is known.
        """
        return self.cluster_topology.slots[slot] or self.cluster_topology.any_primary_pool()

    def owner_number(self, connection: AbstractConnection | None) -> int | None:
        """Return the number of the pool that an acquired connection belongs to; see ``pool_numbered``."""
        owner = None if connection is None else self._owner_of(connection)
        return None if owner is None else self.cluster_topology.number_of(owner)

    def pool_numbered(self, number: int) -> MonitoredConnectionPool | None:
        """Return the pool with a number, which no other one gets; ``None`` if its node was removed."""
        return self.cluster_topology.pool_numbered(number)

    def check_sendable(self, args: Sequence[Any]) -> None:
        """Check the types of a command's arguments.

        Raises:
            redis.exceptions.DataError: One cannot be sent.
        """
        self._template.pack_command(*args)

    def choose_primary(self, slot: int) -> Callable[[], MonitoredConnectionPool]:
        """Return what chooses the pool for a call."""
        return partial(self.pool_of_slot, slot)

    def choose_to_read(self, slot: int) -> Callable[[], MonitoredConnectionPool]:
        """Return what chooses the pool for a call that only reads: at its first attempt a replica's, if any."""
        choosers = chain([self.choose_replica], repeat(self.pool_of_slot))
        return lambda: next(choosers)(slot) or self.pool_of_slot(slot)

    def choose_replica(self, slot: int) -> MonitoredConnectionPool | None:
        """Return the pool of a replica for a call that only reads keys of a slot; ``None`` if none answers."""
        return self.cluster_topology.replica_pool_of_slot(slot)

    def on_replica_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call that a replica has failed."""
        self.cluster_topology.on_replica_failed(pool, error)

    def owner_name(self, connection: AbstractConnection) -> str:
        """Return the name of the pool that an acquired connection belongs to, for errors."""
        owner = self._owner_of(connection)
        return "a node that was removed" if owner is None else owner.name

    def route(
        self,
        commands: Collection[Sequence[Any]],
        observer: RouteObserver | None,
        pinned: Callable[[], AbstractConnection | None] | None = None,
        /,
    ) -> ClusterRoute:
        """Return the route of a call, whose node is decided anew for each attempt; see ``MonitoredConnectionPool``."""
        choose = partial(self._choose, commands, pinned)
        return ClusterRoute(self, choose, observer, follows_ask=pinned is None)

    async def ping(self) -> None:
        """Return if a node answers ``PING``: the readiness check, in one attempt.

        Raises:
            redis.exceptions.RedisError: As a command raises it; its text begins with the name of the node's pool, or
                with that of this one if no node is known.
        """
        with self._named_errors():
            pool = await self._any_pool()
        with self._noting_failure(pool):
            await pool.ping()

    async def health(self) -> PoolHealth:
        """Return whether all slots are served, by primaries that take calls, and why not; it never raises."""
        topology = self.cluster_topology
        try:
            with self._named_errors():
                await self._any_pool()
        except Exception as error:  # noqa: BLE001 - also what a credential provider raises
            return PoolHealth(self._topology_name, (), problem_of(error))
        servers = await asyncio.gather(*(pool.server_health() for pool in topology.primary_pools))
        problems = [f"{each.server}: {each.problem}" for each in servers if each.problem]
        if unserved := topology.slots.count(None):
            problems.insert(0, f"no node serves {unserved} of {len(topology.slots)} slots")
        if problems:
            topology.request_refresh()
        return PoolHealth(self._topology_name, tuple(servers), "; ".join(problems))

    # Connections, which belong to the nodes' pools.

    def _make_template(self) -> AbstractConnection:
        return super().make_connection()

    def make_connection(self) -> AbstractConnection:
        """Refuse: a connection is to one of the nodes.

        Raises:
            ClusterRoutingError: Always.
        """
        raise ClusterRoutingError(
            "a cluster's pool makes no connections of its own: use get_connection(), or pool_of(node).make_connection()"
        )

    async def acquire(self, on_waited: Callable[[float, float], object] | None = None) -> AbstractConnection:
        """Acquire a connection to any primary, as ``get_connection`` does.

        Args:
            on_waited: Called with total and connecting seconds, also on failure.
        """
        connecting = 0.0

        def on_pool_waited(_: float, seconds: float) -> None:
            nonlocal connecting
            connecting = seconds

        asked = perf_counter()
        try:
            pool = await self._any_pool()
            with self._noting_failure(pool):
                return await pool.acquire(on_pool_waited)
        finally:
            if on_waited is not None:
                on_waited(perf_counter() - asked, connecting)

    @contextmanager
    def _noting_failure(self, pool: MonitoredConnectionPool) -> Iterator[None]:
        """Have the next call that may go to any node go to another one than this, if the block fails there."""
        try:
            yield
        except RedisError as error:
            note_failure(self, error, pool)
            raise

    async def _any_pool(self) -> MonitoredConnectionPool:
        self.check_open()
        try:
            await self.cluster_topology.known()
            return self.cluster_topology.any_primary_pool()
        except AttemptFailed as failed:
            error = failed.error
        raise error

    def _owner_of(self, connection: AbstractConnection) -> MonitoredConnectionPool | None:
        return next((pool for pool in self.cluster_topology.all_pools() if pool.is_acquired(connection)), None)

    async def release(self, connection: AbstractConnection) -> None:
        """Give an acquired connection back; one of a node whose pool is closed is disconnected."""
        owner = self._owner_of(connection)
        await (super().release(connection) if owner is None else owner.release(connection))

    async def reconnect(self, connection: AbstractConnection) -> None:
        """Connect an acquired connection anew, to the same node; it stays acquired, also if that fails.

        Raises:
            redis.exceptions.RedisError: As ``get_connection``.
        """
        owner = self._owner_of(connection)
        await (super().reconnect(connection) if owner is None else owner.reconnect(connection))

    def is_acquired(self, connection: AbstractConnection) -> bool:
        """Whether a connection is acquired from the pool of a node, which was not closed since."""
        return self._owner_of(connection) is not None

    def is_connected(self) -> bool:
        """Whether there is a connection on which a node has answered."""
        return any(pool.is_connected() for pool in self.cluster_topology.all_pools())

    def discard_on_release(self, connection: AbstractConnection) -> None:
        """Mark an acquired connection as altered: it is closed when it is released."""
        if (owner := self._owner_of(connection)) is not None:
            owner.discard_on_release(connection)

    def will_discard(self, connection: AbstractConnection) -> bool:
        """Whether an acquired connection is altered."""
        owner = self._owner_of(connection)
        return owner is not None and owner.will_discard(connection)

    def was_reconnected(self, connection: AbstractConnection) -> bool:
        """Whether an acquired connection was connected anew since it was acquired."""
        owner = self._owner_of(connection)
        return owner is not None and owner.was_reconnected(connection)

    # What redis-py and its users do with a pool.

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections to all nodes; they connect again when they are used."""
        for pool in self.cluster_topology.all_pools():
            await pool.disconnect(inuse_connections)

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Use new credentials on every connection; it is called when a streaming provider has renewed them."""
        for pool in self.cluster_topology.all_pools():
            await pool.re_auth_callback(token)

    def set_retry(self, retry: AbstractRetry[Any]) -> None:
        """Take the number of retries of a policy of redis-py, as the constructor does."""
        super().set_retry(retry)
        self._node_pool_arguments["retry"] = retry
        self._node_pool_arguments.pop("retries", None)
        for pool in self.cluster_topology.all_pools():
            pool.set_retry(retry)

    # Opening and closing.

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.cluster_topology.open()
        return self

    async def aclose(self) -> None:
        """Close every connection to every node; calls that follow raise ``PoolClosedError``.

        Raises:
            EventLoopError: The pool belongs to another event loop, which is not closed yet.
        """
        if self._lifecycle.is_loop_closed():
            await self.cluster_topology.aclose()
        await super().aclose()

    async def _disconnect(self) -> None:
        try:
            await self.cluster_topology.aclose()
        finally:
            await super()._disconnect()

    def detach_connections(self) -> tuple[AbstractConnection, ...]:
        """Make the pool like new, and closed; return the connections to all nodes, which are not closed by this."""
        return (*self.cluster_topology.detach_connections(), *super().detach_connections())


def _encoding_problems(encoding: str = "utf-8", **_others: Any) -> list[tuple[str, str]]:
    with suppress(LookupError):  # redis-py's error says that it is unknown
        if codecs.lookup(encoding).name not in {"ascii", "utf-8"}:
            return [
                ("encoding", "must be utf-8 in a cluster: the slots of keys depend on it; pass other text as bytes")
            ]
    return []


def slot_of(commands: Collection[Sequence[Any]], *, is_pinned: bool = False) -> int | None:
    """Return the slot that a call goes to; ``None`` if it has no keys.

    Args:
        commands: What it sends.
        is_pinned: Whether its caller keeps to one connection, which names the node of commands that must name one.

    Raises:
        ClusterRoutingError: It does not go to one node.
    """
    if len(commands) != 1:
        return batch_slot(commands)
    (args,) = commands
    placement = placement_of(args)
    if placement.kind is Kind.SLOT:
        return placement.slot
    if placement.kind is Kind.ANY:
        return None
    names_one_node = placement.kind is Kind.NAMED_NODE or placement.kind is Kind.REFUSED
    # The scripts of a transaction must be known where it runs.
    if is_pinned and (names_one_node or operation_name(args).upper().startswith("SCRIPT ")):
        return None
    raise routing_error(args, placement)


class _ClusterMetrics(PoolMetrics):
    """What gauges read of a cluster's pool: its nodes, whose pools have the connections, and its queues."""

    def __init__(self, *arguments: Any, topology: ClusterTopology) -> None:
        super().__init__(*arguments)
        self._topology = topology

    def node_count(self) -> int | None:
        """Return the number of nodes that are known."""
        return len(self._topology.all_pools())
