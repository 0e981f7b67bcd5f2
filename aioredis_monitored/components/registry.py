"""Named components: a pool for each, whose configuration is looked up at every call."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.injection import Injector, injector
from aioredis_monitored.components.store import ConfigStore
from aioredis_monitored.errors import ConfigurationError, NoComponentsError
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config

_logger = logging.getLogger("aioredis_monitored.components")

_PATIENCE_SECONDS = 0.25

# A loop, not a context: what an ASGI lifespan sets in a ContextVar is not seen by the requests.
_in_use: WeakKeyDictionary[asyncio.AbstractEventLoop, list["Components"]] = WeakKeyDictionary()


class Components:
    """The pools of an application's components, made from configuration that may change while it runs.

    ``async with`` puts it in use for the running event loop, which is what the module's ``redis_connection`` looks
    for, and closes every pool at the end. ``use()`` and ``aclose()`` are the same in two calls.

    Args:
        source: Where configurations are: a ``ConfigStore`` (component ``logs`` at ``config:redis:logs``, keys as
            ``url``), or a dict with keys as ``redis.logs.url``.
        pool_arguments: Arguments of ``MonitoredConnectionPool`` for every pool, such as ``tracer_provider``.
    """

    def __init__(self, source: ConfigStore | Mapping[str, Any], **pool_arguments: Any) -> None:
        self._source = source
        self._pool_arguments = pool_arguments
        self._pools: dict[str, _ComponentPool] = {}
        self._degraded: set[str] = set()
        self._retired: set[_ComponentPool] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def redis_connection(self, component: str, wait: float = 1) -> Injector:
        """Decorate a coroutine function, async generator function or ``@asynccontextmanager`` function, or a method.

        Each call looks the component's configuration up and passes a connection as the first argument, after ``self``
        or ``cls`` if that is the name of the first parameter.

        Args:
            component: The component's name.
            wait: Seconds for which an earlier look-up will do; default 1.

        Raises:
            TypeError: When decorating: the function is none of these.
            ConfigurationError: When called: there is no usable configuration, and never was.
        """
        return injector(lambda: self._checkout(component, wait))

    def use(self) -> None:
        """Put it in use for the running event loop, until ``aclose``."""
        self._closed = False
        stack = _in_use.setdefault(asyncio.get_running_loop(), [])
        if self not in stack:
            stack.append(self)

    async def aclose(self) -> None:
        """Put it out of use and close its pools, those of running calls too; calls that follow raise an error."""
        self._closed = True
        stack = _in_use.get(asyncio.get_running_loop(), [])
        if self in stack:
            stack.remove(self)
        pools = [*self._pools.values(), *self._retired]
        self._pools.clear()
        self._retired.clear()
        with cleaning_up("closing components"):
            async with AsyncExitStack() as closing:
                for pool in pools:
                    closing.push_async_callback(pool.aclose)
                if self._closing:
                    await asyncio.wait(self._closing)

    async def __aenter__(self) -> Self:
        self.use()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _checkout(self, component: str, wait: float) -> AsyncIterator[MonitoredRedisConnection]:
        try:
            config = await self._look_up(component, wait)
            # From here to the pool's entry nothing awaits: concurrent first calls make one pool, and no call is left
            # with one that another call has just replaced and closed.
            pool = self._pool_for(component, config)
        except (RedisError, ValueError, TimeoutError) as error:
            pool = self._last_good(component, error)
        with pool as connection:
            yield connection

    async def _look_up(self, component: str, wait: float) -> Mapping[str, Any]:
        prefix = f"redis.{component}."
        if isinstance(self._source, ConfigStore):
            # Whoever has a configuration to go on with does not wait for a server that hangs.
            patience = _PATIENCE_SECONDS if component in self._pools else None
            stored = await self._source.get("redis", component, wait, patience=patience)
            return {prefix + key: value for key, value in stored.items()}
        return {key: value for key, value in self._source.items() if key.startswith(prefix)}

    def _pool_for(self, component: str, config: Mapping[str, Any]) -> "_ComponentPool":
        self._check_open()
        current = self._pools.get(component)
        if current is None or current.config != config:
            pool = pool_from_config(config, f"redis.{component}.", **self._pool_arguments)
            if current is not None:
                self._retired.add(current)
                current.retire(self._close_drained)
            current = self._pools[component] = _ComponentPool(pool, config, component)
        self._degraded.discard(component)
        return current

    def _last_good(self, component: str, error: Exception) -> "_ComponentPool":
        self._check_open()
        current = self._pools.get(component)
        if current is None:
            message = f"no usable configuration, and never had one: {error}"
            raise ConfigurationError((f"component {component!r}", message)) from error
        if component not in self._degraded:
            self._degraded.add(component)
            _logger.warning("component %r goes on with its last good configuration: %s", component, error)
        return current

    def _close_drained(self, pool: "_ComponentPool") -> None:
        """Close a replaced pool, in the background: no call waits for a server that it has nothing to do with."""
        if pool in self._retired:
            self._retired.remove(pool)
            task = asyncio.get_running_loop().create_task(_close(pool), context=Context())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _check_open(self) -> None:
        if self._closed:
            raise NoComponentsError("these Components are closed: put them in use again with use() or 'async with'")


class _ComponentPool:
    """A pool and how many calls hold it, so that a replaced one closes when the last of them is done."""

    def __init__(self, pool: MonitoredConnectionPool, config: Mapping[str, Any], component: str) -> None:
        self.config = config
        self._pool = pool
        self._connection = MonitoredRedisConnection(component, connection_pool=pool)
        self._holders = 0
        self._drained: Callable[[_ComponentPool], None] | None = None

    def __enter__(self) -> MonitoredRedisConnection:
        self._holders += 1
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._holders -= 1
        self._tell_when_drained()

    def retire(self, drained: Callable[["_ComponentPool"], None]) -> None:
        """Call ``drained`` as soon as no call holds it any more, which may be now."""
        self._drained = drained
        self._tell_when_drained()

    async def aclose(self) -> None:
        await self._pool.aclose()

    def _tell_when_drained(self) -> None:
        if self._drained is not None and not self._holders:
            self._drained(self)


async def _close(pool: _ComponentPool) -> None:
    try:
        await pool.aclose()
    except RedisError as error:
        _logger.warning("closing a replaced pool failed: %s", error)


def redis_connection(component: str, wait: float = 1) -> Injector:
    """``Components.redis_connection`` of the ``Components`` in use in the event loop, looked for at each call.

    Raises:
        TypeError: When decorating: the function is none of those that can be decorated.
        NoComponentsError: When called: no ``Components`` is in use.
        ConfigurationError: When called: there is no usable configuration, and never was.
    """
    return injector(lambda: _components_in_use()._checkout(component, wait))  # noqa: SLF001 - the same module


def _components_in_use() -> Components:
    stack = _in_use.get(asyncio.get_running_loop())
    if not stack:
        message = (
            "no Components is in use in this event loop: wrap the application in 'async with Components(source):', "
            "or call Components(source).use() when it starts"
        )
        raise NoComponentsError(message)
    return stack[-1]
