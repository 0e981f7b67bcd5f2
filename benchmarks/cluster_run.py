"""Measure this package's client on clusters beside redis-py's, coredis' and valkey-glide's; fail if it is too slow.

Usage: python benchmarks/cluster_run.py [--quick] [--repeats N] [--minutes M] [--seconds S] [--only TEXT] [--seed N]

With ``--quick``, a missed bound is only shown.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import redis
from bench import HERE, Bench, choose_server, command_line, connections_to, print_line, write
from cluster_matrix import ALONE, CHART, CONTESTANTS, SETTINGS, Setting, cells, quick_cells
from cluster_report import missed, tables
from driver import Measurement
from environments import machine
from matrix import Cell

from aioredis_monitored.testing import ClusterServers, RedisServer

# A node that waits for the processor must not count as failed.
NODE_TIMEOUT_SECONDS = 15.0


class Servers(NamedTuple):
    """The servers of a run, as URLs of one node of each cluster, and of the server that is alone."""

    clusters: dict[tuple[int, int], str]  # by numbers of primaries, and of replicas of each
    alone: str
    clients: list[redis.Redis]  # of all nodes

    def url(self, cell: Cell) -> str:
        """Return the URL for a cell."""
        return self.alone if cell.client == ALONE else self.clusters[SETTINGS[cell.workload][1:]]


@contextmanager
def benchmark_servers(settings: set[Setting]) -> Iterator[Servers]:
    """Start a cluster for each number of nodes, and a server that is alone."""
    choose_server()
    with ExitStack() as stack:
        alone = stack.enter_context(RedisServer())
        running, clusters = [alone], {}
        for primaries, replicas in {setting[1:] for setting in settings}:
            servers = ClusterServers(primaries=primaries, replicas=replicas, node_timeout=NODE_TIMEOUT_SECONDS)
            running += stack.enter_context(servers).nodes
            clusters[primaries, replicas] = f"redis+cluster://{servers.nodes[0].host}:{servers.nodes[0].port}"
        clients = [stack.enter_context(redis.Redis.from_url(server.url)) for server in running]
        yield Servers(clusters, alone.url, clients)


def command(cell: Cell, servers: Servers, arguments: argparse.Namespace) -> list[str]:
    """Return the command that measures this cell once."""
    measured = cell._replace(workload=SETTINGS[cell.workload].workload)
    measurement = Measurement(*measured, servers.url(cell), arguments.seed, arguments.seconds)
    return [str(HERE / "driver.py"), json.dumps(measurement._asdict())]


def main() -> None:
    """Measure, write the results, and exit with the missed bounds."""
    arguments = command_line(argparse.ArgumentParser(description=__doc__.splitlines()[0]), minutes=20)
    chosen = [c for c in (quick_cells() if arguments.quick else cells()) if arguments.only in " ".join(map(str, c))]
    print_line(f"seed {arguments.seed}: {len(chosen)} cells, {arguments.repeats} repeats of {arguments.seconds} s")
    with benchmark_servers({SETTINGS[cell.workload] for cell in chosen}) as servers:
        metadata = {"machine": machine(servers.alone, ("redis", "hiredis")), "settings": vars(arguments)}
        bench = Bench(
            connections_to(*servers.clients), CONTESTANTS, lambda cell: command(cell, servers, arguments), arguments
        )
        results = bench.run(chosen)
    from plot import plot  # noqa: PLC0415 - needs matplotlib, which the tests have not

    text = tables(metadata, results)
    directory = write("cluster", metadata, results, text)
    plot(directory / "cluster.svg", results, CHART)
    print_line(f"\n{text}\nwritten to {directory}")
    if (slow := missed(results, is_part=bool(arguments.only))) and not arguments.quick:
        sys.exit(f"missed: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
