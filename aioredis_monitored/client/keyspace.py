"""Notifications about the keys of a cluster, of which each primary sends those about its own."""
# mypy: disallow-untyped-calls=False

import asyncio
import logging
from typing import Any, Final

from opentelemetry.trace import Span
from redis.asyncio.client import PubSub
from redis.asyncio.keyspace_notifications import AsyncClusterKeyspaceNotifications
from redis.event import EventDispatcher
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.keyspace_notifications import KeyNotification

from aioredis_monitored._cancellation import SETTLE_SECONDS, complete_shielded
from aioredis_monitored._execution.attempts import retry_until_answered
from aioredis_monitored._execution.scatter import nodes_known
from aioredis_monitored._telemetry.context import without_span
from aioredis_monitored._topology.node import ClusterNode
from aioredis_monitored.client.pubsub import MonitoredPubSub, reconnect_backoff
from aioredis_monitored.errors import PinnedConnectionLostError, PoolClosedError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.redirects import is_redirect

_LOGGER: Final = logging.getLogger("aioredis_monitored.pubsub")


class MonitoredClusterKeyspaceNotifications(AsyncClusterKeyspaceNotifications):
    """redis-py's ``AsyncClusterKeyspaceNotifications``; ``client.keyspace_notifications()`` makes it.

    It subscribes at each primary. When others have become primaries, or one could not be subscribed at, the next call
    that reads has that done in the background, until it succeeds; what they sent before that is lost.

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
        # Subscribes at the primaries where that is not done yet.
        self._subscribing: asyncio.Task[None] | None = None
        self._has_warned = False

    async def get_message(
        self,
        ignore_subscribe_messages: bool | None = None,
        timeout: float = 0.0,  # noqa: ASYNC109 - redis-py's
    ) -> KeyNotification | None:
        """Return the next notification, as redis-py does; ``None`` if there is none within ``timeout`` seconds.

        Raises:
            redis.exceptions.RedisError: The pool is closed, or a primary refuses what waiting does not change.
        """
        if self.subscribed:
            self._pool.check_open()
            subscribing = self._subscribing
            if subscribing is not None and subscribing.done():
                self._subscribing = None
                subscribing.result()
            await self._leave_others()
            if self._subscribing is None and self._primaries().keys() - self._node_pubsubs.keys():
                self._subscribing = asyncio.create_task(self._subscribe_until_done(), context=without_span())
                self._subscribing.add_done_callback(_retrieve)
        return await super().get_message(ignore_subscribe_messages, timeout)

    def _primaries(self) -> dict[str, ClusterNode]:
        return {node.name: node for node in self._pool.primaries()}

    async def _subscribe_until_done(self) -> None:
        await retry_until_answered(self._subscribe_at_new, reconnect_backoff, on_failure=self._warn)

    def _warn(self, failure: RedisError) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "pool %r: a primary cannot be subscribed at, and its notifications about keys are lost until it can: "
                "%s",
                self._pool.name,
                failure,
            )

    async def refresh_subscriptions(self) -> None:
        """Subscribe at the primaries where that is not done, and leave nodes that are primaries no more.

        Raises:
            redis.exceptions.RedisError: It has failed at one of them.
        """
        await self._leave_others()
        await self._subscribe_at_new()

    async def _leave_others(self) -> None:
        # In the task that reads, which must not meet subscriptions that are closed.
        for name in self._node_pubsubs.keys() - self._primaries().keys():
            await self._cleanup_node(name)

    async def _subscribe_at_new(self) -> None:
        async with self._refresh_lock:
            new = [node for name, node in self._primaries().items() if name not in self._node_pubsubs]
            outcomes = await asyncio.gather(*map(self._subscribe_at, new), return_exceptions=True)
        if failures := [each for each in outcomes if each is not None]:
            raise failures[0]
        self._has_warned = False

    async def _subscribe_at(self, node: ClusterNode) -> None:
        pool = self._pool.pool_of(node)
        pubsub = MonitoredPubSub(
            pool,
            recorder=pool.telemetry,
            server_span=self._server_span,
            event_dispatcher=self._event_dispatcher,
        )
        try:
            await _subscribe(pubsub, self._subscribed_patterns, self._subscribed_channels)
        except BaseException as error:
            await pubsub.aclose()
            if isinstance(error, PoolClosedError) and is_redirect(self._pool, error):
                # The node was removed: the next attempt goes to the primaries of then.
                raise RedisConnectionError(str(error)) from error
            raise
        if self._closed:
            await pubsub.aclose()
            raise PinnedConnectionLostError("these notifications were closed while the call was in flight")
        self._node_pubsubs[node.name] = pubsub

    async def _execute_subscribe(self, patterns: dict[str, Any], exact_channels: dict[str, Any]) -> None:
        await nodes_known(self._pool, None)
        async with self._refresh_lock:
            for name, pubsub in list(self._node_pubsubs.items()):
                try:
                    await _subscribe(pubsub, patterns, exact_channels)
                except RedisError:
                    # It is made anew, with all subscriptions.
                    await self._cleanup_node(name)
        self._track_subscribe(patterns, exact_channels)
        try:
            await self._subscribe_at_new()
        except PinnedConnectionLostError:
            raise
        except RedisError as error:
            self._warn(error)

    async def _refresh_subscriptions_on_error(self) -> None:
        # Subscriptions reconnect by themselves; those that cannot are made anew, by the next call that reads.
        for name, pubsub in list(self._node_pubsubs.items()):
            if not self._is_pubsub_connected(pubsub):
                await self._cleanup_node(name)

    async def aclose(self) -> None:
        """End all subscriptions, and give their connections back."""
        self._closed = True
        await complete_shielded("closing notifications about keys", self._close, SETTLE_SECONDS)

    async def _close(self) -> None:
        if self._subscribing is not None:
            self._subscribing.cancel()
            await asyncio.wait([self._subscribing])
        await super().aclose()


async def _subscribe(pubsub: PubSub, patterns: dict[str, Any], channels: dict[str, Any]) -> None:
    if patterns:
        await pubsub.psubscribe(**patterns)
    if channels:
        await pubsub.subscribe(**channels)


def _retrieve(subscribing: "asyncio.Task[None]") -> None:
    # The next call that reads raises the error, if there is one.
    if not subscribing.cancelled():
        subscribing.exception()
