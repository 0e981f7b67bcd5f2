"""The pool of one of several servers, made by the pool of all of them."""

from typing import Any

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.pool.pool import MonitoredConnectionPool


class NodePool(MonitoredConnectionPool):
    """A pool whose arguments were given to another one, which has checked them.

    Args:
        owner: The name of the other pool, which the application has made; the name of this one adds ``@``, host and
            port.
        host: The host of the server.
        port: Its port.
        arguments: All others of ``MonitoredConnectionPool``, except ``name``.
    """

    # What servers announce is impossible for them alone.
    checks_arguments = False
    # Locks are the other pool's, and so are subscriptions, but those that keep to one node.
    _counters = ("timeouts",)

    def __init__(self, owner: str, host: str, port: int, **arguments: Any) -> None:
        self._owner = owner
        super().__init__(host=host, port=port, name=f"{owner}@{address_text(host, port)}", **arguments)

    @property
    def _title(self) -> str:
        return f"pool {self._owner!r} (connections to {self.telemetry.server.target})"


class ReadingNodePool(NodePool):
    """The pool of a node at which the keys of a replica can be read."""

    async def _on_connect(self, connection: AbstractConnection) -> None:
        await super()._on_connect(connection)
        await connection.send_command("READONLY")
        await connection.read_response()
