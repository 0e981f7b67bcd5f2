"""Kill consumers of a queue in a cluster while its slot moves and primaries are replaced: what is lost, or done twice?

A separate program. Consumers are those of ``chaos.py``; their records are on a server of its own, which no fault hits.
Each message is put on a connection that then WAITs for a replica: what is confirmed must be processed, whatever
happens. The program prints its figures, and exits with 0 only if every figure passes.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass

import redis.asyncio
from redis.exceptions import RedisError

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.testing import ClusterServers, RedisServer
from support import chaos

SLOT = key_slot(chaos.QUEUE)
WAIT_MILLISECONDS = 1000
POLL_SECONDS = 0.05


@dataclass
class Figures:
    """The printed figures.

    ``acknowledged`` messages were put for certain, and ``confirmed`` ones of these have reached a replica as well.
    """

    put: int = 0
    acknowledged: int = 0
    confirmed: int = 0
    processed: int = 0
    confirmed_lost: int = 0
    acknowledged_lost: int = 0
    duplicates: int = 0
    consumer_kills: int = 0
    migrations: int = 0
    failovers: int = 0
    primary_kills: int = 0
    cuts_told: int = 0
    crashes: int = 0
    seconds: float = 0.0


class ClusterChaos:
    """A queue in a cluster, its consumers, and their faults.

    Args:
        cluster: The servers.
        events: The server of the consumers' records.
        client: A client on the cluster.
        observer: A client on the other server.
        asked: The program's arguments.
    """

    def __init__(self, cluster, events, client, observer, asked):
        self.cluster, self.events, self.client, self.observer, self.asked = cluster, events, client, observer, asked
        self.dice = random.Random(asked.seed)
        self.history, self.figures = chaos.History(), Figures()
        self.read_to = "0-0"
        self.workers = []
        self.acknowledged, self.confirmed = set(), set()

    async def start_worker(self):
        arguments = {
            "url": self.cluster.url,
            "effects": self.events.url,
            "name": f"w{self.figures.consumer_kills}-{len(self.workers)}",
            "lease": self.asked.lease,
            "takes": 2,
            "handling": self.asked.handling,
            "way": "take",
        }
        words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, chaos.__file__, "consume", *words]
        self.workers.append(await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE))

    async def read_events(self):
        while entries := await self.observer.xrange(chaos.EVENTS, min=f"({self.read_to}", count=1000):
            for self.read_to, entry in entries:
                self.history.add(int(self.read_to.partition("-")[0]) / 1000, **entry)

    # Faults.

    async def kill_worker(self):
        worker = self.workers.pop(self.dice.randrange(len(self.workers)))
        worker.kill()
        await worker.wait()
        self.figures.consumer_kills += 1
        await self.start_worker()

    async def migrate(self):
        def run():
            owner = self.cluster.owner(SLOT)
            self.cluster.migrate(SLOT, next(node for node in self.cluster.primaries() if node is not owner))
            self.cluster.wait_ok()

        await asyncio.to_thread(run)
        self.figures.migrations += 1

    async def fail_over(self):
        def run():
            self.cluster.failover(self.cluster.replica_of(self.cluster.owner(SLOT)))
            self.cluster.wait_ok()

        await asyncio.to_thread(run)
        self.figures.failovers += 1

    async def kill_primary(self):
        def run():
            victim = self.cluster.owner(SLOT)
            replica = self.cluster.replica_of(victim)
            victim.kill()
            while replica.call("ROLE")[0] != "master":
                time.sleep(POLL_SECONDS)
            victim.start()
            self.cluster.wait_ok()

        await asyncio.to_thread(run)
        self.figures.primary_kills += 1

    async def spread(self, faults):
        """Call the faults one after the other, spread over the run."""
        began = time.monotonic()
        for number, fault in enumerate(faults):
            due = began + (number + self.dice.random()) * self.asked.seconds / len(faults)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await fault()

    # The run.

    async def produce(self):
        began = time.monotonic()
        handle = self.client.client()
        for number in range(self.asked.messages):
            await asyncio.sleep(max(0.0, began + number * self.asked.seconds / self.asked.messages - time.monotonic()))
            self.figures.put += 1
            try:
                await handle.rpush(chaos.QUEUE, number)
                self.acknowledged.add(str(number))
                if await handle.execute_command("WAIT", 1, WAIT_MILLISECONDS):
                    self.confirmed.add(str(number))
            except RedisError:
                # Its connection is lost: what was written there is not counted elsewhere.
                await handle.aclose()
                handle = self.client.client()
        await handle.aclose()

    async def run(self):
        began = time.monotonic()
        servers = [
            *[self.migrate] * self.asked.migrations,
            *[self.fail_over] * self.asked.failovers,
            *[self.kill_primary] * self.asked.primary_kills,
        ]
        self.dice.shuffle(servers)
        for _ in range(self.asked.consumers):
            await self.start_worker()
        try:
            workers = [self.kill_worker] * self.asked.kills
            await asyncio.gather(self.produce(), self.spread(servers), self.spread(workers))
            deadline = time.monotonic() + self.asked.patience
            while self.acknowledged - self.history.processed and time.monotonic() < deadline:
                await self.read_events()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await self.end()
        await self.read_events()
        return self.reckon(time.monotonic() - began)

    async def end(self):
        for worker in self.workers:
            self.figures.crashes += worker.returncode is not None
            worker.stdin.close()
        for worker in self.workers:
            try:
                async with asyncio.timeout(chaos.WORDS_SECONDS):
                    await worker.wait()
            except TimeoutError:
                worker.send_signal(signal.SIGKILL)
                await worker.wait()
                self.figures.crashes += 1

    def reckon(self, seconds):
        figures, processed = self.figures, self.history.processed
        figures.acknowledged, figures.confirmed = len(self.acknowledged), len(self.confirmed)
        figures.processed = len(processed)
        figures.confirmed_lost = len(self.confirmed - processed)
        figures.acknowledged_lost = len(self.acknowledged - processed)
        figures.duplicates = self.history.duplicates()
        figures.cuts_told = self.history.cuts
        figures.seconds = round(seconds, 1)
        return figures


def failures(figures, asked):
    """Return the figures that fail, each with its bound."""
    exactly = {
        "put": asked.messages,
        "confirmed_lost": 0,
        "consumer_kills": asked.kills,
        "migrations": asked.migrations,
        "failovers": asked.failovers,
        "primary_kills": asked.primary_kills,
        "crashes": 0,
    }
    if not asked.primary_kills:
        # Without a kill, nothing that was acknowledged is lost.
        exactly["acknowledged_lost"] = 0
    found, most = asdict(figures), chaos.DUPLICATES * asked.messages
    failed = [f"{name}: {found[name]} instead of {value}" for name, value in exactly.items() if found[name] != value]
    if figures.duplicates > most:
        failed.append(f"duplicates: {figures.duplicates}, more than {most:g}")
    if figures.confirmed < asked.messages / 2:
        failed.append(f"confirmed: {figures.confirmed}, less than half of the messages")
    return failed


async def unleash(asked):
    """Return the figures of the requested run."""
    with RedisServer() as events, ClusterServers() as cluster:
        observer = redis.asyncio.Redis.from_url(events.url, decode_responses=True)
        async with observer, MonitoredConnectionPool.from_url(cluster.url) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            return await ClusterChaos(cluster, events, client, observer, asked).run()


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=60, help="kill -9 of a consumer")
    parser.add_argument("--migrations", type=int, default=20, help="of the queue's slot")
    parser.add_argument("--failovers", type=int, default=10, help="CLUSTER FAILOVER of its primary")
    parser.add_argument("--primary-kills", type=int, default=10, help="kill -9 of its primary")
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=300.0, help="over which messages and faults are spread")
    parser.add_argument("--patience", type=float, default=30.0, help="seconds for the remaining messages after that")
    parser.add_argument("--consumers", type=int, default=4, help="processes")
    parser.add_argument("--handling", type=float, default=0.01, help="mean seconds for a message")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    return parser.parse_args(words)


def main():
    asked = parsed(sys.argv[1:])
    print(f"seed {asked.seed}", file=sys.stderr)
    figures = asyncio.run(unleash(asked))
    failed = failures(figures, asked)
    print(json.dumps({**asdict(figures), "failures": failed}, indent=2))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
