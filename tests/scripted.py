"""A server that answers what a test tells it to, for replies that a real one cannot be made to give at will."""

import asyncio
from contextlib import asynccontextmanager


@asynccontextmanager
async def scripted(answer):
    """Yield the port; ``answer(connection, args)`` returns bytes, or ``None`` to close the connection.

    ``connection`` counts from 1. What redis-py sends while it connects is answered with OK: use ``protocol=2``.
    """
    tasks, connections = set(), []

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        connections.append(writer)
        connection = len(connections)
        try:
            while count := await reader.readline():
                args = []
                for _ in range(int(count[1:])):
                    size = int((await reader.readline())[1:])
                    args.append((await reader.readexactly(size + 2))[:-2])
                reply = b"+OK\r\n" if args[0] == b"CLIENT" else answer(connection, args)
                if reply is None:
                    break
                writer.write(reply)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in connections:
            writer.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
