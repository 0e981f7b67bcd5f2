"""A server with a test's answers, for replies that a real server cannot be made to give at will."""

import asyncio
from contextlib import asynccontextmanager
from inspect import isawaitable


@asynccontextmanager
async def scripted(answer):
    """Yield a port where ``answer(connection, args)`` returns bytes, ``None`` to close the connection, or a coroutine.

    ``connection`` counts from 1. The commands of a connecting client are answered correctly: use ``protocol=2``.
    """
    tasks, connections = set(), []

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        connections.append(writer)
        connection, is_greeted = len(connections), False
        try:
            while count := await reader.readline():
                args = []
                for _ in range(int(count[1:])):
                    size = int((await reader.readline())[1:])
                    args.append((await reader.readexactly(size + 2))[:-2])
                if args[0] == b"CLIENT" or (args[0] == b"PING" and not is_greeted):
                    reply = b"+PONG\r\n" if args[0] == b"PING" else b"+OK\r\n"
                else:
                    reply = answer(connection, args)
                is_greeted = True
                if isawaitable(reply):
                    reply = await reply
                if reply is None:
                    break
                writer.write(reply)
        except (OSError, RuntimeError, asyncio.IncompleteReadError):  # uvloop's transports raise RuntimeError
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
