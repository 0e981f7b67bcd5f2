"""A connection object for each request: the context factory, and the middleware for ASGI applications."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import Span
from redis.asyncio import ConnectionPool

from aioredis_monitored._execution.routing import require_executor
from aioredis_monitored._telemetry.stats import RequestStats
from aioredis_monitored.client.client import MonitoredRedisConnection

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[Scope, Receive, Send], Awaitable[None]]

# A response ends with one of them.
_LAST_MESSAGES: Final = frozenset({"http.response.body", "http.response.trailers", "http.response.pathsend"})


class RedisContextFactory:
    """Makes the connection object of each request; all of them share one pool.

    Args:
        connection_pool: The pool.
        name: The name of the connection in the application, also in ``request.state``; default ``redis``.

    Raises:
        TypeError: ``connection_pool`` is no pool.
        ValueError: ``name`` cannot be the name of an attribute.
    """

    def __init__(self, connection_pool: ConnectionPool, name: str = "redis") -> None:
        if not isinstance(name, str) or not name.isidentifier():
            message = f"name must be an identifier such as 'redis', got {name!r}"
            raise ValueError(message)
        if not isinstance(connection_pool, ConnectionPool):
            message = f"connection_pool must be a pool, got {type(connection_pool).__name__}"
            raise TypeError(message)
        self.connection_pool = connection_pool
        self.name = name
        self._prototype = MonitoredRedisConnection(name, connection_pool=connection_pool)

    def make_object_for_context(self, name: str, span: Span | None) -> MonitoredRedisConnection:
        """Make a connection object for one request.

        Args:
            name: Its ``context_name``.
            span: The parent of its spans; ``None`` means the span that is current when a command is called.
        """
        request = None if span is None else self._request_stats(span, eager=True)
        return self._prototype.in_context(name, span, request)

    def make_object_for_request(self, name: str) -> tuple[MonitoredRedisConnection, RequestStats | None]:
        """Make a connection object for the request whose span is current.

        Args:
            name: Its ``context_name``.

        Returns:
            The connection object, and what counts its calls, to be closed when the request ends; that is ``None`` if
            the span does not record.
        """
        request = self._request_stats(trace.get_current_span(), eager=False)
        return self._prototype.in_context(name, None, request), request

    def _request_stats(self, span: Span, *, eager: bool) -> RequestStats | None:
        return require_executor(self._prototype).recorder.request_stats(span, eager=eager)

    def attach(self, context: Any, name: str | None = None) -> MonitoredRedisConnection:
        """Set a connection object as an attribute of a context, and return it.

        Args:
            context: The object that gets the attribute.
            name: The attribute, and the ``context_name``; default: the factory's.
        """
        name = name or self.name
        connection = self.make_object_for_context(name, None)
        setattr(context, name, connection)
        return connection

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[dict[str, MonitoredRedisConnection]]:
        """Open the pool while an application runs, and yield what is the state of its requests.

        It serves as the ``lifespan`` of ASGI frameworks. Those that have a module of their own in
        ``aioredis_monitored.integrations`` get it by ``setup``.

        Args:
            app: The application.
        """
        del app  # frameworks pass it
        async with self.connection_pool:
            yield {self.name: self.make_object_for_context(self.name, None)}


class RedisMiddleware:
    """ASGI middleware that gives each HTTP request and WebSocket a connection object in ``scope["state"]``.

    Args:
        app: The application.
        factory: Makes the connection objects.
    """

    def __init__(self, app: _App, factory: RedisContextFactory) -> None:
        self.app = app
        self.factory = factory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application on one ASGI connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        name = self.factory.name
        scope.setdefault("state", {})[name], request = self.factory.make_object_for_request(name)
        if request is None:
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, _reporting(send, request) if scope["type"] == "http" else send)
        finally:
            request.close()


def connection_in(scope: Mapping[str, Any], name: str, advice: str) -> MonitoredRedisConnection:
    """Return the connection object of an ASGI connection.

    Args:
        scope: The ASGI connection.
        name: The name of its pool in the application.
        advice: How an application gets a pool, for the error.

    Raises:
        LookupError: The application has no pool of that name.
    """
    state = scope.get("state", {})
    if name not in state:
        message = f"the application has no pool {name!r}: {advice}"
        raise LookupError(message)
    redis: MonitoredRedisConnection = state[name]
    return redis


def _reporting(send: Send, request: RequestStats) -> Send:
    """Return a ``send`` that first reports the request if the message is its last: with it, its span may end."""

    async def report_and_send(message: MutableMapping[str, Any]) -> None:
        if message["type"] in _LAST_MESSAGES and not (message.get("more_body") or message.get("more_trailers")):
            request.close()
        await send(message)

    return report_and_send
