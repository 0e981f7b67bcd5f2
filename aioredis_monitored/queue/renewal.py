"""Keeps what is held alive, and brings back what the dead have held."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from math import inf
from typing import Final

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from aioredis_monitored._commands.table import argument_text
from aioredis_monitored._redispy.connections import make_safe_connection
from aioredis_monitored._redispy.overrides import execute_command
from aioredis_monitored._redispy.sockets import close_all_now
from aioredis_monitored._telemetry.context import suppressed
from aioredis_monitored._telemetry.stats import QueueStats
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.queue.consumer import Consumer, LeaseConfig, QueueKeys, register_command
from aioredis_monitored.queue.scripts import FORGET, SWEEP

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# Of a lease: after two attempts in vain, a third one comes before it ends.
_INTERVAL: Final = 1 / 4
# Of that, while a fault lasts.
_RETRY_SHARE: Final = 1 / 4
# Of a lease: what was renewed so long ago may have ended, and so may the leases of all others.
_MAX_RENEWAL_GAP: Final = 1 / 2
# Of the interval, so that a single consumer finds its own mark gone.
_SWEEP_SHARE: Final = 0.8
_MAX_ID_LENGTH: Final = 64
# How many more messages may be counted than there are, before all counts are forgotten.
_MAX_STALE_COUNTS: Final = 10_000


class LeaseRenewer:
    """Renews the leases of a queue's consumers in this process, and recovers those of others, while there are any.

    A timer and no task: nothing is left to be cancelled when the event loop ends.

    When it could not renew them in time, because this process stood still or the server was away, others may have been
    as late: then it recovers nothing for a lease, in which those that live say so.

    Args:
        client: What to do it on.
        keys: Those of the queue.
        terms: How long a lease is.
        alive: The consumers of this process that hold or await something.
        recover: Gives back what a dead consumer has held.
        view: Told how many messages there are.
    """

    def __init__(
        self,
        client: MonitoredRedisConnection,
        keys: QueueKeys,
        terms: LeaseConfig,
        alive: Collection[Consumer],
        recover: Callable[[Consumer], Awaitable[None]],
        view: QueueStats,
    ) -> None:
        self._client = client
        self._keys = keys
        self._terms = terms
        self._alive = alive
        self._recover = recover
        self._stats = view
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False
        # When leases were last renewed, or began; and from when on others' may be taken for ended.
        self._renewed_at = self._sweeps_from = -inf
        self._has_checked_policy = False

    def wake(self) -> None:
        """Begin, unless that is done."""
        self._is_wanted = True
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # A timer of an event loop that has ended never comes.
            self._loop, self._timer, self._task = loop, None, None
        if self._timer is None and self._task is None:
            self._renewed_at = loop.time()
            self._arm_timer(_INTERVAL)

    def stop(self) -> None:
        """Do no more until it is woken again."""
        self._is_wanted = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()

    def _arm_timer(self, share: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._terms.lease * share, self._start, context=Context())

    def _start(self) -> None:
        self._timer = None
        if self._alive or self._is_wanted:
            self._is_wanted = False
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._on_done, context=Context())

    def _on_done(self, keeping: asyncio.Task[None]) -> None:
        self._task = None
        if keeping.cancelled():
            if self._is_wanted:
                self._arm_timer(_INTERVAL)
            return
        error = keeping.exception()
        if isinstance(error, PoolClosedError):
            # Until it is woken on an open one.
            return
        if error is not None:
            _LOGGER.warning("queue %r: leases were not renewed: %s", self._keys.queue, type(error).__qualname__)
        self._arm_timer(_INTERVAL if error is None else _INTERVAL * _RETRY_SHARE)

    async def _run(self) -> None:
        # It is nobody's call.
        interval = self._terms.lease * _INTERVAL
        with suppressed():
            async with _dedicated_client(self._client) as client:
                # A reply may take longer than a lease.
                async with asyncio.timeout(interval):
                    await self._renew(client)
                async with asyncio.timeout(interval):
                    await self._update_stats(client)
                    if asyncio.get_running_loop().time() >= self._sweeps_from:
                        await self._recover_expired(client)

    async def _renew(self, client: Redis) -> None:
        # Also if there are none: it is to be seen whether the server answers.
        renewing = register_command(self._keys, self._terms, self._alive)
        await execute_command(client, *renewing)
        now = asyncio.get_running_loop().time()
        if now - self._renewed_at > self._terms.lease * _MAX_RENEWAL_GAP:
            self._sweeps_from = now + self._terms.lease
        self._renewed_at = now

    async def _update_stats(self, client: Redis) -> None:
        # A user who may not look at one of them has leases all the same.
        for key, see in ((self._keys.queue, "depth"), (self._keys.dead, "dead")):
            with suppress(ResponseError):
                self._stats.update(**{see: await client.llen(key)})
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
        pause = int(self._terms.milliseconds * _INTERVAL * _SWEEP_SHARE)
        ended, known = await client.eval(SWEEP.text, 3, keys.consumers, keys.sweeper, keys.deliveries, pause)
        here = {consumer.id for consumer in self._alive}
        for each in ended:
            consumer = Consumer(keys, self._terms, argument_text(each, _MAX_ID_LENGTH))
            if consumer.id not in here:
                try:
                    await self._recover(consumer)
                except ResponseError as error:
                    # The others are none the worse for it.
                    kind = type(error).__qualname__
                    _LOGGER.warning("queue %r: what a dead consumer has held cannot come back: %s", keys.queue, kind)
        if known:
            lists = [keys.processing(argument_text(each, _MAX_ID_LENGTH)) for each in known]
            declared = (keys.deliveries, keys.consumers, keys.queue, *lists)
            # One of them may be no list.
            with suppress(ResponseError):
                await client.eval(FORGET.text, len(declared), *declared, _MAX_STALE_COUNTS)


class _SafePool(ConnectionPool):
    def make_connection(self) -> AbstractConnection:
        return make_safe_connection(self)


@asynccontextmanager
async def _dedicated_client(client: MonitoredRedisConnection) -> AsyncIterator[Redis]:
    """A client like this one that need not wait for a connection: others may wait for messages on all of them."""
    pool = client.connection_pool
    if isinstance(pool, MonitoredConnectionPool):
        pool.check_open()
        if pool.multiplexer is not None:
            yield client
            return
    own = _SafePool(pool.connection_class, **pool.connection_kwargs)
    try:
        async with own:
            yield Redis(connection_pool=own)
    finally:
        # Cancelled once more while it closes them, as at the end of an event loop, redis-py's pool leaves some open.
        close_all_now(own)
