"""The queues, this package's and others, and the cells that a run measures."""

from matrix import Cell, Contestant

MANY = 32  # consumers of most comparisons
BASE, PUT_BASE = "redis_py/blpop", "redis_py/rpush"
LATENCY_RATE = 200  # messages a second

OURS = {
    f"ours/{method}": Contestant(f"aioredis_monitored, {method}{' of 100' if method.endswith('_many') else ''}")
    for method in ("get", "get_many", "take", "take_many", "consume")
}
PEERS = {
    "arq/worker": Contestant("arq", "arq"),
    "saq/worker": Contestant("SAQ", "saq"),
    "taskiq/stream": Contestant("taskiq-redis, RedisStreamBroker", "taskiq"),
    "streaq/worker": Contestant("streaQ", "streaq"),
}
RQ = "rq/simple"
CONSUMERS = {BASE: Contestant("redis-py, BLPOP in a loop"), **OURS, **PEERS, RQ: Contestant("RQ, SimpleWorker", "rq")}
PRODUCERS = {
    PUT_BASE: Contestant("redis-py, RPUSH"),
    "ours/put": Contestant("aioredis_monitored, put"),
    "ours/put_many": Contestant("aioredis_monitored, put_many of 100"),
}
CONTESTANTS = {**CONSUMERS, **PRODUCERS}

# Approximate messages a second, by one consumer and by MANY; they give a measurement its intended duration.
PACE = {
    BASE: (5_000, 15_000),
    "ours/get": (7_000, 70_000),
    "ours/get_many": (500_000, 1_500_000),
    "ours/take": (3_000, 22_000),
    "ours/take_many": (200_000, 450_000),
    "ours/consume": (3_000, 25_000),
    "arq/worker": (700, 1_700),
    "saq/worker": (750, 2_000),
    "taskiq/stream": (2_300, 2_800),
    "streaq/worker": (650, 1_100),
    RQ: (220, 220),
    PUT_BASE: (6_000, 16_000),
    "ours/put": (8_000, 70_000),
    "ours/put_many": (500_000, 2_000_000),
}


def messages(cell: Cell, seconds: float) -> int:
    """Return the number of messages for a measurement of ``seconds``; latency takes five times as long."""
    if cell.workload == "latency":
        return int(LATENCY_RATE * 5 * seconds)
    return int(PACE[cell.client][cell.callers > 1] * seconds)


def cells() -> list[Cell]:
    """List the cells of a whole run; RQ works one job at a time."""
    return [
        *(Cell(c, "consume", n) for c in CONSUMERS for n in (1, MANY) if (c, n) != (RQ, MANY)),
        *(Cell(c, "produce", n) for c in PRODUCERS for n in (1, MANY)),
        *(Cell(c, "latency", 1 if c == RQ else MANY) for c in CONSUMERS if not c.endswith("_many")),
    ]


def quick_cells() -> list[Cell]:
    """List the cells that the bounds need."""
    return [Cell(c, "consume", MANY) for c in (BASE, "ours/get", "ours/take", "ours/take_many", *PEERS)]
