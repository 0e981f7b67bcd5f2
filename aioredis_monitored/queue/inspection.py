"""Looks at a queue without taking part in it: what ``queue.stats()`` and the command line show."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from aioredis_monitored._redispy.overrides import NEVER_DECODE
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.envelope import unseal
from aioredis_monitored.queue.consumer import QueueKeys, id_in
from aioredis_monitored.queue.scripts import PEEK
from aioredis_monitored.queue.telemetry import age_of

# How many consumers one command lists, and one pipeline asks about: more would keep the server busy.
_MAX_CONSUMERS: Final = 500


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a queue holds, and who consumes it; ``await queue.stats()`` returns it.

    Attributes:
        depth: How many messages wait in the queue.
        held: How many messages consumers of all processes hold, also dead ones that have not been recovered.
        dead: How many dead letters there are.
        consumers: How many consumers of all processes are alive: each holds messages, or waits for one, or has done so
            within its lease.
        oldest_age: Seconds since the message at the head was put, by the server's clock; ``None`` if there is none, or
            it does not say when: messages that were put with ``propagate=True`` do.
    """

    depth: int
    held: int
    dead: int
    consumers: int
    oldest_age: float | None


class DeadLetter(NamedTuple):
    """A dead letter.

    Attributes:
        size: The bytes of its payload.
        age: Seconds since it was put; ``None`` if it does not say when.
        payload: The payload; ``None`` if it was not asked for.
    """

    size: int
    age: float | None
    payload: bytes | None


class QueueInspector:
    """Reads what a queue holds; it changes nothing, and keeps the server busy for a moment only.

    Args:
        client: Runs the commands.
        keys: The queue's.
    """

    def __init__(self, client: MonitoredRedisConnection, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    async def stats(self) -> QueueStats:
        """Return what the queue holds, and how many consumers are alive.

        It is not read in one step: a message that is moved meanwhile may be counted twice or not at all.
        """
        (now, depth, head), dead, deadlines = await asyncio.gather(
            self._peek(self._keys.queue, 0, 1, with_payloads=False),
            self._client.llen(self._keys.dead),
            self._deadlines(),
        )
        held = await self._held_by(list(deadlines))
        alive = sum(deadline > now for deadline in deadlines.values())
        return QueueStats(depth, held, dead, alive, head[0].age if head else None)

    async def dead_letters(self, start: int, count: int, *, with_payloads: bool) -> tuple[int, list[DeadLetter]]:
        """Return how many dead letters there are, and some of them, the oldest first.

        Args:
            start: How many are left out.
            count: How many at most; the server is busy while it reads them.
            with_payloads: Whether their payloads leave the server.
        """
        _, total, letters = await self._peek(self._keys.dead, start, count, with_payloads=with_payloads)
        return total, letters

    async def _peek(
        self, key: str, start: int, count: int, *, with_payloads: bool
    ) -> tuple[float, int, list[DeadLetter]]:
        command = PEEK.eval((key,), (start, count, int(with_payloads)))
        now, length, found = await self._client.execute_command(*command, **{NEVER_DECODE: True})
        return now, length, [_letter(size, text, now / 1000, with_payloads=with_payloads) for size, text in found]

    async def _deadlines(self) -> Mapping[str, float]:
        """Return the deadlines of all registered consumers' leases, in milliseconds since 1970."""
        found: Any = self._client.zscan_iter(self._keys.consumers, count=_MAX_CONSUMERS)
        return {id_in(member): deadline async for member, deadline in found}

    async def _held_by(self, consumers: list[str]) -> int:
        held = 0
        for first in range(0, len(consumers), _MAX_CONSUMERS):
            async with self._client.pipeline("queue-stats", transaction=False) as pipe:
                for consumer in consumers[first : first + _MAX_CONSUMERS]:
                    pipe.llen(self._keys.processing(consumer))
                held += sum(await pipe.execute())
        return held


def _letter(size: int, text: bytes, now: float, *, with_payloads: bool) -> DeadLetter:
    """Make a dead letter of a message, or of the header of one."""
    rest, carrier = unseal(text)
    age = None if carrier is None else age_of(carrier, now)
    return DeadLetter(size - len(text) + len(rest), age, rest if with_payloads else None)
