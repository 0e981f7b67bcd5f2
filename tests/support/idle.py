"""Run four consumers of empty queues for some seconds; print how often they have waited, and what was recorded.

A separate program, so that nothing else is recorded meanwhile.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress

from aioredis_monitored import MessageQueue, MonitoredConnectionPool, TimedOutError
from aioredis_monitored.testing import RedisServer, TelemetryCapture


async def main(seconds):
    until = time.monotonic() + seconds
    looks = 0

    async def consume(wait):
        nonlocal looks
        while time.monotonic() < until:
            with suppress(TimedOutError, TimeoutError):
                await wait()
            looks += 1

    async def get_within(queue, seconds):
        async with asyncio.timeout(seconds):
            await queue.get()

    async def take(queue):
        async with queue.take(timeout=1):
            pass

    async def handle(message):
        raise AssertionError(message)

    async def work_within(queue, seconds):
        async with asyncio.timeout(seconds):
            await queue.consume(handle)

    with RedisServer() as server, TelemetryCapture() as telemetry:
        async with MonitoredConnectionPool.from_url(server.url, **telemetry.providers) as pool:
            queues = [MessageQueue(f"queue{number}", pool, lease=1) for number in range(4)]
            await asyncio.gather(
                consume(lambda: queues[0].get(timeout=1)),
                consume(lambda: get_within(queues[1], 1)),
                consume(lambda: take(queues[2])),
                consume(lambda: work_within(queues[3], seconds / 10)),
            )
            points = telemetry.tally("db.client.operation.duration", "db.operation.name", "error.type")
            print(json.dumps({"looks": looks, "spans": telemetry.tree(), "points": points}))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
