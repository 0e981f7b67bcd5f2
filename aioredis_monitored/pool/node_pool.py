"""The pool of one of several servers, made by the pool of all of them, and those whose servers have left."""

import asyncio
from collections.abc import Iterable, Iterator
from contextvars import Context
from functools import partial
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
    _is_node = True
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


class ClosingPools:
    """The pools of servers that have left, each of which is closed in the background, and forgotten then."""

    def __init__(self) -> None:
        # With the task that closes it; ``None`` for one that ``aclose`` is to close.
        self._tasks: dict[MonitoredConnectionPool, asyncio.Task[None] | None] = {}

    def __iter__(self) -> Iterator[MonitoredConnectionPool]:
        return iter(list(self._tasks))

    def close(self, pool: MonitoredConnectionPool) -> None:
        """Close a pool in the background."""
        # In a context of its own: no call has asked for it.
        closing = asyncio.get_running_loop().create_task(pool.aclose(), context=Context())
        self._tasks[pool] = closing
        closing.add_done_callback(partial(self._on_closed, pool), context=Context())

    def _on_closed(self, pool: MonitoredConnectionPool, closing: "asyncio.Task[None]") -> None:
        # The end of an event loop cancels it, and may keep the pool from being closed.
        if not closing.cancelled():
            self._tasks.pop(pool, None)
            # Retrieved, for asyncio: nothing depends on how the connections to a server that has left have ended.
            closing.exception()

    def add(self, pools: Iterable[MonitoredConnectionPool]) -> None:
        """Add pools for ``aclose`` or ``detach_connections``, which follows."""
        self._tasks = dict.fromkeys(pools) | self._tasks

    async def aclose(self) -> None:
        """Return when all are closed, and forget them.

        Raises:
            redis.exceptions.RedisError: One of them cannot be closed.
        """
        tasks = [each for each in self._tasks.values() if each is not None and not each.get_loop().is_closed()]
        outcomes = await asyncio.gather(*(pool.aclose() for pool in self._tasks), return_exceptions=True)
        self._tasks = {}
        if tasks:
            await asyncio.wait(tasks)
        if errors := [each for each in outcomes if each is not None]:
            raise errors[0]

    def detach_connections(self) -> list[AbstractConnection]:
        """Forget all; return their connections, which are not closed by this."""
        pools, self._tasks = self._tasks, {}
        return [connection for pool in pools for connection in pool.detach_connections()]
