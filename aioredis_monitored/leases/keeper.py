"""Keeps what is held alive, and brings back what the dead have held."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextvars import Context
from typing import Final

from aioredis_monitored.client import MonitoredRedisConnection
from aioredis_monitored.commands import text_of
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.leases.consumer import Consumer, Terms
from aioredis_monitored.leases.keys import Keys
from aioredis_monitored.telemetry.ambience import silence
from aioredis_monitored.telemetry.queueview import QueueView

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")

# Of a lease: after two attempts in vain, a third one comes before it ends.
_INTERVAL: Final = 1 / 4
# Of that, while a fault lasts.
_AGAIN: Final = 1 / 4
# Of the interval, so that a single consumer finds its own mark gone.
_SWEEPING: Final = 0.8
_LONGEST_ID: Final = 64


class Keeper:
    """Renews the leases of a queue's consumers in this process, and recovers those of others, while there are any.

    A timer and no task: nothing is left to be cancelled when the event loop ends.

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
        keys: Keys,
        terms: Terms,
        alive: Collection[Consumer],
        recover: Callable[[Consumer], Awaitable[None]],
        view: QueueView,
    ) -> None:
        self._client = client
        self._keys = keys
        self._terms = terms
        self._alive = alive
        self._recover = recover
        self._view = view
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._is_wanted = False

    def wake(self) -> None:
        """Begin, unless that is done."""
        self._is_wanted = True
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # A timer of an event loop that has ended never comes.
            self._loop, self._timer, self._keeping = loop, None, None
        if self._timer is None and self._keeping is None:
            self._watch(_INTERVAL)

    def stop(self) -> None:
        """Do no more until it is woken again."""
        self._is_wanted = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._keeping is not None:
            self._keeping.cancel()

    def _watch(self, share: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._terms.lease * share, self._begin, context=Context())

    def _begin(self) -> None:
        self._timer = None
        if self._alive or self._is_wanted:
            self._is_wanted = False
            self._keeping = asyncio.get_running_loop().create_task(self._keep())
            self._keeping.add_done_callback(self._has_kept, context=Context())

    def _has_kept(self, keeping: asyncio.Task[None]) -> None:
        self._keeping = None
        if keeping.cancelled():
            if self._is_wanted:
                self._watch(_INTERVAL)
            return
        error = keeping.exception()
        if isinstance(error, PoolClosedError):
            # Until it is woken on an open one.
            return
        if error is not None:
            _LOGGER.warning("queue %r: leases were not renewed: %s", self._keys.queue, type(error).__qualname__)
        self._watch(_INTERVAL if error is None else _INTERVAL * _AGAIN)

    async def _keep(self) -> None:
        # It is nobody's call.
        interval = self._terms.lease * _INTERVAL
        with silence():
            # A reply may take longer than a lease.
            async with asyncio.timeout(interval):
                await self._renew()
            async with asyncio.timeout(interval):
                await self._sweep()

    async def _renew(self) -> None:
        async with self._client.pipeline(transaction=False) as pipe:
            for consumer in self._alive:
                for command in consumer.registration():
                    pipe.execute_command(*command)
            pipe.llen(self._keys.queue)
            pipe.llen(self._keys.dead)
            *_, depth, dead = await pipe.execute()
        self._view.see(depth=depth, dead=dead)

    async def _sweep(self) -> None:
        keys, client = self._keys, self._client
        pause = int(self._terms.milliseconds * _INTERVAL * _SWEEPING)
        if not await client.set(keys.sweeper, 1, nx=True, px=pause):
            return
        here = {consumer.id for consumer in self._alive}
        known = [
            Consumer(keys, self._terms, text_of(each, _LONGEST_ID)) for each in await client.smembers(keys.consumers)
        ]
        others = [consumer for consumer in known if consumer.id not in here]
        async with client.pipeline(transaction=False) as pipe:
            for consumer in others:
                pipe.exists(consumer.heartbeat)
            lives = await pipe.execute()
        for consumer, is_alive in zip(others, lives, strict=True):
            if not is_alive:
                await self._recover(consumer)
