"""The pools of the replicas of a service, and the routes of calls that are sent to a replica first."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextvars import Context
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._telemetry.recorder import PoolRecorder
from aioredis_monitored.config.addresses import Address
from aioredis_monitored.pool.node_pool import NodePool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.redirects import ClusterRoute
from aioredis_monitored.pool.retry import RetryPolicy, is_transient
from aioredis_monitored.pool.routes import RouteObserver

_random: Final = random.Random()  # noqa: S311 - nothing secret

# Seconds for which a replica that owes replies has sent none until it gets no further calls.
_SILENT_SECONDS: Final = 0.5
# How often that is checked: for each call, it would cost as much as sending the call.
_CHECK_SECONDS: Final = 0.05
# Seconds for which a replica that could not serve a call gets none, and after which one call tries it again.
_SUSPENDED_SECONDS: Final = 3.0


class Replicas:
    """The pools of the replicas that are in sync, each of which is closed when its replica leaves.

    A replica that could not serve a call gets none for some seconds, and then one, whose success ends that.

    Args:
        name: The name of the service's pool; those of the replicas add ``@``, host and port.
        arguments: The arguments of the replicas' pools.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._name = name
        self._arguments = arguments
        self._pools: dict[Address, MonitoredConnectionPool] = {}
        self._suspended_until: WeakKeyDictionary[MonitoredConnectionPool, float] = WeakKeyDictionary()
        # Those that answer, as far as the last check has shown.
        self._living: list[MonitoredConnectionPool] = []
        self._checked_at = -inf
        # Those that are being closed, and what does that in the background.
        self._leaving: dict[MonitoredConnectionPool, asyncio.Task[None] | None] = {}

    def __iter__(self) -> Iterator[MonitoredConnectionPool]:
        return iter(list(self._pools.values()))

    def update(self, addresses: frozenset[Address]) -> None:
        """Take the replicas that are in sync now."""
        self._checked_at = -inf
        for address in self._pools.keys() - addresses:
            pool = self._pools.pop(address)
            # Closing waits for replies that are owed, and one that is down sends none.
            pool.close_silent(_SILENT_SECONDS / 2)
            # In a context of its own: no call has asked for it.
            closing = asyncio.get_running_loop().create_task(pool.aclose(), context=Context())
            self._leaving[pool] = closing
            closing.add_done_callback(partial(self._on_closed, pool), context=Context())
        for host, port in addresses - self._pools.keys():
            self._pools[host, port] = NodePool(self._name, host, port, **self._arguments)

    def _on_closed(self, pool: MonitoredConnectionPool, closing: "asyncio.Task[None]") -> None:
        if not closing.cancelled():
            self._leaving.pop(pool, None)
            # Retrieved, for asyncio: nothing depends on how the connections of a replica that has left have ended.
            closing.exception()

    def choose(self) -> MonitoredConnectionPool | None:
        """Return the pool of a random replica that answers; ``None`` if there is none."""
        now = monotonic()
        if now - self._checked_at > _CHECK_SECONDS:
            self._check(now)
        if not self._living:
            return None
        chosen = _random.choice(self._living)
        if chosen.retry_policy.server_unreachable:
            # This call tries it.
            self._suspend(chosen)
        return chosen

    def _check(self, now: float) -> None:
        self._checked_at = now
        self._living = [
            pool
            for pool in self._pools.values()
            if not (pool.retry_policy.server_unreachable and now < self._suspended_until[pool])
            and pool.silent_seconds() < _SILENT_SECONDS
        ]

    def _suspend(self, pool: MonitoredConnectionPool) -> None:
        self._suspended_until[pool] = monotonic() + _SUSPENDED_SECONDS
        self._checked_at = -inf

    def on_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call; unless that is about the command, the replica gets no further one for a while."""
        on_replica_failed(pool, error)
        self._suspend(pool)

    async def aclose(self) -> None:
        """Close the pools of all replicas, and forget them.

        Raises:
            redis.exceptions.RedisError: One of them cannot be closed.
        """
        self._leave_all()
        outcomes = await asyncio.gather(*(pool.aclose() for pool in self._leaving), return_exceptions=True)
        self._leaving = {}
        if errors := [each for each in outcomes if each is not None]:
            raise errors[0]

    def _leave_all(self) -> None:
        self._leaving = dict.fromkeys(self._pools.values()) | self._leaving
        self._pools, self._living = {}, []

    def detach_connections(self) -> list[AbstractConnection]:
        """Forget all replicas; return the connections to them, which are not closed by this."""
        self._leave_all()
        leaving, self._leaving = self._leaving, {}
        return [connection for pool in leaving for connection in pool.detach_connections()]


def seconds_at_replica(policy: RetryPolicy, seconds: float | None) -> float | None:
    """Return how long an attempt at a replica may take: no more than half of the deadline, as the primary is next."""
    if policy.deadline is None:
        return seconds
    return policy.deadline / 2 if seconds is None else min(seconds, policy.deadline / 2)


def on_replica_failed(pool: MonitoredConnectionPool, error: Exception) -> None:
    """Take the error of a call; unless that is about the command, one call at a time tries the replica again."""
    # The next reply that is no error resets it.
    pool.retry_policy.server_unreachable = not isinstance(error, ResponseError) or is_transient(error)


class Primary(Protocol):
    """What a route needs of the pool of the primary."""

    retry_policy: RetryPolicy
    telemetry: PoolRecorder

    def is_connected(self) -> bool:
        """Whether there is a connection on which the primary has answered."""

    def on_replica_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call that a replica has failed."""


class ClusterReplicaRoute(ClusterRoute):
    """Where the attempts of a call that reads a slot go: first to a replica, and then to the primary; see ``Route``.

    As of ``ReplicaRoute``, the primary has the last word.
    """

    # That the attempt goes to; it may have left the cluster by the end of that.
    _replica: MonitoredConnectionPool | None = None

    async def target(self) -> MonitoredConnectionPool:
        """Return the pool of the node for the next attempt, at first that of a replica; see ``ClusterRoute``."""
        self._replica = None
        pool = await super().target()
        if self._cluster.cluster_topology.is_replica(pool):
            self._replica = pool
        return pool

    def bound(self, seconds: float | None) -> float | None:
        """Return how long the next attempt may take, of which the argument is what is left of the deadline."""
        return seconds if self._replica is None else seconds_at_replica(self._cluster.retry_policy, seconds)

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Take over what a failure says about the nodes; after the attempt at the replica, the primary is asked."""
        delay = super().follow(failure)
        if delay is not None or self._replica is None:
            return delay
        on_replica_failed(self._replica, failure.error)
        # The replica may have become the primary: that must not go on for ever.
        return self._redirects.delay(failure)


class ReplicaRoute:
    """Where attempts of a call go after the first one, at a replica: to the primary; see ``FailureRoute``.

    Whatever the replica has answered or not, the primary has the last word: a replica may be behind, not serve now, or
    know fewer users.

    Args:
        primary: The pool of the primary.
        replica: The pool of the replica.
        observer: Is given the server of each attempt; ``None`` for none.
    """

    def __init__(self, primary: Primary, replica: MonitoredConnectionPool, observer: RouteObserver | None) -> None:
        self._primary = primary
        self._replica: MonitoredConnectionPool | None = replica
        self._observer = observer

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the primary."""
        return self._primary.retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection on which the primary has answered."""
        return self._primary.is_connected()

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Return 0 after the attempt at the replica: the primary is asked at once; else ``None``."""
        replica, self._replica = self._replica, None
        if replica is None:
            return None
        self._primary.on_replica_failed(replica, failure.error)
        if self._observer is not None:
            self._observer.set_server(self._primary.telemetry.server)
        return 0.0
