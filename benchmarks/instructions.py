"""Count the CPU instructions that a GET of 64 bytes costs the client at 128 concurrent callers, with Valgrind.

Usage: python benchmarks/instructions.py [ROW]..., which prints JSON; the rows are those of ``ROWS``, by default all.

Unlike function calls (``calls.py``), instructions weigh: a call into C that hashes ten attributes is not one that
returns a constant. Unlike time, they do not depend on the machine's speed, but on its Python and its C library.

The server is real. A relay in this process delivers all replies to a read's commands at once, as in ``calls.py``. The
client has a process of its own, so that no one else's instructions are counted. It runs twice, and makes three times as
many calls the second time: the difference contains neither start nor end.
"""

import asyncio
import gc
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from typing import Any

from calls import WARM_UP, Relay
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from redis.asyncio import BlockingConnectionPool, Redis

from aioredis_monitored import MonitoredRedisConnection, TelemetryOptions
from aioredis_monitored.testing import RedisServer

CALLERS = 128
GETS = 12  # of each caller, the first time
KEY = "bench:64"
# With it, 1.01 % of the traces that are counted are sampled, if 1 % are to be; with most others, more or fewer.
SEED = 37
COLLECTED = re.compile(rb"Collected : (\d+)")


def redis_py(url: str) -> Redis:
    """Return redis-py's client, the baseline."""
    return Redis.from_pool(BlockingConnectionPool.from_url(url, max_connections=50))


def metrics() -> dict[str, Any]:
    """Return the provider of metrics that are read on demand: an export by the clock would be counted at random."""
    return {"meter_provider": MeterProvider([InMemoryMetricReader()])}


def spans(ratio: float = 1.0) -> dict[str, Any]:
    """Return the provider of spans, of which this share is recorded."""
    provider = TracerProvider(ParentBased(TraceIdRatioBased(ratio)))
    # A span costs more with a processor than with none, and every service has one; but the batch processor's thread
    # exports by the clock, and would be counted at random.
    provider.add_span_processor(SpanProcessor())
    return {"tracer_provider": provider}


def ours(url: str, **telemetry: Any) -> Redis:
    """Return this package's client with this telemetry."""
    return MonitoredRedisConnection.from_url(url, **telemetry)


ROWS: dict[str, Callable[[str], Redis]] = {
    "redis-py pool": redis_py,
    "no SDK": ours,
    "metrics": lambda url: ours(url, **metrics()),
    "1 % of traces + metrics": lambda url: ours(url, **spans(0.01), **metrics()),
    "every span + metrics": lambda url: ours(url, **spans(), **metrics()),
    "every span + metrics, API's way": lambda url: ours(
        url, **spans(), **metrics(), telemetry=TelemetryOptions(direct=False)
    ),
}


async def call(row: str, url: str, gets: int) -> None:
    """Warm a row's client up, then let each of the callers GET this many times."""
    async with ROWS[row](url) as client:
        await client.set(KEY, b"x" * 64)

        async def caller(number: int) -> None:
            for _ in range(number):
                await client.get(KEY)

        for number in (WARM_UP, gets):
            await asyncio.gather(*(caller(number) for _ in range(CALLERS)))


async def counted(row: str, url: str, gets: int) -> int:
    """Return how many instructions a process with a row's client executes from start to end."""
    # The hash seed decides which keys collide. A run that wrote bytecode files would cost more than the next one.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    valgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    process = await asyncio.create_subprocess_exec(
        *valgrind, sys.executable, __file__, row, url, str(gets), env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    found = COLLECTED.search(said)
    if process.returncode or found is None:
        raise RuntimeError(f"no count for {row!r}:\n{said.decode(errors='replace')}")
    return int(found[1])


async def instructions_per_command(server_url: str, rows: list[str]) -> dict[str, int]:
    """Count for each of the rows.

    Args:
        server_url: The server.
        rows: Names in ``ROWS``.
    """
    relay = Relay(server_url)
    url = f"redis://{relay.address}"
    try:
        # One after the other: a relay that serves two clients would let the replies of one wait.
        figures = {row: [await counted(row, url, gets) for gets in (GETS, 3 * GETS)] for row in rows}
    finally:
        relay.close()
    return {row: round((more - fewer) / (2 * GETS * CALLERS)) for row, (fewer, more) in figures.items()}


def main(rows: list[str]) -> None:
    """Start a server and print what the rows cost; exit with a message if that is impossible."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed; on Debian and Ubuntu: apt-get install valgrind")
    if unknown := set(rows).difference(ROWS):
        sys.exit(f"unknown rows: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}")
    if found := shutil.which("redis-server"):
        os.environ.setdefault("AIOREDIS_MONITORED_SERVER", found)
    with RedisServer() as server:
        figures = asyncio.run(instructions_per_command(server.url, rows or list(ROWS)))
    print(json.dumps(figures))  # noqa: T201 - the result


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2].startswith("redis://"):
        # The process that is counted. The garbage collector runs, and traces are sampled, at random otherwise.
        gc.disable()
        random.seed(SEED)
        asyncio.run(call(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    else:
        main(sys.argv[1:])
