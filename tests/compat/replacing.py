"""A pytest plugin: the tests run with redis-py's client or with ours in its place, and their outcomes are written down.

``COMPAT_CLIENT`` is ``redis-py`` or ``ours``, ``COMPAT_OUTCOMES`` the file to write. It is loaded before any library is
(``-p``), so that what they import from redis-py are our classes already.
"""

import json
import os
from pathlib import Path

import redis.asyncio
import redis.asyncio.client
import redis.asyncio.connection
import redis.asyncio.utils

_WORST_LAST = ("passed", "skipped", "failed")
_outcomes: dict[str, str] = {}


def _replace() -> None:
    from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection

    # Where libraries find them; redis-py's own modules have imported them already, and keep them.
    for module in (redis.asyncio, redis.asyncio.client):
        module.Redis = module.StrictRedis = MonitoredRedisConnection
    for module in (redis.asyncio, redis.asyncio.connection):
        module.ConnectionPool = module.BlockingConnectionPool = MonitoredConnectionPool
    for module in (redis.asyncio, redis.asyncio.utils):
        module.from_url = MonitoredRedisConnection.from_url


if os.environ["COMPAT_CLIENT"] == "ours":
    _replace()


def pytest_runtest_logreport(report):
    """Keep the worst outcome of a test's phases."""
    outcome = "failed" if report.failed else report.outcome
    known = _outcomes.get(report.nodeid, "passed")
    _outcomes[report.nodeid] = max(outcome, known, key=_WORST_LAST.index)


def pytest_sessionfinish():
    """Write the outcomes down."""
    Path(os.environ["COMPAT_OUTCOMES"]).write_text(json.dumps(_outcomes))
