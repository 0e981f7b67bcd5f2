"""How tests of the shared connection hold it still, what they look at, and how they time calls on a busy machine."""

import asyncio
import time
from contextlib import asynccontextmanager
from typing import NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.trace import NoOpTracerProvider

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored.multiplexer import Lost

# Where what is recorded is not the point, and would take most of the time.
UNRECORDED = {"tracer_provider": NoOpTracerProvider(), "meter_provider": NoOpMeterProvider()}


def client_of(make_pool, url, **options):
    """A client whose connections ``connections`` finds."""
    return MonitoredRedisConnection(connection_pool=make_pool(url, client_name="tested", **options))


async def call_with_orphan_handler(client, handler, *args):
    """The reply to a command, which the handler gets if this is left."""
    reply = await client.connection_pool.multiplexer.send(args, handler).within(None)
    if isinstance(reply, Lost):
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


class _LoopClock:
    """Stands still while an event loop waits for a processor, and goes on while it waits for events or uses one.

    What a hypervisor takes from a processor counts as used, and so does a run of the garbage collector: hence it keeps
    what each turn of the loop took beyond the usual, the longest of which is forgiven once.
    """

    TICK = 0.05
    LATENESS = 0.01
    STALL = 0.3

    def __init__(self):
        self._ran = 0.0
        self._stalls = []
        self._ticked, self._used = time.monotonic(), time.thread_time()
        self._tick()

    def start(self):
        began, known, before = self._seconds(), len(self._stalls), self._stall()

        def took():
            stalls = [*self._stalls[known:], self._stall()]
            # Of the turn in which it was started, the rest alone.
            stalls[0] -= before
            return self._seconds() - began - min(max(stalls), self.STALL)

        return took

    def _turn(self):
        at_most = max(self.TICK + self.LATENESS, time.thread_time() - self._used)
        return min(time.monotonic() - self._ticked, at_most)

    def _seconds(self):
        return self._ran + self._turn()

    def _stall(self):
        return max(0.0, self._turn() - self.TICK - self.LATENESS)

    def _tick(self):
        self._stalls.append(self._stall())
        self._ran = self._seconds()
        self._ticked, self._used = time.monotonic(), time.thread_time()
        asyncio.get_running_loop().call_later(self.TICK, self._tick)


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClock] = WeakKeyDictionary()


class Took(NamedTuple):
    """What a call took, in seconds, and what of that is not for want of a processor: no call ends without one."""

    seconds: float
    running: float

    def within(self, least, most):
        return least <= self.seconds and self.running <= most


def stopwatch():
    """Start to measure a time that a busy machine does not lengthen; the function returned says what it ``Took``."""
    loop = asyncio.get_running_loop()
    if loop not in _clocks:
        _clocks[loop] = _LoopClock()
    started, running = time.monotonic(), _clocks[loop].start()
    return lambda: Took(time.monotonic() - started, running())
