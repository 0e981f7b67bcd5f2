"""Whether the pool gets a connection: credentials, the protocol, a place among the server's clients, an answer."""

from typing import Final

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from aioredis_monitored.cli.doctor.subject import Subject
from aioredis_monitored.cli.findings import Finding, fault, ok
from aioredis_monitored.cli.settings import Settings
from aioredis_monitored.config.schema import RedisConfig, sources_of
from aioredis_monitored.config.url import scheme_of
from aioredis_monitored.pool.health import problem_of
from aioredis_monitored.pool.pool import pool_from_config

_RESP2: Final = 2
_CLOSED: Final = "closed"
_ENDS: Final = (_CLOSED, "reset by peer")
_LOOK: Final = "look into the log of the server and of proxies"
_NEEDS_TLS: Final = "if the server expects TLS, use rediss://"
_NEEDS_CERTIFICATE: Final = "if the server expects a certificate, set ssl_certfile and ssl_keyfile"
# What is in the text of an error, what that means, and what to do.
_MEANINGS: Final = (
    (
        "max number of clients",
        "the server has as many clients as its maxclients allows",
        "raise maxclients, or lower max_connections or the number of processes; CLIENT LIST shows who is connected",
    ),
    (
        "protected mode",
        "the server is in protected mode: it accepts connections from its own machine alone",
        "set a password at the server, and connect with it",
    ),
    ("loading the dataset", "the server is still loading its data", "wait until it has"),
    (
        "cluster support disabled",
        "the server is no node of a cluster",
        f"use a {scheme_of('standalone')} URL",
    ),
)
# The options that say who the client is.
_IDENTIFYING: Final = frozenset(
    {
        *("credentials", "username", "password", "password_file"),
        *("sentinel_username", "sentinel_password", "sentinel_password_file"),
    }
)


async def check_login(subject: Subject) -> list[Finding]:
    """Acquire a connection, as a command does."""
    config = subject.settings.config
    try:
        connection = await subject.pool.acquire()
    except Exception as error:  # noqa: BLE001 - also what a credential provider raises
        if _may_be_resp2(error) and config.protocol != _RESP2 and await _works_in_resp2(subject):
            text = f"the server, or a proxy before it, does not speak RESP3: {problem_of(error)}"
            return [fault("protocol", text, f"set {subject.settings.variable('protocol')}=2, or update it")]
        return [explain(error, subject)]
    await subject.pool.release(connection)
    protocol = "RESP2, as protocol=2 says" if config.protocol == _RESP2 else "RESP3"
    return [ok("auth", f"connected {_identity(config)}"), ok("protocol", protocol)]


def _identity(config: RedisConfig) -> str:
    if config.credentials is not None:
        return f"with the credentials of {config.credentials}"
    user = f"as {config.username}" if config.username else "as the default user"
    return f"{user}, {'with' if config.password or config.password_file else 'without'} a password"


def explain(error: Exception, subject: Subject) -> Finding:
    """Return what the error of a connection means."""
    settings = subject.settings
    text = problem_of(error)
    if isinstance(error, AuthenticationError):
        return _explain_authentication(text, settings)
    if isinstance(error, NoPermissionError):
        return fault("auth", f"the user may not connect: {text}", "give it +@connection, without which no client works")
    return _explain_connection(error, text, subject)


def _explain_connection(error: Exception, text: str, subject: Subject) -> Finding:
    config = subject.settings.config
    if "connecting to" in text and config.topology != "standalone":
        # The places that the configuration names were reached before.
        what = "a server that the cluster or the sentinels announce is not reached"
        return fault("connection", f"{what}: {text}", "open its address from here, or say in address_map where it is")
    for part, meaning, advice in _MEANINGS:
        if part in text.lower():
            return fault("connection", f"{meaning}: {text}", advice)
    encryption = _NEEDS_CERTIFICATE if config.tls else _NEEDS_TLS
    if isinstance(error, RedisTimeoutError):
        return fault(
            "answer",
            f"the server accepts connections, and does not answer in {subject.patience:.1f} s: {text}",
            f"see whether its process is stopped, swaps or runs a slow command; {encryption}",
        )
    if any(part in text.lower() for part in _ENDS):
        return fault("connection", f"the server closes the connection: {text}", f"{_LOOK}; {encryption}")
    return fault("connection", text, _LOOK)


def _explain_authentication(text: str, settings: Settings) -> Finding:
    sources = sources_of(settings.values, settings.prefix)
    given = [f"{name} ({key.replace('.', '_').upper()})" for name, key in sources.items() if name in _IDENTIFYING]
    if not given:
        variable = settings.variable("password_file")
        return fault(
            "auth", f"the server wants a password: {text}", f"set {variable}, and the user if it is not default"
        )
    return fault("auth", f"the server refuses the user or the password: {text}", f"correct {', '.join(given)}")


def _may_be_resp2(error: Exception) -> bool:
    """Whether a server or proxy may have failed because it does not know HELLO; some only close the connection."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return False
    return isinstance(error, ResponseError) or _CLOSED in str(error)


async def _works_in_resp2(subject: Subject) -> bool:
    settings = subject.settings
    arguments = {**brief_arguments(subject.patience), "protocol": _RESP2}
    async with pool_from_config(settings.values, settings.prefix, **arguments) as pool:
        try:
            await pool.release(await pool.acquire())
        except RedisError:
            return False
        return True


def brief_arguments(seconds: float) -> dict[str, object]:
    """Return arguments with which a pool waits only so long for each step, and has dedicated connections alone."""
    return {
        "multiplex": False,
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "decode_responses": False,
    }
