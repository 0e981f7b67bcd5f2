"""Fixtures: real servers, clients with captured telemetry, and a check of what each test leaves behind."""

import asyncio
import gc
import os
import random
import signal
import time

import pytest
import redis
from hypothesis import HealthCheck, settings
from support.collector import collecting
from support.internals import record_by_the_api
from support.sharing import UNRECORDED

from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer, SentinelServers, TelemetryCapture

# Far longer than any condition takes that comes true; only a failing test waits for it.
DEADLINE = 30.0
# How long servers that tests share may be stopped by a busy machine before others take their place.
UNDISTURBED = 60.0

# A shell that runs these tests in the background ignores SIGINT, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish():
    """Exempt collected tests from garbage collection: tests call it, and thousands of items make it slow."""
    gc.collect()
    gc.freeze()


if os.environ.get("AIOREDIS_MONITORED_UVLOOP"):

    def pytest_asyncio_loop_factories(config, item):
        """Run the tests on uvloop."""
        import uvloop

        return {"uvloop": uvloop.new_event_loop}


if os.environ.get("AIOREDIS_MONITORED_DIRECT") == "0":

    @pytest.fixture(autouse=True)
    def recorded_by_the_api(monkeypatch):
        """Have every test record spans and points the public way."""
        record_by_the_api(monkeypatch)


@pytest.fixture(scope="session")
def server():
    """Yield the server under test: the embedded one, or the one that AIOREDIS_MONITORED_SERVER names."""
    # Without a slow log: a busy machine may make any command slow, which a test that compares SLOWLOG LEN is not about.
    with RedisServer("--slowlog-log-slower-than", "-1") as running:
        yield running


@pytest.fixture(scope="session")
def _cleaner(server):
    with redis.Redis.from_url(server.url) as cleaner:
        yield cleaner


@pytest.fixture(autouse=True)
def _empties_cluster(request):
    """Leave a cluster that tests share without keys."""
    yield
    # Asked at the end: a test may get the fixture by its name.
    if "cluster" in request.fixturenames:
        for node in request.getfixturevalue("cluster").primaries():
            node.call("FLUSHALL")


@pytest.fixture(autouse=True)
def leaves_nothing(_cleaner):
    """Start every test on an empty server, and check at its end that it has left no connection."""
    yield
    deadline = time.monotonic() + DEADLINE
    while len(clients := _cleaner.client_list()) > 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    _cleaner.flushall()
    _cleaner.script_flush()
    assert len(clients) == 1, clients


@pytest.fixture
def inspector(server):
    """Return redis-py's blocking client, with which tests inspect and change the server behind the tested client."""
    with redis.Redis.from_url(server.url) as inspector:
        yield inspector


@pytest.fixture(params=[True, False], ids=["multiplexed", "pooled"])
def multiplex(request):
    return request.param


@pytest.fixture
def make_client(make_pool, multiplex):
    """Make clients with and without a shared connection."""

    def make(url, *, is_recorded=False, **arguments):
        providers = {} if is_recorded else UNRECORDED
        return MonitoredRedisConnection(
            connection_pool=make_pool(url, **{**providers, "multiplex": multiplex, **arguments})
        )

    return make


@pytest.fixture
def dice():
    """Return random numbers; pytest shows the seed of a failed test."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def own_server():
    """Yield a server that only this test uses, and may kill or freeze."""
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="session")
def cluster():
    """Yield a cluster of three primaries and three replicas that tests share, and leave in order."""
    with ClusterServers(node_timeout=UNDISTURBED) as running:
        yield running


@pytest.fixture(scope="session")
def sentinels():
    """Yield a primary, two replicas and three sentinels that tests share, and leave without keys and in order."""
    with SentinelServers(down_after=UNDISTURBED) as running:
        yield running


@pytest.fixture
def telemetry():
    with TelemetryCapture() as capture:
        yield capture


@pytest.fixture
def collector():
    """Yield a real OTLP/HTTP receiver."""
    with collecting() as collector:
        yield collector


@pytest.fixture
async def make_pool(telemetry):
    """Make pools whose telemetry is captured, and close them at the end."""
    pools = []

    def make(url, **arguments):
        pools.append(MonitoredConnectionPool.from_url(url, **{**telemetry.providers, **arguments}))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.aclose()


@pytest.fixture
def pool(make_pool, server):
    return make_pool(server.url, name="test")


@pytest.fixture
def client(pool):
    return MonitoredRedisConnection(connection_pool=pool)


@pytest.fixture
async def proxy(server):
    async with FaultProxy(server.host, server.port) as running:
        yield running


@pytest.fixture
def until():
    """Wait for a condition: poll it until a deadline."""

    async def wait(condition, seconds=DEADLINE):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            await asyncio.sleep(0.001)

    return wait
