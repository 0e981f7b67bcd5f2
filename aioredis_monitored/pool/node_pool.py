"""The pool of one of several servers, made by the pool of all of them."""

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored.pool.pool import MonitoredConnectionPool


class NodePool(MonitoredConnectionPool):
    """A pool whose arguments were given to another one, which has warned of them."""

    warns_of_arguments = False


class ReadingNodePool(NodePool):
    """The pool of a node at which the keys of a replica can be read."""

    async def _on_connect(self, connection: AbstractConnection) -> None:
        await super()._on_connect(connection)
        await connection.send_command("READONLY")
        await connection.read_response()
