"""Adapter of the limit: hiredis on one raw socket, one write per event loop tick, no client library."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

import hiredis
from workloads import Client


class Socket(asyncio.Protocol):
    """A connection that matches replies with commands in their order."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reader = hiredis.Reader()
        self.pending: deque[asyncio.Future[object]] = deque()
        self.unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Give each reply to the oldest pending command."""
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            self.pending.popleft().set_result(reply)

    def call(self, *args: str | bytes) -> asyncio.Future[object]:
        """Send a command and return the future of its reply."""
        if not self.unsent:
            self.loop.call_soon(self.flush)
        self.unsent.append(hiredis.pack_command(args))
        reply = self.loop.create_future()
        self.pending.append(reply)
        return reply

    def flush(self) -> None:
        """Write the commands of this tick."""
        self.transport.write(b"".join(self.unsent))
        self.unsent.clear()


@asynccontextmanager
async def connect(_variant: str, url: str, _callers: int) -> AsyncIterator[Client]:
    """Connect the socket."""
    address = urlsplit(url)
    transport, protocol = await asyncio.get_running_loop().create_connection(Socket, address.hostname, address.port)
    call = protocol.call

    async def batch(keys: Sequence[str]) -> list[object]:
        return [await reply for reply in [call("GET", key) for key in keys]]

    yield Client(
        version=f"hiredis {version('hiredis')}",
        get=lambda key: call("GET", key),
        set=lambda key, value: call("SET", key, value),
        incr=lambda key: call("INCR", key),
        batch=batch,
    )
    transport.close()
