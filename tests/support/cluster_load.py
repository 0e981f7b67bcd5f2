"""A load on a cluster whose every write is accounted for: what was acknowledged, what is stored, what failed and when.

A write is a command that must not be repeated: INCR, RPUSH of a unique text, a pipeline's commands, a transaction.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import NamedTuple

from redis.crc import key_slot
from redis.exceptions import RedisError, WatchError

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.errors import MonitoredRedisError
from aioredis_monitored.pool.cluster import MonitoredClusterPool

HUNG_SECONDS = 90.0  # for a call whose deadline is five seconds, or thirty
SHOWN = 5  # errors shown of each kind
FAILED = object()
SLOTS = 16384


class CountingPool(MonitoredClusterPool):
    """A cluster's pool that counts redirects and refreshes."""

    def __init__(self, *arguments, **options):
        self.counts = Counter()
        super().__init__(*arguments, **options)

    def on_redirect(self, kind):
        self.counts[kind] += 1
        super().on_redirect(kind)

    def on_refresh(self):
        self.counts["refreshes"] += 1
        super().on_refresh()


class Ended(NamedTuple):
    """A write that has ended, with an error or without."""

    slot: int
    began: float
    at: float
    has_failed: bool


def tags_in(slots, count):
    """Return hash tags whose slots are among the given ones, spread evenly over these."""
    wanted = {slot: -(-count // len(slots)) for slot in slots}
    tags = []
    number = 0
    while len(tags) < count:
        slot = key_slot(b"%d" % number)
        if wanted.get(slot):
            wanted[slot] -= 1
            tags.append(str(number))
        number += 1
    return tags


class Load:
    """Callers that write and read keys with some hash tags until they are told to stop.

    Args:
        client: The client.
        tags: The hash tags.
        seed: The seed of all random choices.
        callers: How many there are.
        pause: The most seconds that a caller waits between two calls.
        transactions: Whether there are transactions and watched keys besides.
    """

    def __init__(self, client, tags, seed, *, callers=64, pause=0.0, transactions=False):
        self.client, self.tags, self.callers, self.pause = client, tags, callers, pause
        self.slots = {tag: key_slot(tag.encode()) for tag in tags}
        self.dice = random.Random(seed)
        self.prefix = f"load{seed}"
        self.ways = [self.increment, self.push, self.read, self.batch]
        if transactions:
            self.ways += [self.transaction, self.watch]
        self.is_over = False
        self.numbers = 0
        self.calls = self.hung = self.stale = self.lost_watches = 0
        self.attempted, self.acknowledged = Counter(), Counter()
        self.pushed = {}  # whether a pushed text was acknowledged
        self.errors, self.wrong = Counter(), []
        # Writes in flight: their slots and when they began.
        self.in_flight = {}
        self.ended = []
        self.slowest = 0.0

    def key(self, tag, kind):
        return f"{{{tag}}}:{self.prefix}:{kind}"

    @asynccontextmanager
    async def running(self):
        """Let the callers work while the block runs."""
        self.is_over = False
        tasks = [asyncio.create_task(self.work()) for _ in range(self.callers)]
        try:
            yield self
        finally:
            self.is_over = True
            await asyncio.gather(*tasks)

    async def work(self):
        while not self.is_over:
            await self.dice.choice(self.ways)(self.dice.choice(self.tags))
            # Each caller gives way, also while no call has to wait.
            await asyncio.sleep(self.dice.uniform(0, self.pause) if self.pause else 0)

    async def reach(self, calls):
        """Return when that number of further calls was made."""
        goal = self.calls + calls
        while self.calls < goal:
            await asyncio.sleep(0.01)

    def begin_watching(self):
        """Forget the times of calls so far: the next ones are those around a fault."""
        self.ended.clear()
        self.slowest = 0.0

    async def call(self, name, call, *slots):
        """Return the reply, or ``FAILED``; the slots are those of the writes in the call."""
        self.calls += 1
        self.numbers += 1
        number, began = self.numbers, time.monotonic()
        self.in_flight[number] = (slots, began)
        result = FAILED
        try:
            async with asyncio.timeout(HUNG_SECONDS) as limit:
                result = await call
        except (RedisError, MonitoredRedisError) as error:
            self.fail(name, error)
        except TimeoutError:
            if not limit.expired():
                raise
            self.hung += 1
        del self.in_flight[number]
        now = time.monotonic()
        self.slowest = max(self.slowest, now - began)
        replies = result if isinstance(result, list) and len(slots) > 1 else [result] * len(slots)
        self.ended += [
            Ended(slot, began, now, reply is FAILED or isinstance(reply, Exception))
            for slot, reply in zip(slots, replies, strict=True)
        ]
        return result

    def fail(self, name, error):
        self.errors[f"{name} {type(error).__name__}: {error}"[:160]] += 1

    def text(self):
        self.numbers += 1
        text = b"text %d" % self.numbers
        self.pushed[text] = False
        return text

    def count(self, key, reply):
        """Account for a counter's reply."""
        self.acknowledged[key] += 1
        if not 0 < reply <= self.attempted[key]:
            self.wrong.append(f"{key}: {reply} of {self.attempted[key]}")

    async def increment(self, tag):
        key = self.key(tag, "count")
        self.attempted[key] += 1
        reply = await self.call("INCR", self.client.incr(key), self.slots[tag])
        if reply is not FAILED:
            self.count(key, reply)

    async def push(self, tag):
        text = self.text()
        reply = await self.call("RPUSH", self.client.rpush(self.key(tag, "list"), text), self.slots[tag])
        self.pushed[text] = reply is not FAILED

    async def read(self, tag):
        key = self.key(tag, "count")
        least = self.acknowledged[key]
        reply = await self.call("GET", self.client.get(key))
        if reply is not FAILED:
            self.check_read(key, reply, least)

    def check_read(self, key, reply, least):
        value = int(reply or 0)
        self.stale += value < least
        if value > self.attempted[key]:
            self.wrong.append(f"{key}: read {value} of {self.attempted[key]}")

    async def batch(self, tag):
        """Make a pipeline whose commands go to three slots."""
        tags = [tag, self.dice.choice(self.tags), self.dice.choice(self.tags)]
        keys = [self.key(tags[0], "count"), self.key(tags[1], "list"), self.key(tags[2], "count")]
        text, least = self.text(), self.acknowledged[keys[2]]
        self.attempted[keys[0]] += 1
        pipe = self.client.pipeline(transaction=False).incr(keys[0]).rpush(keys[1], text).get(keys[2])
        replies = await self.call("pipeline", pipe.execute(raise_on_error=False), *map(self.slots.get, tags))
        if replies is FAILED:
            return
        for reply in replies:
            if isinstance(reply, Exception):
                self.fail("pipeline", reply)
        if not isinstance(replies[0], Exception):
            self.count(keys[0], replies[0])
        self.pushed[text] = not isinstance(replies[1], Exception)
        if not isinstance(replies[2], Exception):
            self.check_read(keys[2], replies[2], least)

    async def transaction(self, tag):
        keys = [self.key(tag, kind) for kind in ("left", "right")]
        self.attempted.update(keys)
        pipe = self.client.pipeline().incr(keys[0]).incr(keys[1])
        reply = await self.call("MULTI", pipe.execute(), self.slots[tag])
        if reply is not FAILED:
            for key, value in zip(keys, reply, strict=True):
                self.count(key, value)
            if reply[0] != reply[1]:
                self.wrong.append(f"transaction of {tag}: {reply}")

    async def watch(self, tag):
        keys = [self.key(tag, kind) for kind in ("watched", "copies")]
        self.attempted.update(keys)
        value = await self.call("WATCH", self.increment_watched(*keys), self.slots[tag])
        if value is None:
            # Another caller was faster, or the slot moved: nothing was applied.
            self.lost_watches += 1
            self.attempted.subtract(keys)
        elif value is not FAILED:
            self.acknowledged.update(keys)

    async def increment_watched(self, watched, copies):
        async with self.client.pipeline() as pipe:
            try:
                await pipe.watch(watched)
                value = int(await pipe.get(watched) or 0) + 1
                pipe.multi()
                pipe.set(watched, value).incr(copies)
                return await pipe.execute()
            except WatchError:
                return None


class Account(NamedTuple):
    """What is stored, compared with what was acknowledged; numbers of writes.

    Attributes:
        duplicates: Stored more often than sent.
        lost: Acknowledged and not stored.
        unacknowledged: Stored, and answered by an error.
        torn: Transactions that are stored in part.
    """

    duplicates: int
    lost: int
    unacknowledged: int
    torn: int


async def account(load, url):
    """Return what is stored, as a new client sees it."""
    duplicates = lost = unacknowledged = torn = 0
    async with MonitoredRedisConnection.from_url(url, max_connections=2) as client:
        stored = Counter()
        values = {key: int(await client.get(key) or 0) for key in load.attempted}
        for key, value in values.items():
            duplicates += max(0, value - load.attempted[key])
            lost += max(0, load.acknowledged[key] - value)
            unacknowledged += max(0, min(value, load.attempted[key]) - load.acknowledged[key])
        for tag in load.tags:
            texts = await client.lrange(load.key(tag, "list"), 0, -1)
            stored.update(texts)
            for one, other in (("left", "right"), ("watched", "copies")):
                torn += abs(values.get(load.key(tag, one), 0) - values.get(load.key(tag, other), 0))
    duplicates += sum(count - 1 for count in stored.values())
    for text, is_acknowledged in load.pushed.items():
        lost += is_acknowledged and text not in stored
        unacknowledged += not is_acknowledged and text in stored
    load.wrong += [f"{text} was never sent" for text in stored.keys() - load.pushed.keys()]
    return Account(duplicates, lost, unacknowledged, torn)
