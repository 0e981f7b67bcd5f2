"""redis-py's connections, to a server that is looked up whenever they connect, or that has another name than address.

They override redis-py's private ``_connect`` and ``_connection_arguments``, and no method that sends or reads, so that
they can be shared.
"""
# mypy: disallow-untyped-calls=False

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from aioredis_monitored._redispy.sockets import transport_of


class Location(Protocol):
    """Where to connect to."""

    @property
    def host(self) -> str:
        """The name or address of the server."""

    @property
    def port(self) -> int:
        """The TCP port of the server."""

    @property
    def outdated(self) -> "asyncio.Future[None]":
        """Done when another location is to be connected to."""


class LocatedConnection(Connection):
    """A connection that looks its server up whenever it connects.

    Args:
        locate: Looks the server up.
        arguments: Those of the connection class.

    Attributes:
        location: What ``locate`` has returned last; ``None`` before the first connect.
    """

    def __init__(self, *, locate: Callable[[], Awaitable[Location]], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.location: Location | None = None
        self._locate = locate

    async def _connect(self) -> None:
        self.location = location = await self._locate()
        self.host, self.port = location.host, location.port
        # A machine that is gone does not answer, and connecting would go on for socket_connect_timeout.
        connecting = asyncio.ensure_future(super()._connect())
        # Of a caller that leaves meanwhile, its error is not looked at.
        connecting.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait([connecting, location.outdated], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if connecting.cancel():
                # Its socket is closed by then.
                await asyncio.wait([connecting])
        if connecting.cancelled():
            message = f"{self._host_error()} was replaced while it was connected to"
            raise RedisConnectionError(message)
        connecting.result()


@lru_cache
def located_class(kind: Any) -> Callable[..., LocatedConnection]:
    """Return the class of connections of a kind that look their server up; reprs and errors show the kind's name."""
    names: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (LocatedConnection, kind), names)


class NamedSSLConnection(SSLConnection):
    """A connection to an address, whose server must prove another name.

    Args:
        server_name: The name in the server's certificate.
        arguments: Those of ``SSLConnection``.
    """

    def __init__(self, *, server_name: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._server_name = server_name

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._server_name}


@lru_cache
def named_class(kind: Any) -> Callable[..., NamedSSLConnection]:
    """Return the class of connections of a kind whose server must prove another name; it is called as the kind is."""
    names: dict[str, Any] = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (NamedSSLConnection, kind), names)


def abort_transport(connection: AbstractConnection) -> None:
    """Close a connected connection's socket; who reads or writes sees it end, as if the server had closed it."""
    transport_of(connection).abort()
