"""The probes of an orchestrator such as Kubernetes, as an ASGI application: whether a process is ready, and alive."""

import asyncio
import json
from http import HTTPStatus
from typing import Any, Final

from aioredis_monitored.integrations.asgi import Receive, Scope, Send
from aioredis_monitored.pool.pool import MonitoredConnectionPool

_READY: Final = "/ready"
_PATHS: Final = (_READY, "/alive")
_METHODS: Final = ("GET", "HEAD")
# What is said of a pool.
_FIELDS: Final = ("ok", "problem", "topology", "latency", "role", "writable", "replicas")


class HealthEndpoints:
    """ASGI application with two endpoints, to be mounted: ``app.mount("/health", HealthEndpoints(pool))``.

    - ``/ready`` asks the servers of all pools, at the same time (see ``MonitoredConnectionPool.health``). It replies
      200 if all take calls and 503 if not, with what was found as JSON. That names servers: do not publish it.
    - ``/alive`` replies 200, and asks no server: restarting a process repairs none.

    Args:
        pools: The pools without which the process is of no use.

    Raises:
        TypeError: One is no ``MonitoredConnectionPool``.
        ValueError: Two have the same name.
    """

    def __init__(self, *pools: MonitoredConnectionPool) -> None:
        for pool in pools:
            if not isinstance(pool, MonitoredConnectionPool):
                message = f"pools must be MonitoredConnectionPool, got {type(pool).__name__}"
                raise TypeError(message)
        names = [pool.name for pool in pools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            message = (
                f"two pools have the name {twice!r}: give each its own, as in pool_from_config(config, name='cache')"
            )
            raise ValueError(message)
        self._pools = pools

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply to one request."""
        del receive  # a probe has no body
        if scope["type"] != "http":
            message = f"HealthEndpoints replies to HTTP alone, got {scope['type']}: mount it in an application"
            raise RuntimeError(message)
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        status, found = HTTPStatus.OK, dict[str, Any]()
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        if path not in _PATHS:
            status = HTTPStatus.NOT_FOUND
        elif scope["method"] not in _METHODS:
            status = HTTPStatus.METHOD_NOT_ALLOWED
            headers.append((b"allow", ", ".join(_METHODS).encode()))
        elif path == _READY:
            found = await self._check()
            if not all(each["ok"] for each in found.values()):
                status = HTTPStatus.SERVICE_UNAVAILABLE
        body = b"" if scope["method"] == "HEAD" else json.dumps(found).encode()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _check(self) -> dict[str, Any]:
        found = await asyncio.gather(*(pool.health() for pool in self._pools))
        return {
            pool.name: {name: getattr(health, name) for name in _FIELDS}
            for pool, health in zip(self._pools, found, strict=True)
        }
