"""How tests of the shared connection hold it still, and what they look at."""

import asyncio
from contextlib import asynccontextmanager

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MonitoredRedisConnection

# Where what is recorded is not the point, and would take most of the time.
UNRECORDED = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


def client_of(make_pool, url, **options):
    """A client whose connections ``connections`` finds."""
    return MonitoredRedisConnection(connection_pool=make_pool(url, client_name="tested", **options))


def connections(inspector):
    """The ids that the server has given to the connections of such clients."""
    return {int(info["id"]) for info in inspector.client_list() if info["name"] == "tested"}


def line_of(client):
    return client.connection_pool.multiplexer._main.line


@asynccontextmanager
async def frozen(server):
    """The server answers nothing meanwhile."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


async def begun(*calls):
    """Tasks whose calls are written, or wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks
