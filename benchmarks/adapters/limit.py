"""The limit: hiredis on one raw socket with one write per tick of the event loop, and no client library."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import hiredis
from workloads import BATCH, SMALL, Client


class Socket(asyncio.Protocol):
    """Commands in, replies out, in the order of asking."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = hiredis.Reader()
        self.asked: deque[asyncio.Future[object]] = deque()
        self.unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Give each reply to who asked first."""
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            self.asked.popleft().set_result(reply)

    def call(self, *args: str | bytes) -> asyncio.Future[object]:
        """The reply to a command."""
        if not self.unsent:
            self.loop.call_soon(self.flush)
        self.unsent.append(hiredis.pack_command(args))
        reply = self.loop.create_future()
        self.asked.append(reply)
        return reply

    def flush(self) -> None:
        """Send what this tick has brought."""
        self.transport.write(b"".join(self.unsent))
        self.unsent.clear()


@asynccontextmanager
async def connect(_variant: str, url: str, _callers: int) -> AsyncIterator[Client]:
    """Connect the socket."""
    address = urlsplit(url)
    transport, protocol = await asyncio.get_running_loop().create_connection(Socket, address.hostname, address.port)
    call = protocol.call

    async def batch() -> list[object]:
        return [await reply for reply in [call("GET", SMALL) for _ in range(BATCH)]]

    yield Client(
        version=f"hiredis {version('hiredis')}",
        get=lambda key: call("GET", key),
        set=lambda key, value: call("SET", key, value),
        incr=lambda key: call("INCR", key),
        batch=batch,
    )
    transport.close()
