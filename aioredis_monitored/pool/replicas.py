"""The pools of the replicas of a service, and the route of a call that is sent to one of them first."""

import asyncio
import random
from collections.abc import Iterator, Mapping
from contextvars import Context
from math import inf
from time import monotonic
from typing import Any, Final

from redis.exceptions import ResponseError

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored.config.addresses import Address
from aioredis_monitored.pool.node import NodePool
from aioredis_monitored.pool.pool import MonitoredConnectionPool, RouteObserver
from aioredis_monitored.pool.retry import RetryPolicy, is_transient

_random: Final = random.Random()  # noqa: S311 - nothing secret

# Seconds for which a replica that owes replies has sent none until it gets no further calls.
_SILENT_SECONDS: Final = 0.5
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
        self._suspended: dict[MonitoredConnectionPool, float] = {}
        self._closing: dict[asyncio.Task[None], MonitoredConnectionPool] = {}

    def __iter__(self) -> Iterator[MonitoredConnectionPool]:
        return iter(list(self._pools.values()))

    def update(self, addresses: frozenset[Address]) -> None:
        """Take the replicas that are in sync now."""
        for address in self._pools.keys() - addresses:
            pool = self._pools.pop(address)
            self._suspended.pop(pool, None)
            # Closing waits for replies that are owed, and one that is down sends none.
            pool.close_silent(_SILENT_SECONDS / 2)
            # In a context of its own: no call has asked for it.
            closing = asyncio.get_running_loop().create_task(pool.aclose(), context=Context())
            self._closing[closing] = pool
            closing.add_done_callback(self._on_closed, context=Context())
        for host, port in addresses - self._pools.keys():
            self._pools[host, port] = NodePool(
                host=host, port=port, name=f"{self._name}@{host}:{port}", **self._arguments
            )

    def _on_closed(self, closing: "asyncio.Task[None]") -> None:
        self._closing.pop(closing, None)
        if not closing.cancelled():
            # Retrieved, for asyncio: nothing depends on how the connections of a replica that has left have ended.
            closing.exception()

    def choose(self) -> MonitoredConnectionPool | None:
        """Return the pool of a random replica that answers; ``None`` if there is none."""
        now, suspended = monotonic(), self._suspended
        living = [
            pool
            for pool in self._pools.values()
            if suspended.get(pool, -inf) <= now and pool.silent_seconds() < _SILENT_SECONDS
        ]
        if not living:
            return None
        chosen = _random.choice(living)
        if chosen in suspended:
            suspended[chosen] = now + _SUSPENDED_SECONDS
        return chosen

    def on_answered(self, pool: MonitoredConnectionPool) -> None:
        """Take a reply of a replica: it gets calls again."""
        self._suspended.pop(pool, None)

    def on_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call; unless that is about the command, the replica gets no further one for a while."""
        if isinstance(error, ResponseError) and not is_transient(error):
            self.on_answered(pool)
        elif pool in self._pools.values():
            self._suspended[pool] = monotonic() + _SUSPENDED_SECONDS

    async def aclose(self) -> None:
        """Close the pools of all replicas, and forget them.

        Raises:
            redis.exceptions.RedisError: One of them cannot be closed.
        """
        pools = [*self._pools.values(), *self._closing.values()]
        self._pools, self._suspended = {}, {}
        outcomes = await asyncio.gather(*(pool.aclose() for pool in pools), return_exceptions=True)
        if errors := [each for each in outcomes if each is not None]:
            raise errors[0]


class ReplicaRoute:
    """Where the attempts of a call go that only reads: the first one to a replica, all others to the primary.

    See ``Route``. Whatever the replica answers or does not, the primary has the last word: a replica may be behind, not
    serve now, or know less users.

    Args:
        primary: The pool of the primary.
        replicas: The replicas.
        replica: The pool of the one that is asked first.
        observer: Is given the server of each attempt; ``None`` for none.
    """

    def __init__(
        self,
        primary: MonitoredConnectionPool,
        replicas: Replicas,
        replica: MonitoredConnectionPool,
        observer: RouteObserver | None,
    ) -> None:
        self._primary = primary
        self._replicas = replicas
        self._replica = replica
        self._observer = observer
        self._has_failed = False

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the primary."""
        return self._primary.retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection on which the primary has answered."""
        return self._primary.is_connected()

    @property
    def replica_seconds(self) -> float | None:
        """How long the attempt at the replica may take: the other half of the deadline is left to the primary."""
        deadline = self._primary.retry_policy.deadline
        return None if deadline is None else deadline / 2

    async def target(self) -> MonitoredConnectionPool:
        """Return the pool of the server for the next attempt."""
        pool = self._primary if self._has_failed else self._replica
        if self._observer is not None:
            self._observer.set_server(pool.telemetry.server)
        return pool

    def on_answered(self) -> None:
        """Take the replica's reply."""
        self._replicas.on_answered(self._replica)

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Return 0 after the attempt at the replica: the primary is asked at once; else ``None``."""
        if self._has_failed:
            return None
        self._has_failed = True
        self._replicas.on_failed(self._replica, failure.error)
        return 0.0
