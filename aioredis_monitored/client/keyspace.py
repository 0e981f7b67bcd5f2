"""Notifications about the keys of a cluster, of which each primary sends those about its own."""
# mypy: disallow-untyped-calls=False

from typing import Any

from opentelemetry.trace import Span
from redis.asyncio.keyspace_notifications import AsyncClusterKeyspaceNotifications
from redis.event import EventDispatcher
from redis.keyspace_notifications import KeyNotification

from aioredis_monitored._execution.scatter import nodes_known
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored.client.pubsub import MonitoredPubSub
from aioredis_monitored.pool.cluster import MonitoredClusterPool


class MonitoredClusterKeyspaceNotifications(AsyncClusterKeyspaceNotifications):
    """redis-py's ``AsyncClusterKeyspaceNotifications``; ``client.keyspace_notifications()`` makes it.

    It subscribes at each primary. When others have become primaries, the next call that reads subscribes there, with
    the retries of any call; what they sent before that is lost.

    Args:
        pool: The pool of the cluster.
        server_span: The parent of the subscriptions' spans; see ``MonitoredPubSub``.
        event_dispatcher: The client's.
        options: Those of ``redis.asyncio.Redis.keyspace_notifications``.
    """

    def __init__(
        self,
        pool: MonitoredClusterPool,
        server_span: Span | None,
        event_dispatcher: EventDispatcher,
        **options: Any,
    ) -> None:
        cluster: Any = pool
        super().__init__(cluster, **options)
        self._pool = pool
        self._server_span = server_span
        self._event_dispatcher = event_dispatcher

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
            pool = self._pool.pool_of(node)
            pubsub = self._node_pubsubs[node.name] = MonitoredPubSub(
                pool,
                recorder=pool.telemetry,
                server_span=self._server_span,
                event_dispatcher=self._event_dispatcher,
            )
        made: MonitoredPubSub = pubsub
        return made
