"""Configuration kept in Redis, read at most once in a while (after chapter 5.4 of "Redis in Action")."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

_MAINTENANCE_KEY = "is-under-maintenance"
_MAINTENANCE_SECONDS = 1.0


class ConfigStore:
    """Configuration of components as JSON at ``config:{type}:{component}``, cached in this process.

    Concurrent readers share one read, and its failure: a dead server costs one attempt for each ``wait``.

    Args:
        client: A client of the server that keeps the configuration.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._entries: dict[str, _Entry] = {}

    async def set(self, type_: str, component: str, config: Mapping[str, Any]) -> None:
        """Write a component's configuration; this process sees it at once, others within their ``wait``.

        Raises:
            TypeError: The configuration is not a mapping that JSON can hold.
        """
        if not isinstance(config, Mapping):
            message = f"a configuration is a mapping, not {type(config).__name__}"
            raise TypeError(message)
        key = _key(type_, component)
        await self._client.set(key, json.dumps(dict(config), sort_keys=True))
        self._entries.pop(key, None)

    async def get(self, type_: str, component: str, wait: float = 1) -> dict[str, Any]:
        """Read a component's configuration; ``{}`` if there is none.

        Args:
            type_: What kind of component it is: ``redis``, ``statistics``, ….
            component: The component's name.
            wait: Seconds for which an earlier answer will do; default 1.

        Raises:
            ValueError: What is kept there is not a JSON object; the text does not quote it.
            redis.exceptions.RedisError: The server cannot be read.
        """
        key = _key(type_, component)
        config: dict[str, Any] = await self._read(key, wait, lambda value: _parse(key, value))
        return dict(config)

    async def is_under_maintenance(self) -> bool:
        """Whether the key ``is-under-maintenance`` says so: not absent, empty, ``0``, ``no`` or ``false``; cached 1 s.

        Raises:
            redis.exceptions.RedisError: The server cannot be read.
        """
        return bool(await self._read(_MAINTENANCE_KEY, _MAINTENANCE_SECONDS, _truth))

    async def _read(self, key: str, wait: float, parse: Callable[[bytes | str | None], Any]) -> Any:
        asked = monotonic()
        entry = self._entries.setdefault(key, _Entry())
        async with entry.lock:
            if asked - entry.checked_at >= wait:
                await entry.refresh(self._client, key, parse)
        if entry.error is not None:
            raise entry.error.with_traceback(None)
        return entry.value


class _Entry:
    """The last answer for one key, or the error that came instead."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.checked_at = -float("inf")
        self.value: Any = None
        self.error: RedisError | ValueError | None = None

    async def refresh(self, client: Redis, key: str, parse: Callable[[bytes | str | None], Any]) -> None:
        try:
            self.value, self.error = parse(await client.get(key)), None
        except (RedisError, ValueError) as error:
            self.error = error
        # After the reply: whoever asked while it was on the way has his answer too.
        self.checked_at = monotonic()


def _key(type_: str, component: str) -> str:
    return f"config:{type_}:{component}"


def _parse(key: str, value: bytes | str | None) -> dict[str, Any]:
    with suppress(ValueError):
        config = json.loads(value or "{}")
        if isinstance(config, dict):
            return config
    message = f"{key} does not hold a JSON object"
    raise ValueError(message)


def _truth(value: bytes | str | None) -> bool:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
    return text.strip().lower() not in {"", "0", "no", "false"}
