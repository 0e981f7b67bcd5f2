"""Consumers of a queue in separate processes, which can be killed, and the server's view of held messages."""

import asyncio
import os
import subprocess
import sys
from contextlib import contextmanager

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MessageQueue, MonitoredConnectionPool

POISON = b"poison"


def held(inspector):
    """Return the messages on the processing lists of the queue ``mail``."""
    return [message for key in inspector.scan_iter("{mail}:p:*") for message in inspector.lrange(key, 0, -1)]


def die(inspector, *consumers):
    """Register consumers of the queue ``mail`` whose leases have ended."""
    inspector.zadd("{mail}:c", dict.fromkeys(consumers, 0))


def living(inspector):
    """Return the consumers of the queue ``mail`` whose leases have not ended."""
    seconds, microseconds = inspector.time()
    return set(inspector.zrangebyscore("{mail}:c", seconds * 1e3 + microseconds / 1e3, "+inf"))


def blocked(inspector):
    """Return how many consumers wait for a message."""
    return inspector.info("clients")["blocked_clients"]


@contextmanager
def consumer(server, program, number):
    """Run one of the programs below in a process."""
    command = [sys.executable, __file__, server.url, program, str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this Python
        try:
            yield process
        finally:
            process.kill()


def hold_and_die(server, count):
    """Have ``count`` messages held by a consumer that is killed."""
    with consumer(server, "hold", count) as process:
        assert "held\n" == process.stdout.readline()


async def hold(queue, count):
    """Hold messages until the process is killed."""
    async with queue.take_many(count):
        print("held", flush=True)
        await asyncio.Event().wait()


async def handle(queue, concurrency):
    """Handle messages until the process is killed, or exits at the poison message."""

    async def handler(message):
        if message == POISON:
            os._exit(1)
        if concurrency > 1:
            # So that other messages are held when the process dies.
            await asyncio.sleep(0.02)
        await queue.client.sadd("done", message)

    await queue.consume(handler, concurrency=concurrency)


async def main(url, program, number):
    silent = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}
    async with MonitoredConnectionPool.from_url(url, **silent) as pool:
        await {"hold": hold, "handle": handle}[program](MessageQueue("mail", pool, lease=1, max_deliveries=3), number)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3], int(sys.argv[3])))
