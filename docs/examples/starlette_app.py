"""A shop on Starlette: ``REDIS_URL=redis://localhost uvicorn starlette_app:app``."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from aioredis_monitored import MonitoredRedisConnection, config_from_env, pool_from_config
from aioredis_monitored.integrations.starlette import RedisState, get_redis, setup

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)


class State(RedisState):
    """The types of ``request.state``: the pool ``redis`` and this one."""

    cache: MonitoredRedisConnection


async def show_product(request: Request[State]) -> JSONResponse:
    """Look into the cache first."""
    cache, product = request.state["cache"], request.path_params["product"]
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return JSONResponse({"name": name})


async def add_to_cart(request: Request[State]) -> JSONResponse:
    """Change a cart, one request at a time."""
    redis, user = request.state["redis"], request.path_params["user"]
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        pipe.hincrby(f"cart:{user}", request.path_params["product"], 1).expire(f"cart:{user}", 3600)
        count, _ = await pipe.execute()
    return JSONResponse({"count": count})


async def send_message(request: Request[State]) -> JSONResponse:
    """Send a message to a user."""
    user, text = request.path_params["user"], request.path_params["text"]
    return JSONResponse({"waiting": await request.state["redis"].rpush(f"inbox:{user}", text)})


async def receive_message(request: Request[State]) -> JSONResponse:
    """Wait up to ten seconds for a message."""
    found = await request.state["redis"].blpop([f"inbox:{request.path_params['user']}"], timeout=10)
    return JSONResponse({"message": str(found[1]) if found else None})


async def count_visits(websocket: WebSocket) -> None:
    """Count visits of the pages that the client names."""
    redis = get_redis(websocket)
    await websocket.accept()
    async for page in websocket.iter_text():
        await websocket.send_text(str(await redis.hincrby("visits", page, 1)))


app = Starlette(
    routes=[
        Route("/products/{product}", show_product),
        Route("/carts/{user}/{product}", add_to_cart, methods=["POST"]),
        Route("/inbox/{user}/{text}", send_message, methods=["POST"]),
        Route("/inbox/{user}", receive_message),
        WebSocketRoute("/visits", count_visits),
    ],
)
setup(app, pool)
setup(app, cache_pool, "cache")
