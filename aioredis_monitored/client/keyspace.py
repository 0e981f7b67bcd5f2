"""Notifications about the keys of a cluster, of which each primary sends those about its own."""
# mypy: disallow-untyped-calls=False

from collections.abc import Callable
from typing import Any

from redis.asyncio.keyspace_notifications import AsyncClusterKeyspaceNotifications
from redis.keyspace_notifications import KeyNotification

from aioredis_monitored._execution.scatter import nodes_known
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored.client.pubsub import MonitoredPubSub
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool


class MonitoredClusterKeyspaceNotifications(AsyncClusterKeyspaceNotifications):
    """redis-py's ``AsyncClusterKeyspaceNotifications``; ``client.keyspace_notifications()`` makes it.

    It subscribes at each primary. When others have become primaries, the next call that reads subscribes there, with
    the retries of any call; what they sent before that is lost.

    Args:
        pool: The pool of the cluster.
        make_pubsub: Makes subscriptions on the pool of a node.
        options: Those of ``redis.asyncio.Redis.keyspace_notifications``.
    """

    def __init__(
        self,
        pool: MonitoredClusterPool,
        make_pubsub: Callable[[MonitoredConnectionPool], MonitoredPubSub],
        **options: Any,
    ) -> None:
        cluster: Any = pool
        super().__init__(cluster, **options)
        self._pool = pool
        self._make_pubsub = make_pubsub

    async def get_message(
        self,
        ignore_subscribe_messages: bool | None = None,
        timeout: float = 0.0,  # noqa: ASYNC109 - redis-py's
    ) -> KeyNotification | None:
        """Return the next notification, as redis-py does; ``None`` if there is none within ``timeout`` seconds."""
        if self.subscribed and {node.name for node in self._pool.primaries()} != self._node_pubsubs.keys():
            await self._refresh_subscriptions_on_error()
        return await super().get_message(ignore_subscribe_messages, timeout)

    async def _execute_subscribe(self, patterns: dict[str, Any], exact_channels: dict[str, Any]) -> None:
        await nodes_known(self._pool, None)
        await super()._execute_subscribe(patterns, exact_channels)

    def _get_all_primary_nodes(self) -> list[Any]:
        return self._pool.primaries()

    async def _ensure_node_pubsub(self, node: ClusterNode) -> MonitoredPubSub:  # type: ignore[override]  # of our nodes
        pubsub: Any = self._node_pubsubs.get(node.name)
        if pubsub is None:
            pubsub = self._node_pubsubs[node.name] = self._make_pubsub(self._pool.pool_of(node))
        made: MonitoredPubSub = pubsub
        return made
