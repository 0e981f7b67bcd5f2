"""The tables of queues, and the bounds of this package's queue."""

from typing import Any

from figures import Results
from matrix import Cell
from queue_matrix import BASE, CONSUMERS, CONTESTANTS, MANY, PEERS, PRODUCERS, PUT_BASE, RQ
from report import Column, as_ratio, failures, provenance, table
from verdict import Bound, bounds_table

CONSUMED = """\
Messages of 64 bytes from a filled queue, with 1 and with 32 consumers; CPU time of client and server with 32; latency
with 32 waiting consumers, from before the put, in another process, to the handler. All are ratios to redis-py's BLPOP
in a loop, in the same run. RQ has one consumer in all columns.
"""
PRODUCED = """\
Puts by 1 and by 32 producers, as ratios to redis-py's RPUSH; CPU time with 32.
"""


def tables(metadata: dict[str, Any], results: Results) -> str:
    """Format the machine, the tables and the bounds as markdown."""

    def versus(base: str, workload: str, callers: int, name: str = "throughput", unit: str = "/s") -> Column:
        def column(client: str) -> str:
            client_callers = 1 if client == RQ else callers
            return as_ratio(results, Cell(client, workload, client_callers), Cell(base, workload, callers), name, unit)

        return column

    def columns(base: str, workload: str) -> dict[str, Column]:
        return {
            "1": versus(base, workload, 1),
            "32": versus(base, workload, MANY),
            "client CPU/message": versus(base, workload, MANY, "cpu_us", " µs"),
            "server CPU/message": versus(base, workload, MANY, "server_us", " µs"),
        }

    latencies = {name: versus(BASE, "latency", MANY, f"{name}_ms", " ms") for name in ("p50", "p99")}
    return "\n".join(
        [
            provenance(metadata, results),
            CONSUMED,
            table({**columns(BASE, "consume"), **latencies}, CONSUMERS, CONTESTANTS),
            PRODUCED,
            table(columns(PUT_BASE, "produce"), PRODUCERS, CONTESTANTS),
            failures(results, CONTESTANTS),
            bounds_table(bounds(results), "32 consumers, messages a second"),
        ]
    )


def bounds(results: Results) -> list[Bound]:
    """List the bounds of this package's queue."""

    def ratio(client: str, other: str = BASE) -> float | None:
        return results.ratio(Cell(client, "consume", MANY), Cell(other, "consume", MANY))

    return [
        Bound("get by redis-py's BLPOP", ratio("ours/get"), 2.5),
        Bound("take by redis-py's BLPOP, which acknowledges nothing", ratio("ours/take"), 1),
        Bound("take_many of 100 by redis-py's BLPOP", ratio("ours/take_many"), 3),
        *(Bound(f"take by {peer.label}", ratio("ours/take", client), 4) for client, peer in PEERS.items()),
    ]


def missed(results: Results, *, is_part: bool) -> list[str]:
    """List the missed bounds; unmeasured ones count as missed unless only a part was measured."""
    return [
        bound.text for bound in bounds(results) if not (bound.is_met(bound.must) or (is_part and bound.value is None))
    ]
