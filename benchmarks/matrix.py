"""What is measured: the clients, and the part of clients x workloads x callers x loops that readers need."""

from typing import NamedTuple


class Contestant(NamedTuple):
    """A client as tables call it, and the environment that it needs."""

    label: str
    environment: str = "own"


MANY = 128  # callers, where most is compared
BASE, LIMIT = "redis_py/pool", "limit/hiredis"
SDK_ALONE = ("sdk/plain", "sdk/exemplar")

CONTESTANTS = {
    LIMIT: Contestant("the limit: hiredis on one socket, no client library"),
    "ours/no-sdk": Contestant("aioredis_monitored, no SDK"),
    "ours/metrics": Contestant("aioredis_monitored, metrics"),
    "ours/sampled": Contestant("aioredis_monitored, 1 % of traces + metrics"),
    "ours/everything": Contestant("aioredis_monitored, every span + metrics"),
    "ours/otlp": Contestant("aioredis_monitored, every span + metrics, OTLP/HTTP"),
    "ours/unshared": Contestant("aioredis_monitored, multiplex=False, no SDK"),
    BASE: Contestant("redis-py, BlockingConnectionPool(50)"),
    "redis_py/redis": Contestant("redis-py, Redis"),
    "redis_py/contrib": Contestant("redis-py, pool + contrib spans"),
    "redis_py/native": Contestant("redis-py, pool + native metrics"),
    "redis_py/both": Contestant("redis-py, pool + contrib spans + native metrics"),
    "glide/plain": Contestant("valkey-glide", "glide"),
    "glide/telemetry": Contestant("valkey-glide, its spans and metrics", "glide"),
    "coredis/plain": Contestant("coredis", "coredis"),
    "coredis/telemetry": Contestant("coredis, its spans and metrics", "coredis"),
    "sdk/plain": Contestant("the SDK alone: one span, one point"),
    "sdk/exemplar": Contestant("the SDK alone: one span, one point with exemplar"),
}


class Cell(NamedTuple):
    """One figure of a table."""

    client: str
    workload: str
    callers: int
    loop: str = "asyncio"

    @property
    def base(self) -> "Cell":
        """What it is a ratio to."""
        return self._replace(client=BASE)

    @property
    def group(self) -> tuple[str, int, str]:
        """What it has in common with those that it is compared with."""
        return self[1:]


CORE = (LIMIT, "ours/no-sdk", "ours/everything", BASE, "redis_py/redis", "glide/plain", "coredis/plain")


def cells() -> list[Cell]:
    """All that a full run measures."""
    return [
        *(Cell(c, "get", n) for c in CONTESTANTS if c not in SDK_ALONE for n in (1, 16, MANY, 1024)),
        *(Cell(c, "get", n, "uvloop") for c in CORE for n in (1, MANY)),
        *(Cell(c, "10kB", n) for c in CORE for n in (1, MANY)),
        *(Cell(c, "mix", MANY) for c in (*CORE, "redis_py/both")),
        *(Cell(c, "large", 8) for c in (BASE, "ours/no-sdk", "ours/unshared")),
        *(Cell(c, "get", MANY) for c in SDK_ALONE),
    ]


def quick_cells() -> list[Cell]:
    """What the rows of must and aim need, once; for development."""
    telemetry = ("ours/sampled", "redis_py/both", *SDK_ALONE)
    return [
        *(Cell(c, "get", 1) for c in (BASE, "ours/no-sdk")),
        *(Cell(c, "get", MANY) for c in (*CORE, *telemetry) if c not in {"coredis/plain", "redis_py/redis"}),
        Cell("ours/no-sdk", "get", 1024),
        *(Cell(c, "large", 8) for c in (BASE, "ours/no-sdk")),
    ]
