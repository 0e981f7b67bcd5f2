"""The private attributes of redis-py's connections, and of asyncio's and uvloop's transports.

They show a connection's socket, and close it without its event loop, for which there is no public way.
``tests/integration/test_redispy_contract.py`` says what is relied on.
"""
# ruff: noqa: SLF001 - that is what this file is for
# mypy: disallow-untyped-calls=False

import asyncio
import select
from contextlib import suppress
from typing import Any, cast

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection


def abort_sockets(connection: AbstractConnection, loop: asyncio.AbstractEventLoop | None, *, forked: bool) -> bool:
    """Close a connection's socket at once, without warnings of redis-py or asyncio about an unclosed connection.

    Those that it has closed before are closed at once as well: with TLS, that takes a round trip, before which the
    event loop may have ended.

    Args:
        connection: A connection.
        loop: Its event loop, which may be running, stopped or closed.
        forked: Whether both were copied from a parent process, which still uses them.

    Returns:
        Whether it was connected.
    """
    writer: Any = connection._writer if connection.is_connected else None
    for transport in list(getattr(connection, "closing_sockets", {}).values()):
        _abort(transport, loop, forked=forked)
    if writer is None:
        return False
    connection._writer = connection._reader = None
    _abort(writer.transport, loop, forked=forked)
    return True


def _abort(own: Any, loop: asyncio.AbstractEventLoop | None, *, forked: bool) -> None:
    encrypted = getattr(own, "_ssl_protocol", None)
    transport = getattr(encrypted, "_transport", None) or own
    sock = getattr(transport, "_sock", None)
    # A forked event loop shares its selector with the parent, which would no longer see the socket.
    if not forked:
        if sock is not None and loop is not None and not (loop.is_running() or loop.is_closed()):
            if getattr(transport, "_conn_lost", 0):
                # It is closed already, and its callback, which must find the socket, comes before any that is added.
                sock.close()
                return
            # If the loop is run again, the transport's callback closes the socket once more, and must find it.
            loop.call_soon(setattr, transport, "_sock", sock)
        # The event loop is closed; a stand-in for a transport may lack the method.
        with suppress(RuntimeError, AttributeError):
            own.abort()
        if loop is not None and loop.is_running():
            return
    # The callback that closes the socket may never run.
    if sock is not None:
        sock.close()
        transport._sock = None


def close_now(connection: AbstractConnection) -> None:
    """Close a connection's socket without awaiting, for example while its event loop ends.

    redis-py's public method is a coroutine, which does nothing if it is cancelled before its first step.
    """
    connection._close()


def close_all_now(pool: ConnectionPool) -> list[AbstractConnection]:
    """Close the sockets of all connections of a plain redis-py pool without awaiting; return the connections."""
    connections = [*pool._available_connections, *pool._in_use_connections]
    for connection in connections:
        close_now(connection)
    return connections


def transport_of(connection: AbstractConnection) -> asyncio.Transport:
    """Return the transport of a connected connection."""
    transport: asyncio.Transport = cast("Any", connection._writer).transport
    return transport


def stream_of(connection: AbstractConnection) -> object:
    """Return what is another object once a connection was connected anew; ``None`` for a stand-in for a socket."""
    return getattr(connection, "_writer", None)


def closing_of(connection: AbstractConnection) -> "tuple[asyncio.Future[Any], asyncio.Transport] | None":
    """Return what is done when the socket of a connection is closed, and its transport.

    ``None`` if it is not connected, and for a stand-in for a socket.
    """
    writer: Any = connection._writer
    protocol = getattr(writer, "_protocol", None)
    return None if protocol is None else (protocol._get_close_waiter(writer), writer.transport)


def parser_of(connection: AbstractConnection) -> Any:
    """Return the parser of a connection; ``None`` for a stand-in without one."""
    return getattr(connection, "_parser", None)


def has_socket(connection: AbstractConnection) -> bool:
    """Whether a connection keeps its socket as redis-py does, which stand-ins do not."""
    return hasattr(connection, "_writer") and hasattr(connection, "_close")


def is_readable(connection: AbstractConnection) -> bool:
    """Whether there are bytes, or the connection's end, that the event loop has not read yet."""
    return _is_polled(connection, select.POLLIN)


def is_closed_by_peer(connection: AbstractConnection) -> bool:
    """Whether the server has closed the connection, on which it may also have sent messages unasked."""
    # Platforms without POLLRDHUP report a reset alone.
    return _is_polled(connection, getattr(select, "POLLRDHUP", select.POLLHUP))


def is_closed_transport_error(error: BaseException) -> bool:
    """Whether a transport raised this error for a write after its socket was reset.

    uvloop's raises ``RuntimeError``. asyncio's should raise nothing, but on Python 3.12 and 3.13 it fails on an
    attribute that it has cleared (https://github.com/redis/redis-py/issues/4287).
    """
    if type(error) is RuntimeError:
        return "the handler is closed" in str(error)
    traceback = error.__traceback__ if isinstance(error, AttributeError | TypeError) else None
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__") == "asyncio.selector_events"


def _is_polled(connection: AbstractConnection, events: int) -> bool:
    writer: Any = getattr(connection, "_writer", None)
    if getattr(writer, "is_closing", lambda: False)():
        # The socket itself is closed in the next tick.
        return True
    sock = getattr(writer, "get_extra_info", lambda _: None)("socket")
    if sock is None:
        # A stand-in such as fakeredis has none.
        return False
    # Read once: exporters call this in another thread, and the socket may close meanwhile.
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    sockets = select.poll()
    sockets.register(descriptor, events)
    return bool(sockets.poll(0))


# The server's end of a socket: address and port, or the path of a Unix socket and ``None``.
Peer = tuple[str, int | None]


def peer_address(connection: AbstractConnection) -> Peer | None:
    """Return the server's end of a connection's socket; ``None`` if it is not connected."""
    writer: Any = getattr(connection, "_writer", None)
    peer = getattr(writer, "get_extra_info", lambda _: None)("peername")
    # A stand-in for a socket may return anything.
    match peer:
        case (host, int(port), *_):
            return str(host), port
        case str() if peer:
            return peer, None
    return None


def address_of(connection: AbstractConnection) -> str:
    """Return the address that a connection was made for: host and port, or a path."""
    return ":".join(str(value) for name, value in connection.repr_pieces() if name in {"host", "port", "path"})
