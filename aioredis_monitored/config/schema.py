"""The options of a pool: what each of them accepts, as text or typed, and what becomes of it."""

import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS, AbstractConnection

from aioredis_monitored.config.url import MAX_PORT, RedisUrl, parse_url
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.timespan import parse_timespan

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Option(NamedTuple):
    """How an option is read.

    Attributes:
        convert: Turns a value, never blank, into what redis-py expects; raises LookupError, OSError or ValueError,
            whose message must not be shown: the value may be a password that was pasted in the wrong place.
        expected: What may be shown instead, after "must be".
    """

    convert: Callable[[object], Any]
    expected: str

    def read(self, value: object) -> Any:
        """What redis-py expects for ``value``.

        Raises:
            ValueError: The value cannot be meant; the text does not repeat it.
        """
        try:
            return self.convert(value)
        except (LookupError, OSError, ValueError):
            raise ValueError(f"must be {self.expected}") from None


def _whole_number(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]+\s*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError


def _positive(read: Callable[[object], float]) -> Callable[[object], float]:
    def read_positive(value: object) -> float:
        if not (number := read(value)):
            raise ValueError
        return number

    return read_positive


def _protocol(value: object) -> int:
    return {2: 2, 3: 3}[_whole_number(value)]


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[_text(value).strip().lower()]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - the reader's contract
    # What os.environ could not decode could not be sent either; the error of the attempt would quote it.
    value.encode()
    return value


def _client_name(value: object) -> str:
    if re.fullmatch("[!-~]+", name := _text(value)):
        return name
    raise ValueError


def _file(value: object) -> str:
    if Path(path := str(value)).is_file():
        return path
    raise ValueError


def _authorities(value: object) -> str:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path := _file(value))
    return path


def _tls_version(value: object) -> ssl.TLSVersion:
    if isinstance(value, ssl.TLSVersion):
        return value
    # Not only text: unquoted, 1.2 is a number in JSON and YAML.
    return _TLS_VERSIONS[str(value).strip().lower().removeprefix("tlsv")]


def _cert_reqs(value: object) -> ssl.VerifyMode:
    if isinstance(value, ssl.VerifyMode):
        return value
    return _CERT_REQS[_text(value).strip().lower().removeprefix("cert_")]


def _password(path: object) -> str:
    # Not as text: that would take other things than line ends for line ends.
    password = Path(str(path)).read_bytes().decode().rstrip("\r\n")
    if not password or password.startswith("\ufeff") or "\0" in password:
        # An editor or a converter has left them there: no user has typed such a password.
        raise ValueError
    return password


def _password_file(value: object) -> str:
    _password(value)
    return str(value)


_TIMESPAN = "a timespan such as '200 milliseconds' (us, ms, s, m, h or d; seconds without a unit)"
_DURATION = Option(parse_timespan, _TIMESPAN)
_POSITIVE_DURATION = Option(_positive(parse_timespan), f"{_TIMESPAN} and more than 0")
_SWITCH = Option(_boolean, "true or false")
_TEXT = Option(_text, "text")
_FILE = Option(_file, "the path of an existing file")

# What is in a password file; of the option itself, the value is the path.
PASSWORD = Option(_password, "the path of a readable file that holds a password, in UTF-8 without BOM and NUL")

OPTIONS = {
    "username": _TEXT,
    "password": _TEXT,
    "password_file": Option(_password_file, PASSWORD.expected),
    "db": Option(_whole_number, "a whole number, 0 or more"),
    "max_connections": Option(_positive(_whole_number), "a whole number, 1 or more"),
    "timeout": _DURATION,
    "multiplex": _SWITCH,
    "retries": Option(_whole_number, "a whole number, 0 or more"),
    "retry_backoff": _POSITIVE_DURATION,
    "socket_timeout": _POSITIVE_DURATION,
    "socket_connect_timeout": _POSITIVE_DURATION,
    "health_check_interval": _DURATION,
    "socket_keepalive": _SWITCH,
    "client_info": _SWITCH,
    "client_name": Option(_client_name, "printable ASCII without spaces"),
    "protocol": Option(_protocol, "2 or 3"),
    "decode_responses": _SWITCH,
    "ssl_ca_certs": Option(_authorities, "the path of a PEM file of certificates"),
    "ssl_certfile": _FILE,
    "ssl_keyfile": _FILE,
    "ssl_cert_reqs": Option(_cert_reqs, "required, optional or none"),
    "ssl_check_hostname": _SWITCH,
    "ssl_min_version": Option(_tls_version, "TLSv1.2 or TLSv1.3"),
}


KEYS = ("url", *OPTIONS)
# A path in a URL would be one that comes from wherever the URL does.
_IN_URL = tuple(name for name in OPTIONS if name != "password_file")
# Only one of these can give the password.
_PASSWORDS = ("password", "password_file", "credential_provider")
# The most keys of other pools that an error names.
_MAX_NAMED = 3

_TLS = "rediss:// in {url} encrypts, redis:// does not"
_RETRIES = "{retries} is how often a command that did not run is tried again"
# What others have keys for, and we do in another way.
_INSTEAD = {
    **dict.fromkeys(
        ("ssl", "tls", "use_ssl", "use_tls", "ssl_enabled", "tls_enabled", "enable_ssl", "enable_tls"), _TLS
    ),
    **dict.fromkeys(("retry", "retry_on_error", "retry_on_timeout", "max_retries"), _RETRIES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """What a pool of connections to one server needs to know.

    Every field but ``tls`` is an argument of ``MonitoredConnectionPool`` or redis-py's with the same name; None leaves
    the default. Durations are in seconds.

    Attributes:
        host: Name or address of the server.
        port: Its TCP port.
        path: A Unix socket, to be used instead of host and port.
        tls: Whether to encrypt.
        username: Who to authenticate as.
        password: With what; never part of the repr.
        password_file: A file that holds it instead, and is read at every connect: UTF-8, without BOM and NUL; line ends
            at its end do not count. While it cannot be read, the last good password is used.
        db: Number of the database.
        max_connections: The most connections that the pool may have.
        timeout: How long to wait for one of them.
        multiplex: Whether ordinary commands share a connection.
        retries: How often a call that surely did not run is tried again.
        retry_backoff: The first pause before that.
        socket_timeout: How long to wait for a reply.
        socket_connect_timeout: How long connecting may take.
        health_check_interval: How long a connection may be idle before it is checked; 0 never checks.
        socket_keepalive: Whether TCP keeps idle connections alive.
        client_info: Whether connections tell ``CLIENT LIST`` the name and version of this package (CLIENT SETINFO).
        client_name: What ``CLIENT LIST`` calls the connections.
        protocol: 2 or 3, the version of RESP.
        decode_responses: Whether replies are text instead of bytes.
        ssl_ca_certs: PEM file of the authorities to trust, beside the system's.
        ssl_certfile: PEM file of the client's certificate, and of the key to it if there is no ``ssl_keyfile``.
        ssl_keyfile: PEM file of the key, unencrypted.
        ssl_cert_reqs: Whether the server must prove with a certificate who it is, as is the default: ``CERT_NONE``
            leaves it out, and with it ``ssl_check_hostname``, for tests; redis-py's ``CERT_OPTIONAL`` is the default's.
        ssl_check_hostname: Whether the server's certificate must be for its name.
        ssl_min_version: The oldest TLS to accept.
    """

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
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

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], prefix: str) -> Self:
        """Check the keys that begin with ``prefix`` and make a configuration of them.

        Beside ``url``, which is required, the keys are the fields above from ``username`` on. The query of the URL may
        hold them too, ``password_file`` excepted. Values may be text or already typed; text
        for durations is read by `parse_timespan`. Blank text and None count as not given. Keys that have a "." after
        the prefix are another pool's and ignored, as are keys without the prefix.

        Args:
            mapping: The application's configuration, with keys such as "redis.url".
            prefix: What this pool's keys begin with, such as "redis."; may be empty.

        Raises:
            ConfigurationError: It cannot be used; all that is wrong is told at once, and no value is ever repeated.
        """
        own = {
            key.removeprefix(prefix): value
            for key, value in mapping.items()
            if isinstance(key, str) and key.startswith(prefix)
        }
        reading = _ConfigReader(prefix)
        url = reading.url(own.pop("url", None), others=[name for name in own if name.endswith(".url")])
        reading.keys({name: value for name, value in own.items() if "." not in name})
        reading.check_together(url.scheme)
        if reading.problems:
            raise ConfigurationError(*reading.problems)
        address: dict[str, Any] = {"path": url.path} if url.host is None else {"host": url.host}
        if url.port is not None:
            address["port"] = url.port
        return cls(**address, tls=url.scheme == "rediss", **reading.values)

    def pool_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments for ``MonitoredConnectionPool``."""
        arguments = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        tls = arguments.pop("tls")
        if self.path is None:
            return arguments | {"connection_class": SSLConnection if tls else Connection}
        del arguments["host"], arguments["port"]
        return arguments | {"connection_class": UnixDomainSocketConnection}


def override(arguments: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """Let other keyword arguments of a pool win over those of a configuration, in whatever way they give a password."""
    lost = set(_PASSWORDS) if any(others.get(name) is not None for name in _PASSWORDS) else set()
    if others.get("credential_provider") is not None:
        lost.add("username")
    return {name: value for name, value in arguments.items() if name not in lost} | others


def url_arguments(url: str) -> dict[str, Any]:
    """Read a URL as ``redis.asyncio.ConnectionPool.from_url`` does, and return the arguments that it stands for.

    Options that configuration knows too are left to ``read_arguments``, all others to redis-py's own parsers. Where
    redis-py's guess may reach another server or database than is meant, or drops what is given, the URL is refused.

    Raises:
        ConfigurationError: It cannot be used; no part of it is repeated but known names.
    """
    if not isinstance(url, str):
        raise ConfigurationError(("url", "must be text"))
    parsed = parse_url(url.strip(), strict=False)
    problems = list(parsed.problems)
    arguments: dict[str, Any] = {
        name: value for name in ("host", "port", "path") if (value := getattr(parsed, name)) is not None
    }
    if parsed.scheme in _CLASSES:
        arguments["connection_class"] = _CLASSES[parsed.scheme]
    applicable = _POOL_OPTIONS | _names_of(arguments.get("connection_class", Connection))
    times = Counter([*arguments, *(name for name, text in parsed.options if text)])
    for name, text in parsed.options:
        if name not in _EVERY_NAME:
            # Not even the name is repeated: it may be the rest of a password.
            problems.append(f"unknown option{_resembling(name, _EVERY_NAME)}")
        elif name not in applicable:
            problems.append(f"{name} does not apply to {parsed.scheme}://")
        elif times[name] > 1:
            problems.append(f"{name} is given twice")
        elif text:
            try:
                arguments[name] = _url_value(name, text)
            except (TypeError, ValueError):
                problems.append(f"{name} cannot be read")
    if problems:
        raise ConfigurationError(*(("url", problem) for problem in dict.fromkeys(problems)))
    return arguments


def _url_value(name: str, text: str) -> Any:
    if name == "ssl_min_version" and text.isdecimal():
        # What redis-py takes there is the number of ssl.TLSVersion.
        return ssl.TLSVersion(int(text))
    if name == "port" and not 0 < int(text) <= MAX_PORT:
        raise ValueError
    return text if name in OPTIONS else URL_QUERY_ARGUMENT_PARSERS.get(name, str)(text)


def _names_of(connection_class: type[AbstractConnection]) -> frozenset[str]:
    """The arguments of a connection class that may be text; it hands on to its bases what it does not take itself."""
    constructors = [vars(each)["__init__"] for each in connection_class.__mro__[:-1] if "__init__" in vars(each)]
    arguments = [argument for each in constructors for argument in signature(each).parameters.values()]
    return frozenset(each.name for each in arguments if each.name in _READ or _may_be_text(each.annotation))


def _may_be_text(annotation: object) -> bool:
    return str in (annotation, *get_args(annotation))


# What has a reader, whatever its type.
_READ = {*_IN_URL, *URL_QUERY_ARGUMENT_PARSERS}
_CLASSES = {"rediss": SSLConnection, "unix": UnixDomainSocketConnection}
_POOL_OPTIONS = frozenset(_IN_URL) - _names_of(SSLConnection)
_EVERY_NAME = _POOL_OPTIONS | _names_of(SSLConnection)


def validate_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check those keyword arguments of a pool that configuration could give as well; the others pass.

    As redis-py does, it takes an empty name or password for none, and bytes for text.

    Raises:
        ConfigurationError: Some of them cannot be used; no value is repeated.
    """
    read, problems = dict(arguments), []
    for name in ("client_name", "username", "password"):
        if read.get(name) in ("", b""):
            read[name] = None
    for name, option in OPTIONS.items():
        if (value := read.get(name)) is not None:
            if isinstance(value, bytes):
                with suppress(UnicodeDecodeError):
                    value = value.decode()
            try:
                read[name] = option.read(value)
            except ValueError as error:
                problems.append((name, str(error)))
    if read.get("password_file") is not None:
        others = (name for name in _PASSWORDS if name != "password_file" and read.get(name) is not None)
        problems += (("password_file", f"cannot be given together with {name}") for name in others)
    if problems:
        raise ConfigurationError(*problems)
    return read


class _ConfigReader:
    """One pool's configuration as it is being read: a problem is noted, and reading goes on to find the others."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.problems: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}  # the key, "url" or its own, that gave each option

    def url(self, value: object, others: Sequence[str]) -> RedisUrl:
        """Read the URL and the options in it; ``others`` are the keys of other pools' URLs."""
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
                self._add_problem("url", f"unknown option{self._suggestion(name, _IN_URL)}")
            elif times[name] > 1:
                self._add_problem("url", f"{name} is given twice")
            elif not _is_blank(text):
                self._read(name, text, OPTIONS[name], "url")
        return url

    def keys(self, own: Mapping[str, object]) -> None:
        """Read all keys but the URL."""
        for name in sorted(own.keys() - KEYS):
            self._add_problem(name, f"unknown key{self._suggestion(name, KEYS)}")
        for name, value in own.items():
            if name in OPTIONS and not _is_blank(value):
                self._read(name, value, OPTIONS[name], name)

    def check_together(self, scheme: str) -> None:
        """Refuse options that the URL's scheme, or the lack of another option, leaves without effect."""
        for name in self._sources:
            if name.startswith("ssl_") and scheme not in ("rediss", ""):
                self._add_problem(name, "needs rediss://")
        if {"password", "password_file"} <= self._sources.keys():
            # Not even if they are equal: the next password would be in the file alone.
            password = f"{self.prefix}{self._sources['password']}"
            self._add_problem("password_file", f"cannot be given together with the password in {password}")
        if self.values.get("ssl_cert_reqs") is ssl.CERT_NONE and self.values.get("ssl_check_hostname"):
            self._add_problem("ssl_check_hostname", "needs a certificate, which ssl_cert_reqs=none does not ask for")
        if "socket_keepalive" in self._sources and scheme == "unix":
            self._add_problem("socket_keepalive", "does not apply to a Unix socket")
        if "ssl_keyfile" in self._sources and "ssl_certfile" not in self._sources:
            self._add_problem("ssl_keyfile", "needs ssl_certfile")
        certificate, key = self.values.get("ssl_certfile"), self.values.get("ssl_keyfile")
        # A key that could not be read has been told already.
        if certificate and (key or "ssl_keyfile" not in self._sources) and not _is_key_pair(certificate, key):
            self._add_problem(
                "ssl_certfile", "must hold a certificate, and this file or ssl_keyfile its key, unencrypted"
            )

    def _read(self, name: str, value: object, option: Option, source: str) -> None:
        self._sources[name] = source
        try:
            read = option.read(value)
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

    def _suggestion(self, name: str, known: Iterable[str]) -> str:
        if (hint := instead(name, f"{self.prefix}url", f"{self.prefix}retries")) is not None:
            return f"; {hint}"
        return _resembling(name, known)

    def _add_problem(self, name: str, reason: str) -> None:
        source = self._sources.get(name, name)
        self.problems.append((f"{self.prefix}{source}", f"{name} {reason}" if source == "url" != name else reason))


def _resembling(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_key_pair(certificate: str, key: str | None) -> bool:
    try:
        # Without a passphrase, an encrypted key would have it asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError:
        return False
    return True


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def instead(name: str, url: str, retries: str) -> str | None:
    """What to do instead of giving that key; ``url`` and ``retries`` are what those keys are called there."""
    text = _INSTEAD.get(name.lower())
    return None if text is None else text.format(url=url, retries=retries)
