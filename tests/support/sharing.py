"""How tests of the shared connection hold it still, and what they look at."""

import asyncio
import gc
import warnings
from contextlib import asynccontextmanager

import redis.exceptions
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._multiplexer import AttemptFailed

# Where what is recorded is not the point, and would take most of the time.
UNRECORDED = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


def client_of(make_pool, url, **options):
    """A client whose connections ``connections`` finds."""
    return MonitoredRedisConnection(connection_pool=make_pool(url, client_name="tested", **options))


async def call_with_orphan_handler(client, handler, *args):
    """The reply to a command, which the handler gets if this is left."""
    reply = await client.connection_pool.multiplexer.send(args, handler).wait_for(None)
    if isinstance(reply, AttemptFailed):
        raise reply.error
    return reply


async def until_blocked(inspector, count=1):
    """Wait until so many clients wait for an element; the test's own time limit is the deadline."""
    while inspector.info("clients")["blocked_clients"] < count:
        await asyncio.sleep(0.001)


def connections(inspector):
    """The ids that the server has given to the connections of such clients."""
    return {int(info["id"]) for info in inspector.client_list() if info["name"] == "tested"}


def line_of(client):
    return client.connection_pool.multiplexer._main.connection


@asynccontextmanager
async def frozen(server):
    """The server answers nothing meanwhile."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def until_answered(call):
    """The reply to a call that may be repeated, where the timeout is short and the machine may be slow.

    The test's own time limit is the deadline.
    """
    while True:
        try:
            return await call()
        except redis.exceptions.TimeoutError:
            pass


async def begun(*calls):
    """Tasks whose calls are written, or wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


def warnings_of_forgetting(make_pool, new_loop):
    """What Python warns of when a pool, in use by then, is forgotten while its event loop pauses."""

    async def use():
        pool = make_pool()
        await pool.ping()
        return pool

    with warnings.catch_warnings(record=True) as caught, asyncio.Runner(loop_factory=new_loop) as runner:
        warnings.simplefilter("always")
        pool = runner.run(use())
        del pool
        gc.collect()
        runner.run(asyncio.sleep(0))
        gc.collect()
    return [str(warning.message) for warning in caught]
