"""Litestar: a plugin whose pool opens and closes with the application, and connection objects as dependencies."""

from typing import Any

from redis.asyncio import ConnectionPool

from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.integrations.asgi import RedisContextFactory, RedisMiddleware, connection_in
from aioredis_monitored.integrations.optional import raise_missing

try:
    from litestar.config.app import AppConfig
    from litestar.connection import ASGIConnection
    from litestar.di import NamedDependency, Provide
    from litestar.middleware import DefineMiddleware
    from litestar.plugins import InitPlugin
    from litestar.types import Scope
except ModuleNotFoundError as error:
    raise_missing(error, "litestar>=2.25")

RedisDep = NamedDependency[MonitoredRedisConnection]


class RedisPlugin(InitPlugin):
    """Gives an application a pool; an application with several pools has a plugin for each.

    The pool opens before the application's own lifespan begins, and closes after that has ended. Each HTTP request and
    WebSocket gets a connection object: the argument ``redis: RedisDep`` of its handler, under this name, and
    ``request.state.redis``. What it has called is on the span of the request.

    Args:
        connection_pool: The pool.
        name: The name of the connection in the application; default ``redis``.

    Raises:
        TypeError: ``connection_pool`` is no pool.
    """

    def __init__(self, connection_pool: ConnectionPool, name: str = "redis") -> None:
        self._factory = RedisContextFactory(connection_pool, name)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the pool, the middleware and the dependency to an application.

        Args:
            app_config: The application's configuration.

        Raises:
            ValueError: The application has a dependency of that name.
        """
        name = self._factory.name
        if name in app_config.dependencies:
            message = f"the application has a dependency {name!r}: give this pool another name"
            raise ValueError(message)

        def provide(scope: Scope) -> MonitoredRedisConnection:
            redis: MonitoredRedisConnection = scope["state"][name]
            return redis

        app_config.lifespan.insert(0, self._factory.lifespan)
        # Litestar types the messages; RedisMiddleware serves any ASGI application.
        app_config.middleware.insert(0, DefineMiddleware(RedisMiddleware, factory=self._factory))  # type: ignore[arg-type]
        app_config.dependencies[name] = Provide(provide, sync_to_thread=False)
        return app_config


def get_redis(connection: ASGIConnection[Any, Any, Any, Any], name: str = "redis") -> MonitoredRedisConnection:
    """Return the connection object of a request or a WebSocket, for guards and others that get no dependencies.

    Args:
        connection: The request or WebSocket.
        name: The name that its pool has in the application; default ``redis``.

    Raises:
        LookupError: The application has no pool of that name.
    """
    advice = f"add RedisPlugin(pool, {name!r}) to its plugins; where no handler serves a path, there is none"
    return connection_in(connection.scope, name, advice)
