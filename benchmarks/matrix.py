"""The clients, and the combinations of client, workload, callers and loop that a run measures."""

from typing import NamedTuple


class Contestant(NamedTuple):
    """A client's label in tables, and the environment that it needs."""

    label: str
    environment: str = "current"


MANY = 128  # callers of most comparisons
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
    """One combination that is measured: one figure of a table."""

    client: str
    workload: str
    callers: int
    loop: str = "asyncio"

    @property
    def base(self) -> "Cell":
        """The cell of redis-py's pool, with which this one is compared."""
        return self._replace(client=BASE)

    @property
    def group(self) -> tuple[str, int, str]:
        """The fields that are equal in all cells that are compared."""
        return self[1:]


class Chart(NamedTuple):
    """What a chart shows.

    Attributes:
        workload: The workload.
        base: The client whose throughput at ``MANY`` callers is 1.
        contestants: The clients by name.
        title: The chart's title.
        one: What 1 stands for.
    """

    workload: str
    base: str
    contestants: dict[str, Contestant]
    title: str
    one: str


CHART = Chart(
    "get",
    BASE,
    {client: contestant for client, contestant in CONTESTANTS.items() if client not in SDK_ALONE},
    "GETs of 64 bytes a second, by number of callers",
    "redis-py's BlockingConnectionPool(50)",
)

CORE = (LIMIT, "ours/no-sdk", "ours/everything", BASE, "redis_py/redis", "glide/plain", "coredis/plain")


def cells() -> list[Cell]:
    """List the cells of a whole run."""
    return [
        *(Cell(c, "get", n) for c in CONTESTANTS if c not in SDK_ALONE for n in (1, 16, MANY, 1024)),
        *(Cell(c, "get", n, "uvloop") for c in CORE for n in (1, MANY)),
        *(Cell(c, "10kB", n) for c in CORE for n in (1, MANY)),
        *(Cell(c, "mix", MANY) for c in (*CORE, "redis_py/both")),
        *(Cell(c, "large", 8) for c in (BASE, "ours/no-sdk", "ours/unshared")),
        *(Cell(c, "get", MANY) for c in SDK_ALONE),
    ]


def quick_cells() -> list[Cell]:
    """List the cells that the bounds need, for a quick look during development."""
    telemetry = ("ours/metrics", "ours/sampled", "ours/otlp", "redis_py/both", *SDK_ALONE)
    return [
        *(Cell(c, "get", 1) for c in (BASE, "ours/no-sdk", "ours/metrics", "ours/sampled", "ours/everything")),
        *(Cell(c, "get", MANY) for c in (*CORE, *telemetry) if c not in {"coredis/plain", "redis_py/redis"}),
        Cell("ours/no-sdk", "get", 1024),
        *(Cell(c, "large", 8) for c in (BASE, "ours/no-sdk")),
    ]
