"""redis-py's connections: sending and the RESP2 handshake without the faults of redis-py 8.1, and decoding."""
# mypy: disallow-untyped-calls=False

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

from redis._parsers import Encoder
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._redispy.sockets import has_socket, is_closed_transport_error, parser_of

Connection = TypeVar("Connection", bound=AbstractConnection)


def with_safe_send(connection: Connection) -> Connection:
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
    return connection


class SafeConnection(AbstractConnection):
    """A connection whose ``send_packed_command`` can be cancelled and raises redis-py's errors alone."""

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
        try:
            async with asyncio.timeout(self.socket_timeout or None):
                await self._send_packed_command([command] if isinstance(command, bytes) else command)
        except BaseException as error:
            # A part of the command may be written.
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError) or is_closed_transport_error(error):
                raise RedisConnectionError(f"Error while writing to socket: {error}") from error
            raise


def make_safe_connection(pool: ConnectionPool, **others: Any) -> AbstractConnection:
    """Make a connection as redis-py's own pool does, without what its subclasses add, and ``with_safe_send``.

    Args:
        pool: The pool.
        others: Replace arguments of the pool's connections, and ``connection_class`` their class.
    """
    arguments = {"connection_class": pool.connection_class, **pool.connection_kwargs, **others}
    connection: AbstractConnection = with_safe_send(arguments.pop("connection_class")(**arguments))
    return connection


def has_standard_io(connection: AbstractConnection) -> bool:
    """Whether a connection sends and reads with the methods of redis-py or ``SafeConnection``, and none of its own."""
    overrides_io = any(
        getattr(type(connection), name) is not getattr(SafeConnection, name)
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
