"""The settings of a pool as the command line finds them: in environment variables, or in a file in place of these."""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from aioredis_monitored.cli.findings import Finding, fault, ok, warning
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.addresses import address_text
from aioredis_monitored.config.credentials import check_factory
from aioredis_monitored.config.env import Environment, config_from_env, read_environment
from aioredis_monitored.config.readers import PasswordPath
from aioredis_monitored.config.schema import ALL_OPTIONS, OPTIONS, TIMESPAN, Option, RedisConfig, applies, sources_of
from aioredis_monitored.config.url import scheme_of
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config

_ASSIGNMENT: Final = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_QUOTES: Final = ("'", '"')
_SECRETS: Final = frozenset({"password", "sentinel_password"})
_HIDDEN: Final = "(hidden)"
_ARGUMENTS: Final = re.compile(r",? with args beginning with.*", re.DOTALL)
_DEFAULT_PREFIX: Final = "redis."
_NAMES: Final = "see https://aioredis-monitored.readthedocs.io/en/latest/reference/configuration.html"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which pool is meant."""
    parser.add_argument(
        "--prefix",
        type=pool_prefix,
        default=_DEFAULT_PREFIX,
        metavar="PREFIX",
        help="what the pool's keys begin with, such as redis.jobs. for REDIS_JOBS_URL; default %(default)s",
    )
    parser.add_argument("--env-file", metavar="FILE", help="lines NAME=value, in place of the environment")


def pool_of(options: argparse.Namespace) -> MonitoredConnectionPool:
    """Return the pool that is meant; the caller opens and closes it.

    Raises:
        ConfigurationError: It is not configured.
    """
    config = config_from_env(environment_of(options.env_file))
    # Commands decode what they show: a key or a message of another program need not be text.
    return pool_from_config(config, options.prefix, decode_responses=False)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one pool.

    Attributes:
        prefix: What its keys begin with, such as "redis.".
        values: The keys of all pools, as they are given to ``pool_from_config``.
        config: What they mean.
        findings: A finding for each setting that is given, and one for all defaults.
    """

    prefix: str
    values: Mapping[str, str]
    config: RedisConfig
    findings: tuple[Finding, ...]

    def variable(self, key: str) -> str:
        """Return what the environment variable of a key is called."""
        return f"{self.prefix}{key}".replace(".", "_").upper()

    def censored(self, text: str) -> str:
        """Return text of a server without passwords, which a server may repeat."""
        # Before Redis 7.0, a server repeats the arguments of a command that it does not know, such as HELLO and AUTH.
        text = _ARGUMENTS.sub("", text)
        config = self.config
        files = (config.password_file, config.sentinel_password_file)
        secrets = [config.password, config.sentinel_password]
        secrets += [each.password for each in files if isinstance(each, PasswordPath)]
        for each in filter(None, secrets):
            text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", _HIDDEN, text)
        return text


def environment_of(path: str | None) -> Mapping[str, str]:
    """Return the environment of this process, or the one that a file holds.

    Args:
        path: The path of a file of lines ``NAME=value``, which may begin with ``export``. Quotes around a value are
            left out, and blank lines and those that begin with ``#`` are ignored. ``None`` for this process.

    Raises:
        ConfigurationError: The file cannot be read; it names every such line by its number, without its text.
    """
    if path is None:
        return os.environ
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError((path, f"cannot be read: {reason}")) from None
    variables: dict[str, str] = {}
    problems = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        match = _ASSIGNMENT.fullmatch(line)
        if match is not None:
            value = match["value"].strip()
            is_quoted = len(value) > 1 and value[0] in _QUOTES and value[0] == value[-1]
            variables[match["name"]] = value[1:-1] if is_quoted else value
        elif line and not line.startswith("#"):
            problems.append((f"{path}:{number}", "must be NAME=value"))
    if problems:
        raise ConfigurationError(*problems)
    return variables


def pool_prefix(text: str) -> str:
    """Return the prefix of a pool's keys; keys from the environment have no others.

    Raises:
        argparse.ArgumentTypeError: It does not begin with "redis." and end with a dot.
    """
    if not re.fullmatch(r"redis\.(?:[a-z0-9_]+\.)?", text):
        # Not repeated: it may be the password of an argument that was forgotten before it.
        raise argparse.ArgumentTypeError("must be 'redis.', or 'redis.', the name of a pool and a dot")
    return text


def read_settings(environ: Mapping[str, str], prefix: str) -> Settings:
    """Read the settings of a pool.

    Raises:
        ConfigurationError: They cannot be used; it names all problems, and repeats no value.
    """
    environment = read_environment(environ)
    config = RedisConfig.from_mapping(environment.config, prefix)
    if config.credentials is not None:
        check_factory(config.credentials, prefix)
    # What goes together only in a pool, such as the options of telemetry, is checked there.
    replace(config, credentials=None).pool_arguments(prefix=prefix)
    findings = (*_remarks(environment), *_settings(environment, config, prefix))
    return Settings(prefix, environment.config, config, findings)


def problems_of(error: ConfigurationError) -> list[Finding]:
    """Return a fault for each problem of a configuration."""
    return [fault("configuration", f"{_named(key)} {reason}", _NAMES) for key, reason in error.problems]


def check_pools(environ: Mapping[str, str], prefix: str | None) -> list[Finding]:
    """Return what is wrong with the configuration of pools, without connecting.

    Args:
        environ: The environment.
        prefix: What the keys of the only pool to check begin with; ``None`` for all pools.
    """
    environment = read_environment(environ)
    findings = _remarks(environment)
    for each in [prefix] if prefix is not None else _prefixes(environment):
        try:
            settings = read_settings(environ, each)
        except ConfigurationError as error:
            findings += problems_of(error)
        else:
            findings.append(ok("configuration", f"{each}* can be used: {_place(settings.config)}"))
    if prefix is None:
        findings += _pools_without_url(environment)
    return findings


def _remarks(environment: Environment) -> list[Finding]:
    return [warning("environment", f"{name}{remark}", "rename or remove it") for name, remark in environment.remarks]


def _pool_of(key: str) -> str:
    return f"{key.rpartition('.')[0]}."


def _prefixes(environment: Environment) -> list[str]:
    """Return the prefixes of pools with a URL; that of the pool without a name if it has any key, or there is none."""
    found = {_pool_of(key) for key in environment.config if key.endswith(".url")}
    if not found or any(_pool_of(key) == _DEFAULT_PREFIX for key in environment.config):
        found.add(_DEFAULT_PREFIX)
    return sorted(found)


def _pools_without_url(environment: Environment) -> Iterator[Finding]:
    checked = _prefixes(environment)
    for key, variable in environment.variables.items():
        pool = _pool_of(key)
        if pool not in checked:
            url = f"{pool}url".replace(".", "_").upper()
            yield warning("environment", f"{variable} has no effect without {url}", f"set {url}, or remove it")


def _settings(environment: Environment, config: RedisConfig, prefix: str) -> Iterator[Finding]:
    url = environment.variables[f"{prefix}url"]
    yield ok("settings", f"{_place(config)} (from {url})")
    given = sources_of(environment.config, prefix)
    for name, key in given.items():
        yield ok("settings", f"{name}={_shown(name, getattr(config, name))} (from {environment.variables[key]})")
    others = (option for name, option in OPTIONS.items() if name not in given and _has_default(option, config))
    yield ok("settings", f"defaults: {', '.join(f'{each.name}={each.default}' for each in others)}")


def _has_default(option: Option, config: RedisConfig) -> bool:
    is_about_tls = option.name.startswith("ssl_")
    return option.default is not None and applies(option.name, config.topology) and (config.tls or not is_about_tls)


def _place(config: RedisConfig) -> str:
    if config.path is not None:
        return f"unix://{config.path}"
    nodes = config.nodes or ((config.host, config.port),)
    service = f"/{config.service}" if config.service else ""
    scheme = scheme_of(config.topology, "rediss" if config.tls else "redis")
    return f"{scheme}{','.join(address_text(*each) for each in nodes)}{service}"


def _shown(name: str, value: Any) -> str:
    if name in _SECRETS:
        return _HIDDEN
    if isinstance(value, frozenset):
        return ",".join(sorted(value))
    if isinstance(value, AddressMap):
        return f"{len(value.entries)} addresses"
    if isinstance(value, bool):
        return str(value).lower()
    seconds = " s" if ALL_OPTIONS[name].accepts.startswith(TIMESPAN) else ""
    return f"{getattr(value, 'name', value)}{seconds}"


def _named(key: str) -> str:
    """Return a key with the environment variable that gives it."""
    return f"{key} ({key.replace('.', '_').upper()}):" if key.startswith(_DEFAULT_PREFIX) else f"{key}:"
