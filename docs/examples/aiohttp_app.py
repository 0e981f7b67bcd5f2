"""A shop on aiohttp: ``REDIS_URL=redis://localhost python aiohttp_app.py``."""

from aiohttp import web

from aioredis_monitored import config_from_env, pool_from_config
from aioredis_monitored.integrations.aiohttp import get_redis, setup

routes = web.RouteTableDef()


@routes.get("/products/{product}")
async def show_product(request: web.Request) -> web.Response:
    """Look into the cache first."""
    cache, product = get_redis(request, "cache"), request.match_info["product"]
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return web.json_response({"name": name})


@routes.post("/carts/{user}/{product}")
async def add_to_cart(request: web.Request) -> web.Response:
    """Change a cart, one request at a time."""
    redis, user = get_redis(request), request.match_info["user"]
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        pipe.hincrby(f"cart:{user}", request.match_info["product"], 1).expire(f"cart:{user}", 3600)
        count, _ = await pipe.execute()
    return web.json_response({"count": count})


@routes.post("/inbox/{user}/{text}")
async def send_message(request: web.Request) -> web.Response:
    """Send a message to a user."""
    user, text = request.match_info["user"], request.match_info["text"]
    return web.json_response({"waiting": await get_redis(request).rpush(f"inbox:{user}", text)})


@routes.get("/inbox/{user}")
async def receive_message(request: web.Request) -> web.Response:
    """Wait up to ten seconds for a message."""
    found = await get_redis(request).blpop([f"inbox:{request.match_info['user']}"], timeout=10)
    return web.json_response({"message": str(found[1]) if found else None})


@routes.get("/visits")
async def count_visits(request: web.Request) -> web.WebSocketResponse:
    """Count visits of the pages that the client names."""
    redis, websocket = get_redis(request), web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        await websocket.send_str(str(await redis.hincrby("visits", message.data, 1)))
    return websocket


def make_app() -> web.Application:
    """Return the application; aiohttp runs one only once."""
    config = config_from_env()
    app = web.Application()
    setup(app, pool_from_config(config, decode_responses=True))
    setup(app, pool_from_config(config, name="cache", decode_responses=True, max_connections=10), "cache")
    app.add_routes(routes)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), handler_cancellation=True)
