"""Closing a connection whose event loop will not do it."""

import asyncio
from contextlib import suppress
from typing import Any

from redis.asyncio.connection import AbstractConnection


def abandon(connection: AbstractConnection, loop: asyncio.AbstractEventLoop | None, *, forked: bool) -> None:
    """Close a connection's socket at once, without a word from redis-py or asyncio about it being unclosed.

    Neither has a public way to close without a running event loop, hence the private attributes.

    Args:
        connection: A connection that is connected.
        loop: Its event loop, which may be running, stopped or closed.
        forked: Whether they are copies of those of a parent process, which goes on using its own.
    """
    writer: Any = connection._writer  # noqa: SLF001
    connection._writer = connection._reader = None  # noqa: SLF001
    if not forked:  # an event loop shares what it waits for with the parent, which would wait in vain
        with suppress(RuntimeError):  # the event loop is closed
            writer.transport.abort()
        if loop is not None and loop.is_running():
            return
    # Nobody will run the callback that closes the socket.
    encrypted = getattr(writer.transport, "_ssl_protocol", None)
    transport = getattr(encrypted, "_transport", None) or writer.transport
    sock = getattr(transport, "_sock", None)
    if sock is not None:
        sock.close()
        transport._sock = None  # noqa: SLF001
