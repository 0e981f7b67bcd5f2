"""Other tools beside this package: those that replace redis-py's methods, and redis-py's own metrics."""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import FunctionType
from typing import Any, TypeVar, cast

from redis.asyncio import Redis, client
from redis.asyncio.client import Pipeline
from redis.observability.config import MetricGroup
from redis.observability.providers import get_observability_instance

from aioredis_monitored._telemetry.guard import log_safely

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def _original(method: Method) -> Method | None:
    # A replacement may imitate every attribute of a method but its type and its globals.
    is_original = type(method) is FunctionType and method.__globals__ is vars(client)
    return method if is_original else None


class PatchPoint:
    """A method of redis-py that other tools replace.

    If the method was replaced before this module was imported, its original is unknown, and calls go through the method
    even after it is restored: that is slower, but never wrong.

    Args:
        cls: The class of redis-py.
        name: The name of the method.

    Attributes:
        original: The method of redis-py; ``None`` if it is unknown.
    """

    def __init__(self, cls: type[Redis], name: str) -> None:
        self._cls = cls
        self._name = name
        self.original = _original(getattr(cls, name))

    def replacement(self) -> Callable[..., Awaitable[Any]] | None:
        """Return what has replaced the method; ``None`` if it is the original."""
        method = getattr(self._cls, self._name)
        return None if method is self.original else method


EXECUTE_COMMAND = PatchPoint(Redis, "execute_command")
EXECUTE = PatchPoint(Pipeline, "execute")
EXECUTE_IMMEDIATELY = PatchPoint(Pipeline, "immediate_execute_command")


async def call_patched(
    method: Callable[..., Awaitable[Any]], caller: Redis, call: Coroutine[Any, Any, T], /, *args: Any, **options: Any
) -> T:
    """Await a call from within a method of redis-py, so that the tool that has replaced the method observes the call.

    Args:
        method: The method that has replaced redis-py's.
        caller: The client, or the pipeline.
        call: What is awaited in place of redis-py's own work.
        args: The arguments of the method.
        options: Its keyword arguments.
    """
    try:
        return cast("T", await method(_StandIn(caller, call), *args, **options))
    finally:
        # It is never awaited if the pipeline is empty, or if the replacement answers itself.
        call.close()


class _StandIn:
    """Stands in for the client, its connection and its retry policy in redis-py's methods; the client has all else.

    These methods send nothing themselves: all of them pass that to ``call_with_retry`` of the retry policy.
    """

    single_connection_client = False
    scripts = ()

    def __init__(self, caller: Redis, call: Coroutine[Any, Any, Any]) -> None:
        self._caller = caller
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._caller, name)

    @property  # type: ignore[misc]  # typeshed lets it be set
    def __class__(self) -> Any:
        # A hook may check the class.
        return type(self._caller)

    @property
    def connection(self) -> "_StandIn":
        return self

    @property
    def retry(self) -> "_StandIn":
        return self

    @property
    def db(self) -> "_Unrecorded":
        return _Unrecorded()

    async def initialize(self) -> None:
        pass

    async def call_with_retry(self, *_args: Any, **_options: Any) -> Any:
        return await self._call

    async def reset(self) -> None:
        pass


class _Unrecorded:
    """A database number on which redis-py's own recorder fails, silently: the call's point is recorded here.

    redis-py's methods make text of it, and its recorder makes text of that text; only the latter raises.
    """

    def __str__(self) -> str:
        return _Unprintable()


class _Unprintable(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise NotImplementedError


_warned: list[str] = []
_NATIVE_METRICS_WARNING = (
    "redis-py's own command metrics are on; they leave out the clients of this package, which records the same"
)


def warn_native_metrics() -> None:
    """Log, once, that redis-py's own command metrics are enabled and leave out the clients of this package."""
    manager = get_observability_instance().get_provider_manager()
    if _warned or manager is None or not manager.config.is_enabled():
        return
    if MetricGroup.COMMAND in manager.config.metric_groups:
        _warned.append(_NATIVE_METRICS_WARNING)
        log_safely(logging.WARNING, _NATIVE_METRICS_WARNING)
