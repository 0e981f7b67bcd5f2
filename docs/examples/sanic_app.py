"""A shop on Sanic: ``REDIS_URL=redis://localhost sanic sanic_app:app``."""

from contextlib import AsyncExitStack
from typing import Any

from sanic import HTTPResponse, Request, Sanic, Websocket, json

from aioredis_monitored import MonitoredRedisConnection, config_from_env, pool_from_config

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)

# All requests share them.
redis = MonitoredRedisConnection(connection_pool=pool)
cache = MonitoredRedisConnection("cache", connection_pool=cache_pool)

app = Sanic("shop")
opened = AsyncExitStack()


@app.before_server_start
async def open_pools(app: Sanic[Any, Any]) -> None:
    """Open the pools of this worker process."""
    await opened.enter_async_context(pool)
    await opened.enter_async_context(cache_pool)


@app.after_server_stop
async def close_pools(app: Sanic[Any, Any]) -> None:
    """Close them."""
    await opened.aclose()


@app.get("/products/<product>")
async def show_product(request: Request, product: str) -> HTTPResponse:
    """Look into the cache first."""
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return json({"name": name})


@app.post("/carts/<user>/<product>")
async def add_to_cart(request: Request, user: str, product: str) -> HTTPResponse:
    """Change a cart, one request at a time."""
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        count, _ = await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute()
    return json({"count": count})


@app.post("/inbox/<user>/<text>")
async def send_message(request: Request, user: str, text: str) -> HTTPResponse:
    """Send a message to a user."""
    return json({"waiting": await redis.rpush(f"inbox:{user}", text)})


@app.get("/inbox/<user>")
async def receive_message(request: Request, user: str) -> HTTPResponse:
    """Wait up to ten seconds for a message."""
    found = await redis.blpop([f"inbox:{user}"], timeout=10)
    return json({"message": str(found[1]) if found else None})


@app.route("/visits", websocket=True)
async def count_visits(request: Request, ws: Websocket) -> None:
    """Count visits of the pages that the client names."""
    while (page := await ws.recv()) is not None:
        await ws.send(str(await redis.hincrby("visits", page, 1)))
