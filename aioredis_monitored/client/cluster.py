"""The client of a cluster: what only clusters have, under the names that redis-py's ``RedisCluster`` gives it."""

import random
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, ClassVar, Final, Self, cast, overload

from opentelemetry.trace import Span
from redis.asyncio import ConnectionPool, SSLConnection
from redis.commands.cluster import AsyncClusterManagementCommands
from redis.commands.helpers import list_or_args
from redis.exceptions import DataError, SlotNotCoveredError
from redis.typing import AnyKeyT, EncodableT, KeysT, KeyT, PatternT

from aioredis_monitored._execution.targets import resolve_targets
from aioredis_monitored._redispy import cluster as redispy
from aioredis_monitored._redispy.overrides import get_encoder
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored._topology.node import ClusterNode, TargetNodes
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.client.pipeline import MonitoredRedisPipeline
from aioredis_monitored.client.pubsub import MonitoredPubSub
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.config.schema import url_arguments
from aioredis_monitored.errors import ClusterRoutingError
from aioredis_monitored.pool.cluster import MonitoredClusterPool

# Arguments of redis-py's RedisCluster that have no place here, and what to do.
_REPLACED: Final = {
    "address_remap": "use address_map=",
    "cluster_error_retry_attempts": "use retries=, within socket_timeout",
    "command_flags": "leave it out: the documentation says where each command goes",
    "dynamic_startup_nodes": "leave it out: the first nodes are asked again when no other one answers",
    "load_balancing_strategy": 'use read_from="replica"',
    "policy_resolver": "leave it out: the documentation says where each command goes",
    "read_from_replicas": 'use read_from="replica"',
    "reinitialize_steps": "leave it out: the slot map is refreshed when that is needed",
    "require_full_coverage": "leave it out: slots that are served work",
    "url": "use from_url()",
}


class MonitoredRedisCluster(  # type: ignore[misc]  # redis-py's own bases disagree
    MonitoredRedisConnection, AsyncClusterManagementCommands
):
    """A ``MonitoredRedisConnection`` to a cluster, with the methods of redis-py's ``RedisCluster``.

    ``execute_command``, and every method that hands its keyword arguments on to it, takes ``target_nodes=``: a node,
    several in a list or as the values of a dictionary, or one of ``PRIMARIES``, ``REPLICAS``, ``ALL_NODES``, ``RANDOM``
    and ``DEFAULT_NODE``. The command is sent to all of them at the same time. The reply of a single node is returned as
    it is, those of several as a dictionary by the names of the nodes, or as the one value that redis-py makes of them,
    such as the sum of ``dbsize(target_nodes="all")``. If a named node does not serve the key of a command, the command
    goes to the node that does.

    It is a ``redis.asyncio.Redis``, and no ``redis.asyncio.RedisCluster``.

    Args:
        context_name: As in ``MonitoredRedisConnection``.
        server_span: As in ``MonitoredRedisConnection``.
        connection_pool: The cluster's pool, which its owner closes. Without one, the client makes one and closes it.
        host: Without a pool: the host of one of the nodes.
        port: Its port; default 6379.
        startup_nodes: Without a pool: nodes, of which one must answer; objects with a host and a port.
        ssl: Without a pool: whether to use TLS; default ``False``.
        single_connection_client: Keep to one connection, as ``client()`` does; default ``False``.
        pool_arguments: Without a pool: those of a ``MonitoredConnectionPool`` for each node.

    Raises:
        TypeError: An argument is unknown, there is neither a pool nor a node, or both, or the pool is of another kind.
    """

    PRIMARIES: ClassVar[str] = redispy.PRIMARIES
    REPLICAS: ClassVar[str] = redispy.REPLICAS
    ALL_NODES: ClassVar[str] = redispy.ALL_NODES
    RANDOM: ClassVar[str] = redispy.RANDOM
    DEFAULT_NODE: ClassVar[str] = redispy.DEFAULT_NODE

    def __init__(
        self,
        context_name: str | None = None,
        server_span: Span | None = None,
        connection_pool: ConnectionPool | None = None,
        *,
        host: str | None = None,
        port: int = 6379,
        startup_nodes: Iterable[ClusterNode] = (),
        ssl: bool = False,
        single_connection_client: bool = False,
        **pool_arguments: Any,
    ) -> None:
        addresses = [(each.host, int(each.port)) for each in startup_nodes or ()]
        if host is not None:
            addresses.append((host, int(port)))
        owns_pool = connection_pool is None
        if connection_pool is None:
            if not addresses:
                raise TypeError("give host=, startup_nodes= or connection_pool=, or use from_url()")
            for name in _REPLACED.keys() & pool_arguments.keys():
                message = f"{name}= is redis-py's: {_REPLACED[name]}"
                raise TypeError(message)
            if ssl:
                pool_arguments["connection_class"] = SSLConnection
            connection_pool = MonitoredClusterPool(addresses, **pool_arguments)
        elif not isinstance(connection_pool, MonitoredClusterPool):
            message = (
                f"connection_pool must be the pool of a cluster, got {type(connection_pool).__name__}: make it from a "
                f"redis+cluster:// URL, or use MonitoredRedisConnection"
            )
            raise TypeError(message)
        elif given := [*pool_arguments, *(["host or startup_nodes"] if addresses else ()), *(["ssl"] if ssl else ())]:
            message = f"cannot be combined with connection_pool: {', '.join(given)}"
            raise TypeError(message)
        super().__init__(context_name, server_span, connection_pool, single_connection_client=single_connection_client)
        self.auto_close_connection_pool = owns_pool
        arguments = connection_pool.connection_kwargs
        callbacks = redispy.cluster_callbacks(
            is_protocol_given=arguments.get("protocol") is not None,
            has_legacy_responses=arguments.get("legacy_responses", True),
        )
        self.response_callbacks.update(callbacks)

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Make a client with a pool of its own for this URL, closed with the client.

        Args:
            url: ``redis+cluster://…``, as in ``MonitoredConnectionPool.from_url``; or, as in redis-py, ``redis://…`` or
                ``rediss://…`` with one of the nodes.
            single_connection_client: Keep to one connection, as ``client()`` does; default ``False``.
            auto_close_connection_pool: Whether closing the client closes the pool; default ``True``.
            kwargs: Arguments of the pool, over which the URL wins.

        Raises:
            ConfigurationError: The URL cannot be used.
        """
        topology, arguments = url_arguments(url)
        pool_class = MonitoredClusterPool
        if topology == "standalone" and "path" not in arguments:
            arguments["nodes"] = [(arguments.pop("host", "localhost"), arguments.pop("port", 6379))]
        else:
            pool_class = pool_class.for_topology(topology)
        client = cls(
            connection_pool=pool_class(**{**kwargs, **arguments}), single_connection_client=single_connection_client
        )
        client.auto_close_connection_pool = auto_close_connection_pool is not False
        return client

    @property
    def _cluster(self) -> MonitoredClusterPool:
        return cast("MonitoredClusterPool", self.connection_pool)

    async def initialize(self) -> Self:
        """Find the nodes of the cluster, as the first command would.

        Raises:
            redis.exceptions.RedisError: No node answers in time.
        """
        await self._command_executor.connect(self)
        return await super().initialize()

    # Nodes.

    def get_nodes(self) -> list[ClusterNode]:
        """Return all nodes that serve slots or replicate one that does; none before the first command."""
        return self._cluster.nodes()

    def get_primaries(self) -> list[ClusterNode]:
        """Return the primaries that serve slots; none before the first command."""
        return self._cluster.primaries()

    def get_replicas(self) -> list[ClusterNode]:
        """Return the replicas of these primaries."""
        return self._cluster.replicas()

    def get_random_node(self) -> ClusterNode:
        """Return any node.

        Raises:
            IndexError: No node is known: ``initialize`` finds them.
        """
        return random.choice(self.get_nodes())  # noqa: S311 - calls are spread

    def get_default_node(self) -> ClusterNode | None:
        """Return the node that ``DEFAULT_NODE`` stands for, the first primary; ``None`` before the first command.

        Without ``target_nodes=``, commands that need no certain node go to any primary.
        """
        return next(iter(self.get_primaries()), None)

    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        """Return the node with this host and port, or with this name; ``None`` if there is none.

        Raises:
            redis.exceptions.DataError: Neither is given.
        """
        name = address_text(host, port) if host and port else node_name
        if not name:
            raise DataError("get_node must be given host and port, or node_name")
        return next((node for node in self.get_nodes() if node.name == name), None)

    def get_node_from_key(self, key: KeyT, replica: bool = False) -> ClusterNode | None:
        """Return the primary that serves a key.

        Args:
            key: The key.
            replica: Return a replica of it, or ``None`` if it has none; default ``False``.

        Raises:
            redis.exceptions.SlotNotCoveredError: No node is known to serve the key: ``initialize`` finds them.
        """
        slot = self.keyslot(key)
        nodes = self._cluster.nodes_of_slot(slot)
        if not nodes:
            raise SlotNotCoveredError(f"no node is known that serves slot {slot}: initialize() finds the nodes")
        return next(iter(nodes[1:]), None) if replica else nodes[0]

    def keyslot(self, key: EncodableT) -> int:
        """Return the slot of a key, between 0 and 16383."""
        return key_slot(get_encoder(self).encode(key))

    # Commands.

    async def scan_iter(  # type: ignore[override]  # redis-py's own bases disagree
        self,
        match: PatternT | None = None,
        count: int | None = None,
        _type: str | None = None,
        *,
        target_nodes: TargetNodes | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[bytes | str]:
        """Yield every key, of one node after the other.

        Args:
            match: A pattern for the keys; default ``None``, for all.
            count: About how many keys each node is asked for at once; default ``None``, for the server's choice.
            _type: The type of the values; default ``None``, for any.
            target_nodes: The nodes; default ``None``, for all primaries, also if they change meanwhile.
            kwargs: Those of ``scan``.
        """
        if target_nodes is None:
            async for key in super().scan_iter(match, count, _type, **kwargs):
                yield key
            return
        for node in await resolve_targets(self._cluster, target_nodes, None):
            cursor = 0
            while True:
                reply: Any = await self.scan(cursor, match, count, _type, target_nodes=node, **kwargs)
                cursors, keys = reply
                for key in keys:
                    yield key
                cursor = cursors[node.name]
                if not cursor:
                    break

    async def client_tracking_on(self, *args: Any, target_nodes: TargetNodes | None = None, **kwargs: Any) -> Any:
        """Have the server report the keys that a handle (``client()``) reads, as on one server.

        Args:
            args: Those of ``redis.asyncio.Redis.client_tracking_on``.
            target_nodes: The nodes; default ``None``, for the handle's: of other connections, none outlives the call.
            kwargs: Those of ``redis.asyncio.Redis.client_tracking_on``.
        """
        return await super().client_tracking_on(*args, target_nodes=target_nodes, **kwargs)

    async def client_tracking_off(self, *args: Any, target_nodes: TargetNodes | None = None, **kwargs: Any) -> Any:
        """End what ``client_tracking_on`` has begun; the arguments are the same."""
        return await super().client_tracking_off(*args, target_nodes=target_nodes, **kwargs)

    async def mget_nonatomic(self, keys: KeysT, *args: KeyT) -> list[Any]:
        """Return the values of keys in any slots, in the order of the keys, as ``mget`` does on a cluster."""
        return await self.mget(list_or_args(keys, args))

    async def mset_nonatomic(self, mapping: Mapping[AnyKeyT, EncodableT]) -> list[bool]:
        """Set keys in any slots, with one MSET for each slot, and return the reply to each of these."""
        by_slot: dict[int, dict[AnyKeyT, EncodableT]] = {}
        for key, value in mapping.items():
            by_slot.setdefault(self.keyslot(key), {})[key] = value
        pipe = self.pipeline("MSET")
        for part in by_slot.values():
            pipe.mset(part)
        return await pipe.execute()

    @overload
    def pipeline(
        self, name: str | None = None, transaction: bool = False, shard_hint: str | None = None
    ) -> MonitoredRedisPipeline: ...

    @overload
    def pipeline(self, transaction: bool = False, shard_hint: str | None = None) -> MonitoredRedisPipeline: ...

    def pipeline(  # type: ignore[misc]  # as in the base class
        self,
        name: str | bool | None = None,
        transaction: bool | str | None = False,
        shard_hint: str | None = None,
    ) -> MonitoredRedisPipeline:
        """Make a pipeline, as ``MonitoredRedisConnection`` does, but, as in redis-py's cluster client, no transaction.

        Args:
            name: What the batch does.
            transaction: Wrap the batch in MULTI and EXEC, which needs all keys in one slot; default ``False``.
            shard_hint: Kept for redis-py's sake.
        """
        make: Any = super().pipeline
        made: MonitoredRedisPipeline = make(name, transaction, shard_hint)
        return made

    def pubsub(
        self,
        node: ClusterNode | None = None,
        host: str | None = None,
        port: int | None = None,
        **arguments: Any,
    ) -> MonitoredPubSub:
        """Make subscriptions, as ``MonitoredRedisConnection`` does, or such that keep to one node.

        What each node publishes to its own subscribers alone, such as notifications about its keys, needs the latter.
        They stay at the node also when another one has become the primary of its slots.

        Args:
            node: The node; default ``None``, for any that lives, and for that of each shard channel.
            host: Its host, in place of ``node``.
            port: Its port.
            arguments: Those of ``MonitoredRedisConnection.pubsub``.

        Raises:
            ClusterRoutingError: The cluster is not known to have this node, or the node has no slots.
            redis.exceptions.DataError: A host is given without a port, or a port without a host.
        """
        if node is not None:
            host, port = node.host, node.port
        elif host is None and port is None:
            return super().pubsub(**arguments)
        if host is None or port is None:
            raise DataError("pubsub must be given a node, or both host and port, or nothing for any node")
        found = self.get_node(host, port)
        if found is None:
            message = (
                f"the cluster is not known to have a node {address_text(host, port)} that serves slots, or replicates "
                f"one that does: initialize() finds these"
            )
            raise ClusterRoutingError(message)
        pool = self._cluster.pool_of(found)
        arguments = {
            "recorder": pool.telemetry,
            "server_span": self._command_executor.server_span,
            "event_dispatcher": self._event_dispatcher,
            **arguments,
        }
        return MonitoredPubSub(pool, **arguments)
