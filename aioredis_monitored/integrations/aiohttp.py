"""aiohttp: pools that open and close with the application, and a connection object for each request."""

from collections.abc import AsyncIterator
from functools import cache

from redis.asyncio import ConnectionPool

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.integrations.asgi import RedisContextFactory
from aioredis_monitored.integrations.optional import raise_missing

try:
    from aiohttp import web
    from aiohttp.typedefs import Handler
except ModuleNotFoundError as error:
    raise_missing(error, "aiohttp>=3.14")


def redis_key(name: str = "redis") -> web.AppKey[MonitoredRedisConnection]:
    """Return the key under which an application has its connection object, for what is no request: ``app[key]``.

    Args:
        name: The name that its pool has in the application; default ``redis``.
    """
    return _app_key(name)


@cache
def _app_key(name: str) -> web.AppKey[MonitoredRedisConnection]:
    return web.AppKey(name, MonitoredRedisConnection)


@cache
def _request_key(name: str) -> web.RequestKey[MonitoredRedisConnection]:
    return web.RequestKey(name, MonitoredRedisConnection)


def setup(app: web.Application, connection_pool: ConnectionPool, name: str = "redis") -> None:
    """Give an application a pool; call it once for each pool.

    The pool opens before the application's ``cleanup_ctx``, and closes after them. Each request gets a connection
    object: ``get_redis(request)``; what it has called is on the span that is current when the request begins.

    Args:
        app: The application, which has not started yet.
        connection_pool: The pool.
        name: The name of the connection in the application; default ``redis``.

    Raises:
        RuntimeError: The application has started.
        TypeError: ``app`` is no aiohttp application, or ``connection_pool`` is no pool.
        ValueError: The application has a pool of that name.
    """
    if not isinstance(app, web.Application):
        message = f"app must be an aiohttp application, got {type(app).__name__}"
        raise TypeError(message)
    factory = RedisContextFactory(connection_pool, name)
    key, request_key = redis_key(name), _request_key(name)
    if key in app:
        message = f"the application has a pool {name!r}: give this one another name"
        raise ValueError(message)

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with factory.lifespan(app):
            yield

    @web.middleware
    async def give_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[request_key], stats = factory.make_object_for_request(name)
        try:
            return await handler(request)
        finally:
            if stats is not None:
                stats.close()

    app.cleanup_ctx.insert(0, lifespan)
    app.middlewares.append(give_connection)
    app[key] = factory.make_object_for_context(name, None)


def get_redis(request: web.Request, name: str = "redis") -> MonitoredRedisConnection:
    """Return the connection object of a request, which may be a WebSocket's.

    In a middleware that runs before that of ``setup``, it is the application's.

    Args:
        request: The request.
        name: The name that its pool has in the application, or in one that this is a part of; default ``redis``.

    Raises:
        LookupError: The application has no pool of that name.
    """
    redis = request.get(_request_key(name))
    if redis is None:
        redis = request.config_dict.get(redis_key(name))
    if redis is None:
        message = f"the application has no pool {name!r}: call setup(app, pool, {name!r})"
        raise LookupError(message)
    return redis
