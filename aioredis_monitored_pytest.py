"""The pytest plugin: fixtures with real Redis servers, and a marker that bounds how many calls a test makes.

Where the package is installed, every run of pytest imports this module, whether or not a test uses it. Therefore it
imports only pytest; the package is imported when the first test asks for a fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterator

    from aioredis_monitored import MonitoredConnectionPool, MonitoredRedisConnection
    from aioredis_monitored.testing import ClusterServers, FaultProxy, RedisServer, SentinelServers, TelemetryCapture

_MARKER = "redis_calls"
_MARKER_HELP = (
    f"{_MARKER}(max): fail the test if it makes more Redis calls than that; a pipeline, or taking a lock, is one call"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER_HELP)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check the marker of a test before anything is done for the test."""
    marker = item.get_closest_marker(_MARKER)
    if marker is not None:
        from aioredis_monitored.testing import call_limit

        call_limit.check(item, marker)


# A wrapper of the old style: where the package is installed, also an old pytest must be able to import this module.
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Fail a test that makes more calls than its marker allows."""
    marker = item.get_closest_marker(_MARKER)
    if marker is None:
        yield
    else:
        from aioredis_monitored.testing import call_limit

        yield from call_limit.enforced(item, marker)


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Yield a server that each test finds running and without keys: one for a run, or for a worker of pytest-xdist."""
    from aioredis_monitored.testing import fixtures

    with fixtures.shared_server(request.config) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(request: pytest.FixtureRequest) -> Iterator[ClusterServers]:
    """Yield a cluster of three primaries and three replicas that each test finds in order and without keys."""
    from aioredis_monitored.testing import fixtures

    with fixtures.shared_cluster(request.config) as servers:
        yield servers


@pytest.fixture(scope="session")
def redis_sentinel(request: pytest.FixtureRequest) -> Iterator[SentinelServers]:
    """Yield a primary, two replicas and three sentinels that each test finds in order and without keys."""
    from aioredis_monitored.testing import fixtures

    with fixtures.shared_sentinels(request.config) as servers:
        yield servers


@pytest.fixture
def redis_faults(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """Yield a proxy in front of ``redis_server`` that breaks connections; ``redis_pool`` leads through it."""
    from aioredis_monitored.testing import fixtures

    with fixtures.proxy_of(redis_server) as proxy:
        yield proxy


@pytest.fixture
def redis_telemetry() -> Iterator[TelemetryCapture]:
    """Yield the telemetry of ``redis_pool``, and of pools that are made with its ``providers``."""
    from aioredis_monitored.testing import TelemetryCapture

    with TelemetryCapture() as capture:
        yield capture


@pytest.fixture
def redis_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the configuration of ``redis_pool``; define a fixture of this name to add to it.

    Its URL is that of ``redis_faults``, ``redis_cluster`` or ``redis_sentinel`` if the test asks for one of them, or
    else of ``redis_server``.
    """
    from aioredis_monitored.testing import fixtures

    return fixtures.config_for(request)


@pytest.fixture
def redis_pool(
    request: pytest.FixtureRequest, redis_config: dict[str, Any], redis_telemetry: TelemetryCapture
) -> Iterator[MonitoredConnectionPool]:
    """Yield a pool that connects when it is first used, and is closed after the test, in the test's event loop."""
    from aioredis_monitored.testing import fixtures

    with fixtures.closing_pool(request, redis_config, redis_telemetry) as pool:
        yield pool


@pytest.fixture
def redis_client(redis_pool: MonitoredConnectionPool) -> MonitoredRedisConnection:
    """Return a client on ``redis_pool``."""
    from aioredis_monitored import MonitoredRedisConnection

    return MonitoredRedisConnection(connection_pool=redis_pool)


@pytest.fixture
async def _redis_anyio_loop(anyio_backend: object) -> AsyncIterator[None]:  # noqa: ARG001 - makes it one of anyio's
    # The plugin of anyio closes the event loop when the last asynchronous fixture that yields has ended.
    yield  # noqa: PT022
