"""The order of the checks: places, the pool, its servers, what these say about each other.

To add a check, write a function that returns findings, and add it to one of the tuples below. Without a place that is
reached and a connection to a server, the examination ends: what follows would fail for the same reason.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from aioredis_monitored.cli.doctor import network, reports, rights
from aioredis_monitored.cli.doctor.cluster import check_cluster
from aioredis_monitored.cli.doctor.health import check_health
from aioredis_monitored.cli.doctor.login import brief_arguments, check_login, explain
from aioredis_monitored.cli.doctor.sentinels import check_sentinels
from aioredis_monitored.cli.doctor.subject import Place, Server, Subject
from aioredis_monitored.cli.findings import Finding, Verdict, at, fault, has_fault, ok, unknown, warning
from aioredis_monitored.cli.settings import Settings
from aioredis_monitored.pool.cluster import MonitoredClusterPool
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config

_PLACE_CHECKS: Final[tuple[Callable[[Subject, Place], Awaitable[list[Finding]]], ...]] = (
    network.check_name,
    network.check_port,
    network.check_certificate,
)
_SERVER_CHECKS: Final[tuple[Callable[[Server], Awaitable[list[Finding]]], ...]] = (
    reports.check_version,
    reports.check_eviction,
    reports.check_idle_timeout,
    reports.check_capacity,
    reports.check_clients,
    reports.check_slow_log,
    reports.check_round_trip,
    rights.check_rights,
    rights.check_queue_rights,
)

# The steps of which the longest chain takes its time: name, port, TLS, login, health and its questions.
_STEPS: Final = 8
_LAG_PAUSE_SECONDS: Final = 0.01
_MAX_LAG_SECONDS: Final = 0.25
_MILLISECONDS: Final = 1000


async def examine(settings: Settings, queues: Sequence[str], seconds: float) -> list[Finding]:
    """Return what is found about the servers of a pool within a time limit.

    Args:
        settings: The settings of the pool.
        queues: The names of the queues that the application has on it.
        seconds: The time limit.
    """
    found: list[Finding] = list(settings.findings)
    patience = min([seconds / _STEPS, *_timeouts(settings)])
    pool = pool_from_config(settings.values, settings.prefix, **brief_arguments(patience))
    subject = Subject(settings, pool, tuple(queues), patience)
    lag = _LoopLag()
    try:
        async with asyncio.timeout(seconds), lag.measured(), pool:
            await _examine(subject, found)
    except TimeoutError:
        text = f"the checks have not ended in {seconds:g} s; the last one that has is {found[-1].check}"
        found.append(fault("time limit", text, "give them more time with --timeout, or see what does not answer"))
    # What servers have said may be anything.
    return [replace(each, text=settings.censored(each.text)) for each in (*found, lag.finding())]


def _timeouts(settings: Settings) -> list[float]:
    config = settings.config
    return [each for each in (config.socket_timeout, config.socket_connect_timeout) if each is not None]


async def _examine(subject: Subject, found: list[Finding]) -> None:
    places = await _reached(subject, found)
    if not places:
        return
    if subject.settings.config.topology == "sentinel":
        found += (sentinels := await check_sentinels(subject, places))
        if has_fault(sentinels):
            return
    found += (login := await check_login(subject))
    if has_fault(login):
        return
    found += await check_health(subject)
    async with _servers(subject, found) as servers:
        results: list[list[Finding]] = [[] for _ in servers]
        try:
            await asyncio.gather(*map(_check_server, servers, results))
        finally:
            for server, findings in zip(servers, results, strict=True):
                found += [at(each, server.name) for each in findings] if len(servers) > 1 else findings
        if isinstance(subject.pool, MonitoredClusterPool):
            found += await check_cluster(servers)


async def _reached(subject: Subject, found: list[Finding]) -> list[Place]:
    """Check the places, of which one must be reached; return those that are."""
    places = subject.places()
    results = await asyncio.gather(*(_check_place(subject, place) for place in places))
    reached = [place for place, findings in zip(places, results, strict=True) if not has_fault(findings)]
    for each in (finding for findings in results for finding in findings):
        is_spared = reached and each.verdict is Verdict.FAULT
        found.append(replace(each, verdict=Verdict.WARNING) if is_spared else each)
    return reached


async def _check_place(subject: Subject, place: Place) -> list[Finding]:
    found: list[Finding] = []
    for check in _PLACE_CHECKS:
        found += await check(subject, place)
        if has_fault(found):
            break
    return found


@asynccontextmanager
async def _servers(subject: Subject, found: list[Finding]) -> AsyncIterator[list[Server]]:
    """Yield the servers that a connection can be acquired to; those of a cluster with its replicas."""
    pool = subject.pool
    nodes: list[tuple[str, MonitoredConnectionPool, bool]] = []
    if isinstance(pool, MonitoredClusterPool):
        nodes = [(each.name, pool.pool_of(each), each.server_type == "replica") for each in pool.nodes()]
    else:
        nodes = [(pool.name, pool, False)]
    servers: list[Server] = []
    async with AsyncExitStack() as stack:
        acquired = await asyncio.gather(*(_acquired(each) for _, each, _ in nodes))
        for (name, each, is_replica), connection in zip(nodes, acquired, strict=True):
            if isinstance(connection, AbstractConnection):
                stack.push_async_callback(each.release, connection)
                servers.append(Server(name, subject, connection))
            elif is_replica:
                # Of primaries, health() has said it.
                found.append(replace(explain(connection, subject), verdict=Verdict.WARNING, servers=(name,)))
        yield servers


async def _acquired(pool: MonitoredConnectionPool) -> AbstractConnection | RedisError:
    try:
        return await pool.acquire()
    except RedisError as error:
        return error


async def _check_server(server: Server, found: list[Finding]) -> None:
    for check in _SERVER_CHECKS:
        try:
            found += await check(server)
        except RedisError as error:
            found.append(explain(error, server.subject))
            return
        except (LookupError, TypeError, ValueError):
            name = check.__name__.removeprefix("check_").replace("_", " ")
            found.append(unknown(name, "what the server replies cannot be read", "a server that replies as Redis does"))


class _LoopLag:
    """How late the event loop runs what is due."""

    def __init__(self) -> None:
        self._longest = 0.0

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure while the block runs."""
        task = asyncio.create_task(self._measure())
        try:
            yield
        finally:
            task.cancel()

    async def _measure(self) -> None:
        while True:
            began = perf_counter()
            await asyncio.sleep(_LAG_PAUSE_SECONDS)
            self._longest = max(self._longest, perf_counter() - began - _LAG_PAUSE_SECONDS)

    def finding(self) -> Finding:
        """Return what was measured."""
        text = f"{self._longest * _MILLISECONDS:.0f} ms of lag at most in this process"
        if self._longest <= _MAX_LAG_SECONDS:
            return ok("event loop", text)
        return warning("event loop", text, "use a less busy machine: the times above are longer than the server's")
