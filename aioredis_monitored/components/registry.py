"""Named components: a pool for each, whose configuration is looked up at each call."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from aioredis_monitored._cancellation import cleaning_up
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.components.injection import Injector, injector
from aioredis_monitored.components.store import ConfigStore
from aioredis_monitored.errors import ConfigurationError, NoComponentsError
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config

_LOGGER: Final = logging.getLogger("aioredis_monitored.components")

# How long a call waits for a look-up before it goes on with the last good configuration.
_LOOK_UP_SECONDS: Final = 0.25

# By event loop and not in a ContextVar: what an ASGI lifespan sets there, requests do not see.
_in_use: WeakKeyDictionary[asyncio.AbstractEventLoop, list["Components"]] = WeakKeyDictionary()


class Components:
    """The pools of an application's components, made from configuration that may change while it runs.

    ``async with`` puts it in use for the running event loop, where the module's ``redis_connection`` finds it, and
    closes every pool at the end. ``use()`` and ``aclose()`` do the same in two calls.

    Args:
        source: Where the configurations are: a ``ConfigStore`` (component ``logs`` at ``config:redis:logs``, with keys
            such as ``url``), or a dict with keys such as ``redis.logs.url``.
        pool_arguments: Arguments of ``MonitoredConnectionPool`` for every pool, such as ``tracer_provider``.
    """

    def __init__(self, source: ConfigStore | Mapping[str, Any], **pool_arguments: Any) -> None:
        self._source = source
        self._pool_arguments = pool_arguments
        self._pools: dict[str, _ComponentPool] = {}
        self._degraded: set[str] = set()
        self._retired: set[_ComponentPool] = set()
        self._closing_tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def redis_connection(self, component: str, wait: float = 1) -> Injector:
        """Decorate a coroutine function, async generator function or ``@asynccontextmanager`` function, or a method.

        Each call looks up the component's configuration and passes a connection as the first argument, after ``self``
        or ``cls`` if that is the name of the first parameter.

        Args:
            component: The component's name.
            wait: Seconds for which an earlier look-up is used; default 1.

        Raises:
            TypeError: When decorating: the function is none of these.
            ConfigurationError: When called: the component has no usable configuration, and never had one.
        """
        return injector(lambda: self._checkout(component, wait))

    def use(self) -> None:
        """Put this in use for the running event loop, until ``aclose``."""
        self._is_closed = False
        stack = _in_use.setdefault(asyncio.get_running_loop(), [])
        if self not in stack:
            stack.append(self)

    async def aclose(self) -> None:
        """Put this out of use and close its pools, also under running calls; later calls raise NoComponentsError."""
        self._is_closed = True
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
                if self._closing_tasks:
                    await asyncio.wait(self._closing_tasks)

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
            # Without an await from here to entering the pool, concurrent first calls make one pool, and none gets a
            # pool that another call has replaced and closed.
            pool = self._pool_for(component, config)
        except (RedisError, ValueError, TimeoutError) as error:
            pool = self._last_good(component, error)
        with pool as connection:
            yield connection

    async def _look_up(self, component: str, wait: float) -> Mapping[str, Any]:
        prefix = f"redis.{component}."
        if isinstance(self._source, ConfigStore):
            # A component with a last good configuration does not wait for a server that hangs.
            patience = _LOOK_UP_SECONDS if component in self._pools else None
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
            _LOGGER.warning("component %r keeps its last good configuration: %s", component, error)
        return current

    def _close_drained(self, pool: "_ComponentPool") -> None:
        """Close a replaced pool in the background; no call waits for the server of an old configuration."""
        if pool in self._retired:
            self._retired.remove(pool)
            task = asyncio.get_running_loop().create_task(_close(pool), context=Context())
            self._closing_tasks.add(task)
            task.add_done_callback(self._closing_tasks.discard)

    def _check_open(self) -> None:
        if self._is_closed:
            raise NoComponentsError("these Components are closed: put them in use again with use() or 'async with'")


class _ComponentPool:
    """A pool and the number of calls that use it: a replaced pool closes when the last of them ends."""

    def __init__(self, pool: MonitoredConnectionPool, config: Mapping[str, Any], component: str) -> None:
        self.config = config
        self._pool = pool
        self._connection = MonitoredRedisConnection(component, connection_pool=pool)
        self._users = 0
        self._on_drained: Callable[[_ComponentPool], None] | None = None

    def __enter__(self) -> MonitoredRedisConnection:
        self._users += 1
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        self._notify_if_drained()

    def retire(self, on_drained: Callable[["_ComponentPool"], None]) -> None:
        """Call ``on_drained`` as soon as no call uses the pool, which may be now."""
        self._on_drained = on_drained
        self._notify_if_drained()

    async def aclose(self) -> None:
        await self._pool.aclose()

    def _notify_if_drained(self) -> None:
        if self._on_drained is not None and not self._users:
            self._on_drained(self)


async def _close(pool: _ComponentPool) -> None:
    try:
        await pool.aclose()
    except RedisError as error:
        _LOGGER.warning("closing a replaced pool failed: %s", error)


def redis_connection(component: str, wait: float = 1) -> Injector:
    """Decorate as ``Components.redis_connection``, with the ``Components`` in use in the event loop of each call.

    Args:
        component: The component's name.
        wait: Seconds for which an earlier look-up is used; default 1.

    Raises:
        TypeError: When decorating: the function is none of those that can be decorated.
        NoComponentsError: When called: no ``Components`` is in use.
        ConfigurationError: When called: the component has no usable configuration, and never had one.
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
