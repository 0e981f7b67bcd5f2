"""A connection for each request: the context factory, and what wires it into an ASGI application."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Span
from redis.asyncio import ConnectionPool

from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.client.client import MonitoredRedisConnection

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class RedisContextFactory:
    """Makes the connection object that a request's handlers use; all of them share one pool.

    Args:
        connection_pool: The pool.
        name: What the application calls it, in ``request.state`` too; default ``redis``.

    Raises:
        TypeError: ``connection_pool`` is no pool.
    """

    def __init__(self, connection_pool: ConnectionPool, name: str = "redis") -> None:
        if not isinstance(connection_pool, ConnectionPool):
            message = f"connection_pool must be a pool, not {type(connection_pool).__name__}"
            raise TypeError(message)
        self.connection_pool = connection_pool
        self.name = name
        self._prototype = MonitoredRedisConnection(name, connection_pool=connection_pool)

    def make_object_for_context(self, name: str, span: Span | None) -> MonitoredRedisConnection:
        """A connection object for one request.

        Args:
            name: Its ``context_name``.
            span: The parent of its spans; ``None`` means whichever span is current when a command is called.
        """
        request = None if span is None else self._view(span, at_once=True)
        return self._prototype.in_context(name, span, request)

    def make_object_for_request(self, name: str) -> tuple[MonitoredRedisConnection, RequestStats | None]:
        """A connection object for the request whose span is current, and what has to be told when the request ends."""
        request = self._view(trace.get_current_span(), at_once=False)
        return self._prototype.in_context(name, None, request), request

    def _view(self, span: Span, *, at_once: bool) -> RequestStats | None:
        return require_executor(self._prototype).recorder.request_stats(span, eager=at_once)

    def attach(self, context: Any, name: str | None = None) -> MonitoredRedisConnection:
        """Set a connection object as an attribute of ``context`` and return it; default name: the factory's."""
        name = name or self.name
        connection = self.make_object_for_context(name, None)
        setattr(context, name, connection)
        return connection

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[dict[str, MonitoredRedisConnection]]:  # noqa: ARG002 - as frameworks call it
        """The ``lifespan`` of a Starlette or FastAPI application: ``request.state.redis``, closed with the app."""
        async with self.connection_pool:
            yield {self.name: self.make_object_for_context(self.name, None)}


class RedisMiddleware:
    """Pure ASGI middleware: each HTTP request and WebSocket gets a connection object in ``scope["state"]``.

    Args:
        app: The application.
        factory: Makes the connection objects.
    """

    def __init__(self, app: _App, factory: RedisContextFactory) -> None:
        self.app = app
        self.factory = factory

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Handle one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        name = self.factory.name
        scope.setdefault("state", {})[name], request = self.factory.make_object_for_request(name)
        try:
            await self.app(scope, receive, send)
        finally:
            if request is not None:
                request.close()
