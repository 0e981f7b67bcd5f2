"""What the checks look at: a pool, the places that its configuration names, and the servers that it has found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError
from redis.utils import str_if_bytes

from aioredis_monitored._redispy.connections import replies_on
from aioredis_monitored._timeouts import ReplyTimeout
from aioredis_monitored.cli.settings import Settings
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.pool.pool import MonitoredConnectionPool


@dataclass(slots=True)
class Place:
    """A host and port that the configuration names, or the path of a Unix socket.

    Attributes:
        host: The name or address; the path if there is no port.
        port: The TCP port; ``None`` for a Unix socket.
        addresses: The IP addresses of the host that are reached, as far as that is known.
    """

    host: str
    port: int | None
    addresses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.host if self.port is None else address_text(self.host, self.port)


@dataclass(slots=True)
class Subject:
    """What ``doctor`` looks at.

    Attributes:
        settings: The settings of the pool.
        pool: The pool, with brief timeouts and without a shared connection.
        queues: The names of the queues that the application has on it.
        patience: Seconds that one step may take.
    """

    settings: Settings
    pool: MonitoredConnectionPool
    queues: tuple[str, ...]
    patience: float

    def places(self) -> list[Place]:
        """Return the places that the configuration names."""
        config = self.settings.config
        if config.path is not None:
            return [Place(config.path, None)]
        return [Place(*each) for each in config.nodes or ((config.host, config.port),)]


@dataclass(slots=True)
class Server:
    """A server, and the one connection on which all is asked.

    Attributes:
        name: Its host and port.
        subject: What the pool is for.
        connection: The connection.
    """

    name: str
    subject: Subject
    connection: AbstractConnection
    _info: dict[str, str] | None = None

    async def ask(self, *command: Any) -> Any:
        """Return the reply to a command; error replies are values.

        Raises:
            redis.exceptions.RedisError: The connection has ended, or the reply was late.
        """
        [reply] = await self.ask_all(command)
        return reply

    async def ask_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Return the replies to commands that are sent in one piece; see ``ask``."""
        async with ReplyTimeout(self.connection, 0):
            return await replies_on(self.connection, commands)

    async def info(self) -> Mapping[str, str]:
        """Return the fields of ``INFO``; empty if the user may not ask, or the server has none."""
        if self._info is None:
            reply = await self.ask("INFO")
            text = str_if_bytes(reply) if isinstance(reply, bytes | str) else ""
            pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
            self._info = {name: value for name, _, value in pairs}
        return self._info

    async def setting(self, name: str, field: str | None = None) -> str | None:
        """Return a setting of the server from ``INFO``, or else from ``CONFIG GET``; ``None`` if neither has it.

        Args:
            name: What ``CONFIG`` calls it.
            field: What ``INFO`` calls it; default ``None``, if it has no such field.
        """
        if field is not None and (value := (await self.info()).get(field)) is not None:
            return value
        reply = await self.ask("CONFIG", "GET", name)
        if isinstance(reply, dict):
            reply = [word for pair in reply.items() for word in pair]
        return str(str_if_bytes(reply[1])) if isinstance(reply, list) and len(reply) > 1 else None


def is_refused(reply: object) -> bool:
    """Whether a server has refused a command because of the rights of the user."""
    return isinstance(reply, NoPermissionError)
