"""What a streaming provider pushes, for every pool that uses it: redis-py's providers keep the newest callback only."""

import asyncio
import logging
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary, finalize

from redis.auth.token import TokenInterface
from redis.credentials import CredentialProvider, StreamingCredentialProvider

from aioredis_monitored._credentials.tokens import TokenProvider

_LOGGER: Final = logging.getLogger("aioredis_monitored.credentials")


class Renewable(Protocol):
    """What has connections: a pool, or subscriptions, which alone can send on theirs."""

    async def re_auth_callback(self, token: TokenInterface) -> None:
        """Use new credentials on every connection."""


class Bound(Protocol):
    """What knows the event loop of connections."""

    @property
    def event_loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop; ``None`` if there are no connections."""


class RunningLoop(NamedTuple):
    """An event loop, which stays the same."""

    event_loop: asyncio.AbstractEventLoop


class Renewals:
    """Hands the tokens of one provider to all that use it, and survives what one of them raises.

    A provider whose callback raises, such as redis-entraid's, never renews again.
    """

    def __init__(self) -> None:
        self._users: WeakKeyDictionary[Renewable, Bound] = WeakKeyDictionary()

    def add(self, user: Renewable, bound: Bound) -> None:
        """Have a pool or subscriptions get the tokens, for as long as they exist.

        Args:
            user: The pool or the subscriptions.
            bound: What knows the event loop, and not them.
        """
        self._users[user] = bound

    async def push(self, token: TokenInterface) -> None:
        """Give a token to all, in the event loop of each."""
        users = [(user, bound.event_loop) for user, bound in list(self._users.items())]
        running = asyncio.get_running_loop()
        for user, loop in users:
            if loop is not None and loop is not running:
                _renew_in(loop, user, token)
        await asyncio.gather(*(_renew(user, token) for user, loop in users if loop is running))

    async def on_error(self, error: Exception) -> None:
        """Log that the provider has given up renewing."""
        # Its text may quote secrets.
        _LOGGER.warning(
            "The credential_provider failed to renew its credentials, and may not try again: %s. Connections ask it "
            "for credentials when they are made",
            type(error).__qualname__,
        )


async def _renew(user: Renewable, token: TokenInterface) -> None:
    try:
        await user.re_auth_callback(token)
    except Exception as error:  # noqa: BLE001 - the others must get it as well
        _LOGGER.warning("%r could not use renewed credentials: %s", user, type(error).__qualname__)


def _renew_in(loop: asyncio.AbstractEventLoop, user: Renewable, token: TokenInterface) -> None:
    renewing = _renew(user, token)
    try:
        asyncio.run_coroutine_threadsafe(renewing, loop)
    except RuntimeError:
        # The event loop is closed.
        renewing.close()


# By the provider's id: it need not be hashable.
_RENEWALS: Final[dict[int, Renewals]] = {}


class ConnectCredentials(CredentialProvider):
    """What connections know of a streaming provider: how to ask it.

    If they knew it, redis-py would have subscriptions and clients that keep to one connection take the place of the
    pools' callback.

    Args:
        provider: The provider.
    """

    def __init__(self, provider: StreamingCredentialProvider) -> None:
        self._provider = provider

    async def get_credentials_async(self) -> Any:
        """Ask the provider."""
        return await self._provider.get_credentials_async()

    def follow_renewals(self, user: Renewable, bound: Bound) -> None:
        """Have a pool or subscriptions use what the provider pushes, beside all others; see ``Renewals.add``."""
        key = id(self._provider)
        if (renewals := _RENEWALS.get(key)) is None:
            renewals = _RENEWALS[key] = Renewals()
            finalize(self._provider, _RENEWALS.pop, key, None)
            self._provider.on_next(renewals.push)  # type: ignore[arg-type]  # redis-py's own awaits it
            self._provider.on_error(renewals.on_error)  # type: ignore[arg-type]  # as above
        renewals.add(user, bound)

    def on_refused(self, credentials: Any) -> None:
        """Have the provider forget credentials that the server has refused, if it keeps them."""
        if isinstance(self._provider, TokenProvider):
            self._provider.discard(credentials)
