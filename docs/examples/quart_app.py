"""A shop on Quart: ``REDIS_URL=redis://localhost hypercorn quart_app:app``."""

from collections.abc import AsyncGenerator

from quart import Quart, websocket

from aioredis_monitored import MonitoredRedisConnection, config_from_env, pool_from_config

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)

# All requests share them.
redis = MonitoredRedisConnection(connection_pool=pool)
cache = MonitoredRedisConnection("cache", connection_pool=cache_pool)

app = Quart(__name__)


@app.while_serving
async def lifespan() -> AsyncGenerator[None]:
    """Open the pools, and close them with the application."""
    async with pool, cache_pool:
        yield


@app.get("/products/<product>")
async def show_product(product: str) -> dict[str, str]:
    """Look into the cache first."""
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return {"name": str(name)}


@app.post("/carts/<user>/<product>")
async def add_to_cart(user: str, product: str) -> dict[str, int]:
    """Change a cart, one request at a time."""
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        count, _ = await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute()
    return {"count": count}


@app.post("/inbox/<user>/<text>")
async def send_message(user: str, text: str) -> dict[str, int]:
    """Send a message to a user."""
    return {"waiting": await redis.rpush(f"inbox:{user}", text)}


@app.get("/inbox/<user>")
async def receive_message(user: str) -> dict[str, str | None]:
    """Wait up to ten seconds for a message."""
    found = await redis.blpop([f"inbox:{user}"], timeout=10)
    return {"message": str(found[1]) if found else None}


@app.websocket("/visits")
async def count_visits() -> None:
    """Count visits of the pages that the client names."""
    while True:
        page = await websocket.receive()
        await websocket.send(str(await redis.hincrby("visits", page, 1)))
