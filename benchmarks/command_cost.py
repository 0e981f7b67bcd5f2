"""What a GET costs this client beside plain redis-py: ratios from one run, medians over interleaved rounds.

Usage: python benchmarks/command_cost.py [ROUNDS]
"""

import asyncio
import statistics
import sys
import time

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NoOpTracerProvider
from redis.asyncio import BlockingConnectionPool, Redis

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.testing import RedisServer

COMMANDS = 2000
OFF = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


def clients(url: str) -> dict[str, Redis]:
    """The clients to compare; the first is the measure of the others."""

    def monitored(**providers: object) -> Redis:
        return MonitoredRedisConnection.from_url(url, **{**OFF, **providers})

    metrics = MeterProvider([InMemoryMetricReader()])
    return {
        "redis-py, BlockingConnectionPool": Redis.from_pool(BlockingConnectionPool.from_url(url)),
        "ours, no SDK": monitored(),
        "ours, metrics": monitored(meter_provider=metrics),
        "ours, spans and metrics": monitored(meter_provider=metrics, tracer_provider=TracerProvider()),
    }


async def cpu_per_command(client: Redis) -> float:
    """Microseconds of this process's CPU for one GET."""
    started = time.process_time()
    for _ in range(COMMANDS):
        await client.get("key")
    return (time.process_time() - started) / COMMANDS * 1e6


async def compare(url: str, rounds: int) -> None:
    """Measure in turn, so that the machine's moods meet all of them, and print a table."""
    measured = clients(url)
    costs: dict[str, list[float]] = {name: [] for name in measured}
    for client in measured.values():
        await client.set("key", "x" * 64)
    for _ in range(rounds):
        for name, client in measured.items():
            costs[name].append(await cpu_per_command(client))
    for client in measured.values():
        await client.aclose()
    base = statistics.median(next(iter(costs.values())))
    for name, values in costs.items():
        median = statistics.median(values)
        sys.stdout.write(f"{name:34} {median:7.1f} µs CPU per GET  {median / base:5.2f}x\n")


if __name__ == "__main__":
    with RedisServer() as server:
        asyncio.run(compare(server.url, int(sys.argv[1]) if len(sys.argv) > 1 else 9))
