"""Where MOVED and ASK are followed: the route of one call in a cluster, which is decided anew for each attempt."""

from collections.abc import Callable
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MasterDownError, MovedError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._multiplexer import AttemptFailed, CommandFuture, Multiplexer, ReplyObserver
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import RetryPolicy
from aioredis_monitored.pool.route import RouteObserver
from aioredis_monitored.pool.topology import ClusterTopology

# As in valkey-glide and coredis: a slot moves once, and its new node may hand it on.
_MAX_REDIRECTS: Final = 16
# After these, another node may serve the slot.
_STALE = (RedisConnectionError, RedisTimeoutError, ClusterDownError, MasterDownError, ReadOnlyError)


class ClusterRoute:
    """Where the attempts of one call in a cluster go; see ``Route``.

    Args:
        topology: The nodes.
        choose: Returns the node for the next attempt; raises ``AttemptFailed`` if there is none now.
        observer: Is given the node of each attempt; ``None`` for none.
        policy: The policy as long as no node was asked.
        is_open: Whether the cluster's pool is open.
        on_redirect: Called with the kind of each redirect.
        node: The node of the attempt that was made already; default ``None``.
    """

    def __init__(
        self,
        topology: ClusterTopology,
        choose: Callable[[], MonitoredConnectionPool],
        observer: RouteObserver | None,
        *,
        policy: RetryPolicy,
        is_open: Callable[[], bool],
        on_redirect: Callable[[str], object],
        node: MonitoredConnectionPool | None = None,
    ) -> None:
        self._topology = topology
        self._choose = choose
        self._observer = observer
        self._policy = policy
        self._is_open = is_open
        self._on_redirect = on_redirect
        self._node = node
        self._importing: MonitoredConnectionPool | None = None
        self._redirects = 0

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the node that was asked last."""
        return self._policy if self._node is None else self._node.retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection to that node on which it has answered."""
        return self._node is not None and self._node.is_connected()

    async def target(self) -> MonitoredConnectionPool:
        """Return the pool of the node for the next attempt, which sends ASKING first if a node has asked for that.

        Raises:
            AttemptFailed: No node answers, or none serves the slot.
        """
        await self._topology.known()
        importing, self._importing = self._importing, None
        self._node = node = importing or self._choose()
        if self._observer is not None:
            self._observer.set_server(node.telemetry.server)
        return node if importing is None else cast("MonitoredConnectionPool", AskingPool(node))

    def follow(self, failure: AttemptFailed) -> bool:
        """Take over what a failure says about the nodes; return whether another node is to be asked at once."""
        error, node = failure.error, self._node
        if node is None:
            return False
        if isinstance(error, AskError):
            # MovedError is a subclass.
            if isinstance(error, MovedError):
                self._topology.on_moved(error, node)
            else:
                self._importing = self._topology.on_ask(error, node)
            self._on_redirect("moved" if isinstance(error, MovedError) else "ask")
        elif not (isinstance(error, PoolClosedError) and self._is_open()):
            if isinstance(error, _STALE):
                self._topology.want_look(None if isinstance(error, ClusterDownError) else node)
            return False
        if self._observer is not None:
            self._observer.add_redirect()
        self._redirects += 1
        return self._redirects <= _MAX_REDIRECTS


class AskingPool:
    """The pool of a node that takes over a slot: each command or transaction is sent together with ASKING.

    Args:
        node: The pool, all of whose other attributes are those of this object.
    """

    is_asking = True

    def __init__(self, node: MonitoredConnectionPool) -> None:
        self._node = node
        self.multiplexer = None if node.multiplexer is None else _AskingMultiplexer(node.multiplexer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._node, name)

    async def acquire(self, on_waited: Callable[[float, float], object] | None = None) -> AbstractConnection:
        """Acquire a connection whose next command is sent after ASKING."""
        connection = await self._node.acquire(on_waited)
        try:
            await connection.send_command("ASKING")
            await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            await self._node.release(connection)
            raise
        return connection


class _AskingMultiplexer:
    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self.isolated = multiplexer.isolated

    def send(
        self,
        args: tuple[Any, ...],
        on_orphan: Callable[[Any], object] | None = None,
        observer: ReplyObserver | None = None,
        losses: int | None = None,
    ) -> Any:
        return self._multiplexer.send_asking(args, on_orphan, observer, losses)
