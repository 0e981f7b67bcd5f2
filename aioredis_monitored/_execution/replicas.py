"""Commands that only read, under Sentinel: each is sent to a replica first, and to the primary if that fails."""

from collections.abc import Coroutine
from typing import Any

from redis.asyncio import Redis

from aioredis_monitored._execution.attempts import Attempt
from aioredis_monitored._execution.routing import CommandExecutor
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.placement import may_read_from_replica
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.replicas import ReplicaRoute
from aioredis_monitored.pool.routes import FailureRoute
from aioredis_monitored.pool.sentinel import MonitoredSentinelPool


class ReplicaExecutor(CommandExecutor):
    """Executes the commands of one client on a ``MonitoredSentinelPool`` that reads from replicas.

    See ``CommandExecutor``. Pipelines, and clients that keep to one connection, are on the primary.
    """

    __slots__ = ()

    pool: MonitoredSentinelPool

    def execute(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None = None,
        seconds: float | None = None,
        losses: int | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Execute one command; see ``CommandExecutor``.

        It is no coroutine itself, as each one costs a call some 3 %.
        """
        if losses is None and self.reads_replicas and may_read_from_replica(args):
            replica = self.pool.choose_replica()
            if replica is not None:
                pool = replica
                if observer is not None:
                    observer.set_server(replica.telemetry.server)
        return super().execute(caller, pool, args, options, observer, seconds, losses)

    def _further_attempts(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> tuple[FailureRoute, Attempt[Any]]:
        primary = self.pool
        route, attempt = super()._further_attempts(caller, primary, args, options, observer)
        return (route if pool is primary else ReplicaRoute(primary, pool, observer)), attempt
