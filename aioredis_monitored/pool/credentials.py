"""Credentials that change: a password in a file, and what the server refuses although it was right a moment ago."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, Final, TypeVar, cast

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider
from redis.exceptions import AuthenticationError, ConnectionError, RedisError  # noqa: A004

from aioredis_monitored._redispy.overrides import connect_socket
from aioredis_monitored.config.readers import PasswordPath
from aioredis_monitored.config.schema import PASSWORD

_LOGGER: Final = logging.getLogger("aioredis_monitored.credentials")
# Some servers and proxies say it with a code of which redis-py makes no AuthenticationError.
_REFUSALS: Final = ("username-password", "invalid password")

Handshake = Callable[[Any], Awaitable[object] | object]
C = TypeVar("C", bound=AbstractConnection)


class PasswordFile(CredentialProvider):
    """The password in a file, as it is when a connection is made; while the file has none, the last one that it had.

    Args:
        path: Of the file: UTF-8, without BOM and NUL; line ends at its end do not count.
        username: Whose password it is; default ``None``, for the server's default user.

    Raises:
        ValueError: There is no password in the file; the text does not repeat what is in it.
    """

    def __init__(self, path: str, username: str | None = None) -> None:
        self._path = path
        self._username = username
        self._password: str = path.password if isinstance(path, PasswordPath) else PASSWORD.read(path)
        self._is_good = True

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Read the file. Never raises: what cannot be read is logged, once until it can be read again."""
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
        """Read the file in a thread: a network file system may be slow."""
        return await asyncio.to_thread(self.get_credentials)


class _FixedCredentials(CredentialProvider):
    """Credentials that a provider was asked for already."""

    def __init__(self, credentials: Any) -> None:
        self.credentials = credentials

    async def get_credentials_async(self) -> Any:
        return self.credentials


def is_renewable(provider: CredentialProvider | None) -> bool:
    """Whether a provider may give other credentials by and by: any but redis-py's static one."""
    return provider is not None and type(provider) is not UsernamePasswordCredentialProvider


def has_renewable_credentials(pool: ConnectionPool) -> bool:
    """Whether waiting helps when a pool's credentials are refused."""
    return is_renewable(pool.connection_kwargs.get("credential_provider"))


def retry_refused(handshake: Handshake) -> Callable[[C], Awaitable[None]]:
    """A handshake that asks the connection's provider once more if the server refuses what it has given.

    The refused ones are not sent twice: too many of them lock an account.

    Args:
        handshake: What redis-py calls ``redis_connect_func``.
    """

    async def shake_hands(connection: C) -> None:
        provider = cast("CredentialProvider", connection.credential_provider)
        given = _FixedCredentials(await _ask(provider))
        connection.credential_provider = given
        try:
            try:
                await _await_if_needed(handshake(connection))
            except RedisError as refusal:
                if not _is_refusal(refusal):
                    raise
                renewed = await _ask(provider)
                if renewed == given.credentials:
                    raise
                given.credentials = renewed
                await _reconnect(connection)
                await _await_if_needed(handshake(connection))
        finally:
            connection.credential_provider = provider

    return shake_hands


async def _ask(provider: CredentialProvider) -> Any:
    """What a provider gives; where it gives nothing, as its own server is away, that is no other than ours being away.

    Raises:
        redis.exceptions.ConnectionError: It could not reach what it asks, or what it waited for was cancelled.
    """
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    try:
        return await provider.get_credentials_async()
    except OSError as error:
        # Its text may quote what it was asked with.
        raise ConnectionError(f"the credential_provider gave no credentials: {type(error).__qualname__}") from error
    except asyncio.CancelledError as error:
        # A refresh that it shares with others may be cancelled; with this task alone, those who wait for the connection
        # would wait for ever.
        if task.cancelling():
            raise
        raise ConnectionError("the credential_provider gave no credentials: it was cancelled") from error


def _is_refusal(error: RedisError) -> bool:
    return isinstance(error, AuthenticationError) or any(text in str(error).lower() for text in _REFUSALS)


async def _await_if_needed(result: Awaitable[object] | object) -> None:
    if isawaitable(result):
        await result


async def _reconnect(connection: AbstractConnection) -> None:
    # redis-py ends a connection whose AUTH was refused, and some servers do.
    await connection.disconnect(nowait=True)
    try:
        # The public way would shake hands again, and call twice those who are called when that has succeeded.
        await connect_socket(connection)
    except OSError as error:
        raise ConnectionError(f"Error while connecting again: {error}") from error
