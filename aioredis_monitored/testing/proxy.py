"""A TCP proxy between client and server that breaks connections on purpose."""

import asyncio
import socket
import ssl
import struct
from types import TracebackType
from typing import Self, cast

from aioredis_monitored._cancellation import shielded

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 seconds


class FaultProxy:
    """Forwards bytes between its port and a server's, and breaks connections in the ways that its attributes set.

    Use it as an async context manager.

    Args:
        host: The server's host.
        port: The server's port.
        tls: The context to serve TLS with, in front of a server without TLS; default ``None``, to forward bytes as they
            are.

    Attributes:
        host: The host to connect to.
        port: The port to connect to.
        cut_replies: The number of replies that will not arrive: each cuts its connection instead, after the server has
            replied.
        cut_after: The number of bytes of a cut reply that arrive before the cut.
        silent: Whether it drops all bytes, in both directions: every connection is half-open to its two ends.
        reply_pause: The seconds between the bytes of a reply; 0 forwards replies at once.
        accepted: The number of connections that it has accepted.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = (host, port)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.host = "127.0.0.1"
        self.port = 0
        self.cut_replies = 0
        self.cut_after = 0
        self.silent = False
        self.reply_pause = 0.0
        self.accepted = 0

    @property
    def url(self) -> str:
        """The URL of the proxy, ``rediss://`` if it serves TLS."""
        return f"{'rediss' if self._tls else 'redis'}://{self.host}:{self.port}"

    def cut(self) -> None:
        """Cut every open connection (RST)."""
        for writer in self._writers:
            if not writer.is_closing():
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        server = cast("asyncio.Server", self._server)
        server.close()
        with shielded():
            # A connection that was just accepted has no task yet.
            await few_turns()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()
            # An aborted connection still has its socket.
            await few_turns()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        if self._server is None or not self._server.is_serving():
            # The proxy was closed meanwhile.
            writer.transport.abort()
            server_writer.transport.abort()
            return
        ends = {writer, server_writer}
        self._writers |= ends
        try:
            await asyncio.gather(
                self._forward(reader, server_writer, replies=False), self._forward(server_reader, writer, replies=True)
            )
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        try:
            while chunk := await reader.read(_CHUNK):
                if self.silent:
                    continue
                is_cut = replies and self.cut_replies > 0
                if is_cut:
                    self.cut_replies -= 1
                    chunk = chunk[: self.cut_after]
                if replies and self.reply_pause:
                    await self._trickle(chunk, writer)
                else:
                    writer.write(chunk)
                await writer.drain()
                if is_cut:
                    break
        except (OSError, RuntimeError):  # uvloop's transports raise RuntimeError
            pass
        finally:
            writer.transport.abort()

    async def _trickle(self, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        for byte in chunk:
            if writer.is_closing():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(self.reply_pause)


async def few_turns() -> None:
    """Let the event loop do what it has scheduled, and what that schedules."""
    for _ in range(5):
        await asyncio.sleep(0)
