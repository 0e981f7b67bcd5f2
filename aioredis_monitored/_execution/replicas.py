"""Commands that only read, where replicas are read: each is sent to a replica first, and to the primary if that fails.

The executor of clusters does the same for the replicas of a slot: see ``ClusterExecutor``.
"""

from collections.abc import Coroutine
from time import monotonic
from typing import Any

from redis.asyncio import Redis

from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._execution.attempts import Attempt, retry_failed
from aioredis_monitored._execution.routing import CommandExecutor
from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.placement import may_read_from_replica
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.replicas import ReplicaRoute
from aioredis_monitored.pool.routes import FailureRoute
from aioredis_monitored.pool.sentinel import MonitoredSentinelPool


class ReplicaExecutor(CommandExecutor):
    """Executes the commands of one client on a pool that may read from replicas; see ``CommandExecutor``."""

    __slots__ = ()

    pool: MonitoredClusterPool | MonitoredSentinelPool

    async def _read(
        self,
        caller: Redis,
        replica: MonitoredConnectionPool,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
        seconds: float | None,
    ) -> Any:
        """Execute one command that only reads at a replica, or at the primary if that fails.

        Args:
            caller: The client.
            replica: The pool of the replica.
            args: The command, which does not block.
            options: Those of redis-py's ``execute_command``.
            observer: Is given the server of each attempt; ``None`` for none.
            seconds: How long the attempt at the replica may take; ``None`` for no bound but the pool's.
        """
        started = monotonic()
        if observer is not None:
            observer.set_server(replica.telemetry.server)
        try:
            return await CommandExecutor.execute(self, caller, replica, args, options, observer, seconds, 0)
        except AttemptFailed as failed:
            # What is over is at most the replica's part of the deadline.
            failure = AttemptFailed(failed.error, may_have_run=failed.may_have_run)
        if observer is not None:
            observer.set_server(self.pool.telemetry.server)
        primary, attempt = self._further_attempts(caller, replica, args, options, observer)
        route = ReplicaRoute(primary, replica, self.pool.on_replica_failed)
        return await retry_failed(route, traits_of(args), attempt, failure, started, 0, observer)


class SentinelExecutor(ReplicaExecutor):
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
                # The timeouts of its pool leave the primary its part of the deadline.
                return self._read(caller, replica, args, options, observer, None)
        return super().execute(caller, pool, args, options, observer, seconds, losses)

    def _further_attempts(
        self,
        caller: Redis,
        pool: MonitoredConnectionPool,  # noqa: ARG002 - all further attempts are made at the primary
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
    ) -> tuple[FailureRoute, Attempt[Any]]:
        return super()._further_attempts(caller, self.pool, args, options, observer)
