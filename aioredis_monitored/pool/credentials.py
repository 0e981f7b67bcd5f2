"""Credentials that change: a password in a file, and providers that are asked again when the server refuses."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, TypeVar, cast

from redis import exceptions
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError, RedisError

from aioredis_monitored._credentials.renewals import ConnectCredentials
from aioredis_monitored._redispy.overrides import connect_socket
from aioredis_monitored.config.readers import PasswordPath
from aioredis_monitored.config.schema import PASSWORD

_LOGGER: Final = logging.getLogger("aioredis_monitored.credentials")
# Some servers and proxies refuse with a code of which redis-py makes no AuthenticationError.
_REFUSALS: Final = ("username-password", "invalid password")

Handshake = Callable[[Any], Awaitable[object] | object]
C = TypeVar("C", bound=AbstractConnection)


class PasswordFile(CredentialProvider):
    """The password in a file, read at every connect; while the file has none, the last password is used.

    Args:
        path: The path of the file: UTF-8, without BOM and NUL; line ends at its end are ignored.
        username: The user of the password; default ``None``, the server's default user.

    Raises:
        ValueError: The file has no password; the text does not repeat its content.
    """

    def __init__(self, path: str, username: str | None = None) -> None:
        self._path = path
        self._username = username
        self._password: str = path.password if isinstance(path, PasswordPath) else PASSWORD.read(path)
        self._is_good = True

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the file. Never raises: the first of several failures in a row is logged."""
        try:
            self._password = PASSWORD.read(self._path)
        except ValueError as error:
            if self._is_good:
                _LOGGER.warning("Password file %r: it %s; the last good password is used", self._path, str(error))
            self._is_good = False
        else:
            self._is_good = True
        return (self._username, self._password) if self._username else (self._password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Read the file in a thread, as a network file system may be slow."""
        return await asyncio.to_thread(self.get_credentials)


class _FixedCredentials(CredentialProvider):
    """Credentials that another provider has given."""

    def __init__(self, credentials: Any) -> None:
        self.credentials = credentials

    async def get_credentials_async(self) -> Any:
        return self.credentials


def is_renewable(provider: CredentialProvider | None) -> bool:
    """Whether a provider may give other credentials later: any but redis-py's static one."""
    return provider is not None and type(provider) is not UsernamePasswordCredentialProvider


def has_renewable_credentials(pool: ConnectionPool) -> bool:
    """Whether a pool may get other credentials when the server refuses its present ones, or the sentinels do."""
    of_sentinels = getattr(pool, "sentinel_credential_provider", None)
    return is_renewable(pool.connection_kwargs.get("credential_provider")) or is_renewable(of_sentinels)


def retry_refused(handshake: Handshake) -> Callable[[C], Awaitable[None]]:
    """Make a handshake that asks the connection's provider once more if the server refuses its credentials.

    Credentials that were refused are not sent again: too many refusals lock an account.

    Args:
        handshake: redis-py's ``redis_connect_func``.
    """

    async def handshake_twice(connection: C) -> None:
        provider = cast("CredentialProvider", connection.credential_provider)
        given = _FixedCredentials(await _get_credentials(provider))
        connection.credential_provider = given
        try:
            try:
                await _await_if_needed(handshake(connection))
            except RedisError as refusal:
                if not _is_refusal(refusal):
                    raise
                renewed = await _get_credentials(provider)
                if renewed == given.credentials:
                    if isinstance(provider, ConnectCredentials):
                        provider.on_refused(renewed)
                    raise
                given.credentials = renewed
                await _reconnect(connection)
                await _await_if_needed(handshake(connection))
        finally:
            connection.credential_provider = provider

    return handshake_twice


async def _get_credentials(provider: CredentialProvider) -> Any:
    """Return a provider's credentials; if the provider cannot reach its own server, the pool's counts as unreachable.

    Raises:
        redis.exceptions.ConnectionError: The provider could not reach its server, or what it awaited was cancelled.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    try:
        return await provider.get_credentials_async()
    except OSError as error:
        # Its text may quote secrets.
        raise exceptions.ConnectionError(
            f"the credential_provider gave no credentials: {type(error).__qualname__}"
        ) from error
    except asyncio.CancelledError as error:
        # A refresh that it shares with other tasks may be cancelled. Raised in this task alone, the cancellation would
        # leave the callers of the shared connection waiting for ever.
        if task.cancelling():
            raise
        raise exceptions.ConnectionError("the credential_provider gave no credentials: it was cancelled") from error


def _is_refusal(error: RedisError) -> bool:
    return isinstance(error, AuthenticationError) or any(text in str(error).lower() for text in _REFUSALS)


async def _await_if_needed(result: Awaitable[object] | object) -> None:
    if isawaitable(result):
        await result


async def _reconnect(connection: AbstractConnection) -> None:
    # redis-py closes a connection whose AUTH was refused, and so do some servers.
    await connection.disconnect(nowait=True)
    try:
        # The public method would repeat the handshake, and call the connect callbacks twice.
        await connect_socket(connection)
    except OSError as error:
        raise exceptions.ConnectionError(f"Error while connecting again: {error}") from error
