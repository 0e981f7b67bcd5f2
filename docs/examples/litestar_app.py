"""A shop on Litestar: ``REDIS_URL=redis://localhost uvicorn litestar_app:app``."""

from litestar import Litestar, get, post, websocket_listener
from litestar.params import FromPath

from aioredis_monitored import config_from_env, pool_from_config
from aioredis_monitored.integrations.litestar import RedisDep, RedisPlugin

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)


@get("/products/{product:str}")
async def show_product(cache: RedisDep, product: FromPath[str]) -> dict[str, str]:
    """Look into the cache first."""
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return {"name": str(name)}


@post("/carts/{user:str}/{product:str}", status_code=200)
async def add_to_cart(redis: RedisDep, user: FromPath[str], product: FromPath[str]) -> dict[str, int]:
    """Change a cart, one request at a time."""
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        count, _ = await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute()
    return {"count": count}


@post("/inbox/{user:str}/{text:str}", status_code=200)
async def send_message(redis: RedisDep, user: FromPath[str], text: FromPath[str]) -> dict[str, int]:
    """Send a message to a user."""
    return {"waiting": await redis.rpush(f"inbox:{user}", text)}


@get("/inbox/{user:str}")
async def receive_message(redis: RedisDep, user: FromPath[str]) -> dict[str, str | None]:
    """Wait up to ten seconds for a message."""
    found = await redis.blpop([f"inbox:{user}"], timeout=10)
    return {"message": str(found[1]) if found else None}


@websocket_listener("/visits")
async def count_visits(data: str, redis: RedisDep) -> str:
    """Count visits of the pages that the client names."""
    return str(await redis.hincrby("visits", data, 1))


app = Litestar(
    [show_product, add_to_cart, send_message, receive_message, count_visits],
    plugins=[RedisPlugin(pool), RedisPlugin(cache_pool, "cache")],
)
