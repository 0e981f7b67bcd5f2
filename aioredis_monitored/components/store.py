"""Configuration kept in Redis and cached in the process (after chapter 5.4 of "Redis in Action")."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from copy import copy
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from redis.asyncio import Redis

from aioredis_monitored._execution.routing import reading_primaries
from aioredis_monitored._timeouts import LagTolerantTimeout
from aioredis_monitored.errors import MonitoredRedisError

_Value = bytes | str | None
_Parser = Callable[[_Value], object]

_MAX_ENTRIES = 256
_MAINTENANCE_KEY = "is-under-maintenance"
_MAINTENANCE_SECONDS = 1.0


class ConfigStore:
    """Configuration of components as JSON at ``config:{type}:{component}``, cached in this process.

    Concurrent readers share one read, and its failure: a dead server costs one attempt per ``wait``. The cancellation
    of a reader does not end the read of the others. The cache holds the 256 components that were used last.

    A type must not contain ``:``, as the keys of ``("a:b", "c")`` and ``("a", "b:c")`` would be the same.

    Args:
        client: A client of the server that keeps the configuration.
    """

    def __init__(self, client: Redis) -> None:
        self._client = reading_primaries(client)
        self._entries: dict[str, _Entry] = {}

    async def set(self, type_: str, component: str, config: Mapping[str, Any]) -> None:
        """Write a component's configuration; this process sees it at once, others within their ``wait``.

        Args:
            type_: The component's type, such as ``redis`` or ``statistics``; without ``:``.
            component: The component's name.
            config: The configuration.

        Raises:
            TypeError: The configuration is not a mapping that JSON can hold.
            ValueError: ``type_`` contains ``:``.
        """
        if not isinstance(config, Mapping):
            message = f"config must be a mapping, got {type(config).__name__}"
            raise TypeError(message)
        key = _key(type_, component)
        await self._client.set(key, json.dumps(dict(config), sort_keys=True))
        self._entries.pop(key, None)

    async def get(
        self, type_: str, component: str, wait: float = 1, *, patience: float | None = None
    ) -> dict[str, Any]:
        """Read a component's configuration; ``{}`` if there is none. The caller may change the dict.

        Args:
            type_: The component's type, such as ``redis`` or ``statistics``; without ``:``.
            component: The component's name.
            wait: Seconds for which an earlier answer is used; default 1.
            patience: Seconds from the start of a read, by any reader, after which an older answer of any age is used;
                the read goes on. ``None``, the default, waits as long as the client does.

        Raises:
            ValueError: ``type_`` contains ``:``, or the value is not a JSON object; the message does not quote it.
            TimeoutError: The read takes longer than ``patience``, and there is no older answer.
            redis.exceptions.RedisError: The server cannot be read.
        """
        key = _key(type_, component)
        # Parsed for each caller, who may change nested lists, too: a deep copy takes longer.
        config: dict[str, Any] = json.loads(await self._read(key, wait, partial(_check_json, key), patience))
        return config

    async def is_under_maintenance(self) -> bool:
        """Return whether ``is-under-maintenance`` is set, and neither empty, ``0``, ``no`` nor ``false``; cached 1 s.

        Raises:
            redis.exceptions.RedisError: The server cannot be read.
        """
        return bool(await self._read(_MAINTENANCE_KEY, _MAINTENANCE_SECONDS, _is_true))

    async def _read(self, key: str, wait: float, parse: _Parser, patience: float | None = None) -> Any:
        entry = self._entry(key)
        if monotonic() - entry.checked_at >= wait:
            await entry.refresh(self._client, key, parse, patience)
        if entry.error is not None:
            # A copy: each caller's traceback and notes are its own.
            raise copy(entry.error)
        return entry.value

    def _entry(self, key: str) -> "_Entry":
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = _Entry()
            idle = [other for other, each in self._entries.items() if not each.is_reading()]
            for oldest in idle[: max(0, len(self._entries) + 1 - _MAX_ENTRIES)]:
                del self._entries[oldest]
        # The dict's order is that of use.
        self._entries[key] = entry
        return entry


class _Entry:
    """The last answer for one key, or the error that came instead."""

    def __init__(self) -> None:
        self.checked_at = -inf
        self.value: Any = None
        self.error: Exception | None = None
        self._reading: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._has_answer = False

    def is_reading(self) -> bool:
        """Return whether a read is running, which other readers share."""
        return self._reading is not None and not self._reading.done()

    async def refresh(self, client: Redis, key: str, parse: _Parser, patience: float | None) -> None:
        """Read the key in a task that concurrent readers share, and that none of them can cancel.

        Raises:
            TimeoutError: The read takes longer than ``patience``, and there is no older answer.
        """
        if self._reading is None or self._reading.done() or self._reading.get_loop() is not asyncio.get_running_loop():
            self._started_at = monotonic()
            # In an empty context: the read belongs to no caller's trace.
            self._reading = asyncio.get_running_loop().create_task(self._read(client, key, parse), context=Context())
        reading = self._reading
        left = None if patience is None else max(0.0, self._started_at + patience - monotonic())
        with suppress(TimeoutError):
            async with LagTolerantTimeout(left):
                await asyncio.wait({reading})
        if reading.done() and reading.cancelled():
            # By code that cancels every task; this reader was not cancelled.
            await self.refresh(client, key, parse, patience)
        elif not reading.done() and not self._has_answer:
            message = f"reading {key} takes longer than {patience} s"
            raise TimeoutError(message)

    async def _read(self, client: Redis, key: str, parse: _Parser) -> None:
        try:
            self.value, self.error = parse(await client.get(key)), None
        except Exception as error:  # noqa: BLE001 - each reader raises it
            self.error = error.with_traceback(None)
            error.__context__ = None
        self._has_answer = True
        # A closed pool, or one of another event loop, is this process's mistake: the next reader tries again.
        self.checked_at = -inf if isinstance(self.error, MonitoredRedisError) else monotonic()


def _key(type_: str, component: str) -> str:
    if ":" in type_:
        # The key would be that of another type and component.
        message = f"the type of a component must not contain ':': {type_!r}"
        raise ValueError(message)
    return f"config:{type_}:{component}"


def _check_json(key: str, value: _Value) -> bytes | str:
    text = value or "{}"
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    message = f"{key} does not hold a JSON object"
    raise ValueError(message)


def _is_true(value: _Value) -> bool:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
    return text.strip().lower() not in {"", "0", "no", "false"}
