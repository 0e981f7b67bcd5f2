"""A shop on FastAPI: ``REDIS_URL=redis://localhost uvicorn fastapi_app:app``."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, WebSocket

from aioredis_monitored import MessageQueue, MonitoredRedisConnection, config_from_env, pool_from_config
from aioredis_monitored.integrations.fastapi import RedisDep, redis_dependency, setup

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)

orders = MessageQueue("orders", pool)


async def ship(order: bytes) -> None:
    """Handle a message of the queue."""
    await MonitoredRedisConnection(connection_pool=pool).rpush("shipped", order)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Run a worker beside the application; the pools are open before it starts, and after it has ended."""
    worker = asyncio.create_task(orders.consume(ship, concurrency=4))
    yield
    orders.stop()
    await worker


app = FastAPI(lifespan=lifespan)
setup(app, pool)
setup(app, cache_pool, "cache")

get_cache = redis_dependency("cache")
CacheDep = Annotated[MonitoredRedisConnection, Depends(get_cache)]


@app.get("/products/{product}")
async def show_product(cache: CacheDep, product: str) -> dict[str, str]:
    """Look into the cache first."""
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return {"name": str(name)}


@app.post("/carts/{user}/{product}")
async def add_to_cart(redis: RedisDep, user: str, product: str) -> dict[str, int]:
    """Change a cart, one request at a time."""
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        count, _ = await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute()
    return {"count": count}


@app.post("/orders/{user}")
async def order(user: str) -> None:
    """Leave the rest to the worker."""
    await orders.put(user.encode())


@app.post("/inbox/{user}/{text}")
async def send_message(redis: RedisDep, user: str, text: str) -> dict[str, int]:
    """Send a message to a user."""
    return {"waiting": await redis.rpush(f"inbox:{user}", text)}


@app.get("/inbox/{user}")
async def receive_message(redis: RedisDep, user: str) -> dict[str, str | None]:
    """Wait up to ten seconds for a message."""
    found = await redis.blpop([f"inbox:{user}"], timeout=10)
    return {"message": str(found[1]) if found else None}


@app.websocket("/visits")
async def count_visits(websocket: WebSocket, redis: RedisDep) -> None:
    """Count visits of the pages that the client names."""
    await websocket.accept()
    async for page in websocket.iter_text():
        await websocket.send_text(str(await redis.hincrby("visits", page, 1)))
