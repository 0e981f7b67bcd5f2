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


def abort_socket(connection: AbstractConnection, loop: asyncio.AbstractEventLoop | None, *, forked: bool) -> None:
    """Close a connection's socket at once, without a word from redis-py or asyncio about it being unclosed.

    Args:
        connection: A connection that is connected.
        loop: Its event loop, which may be running, stopped or closed.
        forked: Whether they are copies of those of a parent process, which goes on using its own.
    """
    writer: Any = connection._writer
    connection._writer = connection._reader = None
    encrypted = getattr(writer.transport, "_ssl_protocol", None)
    transport = getattr(encrypted, "_transport", None) or writer.transport
    sock = getattr(transport, "_sock", None)
    if not forked:  # an event loop shares what it waits for with the parent, which would wait in vain
        if sock is not None and loop is not None and not (loop.is_running() or loop.is_closed()):
            # If it goes on, its own callback closes the socket once more, and must find it there.
            loop.call_soon(setattr, transport, "_sock", sock)
        with suppress(
            RuntimeError, AttributeError
        ):  # the event loop is closed; what stands in for a transport has none
            writer.transport.abort()
        if loop is not None and loop.is_running():
            return
    # Maybe no event loop runs the callback that closes the socket.
    if sock is not None:
        sock.close()
        transport._sock = None


def close_now(connection: AbstractConnection) -> None:
    """Close a connection's socket where nothing may be awaited, as its event loop may be ending.

    redis-py's public way is a coroutine, which does nothing if it is cancelled before it begins.
    """
    connection._close()


def close_all_now(pool: ConnectionPool) -> None:
    """Close the sockets of all connections of a plain pool where nothing may be awaited."""
    for connection in (*pool._available_connections, *pool._in_use_connections):
        close_now(connection)


def transport_of(connection: AbstractConnection) -> asyncio.Transport:
    """The transport of a connection that is connected."""
    transport: asyncio.Transport = cast("Any", connection._writer).transport
    return transport


def parser_of(connection: AbstractConnection) -> Any:
    """The parser of a connection; ``None`` if it has none, as what only pretends to be a connection."""
    return getattr(connection, "_parser", None)


def has_socket(connection: AbstractConnection) -> bool:
    """Whether a connection, once connected, is one over a socket of redis-py's."""
    return hasattr(connection, "_writer") and hasattr(connection, "_close")


def is_readable(connection: AbstractConnection) -> bool:
    """Whether something has come that the event loop has not read yet; of an idle connection, most likely its end."""
    return _is_polled(connection, select.POLLIN)


def is_closed_by_peer(connection: AbstractConnection) -> bool:
    """Whether the other end has closed a connection on which something may also have come unasked."""
    # Where there is no such event, only a reset is noticed.
    return _is_polled(connection, getattr(select, "POLLRDHUP", select.POLLHUP))


def is_closed_transport_error(error: BaseException) -> bool:
    """Whether it is what a transport raises when it is written to after its socket was reset.

    uvloop's raises a ``RuntimeError``. asyncio's should raise nothing, but on Python 3.12 and 3.13 it fails on what it
    has let go of (https://github.com/redis/redis-py/issues/4287).
    """
    if type(error) is RuntimeError:
        return "the handler is closed" in str(error)
    traceback = error.__traceback__ if isinstance(error, AttributeError | TypeError) else None
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__") == "asyncio.selector_events"


def _is_polled(connection: AbstractConnection, events: int) -> bool:
    writer: Any = getattr(connection, "_writer", None)
    sock = getattr(writer, "get_extra_info", lambda _: None)("socket")
    if sock is None:
        # It has none, as in fakeredis, or asyncio has closed it.
        return bool(getattr(writer, "is_closing", lambda: False)())
    # Once: exporters look from another thread, in which it may be closed meanwhile.
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    sockets = select.poll()
    sockets.register(descriptor, events)
    return bool(sockets.poll(0))


# The other end of a socket: an address and a port; a path and no port of a Unix socket.
Peer = tuple[str, int | None]


def peer_address(connection: AbstractConnection) -> Peer | None:
    """The other end of a connection's socket, if it is connected."""
    writer: Any = getattr(connection, "_writer", None)
    peer = getattr(writer, "get_extra_info", lambda _: None)("peername")
    # What stands in for a socket may give anything.
    match peer:
        case (host, int(port), *_):
            return str(host), port
        case str() if peer:
            return peer, None
    return None


def address_of(connection: AbstractConnection) -> str:
    """Where a connection leads: a host and a port, or a path."""
    return ":".join(str(value) for name, value in connection.repr_pieces() if name in {"host", "port", "path"})
