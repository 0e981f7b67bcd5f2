"""Named components: a pool for each, looked up at every call, and the decorator that injects a connection."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import wraps
from inspect import Parameter, Signature, isasyncgenfunction, iscoroutinefunction, signature, unwrap
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from aioredis_monitored.client import MonitoredRedisConnection
from aioredis_monitored.configstore import ConfigStore
from aioredis_monitored.errors import ConfigurationError, NoComponentsError
from aioredis_monitored.pool import MonitoredConnectionPool, pool_from_config

_logger = logging.getLogger("aioredis_monitored.components")

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T", bound=Awaitable[Any] | AsyncIterator[Any] | AbstractAsyncContextManager[Any])

_Lease = Callable[[], AbstractAsyncContextManager[MonitoredRedisConnection]]

# A loop, not a context: what an ASGI lifespan sets in a ContextVar is not seen by the requests.
_in_use: WeakKeyDictionary[asyncio.AbstractEventLoop, list["Components"]] = WeakKeyDictionary()


class Injector(Protocol):
    """A decorator that takes the connection out of a function's or a method's parameters."""

    @overload
    def __call__(self, function: Callable[Concatenate[MonitoredRedisConnection, P], T], /) -> Callable[P, T]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[S, MonitoredRedisConnection, P], T], /
    ) -> Callable[Concatenate[S, P], T]: ...


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
        self._troubled: set[str] = set()

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
        return _injector(lambda: self._lease(component, wait))

    def use(self) -> None:
        """Put it in use for the running event loop, until ``aclose``."""
        _in_use.setdefault(asyncio.get_running_loop(), []).append(self)

    async def aclose(self) -> None:
        """Put it out of use and close its pools, those of running calls too."""
        stack = _in_use.get(asyncio.get_running_loop(), [])
        if self in stack:
            stack.remove(self)
        pools, self._pools = self._pools, {}
        async with AsyncExitStack() as closing:
            for pool in pools.values():
                closing.push_async_callback(pool.aclose)

    async def __aenter__(self) -> Self:
        self.use()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def _lease(self, component: str, wait: float) -> AsyncIterator[MonitoredRedisConnection]:
        try:
            config = await self._look_up(component, wait)
            # From here to the pool's entry nothing awaits: concurrent first calls make one pool, and no call is left
            # with one that another call has just replaced and closed.
            pool, replaced = self._pool_for(component, config)
        except (RedisError, ValueError) as error:
            pool, replaced = self._last_good(component, error), None
        async with pool as connection:
            if replaced is not None:
                await replaced.retire()
            yield connection

    async def _look_up(self, component: str, wait: float) -> Mapping[str, Any]:
        prefix = f"redis.{component}."
        if isinstance(self._source, ConfigStore):
            stored = await self._source.get("redis", component, wait)
            return {prefix + key: value for key, value in stored.items()}
        return {key: value for key, value in self._source.items() if key.startswith(prefix)}

    def _pool_for(self, component: str, config: Mapping[str, Any]) -> tuple["_ComponentPool", "_ComponentPool | None"]:
        current, replaced = self._pools.get(component), None
        if current is None or current.config != config:
            pool = pool_from_config(config, f"redis.{component}.", **self._pool_arguments)
            current, replaced = _ComponentPool(pool, config, component), current
            self._pools[component] = current
        self._troubled.discard(component)
        return current, replaced

    def _last_good(self, component: str, error: Exception) -> "_ComponentPool":
        current = self._pools.get(component)
        if current is None:
            message = f"no usable configuration, and never had one: {error}"
            raise ConfigurationError((f"component {component!r}", message)) from error
        if component not in self._troubled:
            self._troubled.add(component)
            _logger.warning("component %r goes on with its last good configuration: %s", component, error)
        return current


class _ComponentPool:
    """A pool and how many calls hold it, so that a replaced one closes when the last of them is done."""

    def __init__(self, pool: MonitoredConnectionPool, config: Mapping[str, Any], component: str) -> None:
        self.config = config
        self._pool = pool
        self._connection = MonitoredRedisConnection(component, connection_pool=pool)
        self._holders = 0
        self._retired = False

    async def __aenter__(self) -> MonitoredRedisConnection:
        self._holders += 1
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        self._holders -= 1
        await self._close_when_drained()

    async def retire(self) -> None:
        self._retired = True
        await self._close_when_drained()

    async def aclose(self) -> None:
        await self._pool.aclose()

    async def _close_when_drained(self) -> None:
        if self._retired and not self._holders:
            try:
                await self.aclose()
            except RedisError as error:
                # The call that happens to be here has nothing to do with the old server.
                _logger.warning("closing a replaced pool failed: %s", error)


def redis_connection(component: str, wait: float = 1) -> Injector:
    """``Components.redis_connection`` of the ``Components`` in use in the event loop, looked for at each call.

    Raises:
        TypeError: When decorating: the function is none of those that can be decorated.
        NoComponentsError: When called: no ``Components`` is in use.
        ConfigurationError: When called: there is no usable configuration, and never was.
    """
    return _injector(lambda: _components_in_use()._lease(component, wait))  # noqa: SLF001 - the same module


def _components_in_use() -> Components:
    stack = _in_use.get(asyncio.get_running_loop())
    if not stack:
        message = (
            "no Components is in use in this event loop: wrap the application in 'async with Components(source):', "
            "or call Components(source).use() when it starts"
        )
        raise NoComponentsError(message)
    return stack[-1]


def _injector(lease: _Lease) -> Injector:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(function):
            wrapper = _inject_coroutine(function, lease)
        elif isasyncgenfunction(function):
            wrapper = _inject_generator(function, lease)
        elif callable(function) and isasyncgenfunction(unwrap(function)):
            wrapper = _inject_context_manager(function, lease)
        else:
            message = (
                f"{function!r} is no coroutine function, async generator function or @asynccontextmanager function"
            )
            raise TypeError(message)
        # Frameworks read it to tell what to pass; functools.wraps alone would show them the connection.
        wrapper.__signature__ = _without_connection(function)  # type: ignore[attr-defined]
        return wrapper

    return cast("Injector", decorate)


def _inject_coroutine(function: Callable[..., Any], lease: _Lease) -> Callable[..., Any]:
    place = _connection_place(function)

    @wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        async with lease() as connection:
            return await function(*args[:place], connection, *args[place:], **kwargs)

    return coroutine


def _inject_context_manager(function: Callable[..., Any], lease: _Lease) -> Callable[..., Any]:
    place = _connection_place(function)

    @wraps(function)
    @asynccontextmanager
    async def context_manager(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with lease() as connection, function(*args[:place], connection, *args[place:], **kwargs) as value:
            yield value

    return context_manager


def _inject_generator(function: Callable[..., Any], lease: _Lease) -> Callable[..., Any]:
    place = _connection_place(function)

    @wraps(function)
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with lease() as connection:
            inner: AsyncGenerator[Any, Any] = function(*args[:place], connection, *args[place:], **kwargs)
            # What "yield from" does and async generators lack: what is sent or thrown in reaches the inner one.
            step = anext(inner)
            while True:
                try:
                    value = await step
                except StopAsyncIteration:
                    return
                try:
                    step = inner.asend((yield value))
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - thrown in by the caller, meant for the inner one
                    step = inner.athrow(error)

    return generator


def _connection_place(function: Callable[..., Any]) -> int:
    """How many arguments go before the connection: one for a method, told by the name of its first parameter."""
    first = next(iter(signature(function).parameters), None)
    return 1 if first in {"self", "cls"} else 0


def _without_connection(function: Callable[..., Any]) -> Signature:
    original = signature(function)
    parameters = list(original.parameters.values())
    place = _connection_place(function)
    if len(parameters) <= place or parameters[place].kind is not Parameter.POSITIONAL_OR_KEYWORD:
        message = f"{function!r} has no parameter for the connection"
        raise TypeError(message)
    del parameters[place]
    return original.replace(parameters=parameters)
