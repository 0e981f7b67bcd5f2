"""A server with a test's answers, for replies that a real server cannot be made to give at will."""

import asyncio
from contextlib import asynccontextmanager
from inspect import isawaitable
from itertools import count

from support.listening import listening


@asynccontextmanager
async def scripted(answer):
    """Yield a port where ``answer(connection, args)`` returns bytes, ``None`` to close the connection, or a coroutine.

    ``connection`` counts from 1. The commands of a connecting client are answered correctly: use ``protocol=2``.
    """
    connections = count(1)

    async def serve(reader, writer):
        connection, is_greeted = next(connections), False
        try:
            while line := await reader.readline():
                args = []
                for _ in range(int(line[1:])):
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

    async with listening(serve) as (_, port):
        yield port
