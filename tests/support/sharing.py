"""Helpers for tests of the shared connection: they hold it still, and observe it."""

import asyncio
import gc
import warnings
from contextlib import asynccontextmanager, suppress

import redis.exceptions
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._multiplexer import AttemptFailed

# For tests that do not check telemetry, which would take most of their time.
UNRECORDED = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


def client_of(make_pool, url, **options):
    """Return a client whose connections ``connections`` finds."""
    return MonitoredRedisConnection(connection_pool=make_pool(url, client_name="tested", **options))


async def call_with_orphan_handler(client, handler, *args):
    """Return the reply to a command; the handler gets it if the caller leaves."""
    reply = await client.connection_pool.multiplexer.send(args, handler).wait_for(None)
    if isinstance(reply, AttemptFailed):
        raise reply.error
    return reply


async def until_blocked(inspector, count=1):
    """Wait until ``count`` clients are blocked; the test's timeout is the deadline."""
    while inspector.info("clients")["blocked_clients"] < count:
        await asyncio.sleep(0.001)


def connections(inspector):
    """Return the server's ids of the connections of clients from ``client_of``."""
    return {int(info["id"]) for info in inspector.client_list() if info["name"] == "tested"}


@asynccontextmanager
async def frozen(server):
    """Freeze the server while the block runs."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def until_answered(call):
    """Return the reply to a repeatable call whose timeout may be too short for a slow machine.

    The test's timeout is the deadline.
    """
    while True:
        try:
            return await call()
        except redis.exceptions.TimeoutError:
            pass


async def begun(*calls):
    """Return tasks whose calls are written or queued."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def warnings_of_forgetting(make_pool, new_loop):
    """Return Python's warnings when a pool in use is garbage while its event loop pauses."""

    async def use():
        pool = make_pool()
        await pool.ping()
        return pool

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            pool = runner.run(use())
            del pool
            gc.collect()
            runner.run(asyncio.sleep(0))
            gc.collect()
        # asyncio warns of sockets that are left.
        gc.collect()
    return [str(warning.message) for warning in caught]


def warnings_after(use, times=5):
    """Run a coroutine function in event loops that are closed as soon as it has ended; return what was warned of."""
    # What earlier tests have left.
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
            gc.collect()
    return [str(each.message) for each in caught]


async def close_while_blocked(pool):
    """Use a pool's shared connection and dedicated ones, and close it while a caller is blocked and one subscribed."""
    async with pool:
        client = MonitoredRedisConnection(connection_pool=pool)
        assert await client.set("key", "value")
        async with client.pubsub() as subscription:
            await subscription.subscribe("channel")
            blocked = asyncio.ensure_future(client.blpop("list", 0))
            async with asyncio.timeout(60):
                await until_any_blocked(client)
            await pool.aclose()
        with suppress(redis.exceptions.ConnectionError):
            await blocked


async def until_any_blocked(client):
    """Wait until a client of the same server is blocked."""
    while not (await client.info("clients"))["blocked_clients"]:
        await asyncio.sleep(0.001)
