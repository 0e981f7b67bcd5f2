"""Let many tasks use all of a client through fifteen minutes of faults: what is wrong, lost, hung or left over?

A separate program. Each event loop has a server, a proxy in front of it and a process with the client, all running at
the same time. This process makes the faults, so that tasks, sockets and memory of the other one are the client's. Every
reply is unique, and doubtful outcomes are recorded as such. The program prints its figures, and exits with 0 only if
every figure passes.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import itertools
import json
import logging
import os
import random
import statistics
import sys
import time
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import redis.asyncio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from redis.exceptions import RedisError, WatchError

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, MonitoredRedisConnection, TimedOutError
from aioredis_monitored.errors import MonitoredRedisError
from aioredis_monitored.testing import FaultProxy, RedisServer

LOOPS = ("asyncio", "uvloop")
SOCKET_TIMEOUT = 2.0
HUNG_SECONDS = 60.0  # for a call whose deadline is seconds
SETTLE_SECONDS = 60.0  # for leftovers after the faults
END_SECONDS = 300.0  # for the client's process to end when asked to
WARM_SECONDS = 60.0  # before memory is measured for the first time
THINK_SECONDS = 0.1  # maximum between the calls of one task; the mean is half of it
LEASE = 5.0
LOCK_SECONDS = 20.0
SHARING = 10  # tasks that share a lock, or a watched key
BACKLOG = 200  # messages in a queue above which nothing is put
SHOWN = 10  # errors shown of each kind
SCRIPT = "return {ARGV[1], redis.call('INCR', KEYS[1])}"

FAILED = object()


# The client: a process.


class Tally:
    """A counter on the server, and its callers' attempts and acknowledgements."""

    def __init__(self):
        self.attempted = self.acknowledged = self.last = 0
        self.written = {}

    def is_right(self, stored):
        return self.acknowledged <= stored <= self.attempted


class Ledger:
    """Messages of a queue, each kept until its fate is known."""

    def __init__(self):
        self.open = {}
        self.put = self.received = self.again = 0

    def attempt(self, message):
        self.open[message] = False

    def acknowledge(self, message):
        self.put += 1
        # Unless it has been received meanwhile.
        if message in self.open:
            self.open[message] = True

    def receive(self, message):
        """Record a message; return whether it was received for the first time."""
        self.received += 1
        is_first = self.open.pop(message, None) is not None
        self.again += not is_first
        return is_first

    def lost(self):
        """Return how many messages were acknowledged and not received."""
        return sum(self.open.values())


class Load:
    """The state that all tasks share: what they have done and found.

    Args:
        clients: A client with a shared connection and one without.
        seed: The seed of all random choices.
    """

    def __init__(self, clients, seed):
        self.clients = clients
        self.dice = random.Random(seed)
        self.is_over = False
        self.calls, self.failed, self.foreign = Counter(), Counter(), Counter()
        self.wrong, self.hung = [], []
        self.ended_subscriptions = 0
        self.tallies, self.inside = {}, Counter()
        self.ledgers = {name: Ledger() for name in ("get", "take", "consume")}
        self.numbers = itertools.count()

    def tally(self, key):
        return self.tallies.setdefault(key, Tally())

    def expect(self, expected, actual, what):
        if expected != actual:
            self.wrong.append(f"{what}: {actual!r} instead of {expected!r}")

    def note_foreign(self, error):
        self.foreign[type(error).__name__] += 1
        if self.foreign.total() <= SHOWN:
            traceback.print_exception(error)

    def note_unheard(self, context):
        """Record an exception that only the event loop's handler has received."""
        self.foreign[context["message"]] += 1
        if self.foreign.total() <= SHOWN:
            print(context, file=sys.stderr)
            if "exception" in context:
                traceback.print_exception(context["exception"])

    async def call(self, name, call):
        """Return the reply, or ``FAILED`` if an error says that there is none."""
        self.calls[name] += 1
        try:
            async with asyncio.timeout(HUNG_SECONDS) as limit:
                return await call
        except (RedisError, MonitoredRedisError) as error:
            self.failed[f"{name} {type(error).__name__}"] += 1
        except Exception as error:  # noqa: BLE001 - any other error is a finding
            if limit.expired():
                self.hung.append(name)
            else:
                self.note_foreign(error)
        return FAILED

    async def think(self):
        await asyncio.sleep(self.dice.uniform(0, THINK_SECONDS))


class Caller:
    """One task with keys of its own, and some that it shares with others.

    Args:
        load: The shared state.
        client: The client to use.
        number: The task's number.
    """

    def __init__(self, load, client, number):
        self.load, self.client, self.name = load, client, f"caller:{number}"
        self.group = number // SHARING
        self.generation = itertools.count()
        self.key, self.value = self._new_key(), None
        self.script = client.register_script(SCRIPT)
        self.ways = [
            self.echo,
            self.set_and_get,
            self.increment,
            self.pipeline,
            self.transaction,
            self.run_script,
            self.watch,
            self.lock,
        ]

    def _new_key(self):
        return f"{self.name}:{next(self.generation)}"

    def token(self):
        return b"%s-%d" % (self.name.encode(), next(self.load.numbers))

    async def work(self):
        while not self.load.is_over:
            await self.load.dice.choice(self.ways)()
            await self.load.think()

    async def echo(self):
        token = self.token() * self.load.dice.choice([1, 1, 1, 100])
        reply = await self.load.call("ECHO", self.client.echo(token))
        if reply is not FAILED:
            self.load.expect(token, reply, "ECHO")

    async def set_and_get(self):
        value = self.token()
        if await self.load.call("SET", self.client.set(self.key, value, ex=600)) is FAILED:
            # The write may still run, at any time: this key stays in doubt.
            self.key, self.value = self._new_key(), None
            return
        self.value = value
        reply = await self.load.call("GET", self.client.get(self.key))
        if reply is not FAILED:
            self.load.expect(self.value, reply, "GET")

    async def count(self, name, key, call, number_of=int):
        """Make a call that increments one of this task's counters; return the reply."""
        tally = self.load.tally(key)
        tally.attempted += 1
        reply = await self.load.call(name, call)
        if reply is not FAILED:
            number = number_of(reply)
            if not max(tally.last + 1, tally.acknowledged + 1) <= number <= tally.attempted:
                self.load.wrong.append(f"{name}: {number} after {tally.last}, of {tally.attempted}")
            tally.last = number
            tally.acknowledged += 1
        return reply

    async def increment(self):
        key = f"{self.name}:incr"
        await self.count("INCR", key, self.client.incr(key))

    async def pipeline(self):
        key, token = f"{self.name}:batch", self.token()
        batch = self.client.pipeline(transaction=False).echo(token).incr(key).exists("missing").echo(token)
        reply = await self.count("pipeline", key, batch.execute(), lambda replies: replies[1])
        if reply is not FAILED:
            self.load.expect([token, reply[1], 0, token], reply, "pipeline")

    async def transaction(self):
        key, token = f"{self.name}:multi", self.token()
        batch = self.client.pipeline().incr(key).incr(f"{key}:twin").echo(token)
        reply = await self.count("MULTI", key, batch.execute(), lambda replies: replies[0])
        if reply is not FAILED:
            self.load.expect([reply[0], reply[0], token], reply, "MULTI")

    async def run_script(self):
        key, token = f"{self.name}:script", self.token()
        reply = await self.count("script", key, self.script([key], [token]), lambda reply: reply[1])
        if reply is not FAILED:
            self.load.expect(token, reply[0], "script")

    async def watch(self):
        key = f"watched:{self.group}"
        await self.load.call("WATCH", self._increment_watched(key, self.load.tally(key)))

    async def _increment_watched(self, key, tally):
        async with self.client.pipeline() as pipe:
            await pipe.watch(key)
            value = int(await pipe.get(key) or 0) + 1
            pipe.multi()
            pipe.set(key, value)
            tally.attempted += 1
            sent = time.monotonic()
            try:
                reply = await pipe.execute()
            except WatchError:
                # Another task was faster and nothing was executed, or the connection is lost and the outcome unknown.
                return
        self.load.expect([True], reply, "EXEC")
        tally.acknowledged += 1
        # Two that overlap show an update that nothing watched; the later one of two that do not, a server that has
        # forgotten what it had acknowledged.
        span = f"from {sent:.3f} to {time.monotonic():.3f}"
        if (earlier := tally.written.setdefault(value, span)) != span:
            self.load.wrong.append(f"{key}: {value} was written {earlier} and {span}")
        # The memory of this process is measured.
        tally.written.pop(value - SHARING * 5, None)

    async def lock(self):
        name = f"lock:{self.group}"
        lock = self.client.lock(name, timeout=LOCK_SECONDS, sleep=0.02, blocking_timeout=0.5)
        if await self.load.call("lock", lock.acquire()) is not True:
            return
        self.load.inside[name] += 1
        self.load.expect(1, self.load.inside[name], "holders of a lock")
        await asyncio.sleep(self.load.dice.uniform(0, 0.01))
        self.load.inside[name] -= 1
        await self.load.call("release", lock.release())


class Producer:
    """Puts messages into the queues; each message is unique.

    Args:
        load: The shared state.
        client: The client to use.
    """

    def __init__(self, load, client):
        self.load = load
        self.queues = {name: MessageQueue(name, client, lease=LEASE) for name in load.ledgers}

    async def work(self):
        while not self.load.is_over:
            name = self.load.dice.choice(list(self.queues))
            ledger = self.load.ledgers[name]
            if len(ledger.open) < BACKLOG:
                message = b"message %d" % next(self.load.numbers)
                ledger.attempt(message)
                if await self.load.call("put", self.queues[name].put(message)) is not FAILED:
                    ledger.acknowledge(message)
            await self.load.think()


class Consumers:
    """Receive messages until all that were put have been received, or a deadline has passed.

    Args:
        load: The shared state.
    """

    def __init__(self, load):
        self.load = load
        self.are_over = False
        self.failed_gets = 0

    async def get(self, client):
        queue = MessageQueue("get", client)
        while not self.are_over:
            message = await self.load.call("get", or_nothing(queue.get(1)))
            if message is FAILED:
                self.failed_gets += 1
                await self.load.think()
            elif message is not None and not self.load.ledgers["get"].receive(message):
                self.load.wrong.append(f"get: {message!r} came twice")

    async def take(self, client):
        async with MessageQueue("take", client, lease=LEASE) as queue:
            while not self.are_over:
                if await self.load.call("take", or_nothing(self._take_one(queue))) is FAILED:
                    await self.load.think()

    async def _take_one(self, queue):
        async with queue.take(1) as message:
            await asyncio.sleep(self.load.dice.uniform(0, 0.01))
            self.load.ledgers["take"].receive(message)

    async def consume(self, client):
        async def handle(message):
            await asyncio.sleep(self.load.dice.uniform(0, 0.01))
            self.load.ledgers["consume"].receive(message)

        async with MessageQueue("consume", client, lease=LEASE) as queue:
            await queue.consume(handle, concurrency=4)

    def has_all(self):
        return not any(ledger.lost() for ledger in self.load.ledgers.values())


async def or_nothing(call):
    try:
        return await call
    except TimedOutError:
        return None


class Publisher:
    """Publishes in channels; starts a new generation of numbers when the outcome of a message is unknown.

    Args:
        load: The shared state.
        client: The client to use.
        number: The task's number.
        channels: The channels to publish in.
    """

    def __init__(self, load, client, number, channels):
        self.load, self.client, self.number, self.channels = load, client, number, channels

    async def work(self):
        generation, count = 0, 0
        while not self.load.is_over:
            channel = self.load.dice.choice(self.channels)
            count += 1
            message = f"{channel} {self.number} {generation} {count}"
            if await self.load.call("PUBLISH", self.client.publish(channel, message)) is FAILED:
                # The message may still arrive, behind later ones.
                generation += 1
            await self.load.think()


class Subscriber:
    """Subscribes to one channel; checks that its messages were meant for it and are in order.

    Args:
        load: The shared state.
        client: The client to use.
        channel: The channel.
    """

    def __init__(self, load, client, channel):
        self.load, self.client, self.channel = load, client, channel
        self.heard = {}
        self.count = 0
        self.has_heard_the_end = False

    async def listen(self):
        await self._until_cancelled(self._listen)

    async def poll(self):
        await self._until_cancelled(self._poll)

    async def _until_cancelled(self, receive):
        while True:
            try:
                async with self.client.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await receive(pubsub)
            except RedisError as error:
                self.load.ended_subscriptions += 1
                self.load.failed[f"subscription {type(error).__name__}"] += 1
                await self.load.think()
            except Exception as error:  # noqa: BLE001 - any other error is a finding
                self.load.note_foreign(error)
                await self.load.think()

    async def _listen(self, pubsub):
        await pubsub.psubscribe(f"{self.channel}*")
        async for message in pubsub.listen():
            self.hear(message)

    async def _poll(self, pubsub):
        await pubsub.subscribe(self.channel)
        while True:
            message = await pubsub.get_message(timeout=1)
            if message is not None:
                self.hear(message)

    def hear(self, message):
        self.count += 1
        channel, publisher, *place = message["data"].decode().split()
        self.load.expect(self.channel, channel, "channel")
        if publisher == "end":
            self.has_heard_the_end = True
            return
        place, before = tuple(map(int, place)), self.heard.get(publisher, (0, 0))
        if place[0] < before[0]:
            return
        if place <= before:
            self.load.wrong.append(f"a message came late or twice: {place} after {before}")
        self.heard[publisher] = place


@dataclass
class Held:
    """The resources of the process."""

    tasks: int
    descriptors: int
    sockets: int

    @classmethod
    def now(cls):
        gc.collect()
        links = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
                links.append(str(descriptor.readlink()))
        return cls(len(asyncio.all_tasks()), len(links), sum(link.startswith("socket:") for link in links))


def resident():
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


async def until(condition, seconds):
    """Return whether the condition came true within the given seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return found


async def be_told_to_end():
    """Wait until stdin is closed, which also happens when the program dies."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())


async def watch_memory(samples):
    began = time.monotonic()
    while True:
        # Garbage is no leak, nor is memory that the C library has not returned, of which the amount varies.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        samples.append((time.monotonic() - began, resident()))
        await asyncio.sleep(2)


def growth(samples):
    """Return by how many percent memory has grown since the first minute, or since the first half of a shorter run.

    Args:
        samples: Pairs of seconds since the start, and bytes.
    """
    seconds = samples[-1][0]
    width, warm = max(5.0, seconds / 20), min(WARM_SECONDS, seconds / 2)
    first = [size for at, size in samples if warm <= at <= warm + width]
    last = [size for at, size in samples if at >= seconds - width]
    return 100 * (statistics.median(last) / statistics.median(first) - 1)


async def load_until_told(load, asked, samples):
    """Run the tasks until stdin is closed, then let them finish; return the consumers and subscribers."""
    clients = itertools.cycle(load.clients)
    share = max(1, asked.tasks // 20)
    consumers = Consumers(load)
    channels = [f"news:{number}." for number in range(2 * share)]
    subscribers = [Subscriber(load, next(clients), channel) for channel in channels]
    publishers = [Publisher(load, next(clients), number, channels) for number in range(share)]
    producers = [Producer(load, next(clients)) for _ in range(2 * share)]
    receiving = [
        *(consumers.get(next(clients)) for _ in range(share)),
        *(consumers.take(next(clients)) for _ in range(2 * share)),
        consumers.consume(load.clients[0]),
    ]
    hearing = [each.listen() if number % 2 else each.poll() for number, each in enumerate(subscribers)]
    rest = asked.tasks - len(publishers) - len(producers) - len(receiving) - len(hearing)
    callers = [Caller(load, next(clients), number) for number in range(max(1, rest))]

    watching = asyncio.create_task(watch_memory(samples))
    working = [asyncio.create_task(each.work()) for each in (*callers, *publishers, *producers)]
    *taking, consuming = [asyncio.create_task(each) for each in receiving]
    listening = [asyncio.create_task(each) for each in hearing]
    print("ready", flush=True)
    await be_told_to_end()
    watching.cancel()
    load.is_over = True
    for error in await asyncio.gather(*working, return_exceptions=True):
        if error is not None:
            load.note_foreign(error)
    await until(consumers.has_all, SETTLE_SECONDS)
    await _tell_the_end(load, subscribers)
    consumers.are_over = True
    if consuming.done():
        load.foreign["consume has ended"] += 1
    for task in (*listening, consuming):
        task.cancel()
    for outcome in await asyncio.gather(*taking, *listening, consuming, watching, return_exceptions=True):
        if outcome is not None and not isinstance(outcome, asyncio.CancelledError):
            load.note_foreign(outcome)
    return consumers, subscribers


async def _tell_the_end(load, subscribers):
    deadline = time.monotonic() + SETTLE_SECONDS
    while not all(each.has_heard_the_end for each in subscribers) and time.monotonic() < deadline:
        for each in subscribers:
            await load.call("PUBLISH", load.clients[0].publish(each.channel, f"{each.channel} end"))
        await asyncio.sleep(0.5)


async def check_counters(load, url):
    async with redis.asyncio.Redis.from_url(url) as admin:
        for key, tally in load.tallies.items():
            if not tally.is_right(stored := int(await admin.get(key) or 0)):
                load.wrong.append(f"{key}: {stored} of {tally.acknowledged} to {tally.attempted}")


async def work(asked):
    """Run the tasks, and return their findings."""
    loop = asyncio.get_running_loop()
    samples = []
    # An event loop keeps the resources that it opens for itself.
    _, writer = await asyncio.open_connection(*asked.direct.removeprefix("redis://").split(":"))
    writer.close()
    await writer.wait_closed()
    before = Held.now()
    providers = {
        "tracer_provider": TracerProvider(),
        "meter_provider": MeterProvider([InMemoryMetricReader()]),
    }
    options = {"socket_timeout": SOCKET_TIMEOUT, "max_connections": asked.tasks, "timeout": 10, **providers}
    pools = [MonitoredConnectionPool.from_url(asked.url, multiplex=multiplex, **options) for multiplex in (True, False)]
    load = Load([MonitoredRedisConnection(connection_pool=pool) for pool in pools], asked.seed)
    loop.set_exception_handler(lambda _, context: load.note_unheard(context))
    try:
        consumers, subscribers = await load_until_told(load, asked, samples)
    finally:
        for pool in pools:
            await pool.aclose()
    await check_counters(load, asked.direct)
    for provider in providers.values():
        provider.shutdown()
    for _ in range(10):
        await asyncio.sleep(0.01)
    after = Held.now()
    for text in [*load.wrong[:SHOWN], *load.hung[:SHOWN], *load.foreign]:
        print(text, file=sys.stderr)
    return {
        "calls": sum(load.calls.values()),
        "failed": sum(load.failed.values()),
        "wrong": len(load.wrong),
        "hung": len(load.hung),
        "other_errors": sum(load.foreign.values()),
        "put": sum(ledger.put for ledger in load.ledgers.values()),
        "received_again": load.ledgers["take"].again + load.ledgers["consume"].again,
        "lost_by_take": load.ledgers["take"].lost(),
        "lost_by_consume": load.ledgers["consume"].lost(),
        "lost_by_get": load.ledgers["get"].lost(),
        "failed_gets": consumers.failed_gets,
        "heard": sum(each.count for each in subscribers),
        "ended_subscriptions": load.ended_subscriptions,
        "deaf_subscribers": sum(not each.has_heard_the_end for each in subscribers),
        "tasks_left": after.tasks - before.tasks,
        "descriptors_left": after.descriptors - before.descriptors,
        "sockets_left": after.sockets - before.sockets,
        "memory_mb": round(samples[-1][1] / 1e6, 1),
        "memory_growth": round(growth(samples), 2),
        "errors": dict(load.failed.most_common()),
    }


# The faults.


class Torment:
    """A server, and the faults of it and of the connections to it.

    Args:
        server: The server.
        proxy: The proxy of all of the client's connections.
        dice: Random numbers for times and amounts.
    """

    def __init__(self, server, proxy, dice):
        self.server, self.proxy, self.dice = server, proxy, dice
        self.made = Counter()
        self.rotation = itertools.cycle(
            [self.kill_clients, self.cut, self.freeze, self.restart, self.pause, self.slow_down]
        )

    async def _as_operator(self, *words):
        async with redis.asyncio.Redis.from_url(self.server.url) as operator:
            return await operator.execute_command(*words)

    async def kill_clients(self):
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                await self._as_operator("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            await asyncio.sleep(self.dice.uniform(0, 0.2))

    async def cut(self):
        for _ in range(5):
            self.proxy.cut_after, self.proxy.cut_replies = self.dice.randrange(20), 3
            await asyncio.sleep(self.dice.uniform(0, 0.2))
            self.proxy.cut()
        self.proxy.cut_replies = 0

    async def freeze(self):
        self.server.freeze()
        await asyncio.sleep(1)
        self.server.thaw()

    async def restart(self):
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(self.dice.uniform(0, 1))
        await asyncio.to_thread(self.server.start)

    async def pause(self):
        await self._as_operator("CLIENT", "PAUSE", 1_000, self.dice.choice(["ALL", "WRITE"]))
        await asyncio.sleep(1)

    async def slow_down(self):
        self.proxy.reply_pause = 0.001
        await asyncio.sleep(2)
        self.proxy.reply_pause = 0.0

    async def rage(self, seconds, pause):
        """Make faults for the given seconds, with the given mean pause between them."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self.dice.uniform(0.5 * pause, 1.5 * pause)))
            fault = next(self.rotation)
            await fault()
            self.made[fault.__name__] += 1


@dataclass
class Figures:
    """The printed figures of one run; names say the units of memory and times."""

    minutes: float
    faults: int
    connections: int
    calls: int
    failed: int
    wrong: int
    hung: int
    other_errors: int
    put: int
    received_again: int
    lost_by_take: int
    lost_by_consume: int
    lost_by_get: int
    failed_gets: int
    heard: int
    ended_subscriptions: int
    deaf_subscribers: int
    tasks_left: int
    descriptors_left: int
    sockets_left: int
    memory_mb: float
    memory_growth: float


NOTHING = (
    "wrong",
    "hung",
    "other_errors",
    "lost_by_take",
    "lost_by_consume",
    "ended_subscriptions",
    "deaf_subscribers",
    "tasks_left",
    "descriptors_left",
    "sockets_left",
)


def failures(figures, growth_allowed):
    """Return the figures that fail, each with its bound."""
    found = asdict(figures)
    # A cut reply loses at most one message, whose get fails.
    most = {**dict.fromkeys(NOTHING, 0), "lost_by_get": figures.failed_gets, "memory_growth": growth_allowed}
    least = dict.fromkeys(("faults", "calls", "put", "heard"), 1)
    return [
        *(f"{name}: {found[name]}, more than {value:g}" for name, value in most.items() if not found[name] <= value),
        *(f"{name}: {found[name]}, less than {value}" for name, value in least.items() if not found[name] >= value),
    ]


async def soaked(name, asked):
    """Run the soak on one event loop and return its figures; print the calls' errors to stderr."""
    dice = random.Random(f"{asked.seed} {name}")
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        async with FaultProxy(server.host, server.port) as proxy:
            words = {"url": proxy.url, "direct": server.url, "loop": name, "tasks": asked.tasks, "seed": asked.seed}
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                "work",
                *(word for key, value in words.items() for word in (f"--{key}", str(value))),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Python's allocator does not return a block of 256 kB while one object in it is alive.
                env={**os.environ, "PYTHONMALLOC": "malloc"},
            )
            try:
                await process.stdout.readline()
                torment = Torment(server, proxy, dice)
                await torment.rage(60 * asked.minutes, asked.pause)
                process.stdin.close()
                async with asyncio.timeout(END_SECONDS):
                    found = json.loads(await process.stdout.read())
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            connections = proxy.accepted
    print(f"{name}: faults {dict(torment.made)}, errors {found.pop('errors')}", file=sys.stderr)
    return Figures(minutes=asked.minutes, faults=torment.made.total(), connections=connections, **found)


def table(runs):
    """Return the runs' figures as text, with a column for each run."""
    rows = [["figure", *runs]]
    rows += [
        [field.name.replace("_", " "), *(f"{getattr(figures, field.name):,}" for figures in runs.values())]
        for field in fields(Figures)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def soak(asked):
    names = LOOPS if asked.loop == "both" else [asked.loop]
    return dict(zip(names, await asyncio.gather(*(soaked(name, asked) for name in names)), strict=True))


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="of faults; default 15")
    parser.add_argument("--loop", choices=("both", *LOOPS), default="both", help="default both, at the same time")
    parser.add_argument("--tasks", type=int, default=200, help="in each run; default 200")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two faults, on average; default 4")
    parser.add_argument("--growth", type=float, default=5.0, help="percent of memory after the first minute; default 5")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    return parser.parse_args(words)


def parsed_worker(words):
    parser = argparse.ArgumentParser()
    for name, kind in {"url": str, "direct": str, "loop": str, "tasks": int, "seed": int}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    return parser.parse_args(words)


def main():
    if sys.argv[1:2] == ["work"]:
        asked = parsed_worker(sys.argv[2:])
        # Consumers log the errors that they survive.
        logging.getLogger("aioredis_monitored").setLevel(logging.ERROR)
        if asked.loop == "uvloop":
            import uvloop

            found = uvloop.run(work(asked))
        else:
            found = asyncio.run(work(asked))
        print(json.dumps(found))
        return
    asked = parsed(sys.argv[1:])
    print(f"seed {asked.seed}", file=sys.stderr)
    runs = asyncio.run(soak(asked))
    print(table(runs))
    failed = [f"{name}: {text}" for name, figures in runs.items() for text in failures(figures, asked.growth)]
    print(*failed, sep="\n", end="\n" if failed else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
