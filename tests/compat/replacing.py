"""A pytest plugin that runs tests with redis-py's client or this package's, and writes their outcomes to a file.

``COMPAT_CLIENT`` is ``redis-py`` or ``ours``, ``COMPAT_OUTCOMES`` the file to write. pytest loads the plugin (``-p``)
before any library, so that their imports from redis-py give our classes. The file also names the tests that have sent
something to a server with redis-py's client: only these are counted, as many a library's tests need no Redis.
"""

import json
import os
from pathlib import Path

import redis.asyncio
import redis.asyncio.client
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.utils
from redis.cluster import AbstractRedisCluster

_WORST_LAST = ("passed", "skipped", "failed")
_outcomes: dict[str, str] = {}
_sending: set[str] = set()


def _replace() -> None:
    from aioredis_monitored import (
        ClusterNode,
        MonitoredConnectionPool,
        MonitoredRedisCluster,
        MonitoredRedisConnection,
    )

    # Libraries find the classes there. redis-py's own modules have imported them already, and keep theirs.
    for module in (redis.asyncio, redis.asyncio.client):
        module.Redis = module.StrictRedis = MonitoredRedisConnection
    for module in (redis.asyncio, redis.asyncio.cluster):
        module.RedisCluster = MonitoredRedisCluster
    redis.asyncio.cluster.ClusterNode = ClusterNode
    # Without it, redis-py's own tests cannot be collected.
    MonitoredRedisCluster.ERRORS_ALLOW_RETRY = AbstractRedisCluster.ERRORS_ALLOW_RETRY
    for module in (redis.asyncio, redis.asyncio.connection):
        module.ConnectionPool = module.BlockingConnectionPool = MonitoredConnectionPool
    for module in (redis.asyncio, redis.asyncio.utils):
        module.from_url = MonitoredRedisConnection.from_url


def _note_what_sends() -> None:
    send = redis.asyncio.connection.AbstractConnection.send_packed_command

    async def noting(connection, *arguments, **named):
        # The name of the test, a blank, and its phase in brackets.
        _sending.add(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0])
        await send(connection, *arguments, **named)

    redis.asyncio.connection.AbstractConnection.send_packed_command = noting


if os.environ["COMPAT_CLIENT"] == "ours":
    _replace()
else:
    _note_what_sends()


def pytest_runtest_logreport(report):
    """Keep the worst outcome of a test's phases."""
    if report.when == "setup" and report.passed:
        # A test that ends pytest itself has not passed.
        return
    # A test that its authors expect to fail says nothing, and may pass at times.
    outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
    known = _outcomes.get(report.nodeid, "passed")
    _outcomes[report.nodeid] = max(outcome, known, key=_WORST_LAST.index)


def pytest_sessionfinish():
    """Write the file."""
    written = {"outcomes": _outcomes, "sending": sorted(_sending)}
    Path(os.environ["COMPAT_OUTCOMES"]).write_text(json.dumps(written))
