"""FastAPI: pools that open and close with the application, and connection objects as dependencies."""

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Annotated

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.integrations.optional import raise_missing

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ModuleNotFoundError as error:
    raise_missing(error, "fastapi>=0.165")

# After FastAPI, which brings Starlette: without both, the error must not name Starlette.
from aioredis_monitored.integrations import starlette
from aioredis_monitored.integrations.starlette import setup

__all__ = ["RedisDep", "get_redis", "redis_dependency", "setup"]


async def get_redis(connection: HTTPConnection) -> MonitoredRedisConnection:
    """Return the connection object of a request or a WebSocket: the dependency of ``RedisDep``.

    In tests, ``app.dependency_overrides[get_redis]`` replaces it.

    Args:
        connection: The request or WebSocket.

    Raises:
        LookupError: The application has no pool ``redis``.
    """
    return starlette.get_redis(connection)


RedisDep = Annotated[MonitoredRedisConnection, Depends(get_redis)]


def redis_dependency(name: str) -> Callable[[HTTPConnection], Awaitable[MonitoredRedisConnection]]:
    """Return a dependency like ``get_redis`` for a pool of another name, always the same for a name.

    Args:
        name: The name that the pool has in the application.
    """
    return get_redis if name == "redis" else _get_named(name)


@cache
def _get_named(name: str) -> Callable[[HTTPConnection], Awaitable[MonitoredRedisConnection]]:
    async def get_named(connection: HTTPConnection) -> MonitoredRedisConnection:
        return starlette.get_redis(connection, name)

    return get_named
