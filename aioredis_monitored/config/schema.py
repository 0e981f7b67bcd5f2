"""The options of a pool: what each accepts, as text or typed, and how a configuration, a URL or arguments give them.

Every value is read once: a pool that is made from a ``RedisConfig`` gets typed values, and files that are checked.
"""

import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import cleandoc, signature
from typing import Any, Final, NamedTuple, Self, get_args

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, AbstractConnection

from aioredis_monitored.config import readers
from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.addresses import HOST, PORT, Address, is_host, is_port, read_port
from aioredis_monitored.config.credentials import key_problems, make_provider, missing_package
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.config.url import RedisUrl, Topology, parse_url, scheme_of
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.timespan import parse_timespan


class Option(NamedTuple):
    """An option of a pool.

    Attributes:
        name: The name of the key, of the field of ``RedisConfig``, and of the keyword argument of the pool, which turns
            what redis-py knows by another name into that.
        convert: The reader; it gets no blank text.
        accepts: What the option accepts, after "must be".
        default: The default value, as text; ``None`` if there is none.
        description: What the option does.
    """

    name: str
    convert: Callable[[object], Any]
    accepts: str
    default: str | None
    description: str

    def read(self, value: object) -> Any:
        """Return what redis-py expects for ``value``.

        Raises:
            ValueError: The value cannot be used; the text does not repeat it.
        """
        try:
            return self.convert(value)
        except (LookupError, OSError, TypeError, ValueError):
            raise ValueError(f"must be {self.accepts}") from None


_TEXT: Final = "text"
_BOOLEAN: Final = "true or false"
_WHOLE_NUMBER: Final = "a whole number, 0 or more"
TIMESPAN: Final = "a timespan such as '200 milliseconds' (us, ms, s, m, h or d; seconds without a unit)"
_POSITIVE_TIMESPAN: Final = f"{TIMESPAN} and more than 0"
_FILE: Final = "the path of an existing file"
_COMMANDS: Final = "names of commands, joined by commas"
_SHARE: Final = f"0, or a number from {readers.MIN_SHARE:f} to 1"
_CREDENTIAL_FILE: Final = "the path of a readable file that holds a password, in UTF-8 without BOM and NUL"
_positive_timespan = readers.positive(parse_timespan)

# In the order of the fields of RedisConfig.
_ROWS: Final = (
    Option("username", readers.text, _TEXT, None, "The user to authenticate as."),
    Option("password", readers.text, _TEXT, None, "The password of the user; never part of the repr."),
    Option(
        "password_file",
        readers.password_file,
        _CREDENTIAL_FILE,
        None,
        "A file that holds the password instead, and is read at every connect: UTF-8, without BOM and NUL; trailing "
        "line ends are ignored. While it cannot be read, the last good password is used.",
    ),
    Option("db", readers.whole_number, _WHOLE_NUMBER, "0", "The number of the database."),
    Option(
        "max_connections",
        readers.positive(readers.whole_number),
        "a whole number, 1 or more",
        "50",
        "The maximum number of connections of the pool; in a cluster, to each node.",
    ),
    Option("timeout", parse_timespan, TIMESPAN, "20 s", "How long a call waits for a connection."),
    Option("multiplex", readers.boolean, _BOOLEAN, "true", "Whether ordinary commands share a connection."),
    Option(
        "retries",
        readers.whole_number,
        _WHOLE_NUMBER,
        "20",
        "The maximum number of retries of a call that certainly did not run.",
    ),
    Option(
        "retry_backoff",
        _positive_timespan,
        _POSITIVE_TIMESPAN,
        "20 ms",
        "The pause before the first retry; it doubles with each retry, up to half a second.",
    ),
    Option("socket_timeout", _positive_timespan, _POSITIVE_TIMESPAN, "5 s", "How long a call waits for its reply."),
    Option("socket_connect_timeout", _positive_timespan, _POSITIVE_TIMESPAN, "5 s", "How long connecting may take."),
    Option(
        "health_check_interval",
        parse_timespan,
        TIMESPAN,
        "0",
        "How long a connection may be idle before it is checked; 0 never checks.",
    ),
    Option("socket_keepalive", readers.boolean, _BOOLEAN, "true", "Whether TCP keeps idle connections alive."),
    Option(
        "client_info",
        readers.boolean,
        _BOOLEAN,
        "true",
        "Whether ``CLIENT LIST`` shows the name and version of this package (``CLIENT SETINFO``).",
    ),
    Option(
        "client_name",
        readers.client_name,
        "printable ASCII without spaces",
        None,
        "The name of the connections in ``CLIENT LIST``.",
    ),
    Option(
        "protocol",
        readers.protocol,
        "2 or 3",
        None,
        "The version of RESP. Without it, connections speak RESP3, and replies have the types of RESP2.",
    ),
    Option("decode_responses", readers.boolean, _BOOLEAN, "false", "Whether replies are text instead of bytes."),
    Option(
        "ssl_ca_certs",
        readers.authorities,
        "the path of a PEM file of certificates",
        None,
        "A PEM file of authorities to trust in addition to the system's.",
    ),
    Option(
        "ssl_certfile",
        readers.file,
        _FILE,
        None,
        "A PEM file of the client's certificate, and of its key if there is no ``ssl_keyfile``.",
    ),
    Option("ssl_keyfile", readers.file, _FILE, None, "A PEM file of the key, unencrypted."),
    Option(
        "ssl_cert_reqs",
        readers.cert_reqs,
        "required, optional or none",
        "required",
        "Whether the server must prove its identity with a certificate: ``none`` turns that off, and with it "
        "``ssl_check_hostname``, for tests; ``optional``, which redis-py has, means the same as ``required``.",
    ),
    Option(
        "ssl_check_hostname",
        readers.boolean,
        _BOOLEAN,
        "true",
        "Whether the server's certificate must be for its host name.",
    ),
    Option(
        "ssl_min_version",
        readers.tls_version,
        "TLSv1.2 or TLSv1.3",
        None,
        "The oldest version of TLS to accept; Python's default without it.",
    ),
    Option(
        "sentinel_username",
        readers.text,
        _TEXT,
        None,
        "The user to authenticate as at sentinels, which get neither ``username`` nor ``password``.",
    ),
    Option("sentinel_password", readers.text, _TEXT, None, "The password for the sentinels; never part of the repr."),
    Option(
        "sentinel_password_file",
        readers.password_file,
        _CREDENTIAL_FILE,
        None,
        "A file that holds the password for the sentinels instead, and is read as ``password_file`` is.",
    ),
    Option(
        "read_from",
        readers.read_from,
        "primary or replica",
        "primary",
        "Where calls that only read are sent: ``replica`` trades fresh data for less load on the primary.",
    ),
    Option(
        "topology_refresh",
        parse_timespan,
        TIMESPAN,
        "60 s",
        "How long a cluster's slot map is relied on before it is refreshed; 0 refreshes it only when a node fails or "
        "redirects a call.",
    ),
    Option(
        "address_map",
        AddressMap.read,
        "pairs such as '10.0.0.1:6379=proxy:7000', joined by commas; '10.0.0.1:*=proxy:*' and '*:*=proxy:*' keep the "
        "port",
        None,
        "Where servers are reached that announce other addresses to a cluster or to sentinels, because of NAT or a "
        "proxy. A mapping may be given too, with the left sides as keys.",
    ),
)
OPTIONS: Final = {option.name: option for option in _ROWS}

# Of these, a ``credential_provider`` is made, which is the pool's argument. They are not read from URLs.
_CREDENTIALS_ROWS: Final = (
    Option(
        "credentials",
        readers.credentials,
        "aws, entra, or a factory as module:name",
        None,
        "Where credentials come from that change: ``aws`` or ``entra`` for tokens of these clouds, or a function, "
        "which is called with the ``RedisConfig`` and returns a ``redis.credentials.CredentialProvider``.",
    ),
    Option(
        "aws_region",
        readers.aws_name,
        "a region of AWS such as eu-west-1",
        None,
        "The region of the cache, for ``credentials=aws``.",
    ),
    Option(
        "aws_cache",
        readers.aws_name,
        "the name of a cache, in lower case",
        None,
        "The name, for ``credentials=aws``, of the replication group, the serverless cache or the cluster.",
    ),
    Option(
        "aws_service",
        readers.aws_service,
        "elasticache, elasticache-serverless or memorydb",
        "elasticache",
        "What the cache is, for ``credentials=aws``.",
    ),
)
CREDENTIALS: Final = {option.name: option for option in _CREDENTIALS_ROWS}

# What an operator may decide of ``TelemetryOptions``: all but its functions. These are no arguments of a pool, and are
# not read from URLs.
_TELEMETRY_PREFIX: Final = "telemetry_"
_TELEMETRY_ROWS: Final = (
    Option(
        "telemetry_require_parent",
        readers.boolean,
        _BOOLEAN,
        "false",
        "Whether a call gets a span only if there is a parent span.",
    ),
    Option(
        "telemetry_include_commands",
        readers.command_names,
        _COMMANDS,
        None,
        "The commands that get spans; without it, all.",
    ),
    Option("telemetry_exclude_commands", readers.command_names, _COMMANDS, None, "The commands that get no span."),
    Option(
        "telemetry_slow_only",
        parse_timespan,
        TIMESPAN,
        None,
        "The duration from which a call gets a span; failed calls get one in any case.",
    ),
    Option(
        "telemetry_keep",
        readers.share,
        _SHARE,
        None,
        "The share of the calls that get a span although they neither failed nor were slow; without it, all of them, "
        "or none with ``telemetry_slow_only``.",
    ),
    Option(
        "telemetry_show_keys", readers.boolean, _BOOLEAN, "true", "Whether spans show keys, hash fields and channels."
    ),
    Option(
        "telemetry_repeated_calls",
        readers.positive(readers.whole_number),
        "a whole number, 1 or more",
        "20",
        "The number of calls of one command above which a request reports it as repeated.",
    ),
    Option("telemetry_hot_keys", readers.share, _SHARE, "0", "The share of the calls whose keys are counted."),
    Option(
        "telemetry_direct",
        readers.boolean,
        _BOOLEAN,
        "true",
        "Whether spans and points are handed to the OpenTelemetry SDK directly, which takes a fraction of the time.",
    ),
)
TELEMETRY: Final = {option.name: option for option in _TELEMETRY_ROWS}
# All options, by the names of their keys.
ALL_OPTIONS: Final = OPTIONS | CREDENTIALS | TELEMETRY
KEYS: Final = ("url", *ALL_OPTIONS)
# What a pool reads at every connect, where the option is the path.
PASSWORD: Final = OPTIONS["password_file"]._replace(convert=readers.password_in)

# A file for a password, and what else can give it: only one of these can.
_PASSWORDS: Final = (
    ("password_file", "password", "credential_provider"),
    ("sentinel_password_file", "sentinel_password"),
)
# The source of a URL must not choose a path on this machine.
_IN_URL: Final = tuple(name for name in OPTIONS if name not in ("password_file", "sentinel_password_file"))
# The topologies to which an option applies, if it does not apply to all.
_APPLIES_TO: Final[dict[str, tuple[Topology, ...]]] = {
    # Of a list of hosts, no option could say which one it means.
    "host": ("standalone",),
    "port": ("standalone",),
    "sentinel_username": ("sentinel",),
    "sentinel_password": ("sentinel",),
    "sentinel_password_file": ("sentinel",),
    "read_from": ("cluster", "sentinel"),
    "topology_refresh": ("cluster",),
    "address_map": ("cluster", "sentinel"),
}
# The maximum number of other pools' keys in an error.
_MAX_NAMED: Final = 3

_TLS: Final = "rediss:// in {url} encrypts, redis:// does not"
_SERVERS: Final = (
    "{url} names the servers: redis://host, redis+cluster://host,host2 or redis+sentinel://host,host2/service"
)
_RETRIES: Final = "{retries} is how often a command that did not run is tried again"
# What to do instead of giving keys that other clients have.
_INSTEAD: Final = {
    **dict.fromkeys(
        ("ssl", "tls", "use_ssl", "use_tls", "ssl_enabled", "tls_enabled", "enable_ssl", "enable_tls"), _TLS
    ),
    **dict.fromkeys(("retry", "retry_on_error", "retry_on_timeout", "max_retries"), _RETRIES),
    **dict.fromkeys(
        ("addr", "addrs", "nodes", "cluster", "cluster_nodes", "cluster_enabled", "cluster_mode"), _SERVERS
    ),
    **dict.fromkeys(("startup_nodes", "sentinel", "sentinels", "sentinel_nodes", "sentinel_hosts"), _SERVERS),
    **dict.fromkeys(("master_name", "master_set", "service_name", "sentinelmasterid", "sentinel_master"), _SERVERS),
    **dict.fromkeys(("sentinel_master_name", "sentinel_service", "sentinel_service_name"), _SERVERS),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """The configuration of a pool of connections to a server, to a cluster, or to the servers that sentinels watch.

    The fields from ``username`` on are keyword arguments of ``MonitoredConnectionPool`` or of redis-py's connection
    with the same name; ``None`` leaves its default. Durations are in seconds.

    Attributes:
        topology: Whether there is one server ("standalone"), a "cluster", or a "sentinel" to ask for the primary.
        host: The name or address of the one server.
        port: The TCP port of the one server.
        path: The path of a Unix socket, in place of host and port.
        nodes: The hosts and ports of nodes of the cluster, or of sentinels, in place of host and port.
        service: The name by which the sentinels know the servers.
        tls: Whether to encrypt.
    """

    topology: Topology = "standalone"
    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    nodes: tuple[Address, ...] = ()
    service: str | None = None
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    db: int = 0
    max_connections: int = 50
    timeout: float = 20.0
    multiplex: bool | None = None
    retries: int | None = None
    retry_backoff: float | None = None
    socket_timeout: float | None = None
    socket_connect_timeout: float | None = None
    health_check_interval: float | None = None
    socket_keepalive: bool | None = None
    client_info: bool | None = None
    client_name: str | None = None
    protocol: int | None = None
    decode_responses: bool | None = None
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_cert_reqs: ssl.VerifyMode | None = None
    ssl_check_hostname: bool | None = None
    ssl_min_version: ssl.TLSVersion | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    sentinel_password_file: str | None = None
    read_from: readers.ReadFrom | None = None
    topology_refresh: float | None = None
    address_map: AddressMap | None = None
    credentials: str | None = None
    aws_region: str | None = None
    aws_cache: str | None = None
    aws_service: readers.AwsService | None = None
    telemetry_require_parent: bool | None = None
    telemetry_include_commands: frozenset[str] | None = None
    telemetry_exclude_commands: frozenset[str] | None = None
    telemetry_slow_only: float | None = None
    telemetry_keep: float | None = None
    telemetry_show_keys: bool | None = None
    telemetry_repeated_calls: int | None = None
    telemetry_hot_keys: float | None = None
    telemetry_direct: bool | None = None

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], prefix: str) -> Self:
        """Read the keys that begin with ``prefix``, and check them.

        The keys are ``url``, which is required, and the fields from ``username`` on. The query of the URL may contain
        them too, except files of passwords, ``credentials`` and what belongs to them, and what is about telemetry.
        Values may be text or typed; text for durations is read by ``parse_timespan``. Blank text and None count as not
        given. Keys without the prefix are ignored, and so are keys with a "." after it, which belong to another pool.

        Args:
            mapping: The application's configuration, with keys such as "redis.url".
            prefix: What the keys of this pool begin with, such as "redis."; may be empty.

        Raises:
            ConfigurationError: The configuration cannot be used; it names all problems together, and repeats no value.
        """
        reader, url = _read_mapping(mapping, prefix)
        if reader.problems:
            raise ConfigurationError(*reader.problems)
        place = {name: value for name in ("host", "port") if (value := getattr(url, name)) is not None}
        return cls(
            topology=url.topology,
            path=url.path,
            nodes=url.nodes,
            service=url.service,
            tls=url.scheme == "rediss",
            **place,
            **reader.values,
        )

    def pool_arguments(self, telemetry: TelemetryOptions | None = None, prefix: str = "") -> dict[str, Any]:
        """Return the keyword arguments for the pool that is made for this topology.

        Args:
            telemetry: What the application has chosen about telemetry, as far as this configuration does not decide
                it; default ``None``, for nothing.
            prefix: What the keys begin with, for errors; default ``""``.

        Raises:
            ConfigurationError: The options of telemetry do not go together, or the provider that ``credentials`` name
                cannot be made.
            TypeError: ``telemetry`` is something else.
        """
        given = ((option, getattr(self, option)) for option in OPTIONS)
        arguments = _place_arguments(self) | {name: value for name, value in given if value is not None}
        decided = {name.removeprefix(_TELEMETRY_PREFIX): getattr(self, name) for name in TELEMETRY}
        decided = {name: value for name, value in decided.items() if value is not None}
        if telemetry is not None and not isinstance(telemetry, TelemetryOptions):
            message = f"telemetry must be TelemetryOptions, got {type(telemetry).__name__}"
            raise TypeError(message)
        if decided or telemetry is not None:
            try:
                arguments["telemetry"] = replace(telemetry or TelemetryOptions(), **decided)
            except ConfigurationError as error:
                # Under the names of the keys, also of those that are not given: they would be a way out.
                keys = {name.removeprefix(_TELEMETRY_PREFIX): f"{prefix}{name}" for name in TELEMETRY}
                raise ConfigurationError(*((keys.get(name, name), why) for name, why in error.problems)) from None
        if self.credentials is not None:
            arguments.pop("username", None)  # the provider's
            arguments["credential_provider"] = make_provider(self, prefix)
        if self.path is not None:
            return arguments | {"connection_class": UnixDomainSocketConnection}
        return arguments | {"connection_class": SSLConnection if self.tls else Connection}


if RedisConfig.__doc__ is not None:  # python -OO has none
    RedisConfig.__doc__ = "\n".join(
        [
            cleandoc(RedisConfig.__doc__),
            *(f"    {option.name}: {option.description}" for option in ALL_OPTIONS.values()),
        ]
    )


def sources_of(mapping: Mapping[str, object], prefix: str) -> dict[str, str]:
    """Return the key that gives each option of the pool, with the prefix: the option's own, or that of the URL.

    Args:
        mapping: The application's configuration.
        prefix: What the keys of this pool begin with.
    """
    reader, _ = _read_mapping(mapping, prefix)
    return {name: f"{prefix}{source}" for name, source in reader.sources.items()}


def _read_mapping(mapping: Mapping[str, object], prefix: str) -> "tuple[_ConfigReader, RedisUrl]":
    """Read the keys that begin with a prefix; the reader has the values, their sources and the problems."""
    given = {
        key.removeprefix(prefix): value
        for key, value in mapping.items()
        if isinstance(key, str) and key.startswith(prefix)
    }
    reader = _ConfigReader(prefix)
    url = reader.read_url(given.pop("url", None), others=[name for name in given if name.endswith(".url")])
    reader.read_keys({name: value for name, value in given.items() if "." not in name})
    reader.check_combinations(url)
    return reader, url


def override_credentials(config: RedisConfig, others: dict[str, Any]) -> RedisConfig:
    """Return a configuration whose ``credentials`` are overridden by arguments of the pool.

    If these give others, no provider is made. A user name is the provider's, and is taken out of the arguments.
    """
    if config.credentials is None:
        return config
    if any(others.get(name) is not None for name in _PASSWORDS[0]):
        return replace(config, credentials=None)
    username = others.pop("username", None)
    return config if username is None else replace(config, username=username)


def override(arguments: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pool in which ``others`` replace those of a configuration.

    A password replaces the configured one, whichever of the arguments for passwords gives it; a provider also replaces
    the user name.
    """
    given = {name for name, value in others.items() if value is not None}
    replaced = {name for passwords in _PASSWORDS if given.intersection(passwords) for name in passwords}
    if others.get("credential_provider") is not None:
        replaced.add("username")
    return {name: value for name, value in arguments.items() if name not in replaced} | others


def _place_arguments(place: RedisConfig | RedisUrl) -> dict[str, Any]:
    """Return the arguments of a pool that say where the servers are."""
    if place.topology == "standalone":
        given = {"host": place.host, "port": place.port} if place.path is None else {"path": place.path}
        return {name: value for name, value in given.items() if value is not None}
    if place.topology == "cluster":
        return {"nodes": place.nodes}
    return {"sentinels": place.nodes, "service": place.service}


def url_arguments(url: str) -> tuple[Topology, dict[str, Any]]:
    """Read a URL as ``redis.asyncio.ConnectionPool.from_url`` does; return its topology and the arguments of its pool.

    ``validate_arguments`` reads the options that a configuration has too, redis-py's parsers read all others. A URL is
    refused where redis-py might reach another server or database than is meant, or ignores a part.

    Raises:
        ConfigurationError: The URL cannot be used; no part of it is repeated but names of options.
    """
    if not isinstance(url, str):
        raise ConfigurationError(("url", "must be text"))
    parsed = parse_url(url.strip(), strict=False)
    problems = list(parsed.problems)
    arguments = _place_arguments(parsed)
    if parsed.scheme in _CLASSES:
        arguments["connection_class"] = _CLASSES[parsed.scheme]
    applicable = _POOL_OPTIONS | _text_arguments(arguments.get("connection_class", Connection))
    times = Counter([*arguments, *(name for name, text in parsed.options if text)])
    for name, text in parsed.options:
        if name not in _URL_OPTIONS:
            # Not even the name is repeated: it may be the rest of a password.
            problems.append(f"unknown option{_suggestion(name, _URL_OPTIONS)}")
        elif name not in applicable or not applies(name, parsed.topology):
            problems.append(f"{name} does not apply to {scheme_of(parsed.topology, parsed.scheme)}")
        elif times[name] > 1:
            problems.append(f"{name} is given twice")
        elif text:
            try:
                arguments[name] = _url_value(name, text)
            except (TypeError, ValueError):
                problems.append(f"{name} cannot be read")
    if problems:
        raise ConfigurationError(*(("url", problem) for problem in dict.fromkeys(problems)))
    return parsed.topology, arguments


def applies(name: str, topology: Topology) -> bool:
    """Whether an option has an effect in a topology."""
    return topology in _APPLIES_TO.get(name, (topology,))


def _needed_for(name: str, base: str) -> str:
    return "needs " + " or ".join(scheme_of(topology, base) for topology in _APPLIES_TO[name])


def _encrypts(connection_class: object) -> bool:
    return isinstance(connection_class, type) and issubclass(connection_class, SSLConnection)


def _url_value(name: str, text: str) -> Any:
    if name == "ssl_min_version" and text.isdecimal():
        # redis-py expects the number of ssl.TLSVersion there.
        return ssl.TLSVersion(int(text))
    if name == "port":
        read_port(text)
    return text if name in OPTIONS else URL_QUERY_ARGUMENT_PARSERS.get(name, str)(text)


def _text_arguments(connection_class: type[AbstractConnection]) -> frozenset[str]:
    """Return the arguments of a connection class, and of its bases, that may be given as text."""
    constructors = [vars(each)["__init__"] for each in connection_class.__mro__[:-1] if "__init__" in vars(each)]
    arguments = [argument for each in constructors for argument in signature(each).parameters.values()]
    return frozenset(each.name for each in arguments if each.name in _PARSED or _may_be_text(each.annotation))


def _may_be_text(annotation: object) -> bool:
    return str in (annotation, *get_args(annotation))


# The arguments that may be text because a reader, ours or redis-py's, converts them.
_PARSED: Final = {*_IN_URL, *URL_QUERY_ARGUMENT_PARSERS}
_CLASSES: Final = {"rediss": SSLConnection, "unix": UnixDomainSocketConnection}
_POOL_OPTIONS: Final = frozenset(_IN_URL) - _text_arguments(SSLConnection)
_URL_OPTIONS: Final = _POOL_OPTIONS | _text_arguments(SSLConnection)


def validate_arguments(
    arguments: Mapping[str, Any], topology: Topology | None = None, *, checks_server: bool = False
) -> dict[str, Any]:
    """Read those keyword arguments of a pool that are options; return them together with all others.

    As in redis-py, an empty name or password counts as None, and bytes count as text. Values of a ``RedisConfig`` pass:
    they are typed, and its files are not read again.

    Args:
        arguments: The keyword arguments.
        topology: The topology that each option must apply to; default ``None``, for any.
        checks_server: Whether ``host`` and ``port`` of TCP connections are checked as well; default ``False``.

    Raises:
        ConfigurationError: Some of them cannot be used; no value is repeated.
    """
    read, problems = dict(arguments), []
    for name in ("client_name", "username", "password", "sentinel_username", "sentinel_password"):
        if read.get(name) in ("", b""):
            read[name] = None
    base = "rediss" if _encrypts(read.get("connection_class")) else "redis"
    for name, option in OPTIONS.items():
        if name in read and topology is not None and not applies(name, topology):
            problems.append((name, _needed_for(name, base)))
        elif (value := read.get(name)) is not None:
            try:
                read[name] = _read_argument(option, value)
            except ValueError as error:
                problems.append((name, str(error)))
    problems += _server_problems(**read) if checks_server else []
    for file, *others in _PASSWORDS:
        if read.get(file) is not None:
            beside = (name for name in others if read.get(name) is not None)
            problems += ((file, f"cannot be given together with {name}") for name in beside)
    if problems:
        raise ConfigurationError(*problems)
    return read


def _server_problems(
    host: object = None, port: object = None, connection_class: object = Connection, **_others: object
) -> list[tuple[str, str]]:
    if not (isinstance(connection_class, type) and issubclass(connection_class, Connection)):
        # What these are to connections of another kind is unknown.
        return []
    problems = []
    # An empty host is this machine, as in redis-py.
    if isinstance(host, str) and host and not is_host(host):
        problems.append(("host", f"must be {HOST}"))
    # As in redis-py, text will do.
    number = int(port) if isinstance(port, str) and port.strip().isdecimal() else port
    if number is not None and not is_port(number):
        problems.append(("port", f"must be {PORT}"))
    return problems


def _read_argument(option: Option, value: object) -> Any:
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            value = value.decode()
    return option.read(value)


class _ConfigReader:
    """Reads one pool's configuration, collecting problems and values.

    Args:
        prefix: What the keys of the pool begin with.

    Attributes:
        problems: The keys, with the prefix, and why they cannot be used.
        values: The options that were read, by name.
        sources: For each option that is given the key that gave it, without the prefix: "url", or its own.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.problems: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def read_url(self, value: object, others: Sequence[str]) -> RedisUrl:
        """Read the URL and the options in it.

        Args:
            value: The URL.
            others: The keys of other pools' URLs, for the error if there is no URL.
        """
        if _is_blank(value) or not isinstance(value, str):
            self._add_problem("url", self._missing_url(others) if _is_blank(value) else "must be text")
            return RedisUrl()
        url = parse_url(value.strip())
        for problem in url.problems:
            self._add_problem("url", problem)
        times = Counter(name for name, _ in url.options)
        for name, text in dict(url.options).items():
            if name not in _IN_URL:
                # Not even the name is repeated: it may be the rest of a password.
                self._add_problem("url", f"unknown option{_suggestion(name, _IN_URL, self.prefix)}")
            elif times[name] > 1:
                self._add_problem("url", f"{name} is given twice")
            elif not _is_blank(text):
                self._read(name, text, "url")
        return url

    def read_keys(self, given: Mapping[str, object]) -> None:
        """Read all keys but the URL."""
        for name in sorted(given.keys() - KEYS):
            self._add_problem(name, f"unknown key{_suggestion(name, KEYS, self.prefix)}")
        for name, value in given.items():
            if name in KEYS and not _is_blank(value):
                self._read(name, value, name)

    def check_combinations(self, url: RedisUrl) -> None:
        """Refuse options that have no effect with the URL's scheme, or without another option."""
        for name in self.sources if url.scheme else ():
            if name.startswith("ssl_") and url.scheme != "rediss":
                self._add_problem(name, f"needs {scheme_of(url.topology, 'rediss')}")
            if not applies(name, url.topology):
                base = "rediss" if url.scheme == "rediss" else "redis"
                self._add_problem(name, _needed_for(name, base))
        for file, password, *_ in _PASSWORDS:
            if {file, password} <= self.sources.keys():
                # Not even if they are equal: the next password will be in the file alone.
                source = f"{self.prefix}{self.sources[password]}"
                self._add_problem(file, f"cannot be given together with the password in {source}")
        self._check_credentials(url)
        if self.values.get("ssl_cert_reqs") is ssl.CERT_NONE and self.values.get("ssl_check_hostname"):
            self._add_problem("ssl_check_hostname", "needs a certificate, which ssl_cert_reqs=none does not ask for")
        if "socket_keepalive" in self.sources and url.scheme == "unix":
            self._add_problem("socket_keepalive", "does not apply to a Unix socket")
        if "ssl_keyfile" in self.sources and "ssl_certfile" not in self.sources:
            self._add_problem("ssl_keyfile", "needs ssl_certfile")
        certificate, key = self.values.get("ssl_certfile"), self.values.get("ssl_keyfile")
        # A key that could not be read is a problem of its own.
        if certificate and (key or "ssl_keyfile" not in self.sources) and not _is_key_pair(certificate, key):
            self._add_problem(
                "ssl_certfile", "must hold a certificate, and this file or ssl_keyfile its key, unencrypted"
            )

    def _check_credentials(self, url: RedisUrl) -> None:
        credentials: str | None = self.values.get("credentials")
        # With credentials that could not be read, nothing is known about the other keys.
        if credentials != "aws" and ("credentials" in self.sources) == (credentials is not None):
            for name in sorted((CREDENTIALS.keys() & self.sources.keys()) - {"credentials"}):
                self._add_problem(name, "needs credentials=aws")
        if credentials is None:
            return
        for name in ("password", "password_file"):
            if name in self.sources:
                source = f"{self.prefix}{self.sources[name]}"
                self._add_problem("credentials", f"cannot be given together with the {name} in {source}")
        if credentials in readers.NAMED_CREDENTIALS:
            self._check_named_credentials(credentials, url)

    def _check_named_credentials(self, credentials: str, url: RedisUrl) -> None:
        if url.scheme and url.scheme != "rediss":
            self._add_problem("credentials", f"{credentials} needs {scheme_of(url.topology, 'rediss')}")
        for name, reason in key_problems(credentials, self.sources):
            self._add_problem(name, reason)
        if (reason_against := missing_package(credentials)) is not None:
            self._add_problem("credentials", reason_against)

    def _read(self, name: str, value: object, source: str) -> None:
        self.sources[name] = source
        try:
            read = ALL_OPTIONS[name].read(value)
        except ValueError as error:
            self._add_problem(name, str(error))
        else:
            if self.values.setdefault(name, read) != read:
                self._add_problem(name, f"differs from the one in {self.prefix}url")

    def _missing_url(self, others: Sequence[str]) -> str:
        text = f"no value specified under the prefix {self.prefix!r}"
        if pool := re.fullmatch(r"redis\.(?:([a-z0-9_]+)\.)?", self.prefix):
            variable = "_".join(filter(None, ("redis", pool[1], "url"))).upper()
            text += f" (in the environment: {variable}, after the prefix of config_from_env if it was given one)"
        if others:
            named = ", ".join(f"{self.prefix}{name}" for name in sorted(others)[:_MAX_NAMED])
            text += f"; of other pools there are: {named}"
        return text

    def _add_problem(self, name: str, reason: str) -> None:
        source = self.sources.get(name, name)
        self.problems.append((f"{self.prefix}{source}", f"{name} {reason}" if source == "url" != name else reason))


def _suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    if (hint := instead(name, f"{prefix}url", f"{prefix}retries")) is not None:
        return f"; {hint}"
    close = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_key_pair(certificate: str, key: str | None) -> bool:
    try:
        # With a passphrase: OpenSSL would ask for that of an encrypted key on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError:
        return False
    return True


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def instead(name: str, url: str, retries: str) -> str | None:
    """Return what to do instead of giving a key that other clients have; ``None`` for any other name.

    Args:
        name: The name of the key.
        url: What the key ``url`` is called where the key is given.
        retries: What the key ``retries`` is called there.
    """
    text = _INSTEAD.get(name.lower())
    return None if text is None else text.format(url=url, retries=retries)
