"""The connection as a function's first argument: decorators for all that can hold one while it runs."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from inspect import Parameter, Signature, isasyncgenfunction, iscoroutinefunction, signature
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from aioredis_monitored.client.client import MonitoredRedisConnection

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T", bound=Awaitable[Any] | AsyncIterator[Any] | AbstractAsyncContextManager[Any])

Checkout = Callable[[], AbstractAsyncContextManager[MonitoredRedisConnection]]


class Injector(Protocol):
    """A decorator that takes the connection out of a function's or a method's parameters."""

    @overload
    def __call__(self, function: Callable[Concatenate[MonitoredRedisConnection, P], T], /) -> Callable[P, T]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[S, MonitoredRedisConnection, P], T], /
    ) -> Callable[Concatenate[S, P], T]: ...


@asynccontextmanager
async def _context_manager() -> AsyncIterator[None]:
    """Shows what contextlib makes of a function: every such function runs this one's code."""
    yield


def injector(lease: Checkout) -> Injector:
    """The decorator whose functions borrow a connection from ``lease`` for each call.

    Raises:
        TypeError: When decorating: the function cannot be decorated, or has no parameter for the connection.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(function):
            wrapper = _inject_coroutine(function, lease)
        elif isasyncgenfunction(function):
            wrapper = _inject_generator(function, lease)
        elif getattr(function, "__code__", None) is _context_manager.__code__:
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


def _inject_coroutine(function: Callable[..., Any], lease: Checkout) -> Callable[..., Any]:
    place = _connection_place(function)

    @wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        async with lease() as connection:
            return await function(*args[:place], connection, *args[place:], **kwargs)

    return coroutine


def _inject_context_manager(function: Callable[..., Any], lease: Checkout) -> Callable[..., Any]:
    place = _connection_place(function)

    @wraps(function)
    @asynccontextmanager
    async def context_manager(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with lease() as connection, function(*args[:place], connection, *args[place:], **kwargs) as value:
            yield value

    return context_manager


def _inject_generator(function: Callable[..., Any], lease: Checkout) -> Callable[..., Any]:
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
    kind = parameters[place].kind if len(parameters) > place else None
    if kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
        del parameters[place]
    elif kind is not Parameter.VAR_POSITIONAL:
        message = f"{function!r} has no parameter for the connection"
        raise TypeError(message)
    return original.replace(parameters=parameters)
