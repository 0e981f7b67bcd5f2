"""The clusters' clients, and the cells that a run measures."""

from typing import NamedTuple

from matrix import MANY, Cell, Chart, Contestant

BATCH_CALLERS = 32
BASE, OURS, ALONE, GLIDE = "redis_py/cluster", "ours/no-sdk", "ours/alone", "glide/cluster"

PEERS = {
    BASE: Contestant("redis-py, RedisCluster"),
    GLIDE: Contestant("valkey-glide, GlideClusterClient", "glide"),
    "coredis/cluster": Contestant("coredis, RedisCluster", "coredis"),
}
CONTESTANTS = {
    ALONE: Contestant("aioredis_monitored, one server that is no cluster"),
    OURS: Contestant("aioredis_monitored, no SDK"),
    "ours/metrics": Contestant("aioredis_monitored, metrics"),
    "ours/everything": Contestant("aioredis_monitored, every span + metrics"),
    **PEERS,
}
CHART = Chart(
    "half", BASE, CONTESTANTS, "GETs and SETs a second in a cluster, by number of callers", "redis-py's RedisCluster"
)


class Setting(NamedTuple):
    """What callers do, and where."""

    workload: str  # that of the driver
    primaries: int
    replicas: int = 0  # of each primary


SETTINGS = {
    "half": Setting("half", 3, 1),
    "batch": Setting("batch", 3, 1),
    "half of 6": Setting("half", 6),
    "half of 12": Setting("half", 12),
}


def cells() -> list[Cell]:
    """List the cells of a whole run."""
    return [
        *(Cell(c, "half", n) for c in (OURS, ALONE, *PEERS) for n in (1, 16, MANY, 1024)),
        *(Cell(c, "half", MANY) for c in ("ours/metrics", "ours/everything")),
        *(Cell(c, "batch", BATCH_CALLERS) for c in (OURS, ALONE, *PEERS)),
        *(Cell(c, workload, MANY) for c in (OURS, *PEERS) for workload in ("half of 6", "half of 12")),
    ]


def quick_cells() -> list[Cell]:
    """List the cells that the bounds need."""
    return [
        *(Cell(c, "half", 1) for c in (BASE, OURS)),
        *(Cell(c, "half", n) for c in (BASE, OURS, GLIDE) for n in (MANY, 1024)),
        Cell(ALONE, "half", MANY),
        *(Cell(c, "batch", BATCH_CALLERS) for c in (BASE, OURS)),
    ]
