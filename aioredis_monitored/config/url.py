"""Redis URLs, read strictly; problems repeat nothing of a URL but its scheme, as any other part may be a password."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from urllib.parse import parse_qsl, unquote

_FORM = "expected redis://[[username]:password@]host[:port][/db]"
_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss", "unix": "unix"}
_TOPOLOGY = re.compile(r"(?:redis|valkey)s?\+(sentinel|cluster)")
_PARTS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,19})://(?P<authority>[^/?#]*)(?P<path>[^?#]*)\??(?P<query>[^#]*)(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
_ADDRESS = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>.*))?")
_HOST_NAME = re.compile(r"[\w-]{1,63}(?:\.[\w-]{1,63})*\.?")
MAX_PORT = 65_535


@dataclass(slots=True)
class RedisUrl:
    """The parts of a URL, as far as it can be parsed.

    Attributes:
        scheme: "redis", "rediss" or "unix"; empty if the URL has none of the known schemes.
        host: The name or address of the server; ``None`` if the URL has none.
        port: The TCP port of the server; ``None`` if the URL has none.
        path: The path of a Unix socket, in place of host and port.
        options: ``(name, text)`` of username, password, db and the query: decoded, not yet checked.
        problems: Why the URL cannot be used; empty if it can.
    """

    scheme: str = ""
    host: str | None = None
    port: int | None = None
    path: str | None = None
    options: list[tuple[str, str]] = field(default_factory=list, repr=False)
    problems: list[str] = field(default_factory=list)


def parse_url(url: str, *, strict: bool = True) -> RedisUrl:
    """Parse a URL; raise nothing, but list its ``problems``.

    Args:
        url: The URL.
        strict: Whether to refuse what redis-py accepts without harm: no host, a colon without a port, slashes around
            the database, a percent-encoded host; default ``True``.
    """
    if problem := _unreadable(url):
        return RedisUrl(problems=[problem])
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return RedisUrl(problems=[f"not a Redis URL: {_FORM}"])
    scheme = parts["scheme"].lower()
    if scheme not in _SCHEMES:
        return RedisUrl(problems=[_refusal(scheme)])
    parsed = RedisUrl(scheme=_SCHEMES[scheme])
    # An unencoded "/", "?" or "#" in a password ends the authority: the parts after it contain the rest of it.
    if re.search("[#@]", url[parts.end("authority") :]):
        parsed.problems.append("in user names, passwords and options, '/', '?', '#' and '@' must be percent-encoded")
        return parsed
    userinfo, _, address = parts["authority"].rpartition("@")
    credentials = zip(("username", "password"), userinfo.split(":", 1), strict=False)
    parsed.options += [(name, unquote(text)) for name, text in credentials if text]
    if parsed.scheme == "unix":
        _read_socket(parsed, address, parts["path"])
    else:
        _read_address(parsed, address, strict=strict)
        _read_database(parsed, parts["path"] if strict else f"/{unquote(parts['path']).strip('/')}")
    before, parsed.options = parsed.options, []
    _read_query(parsed, parts["query"])
    if not strict and dict(parsed.options).get("db"):
        # As redis-py documents it, the option db precedes the path.
        before = [(name, text) for name, text in before if name != "db"]
    parsed.options = before + parsed.options
    return parsed


def _unreadable(url: str) -> str | None:
    if not url.isprintable() or " " in url:
        return "spaces and unprintable characters must be percent-encoded"
    try:
        unquote(url, errors="strict")
    except UnicodeDecodeError:
        return "what is percent-encoded must be UTF-8"
    return None


def _refusal(scheme: str) -> str:
    if topology := _TOPOLOGY.fullmatch(scheme):
        return f"{topology[1].capitalize()} URLs are not supported yet"
    return f"unknown scheme '{scheme}': {_FORM}"


def _read_socket(parsed: RedisUrl, address: str, path: str) -> None:
    if address or path in ("", "/") or "%00" in path:
        parsed.problems.append("a Unix socket needs an absolute path after three slashes, as in unix:///run/redis.sock")
    else:
        parsed.path = unquote(path)


def _read_address(parsed: RedisUrl, address: str, *, strict: bool) -> None:
    match = _ADDRESS.fullmatch(address)
    if match is None or (strict and not match["host"]):
        parsed.problems.append(f"no host: {_FORM}")
        return
    host, port = match.group("host", "port")
    try:
        if host:
            parsed.host = _read_host(host if strict or host.startswith("[") else unquote(host))
    except ValueError:
        parsed.problems.append("the host must be a name, an IPv4 address or an IPv6 address in brackets")
    if port or (strict and port is not None):
        if re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) <= MAX_PORT:
            parsed.port = int(port)
        else:
            parsed.problems.append(f"the port must be a number from 1 to {MAX_PORT}")


def _read_host(host: str) -> str:
    if host.startswith("["):
        return str(IPv6Address(unquote(host[1:-1])))
    if not _HOST_NAME.fullmatch(host):
        raise ValueError
    return host


def _read_database(parsed: RedisUrl, path: str) -> None:
    if re.fullmatch("/[0-9]+", path):
        parsed.options.append(("db", path[1:]))
    elif path not in ("", "/"):
        parsed.problems.append(f"nothing but the number of a database may follow the host: {_FORM}")


def _read_query(parsed: RedisUrl, query: str) -> None:
    try:
        parsed.options += parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        parsed.problems.append("options must be written name=value and joined by '&'")
