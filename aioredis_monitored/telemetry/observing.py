"""Calls that somebody records: we, or whoever has replaced redis-py's methods."""

from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any, TypeVar

from opentelemetry.trace import Span
from redis.asyncio import Redis

from aioredis_monitored.foreign import Seam, led_through
from aioredis_monitored.telemetry.operation import Operation
from aioredis_monitored.telemetry.request import RequestView
from aioredis_monitored.telemetry.telemetry import Telemetry

T = TypeVar("T")


def begun(
    telemetry: Telemetry, args: Sequence[Any], parent: Span | None, request: RequestView | None = None
) -> Operation | None:
    """The record of one command, if anybody listens."""
    if telemetry.counts_keys:
        telemetry.hot_keys.see(args)
    if not telemetry.is_heard():
        return None
    return Operation(telemetry, telemetry.command_call(args), args, parent, request)


async def recorded(
    operation: Operation | None,
    calling: Coroutine[Any, Any, T],
    telemetry: Telemetry,
    seam: Seam,
    caller: Redis,
    /,
    *args: Any,
    **options: Any,
) -> T:
    """Await a call, recorded by us, and by whoever has replaced redis-py's method if we make no span of it.

    Args:
        operation: The record, if anybody listens.
        calling: What is to be awaited.
        telemetry: Where it is recorded.
        seam: Redis-py's method in whose place this is done.
        caller: The client, or the pipeline.
        args: Those of the method.
        options: Its keyword arguments.
    """
    observed = calling if operation is None else operation.observe(calling)
    replacement = None if telemetry.is_traced else seam.replacement()
    if replacement is None:
        return await observed
    try:
        result = await led_through(replacement, caller, observed, *args, **options)
    finally:
        calling.close()
    if operation is not None:
        # Unless that is done, as in most cases.
        operation.end(perf_counter(), result)
    return result
