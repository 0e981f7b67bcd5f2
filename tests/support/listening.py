"""Servers that a test writes itself."""

import asyncio
from contextlib import asynccontextmanager
from inspect import isawaitable

from aioredis_monitored.testing.proxy import few_turns


@asynccontextmanager
async def listening(serve, host="127.0.0.1", port=0, **options):
    """Yield the address of a server, of which no socket is left at the end.

    Args:
        serve: A function, or a coroutine function, of a connection's reader and writer. Its end closes nothing, and the
            connection's end must end it.
        host: The host on which it listens.
        port: The port, ``0`` for any.
        options: Arguments of ``asyncio.start_server``.
    """
    tasks, writers = [], []

    async def track(reader, writer):
        tasks.append(asyncio.current_task())
        writers.append(writer)
        result = serve(reader, writer)
        if isawaitable(result):
            await result

    server = await asyncio.start_server(track, host, port, **options)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        # A connection that was just accepted has no task yet.
        await few_turns()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An aborted connection still has its socket.
        await few_turns()
