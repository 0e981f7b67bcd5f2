"""A small web shop, written as an application that uses this package; the demo shows its telemetry."""

import asyncio
from contextlib import suppress
from uuid import uuid4

from opentelemetry.trace import SpanKind, Tracer
from redis.exceptions import ResponseError

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.registry import Components, redis_connection
from aioredis_monitored.integrations.asgi import RedisContextFactory
from aioredis_monitored.queue.queue import MessageQueue

_KEYS = ("product:42", "views", "lock:user:7", "{user:7}:cart", "{user:7}:checkouts", "orders", "done")


class Shop:
    """Two requests and a worker, on keys with a random prefix that ``clean_up`` removes.

    Args:
        factory: Makes the connection of each request.
        tracer: Starts the requests' spans, as the instrumentation of a web framework does.

    Attributes:
        product_key: The key of the product that the requests are about.
    """

    def __init__(self, factory: RedisContextFactory, tracer: Tracer) -> None:
        self._factory = factory
        self._tracer = tracer
        self._prefix = f"demo:{uuid4().hex[:6]}"
        self.product_key = f"{self._prefix}:product:42"
        self._orders = MessageQueue(f"{self._prefix}:orders", factory.connection_pool)

    async def serve(self, components: Components) -> None:
        """Handle the requests, then process the order."""
        async with components:
            await self._product_page()
            await self._checkout()
            await self._worker()

    async def serve_again(self, when: str) -> None:
        """Handle a request for the product page, which is cached by now; ``when`` says what is happening."""
        with self._tracer.start_as_current_span(f"GET /products/42, {when}", kind=SpanKind.SERVER):
            await self._factory.make_object_for_context("redis", None).get(self.product_key)

    async def clean_up(self) -> None:
        """Delete the shop's keys."""
        redis = self._factory.make_object_for_context("clean-up", None)
        await redis.delete(*(f"{self._prefix}:{name}" for name in _KEYS))

    async def _product_page(self) -> None:
        with self._tracer.start_as_current_span("GET /products/42", kind=SpanKind.SERVER):
            redis = self._factory.make_object_for_context("redis", None)
            if await redis.get(self.product_key) is None:
                with self._tracer.start_as_current_span("render"):
                    await asyncio.sleep(0.002)
                await redis.set(self.product_key, "a red bicycle", ex=60)
            await redis.get(self.product_key)
            await count_view(f"{self._prefix}:views")

    async def _checkout(self) -> None:
        with self._tracer.start_as_current_span("POST /checkout", kind=SpanKind.SERVER):
            redis = self._factory.make_object_for_context("redis", None)
            async with redis.lock(f"{self._prefix}:lock:user:7", timeout=10):
                async with redis.pipeline("checkout") as pipe:
                    # With a hash tag, as a transaction has one slot of a cluster.
                    pipe.hset(f"{self._prefix}:{{user:7}}:cart", "product", "42")
                    pipe.expire(f"{self._prefix}:{{user:7}}:cart", 3600)
                    pipe.incr(f"{self._prefix}:{{user:7}}:checkouts")
                    await pipe.execute()
                await self._orders.put(b"order 1001")
            with suppress(ResponseError):
                # A mistake, for the demo to show: the product is a string and not a list.
                await redis.lpush(self.product_key, "a bell")

    async def _worker(self) -> None:
        with self._tracer.start_as_current_span("worker", kind=SpanKind.CONSUMER):
            order = await self._orders.get(timeout=1)
            await self._factory.make_object_for_context("worker", None).set(f"{self._prefix}:done", order)


@redis_connection("statistics")
async def count_view(redis: MonitoredRedisConnection, key: str) -> None:
    """Count a page view on the server of the component ``statistics``."""
    await redis.incr(key)
