"""Starlette: pools that open and close with the application, and a connection object for each request."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from redis.asyncio import ConnectionPool

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.integrations.asgi import RedisContextFactory, RedisMiddleware, connection_in
from aioredis_monitored.integrations.optional import raise_missing

try:
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
except ModuleNotFoundError as error:
    raise_missing(error, "starlette>=1")


class RedisState(TypedDict):
    """The state of a request in an application with one pool, for ``Request[RedisState]``; extend it for further ones.

    Attributes:
        redis: The connection object of the request.
    """

    redis: MonitoredRedisConnection


def setup(app: Starlette, connection_pool: ConnectionPool, name: str = "redis") -> None:
    """Give an application a pool; call it once for each pool.

    The pool opens before the application's own lifespan begins, and closes after that has ended. Each HTTP request and
    WebSocket gets a connection object, as ``request.state.redis``, under this name; what it has called is on the span
    of the request.

    Args:
        app: The application, which has not started yet.
        connection_pool: The pool.
        name: The name of the connection in the application; default ``redis``.

    Raises:
        RuntimeError: The application has started.
        TypeError: ``app`` is no Starlette application, or ``connection_pool`` is no pool.
        ValueError: The application has a pool of that name.
    """
    if not isinstance(app, Starlette):
        message = f"app must be a Starlette or FastAPI application, got {type(app).__name__}"
        raise TypeError(message)
    factory = RedisContextFactory(connection_pool, name)
    if name in _names_of_pools(app):
        message = f"the application has a pool {name!r}: give this one another name"
        raise ValueError(message)
    app.add_middleware(RedisMiddleware, factory=factory)
    own_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, Any], None]:
        async with factory.lifespan(app) as state, own_lifespan(app) as own_state:
            if own_state and name in own_state:
                message = f"the application's lifespan yields {name!r}, which is a pool: give one another name"
                raise ValueError(message)
            yield {**(own_state or {}), **state}

    app.router.lifespan_context = lifespan


def get_redis(connection: HTTPConnection[Any], name: str = "redis") -> MonitoredRedisConnection:
    """Return the connection object of a request or a WebSocket.

    Args:
        connection: The request or WebSocket.
        name: The name that its pool has in the application; default ``redis``.

    Raises:
        LookupError: The application has no pool of that name.
    """
    return connection_in(connection.scope, name, f"call setup(app, pool, {name!r})")


def _names_of_pools(app: Starlette) -> set[str]:
    arguments = (argument for added in app.user_middleware for argument in (*added.args, *added.kwargs.values()))
    return {argument.name for argument in arguments if isinstance(argument, RedisContextFactory)}
