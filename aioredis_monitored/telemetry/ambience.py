"""What the context of a call says about its record: to be silent, or that it is a part of another one."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace
from opentelemetry.context import Context

# The API has no public name for it, and OpenTelemetry's own instrumentations write a second one beside it.
_SUPPRESSED: Final = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_SUPPRESSED_TOO: Final = "suppress_instrumentation"
# What calls are a part of, for which they get no span of their own.
WHOLE: Final = context.create_key("aioredis_monitored.whole")


def spanless() -> contextvars.Context:
    """A copy of the current context without its span, for what goes on when that has long ended."""
    copied = contextvars.copy_context()
    copied.run(lambda: context.attach(trace.set_span_in_context(trace.INVALID_SPAN)))
    return copied


def is_suppressed(here: Context) -> bool:
    """Whether instrumentations are asked to be silent."""
    return bool(here.get(_SUPPRESSED) or here.get(_SUPPRESSED_TOO))


@contextmanager
def folded(whole: object) -> Iterator[None]:
    """Calls in this context are points, and parts of another record, which learns what they learn if it can."""
    token = context.attach(context.set_value(WHOLE, whole))
    try:
        yield
    finally:
        context.detach(token)


@contextmanager
def silence() -> Iterator[None]:
    """Calls in this context are neither spans nor points."""
    token = context.attach(context.set_value(_SUPPRESSED_TOO, True))
    try:
        yield
    finally:
        context.detach(token)
