"""Kill, disconnect and freeze working consumers of a queue: what is lost, done twice, or late?

A separate program, since ``kill -9`` ends a whole process. A handler's effect is an entry in a stream on the server:
the death of a consumer can neither undo nor fake it, and all times are the server's. The program prints its figures,
and exits with 0 only if every figure passes and every requested fault was made.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import signal
import statistics
import sys
import time
import uuid
from collections import defaultdict
from dataclasses import asdict, dataclass, field

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ClusterDownError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

import aioredis_monitored
from aioredis_monitored import MessageQueue, MonitoredConnectionPool, TimedOutError
from aioredis_monitored.testing import RedisServer

QUEUE = "chaos"
CONSUMERS, PROCESSING, DEAD = "{chaos}:c", "{chaos}:p:", "{chaos}:dead"
EVENTS = "events"
RELEASED = "released"
HOLD = "hold "  # prefix of a message whose handler continues only after a release
TAKEN, DONE, LEASE_LOST, CUT = "taken", "done", "lease lost", "cut"

LOOK_SECONDS = 0.03
BURST_SECONDS = 1.0
WORDS_SECONDS = 30.0  # for a consumer to start, to report that it woke up, or to end
KILLS_OF_HOLDERS = 3  # every third kill hits a holder; others hold a message by chance
PUT_MANY = 4  # every fourth burst; the other bursts are a foreign RPUSH
DUPLICATES = 0.005
# What a consumer raises while its server, or its slot in a cluster, is unavailable.
UNAVAILABLE = (RedisConnectionError, RedisTimeoutError, ClusterDownError, TryAgainError)


# The consumer: a process.


class Consumer:
    """Takes messages and records what it does with them.

    Args:
        queue: The queue under test.
        effects: Another client, for the records: it retries until it succeeds. An entry that is written twice because
            its reply was cut has the same attempt id.
        arguments: The program's.
    """

    def __init__(self, queue, effects, arguments):
        self.queue = queue
        self.effects, self.arguments = effects, arguments
        self.dice = random.Random()
        self.is_ending = False
        self.way = {"take": self.at_least_once, "get": self.at_most_once}[arguments.way]

    async def record(self, what, message=b"", attempt=""):
        entry = {"what": what, "message": message, "attempt": attempt, "worker": self.arguments.name}
        await self.effects.xadd(EVENTS, entry)

    async def handle(self, message, attempt):
        await self.record(TAKEN, message, attempt)
        if message.startswith(HOLD.encode()):
            while not await self.effects.hexists(RELEASED, message):
                await asyncio.sleep(0.01)
        await asyncio.sleep(self.dice.uniform(0, 2 * self.arguments.handling))
        await self.record(DONE, message, attempt)

    async def at_least_once(self):
        attempt, message = uuid.uuid4().hex, b""
        try:
            async with self.queue.take(timeout=self.dice.choice([None, 1])) as message:
                await self.handle(message, attempt)
        except TimedOutError:
            pass
        except aioredis_monitored.LeaseLostError:
            await self.record(LEASE_LOST, message, attempt)

    async def at_most_once(self):
        await self.handle(await self.queue.get(), uuid.uuid4().hex)

    async def work(self):
        # The recording client is redis-py's, which may swallow a cancellation on Python 3.11.
        while not self.is_ending:
            try:
                await self.way()
            except UNAVAILABLE:
                await self.record(CUT)


async def consume(arguments):
    """Work until stdin is closed, which also happens when the program dies."""
    loop = asyncio.get_running_loop()
    retry = Retry(ExponentialBackoff(cap=0.1, base=0.01), retries=100)
    async with (
        MonitoredConnectionPool.from_url(arguments.url) as pool,
        MessageQueue(QUEUE, pool, lease=arguments.lease) as queue,
        redis.asyncio.Redis.from_url(arguments.effects or arguments.url, retry=retry) as effects,
    ):
        consumer = Consumer(queue, effects, arguments)
        working = asyncio.gather(*(consumer.work() for _ in range(arguments.takes)))

        def end():
            loop.remove_reader(sys.stdin.fileno())
            consumer.is_ending = True
            working.cancel()

        loop.add_reader(sys.stdin.fileno(), end)
        with contextlib.suppress(asyncio.CancelledError):
            await working


# What happened, and how to interpret it.


@dataclass
class Delivery:
    """A message held by a consumer; times are seconds of the server's clock."""

    message: str
    attempt: str
    worker: str
    taken: float
    done: float | None = None
    lease_lost: float | None = None


class History:
    """The consumers' reports of what they did."""

    def __init__(self):
        self.deliveries = defaultdict(dict)
        self.workers = set()
        self.cuts = 0
        self.processed = set()

    def add(self, at, what, message, attempt, worker):
        if what == CUT:
            self.cuts += 1
            return
        attempts = self.deliveries[message]
        if what == TAKEN:
            self.workers.add(worker)
            attempts.setdefault(attempt, Delivery(message, attempt, worker, at))
        elif attempt in attempts:
            delivery = attempts[attempt]
            if what == DONE:
                self.processed.add(message)
                delivery.done = delivery.done or at
            else:
                delivery.lease_lost = delivery.lease_lost or at

    def last(self, message):
        """Return the newest delivery of a message, or ``None``."""
        return next(reversed(self.deliveries[message].values()), None) if message in self.deliveries else None

    def next(self, orphan):
        """Return the delivery after the orphan's, or ``None``."""
        deliveries = list(self.deliveries[orphan.delivery.message].values())
        return next(iter(deliveries[deliveries.index(orphan.delivery) + 1 :]), None)

    def recovery(self, orphan):
        """Return the seconds until the message was delivered again; None if it was acknowledged at the last moment."""
        again, done = self.next(orphan), orphan.delivery.done
        handed_out = [at for at in (again and again.taken, orphan.seen_elsewhere) if at is not None]
        if handed_out:
            return min(handed_out) - orphan.since
        return None if done is not None and done < orphan.thawed else math.inf

    def duplicates(self):
        """Return how often messages were processed beyond once each."""
        done = sum(d.done is not None for attempts in self.deliveries.values() for d in attempts.values())
        return done - len(self.processed)


@dataclass
class Orphan:
    """A message whose consumer is gone, and the time when it went."""

    delivery: Delivery
    since: float
    list: str = ""
    seen_elsewhere: float | None = None  # a frozen consumer may have got it, and reports nothing
    thawed: float = math.inf


@dataclass
class Faults:
    """The faults that the consumers had."""

    kills: int = 0
    kills_of_holders: int = 0
    client_kills: int = 0
    clients_killed: int = 0
    freezes: int = 0
    crashes: int = 0
    orphans: list[Orphan] = field(default_factory=list)
    longest_held: float = 0.0
    left: list[str] = field(default_factory=list)


@dataclass
class Figures:
    """The printed figures; times in seconds."""

    messages: int
    processed: int
    lost: int
    unknown: int
    duplicates: int
    kills: int
    kills_of_holders: int
    client_kills: int
    clients_killed: int
    cuts_told: int
    freezes: int
    lease_lost_due: int
    lease_lost_told: int
    lease_lost_in_all: int
    recoveries: int
    recovery_max: float
    recovery_median: float
    longest_held: float
    crashes: int
    left: list[str]
    seconds: float


def reckon(messages, history, faults, seconds):
    """Compute the figures of a run in which these messages were put."""
    recoveries = [r for r in map(history.recovery, faults.orphans) if r is not None]
    due = [o for o in faults.orphans if (again := history.next(o)) is not None and again.taken < o.thawed < math.inf]
    return Figures(
        messages=len(messages),
        processed=len(history.processed & messages),
        lost=len(messages - history.processed),
        unknown=len(history.deliveries.keys() - messages),
        duplicates=history.duplicates(),
        kills=faults.kills,
        kills_of_holders=faults.kills_of_holders,
        client_kills=faults.client_kills,
        clients_killed=faults.clients_killed,
        cuts_told=history.cuts,
        freezes=faults.freezes,
        lease_lost_due=len(due),
        lease_lost_told=sum(orphan.delivery.lease_lost is not None for orphan in due),
        lease_lost_in_all=sum(d.lease_lost is not None for each in history.deliveries.values() for d in each.values()),
        recoveries=len(recoveries),
        recovery_max=round(max(recoveries, default=0.0), 3),
        recovery_median=round(statistics.median(recoveries or [0.0]), 3),
        longest_held=round(faults.longest_held, 3),
        crashes=faults.crashes,
        left=faults.left,
        seconds=round(seconds, 1),
    )


def failures(figures, asked):
    """Return the figures that fail, each with its bound."""
    in_time = 1.5 * asked.lease + asked.handed_over
    exactly = {
        "processed": asked.messages,
        "lost": 0,
        "unknown": 0,
        "kills": asked.kills,
        "client_kills": asked.client_kills,
        "freezes": asked.freezes,
        "lease_lost_told": figures.lease_lost_due,
        "crashes": 0,
        "left": [],
    }
    most = {
        "duplicates": DUPLICATES * asked.messages,
        "recovery_max": in_time,
        # Plus the handler's time, and for a marker the program's time to react to it.
        "longest_held": in_time + 2 * asked.handling + 1,
    }
    least = {"kills_of_holders": len(kill_markers(asked)), "lease_lost_due": asked.freezes}
    found = asdict(figures)
    return [
        *(f"{name}: {found[name]} instead of {value}" for name, value in exactly.items() if found[name] != value),
        *(f"{name}: {found[name]}, more than {value:g}" for name, value in most.items() if not found[name] <= value),
        *(f"{name}: {found[name]}, less than {value}" for name, value in least.items() if not found[name] >= value),
    ]


# The chaos.


def kill_markers(asked):
    return [f"{HOLD}kill {number}" for number in range(0, asked.kills, KILLS_OF_HOLDERS)]


def freeze_markers(asked):
    return [f"{HOLD}freeze {number}" for number in range(asked.freezes)]


class Chaos:
    """A queue, its consumers, and their faults.

    Args:
        observer: A client with one connection, which CLIENT KILL spares as its sender's.
        url: The server's URL.
        asked: The program's arguments.
    """

    def __init__(self, observer, url, asked):
        self.observer, self.url, self.asked = observer, url, asked
        self.dice = random.Random(asked.seed)
        self.history, self.faults = History(), Faults()
        self.messages = set()
        # On Python 3.11, redis-py may swallow a cancellation: a flag ends the tasks.
        self.deadline = math.inf
        self.is_over = False
        self.workers = {}
        self.free = set()  # the workers that no fault has chosen
        self.started = 0
        # Held by CLIENT KILL, and by calls that it must not hit: messages for a frozen consumer, and put_many.
        self.calm = asyncio.Lock()
        self.reading = asyncio.Lock()
        self.read_to = "0-0"
        self.is_idle = True
        self.held = {}
        self.rest = ["never looked"]

    # Observing.

    async def now(self):
        seconds, microseconds = await self.observer.time()
        return seconds + microseconds / 1e6

    async def read_events(self):
        async with self.reading:
            while entries := await self.observer.xrange(EVENTS, min=f"({self.read_to}", count=1000):
                for self.read_to, entry in entries:
                    self.history.add(int(self.read_to.partition("-")[0]) / 1000, **entry)

    async def processing(self):
        """The messages in each processing list."""
        keys = await self.observer.keys(f"{PROCESSING}*")
        async with self.observer.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.lrange(key, 0, -1)
            return dict(zip(keys, await pipe.execute(), strict=True))

    async def look(self):
        await self.read_events()
        lists = await self.processing()
        now = time.monotonic()
        self.held = {
            (key, message): self.held.get((key, message), now) for key, held in lists.items() for message in held
        }
        at = await self.now()
        for orphan in self.faults.orphans:
            if orphan.seen_elsewhere is None and self.history.next(orphan) is None:
                others = [held for key, held in lists.items() if key != orphan.list]
                if any(orphan.delivery.message in held for held in others):
                    orphan.seen_elsewhere = at
        self.faults.longest_held = max(self.faults.longest_held, *(now - since for since in self.held.values()), 0.0)
        async with self.observer.pipeline(transaction=False) as pipe:
            pipe.llen(QUEUE).llen(DEAD).zcount(CONSUMERS, "-inf", at * 1000)
            waiting, dead, dead_consumers = await pipe.execute()
        self.is_idle = not waiting and len(self.held) <= self.asked.consumers * self.asked.takes / 2
        rest = {
            "messages in the queue": waiting,
            "dead messages": dead,
            "processing lists": len(lists),
            "dead consumers": dead_consumers,
        }
        self.rest = [f"{count} {what}" for what, count in rest.items() if count]
        for name, process in list(self.workers.items()):
            if process.returncode is not None:
                self.faults.crashes += 1
                self.forget(name)
                await self.start()

    async def watch(self):
        while not self.is_over:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def until(self, condition, seconds=math.inf):
        """Return whether the condition came true within ``seconds``; ``watch`` keeps its data current."""
        deadline = min(time.monotonic() + seconds, self.deadline)
        while not (found := condition()) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS / 3)
        return found

    # Consumers.

    async def start(self):
        self.started += 1
        name = f"w{self.started}"
        arguments = {
            "url": self.url,
            "name": name,
            "lease": self.asked.lease,
            "takes": self.asked.takes,
            "handling": self.asked.handling,
            "way": self.asked.way,
        }
        words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, __file__, "consume", *words]
        self.workers[name] = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
        self.free.add(name)

    def forget(self, name):
        self.free.discard(name)
        return self.workers.pop(name)

    def at_work(self):
        """Return a random worker that holds a message."""
        return self.choose(sorted(self.free & self.history.workers))

    def holder(self, marker):
        """Return the worker whose handler waits for this marker's release."""
        delivery = self.history.last(marker)
        return self.choose([delivery.worker] if delivery and delivery.worker in self.free else [])

    def choose(self, workers):
        if not workers:
            return None
        name = self.dice.choice(workers)
        self.free.discard(name)
        return name

    async def put_marker(self, marker):
        self.messages.add(marker)
        await self.observer.lpush(QUEUE, marker)

    async def orphaned(self, name, since):
        """Return the messages that a worker which no longer runs has left in processing lists."""
        await self.read_events()
        held = [(key, message) for key, messages in (await self.processing()).items() for message in messages]
        deliveries = [(key, self.history.last(message)) for key, message in held]
        orphans = [Orphan(d, since, key) for key, d in deliveries if d is not None and d.worker == name]
        self.faults.orphans += orphans
        return orphans

    # Faults.

    async def kill(self, number):
        marker = f"{HOLD}kill {number}" if number % KILLS_OF_HOLDERS == 0 else None
        if marker:
            await self.put_marker(marker)
        name = await self.until(lambda: self.holder(marker) if marker else self.at_work())
        if not name:
            return
        process = self.forget(name)
        since = await self.now()
        process.kill()
        await process.wait()
        self.faults.kills += 1
        orphans = await self.orphaned(name, since)
        self.faults.kills_of_holders += bool(orphans)
        if marker:
            await self.observer.hset(RELEASED, marker, 1)
        await self.start()

    async def freeze(self, number):
        marker = f"{HOLD}freeze {number}"
        await self.put_marker(marker)
        name = await self.until(lambda: self.holder(marker))
        if not name:
            return
        process = self.workers[name]
        async with self.calm:
            since = await self.now()
            process.send_signal(signal.SIGSTOP)
            await self.until(lambda: stopped(process))
            orphans = await self.orphaned(name, since)
            # Released only now: the marker was held when the consumer froze, and must not block other consumers.
            await self.observer.hset(RELEASED, marker, 1)
            await self.until(
                lambda: all(o.delivery.done or self.history.next(o) for o in orphans), 3 * self.asked.lease + 3
            )
            while await self.now() < since + 1.1 * self.asked.lease:
                await asyncio.sleep(LOOK_SECONDS)
            await self.read_events()
            told = [orphan.delivery for orphan in orphans if self.history.next(orphan)]
            thawed = await self.now()
            for orphan in orphans:
                orphan.thawed = thawed
            process.send_signal(signal.SIGCONT)
            self.faults.freezes += marker in {orphan.delivery.message for orphan in orphans}
            await self.until(lambda: all(delivery.lease_lost for delivery in told), WORDS_SECONDS)
        if name in self.workers:
            self.free.add(name)

    async def cut(self, number):
        """CLIENT KILL of all clients, alternately while they work and while they wait, if either happens soon."""
        await self.until(lambda: self.is_idle == bool(number % 2), 2 * BURST_SECONDS)
        async with self.calm:
            killed = 0
            # A kill that hits no client does not count.
            while not killed and time.monotonic() < self.deadline:
                killed = await self.observer.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(LOOK_SECONDS)
        self.faults.client_kills += bool(killed)
        self.faults.clients_killed += killed

    async def spread(self, count, fault):
        """Call ``fault`` ``count`` times, spread over the run."""
        began = time.monotonic()
        for number in range(count):
            due = began + (number + self.dice.random()) * self.asked.seconds / count
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if time.monotonic() < self.deadline:
                await fault(number)

    async def produce(self):
        """Put bursts, with pauses in which consumers wait: faults hit them at work and idle."""
        count = self.asked.messages - len(kill_markers(self.asked)) - len(freeze_markers(self.asked))
        numbers = [str(number) for number in range(count)]
        bursts = max(1, round(self.asked.seconds / BURST_SECONDS))
        size = math.ceil(count / bursts)

        async def put(number):
            burst = numbers[number * size : (number + 1) * size]
            if not burst:
                return
            self.messages.update(burst)
            if number % PUT_MANY:
                await self.observer.rpush(QUEUE, *burst)
            else:
                async with self.calm, MonitoredConnectionPool.from_url(self.url) as pool:
                    await MessageQueue(QUEUE, pool).put_many(burst)

        await self.spread(bursts, put)

    # The run.

    def is_finished(self):
        return self.asked.messages == len(self.history.processed & self.messages) and not self.rest

    async def run(self):
        began = time.monotonic()
        self.deadline = began + 2 * self.asked.seconds + self.asked.patience + 60
        try:
            for _ in range(self.asked.consumers):
                await self.start()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.watch())
                try:
                    await asyncio.gather(
                        self.produce(),
                        self.spread(self.asked.kills, self.kill),
                        self.spread(self.asked.client_kills, self.cut),
                        self.spread(self.asked.freezes, self.freeze),
                    )
                    await self.until(self.is_finished, self.asked.patience)
                finally:
                    self.is_over = True
            self.faults.left += self.rest
            await self.end()
        finally:
            for process in self.workers.values():
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if lists := await self.processing():
            self.faults.left.append(f"{len(lists)} processing lists when the consumers have ended")
        return reckon(self.messages, self.history, self.faults, time.monotonic() - began)

    async def end(self):
        """Let the consumers end normally."""
        for process in self.workers.values():
            process.send_signal(signal.SIGCONT)
            process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WORDS_SECONDS):
                await asyncio.gather(*(process.wait() for process in self.workers.values()))
        self.faults.crashes += sum(process.returncode != 0 for process in self.workers.values())
        await self.read_events()


def stopped(process):
    """Return whether the process has stopped; true only once for each stop."""
    return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG) is not None


async def unleash(asked):
    """Return the figures of the requested run."""
    with RedisServer() as server:
        pool = redis.asyncio.BlockingConnectionPool.from_url(server.url, max_connections=1, decode_responses=True)
        async with redis.asyncio.Redis.from_pool(pool) as observer:
            return await Chaos(observer, server.url, asked).run()


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of a consumer; every third hits a holder")
    parser.add_argument("--client-kills", type=int, default=100, help="CLIENT KILL of all clients")
    parser.add_argument("--freezes", type=int, default=20, help="SIGSTOP of a holder, for longer than its lease")
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--handed-over", type=float, default=1.0, help="seconds allowed beyond 1.5 leases")
    parser.add_argument("--seconds", type=float, default=300.0, help="over which messages and faults are spread")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for the remaining messages after that")
    parser.add_argument("--consumers", type=int, default=6, help="processes")
    parser.add_argument("--takes", type=int, default=2, help="concurrent takes in each process")
    parser.add_argument("--handling", type=float, default=0.05, help="mean seconds for a message")
    parser.add_argument(
        "--way", choices=("take", "get"), default="take", help="with get, the figures must show lost messages"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    asked = parser.parse_args(words)
    if asked.messages <= len(kill_markers(asked)) + len(freeze_markers(asked)):
        parser.error("too few messages for this number of faults")
    return asked


def parsed_consumer(words):
    parser = argparse.ArgumentParser()
    for name, kind in {"url": str, "name": str, "lease": float, "takes": int, "handling": float, "way": str}.items():
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--effects", help="the URL of another server, for the records")
    return parser.parse_args(words)


def main():
    if sys.argv[1:2] == ["consume"]:
        asyncio.run(consume(parsed_consumer(sys.argv[2:])))
        return
    asked = parsed(sys.argv[1:])
    print(f"seed {asked.seed}", file=sys.stderr)
    figures = asyncio.run(unleash(asked))
    failed = failures(figures, asked)
    print(json.dumps({**asdict(figures), "failures": failed}, indent=2))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
