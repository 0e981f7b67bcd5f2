"""A relay in front of a server that replies itself where a test says so, as proxies and old servers do."""

import asyncio
from contextlib import asynccontextmanager, suppress

from support.listening import listening


@asynccontextmanager
async def relay(server, reply_to):
    """Yield the port of a relay, which closes the connection or replies itself where a function says so.

    The function gets the words of a command, and returns the reply, nothing to close, or ``None`` to ask the server.
    """

    async def serve(reader, writer):
        upstream, to_server = await asyncio.open_connection(server.host, server.port)

        async def return_replies():
            while data := await upstream.read(65536):
                writer.write(data)

        replies = asyncio.create_task(return_replies())
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readline():
                words = []
                for _ in range(int(head[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                reply = await reply_to([words[0].upper(), *words[1:]])
                if reply is None:
                    bulks = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
                    to_server.write(b"*%d\r\n%s" % (len(words), bulks))
                elif reply:
                    writer.write(reply)
                else:
                    break
        to_server.transport.abort()
        with suppress(OSError):
            await replies
        writer.transport.abort()

    async with listening(serve) as (_, port):
        yield port


async def redis_5(words):
    """Refuse HELLO as Redis 5 does, which repeats the arguments."""
    beginning = b", ".join(b"`%s`" % word for word in words[1:])
    refusal = b"-ERR unknown command `%s`, with args beginning with: %s\r\n" % (words[0], beginning)
    return refusal if words[0] == b"HELLO" else None


async def no_protocol(words):
    """Refuse RESP3 as a server without it does that knows HELLO."""
    return b"-NOPROTO unsupported protocol version\r\n" if words[0] == b"HELLO" else None


async def hang_up(words):
    """Close the connection at HELLO, as some proxies do with any command that they do not know."""
    return b"" if words[0] == b"HELLO" else None
