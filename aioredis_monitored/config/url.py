"""Redis URLs, read strictly; problems repeat nothing of a URL but its scheme, as any other part may be a password."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

from aioredis_monitored.config.addresses import MAX_PORT, Address, is_ip_address, read_host, read_port

Topology = Literal["standalone", "cluster", "sentinel"]

_SUFFIXES: Final[dict[Topology, str]] = {"standalone": "", "cluster": "+cluster", "sentinel": "+sentinel"}
_BASES: Final = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
_SCHEMES: Final[dict[str, tuple[str, Topology]]] = {
    "unix": ("unix", "standalone"),
    **{name + end: (base, topology) for name, base in _BASES.items() for topology, end in _SUFFIXES.items()},
}
_PLACES: Final[dict[Topology, str]] = {
    "standalone": "host[:port][/db]",
    "cluster": "host[:6379][,host2[:port]][/db]",
    "sentinel": "host[:26379][,host2[:port]]/service[/db]",
}
_DEFAULT_PORTS: Final[dict[Topology, int]] = {"cluster": 6379, "sentinel": 26379}
_PARTS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,19})://(?P<authority>[^/?#]*)(?P<path>[^?#]*)\??(?P<query>[^#]*)(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
_ADDRESS = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>.*))?")
_SERVICE = re.compile(r"/(?P<service>[A-Za-z0-9._-]+)(?:/(?P<db>[0-9]+))?")


@dataclass(slots=True)
class RedisUrl:
    """The parts of a URL, as far as it can be parsed.

    Attributes:
        scheme: "redis", "rediss" or "unix"; empty if the URL has none of the known schemes.
        topology: What the hosts are: one server, nodes of a cluster, or sentinels.
        host: The name or address of the one server; ``None`` if the URL has none.
        port: The TCP port of the one server; ``None`` if the URL has none.
        path: The path of a Unix socket, in place of host and port.
        nodes: The hosts and ports of nodes or sentinels, in place of host and port.
        service: The name by which the sentinels know the servers.
        options: ``(name, text)`` of username, password, db and the query: decoded, not yet checked.
        problems: Why the URL cannot be used; empty if it can.
    """

    scheme: str = ""
    topology: Topology = "standalone"
    host: str | None = None
    port: int | None = None
    path: str | None = None
    nodes: tuple[Address, ...] = ()
    service: str | None = None
    options: list[tuple[str, str]] = field(default_factory=list, repr=False)
    problems: list[str] = field(default_factory=list)


def scheme_of(topology: Topology, base: str = "redis") -> str:
    """Return the beginning of a URL for a topology, such as "redis+cluster://".

    Args:
        topology: The topology.
        base: The scheme for one server; default "redis".
    """
    return f"{base}{_SUFFIXES[topology]}://"


def parse_url(url: str, *, strict: bool = True) -> RedisUrl:
    """Parse a URL; raise nothing, but list its ``problems``.

    Args:
        url: The URL.
        strict: Whether to refuse what redis-py accepts without harm: no host, a colon without a port, slashes around
            the database, a percent-encoded host; default ``True``. Each node and sentinel needs a host in any case.
    """
    if problem := _unreadable(url):
        return RedisUrl(problems=[problem])
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return RedisUrl(problems=[f"not a Redis URL: {_form('standalone')}"])
    name = parts["scheme"].lower()
    if name not in _SCHEMES:
        return RedisUrl(problems=[_refusal(name)])
    scheme, topology = _SCHEMES[name]
    parsed = RedisUrl(scheme=scheme, topology=topology)
    # An unencoded "/", "?" or "#" in a password ends the authority: the parts after it contain the rest of it.
    if re.search("[#@]", url[parts.end("authority") :]):
        parsed.problems.append("in user names, passwords and options, '/', '?', '#' and '@' must be percent-encoded")
        return parsed
    userinfo, _, address = parts["authority"].rpartition("@")
    # Otherwise the hosts before the last "@" would be taken for a part of the user name or of the password.
    if topology in _DEFAULT_PORTS and ("@" in userinfo or "," in userinfo.partition(":")[0]):
        parsed.problems.append(
            f"user name and password come once, before the first host, percent-encoded: {_form(topology, scheme)}"
        )
        return parsed
    credentials = zip(("username", "password"), userinfo.split(":", 1), strict=False)
    parsed.options += [(name, unquote(text)) for name, text in credentials if text]
    if scheme == "unix":
        _read_socket(parsed, address, parts["path"])
    else:
        _read_addresses(parsed, address, strict=strict)
        path = parts["path"] if strict else f"/{unquote(parts['path']).strip('/')}"
        (_read_service if topology == "sentinel" else _read_database)(parsed, path)
    before, parsed.options = parsed.options, []
    _read_query(parsed, parts["query"])
    if not strict and dict(parsed.options).get("db"):
        # As redis-py documents it, the option db precedes the path.
        before = [(name, text) for name, text in before if name != "db"]
    parsed.options = before + parsed.options
    return parsed


def _form(topology: Topology, base: str = "redis") -> str:
    return f"expected {scheme_of(topology, base)}[[username]:password@]{_PLACES[topology]}"


def _unreadable(url: str) -> str | None:
    if not url.isprintable() or " " in url:
        return "spaces and unprintable characters must be percent-encoded"
    try:
        unquote(url, errors="strict")
    except UnicodeDecodeError:
        return "what is percent-encoded must be UTF-8"
    return None


def _refusal(scheme: str) -> str:
    # Other clients have redis-sentinel://, sentinel:// or redis-cluster:// and their forms with TLS, and redis+tls://.
    topology: Topology = "standalone"
    if "cluster" in scheme:
        topology = "cluster"
    elif "sentinel" in scheme:
        topology = "sentinel"
    is_encrypted = re.search("rediss|valkeys|ssl|tls", scheme)
    return f"unknown scheme '{scheme}': {_form(topology, 'rediss' if is_encrypted else 'redis')}"


def _read_socket(parsed: RedisUrl, address: str, path: str) -> None:
    if address or path in ("", "/") or "%00" in path:
        parsed.problems.append("a Unix socket needs an absolute path after three slashes, as in unix:///run/redis.sock")
    else:
        parsed.path = unquote(path)


def _read_addresses(parsed: RedisUrl, text: str, *, strict: bool) -> None:
    if parsed.topology in _DEFAULT_PORTS:
        default = _DEFAULT_PORTS[parsed.topology]
        read = [_read_address(parsed, address, strict=strict) for address in text.split(",")]
        parsed.nodes = tuple(dict.fromkeys((host, port or default) for host, port in read if host))
        # What several hosts have in common is one problem.
        parsed.problems[:] = dict.fromkeys(parsed.problems)
    elif "," in text:
        cluster, sentinel = (scheme_of(topology, parsed.scheme) for topology in _DEFAULT_PORTS)
        parsed.problems.append(f"several hosts need {cluster} or {sentinel}")
    else:
        parsed.host, parsed.port = _read_address(parsed, text, strict=strict)


def _read_address(parsed: RedisUrl, address: str, *, strict: bool) -> tuple[str | None, int | None]:
    if address.count(":") > 1 and any(is_ip_address(unquote(each)) for each in (address, address.rpartition(":")[0])):
        parsed.problems.append("an IPv6 address must be in brackets, as in [::1]:6379")
        return None, None
    match = _ADDRESS.fullmatch(address)
    if match is None or not (match["host"] or (parsed.topology == "standalone" and not strict)):
        parsed.problems.append(f"no host: {_form(parsed.topology, parsed.scheme)}")
        return None, None
    host, port = match.group("host", "port")
    read_as: tuple[str | None, int | None] = (None, None)
    try:
        if host:
            read_as = (read_host(host if strict or host.startswith("[") else unquote(host)), None)
    except ValueError:
        parsed.problems.append("the host must be a name, an IPv4 address or an IPv6 address in brackets")
    try:
        if port or (strict and port is not None):
            read_as = (read_as[0], read_port(port))
    except ValueError:
        parsed.problems.append(f"the port must be a number from 1 to {MAX_PORT}")
    return read_as


def _read_database(parsed: RedisUrl, path: str) -> None:
    if re.fullmatch("/[0-9]+", path):
        parsed.options.append(("db", path[1:]))
    elif path not in ("", "/"):
        form = _form(parsed.topology, parsed.scheme)
        parsed.problems.append(f"nothing but the number of a database may follow the host: {form}")


def _read_service(parsed: RedisUrl, path: str) -> None:
    form = _form(parsed.topology, parsed.scheme)
    # A number alone is that of a database, after which a service was forgotten.
    if re.fullmatch("/?[0-9]*", path):
        parsed.problems.append(f"no service after the hosts: {form}")
    elif match := _SERVICE.fullmatch(path):
        parsed.service = match["service"]
        parsed.options += [("db", match["db"])] if match["db"] else []
    else:
        parsed.problems.append(
            "a service consists of letters, digits, '.', '_' and '-', "
            f"and nothing but the number of a database may follow it: {form}"
        )


def _read_query(parsed: RedisUrl, query: str) -> None:
    try:
        parsed.options += parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        parsed.problems.append("options must be written name=value and joined by '&'")
