"""Configuration kept in Redis, read at most once in a while (after chapter 5.4 of "Redis in Action")."""

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

from aioredis_monitored._timeouts import lag_tolerant_timeout
from aioredis_monitored.errors import MonitoredRedisError

_Value = bytes | str | None
_Parser = Callable[[_Value], object]

# The keys whose answers are kept.
_MAX_ENTRIES = 256
_MAINTENANCE_KEY = "is-under-maintenance"
_MAINTENANCE_SECONDS = 1.0


class ConfigStore:
    """Configuration of components as JSON at ``config:{type}:{component}``, cached in this process.

    Concurrent readers share one read, and its failure: a dead server costs one attempt for each ``wait``. A reader that
    is cancelled leaves the read to the others. The answers for 256 components are kept, those asked for last; any other
    is read again.

    A type must not contain ``:``, or else the keys of ``("a:b", "c")`` and ``("a", "b:c")`` would be the same.

    Args:
        client: A client of the server that keeps the configuration.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._entries: dict[str, _Entry] = {}

    async def set(self, type_: str, component: str, config: Mapping[str, Any]) -> None:
        """Write a component's configuration; this process sees it at once, others within their ``wait``.

        Args:
            type_: What kind of component it is: ``redis``, ``statistics``, …; without ``:``.
            component: The component's name.
            config: The configuration.

        Raises:
            TypeError: The configuration is not a mapping that JSON can hold.
            ValueError: ``type_`` contains ``:``.
        """
        if not isinstance(config, Mapping):
            message = f"a configuration is a mapping, not {type(config).__name__}"
            raise TypeError(message)
        key = _key(type_, component)
        await self._client.set(key, json.dumps(dict(config), sort_keys=True))
        self._entries.pop(key, None)

    async def get(
        self, type_: str, component: str, wait: float = 1, *, patience: float | None = None
    ) -> dict[str, Any]:
        """Read a component's configuration; ``{}`` if there is none. What is returned is the caller's to change.

        Args:
            type_: What kind of component it is: ``redis``, ``statistics``, …; without ``:``.
            component: The component's name.
            wait: Seconds for which an earlier answer will do; default 1.
            patience: Seconds that a read may take, whoever began it, before an older answer will do, however old; the
                read goes on. ``None``, the default, waits as long as the client does.

        Raises:
            ValueError: ``type_`` contains ``:``, or what is there is not a JSON object; the text does not quote it.
            TimeoutError: The read takes longer than ``patience``, and there is no older answer.
            redis.exceptions.RedisError: The server cannot be read.
        """
        key = _key(type_, component)
        # Parsed for each caller, who may change nested lists too: a deep copy takes longer.
        config: dict[str, Any] = json.loads(await self._read(key, wait, partial(_checked, key), patience))
        return config

    async def is_under_maintenance(self) -> bool:
        """Whether the key ``is-under-maintenance`` says so: not absent, empty, ``0``, ``no`` or ``false``; cached 1 s.

        Raises:
            redis.exceptions.RedisError: The server cannot be read.
        """
        return bool(await self._read(_MAINTENANCE_KEY, _MAINTENANCE_SECONDS, _truth))

    async def _read(self, key: str, wait: float, parse: _Parser, patience: float | None = None) -> Any:
        entry = self._entry(key)
        if monotonic() - entry.checked_at >= wait:
            await entry.refresh(self._client, key, parse, patience)
        if entry.error is not None:
            # A copy: what one caller makes of it is not shown to another.
            raise copy(entry.error)
        return entry.value

    def _entry(self, key: str) -> "_Entry":
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = _Entry()
            idle = [other for other, each in self._entries.items() if not each.is_reading()]
            for oldest in idle[: max(0, len(self._entries) + 1 - _MAX_ENTRIES)]:
                del self._entries[oldest]
        # The last one is the one that was asked for last.
        self._entries[key] = entry
        return entry


class _Entry:
    """The last answer for one key, or the error that came instead."""

    def __init__(self) -> None:
        self.checked_at = -inf
        self.value: Any = None
        self.error: Exception | None = None
        self._reading: asyncio.Task[None] | None = None
        self._began_at = 0.0
        self._has_answer = False

    def is_reading(self) -> bool:
        """Whether a read is under way, which others who ask are to share."""
        return self._reading is not None and not self._reading.done()

    async def refresh(self, client: Redis, key: str, parse: _Parser, patience: float | None) -> None:
        """Read it in a task that all who ask meanwhile share, and that none of them can cancel.

        Raises:
            TimeoutError: ``patience`` is at an end, and there is no older answer.
        """
        if self._reading is None or self._reading.done() or self._reading.get_loop() is not asyncio.get_running_loop():
            self._began_at = monotonic()
            # In an empty context: the read belongs to no caller's trace.
            self._reading = asyncio.get_running_loop().create_task(self._read(client, key, parse), context=Context())
        reading = self._reading
        left = None if patience is None else max(0.0, self._began_at + patience - monotonic())
        with suppress(TimeoutError):
            async with lag_tolerant_timeout(left):
                await asyncio.wait({reading})
        if reading.done() and reading.cancelled():
            # By somebody who cancels all there is; whoever still asks is not meant.
            await self.refresh(client, key, parse, patience)
        elif not reading.done() and not self._has_answer:
            message = f"reading {key} takes longer than {patience} s"
            raise TimeoutError(message)

    async def _read(self, client: Redis, key: str, parse: _Parser) -> None:
        try:
            self.value, self.error = parse(await client.get(key)), None
        except Exception as error:  # noqa: BLE001 - raised by whoever asks
            self.error = error.with_traceback(None)
            error.__context__ = None
        self._has_answer = True
        # That this process closed its pool, or uses it in the wrong loop, says nothing about the next time.
        self.checked_at = -inf if isinstance(self.error, MonitoredRedisError) else monotonic()


def _key(type_: str, component: str) -> str:
    if ":" in type_:
        # It would be read as another type, whose component's name begins with the rest.
        message = f"the type of a component must not contain ':': {type_!r}"
        raise ValueError(message)
    return f"config:{type_}:{component}"


def _checked(key: str, value: _Value) -> bytes | str:
    text = value or "{}"
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    message = f"{key} does not hold a JSON object"
    raise ValueError(message)


def _truth(value: _Value) -> bool:
    text = value.decode(errors="replace") if isinstance(value, bytes) else value or ""
    return text.strip().lower() not in {"", "0", "no", "false"}
