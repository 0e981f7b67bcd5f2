"""redis-py's connections: sending, TLS and the RESP2 handshake without the faults of redis-py 8.1, and decoding."""
# mypy: disallow-untyped-calls=False

import asyncio
import logging
import re
import ssl
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextvars import Context
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from weakref import WeakValueDictionary

from redis._parsers import Encoder
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.connection import AbstractConnection, DefaultParser, RedisSSLContext
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._redispy.sockets import closing_of, has_socket, is_closed_transport_error, parser_of

_LOGGER: Final = logging.getLogger("aioredis_monitored.credentials")

# How long the closing handshakes of TLS may take; a server that is frozen answers none.
_CLOSE_SECONDS: Final = 1.0

# Servers repeat the arguments of a command that they do not know, as those before 6.0 do not know HELLO.
_REPEATED: Final = re.compile(r",? with args beginning with.*", re.DOTALL)

AnyConnection = TypeVar("AnyConnection", bound=AbstractConnection)


def with_safe_send(connection: AnyConnection) -> AnyConnection:
    """Change the class of a connection to one without two faults of ``send_packed_command``, and return it.

    - redis-py sends under ``asyncio.wait_for``, which on Python 3.11 swallows a cancellation in the tick in which the
      write completes (https://github.com/python/cpython/issues/86296): the task goes on and waits for the reply.
    - It passes on what a transport raises whose socket was reset (https://github.com/redis/redis-py/issues/4287).

    Args:
        connection: One of any class. A class that overrides ``send_packed_command``, or stands in for a connection,
            stays unchanged.
    """
    kind = type(connection)
    if getattr(kind, "send_packed_command", None) is AbstractConnection.send_packed_command:
        connection.__class__ = _safe_class(cast("Any", kind))
        cast("SafeConnection", connection).closing_sockets = {}
    return connection


class SafeConnection(AbstractConnection):
    """A connection whose ``send_packed_command`` can be cancelled and raises redis-py's errors alone.

    Errors have no password, and an IPv6 address in brackets, without which its end and the port look the same.

    Attributes:
        closing_sockets: The transports of sockets that it has closed, as long as these are still being closed, each
            with what is done by then.
    """

    closing_sockets: dict[asyncio.Future[Any], asyncio.Transport]

    def _host_error(self) -> str:
        match self:
            case Connection(host=str(host), port=port) if ":" in host:
                return f"[{host}]:{port}"
        return super()._host_error()  # type: ignore[safe-super]  # the connection's own class has it

    async def connect_check_health(self, *arguments: Any, **options: Any) -> None:
        """Connect, as redis-py does; errors lack what a server repeats of the handshake, as that has the password."""
        if self.is_connected:
            return
        try:
            await super().connect_check_health(*arguments, **options)
        except ResponseError as error:
            error.args = (_REPEATED.sub("", str(error)), *error.args[1:])
            raise

    async def disconnect(self, *arguments: Any, **options: Any) -> None:
        """Disconnect, as redis-py does."""
        self._note_closing()
        await super().disconnect(*arguments, **options)

    def _close(self) -> None:
        self._note_closing()
        super()._close()

    def _note_closing(self) -> None:
        closing = closing_of(self)
        if closing is not None and closing[0] not in self.closing_sockets:
            closed, self.closing_sockets[closed] = closing
            closed.add_done_callback(self._on_closed, context=Context())

    def _on_closed(self, closed: asyncio.Future[Any]) -> None:
        del self.closing_sockets[closed]
        if not closed.cancelled():
            # Retrieved, for asyncio: how the socket has ended makes no difference.
            closed.exception()

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send a packed command, as redis-py does.

        Raises:
            redis.exceptions.ConnectionError: The socket is closed, or was reset.
            redis.exceptions.TimeoutError: The write took longer than ``socket_timeout``.
        """
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        if isinstance(command, str):
            command = command.encode()
        parts = [command] if isinstance(command, bytes) else command
        try:
            if not self.socket_timeout:
                await self._send_packed_command(parts)
            else:
                async with asyncio.timeout(self.socket_timeout):
                    await self._send_packed_command(parts)
        except BaseException as error:
            # A part of the command may be written.
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError) or is_closed_transport_error(error):
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            raise


async def replies_on(connection: AbstractConnection, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send commands in one piece, and return their replies as hiredis has parsed them; error replies are values.

    If that fails, or is cancelled, the connection is closed: replies that are not read belong to no later call.

    Raises:
        redis.exceptions.RedisError: The connection has ended, or a reply was late.
    """
    replies: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands(commands))
        while len(replies) < len(commands):
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return replies


async def close_connection(connection: AbstractConnection) -> None:
    """Disconnect a connection, and wait for that; see ``wait_closed``."""
    try:
        await connection.disconnect(nowait=True)
    finally:
        await wait_closed([connection])


async def wait_closed(connections: Iterable[AbstractConnection]) -> None:
    """Wait until the sockets of disconnected connections are closed; those for which that takes over 1 s are aborted.

    redis-py does not wait when it disconnects after an error or a cancellation, and TLS has a closing handshake. If the
    event loop ends before it, asyncio warns of an open transport, and uvloop fails to close the loop. A connection that
    was cancelled in the very tick in which its first handshake ended is closed by asyncio, which does not say when.
    """
    loop = asyncio.get_running_loop()
    closing: dict[asyncio.Future[Any], asyncio.Transport] = {}
    for connection in connections:
        closing |= getattr(connection, "closing_sockets", {})
    pending = {closed for closed in closing if closed.get_loop() is loop}
    if not pending:
        return
    try:
        _, pending = await asyncio.wait(pending, timeout=_CLOSE_SECONDS)
    finally:
        for closed in pending:
            closing[closed].abort()
    if pending:
        await asyncio.wait(pending, timeout=_CLOSE_SECONDS)


class ClosingConnections:
    """Connections that are disconnected, as long as their sockets are still being closed."""

    def __init__(self) -> None:
        self._connections: list[AbstractConnection] = []

    def __iter__(self) -> Iterator[AbstractConnection]:
        return iter(self._connections)

    async def close(self, connection: AbstractConnection) -> None:
        """Disconnect a connection without waiting: with TLS, that takes another round trip."""
        try:
            await connection.disconnect(nowait=True)
        finally:
            connections = (*self._connections, connection)
            self._connections = [each for each in connections if getattr(each, "closing_sockets", None)]

    async def wait_closed(self) -> None:
        """Wait until all are closed; see the function ``wait_closed``."""
        connections, self._connections = self._connections, []
        await wait_closed(connections)


class _SharedContext(RedisSSLContext):
    """The settings of TLS connections; their context is made once, and anew when one of their files has changed."""

    _versions: list[tuple[int, int, int] | None] | None = None

    def get(self) -> ssl.SSLContext:
        """Return the context; the last one while files that have changed cannot be used.

        Raises:
            OSError: There is no last one.
        """
        versions = [_version_of(path) for path in (self.certfile, self.keyfile, self.ca_certs)]
        if versions == self._versions:
            return super().get()
        # A renewed certificate is used without a restart, as when each connection made a context.
        last, self.context, self._versions = self.context, None, versions
        try:
            return super().get()
        except OSError as error:
            if last is None:
                raise
            self.context = last
            _LOGGER.warning("the changed files of a TLS certificate cannot be used, and the last ones are: %s", error)
            return last


_TLS_SETTINGS: Final = [name for name in RedisSSLContext.__slots__ if name != "context"]
_shared_contexts: Final[WeakValueDictionary[tuple[Any, ...], _SharedContext]] = WeakValueDictionary()


def with_shared_context(connection: AnyConnection) -> AnyConnection:
    """Let a connection have the TLS context of all that have the same settings, and return it.

    redis-py loads the system's authorities for each connection, which blocks the event loop for some 50 ms. The context
    lives as long as one of the connections.

    Args:
        connection: One of any class. One without TLS, or with a context of another kind, stays unchanged.
    """
    own: Any = getattr(connection, "ssl_context", None)
    if type(own) is RedisSSLContext:
        settings = {name: getattr(own, name) for name in _TLS_SETTINGS}
        # Flags are collections, which cannot be hashed.
        key = tuple(
            tuple(value) if isinstance(value, Collection) and not isinstance(value, str | bytes) else value
            for value in settings.values()
        )
        cast("Any", connection).ssl_context = _shared_contexts.setdefault(key, _SharedContext(**settings))
    return connection


def _version_of(path: str | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        # Loading it says why.
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def make_safe_connection(pool: ConnectionPool, **others: Any) -> AbstractConnection:
    """Make a connection as redis-py's own pool does, without what its subclasses add.

    It is ``with_safe_send`` and ``with_shared_context``.

    Args:
        pool: The pool.
        others: Replace arguments of the pool's connections, and ``connection_class`` their class.
    """
    arguments = {"connection_class": pool.connection_class, **pool.connection_kwargs, **others}
    connection: AbstractConnection = arguments.pop("connection_class")(**arguments)
    return with_safe_send(with_shared_context(connection))


def has_standard_io(connection: AbstractConnection) -> bool:
    """Whether a connection sends and reads with the methods of redis-py or ``SafeConnection``, and none of its own."""
    if not isinstance(connection, SafeConnection):
        return False
    # SafeConnection has a disconnect of its own, which hides that of the connection's class.
    original = super(SafeConnection, connection)
    overrides_io = any(
        getattr(getattr(original, name), "__func__", None) is not getattr(AbstractConnection, name)
        for name in ("read_response", "send_command", "send_packed_command", "pack_command", "disconnect")
    )
    return (
        not overrides_io
        and type(connection.encoder) is Encoder
        and has_socket(connection)
        and isinstance(parser_of(connection), DefaultParser)
    )


@lru_cache
def _safe_class(kind: type[AbstractConnection]) -> Any:
    # Reprs and errors show the name of the original class.
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (SafeConnection, kind), names)


async def handshake(connection: AbstractConnection) -> None:
    """Send a PING and read its reply before the handshake of redis-py.

    A server with too many clients says so and closes the connection. redis-py reads a reply first in RESP3 only; in
    RESP2 it writes several commands first, one of which fails, and the server's reason is never read.

    Raises:
        redis.exceptions.ConnectionError: The server rejects the connection, with its reason.
    """
    # redis-py's on_connect does this as well, but later than the reply is read.
    parser_of(connection).on_connect(connection)
    await connection.send_command("PING", check_health=False)
    try:
        await connection.read_response(disconnect_on_error=False)
    except RedisError as error:
        # Any other reply, such as NOAUTH, shows that the server accepts the connection.
        if getattr(error, "status_code", None) in {None, "ERR"}:
            raise
    await connection.on_connect()


_LIKE_ASCII = frozenset({"ascii", "latin-1", "latin1", "utf-8", "utf8"})


def decode_reply(reply: Any, encoding: str, errors: str) -> Any:
    """Return the reply with all bytes in it decoded, in nested lists and dicts as well.

    Raises:
        UnicodeDecodeError: Some of them are not in this encoding.
    """
    if isinstance(reply, bytes):
        return reply.decode(encoding, errors)
    if isinstance(reply, list):
        return [decode_reply(item, encoding, errors) for item in reply]
    if isinstance(reply, dict):
        return {
            decode_reply(key, encoding, errors): decode_reply(value, encoding, errors) for key, value in reply.items()
        }
    return reply


def is_decodable(reply: Any, encoding: str) -> bool:
    """Whether decoding certainly succeeds, judged without doing it; false for lists and dicts."""
    if isinstance(reply, bytes):
        return reply.isascii() and encoding.lower() in _LIKE_ASCII
    return reply is None or isinstance(reply, int | float)
