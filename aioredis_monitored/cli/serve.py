"""The demo as a service: the shop behind FastAPI, and a page that shows its last requests as waterfalls."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from aioredis_monitored.cli.shop import Shop, statistics_config
from aioredis_monitored.cli.waterfall import waterfalls
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.registry import Components
from aioredis_monitored.integrations.fastapi import RedisDep, setup
from aioredis_monitored.pool.pool import pool_from_config

HOST = "127.0.0.1"
# A page of another site must not reach the shop by a name of its own.
_HOSTS = (HOST, "localhost")
_PAGE = Path(__file__).parent / "page"
_SHOP_PATHS = ("/products/", "/checkout")
# A trace is shown when one of these has ended: a request, or the processing of a message.
_SHOWN_KINDS = (SpanKind.SERVER, SpanKind.CONSUMER)
_MAX_TRACES = 20
_MAX_SPANS = 100


class RecentTraces(SpanProcessor):
    """Keeps the spans of the last traces."""

    def __init__(self) -> None:
        self._traces: OrderedDict[int, list[ReadableSpan]] = OrderedDict()
        self._lock = Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span."""
        with self._lock:
            spans = self._traces.setdefault(span.context.trace_id, [])
            if len(spans) < _MAX_SPANS:
                spans.append(span)
            if len(self._traces) > _MAX_TRACES:
                self._traces.popitem(last=False)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans of the traces in which a request, or the processing of a message, has ended."""
        with self._lock:
            shown = [spans for spans in self._traces.values() if any(span.kind in _SHOWN_KINDS for span in spans)]
            return [span for spans in shown for span in spans]


def make_app(config: Mapping[str, str], tracer_provider: TracerProvider, meter_provider: MeterProvider) -> FastAPI:
    """Make the shop and its page; nothing connects before it is served.

    Args:
        config: That of the shop's pool.
        tracer_provider: Where spans go; the page shows those that it gets from now on.
        meter_provider: Where metrics go.

    Raises:
        ConfigurationError: The configuration cannot be used.
    """
    pool = pool_from_config(config, tracer_provider=tracer_provider, meter_provider=meter_provider)
    shop = Shop(pool, tracer_provider.get_tracer("web shop"))
    components = Components(statistics_config(config), tracer_provider=tracer_provider, meter_provider=meter_provider)
    traces = RecentTraces()
    tracer_provider.add_span_processor(traces)

    async def process(order: bytes) -> None:
        await shop.process(MonitoredRedisConnection("worker", connection_pool=pool), order)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        async with components:
            worker = asyncio.create_task(shop.orders.consume(process, concurrency=1))
            try:
                yield
            finally:
                shop.orders.stop()
                await worker
                await shop.clean_up(MonitoredRedisConnection("clean-up", connection_pool=pool))

    app = FastAPI(
        title="aioredis_monitored's demo",
        lifespan=lifespan,
        telemetry={
            "tracer_provider": tracer_provider,
            "meter_provider": meter_provider,
            "operation_spans": False,
            "exclude": lambda scope: not scope["path"].startswith(_SHOP_PATHS),
        },
    )
    setup(app, pool)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_HOSTS))
    _add_shop(app, shop)
    _add_page(app, traces)
    return app


def _add_shop(app: FastAPI, shop: Shop) -> None:
    @app.get("/products/42")
    async def show_product(redis: RedisDep) -> dict[str, str]:
        return {"product": await shop.show_product(redis)}

    @app.post("/checkout")
    async def check_out(redis: RedisDep) -> dict[str, str]:
        await shop.check_out(redis)
        return {"order": "taken"}


def _add_page(app: FastAPI, traces: RecentTraces) -> None:
    @app.get("/traces", include_in_schema=False)
    async def show_traces() -> list[list[dict[str, Any]]]:
        return [[row._asdict() for row in waterfall] for waterfall in reversed(waterfalls(traces.spans()))]

    app.mount("/", StaticFiles(directory=_PAGE, html=True))
