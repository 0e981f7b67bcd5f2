"""A node of a cluster, as callers name it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from redis.utils import str_if_bytes

from aioredis_monitored.config.addresses import address_text


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node of a cluster; two are equal if they have the same host and port.

    Args:
        host: Its host, as the cluster announces it, or as ``address_map`` maps that.
        port: Its TCP port; default 6379.
        server_type: What it was when it was asked for: ``primary`` or ``replica``; default ``None``, for unknown.
    """

    host: str
    port: int = 6379
    server_type: Literal["primary", "replica"] | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Its host and port, as in ``127.0.0.1:7000`` or ``[::1]:7000``."""
        return address_text(self.host, self.port)


# What servers call themselves that are replicas.
REPLICA_ROLES: Final = frozenset({"slave", "replica"})


def role_in(hello: object) -> str:
    """Return the role in the reply to ``HELLO``; empty if it has none."""
    return field_in(hello, "role")


def field_in(hello: object, name: str) -> str:
    """Return a field of the reply to ``HELLO``, which is a map in RESP3, and a list in RESP2; empty if it has none."""
    fields = dict(zip(hello[::2], hello[1::2], strict=False)) if isinstance(hello, list) else hello
    if not isinstance(fields, dict):
        return ""
    return str_if_bytes(fields.get(name.encode()) or fields.get(name) or "")


# What ``target_nodes=`` takes: one of redis-py's flags, a node, or several. Any object with a host and a port will do,
# such as a node of redis-py's.
TargetNodes = str | ClusterNode | Iterable[ClusterNode] | Mapping[Any, ClusterNode]
