"""Taking messages, acknowledging them, giving them back: at no time can one be lost."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError
from redis.typing import EncodableT

from aioredis_monitored.client import MonitoredRedisConnection
from aioredis_monitored.errors import LeaseLostError
from aioredis_monitored.fetching import SETTLE_SECONDS
from aioredis_monitored.leases import scripts
from aioredis_monitored.leases.consumer import Consumer, Take, Terms
from aioredis_monitored.leases.keeper import Keeper
from aioredis_monitored.leases.keys import Keys
from aioredis_monitored.patience import finish
from aioredis_monitored.retry import may_pass
from aioredis_monitored.script import MonitoredScript

# Seconds for which what may be repeated is tried again while the server cannot be reached, and between two attempts.
_PERSISTENCE: Final = 5.0
_PAUSE: Final = 0.05


class Leases:
    """What the consumers of a queue in this process hold.

    Args:
        client: What to do it on.
        keys: Those of the queue.
        terms: On what terms messages are held.
    """

    def __init__(self, client: MonitoredRedisConnection, keys: Keys, terms: Terms) -> None:
        self._client = client
        self._keys = keys
        self._terms = terms
        self._take = MonitoredScript(client, scripts.TAKE)
        self._acknowledge = MonitoredScript(client, scripts.ACKNOWLEDGE)
        self._give_back = MonitoredScript(client, scripts.GIVE_BACK)
        self._free: list[Consumer] = []
        self._alive: set[Consumer] = set()
        self._keeper = Keeper(client, keys, terms, self._alive, self._recover)

    async def take(self, count: int, seconds: float) -> Consumer | None:
        """Take what is there, or comes within so many seconds: as many as asked for of the former, one of the latter.

        Args:
            count: How many to take at most.
            seconds: How long to wait; ``math.inf`` for ever, 0 not at all.

        Returns:
            Who holds them now; ``None`` if there are none.

        Raises:
            redis.exceptions.RedisError: The server cannot be reached, or refuses.
        """
        consumer = self._free.pop() if self._free else Consumer(self._keys, self._terms)
        self._alive.add(consumer)
        self._keeper.wake()
        try:
            messages = await self._fetch(consumer, count, seconds)
        except BaseException:
            self._let_go(consumer, is_clean=False)
            raise
        if messages is None:
            self._let_go(consumer, is_clean=True)
            return None
        consumer.messages = messages
        # The queue may have been let go of while this waited.
        self._keeper.wake()
        return consumer

    async def _fetch(self, consumer: Consumer, count: int, seconds: float) -> list[bytes] | None:
        fetch = Take(consumer, self._keys.queue, count, self._take.sha, self._terms.lease / 3)
        try:
            messages: list[bytes] | None = await self._client.fetch(fetch, seconds, None)
        except NoScriptError:
            await self._take.load()
            messages = await self._client.fetch(fetch, seconds, None)
        return messages

    def _let_go(self, consumer: Consumer, *, is_clean: bool) -> None:
        self._alive.discard(consumer)
        consumer.messages = []
        if is_clean:
            self._free.append(consumer)

    async def acknowledge(self, consumer: Consumer) -> None:
        """Delete what it holds, also if this is cancelled, which is then a second late at most.

        Raises:
            LeaseLostError: It holds that no longer: another consumer has it.
            redis.exceptions.RedisError: The server cannot be reached; it comes back when the lease has ended.
        """
        if consumer not in self._alive:
            message = f"queue {self._keys.queue!r} was let go of: its messages are another consumer's now"
            raise LeaseLostError(message)
        try:
            await finish(lambda: self._acknowledged(consumer), SETTLE_SECONDS)
        except BaseException:
            self._let_go(consumer, is_clean=False)
            raise
        self._let_go(consumer, is_clean=not consumer.is_doubted)

    async def _acknowledged(self, consumer: Consumer) -> None:
        there = await self._persist(consumer, self._acknowledge, consumer.acknowledging(), ())
        lost = len(consumer.messages) - there
        # After an attempt without an answer, what is no longer there may have been deleted by that.
        if lost and not consumer.is_doubted:
            message = (
                f"queue {self._keys.queue!r}: {lost} of {len(consumer.messages)} messages are another consumer's now"
            )
            raise LeaseLostError(message)

    async def give_back(self, consumer: Consumer, side: str) -> None:
        """Put what it holds back, also if this is cancelled, which is then a second late at most.

        If the server cannot be reached, it comes back when the lease has ended.

        Args:
            consumer: Who holds it.
            side: The end of the queue, ``HEAD`` or ``TAIL``.
        """
        try:
            await finish(lambda: self._given_back(consumer, side, may_live=True), SETTLE_SECONDS)
        except RedisError:
            # Whoever gives back has an error of its own to tell.
            return
        finally:
            self._let_go(consumer, is_clean=False)

    async def _given_back(self, consumer: Consumer, side: str, *, may_live: bool) -> int:
        keys, arguments = consumer.giving_back(side, counts=True, may_live=may_live)
        count, is_more = 0, True
        while is_more:
            back, dead, is_more = await self._persist(consumer, self._give_back, keys, arguments)
            count += back + dead
        return count

    async def _recover(self, consumer: Consumer) -> None:
        await self._given_back(consumer, scripts.HEAD, may_live=False)

    async def _persist(
        self, consumer: Consumer, script: MonitoredScript, keys: Sequence[str], arguments: Sequence[EncodableT]
    ) -> Any:
        """Run a script that may be repeated until it is answered, for as long as that makes sense."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(_PERSISTENCE, self._terms.lease)
        was_doubted = consumer.is_doubted
        while True:
            try:
                consumer.is_doubted = True
                reply = await script.run_within(None, keys, *arguments)
            except RedisError as error:
                was_doubted = True
                if loop.time() > deadline or not may_pass(error):
                    raise
                await asyncio.sleep(_PAUSE)
            else:
                consumer.is_doubted = was_doubted
                return reply

    async def let_go(self) -> None:
        """Give back all that is held, and do no more until something is taken again."""
        self._keeper.stop()
        for consumer in list(self._alive):
            if consumer.messages:
                await self.give_back(consumer, scripts.HEAD)
