"""The demo: a web shop on a real server, with its traces as waterfalls and its metrics as a table."""

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import uvicorn
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from redis.exceptions import RedisError
from rich.console import Console

from aioredis_monitored._telemetry.semconv import DB_CLIENT_OPERATION_DURATION
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored.cli.render import print_cluster, print_durations, print_waterfalls
from aioredis_monitored.cli.serve import HOST, make_app
from aioredis_monitored.cli.shop import Shop, Visits, statistics_config
from aioredis_monitored.cli.waterfall import waterfalls
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.registry import Components
from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.integrations.asgi import RedisContextFactory
from aioredis_monitored.pool.pool import pool_from_config
from aioredis_monitored.testing import ClusterServers, NodeServer, RedisServer, TelemetryCapture
from aioredis_monitored.testing.capture import Recording

_COLLECTOR_SECONDS = 2.0
_INTERRUPTED = 130  # the exit code that shells report after Ctrl-C
_NEXT_STEPS = """
Where to go next
  In your service:   async with pool_from_config(config_from_env()) as pool: ...
  In a browser:      python -m aioredis_monitored demo --serve
  Your own server:   REDIS_URL=redis://localhost:6379 python -m aioredis_monitored demo
  A cluster:         python -m aioredis_monitored demo --cluster
  Your collector:    python -m aioredis_monitored demo --otlp http://localhost:4318
  Everything else:   https://aioredis-monitored.readthedocs.io"""


def run(environ: Mapping[str, str], otlp: str | None, *, on_cluster: bool, port: int | None = None) -> int:
    """Run the demo and return the exit code; it prints what prevents it.

    That is 0, 1 if the server cannot be used, 2 if the configuration cannot be, or 130 if it was interrupted.

    Args:
        environ: The environment; without ``REDIS_URL``, an embedded server is started.
        otlp: The base URL of a collector that also gets the telemetry, over OTLP/HTTP; ``None`` for none.
        on_cluster: Whether an embedded cluster is started instead, of which a slot moves and a node dies.
        port: Where the shop is served until it is interrupted, with a page that shows its requests; default ``None``,
            to show some requests here.
    """
    console = Console(highlight=False)
    try:
        with _Termination() as termination, _servers(environ, on_cluster) as servers:
            if port is not None:
                return _serve(servers.config, otlp, port, console)
            with _telemetry(otlp) as capture:
                recording = asyncio.run(_shop(servers, capture, termination))
        print_waterfalls(console, waterfalls(recording.spans))
        print_durations(console, recording.points(DB_CLIENT_OPERATION_DURATION))
        if on_cluster:
            print_cluster(console, recording)
        console.print(_NEXT_STEPS, soft_wrap=True)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _INTERRUPTED
    except (ConfigurationError, RedisError, RuntimeError, OSError) as error:
        Console(stderr=True).print(f"The demo cannot run: {error}", style="red", markup=False, soft_wrap=True)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


class _Termination:
    """Context manager in which SIGTERM and SIGHUP end the demo as Ctrl-C does, so that it cleans up.

    While the event loop runs, they cancel ``task``: an exception raised at any place could leave a lock locked.

    Attributes:
        task: The task to cancel; ``None`` while no event loop runs.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._terminate)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _terminate(self, _number: int, _frame: FrameType | None) -> None:
        if self.task is None:
            raise KeyboardInterrupt
        self.task.get_loop().call_soon_threadsafe(self.task.cancel)


class _Servers(NamedTuple):
    """What the shop runs on.

    Attributes:
        config: The configuration of its pool.
        cluster: The embedded cluster; ``None`` if it runs on something else.
    """

    config: Mapping[str, str]
    cluster: ClusterServers | None = None


@contextmanager
def _servers(environ: Mapping[str, str], on_cluster: bool) -> Iterator[_Servers]:
    if on_cluster:
        with ClusterServers() as cluster:
            # A machine may be slow: the default covers a failover that takes five seconds.
            yield _Servers({"redis.url": cluster.url, "redis.socket_timeout": "30 seconds"}, cluster)
    elif environ.get("REDIS_URL"):
        yield _Servers(config_from_env(environ))
    else:
        with RedisServer() as server:
            yield _Servers({"redis.url": server.url})


@contextmanager
def _telemetry(otlp: str | None) -> Iterator[TelemetryCapture]:
    # With counted ids, a collector would merge the traces of two runs.
    with TelemetryCapture(*_readers(otlp), id_generator=RandomIdGenerator()) as capture:
        _export_spans(capture.tracer_provider, otlp)
        yield capture


def _readers(otlp: str | None) -> list[MetricReader]:
    if otlp is None:
        return []
    exporter = OTLPMetricExporter(endpoint=f"{otlp}/v1/metrics", timeout=_COLLECTOR_SECONDS)
    return [PeriodicExportingMetricReader(exporter)]


def _export_spans(provider: TracerProvider, otlp: str | None) -> None:
    if otlp is not None:
        exporter = OTLPSpanExporter(endpoint=f"{otlp}/v1/traces", timeout=_COLLECTOR_SECONDS)
        provider.add_span_processor(BatchSpanProcessor(exporter))


def _serve(config: Mapping[str, str], otlp: str | None, port: int, console: Console) -> int:
    """Serve the shop until it is interrupted; return the exit code if it cannot start.

    Raises:
        KeyboardInterrupt: It was interrupted.
        OSError: The port is in use.
        redis.exceptions.RedisError: The server cannot be used.
    """
    asyncio.run(_check_server(config))
    # Not a capture, which would keep every span.
    tracer_provider, meter_provider = TracerProvider(), MeterProvider(_readers(otlp))
    _export_spans(tracer_provider, otlp)
    try:
        app = make_app(config, tracer_provider, meter_provider)
        with socket.create_server((HOST, port)) as listener:
            console.print(f"The shop: http://{HOST}:{listener.getsockname()[1]} (Ctrl-C ends it)")
            # It raises the signal that has ended it once more. If the application does not start, it says why and ends.
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    finally:
        tracer_provider.shutdown()
        meter_provider.shutdown()
    return 1


async def _check_server(config: Mapping[str, str]) -> None:
    async with pool_from_config(config) as pool:
        await pool.ping()


async def _shop(servers: _Servers, capture: TelemetryCapture, termination: _Termination) -> Recording:
    config = servers.config
    termination.task = asyncio.current_task()
    try:
        async with pool_from_config(config, **capture.providers) as pool:
            await pool.ping()
            tracer = capture.tracer_provider.get_tracer("web shop")
            shop = Shop(pool, tracer)
            visits = Visits(shop, RedisContextFactory(pool), tracer)
            try:
                with capture.block() as recording:
                    await visits.run(Components(statistics_config(config), **capture.providers))
                    if servers.cluster is not None:
                        await _disturb(servers.cluster, shop.product_key, visits)
                return recording
            finally:
                await shop.clean_up(MonitoredRedisConnection("clean-up", connection_pool=pool))
    finally:
        termination.task = None


async def _disturb(cluster: ClusterServers, key: str, visits: Visits) -> None:
    """Move the slot of the product's key to another node, and kill that node; the shop goes on."""
    slot = key_slot(key)

    def begin_migration() -> NodeServer:
        target = next(node for node in cluster.primaries() if node is not cluster.owner(slot))
        cluster.begin_migration(slot, target)
        while cluster.migrate_keys(slot, target, 1):
            pass
        return target

    target = await asyncio.to_thread(begin_migration)
    await visits.run_again("slot moving")
    await asyncio.to_thread(cluster.end_migration, slot, target)
    await visits.run_again("slot moved")
    await asyncio.to_thread(target.kill)
    await visits.run_again("node killed")
