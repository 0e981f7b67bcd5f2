"""The configuration of all pools in environment variables."""

import logging
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

from aioredis_monitored.config.schema import KEYS, instead

_logger = logging.getLogger("aioredis_monitored.config")

_VARIABLE = re.compile(f"(?:(?P<pool>[A-Z0-9]+(?:_[A-Z0-9]+)*?)_)??(?P<key>{'|'.join(KEYS).upper()})")
# The variables that Kubernetes sets in every pod for a service whose name begins with "redis".
_KUBERNETES = re.compile(
    "(?:.+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
# Names of other clients, and mistyped names that are too short to resemble the right one.
_ALIASES = {
    "URI": "URL",
    "ULR": "URL",
    "HOST": "URL",
    "READ_FROM_REPLICAS": "READ_FROM",
    "USER": "USERNAME",
    "PASS": "PASSWORD",
    "PWD": "PASSWORD",
    "DATABASE": "DB",
    "POOL_SIZE": "MAX_CONNECTIONS",
    "CONNECT_TIMEOUT": "SOCKET_CONNECT_TIMEOUT",
    "CONNECTION_TIMEOUT": "SOCKET_CONNECT_TIMEOUT",
    "KEEPALIVE": "SOCKET_KEEPALIVE",
    "HEALTH_CHECK": "HEALTH_CHECK_INTERVAL",
    "CA_CERTS": "SSL_CA_CERTS",
    "SSL_CA_FILE": "SSL_CA_CERTS",
    "SSL_CAFILE": "SSL_CA_CERTS",
    "SSL_VERIFY": "SSL_CERT_REQS",
    "VERIFY_SSL": "SSL_CERT_REQS",
}
_MIN_RESEMBLANCE = 0.85  # one wrong letter in a word of seven


class Environment(NamedTuple):
    """What environment variables say about pools.

    Attributes:
        config: The configuration of all pools, with keys such as "redis.url".
        variables: The variable that has given each key.
        remarks: Variables that seem to be mistyped or to be meant for another client, each with what to do, without its
            value.
    """

    config: dict[str, str]
    variables: dict[str, str]
    remarks: list[tuple[str, str]]


def config_from_env(environ: Mapping[str, str] = os.environ, prefix: str = "") -> dict[str, str]:
    """Collect the configuration of all pools from environment variables.

    ``{prefix}REDIS_[{POOL}_]{KEY}`` gives ``redis.[{pool}.]{key}``. KEY is a key of `RedisConfig.from_mapping` in
    capitals, the longest that fits; the pool's name becomes lower case and keeps its underscores. So "REDIS_URL" gives
    "redis.url", "REDIS_SOCKET_TIMEOUT" gives "redis.socket_timeout" and "REDIS_RATE_LIMIT_URL" gives
    "redis.rate_limit.url". Other variables, such as those of Kubernetes, are ignored; one that seems to be a mistyped
    key or a key of another client ("REDIS_ULR", "redis_url", "REDIS_HOST", "REDIS_SSL") is logged as a warning, without
    its value.

    Args:
        environ: The environment; default ``os.environ``.
        prefix: What the names of the variables begin with, such as "SHOP_"; default none.
    """
    environment = read_environment(environ, prefix)
    for name, remark in environment.remarks:
        _logger.warning("Environment variable %r%s", name, remark)
    return environment.config


def read_environment(environ: Mapping[str, str], prefix: str = "") -> Environment:
    """Return the configuration of all pools, where it comes from, and what ``config_from_env`` logs.

    Args:
        environ: The environment.
        prefix: What the names of the variables begin with; default none.
    """
    start = f"{prefix}REDIS_"
    environment = Environment({}, {}, [])
    for name, value in environ.items():
        tail = name.upper().removeprefix(start.upper())
        if tail == name.upper() or _KUBERNETES.fullmatch(tail):
            continue
        match = _VARIABLE.fullmatch(tail)
        if match and name == start + tail:
            key = ".".join(filter(None, ("redis", *match.group("pool", "key")))).lower()
            environment.config[key], environment.variables[key] = value, name
        meant, unexplained = (tail, match["pool"]) if match else (None, tail)
        # With a variable SOCKETS_URL, SOCKETS_TIMEOUT is the pool "sockets", and no mistyped SOCKET_TIMEOUT.
        if unexplained and f"{start}{unexplained}_URL" not in environ:
            if (hint := _hint(tail, start, environ)) is not None:
                environment.remarks.append((name, f" has no effect: {hint}"))
                continue
            meant = _near_miss(tail, unexplained) or meant
        if meant and start + meant not in environ:
            environment.remarks.append((name, f": did you mean {start + meant}?"))
    return environment


def _hint(tail: str, start: str, environ: Mapping[str, str]) -> str | None:
    """Return what to do instead of setting the variable, if it is a key of another client without a counterpart."""
    words = tail.split("_")
    # The longest first: "USE_SSL" is no pool called "USE".
    for at in range(len(words)):
        pool = start + "".join(f"{word}_" for word in words[:at])
        hint = instead("_".join(words[at:]), f"{pool}URL", f"{pool}RETRIES")
        if hint is not None and (not at or f"{pool}URL" in environ):
            return hint
    return None


def _near_miss(tail: str, unexplained: str) -> str | None:
    """Return the intended name of a variable whose end, from one of its unexplained words on, resembles a key."""
    keys = [key for key in map(str.upper, KEYS) if not tail.endswith(key)]
    words = tail.split("_")
    # The shortest first: in "A_MAX_CONECTIONS", "A" is a pool.
    for at in reversed(range(unexplained.count("_") + 1)):
        word = "_".join(words[at:])
        close = [_ALIASES[word]] if word in _ALIASES else get_close_matches(word, keys, n=1, cutoff=_MIN_RESEMBLANCE)
        if close:
            return "_".join([*words[:at], *close])
    return None
