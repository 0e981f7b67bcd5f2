"""Commands that only read, under Sentinel: each is sent to a replica first, and to the primary if that fails."""

from collections.abc import Coroutine
from functools import partial
from typing import Any

from redis.asyncio import Redis

from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._execution.attempts import retry
from aioredis_monitored._execution.routing import CommandExecutor
from aioredis_monitored._multiplexer import AttemptFailed, DeadlineExceeded
from aioredis_monitored._telemetry.operation import Observer
from aioredis_monitored._topology.placement import may_read_from_replica
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.replicas import ReplicaRoute
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
        """Execute one command; see ``CommandExecutor``."""
        if losses is None and self.reads_replicas and may_read_from_replica(args):
            return self._read(caller, args, options, observer)
        return super().execute(caller, pool, args, options, observer, seconds, losses)

    async def _read(
        self, caller: Redis, args: tuple[Any, ...], options: dict[str, Any], observer: Observer | None
    ) -> Any:
        route = self.pool.replica_route(observer)
        if route is None:
            return await super().execute(caller, self.pool, args, options, observer)
        attempt = partial(self._attempt, caller, route, args, options, observer)
        return await retry(route, traits_of(args), attempt, 0, observer)

    async def _attempt(
        self,
        caller: Redis,
        route: ReplicaRoute,
        args: tuple[Any, ...],
        options: dict[str, Any],
        observer: Observer | None,
        seconds: float | None,
        losses: int,
    ) -> Any:
        pool = await route.target()
        if pool is self.pool:
            return await super().execute(caller, pool, args, options, observer, seconds, losses)
        try:
            reply = await super().execute(caller, pool, args, options, observer, route.replica_seconds, losses)
        except DeadlineExceeded as late:
            # The call's own deadline is not over.
            raise AttemptFailed(late.error, may_have_run=late.may_have_run) from late
        route.on_answered()
        return reply
