"""The tables of clients of a cluster, and the bounds of this package's client."""

from typing import Any

from cluster_matrix import ALONE, BASE, BATCH_CALLERS, CONTESTANTS, GLIDE, OURS, PEERS
from figures import Results
from matrix import MANY, Cell
from report import Column, as_number, as_ratio, failures, provenance, table
from verdict import Bound, bounds_table

HALF = """\
GET and SET of 64 bytes, half and half, of 1,000 keys; three primaries with a replica each. Throughput by number of
callers; CPU time and latency at 128 callers, and the client's connections at 128 and at 1,024. All but those are ratios
to redis-py's `RedisCluster` in the same run.
"""
BATCH = """\
Pipelines of 20 GETs of keys in all slots, without MULTI, by 32 callers: commands, as ratios to redis-py's.
"""
NODES = """\
The first table's commands at 128 callers, by number of primaries; each as a ratio to redis-py's with as many. Those of
6 and 12 have no replicas.
"""


def tables(metadata: dict[str, Any], results: Results) -> str:
    """Format the machine, the tables and the bounds as markdown."""

    def versus_base(*cell: Any, name: str = "throughput", unit: str = "/s") -> Column:
        return lambda client: as_ratio(results, Cell(client, *cell), Cell(BASE, *cell), name, unit)

    def number(*cell: Any, name: str) -> Column:
        return lambda client: as_number(results, Cell(client, *cell), name)

    half, batch = ("half", MANY), ("batch", BATCH_CALLERS)
    cpu = {"name": "cpu_us", "unit": " µs"}
    return "\n".join(
        [
            provenance(metadata, results),
            HALF,
            table(
                {
                    "1": versus_base("half", 1),
                    "16": versus_base("half", 16),
                    "128": versus_base(*half),
                    "1,024": versus_base("half", 1024),
                    "CPU/command": versus_base(*half, **cpu),
                    "p50": versus_base(*half, name="p50_ms", unit=" ms"),
                    "p99": versus_base(*half, name="p99_ms", unit=" ms"),
                    "connections": number(*half, name="connections"),
                    "… of 1,024": number("half", 1024, name="connections"),
                },
                CONTESTANTS,
                CONTESTANTS,
            ),
            BATCH,
            table(
                {"commands": versus_base(*batch), "CPU/command": versus_base(*batch, **cpu)}, CONTESTANTS, CONTESTANTS
            ),
            NODES,
            table(
                {
                    "3": versus_base(*half),
                    "6": versus_base("half of 6", MANY),
                    "12": versus_base("half of 12", MANY),
                    "CPU/command at 12": versus_base("half of 12", MANY, **cpu),
                },
                (OURS, *PEERS),
                CONTESTANTS,
            ),
            failures(results, CONTESTANTS),
            bounds_table(bounds(results), "GET and SET, commands a second"),
        ]
    )


def bounds(results: Results) -> list[Bound]:
    """List the bounds of this package's client."""

    def ratio(callers: int, other: str = BASE, workload: str = "half") -> float | None:
        return results.ratio(Cell(OURS, workload, callers), Cell(other, workload, callers))

    return [
        Bound("1 caller, by redis-py's RedisCluster", ratio(1), 1),
        Bound("128 callers, by redis-py's RedisCluster", ratio(MANY), 5),
        Bound("1,024 callers, by redis-py's RedisCluster", ratio(1024), 5),
        Bound("128 callers, by valkey-glide", ratio(MANY, GLIDE), 2),
        Bound("1,024 callers, by valkey-glide", ratio(1024, GLIDE), 2),
        Bound("128 callers, by this client on one server", ratio(MANY, ALONE), 0.75),
        Bound("pipelines of 20 in all slots, by redis-py's RedisCluster", ratio(BATCH_CALLERS, BASE, "batch"), 1.8),
    ]


def missed(results: Results, *, is_part: bool) -> list[str]:
    """List the missed bounds; unmeasured ones count as missed unless only a part was measured."""
    return [
        bound.text for bound in bounds(results) if not (bound.is_met(bound.must) or (is_part and bound.value is None))
    ]
