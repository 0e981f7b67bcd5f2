"""Decorators that pass a connection as a function's first argument, for as long as the function runs."""

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
    """A decorator that fills the connection's parameter of a function or a method, and hides it."""

    @overload
    def __call__(self, function: Callable[Concatenate[MonitoredRedisConnection, P], T], /) -> Callable[P, T]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[S, MonitoredRedisConnection, P], T], /
    ) -> Callable[Concatenate[S, P], T]: ...


@asynccontextmanager
async def _context_manager() -> AsyncIterator[None]:
    """Show what contextlib makes of a function: all such functions share the code object of this one."""
    yield


def injector(checkout: Checkout) -> Injector:
    """Return a decorator whose functions check out a connection for each call.

    Args:
        checkout: Gives the connection, for as long as the function runs.

    Raises:
        TypeError: When decorating: the function cannot be decorated, or has no parameter for the connection.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if iscoroutinefunction(function):
            wrapper = _inject_coroutine(function, checkout)
        elif isasyncgenfunction(function):
            wrapper = _inject_generator(function, checkout)
        elif getattr(function, "__code__", None) is _context_manager.__code__:
            wrapper = _inject_context_manager(function, checkout)
        else:
            message = (
                f"{function!r} must be a coroutine function, async generator function or @asynccontextmanager function"
            )
            raise TypeError(message)
        # Frameworks read it to decide what to pass; functools.wraps alone would show them the connection.
        wrapper.__signature__ = _without_connection(function)  # type: ignore[attr-defined]
        return wrapper

    return cast("Injector", decorate)


def _inject_coroutine(function: Callable[..., Any], checkout: Checkout) -> Callable[..., Any]:
    index = _connection_index(function)

    @wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        async with checkout() as connection:
            return await function(*args[:index], connection, *args[index:], **kwargs)

    return coroutine


def _inject_context_manager(function: Callable[..., Any], checkout: Checkout) -> Callable[..., Any]:
    index = _connection_index(function)

    @wraps(function)
    @asynccontextmanager
    async def context_manager(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with checkout() as connection, function(*args[:index], connection, *args[index:], **kwargs) as value:
            yield value

    return context_manager


def _inject_generator(function: Callable[..., Any], checkout: Checkout) -> Callable[..., Any]:
    index = _connection_index(function)

    @wraps(function)
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with checkout() as connection:
            inner: AsyncGenerator[Any, Any] = function(*args[:index], connection, *args[index:], **kwargs)
            # As "yield from" does, which async generators lack: pass on what is sent or thrown in.
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
                except BaseException as error:  # noqa: BLE001 - the inner generator may handle it
                    step = inner.athrow(error)

    return generator


def _connection_index(function: Callable[..., Any]) -> int:
    """Return how many arguments precede the connection: one of a method, known by the name of its first parameter."""
    first = next(iter(signature(function).parameters), None)
    return 1 if first in {"self", "cls"} else 0


def _without_connection(function: Callable[..., Any]) -> Signature:
    original = signature(function)
    parameters = list(original.parameters.values())
    index = _connection_index(function)
    kind = parameters[index].kind if len(parameters) > index else None
    if kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
        del parameters[index]
    elif kind is not Parameter.VAR_POSITIONAL:
        message = f"{function!r} has no parameter for the connection"
        raise TypeError(message)
    return original.replace(parameters=parameters)
