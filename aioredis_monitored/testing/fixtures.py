"""What the fixtures of the pytest plugin do, once a test asks for them."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, Final, Generic, TypeVar

import pytest
from redis.exceptions import RedisError

from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config
from aioredis_monitored.testing.background import BackgroundProxy
from aioredis_monitored.testing.capture import TelemetryCapture
from aioredis_monitored.testing.cluster import ClusterServers
from aioredis_monitored.testing.group import ServerGroup, responsive, wait_while
from aioredis_monitored.testing.proxy import FaultProxy
from aioredis_monitored.testing.sentinel import SentinelServers
from aioredis_monitored.testing.server import RedisServer

Servers = TypeVar("Servers", bound=RedisServer | ServerGroup)

# After how long shared servers are taken for failed: a busy machine may stop them for a while.
_UNDISTURBED_SECONDS: Final = 60.0
# With which the nodes of a cluster find each other in two seconds, in place of up to ten.
_STARTING_SECONDS: Final = 2.0
_OPERATION_SECONDS: Final = 30.0
# What redis_pool leads to, if a test asks for it.
_TARGETS: Final = ("redis_faults", "redis_cluster", "redis_sentinel")
# What keeps the event loop of a test open, by the fixture that shows whose event loop it is. That of pytest-asyncio is
# set up last, and with it the loop is closed first, unless it is asked for.
_LOOP_FIXTURES: Final = {"_function_scoped_runner": "_function_scoped_runner", "anyio_backend": "_redis_anyio_loop"}


class _PatientCluster(ClusterServers):
    """A cluster that starts fast, and then takes no node for failed that a busy machine has stopped for a while."""

    def start(self) -> None:
        self._node_timeout = _STARTING_SECONDS
        super().start()
        self._node_timeout = _UNDISTURBED_SECONDS
        for node in self.nodes:
            node.call("CONFIG", "SET", "cluster-node-timeout", round(_UNDISTURBED_SECONDS * 1000))


class _Isolation(Generic[Servers]):
    """A plugin that brings servers back to how they were at their start, before each test.

    Args:
        servers: The servers, which run.
        members: Returns each of them.
        layout: Returns what must be as it was at the start: who is a primary, and of which slots.
    """

    def __init__(
        self, servers: Servers, members: Callable[[], Sequence[RedisServer]], layout: Callable[[], object]
    ) -> None:
        self._servers = servers
        self._members = members
        self._layout = layout
        self._first_layout = layout()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """Empty the servers, or start them anew if the test before has changed them; its fixtures have ended."""
        try:
            if responsive(self._members()) == self._members() and self._layout() == self._first_layout:
                self._empty()
                return
        except (RedisError, LookupError):
            # It has given them a password, for instance, or left no room for connections.
            pass
        self._servers.stop()
        self._servers.start()

    def _empty(self) -> None:
        written: dict[int, int] = {}
        for server in self._members():
            if server.call("ROLE")[0] == "master":
                server.call("FLUSHALL")
                written[server.port] = server.call("ROLE")[1]

        def problem() -> str | None:
            for server in self._members():
                role = server.call("ROLE")
                if role[0] == "slave" and role[4] < written[role[2]]:
                    return f"{server} has not received yet that all keys were removed"
            return None

        wait_while(problem, _OPERATION_SECONDS)


@contextmanager
def _shared(
    config: pytest.Config,
    servers: Servers,
    members: Callable[[], Sequence[RedisServer]],
    layout: Callable[[], object],
) -> Iterator[Servers]:
    """Start servers for several tests, which find them as they were at their start."""
    try:
        servers.start()
    except (FileNotFoundError, RuntimeError) as error:
        problem = str(error)
    else:
        problem = ""
    if problem:
        # Outside of the handler, whose error pytest would print as well.
        pytest.fail(problem, pytrace=False)
    isolation = _Isolation(servers, members, layout)
    config.pluginmanager.register(isolation)
    try:
        yield servers
    finally:
        config.pluginmanager.unregister(isolation)
        servers.stop()


def shared_server(config: pytest.Config) -> AbstractContextManager[RedisServer]:
    """Start a server that each test finds running, as a primary, and without keys."""
    server = RedisServer()
    return _shared(config, server, lambda: [server], lambda: server.call("ROLE")[0])


def shared_cluster(config: pytest.Config) -> AbstractContextManager[ClusterServers]:
    """Start a cluster that each test finds with all its first nodes, with their first slots, and without keys."""
    cluster = _PatientCluster()

    def layout() -> object:
        slots = cluster.nodes[0].call("CLUSTER", "SLOTS")
        # Without the nodes that have no slots.
        found = sorted((start, end, primary[2], len(replicas)) for start, end, primary, *replicas in slots)
        return len(cluster.nodes), found

    return _shared(config, cluster, lambda: cluster.nodes, layout)


def shared_sentinels(config: pytest.Config) -> AbstractContextManager[SentinelServers]:
    """Start servers under Sentinel that each test finds running, with their first primary, and without keys."""
    servers = SentinelServers(down_after=_UNDISTURBED_SECONDS)
    return _shared(
        config,
        servers,
        lambda: [*servers.data, *servers.sentinels],
        lambda: (len(servers.data), servers.data.index(servers.primary())),
    )


def proxy_of(server: RedisServer) -> AbstractContextManager[FaultProxy]:
    """Start a proxy in front of a server."""
    return BackgroundProxy(server.host, server.port)


def config_for(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the configuration of a pool that leads to what a test asks for."""
    asked = [name for name in _TARGETS if name in request.fixturenames]
    if len(asked) > 1:
        message = f"redis_pool leads to one of {' and '.join(asked)}: ask for one, or define a fixture redis_config"
        pytest.fail(message, pytrace=False)
    target = request.getfixturevalue(asked[0] if asked else "redis_server")
    return {"redis.url": target.url}


@contextmanager
def closing_pool(
    request: pytest.FixtureRequest, config: Mapping[str, Any], telemetry: TelemetryCapture
) -> Iterator[MonitoredConnectionPool]:
    """Make a pool, and close it in the event loop that has used it."""
    _hold_loop(request)
    pool = pool_from_config(config, **telemetry.providers)
    try:
        yield pool
    finally:
        _close(pool)


def _hold_loop(request: pytest.FixtureRequest) -> None:
    for sign, fixture in _LOOP_FIXTURES.items():
        if sign in request.fixturenames:
            if sign == "anyio_backend":
                _check_backend(request.getfixturevalue(sign))
            request.getfixturevalue(fixture)
            return


def _check_backend(backend: Any) -> None:
    name = backend if isinstance(backend, str) else backend[0]
    if name != "asyncio":
        message = (
            f"redis_pool needs asyncio, and anyio runs this test on {name}: "
            "define a fixture anyio_backend that returns 'asyncio'"
        )
        pytest.fail(message, pytrace=False)


def _close(pool: MonitoredConnectionPool) -> None:
    loop = pool.event_loop
    if loop is None or loop.is_closed():
        # Not asyncio.run(), which changes what asyncio.get_event_loop() returns.
        with closing(asyncio.new_event_loop()) as loop:
            loop.run_until_complete(pool.aclose())
    elif loop.is_running():
        # In another thread, such as that of a framework's test client.
        asyncio.run_coroutine_threadsafe(pool.aclose(), loop).result(_OPERATION_SECONDS)
    else:
        loop.run_until_complete(pool.aclose())
