"""Where MOVED and ASK are followed: the route of one call in a cluster, which is decided anew for each attempt."""

from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, ClusterDownError, MasterDownError, MovedError, ReadOnlyError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored._multiplexer import AttemptFailed, Multiplexer, ReplyObserver
from aioredis_monitored.errors import PoolClosedError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.pool.retry import RetryPolicy
from aioredis_monitored.pool.routes import RouteObserver
from aioredis_monitored.pool.topology import ClusterTopology

_MOVED: Final = "moved"
_ASK: Final = "ask"
# What kinds of redirects there are, in metrics.
REDIRECTS: Final = (_MOVED, _ASK)
# As in valkey-glide and coredis: a slot moves once, and its new node may hand it on.
_MAX_REDIRECTS: Final = 16
# How many redirects of one call are followed without a delay: two nodes may redirect to each other until both know
# which of them is the primary.
_IMMEDIATE_REDIRECTS: Final = 4
# After these, another node may serve the slot.
_STALE = (RedisConnectionError, RedisTimeoutError, ClusterDownError, MasterDownError, ReadOnlyError)


class Redirects:
    """Follows the redirects of one call, as far as they go.

    Args:
        cluster: The pool of the cluster.
        observer: Is told of each; ``None`` for none.
    """

    def __init__(self, cluster: "Cluster", observer: RouteObserver | None) -> None:
        self._cluster = cluster
        self._observer = observer
        self._count = 0

    def take(self, error: Exception, pool: MonitoredConnectionPool) -> MonitoredConnectionPool | None:
        """Take over what a redirect says; return the pool of the node that takes over the slot, if it is an ASK."""
        topology = self._cluster.cluster_topology
        if not isinstance(error, AskError):
            return None
        if self._observer is not None:
            self._observer.add_redirect()
        if isinstance(error, MovedError):  # a subclass of AskError
            topology.on_moved(error, pool)
            self._cluster.on_redirect(_MOVED)
            return None
        self._cluster.on_redirect(_ASK)
        return topology.on_ask(error, pool)

    def delay(self, failure: AttemptFailed) -> float | None:
        """Return the seconds to wait before the attempt after a redirect; ``None`` if there were too many.

        The failure says so then.
        """
        self._count += 1
        if self._count > _MAX_REDIRECTS:
            error = ClusterDownError(f"redirected {_MAX_REDIRECTS} times: the nodes do not agree on the slot")
            error.__cause__, failure.error = failure.error, error
            return None
        again = self._count - _IMMEDIATE_REDIRECTS
        return 0.0 if again <= 0 else self._cluster.retry_policy.backoff(again)


class Cluster(Protocol):
    """What a route needs of a cluster's pool."""

    retry_policy: RetryPolicy
    cluster_topology: ClusterTopology

    def check_open(self) -> None:
        """Raise if the pool cannot be used."""

    def on_redirect(self, kind: str) -> None:
        """Count a redirect."""

    def pool_of_slot(self, slot: int) -> MonitoredConnectionPool:
        """Return the pool of the node that serves a slot now; raise ``AttemptFailed`` if none does."""


def is_redirect(cluster: Cluster, error: Exception) -> bool:
    """Whether a call that has failed with this error did not run, and another node is to be asked."""
    if isinstance(error, PoolClosedError):
        # A node was removed, unless the whole pool was closed.
        return not cluster.cluster_topology.is_closed
    return isinstance(error, AskError)


def note_failure(cluster: Cluster, error: Exception, pool: MonitoredConnectionPool | None) -> None:
    """Request a refresh if an error says that another one may serve the slot."""
    if isinstance(error, _STALE) and not isinstance(error, PoolClosedError):
        cluster.cluster_topology.request_refresh(None if isinstance(error, ClusterDownError) else pool)


class ClusterRoute:
    """Where the attempts of one call in a cluster go; see ``Route``.

    Args:
        cluster: The pool of the cluster.
        choose: Returns the pool for the next attempt; raises ``AttemptFailed`` if there is none now.
        observer: Is given the node of each attempt; ``None`` for none.
        pool: The pool of the attempt that was made already; default ``None``.
        follows_ask: Whether an ASK may be followed; default ``True``. A call that keeps to its connection waits
            instead, until the slot has moved.
    """

    def __init__(
        self,
        cluster: Cluster,
        choose: Callable[[], MonitoredConnectionPool],
        observer: RouteObserver | None,
        *,
        pool: MonitoredConnectionPool | None = None,
        follows_ask: bool = True,
    ) -> None:
        self._cluster = cluster
        self._choose = choose
        self._observer = observer
        self._pool = pool
        self._follows_ask = follows_ask
        self._importing: MonitoredConnectionPool | None = None
        # That a node has named: the slot of a command that is not known may be another one than was guessed.
        self._slot: int | None = None
        self._redirects = Redirects(cluster, observer)

    @property
    def retry_policy(self) -> RetryPolicy:
        """That of the node that was asked last."""
        return (self._pool or self._cluster).retry_policy

    def is_connected(self) -> bool:
        """Whether there is a connection to that node on which it has answered."""
        return self._pool is not None and self._pool.is_connected()

    async def target(self) -> MonitoredConnectionPool:
        """Return the pool of the node for the next attempt, which sends ASKING first if a node has asked for that.

        Raises:
            AttemptFailed: No node answers, or none serves the slot.
        """
        self._cluster.check_open()
        await self._cluster.cluster_topology.known()
        self._cluster.retry_policy.server_unreachable = False
        importing, self._importing = self._importing, None
        self._pool = pool = importing or (
            self._choose() if self._slot is None else self._cluster.pool_of_slot(self._slot)
        )
        if self._observer is not None:
            self._observer.set_server(pool.telemetry.server)
        return pool if importing is None else cast("MonitoredConnectionPool", AskingPool(pool))

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Take over what a failure says about the nodes; see ``Route``."""
        error, pool = failure.error, self._pool
        if pool is None or not is_redirect(self._cluster, error):
            note_failure(self._cluster, error, pool)
            return None
        importing = self._redirects.take(error, pool)
        if isinstance(error, MovedError):
            self._slot = error.slot_id
        if self._follows_ask:
            self._importing = importing
        delay = self._redirects.delay(failure)
        if importing is not None and not self._follows_ask and delay is not None:
            delay = max(delay, self._cluster.retry_policy.backoff(1))
        return delay


class AskingPool:
    """The pool of a node that takes over a slot: each command or transaction is sent together with ASKING.

    Args:
        pool: The node's pool, all of whose other attributes are those of this object.
    """

    is_asking = True

    def __init__(self, pool: MonitoredConnectionPool) -> None:
        self._pool = pool
        self.multiplexer = None if pool.multiplexer is None else _AskingMultiplexer(pool.multiplexer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    async def acquire(self, on_waited: Callable[[float, float], object] | None = None) -> AbstractConnection:
        """Acquire a connection whose next command is sent after ASKING."""
        connection = await self._pool.acquire(on_waited)
        try:
            await connection.send_command("ASKING")
            await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            await self._pool.release(connection)
            raise
        return connection


class _AskingMultiplexer:
    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer

    def send(
        self,
        args: tuple[Any, ...],
        on_orphan: Callable[[Any], object] | None = None,
        observer: ReplyObserver | None = None,
        losses: int | None = None,
    ) -> Any:
        return self._multiplexer.send_asking(args, on_orphan, observer, losses)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._multiplexer, name)
