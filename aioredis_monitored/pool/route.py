"""Where the attempts of one call go: the interface between the loop over attempts and the pools of servers."""

from typing import TYPE_CHECKING, Protocol

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._telemetry.spans import Server
from aioredis_monitored.pool.retry import RetryPolicy

if TYPE_CHECKING:
    from aioredis_monitored.pool.pool import MonitoredConnectionPool


class RouteObserver(Protocol):
    """Learns where a call goes."""

    def set_server(self, server: Server) -> object:
        """Take the server of the next attempt."""

    def add_redirect(self) -> object:
        """Count an attempt that a server has redirected to another one."""


class Route(Protocol):
    """Where the attempts of one call go; a ``MonitoredConnectionPool`` is the route of every call to its server.

    Attributes:
        retry_policy: That of the server that was asked last.
    """

    @property
    def retry_policy(self) -> RetryPolicy: ...

    def is_connected(self) -> bool:
        """Whether there is a connection to that server on which it has answered."""

    async def target(self) -> "MonitoredConnectionPool":
        """Return the pool of the server that the next attempt goes to.

        Raises:
            AttemptFailed: It is not known now.
            PoolClosedError, EventLoopError: The pool cannot be used.
        """

    def follow(self, failure: AttemptFailed) -> float | None:
        """Take the failure of an attempt; return the seconds to wait before the next one if a server redirects the call.

        Returns:
            ``None`` if the failure is no redirect that may be followed: the policy decides.
        """
