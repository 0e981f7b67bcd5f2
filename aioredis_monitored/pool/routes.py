"""Where the attempts of one call go: what a route is, and what learns of it."""

from typing import Protocol, TypeVar

from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored._telemetry.spans import Server
from aioredis_monitored.pool.retry import RetryPolicy

P_co = TypeVar("P_co", covariant=True)


class RouteObserver(Protocol):
    """Learns where a call goes."""

    def set_server(self, server: Server) -> object:
        """Take the server of the next attempt."""

    def add_redirect(self) -> object:
        """Count an attempt that a server has redirected to another one."""


class FailureRoute(Protocol):
    """What decides about one call whose attempt has failed."""

    @property
    def retry_policy(self) -> RetryPolicy:
        """The policy of the server that was asked last."""

    def is_connected(self) -> bool:
        """Whether there is a connection to that server on which it has answered."""

    def follow(self, failure: AttemptFailed, /) -> float | None:
        """Take the failure of an attempt; return the seconds to wait before the next one if it is a redirect.

        Returns:
            ``None`` if it is no redirect that may be followed: the policy decides.
        """


class Route(FailureRoute, Protocol[P_co]):
    """Where the attempts of one call go, of which each has a pool; a pool of one server is the route of all its calls.

    The type of these pools is a parameter, as their module imports this one.
    """

    async def target(self) -> P_co:
        """Return the pool of the server that the next attempt goes to.

        Raises:
            AttemptFailed: It is not known now.
            PoolClosedError, EventLoopError: The pool cannot be used.
        """
