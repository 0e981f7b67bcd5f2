"""redis-py's connections: sending, the RESP2 handshake and decoding, with the faults of redis-py 8.1 mended."""
# mypy: disallow-untyped-calls=False

import asyncio
import builtins
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

from redis._parsers import Encoder
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError, RedisError, TimeoutError  # noqa: A004

from aioredis_monitored._redispy.sockets import has_socket, is_closed_transport_error, parser_of

Connection = TypeVar("Connection", bound=AbstractConnection)


def with_safe_send(connection: Connection) -> Connection:
    """The same connection, with two faults of redis-py's ``send_packed_command`` mended.

    - It sends under ``asyncio.wait_for``, which on Python 3.11 swallows a cancellation that comes in the tick in which
      all is written (https://github.com/python/cpython/issues/86296): its task goes on, and waits for the reply.
    - What a transport raises whose socket was reset gets through it
      (https://github.com/redis/redis-py/issues/4287).

    Args:
        connection: Of whatever class. One that sends in a way of its own, or only pretends to be a connection, stays as
            it is.
    """
    kind = type(connection)
    if getattr(kind, "send_packed_command", None) is AbstractConnection.send_packed_command:
        connection.__class__ = _safe_class(cast("Any", kind))
    return connection


class SafeConnection(AbstractConnection):
    """What ``with_safe_send`` makes of a connection."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py's, but for its faults."""
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
            # A part of it may be written.
            await self.disconnect(nowait=True)
            if isinstance(error, builtins.TimeoutError):
                raise TimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError) or is_closed_transport_error(error):
                raise ConnectionError(f"Error while writing to socket: {error}") from error
            raise


def make_safe_connection(pool: ConnectionPool) -> AbstractConnection:
    """A connection as redis-py's pool makes it, past what its subclasses add, ``with_safe_send``."""
    connection: AbstractConnection = with_safe_send(ConnectionPool.make_connection(pool))
    return connection


def has_standard_io(connection: AbstractConnection) -> bool:
    """Whether redis-py's own methods, or those of ``SafeConnection``, send on this connection and read from it."""
    has_own_way = any(
        getattr(type(connection), name) is not getattr(SafeConnection, name)
        for name in ("read_response", "send_command", "send_packed_command", "pack_command", "disconnect")
    )
    return (
        not has_own_way
        and type(connection.encoder) is Encoder
        and has_socket(connection)
        and isinstance(parser_of(connection), DefaultParser)
    )


@lru_cache
def _safe_class(kind: type[AbstractConnection]) -> Any:
    # It goes by the name of what it is.
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (SafeConnection, kind), names)


async def handshake(connection: AbstractConnection) -> None:
    """Connect as redis-py does, after a first exchange.

    A server with too many clients says so and hangs up. redis-py asks something at once in RESP3 only; in RESP2 it
    writes several commands before it reads, one of which fails, and what the server said is lost.

    Raises:
        redis.exceptions.ConnectionError: The server turns the connection away, and its reason.
    """
    # redis-py's on_connect does it too, but reads too late.
    parser_of(connection).on_connect(connection)
    await connection.send_command("PING", check_health=False)
    try:
        await connection.read_response(disconnect_on_error=False)
    except RedisError as error:
        # Any other answer, such as NOAUTH, is none of the greeting's business.
        if getattr(error, "status_code", None) in {None, "ERR"}:
            raise
    await connection.on_connect()


_LIKE_ASCII = frozenset({"ascii", "latin-1", "latin1", "utf-8", "utf8"})


def decode_reply(reply: Any, encoding: str, errors: str) -> Any:
    """The reply with all bytes in it decoded, however deep.

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
    """Whether the reply can be decoded, as far as that is told without doing it."""
    if isinstance(reply, bytes):
        return reply.isascii() and encoding.lower() in _LIKE_ASCII
    return reply is None or isinstance(reply, int | float)
