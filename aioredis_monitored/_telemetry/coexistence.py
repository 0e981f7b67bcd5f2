"""Other tools beside this package: those that replace redis-py's methods, and redis-py's own metrics."""

from collections.abc import Awaitable, Callable, Coroutine
from types import FunctionType
from typing import Any, TypeVar, cast

from redis.asyncio import Redis, client
from redis.asyncio.client import Pipeline
from redis.observability.config import MetricGroup
from redis.observability.providers import get_observability_instance

from aioredis_monitored._telemetry.guard import log_warning

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def _original(method: Method) -> Method | None:
    # Replacements pretend to be what they replace; these two they cannot feign.
    is_own = type(method) is FunctionType and method.__globals__ is vars(client)
    return method if is_own else None


class PatchPoint:
    """A method of redis-py's that others replace.

    One that was replaced before this was imported is unknown, so that calls go through it even when it is back; that is
    slower, but never wrong.

    Args:
        cls: Redis-py's class.
        name: The method's name.

    Attributes:
        own: Redis-py's own; what is not this one any more has been replaced.
    """

    def __init__(self, cls: type[Redis], name: str) -> None:
        self._cls = cls
        self._name = name
        self.original = _original(getattr(cls, name))

    def replacement(self) -> Callable[..., Awaitable[Any]] | None:
        """What stands in its place now, if anything does."""
        method = getattr(self._cls, self._name)
        return None if method is self.original else method


EXECUTE_COMMAND = PatchPoint(Redis, "execute_command")
EXECUTE = PatchPoint(Pipeline, "execute")
EXECUTE_IMMEDIATELY = PatchPoint(Pipeline, "immediate_execute_command")


async def call_patched(
    method: Callable[..., Awaitable[Any]], caller: Redis, call: Coroutine[Any, Any, T], /, *args: Any, **options: Any
) -> T:
    """Await a call from within a method of redis-py, so that whoever has replaced that method notices it.

    Args:
        method: The method, as it is now.
        caller: The client, or the pipeline.
        call: What is to be done in place of what redis-py would do.
        args: Those of the method.
        options: Its keyword arguments.
    """
    try:
        return cast("T", await method(_StandIn(caller, call), *args, **options))
    finally:
        # Of an empty pipeline, or if the method was replaced by one that answers itself, it is never awaited.
        call.close()


class _StandIn:
    """What redis-py's methods take for the client and for its connection; whatever else it is asked, the client tells.

    They send nothing themselves: all of them put that into the hands of the connection's retry policy.
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
        # A hook may ask what it is.
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
    """The database of a call whose point is ours to record: redis-py's recorder fails on it, and keeps that to itself.

    redis-py's methods make text of it, and its recorder makes text of that; only the latter raises.
    """

    def __str__(self) -> str:
        return _Unspeakable()


class _Unspeakable(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise NotImplementedError


_warned: list[str] = []
_NATIVE_METRICS_WARNING = (
    "redis-py's own command metrics are on; they leave out the clients of this package, which records the same"
)


def warn_native_metrics() -> None:
    """Say, once, that redis-py's own metrics of commands are on and stay silent for our clients."""
    manager = get_observability_instance().get_provider_manager()
    if _warned or manager is None or not manager.config.is_enabled():
        return
    if MetricGroup.COMMAND in manager.config.metric_groups:
        _warned.append(_NATIVE_METRICS_WARNING)
        log_warning(_NATIVE_METRICS_WARNING)
