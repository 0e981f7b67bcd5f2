"""Break a cluster in all the ways that its guarantees speak of, under load, and count: errors, duplicates, lost writes.

A separate program: ``python -m support.cluster_chaos`` in ``tests/``. It starts clusters of the server under test, and
makes all faults, or those that are named. It prints a table, and exits with 0 only if every figure passes. With
``--url`` there is the load alone, on a cluster that is there already: who runs it makes the faults.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers
from support.cluster_load import CountingPool, Load, account, tags_in
from support.sharing import UNRECORDED

CLIENT_NAME = "chaos"
MOVED_SLOTS = 10
TAGS = 100
SETTLE_SECONDS = 60.0
# The default of a pool.
DEADLINE_SECONDS = 5.0
# Between the calls of one caller in scenarios in which time is measured: the servers need the processor, too.
THINK_SECONDS = 0.005


@dataclass
class Figures:
    """What one fault has done; times in seconds.

    Attributes:
        calls: Calls of the load.
        errors: Calls and commands of pipelines that have failed.
        in_flight: Writes at the broken nodes that had begun when the first of them failed, and had not ended before the
            fault; the most errors that are allowed.
        duplicates: Writes that are stored more often than they were sent.
        lost: Writes that were acknowledged and are not stored.
        unacknowledged: Writes that are stored, and were answered by an error.
        torn: Transactions that are stored in part.
        stale: Reads that have not seen what was acknowledged before.
        wrong: Replies that cannot be right.
        hung: Calls that took more than a minute and a half.
        slowest: Seconds of the slowest call from the fault on.
        promotion: Seconds until another node took over; the longest of all rounds.
        refreshes: CLUSTER SLOTS that the nodes have answered after the first one, in a second, from the fault on.
        moved: MOVED that were followed.
        asked: ASK that were followed.
        lost_watches: WatchError that were raised.
        descriptors_left: File descriptors of this process beyond those before the fault.
        connections_left: Connections of the nodes beyond those before the fault.
        pools_left: Pools of nodes beyond those before the fault.
        seconds: How long all of it took.
        kinds: The errors, and how many of each there were.
    """

    calls: int = 0
    errors: int = 0
    in_flight: int = 0
    duplicates: int = 0
    lost: int = 0
    unacknowledged: int = 0
    torn: int = 0
    stale: int = 0
    wrong: int = 0
    hung: int = 0
    slowest: float = 0.0
    promotion: float = 0.0
    refreshes: float = 0.0
    moved: int = 0
    asked: int = 0
    lost_watches: int = 0
    descriptors_left: int = 0
    connections_left: int = 0
    pools_left: int = 0
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)


def failures(figures, *, loses=False, late=None, redirects=True):
    """Return the figures that fail, each with its bound.

    Args:
        figures: The figures.
        loses: Whether a primary was killed: its last acknowledged writes may not have been replicated.
        late: How many seconds after the promotion the slowest call may end; ``None`` for any number.
        redirects: Whether there must have been redirects.
    """
    found = asdict(figures)
    names = ("duplicates", "torn", "wrong", "hung", "descriptors_left", "connections_left", "pools_left")
    most = dict.fromkeys(names, 0) | {
        "errors": figures.in_flight,
        "unacknowledged": figures.errors,
        "refreshes": 2,
    }
    if not loses:
        most |= {"lost": 0, "stale": 0}
    if late is not None:
        most["slowest"] = figures.promotion + late
    least = {"calls": 1}
    if redirects:
        least["moved"] = 1
    return [
        *(f"{name}: {found[name]}, more than {value:g}" for name, value in most.items() if not found[name] <= value),
        *(f"{name}: {found[name]}, less than {value}" for name, value in least.items() if not found[name] >= value),
    ]


class Trial:
    """A load on a cluster, what is done to it meanwhile, and what comes of it.

    Args:
        cluster: The cluster.
        pool: The pool of the load's client.
        load: The load.
    """

    def __init__(self, cluster, pool, load):
        self.cluster, self.pool, self.load = cluster, pool, load
        self.figures = Figures()
        self.refreshes_before = Counter()

    def watch(self):
        """Measure from here on."""
        self.load.begin_watching()
        self.watched_at = time.monotonic()
        self.refreshes_before = self._refreshes()

    def conclude(self, broken=()):
        """Add what was measured since ``watch``.

        Args:
            broken: The slots of the node that was broken.
        """
        figures, load = self.figures, self.load
        figures.slowest = max(figures.slowest, load.slowest)
        first = min((each.at for each in load.ended if each.has_failed), default=None)
        if first is not None:
            # A call that has begun after the fault was written to the broken connection as well, until that ended.
            figures.in_flight += sum(each.slot in broken and each.began <= first for each in load.ended)
        since = self._refreshes()
        refreshes = sum(max(0, count - self.refreshes_before[node]) for node, count in since.items())
        figures.refreshes = max(figures.refreshes, max(0, refreshes - 1) / (time.monotonic() - self.watched_at))

    def _refreshes(self):
        counts = Counter()
        for node in self.cluster.nodes:
            if node.is_running and not node.is_frozen:
                lines = dict(
                    line.split(":", 1) for line in node.call("INFO", "commandstats").splitlines() if ":" in line
                )
                fields = lines.get("cmdstat_cluster|slots", "calls=0").split(",")[0]
                counts[node.port] = int(fields.removeprefix("calls="))
        return counts


@asynccontextmanager
async def trial(cluster, seed, *, slots=None, pause=THINK_SECONDS, callers=16, transactions=False, **options):
    """Let a load use a cluster while the block runs, and account for it at the end."""
    began = time.monotonic()
    tags = tags_in(slots, TAGS) if slots else [f"tag{number}" for number in range(TAGS)]
    options = {"client_name": CLIENT_NAME, **UNRECORDED, **options}
    async with CountingPool.from_url(cluster.url, **options) as pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        load = Load(client, tags, seed, callers=callers, pause=pause, transactions=transactions)
        result = Trial(cluster, pool, load)
        async with load.running():
            await load.reach(callers)
            yield result
        await asyncio.to_thread(cluster.wait_ok)
        found = await account(load, cluster.url)
    figures = result.figures
    figures.calls, figures.errors = load.calls, load.errors.total()
    figures.kinds, figures.wrong, figures.hung = dict(load.errors.most_common()), len(load.wrong), load.hung
    figures.stale, figures.lost_watches = load.stale, load.lost_watches
    figures.moved, figures.asked = pool.counts["moved"], pool.counts["ask"]
    figures.duplicates, figures.lost = found.duplicates, found.lost
    figures.unacknowledged, figures.torn = found.unacknowledged, found.torn
    figures.seconds = round(time.monotonic() - began, 1)
    for text in load.wrong[:5]:
        print(text, file=sys.stderr)


async def migrate(cluster, seed, *, calls, atomic=False, transactions=False):
    """Move slots from primary to primary, again and again, until the load has made its calls (C1, C5)."""
    slots = _slots_of(cluster.primaries()[0])[:MOVED_SLOTS]
    async with trial(cluster, seed, slots=slots, callers=64, pause=0, transactions=transactions) as it:
        it.watch()
        goal = it.load.calls + calls
        while True:
            source = cluster.owner(slots[0])
            target = next(node for node in cluster.primaries() if node is not source)
            if atomic:
                await asyncio.to_thread(cluster.migrate_atomically, slots, target)
            else:
                for slot in slots:
                    await asyncio.to_thread(cluster.migrate, slot, target, batch=3, pause=0.01)
            if it.load.calls >= goal:
                break
        it.conclude()
    return it.figures


async def kill(cluster, seed, *, rounds, deadline=DEADLINE_SECONDS):
    """Kill a primary, and start it again when its replica has taken over (C2)."""

    async def end(node):
        # In this thread, so that no call goes on meanwhile.
        node.kill()

    async def begin_again(node):
        await asyncio.to_thread(node.start)

    return await _break(cluster, seed, rounds, deadline, end, begin_again)


async def freeze(cluster, seed, *, rounds, deadline=DEADLINE_SECONDS):
    """Suspend a primary until its replica has taken over (C3)."""

    async def end(node):
        node.freeze()

    async def begin_again(node):
        node.thaw()

    return await _break(cluster, seed, rounds, deadline, end, begin_again)


async def _break(cluster, seed, rounds, deadline, end, begin_again):
    dice = random.Random(seed)
    async with trial(cluster, seed, transactions=True, socket_timeout=deadline) as it:
        for _ in range(rounds):
            node = dice.choice(cluster.primaries())
            replica, broken = cluster.replica_of(node), set(_slots_of(node))
            await asyncio.to_thread(_wait_replicating, node)
            await it.load.reach(500)
            it.watch()
            at = time.monotonic()
            await end(node)
            await asyncio.to_thread(_wait_promoted, replica)
            it.figures.promotion = max(it.figures.promotion, time.monotonic() - at)
            # Calls that have waited since the fault end after the promotion.
            while any(began < at for _, began in list(it.load.in_flight.values())):
                await asyncio.sleep(0.01)
            await it.load.reach(500)
            it.conclude(broken)
            await begin_again(node)
            await asyncio.to_thread(cluster.wait_ok)
    return it.figures


async def fail_over(cluster, seed, *, rounds):
    """Make a replica a primary by CLUSTER FAILOVER, one after the other (C4)."""
    shards = [_slots_of(node)[0] for node in cluster.primaries()]
    random.Random(seed).shuffle(shards)
    async with trial(cluster, seed, transactions=True) as it:
        it.watch()
        for _, slot in zip(range(rounds), cycle(shards), strict=False):
            # One shard after the other: nodes refuse a second vote for one, and its clients would wait for 5 s.
            replica = cluster.replica_of(cluster.owner(slot))
            await asyncio.to_thread(cluster.failover, replica)
            await it.load.reach(500)
            await asyncio.to_thread(cluster.wait_ok)
        it.conclude()
    return it.figures


async def add_and_remove(cluster, seed, *, rounds, forgotten=False):
    """Add a node, move slots to it and away again, and remove it (C9).

    Args:
        cluster: The cluster.
        seed: The seed.
        rounds: How often.
        forgotten: Whether to wait until the pool has forgotten the node, which takes half a minute; until then it keeps
            the dedicated connections of transactions.
    """
    source = cluster.primaries()[0]
    slots = _slots_of(source)[:MOVED_SLOTS]
    async with trial(cluster, seed, slots=slots, transactions=forgotten, topology_refresh=1) as it:
        await it.load.reach(500)
        before = _Held.now(cluster, it.pool)
        it.watch()
        for _ in range(rounds):
            node = await asyncio.to_thread(cluster.add_node)
            for target in (node, source):
                for slot in slots:
                    await asyncio.to_thread(cluster.migrate, slot, target)
                await it.load.reach(500)
            await asyncio.to_thread(cluster.remove_node, node)
            await it.load.reach(500)
        it.conclude()
        deadline = time.monotonic() + SETTLE_SECONDS
        while (left := _Held.now(cluster, it.pool).beyond(before, forgotten)) != (0, 0, 0):
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.1)
        it.figures.descriptors_left, it.figures.connections_left, it.figures.pools_left = left
    return it.figures


@dataclass
class _Held:
    descriptors: int
    connections: int
    pools: int

    @classmethod
    def now(cls, cluster, pool):
        clients = [line for node in cluster.nodes for line in node.call("CLIENT", "LIST").splitlines()]
        connections = sum(f"name={CLIENT_NAME} " in line for line in clients)
        return cls(len(list(Path("/proc/self/fd").iterdir())), connections, len(pool.cluster_topology.all_pools()))

    def beyond(self, other, forgotten):
        pools = self.pools - other.pools if forgotten else 0
        return self.descriptors - other.descriptors, self.connections - other.connections, pools


def _slots_of(node):
    ranges = [each for each in node.call("CLUSTER", "SLOTS") if each[2][1] == node.port]
    return [slot for first, last, *_ in ranges for slot in range(first, last + 1)]


def _wait_replicating(node):
    """Wait until a node sends its writes on: to a new replica it does so from the first acknowledgement on."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while ",state=online," not in node.call("INFO", "replication"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{node} does not replicate")
        time.sleep(0.005)


def _wait_promoted(replica):
    deadline = time.monotonic() + SETTLE_SECONDS
    while replica.call("ROLE")[0] != "master":
        if time.monotonic() > deadline:
            raise TimeoutError(f"{replica} is still a replica")
        time.sleep(0.005)


async def with_cluster(scenario, seed, **options):
    cluster = ClusterServers()
    await asyncio.to_thread(cluster.start)
    try:
        return await scenario(cluster, seed, **options)
    finally:
        await asyncio.to_thread(cluster.stop)


def scenarios(asked):
    """Return the scenarios: what each does, and the arguments of ``failures``."""
    return {
        "C1 migration": ((migrate, {"calls": asked.calls}), {}),
        "C1 atomic migration": ((migrate, {"calls": asked.calls, "atomic": True}), {}),
        "C2 kill -9": ((kill, {"rounds": asked.rounds}), {"loses": True, "late": asked.late, "redirects": False}),
        "C3 SIGSTOP": ((freeze, {"rounds": asked.rounds}), {"loses": True, "late": asked.late, "redirects": False}),
        "C4 CLUSTER FAILOVER": ((fail_over, {"rounds": asked.failovers}), {}),
        "C5 transactions": ((migrate, {"calls": asked.calls, "transactions": True}), {}),
        "C5 transactions, atomic": ((migrate, {"calls": asked.calls, "transactions": True, "atomic": True}), {}),
        "C9 nodes come and go": ((add_and_remove, {"rounds": asked.rounds, "forgotten": True}), {}),
    }


def table(runs):
    """Return the figures as a table in Markdown, with a column for each scenario."""
    names = [name for name in Figures.__dataclass_fields__ if name != "kinds"]
    rows = [["figure", *runs]]
    rows += [[name.replace("_", " "), *(f"{getattr(each, name):,g}" for each in runs.values())] for name in names]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def run_all(asked):
    runs, failed = {}, []
    for name, ((scenario, options), bounds) in scenarios(asked).items():
        if not any(part.lower() in name.lower() for part in asked.only):
            continue
        try:
            figures = await with_cluster(scenario, asked.seed, **options)
        except NotImplementedError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        runs[name] = figures
        found = failures(figures, **bounds)
        print(f"{name}: {'; '.join(found) or 'passes'}; {figures}", file=sys.stderr, flush=True)
        failed += [f"{name}: {text}" for text in found]
    return runs, failed


async def run_alone(asked):
    """Run the load on the cluster of a URL."""
    async with CountingPool.from_url(asked.url, **UNRECORDED) as pool:
        tags = [f"tag{number}" for number in range(TAGS)]
        load = Load(MonitoredRedisConnection(connection_pool=pool), tags, asked.seed, transactions=True)
        async with load.running():
            await asyncio.sleep(asked.seconds)
        found = await account(load, asked.url)
    print(
        json.dumps(
            {
                **found._asdict(),
                "calls": load.calls,
                "errors": load.errors,
                "slowest": load.slowest,
                "wrong": load.wrong,
                "hung": load.hung,
                **pool.counts,
            },
            indent=2,
        )
    )


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="names of scenarios, or parts of them; default all")
    parser.add_argument("--calls", type=int, default=50_000, help="at least, while slots move; default 50,000")
    parser.add_argument("--rounds", type=int, default=5, help="of each fault of a node; default 5")
    parser.add_argument("--failovers", type=int, default=20, help="default 20")
    parser.add_argument(
        "--late", type=float, default=1.5, help="seconds from a promotion to the end of the slowest call; default 1.5"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--url", help="of a cluster; its keys begin with the hash tags {tag0} to {tag99}")
    parser.add_argument("--seconds", type=float, default=60.0, help="with --url; default 60")
    return parser.parse_args(words)


def main():
    asked = parsed(sys.argv[1:])
    logging.getLogger("aioredis_monitored").setLevel(logging.ERROR)
    print(f"seed {asked.seed}, server {os.environ.get('AIOREDIS_MONITORED_SERVER', 'embedded')}", file=sys.stderr)
    if asked.url:
        asyncio.run(run_alone(asked))
        return
    runs, failed = asyncio.run(run_all(asked))
    print(table(runs))
    print(*failed, sep="\n", end="\n" if failed else "")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
