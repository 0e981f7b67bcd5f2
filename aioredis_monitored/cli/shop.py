"""A small web shop, written as an application that uses this package; the demo shows its telemetry."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from uuid import uuid4

from opentelemetry.trace import SpanKind, Tracer
from redis.asyncio import ConnectionPool
from redis.exceptions import ResponseError

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.registry import Components, redis_connection
from aioredis_monitored.integrations.asgi import RedisContextFactory
from aioredis_monitored.queue.queue import MessageQueue

_KEYS = ("product:42", "views", "lock:user:7", "{user:7}:cart", "{user:7}:checkouts", "orders", "done")
# Of the queue, whose consumer may leave its registration behind.
_QUEUE_KEYS = ("c", "n", "sweeper")


class Shop:
    """What the shop does for two requests and an order, on keys with a random prefix that ``clean_up`` removes.

    Args:
        pool: The pool of its queue.
        tracer: Starts the span of what is not in Redis.

    Attributes:
        product_key: The key of the product that the requests are about.
        orders: The queue of orders.
    """

    def __init__(self, pool: ConnectionPool, tracer: Tracer) -> None:
        self._tracer = tracer
        self._prefix = f"demo:{uuid4().hex[:6]}"
        self.product_key = f"{self._prefix}:product:42"
        self.orders = MessageQueue(f"{self._prefix}:orders", pool)

    async def show_product(self, redis: MonitoredRedisConnection) -> str:
        """Return the product, which is cached for a minute, and count the view of its page."""
        if await redis.get(self.product_key) is None:
            with self._tracer.start_as_current_span("render"):
                await asyncio.sleep(0.002)
            await redis.set(self.product_key, "a red bicycle", ex=60)
        product = await redis.get(self.product_key)
        await count_view(f"{self._prefix}:views")
        return product.decode() if isinstance(product, bytes) else str(product)

    async def check_out(self, redis: MonitoredRedisConnection) -> None:
        """Put the product into the cart and order it."""
        async with redis.lock(f"{self._prefix}:lock:user:7", timeout=10):
            async with redis.pipeline("checkout") as pipe:
                # With a hash tag, as a transaction has one slot of a cluster.
                pipe.hset(f"{self._prefix}:{{user:7}}:cart", "product", "42")
                pipe.expire(f"{self._prefix}:{{user:7}}:cart", 3600)
                pipe.incr(f"{self._prefix}:{{user:7}}:checkouts")
                await pipe.execute()
            await self.orders.put(b"order 1001")
        with suppress(ResponseError):
            # A mistake, for the demo to show: the number is no list.
            await redis.lpush(f"{self._prefix}:{{user:7}}:checkouts", "a bell")

    async def process(self, redis: MonitoredRedisConnection, order: bytes) -> None:
        """Process an order."""
        await redis.set(f"{self._prefix}:done", order)

    async def clean_up(self, redis: MonitoredRedisConnection) -> None:
        """Delete the shop's keys."""
        queue_keys = (f"{{{self.orders.name}}}:{name}" for name in _QUEUE_KEYS)
        await redis.delete(*(f"{self._prefix}:{name}" for name in _KEYS), *queue_keys)


class Visits:
    """Requests to a shop without a web framework: they have the spans that its instrumentation would start.

    Args:
        shop: The shop.
        factory: Makes the connection of each request.
        tracer: Starts the requests' spans.
    """

    def __init__(self, shop: Shop, factory: RedisContextFactory, tracer: Tracer) -> None:
        self._shop = shop
        self._factory = factory
        self._tracer = tracer

    async def run(self, components: Components) -> None:
        """Make two requests, then process the order."""
        async with components:
            with self._tracer.start_as_current_span("GET /products/42", kind=SpanKind.SERVER):
                await self._shop.show_product(self._connection())
            with self._tracer.start_as_current_span("POST /checkout", kind=SpanKind.SERVER):
                await self._shop.check_out(self._connection())
            with self._tracer.start_as_current_span("worker", kind=SpanKind.CONSUMER):
                await self._shop.process(self._connection(), await self._shop.orders.get(timeout=1))

    async def run_again(self, when: str) -> None:
        """Ask for the product, which is cached by now; ``when`` says what is happening."""
        with self._tracer.start_as_current_span(f"GET /products/42, {when}", kind=SpanKind.SERVER):
            await self._connection().get(self._shop.product_key)

    def _connection(self) -> MonitoredRedisConnection:
        return self._factory.make_object_for_context("redis", None)


def statistics_config(config: Mapping[str, str]) -> Mapping[str, str]:
    """Return the configuration of the component ``statistics``, on the servers of the shop's pool."""
    return {key.replace("redis.", "redis.statistics.", 1): value for key, value in config.items()}


@redis_connection("statistics")
async def count_view(redis: MonitoredRedisConnection, key: str) -> None:
    """Count a page view on the server of the component ``statistics``."""
    await redis.incr(key)
