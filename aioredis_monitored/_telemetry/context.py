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
PARENT_OPERATION: Final = context.create_key("aioredis_monitored.whole")

# Its tokens know where they were made; those of a runtime context need not be of contextvars.
_place: Final = contextvars.ContextVar[None]("aioredis_monitored.place")


class AttachedContext:
    """A context that is current from now on until ``detach``, which may be called in any task.

    What one task has made current, no other can undo: a generator's block may be left by the task that closes the
    generator, or by the garbage collector. OpenTelemetry logs an error with a traceback then.

    Args:
        new: The context.
    """

    __slots__ = ("_before", "_new", "_place", "_token")

    def __init__(self, new: Context) -> None:
        self._before = context.get_current()
        self._new = new
        self._place = _place.set(None)
        self._token = context.attach(new)

    def detach(self) -> None:
        """Make current again what was before.

        In another task only if it has inherited this context; the task that has attached it keeps it.
        """
        try:
            _place.reset(self._place)
        except ValueError:
            if context.get_current() is self._new:
                context.attach(self._before)
        else:
            context.detach(self._token)


def without_span() -> contextvars.Context:
    """A copy of the current context without its span, for what goes on when that has long ended."""
    copied = contextvars.copy_context()
    copied.run(lambda: context.attach(trace.set_span_in_context(trace.INVALID_SPAN)))
    return copied


def is_suppressed(here: Context) -> bool:
    """Whether instrumentations are asked to be silent."""
    return bool(here.get(_SUPPRESSED) or here.get(_SUPPRESSED_TOO))


@contextmanager
def nested_in(whole: object) -> Iterator[None]:
    """Calls in this context are points, and parts of another record, which learns what they learn if it can."""
    attached = AttachedContext(context.set_value(PARENT_OPERATION, whole))
    try:
        yield
    finally:
        attached.detach()


@contextmanager
def suppressed() -> Iterator[None]:
    """Calls in this context are neither spans nor points."""
    attached = AttachedContext(context.set_value(_SUPPRESSED_TOO, True))
    try:
        yield
    finally:
        attached.detach()
