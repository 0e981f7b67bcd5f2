"""The provider of a pool's credentials, as ``credentials`` names it: ``aws``, ``entra`` or a factory."""

import inspect
from collections.abc import Container
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from redis.credentials import CredentialProvider

from aioredis_monitored.config.readers import NAMED_CREDENTIALS
from aioredis_monitored.errors import ConfigurationError

# The keys without which a provider cannot be made.
_NEEDED: Final = {"aws": ("username", "aws_region", "aws_cache")}


def key_problems(credentials: str, given: Container[str]) -> list[tuple[str, str]]:
    """Return the keys that named credentials need and do not get, or must not get, each with the reason."""
    if credentials == "entra" and "username" in given:
        return [("username", "cannot be given together with credentials=entra: the token names the user")]
    needed = _NEEDED.get(credentials, ())
    return [(key, f"no value specified, which credentials={credentials} needs") for key in needed if key not in given]


def missing_package(credentials: str) -> str | None:
    """Return why named credentials cannot be used, if the package is not installed that they need."""
    package = NAMED_CREDENTIALS.get(credentials)
    if package is None or find_spec(package) is not None:
        return None
    name = package.replace("_", "-")
    return f'{credentials} needs {name}, which is not installed: pip install "aioredis_monitored[{credentials}]"'


def make_provider(config: Any, prefix: str) -> CredentialProvider:
    """Make the provider that a pool's configuration names.

    Args:
        config: The ``RedisConfig``; its ``credentials`` are given.
        prefix: What the keys of the pool begin with, for errors.

    Raises:
        ConfigurationError: It cannot be made.
    """
    name: str = config.credentials
    key = f"{prefix}credentials"
    given = [each.name for each in fields(config) if getattr(config, each.name) is not None]
    if problems := key_problems(name, given):
        raise ConfigurationError(*((f"{prefix}{each}", reason) for each, reason in problems))
    if (reason := missing_package(name)) is not None:
        raise ConfigurationError((key, reason))
    if name not in NAMED_CREDENTIALS:
        return _made_by_factory(config, key)
    try:
        return _aws(config) if name == "aws" else _entra()
    except (ImportError, ValueError) as error:
        # Of what botocore and azure-identity read in the environment.
        raise ConfigurationError((key, f"{name} cannot be used: {type(error).__qualname__}")) from error


# Those who use neither need neither package.


def _aws(config: Any) -> CredentialProvider:
    from aioredis_monitored._credentials.aws import aws_provider  # noqa: PLC0415

    return aws_provider(config.username, config.aws_cache, config.aws_region, config.aws_service or "elasticache")


def _entra() -> CredentialProvider:
    from aioredis_monitored._credentials.entra import entra_provider  # noqa: PLC0415

    return entra_provider()


def check_factory(name: str, prefix: str) -> None:
    """Check that a factory can be imported, if credentials name one; it is not called, as it may connect.

    Raises:
        ConfigurationError: It cannot be, or is no function.
    """
    if name not in NAMED_CREDENTIALS:
        _import_factory(name, f"{prefix}credentials")


def _made_by_factory(config: Any, key: str) -> CredentialProvider:
    name: str = config.credentials
    factory = _import_factory(name, key)
    try:
        provider = factory(config)
    except Exception as error:
        # Its text may quote secrets.
        raise ConfigurationError((key, f"{name} raised {type(error).__qualname__}")) from error
    if isinstance(provider, CredentialProvider):
        return provider
    if inspect.iscoroutine(provider):
        provider.close()
    got = type(provider).__name__
    raise ConfigurationError((key, f"{name} must return a redis.credentials.CredentialProvider, it returned {got}"))


def _import_factory(name: str, key: str) -> Any:
    module_name, _, path = name.partition(":")
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError((key, f"there is no module {error.name}")) from error
        # Only what imports raise shows names alone.
        what = f"{type(error).__name__}: {error}" if isinstance(error, ImportError) else type(error).__name__
        raise ConfigurationError((key, f"the module {module_name} cannot be imported: {what}")) from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigurationError((key, f"the module {module_name} has no {path}{hint}"))
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError((key, f"{name} must be a function, got {type(found).__name__}"))
    return found
