"""A shop on Django, in one file: ``REDIS_URL=redis://localhost uvicorn django_app:app``."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from aioredis_monitored import MonitoredRedisConnection, config_from_env, pool_from_config

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY=secrets.token_urlsafe(), ALLOWED_HOSTS=["*"])

config = config_from_env()
pool = pool_from_config(config, decode_responses=True)
cache_pool = pool_from_config(config, name="cache", decode_responses=True, max_connections=10)

# All requests share them.
redis = MonitoredRedisConnection(connection_pool=pool)
cache = MonitoredRedisConnection("cache", connection_pool=cache_pool)


async def show_product(request: HttpRequest, product: str) -> JsonResponse:
    """Look into the cache first."""
    name = await cache.get(f"product:{product}")
    if name is None:
        name = f"product {product}"  # from a database
        await cache.set(f"product:{product}", name, ex=60)
    return JsonResponse({"name": name})


@require_POST
async def add_to_cart(request: HttpRequest, user: str, product: str) -> JsonResponse:
    """Change a cart, one request at a time."""
    async with redis.lock(f"lock:cart:{user}", timeout=5), redis.pipeline("add-to-cart") as pipe:
        count, _ = await pipe.hincrby(f"cart:{user}", product, 1).expire(f"cart:{user}", 3600).execute()
    return JsonResponse({"count": count})


@async_to_sync
async def push(user: str, text: str) -> int:
    """Do for synchronous views what needs the server's event loop."""
    return await redis.rpush(f"inbox:{user}", text)


@require_POST
def send_message(request: HttpRequest, user: str, text: str) -> JsonResponse:
    """Send a message to a user, from a synchronous view, which runs in a thread."""
    return JsonResponse({"waiting": push(user, text)})


async def receive_message(request: HttpRequest, user: str) -> JsonResponse:
    """Wait up to ten seconds for a message."""
    found = await redis.blpop([f"inbox:{user}"], timeout=10)
    return JsonResponse({"message": str(found[1]) if found else None})


urlpatterns = [
    path("products/<product>", show_product),
    path("carts/<user>/<product>", add_to_cart),
    path("inbox/<user>/<text>", send_message),
    path("inbox/<user>", receive_message),
]

django = get_asgi_application()

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Open and close the pools with the server, which Django does not know; all else is Django's."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()
    async with pool, cache_pool:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
