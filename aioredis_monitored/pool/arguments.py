"""The arguments of a pool: which count as omitted, the defaults of redis-py's, and what is logged of them."""

import logging
import ssl
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio import SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.credentials import StreamingCredentialProvider
from redis.driver_info import DriverInfo, resolve_driver_info
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import AbstractRetry
from redis.utils import SENTINEL

from aioredis_monitored._credentials.renewals import ConnectCredentials
from aioredis_monitored._redispy.attributes import AttributeFreeParser
from aioredis_monitored._redispy.connections import handshake
from aioredis_monitored._telemetry.instruments import SCOPE
from aioredis_monitored._version import __version__
from aioredis_monitored.pool.credentials import PasswordFile, is_renewable, retry_refused

_LOGGER: Final = logging.getLogger("aioredis_monitored.pool")

# Once: redis-py would read its version from disk for every connection, in the event loop.
_DRIVER_INFO: Final = DriverInfo().add_upstream_driver(SCOPE, __version__)
RESP2: Final = 2
# Arguments for which None means the default.
_NONE_IS_DEFAULT: Final = ("host", "port", "maint_notifications_config", "redis_connect_func")


def without_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without those that mean no more than omitted ones, as wrappers of redis-py pass them."""
    return {name: value for name, value in arguments.items() if not _is_default(name, value)}


def _is_default(name: str, value: object) -> bool:
    return value is SENTINEL or (value is None and name in _NONE_IS_DEFAULT)


def with_own_defaults(arguments: dict[str, Any], *, client_info: bool) -> dict[str, Any]:
    """Return the arguments of redis-py's pool, with defaults of this package where none are given.

    Args:
        arguments: Those that are given, validated.
        client_info: Whether connections report this package to the server.
    """
    completed = dict(arguments)
    # redis-py 8.1's default skips its check for unread replies, and hands one caller another's reply.
    completed.setdefault("maint_notifications_config", MaintNotificationsConfig(enabled=False))
    library = {name: completed.pop(name) for name in ("lib_name", "lib_version") if name in completed}
    if library:
        completed.setdefault("driver_info", resolve_driver_info(**library))
    completed.setdefault("driver_info", _DRIVER_INFO if client_info else None)
    # hiredis counts attributes, which only RESP3 has, as replies.
    completed.setdefault("parser_class", AttributeFreeParser)
    if completed.get("protocol") == RESP2:
        completed.setdefault("redis_connect_func", handshake)
    if (path := completed.pop("password_file", None)) is not None:
        completed["credential_provider"] = PasswordFile(path, completed.pop("username", None))
    if isinstance(provider := completed.get("credential_provider"), StreamingCredentialProvider):
        completed["credential_provider"] = ConnectCredentials(provider)
    if is_renewable(completed.get("credential_provider")):
        connect_func = completed.get("redis_connect_func") or AbstractConnection.on_connect
        completed["redis_connect_func"] = retry_refused(connect_func)
    return completed


def retries_of(retry: object) -> int:
    """Return the number of retries of a policy of redis-py: 0 for ``None``, and a negative one for any number.

    Raises:
        TypeError: It is no retry policy.
    """
    if retry is None:
        return 0
    if not isinstance(retry, AbstractRetry):
        message = f"retry must be a redis.asyncio.retry.Retry, got {type(retry).__name__}"
        raise TypeError(message)
    return retry.get_retries()


def warn_ignored(
    pool_name: str, retries: int, retry: object, on_error: object = None, on_timeout: object = False
) -> None:
    """Log which of redis-py's arguments about retries are given, and of which only a number counts.

    Args:
        pool_name: The name of the pool.
        retries: How often it retries a call now.
        retry: The argument of this name.
        on_error: ``retry_on_error``; default ``None``, for omitted.
        on_timeout: ``retry_on_timeout``; default ``False``.
    """
    is_policy = isinstance(retry, AbstractRetry) and retries != 0
    given = {"retry": is_policy, "retry_on_error": on_error, "retry_on_timeout": on_timeout}
    if ignored := [name for name, value in given.items() if value]:
        _LOGGER.warning(
            "pool %r: of %s, only a number of retries counts (%d now): a call is retried only if it certainly did "
            "not run, whatever its error, and after delays of retry_backoff",
            pool_name,
            ", ".join(ignored),
            retries,
        )


def warn_unverified(pool_name: str, template: AbstractConnection) -> None:
    """Log that TLS connections such as the template verify no certificate, if that is so."""
    if isinstance(template, SSLConnection) and template.cert_reqs == ssl.CERT_NONE:
        _LOGGER.warning(
            "pool %r: ssl_cert_reqs is none, so that anyone on the network can pose as the server and read the "
            "password; leave it out, and give ssl_ca_certs if the server's authority is not the system's",
            pool_name,
        )
