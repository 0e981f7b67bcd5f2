"""Sending on one of redis-py's connections: it can be cancelled, and fails with redis-py's errors."""

import asyncio
import builtins
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, TypeVar, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004

from aioredis_monitored.sockets import is_of_closed_transport

Connection = TypeVar("Connection", bound=AbstractConnection)


def sending_soundly(connection: Connection) -> Connection:
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
        connection.__class__ = _sound(cast("Any", kind))
    return connection


class SoundConnection(AbstractConnection):
    """What ``sending_soundly`` makes of a connection."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """As redis-py's, but for its faults."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
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
            if isinstance(error, OSError) or is_of_closed_transport(error):
                raise ConnectionError(f"Error while writing to socket: {error}") from error
            raise


@lru_cache
def _sound(kind: type[AbstractConnection]) -> Any:
    # It goes by the name of what it is.
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (SoundConnection, kind), names)
