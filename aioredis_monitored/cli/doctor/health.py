"""Whether the pool's servers take calls, by ``pool.health()``."""

from typing import Final

from aioredis_monitored.cli.doctor.subject import Subject
from aioredis_monitored.cli.findings import Finding, at, fault, ok, unknown
from aioredis_monitored.pool.health import ServerHealth

_NO_PERMISSION: Final = "no permissions"
_FOLLOW: Final = (
    "use the address of its primary, which INFO replication names, or redis+sentinel:// or redis+cluster://"
)


async def check_health(subject: Subject) -> list[Finding]:
    """Ask the pool which servers take calls."""
    health = await subject.pool.health()
    if not health.servers:
        return [fault("health", health.problem, "look at the nodes of the cluster")]
    if len(health.servers) == 1:
        return [_finding(health.servers[0])]
    return [at(_finding(each), each.server) for each in health.servers]


def _finding(server: ServerHealth) -> Finding:
    role = server.role or "server"
    if server.problem and server.role == "replica":
        return fault("role", "the server is a replica, which refuses writes", _FOLLOW)
    if _NO_PERMISSION in server.problem:
        return fault("rights", server.problem, "give the user +@connection, without which no client works")
    if server.problem:
        return fault("health", server.problem, "look at the server, its memory, its disk and its replicas")
    if server.writable is None:
        return unknown("role", f"{role}; whether it accepts writes", "+eval, and Redis 7.0 or later")
    replicas = "" if server.replicas is None else f", replicas: {server.replicas}"
    return ok("role", f"{role} that accepts writes{replicas}")
