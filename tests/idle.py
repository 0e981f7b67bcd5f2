"""Four consumers of empty queues for so many seconds; prints how often they have looked, and what was recorded of it.

A program of its own, which runs beside the other tests: they would have nothing to do for a minute.
"""

import asyncio
import json
import sys
import time

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, TimedOutError
from aioredis_monitored.testing import RedisServer, TelemetryCapture


async def main(seconds):
    until = time.monotonic() + seconds
    looks = 0

    async def consume(queue):
        nonlocal looks
        while time.monotonic() < until:
            try:
                await queue.get(timeout=1)
            except TimedOutError:
                looks += 1

    with RedisServer() as server, TelemetryCapture() as telemetry:
        async with MonitoredConnectionPool.from_url(server.url, **telemetry.providers) as pool:
            await asyncio.gather(*(consume(MessageQueue(f"queue{number}", pool)) for number in range(4)))
            points = telemetry.tally("db.client.operation.duration", "db.operation.name", "error.type")
            print(json.dumps({"looks": looks, "spans": telemetry.tree(), "points": points}))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
