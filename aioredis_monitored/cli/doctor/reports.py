"""What a server says about itself: each check looks at one thing, and none changes any."""

import statistics
from collections import Counter
from itertools import pairwise
from time import perf_counter
from typing import Any, Final

from redis.exceptions import ResponseError
from redis.utils import str_if_bytes

from aioredis_monitored.cli.doctor.subject import Server, is_refused
from aioredis_monitored.cli.findings import Finding, fault, ok, unknown, warning
from aioredis_monitored.config.url import Topology, scheme_of

_OLDEST: Final = (7, 0)
_PINGS: Final = 20
_MILLISECONDS: Final = 1000
_MICROSECONDS: Final = 1_000_000
_DEFAULT_SOCKET_TIMEOUT: Final = 5.0
# The share of socket_timeout that a round trip may take, and one that is unusually long.
_MAX_MEDIAN: Final = 0.1
_MAX_LONGEST: Final = 0.5
# The share of maxclients or of maxmemory from which there may soon be no room.
_NEARLY_FULL: Final = 0.9
# From here on, a slow command delays all callers so that they notice it.
_SLOW_SECONDS: Final = 0.1
_SLOW_ENTRIES: Final = 128
# What HELLO calls the mode of a server, by the topology of a configuration that can use it.
_MODES: Final[dict[Topology, str]] = {"standalone": "standalone", "cluster": "cluster", "sentinel": "standalone"}
_SCHEMES: Final[dict[str, Topology]] = {"cluster": "cluster", "sentinel": "sentinel"}


async def check_version(server: Server) -> list[Finding]:
    """Ask what the server is."""
    hello = await server.ask("HELLO")
    if isinstance(hello, list):
        hello = dict(zip(hello[::2], hello[1::2], strict=False))
    if not isinstance(hello, dict):
        return [unknown("version", "the server does not say what it is", "HELLO, as of Redis 6.0")]
    fields = {str_if_bytes(name): str_if_bytes(value) for name, value in hello.items()}
    version, mode = str(fields.get("version", "")), str(fields.get("mode", ""))
    found = []
    text = f"{fields.get('server', 'server')} {version}"
    if _numbers(version) < _OLDEST:
        found.append(warning("version", text, "use Redis 7.0 or later, or Valkey: no older one is tested"))
    else:
        found.append(ok("version", text))
    expected = _MODES[server.subject.settings.config.topology]
    if mode in _SCHEMES and mode != expected:
        variable = server.subject.settings.variable("url")
        advice = f"begin {variable} with {scheme_of(_SCHEMES[mode])}"
        found.append(fault("version", f"the server is a {'node of a ' * (mode == 'cluster')}{mode}", advice))
    return found


async def check_eviction(server: Server) -> list[Finding]:
    """Ask what the server does when its memory is full."""
    policy = await server.setting("maxmemory-policy", "maxmemory_policy")
    if policy is None:
        return [unknown("maxmemory-policy", "what happens when memory is full", "+info or +config|get")]
    queues = server.subject.queues
    found = []
    if policy.startswith("allkeys-") and queues:
        text = f"{policy} deletes messages of {', '.join(queues)} when memory is full"
        advice = "set maxmemory-policy to noeviction or volatile-*, and put caches on another server"
        found.append(fault("maxmemory-policy", text, advice))
    elif policy.startswith("allkeys-"):
        found.append(ok("maxmemory-policy", f"{policy}, for caches: it would delete locks, and messages of queues"))
    else:
        found.append(ok("maxmemory-policy", policy))
    info = await server.info()
    used, most = (int(info.get(name, 0)) for name in ("used_memory", "maxmemory"))
    if most and used > most * _NEARLY_FULL:
        text = f"{used / most:.0%} of maxmemory is used"
        found.append(warning("memory", text, "raise maxmemory, or delete keys"))
    return found


async def check_idle_timeout(server: Server) -> list[Finding]:
    """Ask after how long the server closes idle connections."""
    seconds = await server.setting("timeout")
    if seconds is None:
        return [unknown("timeout", "whether the server closes idle connections", "+config|get")]
    if int(seconds) == 0:
        return [ok("timeout", "the server closes no idle connection")]
    text = f"the server closes connections that are idle for {seconds} s, and with them what WATCH and client() set"
    return [warning("timeout", text, "set timeout to 0, and tcp-keepalive for clients that are gone")]


async def check_capacity(server: Server) -> list[Finding]:
    """Compare the server's maxclients with what the pool may ask for."""
    most = await server.setting("maxclients", "maxclients")
    if most is None:
        return [unknown("maxclients", "how many clients the server takes", "+info or +config|get")]
    used = int((await server.info()).get("connected_clients", 0))
    per_pool = server.subject.settings.config.max_connections
    fit = int(most) // per_pool
    text = f"{used} of {most} clients connected; {fit} pools of max_connections={per_pool} fit"
    advice = "raise maxclients, or lower max_connections: pods x workers x pools x max_connections must fit"
    if fit == 0 or used > int(most) * _NEARLY_FULL:
        return [warning("maxclients", text, advice)]
    return [ok("maxclients", text)]


async def check_clients(server: Server) -> list[Finding]:
    """Count the clients by what they call their library."""
    reply = await server.ask("CLIENT", "LIST")
    if is_refused(reply):
        return [unknown("clients", "which libraries are connected", "+client|list")]
    if isinstance(reply, ResponseError):
        return [unknown("clients", "which libraries are connected", "a server that knows CLIENT LIST")]
    lines = str(str_if_bytes(reply)).splitlines()
    names = Counter(
        next((word.removeprefix("lib-name=") for word in line.split(" ") if word.startswith("lib-name=")), None)
        for line in lines
    )
    if names.keys() == {None}:
        return [unknown("clients", f"{len(lines)}, of unknown libraries", "Redis 7.2 or later, which knows lib-name")]
    counts = ", ".join(f"{name or 'without lib-name'}: {count}" for name, count in names.most_common())
    return [ok("clients", counts)]


async def check_slow_log(server: Server) -> list[Finding]:
    """Look which commands took longest, without their arguments."""
    reply = await server.ask("SLOWLOG", "GET", _SLOW_ENTRIES)
    if is_refused(reply):
        return [unknown("slow log", "which commands took long", "+slowlog|get")]
    if isinstance(reply, ResponseError):
        return [unknown("slow log", "which commands took long", "a server that knows SLOWLOG GET")]
    longest: dict[str, float] = {}
    for _, _, microseconds, words, *_ in reply:
        name = str(str_if_bytes(words[0])).upper()
        longest[name] = max(longest.get(name, 0.0), microseconds / _MICROSECONDS)
    if not longest:
        return [ok("slow log", "empty")]
    slowest = sorted(longest.items(), key=lambda each: -each[1])
    text = ", ".join(f"{name} {seconds * _MILLISECONDS:.0f} ms" for name, seconds in slowest[:5])
    if slowest[0][1] < _SLOW_SECONDS:
        return [ok("slow log", text)]
    return [warning("slow log", text, "split or replace these commands: all clients wait while one runs")]


async def check_round_trip(server: Server) -> list[Finding]:
    """Time some PINGs, one after the other."""
    times = []
    for _ in range(_PINGS):
        began = perf_counter()
        await server.ask("PING")
        times.append(perf_counter() - began)
    median, longest = statistics.median(times), max(times)
    jitter = statistics.fmean(abs(after - before) for before, after in pairwise(times))
    text = ", ".join(
        f"{name} {seconds * _MILLISECONDS:.2f} ms"
        for name, seconds in (("median", median), ("longest", longest), ("jitter", jitter))
    )
    limit = server.subject.settings.config.socket_timeout or _DEFAULT_SOCKET_TIMEOUT
    if median > limit * _MAX_MEDIAN or longest > limit * _MAX_LONGEST:
        advice = f"look at the network and the server, or raise socket_timeout={limit:g} s"
        return [warning("round trip", text, advice)]
    return [ok("round trip", text)]


def _numbers(version: str) -> tuple[Any, ...]:
    return tuple(int(each) for each in version.split(".") if each.isdecimal())
