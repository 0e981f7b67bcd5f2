"""Which replica gets a call that only reads, what it means that it fails one, and that the primary is asked then."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from time import monotonic
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored.config.addresses import Address
from aioredis_monitored.pool.node_pool import ClosingPools, NodePool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import RetryPolicy, is_transient
from aioredis_monitored.pool.routes import FailureRoute

_random: Final = random.Random()  # noqa: S311 - nothing secret

# Seconds for which a server that owes replies has sent none until it is suspected.
SILENT_SECONDS: Final = 0.75
# How often that is checked of the replicas of a service: for each call, it would cost as much as sending the call.
_CHECK_SECONDS: Final = 0.05
# Seconds for which a server is suspected, and within which one call may try a replica.
_SUSPECTED_SECONDS: Final = 3.0


class SuspectedServers:
    """The addresses of servers that did not answer, or have failed a call, in the last 3 s: others are asked first.

    A replica gets no call while it is suspected. After that, a replica that has failed a call gets one in 3 s, until
    one succeeds there.
    """

    def __init__(self) -> None:
        self._until: dict[Address, float] = {}
        # Until when one call tries a replica, and further ones do not.
        self._tried_until: dict[Address, float] = {}

    def __contains__(self, address: Address) -> bool:
        return monotonic() < self._until.get(address, -inf)

    def add(self, address: Address) -> None:
        """Suspect a server for 3 s from now on."""
        _mark(self._until, address)

    def discard(self, address: Address) -> None:
        """Suspect a server no longer: it answers."""
        self._until.pop(address, None)

    def forget(self, address: Address) -> None:
        """Forget a server that has left: there may be another one at its address."""
        self._until.pop(address, None)
        self._tried_until.pop(address, None)

    def choose_replica(self, replicas: Sequence[MonitoredConnectionPool]) -> MonitoredConnectionPool | None:
        """Return the pool of a random one of some replicas that may get a call now; ``None`` if there is none."""
        if self._until or self._tried_until:
            _drop_past(self._until)
            _drop_past(self._tried_until)
            replicas = [pool for pool in replicas if self._may_get_call(pool)]
        if not replicas:
            return None
        # random.choice() would take several times as long.
        chosen = replicas[int(_random.random() * len(replicas))]
        if chosen.retry_policy.server_unreachable:
            # This call tries it.
            _mark(self._tried_until, _address_of(chosen))
        return chosen

    def _may_get_call(self, replica: MonitoredConnectionPool) -> bool:
        address = _address_of(replica)
        is_tried = replica.retry_policy.server_unreachable and address in self._tried_until
        return not (is_tried or address in self._until)

    def on_replica_failed(self, replica: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call at a replica, which is suspected unless that is about the command."""
        is_about_command = isinstance(error, ResponseError) and not is_transient(error)
        # The next reply that is no error resets it.
        replica.retry_policy.server_unreachable = not is_about_command
        if not is_about_command:
            self.add(_address_of(replica))


def _mark(until: dict[Address, float], address: Address) -> None:
    # There may be many that are never asked for again.
    _drop_past(until)
    until[address] = monotonic() + _SUSPECTED_SECONDS


def _drop_past(until: dict[Address, float]) -> None:
    now = monotonic()
    for each in [each for each, end in until.items() if end <= now]:
        del until[each]


def _address_of(pool: MonitoredConnectionPool) -> Address:
    return pool.connection_kwargs["host"], pool.connection_kwargs["port"]


class Replicas:
    """The pools of the replicas of a service that are in sync, each of which is closed when its replica leaves.

    Args:
        name: The name of the service's pool; those of the replicas add ``@``, host and port.
        arguments: The arguments of the replicas' pools.
    """

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._name = name
        self._arguments = arguments
        self._pools: dict[Address, MonitoredConnectionPool] = {}
        # The same, of which one is chosen for each call.
        self._choices: list[MonitoredConnectionPool] = []
        self._suspected = SuspectedServers()
        self._checked_at = -inf
        self._closing = ClosingPools()

    def __iter__(self) -> Iterator[MonitoredConnectionPool]:
        return iter(list(self._pools.values()))

    def update(self, addresses: frozenset[Address]) -> None:
        """Take the replicas that are in sync now."""
        for address in self._pools.keys() - addresses:
            pool = self._pools.pop(address)
            self._suspected.forget(address)
            # Closing waits for replies that are owed, and one that is down sends none.
            pool.close_silent(SILENT_SECONDS / 2)
            self._closing.close(pool)
        for host, port in addresses - self._pools.keys():
            self._pools[host, port] = NodePool(self._name, host, port, **self._arguments)
        self._choices = list(self._pools.values())

    def choose(self) -> MonitoredConnectionPool | None:
        """Return the pool of a random replica that answers; ``None`` if there is none."""
        now = monotonic()
        if now - self._checked_at > _CHECK_SECONDS:
            self._checked_at = now
            for address, pool in self._pools.items():
                if pool.silent_seconds() > SILENT_SECONDS:
                    self._suspected.add(address)
        return self._suspected.choose_replica(self._choices)

    def on_failed(self, pool: MonitoredConnectionPool, error: Exception) -> None:
        """Take the error of a call at a replica; see ``SuspectedServers``."""
        # Of one that has left, it says nothing about the one that may be at its address.
        if pool in self._choices:
            self._suspected.on_replica_failed(pool, error)

    async def aclose(self) -> None:
        """Close the pools of all replicas, and forget them.

        Raises:
            redis.exceptions.RedisError: One of them cannot be closed.
        """
        self._leave_all()
        await self._closing.aclose()

    def detach_connections(self) -> list[AbstractConnection]:
        """Forget all replicas; return the connections to them, which are not closed by this."""
        self._leave_all()
        return self._closing.detach_connections()

    def _leave_all(self) -> None:
        self._closing.add(self._pools.values())
        self._pools, self._choices = {}, []
        self._suspected = SuspectedServers()


def seconds_at_replica(policy: RetryPolicy, seconds: float | None = None) -> float | None:
    """Return how long an attempt at a replica may take: no more than half of the deadline, as the primary is next.

    That is for a cluster, whose replicas may become primaries, with the whole deadline. Under Sentinel, the timeouts of
    a replica's pool do the same, which costs a call nothing.

    Args:
        policy: The policy of the call, which has the deadline.
        seconds: What is left of that; default ``None``, for all of it.
    """
    if policy.deadline is None:
        return seconds
    return policy.deadline / 2 if seconds is None else min(seconds, policy.deadline / 2)


class ReplicaRoute:
    """Where attempts of a call go after the first one, at a replica: to the primary; see ``FailureRoute``.

    Whatever the replica has answered or not, the primary has the last word: a replica may be behind, not serve now, or
    know fewer users.

    Args:
        primary: Where the attempts of the call go that are made at the primary.
        replica: The pool of the replica.
        on_failed: Is given the replica's pool and its error, unless that was a redirect.
    """

    def __init__(
        self,
        primary: FailureRoute,
        replica: MonitoredConnectionPool,
        on_failed: Callable[[MonitoredConnectionPool, Exception], object],
    ) -> None:
        self._primary = primary
        self._replica: MonitoredConnectionPool | None = replica
        self._on_failed = on_failed

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the way to the primary."""
        return self._primary.retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection on which the primary has answered."""
        return self._primary.is_connected()

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Return 0 after the attempt at the replica: the primary is asked at once; else what the way there says."""
        replica, self._replica = self._replica, None
        delay = self._primary.follow(failure)
        if replica is None or delay is not None:
            return delay
        self._on_failed(replica, failure.error)
        return 0.0
