"""Renews the leases of this process's consumers, and looks after the queue: dead consumers, its depth, eviction."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from math import inf
from typing import Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from aioredis_monitored._redispy.connections import make_safe_connection, wait_closed
from aioredis_monitored._redispy.overrides import execute_command
from aioredis_monitored._redispy.sockets import close_all_now
from aioredis_monitored._telemetry.context import suppressed
from aioredis_monitored._telemetry.stats import QueueGauges
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.queue.consumer import Consumer, LeaseConfig, QueueKeys, id_in, register_command
from aioredis_monitored.queue.scripts import FORGET, SWEEP

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# A dead consumer's messages are requeued within 1.5 leases, as the documents promise: its lease ends at most one lease
# after its last renewal, the sweep before it bars others for a fifth of a lease, and the next comes a quarter later.

# Between two renewals, as a share of a lease; it bounds the time of each step of a renewal, too.
_RENEWAL_SHARE: Final = 1 / 4
# Between two attempts while a fault lasts, as a share of that.
_RETRY_SHARE: Final = 1 / 4
# As a share of a lease: if the last renewal is older, any consumer's may be, and its lease may have expired.
_MAX_RENEWAL_GAP_SHARE: Final = 1 / 2
# How long a sweep bars others, as a share of the time between two renewals. It is less than one: a process that is
# alone is never barred by its own sweep.
_SWEEP_SHARE: Final = 0.8
# How many more delivery counts than messages are kept.
_MAX_STALE_COUNTS: Final = 10_000


class LeaseRenewer:
    """Renews leases while this process has active consumers, and requeues the messages of expired ones.

    It waits by a timer and not in a task: at the end of the event loop there is no task to cancel.

    If it could not renew in time, because this process stood still or the server was unavailable, other processes may
    have been as late. Then it recovers nothing for a lease, in which live consumers renew theirs.

    Args:
        client: Runs the commands.
        keys: The queue's.
        config: The lease.
        active: The consumers of this process that hold or await messages.
        recover: Requeues what an expired consumer holds.
        gauges: Gets the queue's depth and the number of dead letters.
    """

    def __init__(
        self,
        client: MonitoredRedisConnection,
        keys: QueueKeys,
        config: LeaseConfig,
        active: Collection[Consumer],
        recover: Callable[[Consumer], Awaitable[None]],
        gauges: QueueGauges,
    ) -> None:
        self._client = client
        self._keys = keys
        self._config = config
        self._active = active
        self._recover = recover
        self._gauges = gauges
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_end: AsyncGenerator[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether wake() was called since the last renewal began.
        self._is_woken = False
        # When leases were last renewed, or began; and when the next sweep may run, by the event loop's clock.
        self._renewed_at = self._sweeps_from = -inf
        self._has_checked_policy = False

    def wake(self) -> None:
        """Start renewing in the running event loop, unless that has begun."""
        self._is_woken = True
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # A closed event loop never runs its timers.
            self._loop, self._timer, self._task = loop, None, None
            self._loop_end = self._stop_at_loop_end()
            with suppress(StopIteration):
                self._loop_end.asend(None).send(None)
        if self._timer is None and self._task is None:
            self._renewed_at = loop.time()
            self._arm_timer(_RENEWAL_SHARE)

    def stop(self) -> None:
        """Stop renewing until ``wake`` is called again."""
        self._is_woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()

    async def _stop_at_loop_end(self) -> AsyncGenerator[None]:
        """Stop when ``asyncio.run`` ends the asynchronous generators of the event loop, of which this is one.

        It has cancelled all tasks then, but it still waits for threads, in which the timer would start a task.
        """
        try:
            yield
        finally:
            self.stop()
            if self._task is not None:
                await asyncio.wait([self._task])

    def _arm_timer(self, share: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._config.lease * share, self._start, context=Context())

    def _start(self) -> None:
        self._timer = None
        if self._active or self._is_woken:
            self._is_woken = False
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._on_done, context=Context())

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            if self._is_woken:
                self._arm_timer(_RENEWAL_SHARE)
            return
        error = task.exception()
        if isinstance(error, PoolClosedError):
            # A take on the pool, when it is open again, wakes this.
            return
        if error is not None:
            _LOGGER.warning("queue %r: lease renewal failed, retrying: %s", self._keys.queue, type(error).__qualname__)
        self._arm_timer(_RENEWAL_SHARE if error is None else _RENEWAL_SHARE * _RETRY_SHARE)

    async def _run(self) -> None:
        interval = self._config.lease * _RENEWAL_SHARE
        # The application made none of these calls.
        with suppressed():
            async with _available_client(self._client) as client:
                # The client's socket_timeout may be longer than a lease.
                async with asyncio.timeout(interval):
                    await self._renew(client)
                async with asyncio.timeout(interval):
                    await self._observe_server(client)
                    if asyncio.get_running_loop().time() >= self._sweeps_from:
                        await self._recover_expired(client)

    async def _renew(self, client: Redis) -> None:
        # Also without active consumers: the answer shows that leases of others could be renewed, too.
        renewing = register_command(self._keys, self._config, self._active)
        await execute_command(client, *renewing)
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at > self._config.lease * _MAX_RENEWAL_GAP_SHARE:
            self._sweeps_from = now + self._config.lease
        self._renewed_at = now

    async def _observe_server(self, client: Redis) -> None:
        # A user without the right to one of these commands has leases nevertheless.
        for key, name in ((self._keys.queue, "depth"), (self._keys.dead, "dead")):
            with suppress(ResponseError):
                self._gauges.update(**{name: await client.llen(key)})
        if not self._has_checked_policy:
            with suppress(ResponseError):
                self._warn_eviction(str((await client.info("memory")).get("maxmemory_policy")))
            self._has_checked_policy = True

    def _warn_eviction(self, policy: str) -> None:
        if policy.startswith("allkeys-"):
            _LOGGER.warning(
                "queue %r: the server's maxmemory-policy is %s, which deletes messages when memory is short: "
                "set noeviction or one of volatile-*",
                self._keys.queue,
                policy,
            )

    async def _recover_expired(self, client: Redis) -> None:
        keys = self._keys
        interval = int(self._config.milliseconds * _RENEWAL_SHARE * _SWEEP_SHARE)
        expired, registered = await client.eval(SWEEP.text, 3, keys.consumers, keys.sweeper, keys.deliveries, interval)
        active = {consumer.id for consumer in self._active}
        for each in expired:
            consumer = Consumer(keys, self._config, id_in(each))
            if consumer.id not in active:
                try:
                    await self._recover(consumer)
                except ResponseError as error:
                    # The other consumers' messages can still be requeued.
                    kind = type(error).__qualname__
                    _LOGGER.warning("queue %r: requeueing a dead consumer's messages failed: %s", keys.queue, kind)
        if registered:
            lists = [keys.processing(id_in(each)) for each in registered]
            declared = (keys.deliveries, keys.consumers, keys.queue, *lists)
            # Another program may have made one of them no list.
            with suppress(ResponseError):
                await client.eval(FORGET.text, len(declared), *declared, _MAX_STALE_COUNTS)


class _SafePool(ConnectionPool):
    def make_connection(self) -> AbstractConnection:
        return make_safe_connection(self)


@asynccontextmanager
async def _available_client(client: MonitoredRedisConnection) -> AsyncIterator[Redis]:
    """Give a client on the same server that waits for no connection; takes may occupy all of the pool's."""
    pool = client.connection_pool
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_open()
        if pool.is_sharing or isinstance(pool, MonitoredClusterPool):
            yield client
            return
    own = _SafePool(pool.connection_class, **pool.connection_kwargs)
    try:
        async with own:
            yield Redis(connection_pool=own)
    finally:
        # Cancelled once more while it closes them, as at the end of an event loop, redis-py's pool leaves some open.
        await wait_closed(close_all_now(own))
