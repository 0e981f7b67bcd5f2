"""What the OpenTelemetry context says about recording a call: it is suppressed, or it is part of another operation."""

import contextvars
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace
from opentelemetry.context import Context

# The API has no public name for the first key; OpenTelemetry's own instrumentations also set the second one.
_SUPPRESSED: Final = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_SUPPRESSED_TOO: Final = "suppress_instrumentation"
# The operation that calls are part of; they get no span.
PARENT_OPERATION: Final = context.create_key("aioredis_monitored.parent_operation")

# Its tokens know the context they were made in; those of OpenTelemetry's runtime context may be of another kind.
_place: Final = contextvars.ContextVar[None]("aioredis_monitored.place")


def _context_getter() -> Callable[[], Context]:
    variable = getattr(getattr(context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return variable.get if isinstance(variable, contextvars.ContextVar) else context.get_current


# The API's function of this name, without the three calls that it takes to the variable of its runtime context.
get_current: Final = _context_getter()


class AttachedContext:
    """A context that is current until ``detach``, which may be called in any task.

    A task cannot undo what another task has attached, and OpenTelemetry logs an error with a traceback for the attempt.
    But a generator's block may be left by the task that closes the generator, or by the garbage collector.

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
        """Make the previous context current again.

        In another task that happens only if the task has inherited this context; the task that attached it keeps it.
        """
        try:
            _place.reset(self._place)
        except ValueError:
            if context.get_current() is self._new:
                context.attach(self._before)
        else:
            context.detach(self._token)


def without_span() -> contextvars.Context:
    """Return a copy of the current context without its span, for work that outlives the span."""
    copied = contextvars.copy_context()
    copied.run(lambda: context.attach(trace.set_span_in_context(trace.INVALID_SPAN)))
    return copied


def is_suppressed(here: Context) -> bool:
    """Return whether instrumentation is suppressed in this context."""
    return bool(here.get(_SUPPRESSED) or here.get(_SUPPRESSED_TOO))


@contextmanager
def nested_in(parent: object) -> Iterator[None]:
    """Record calls in the block as points without spans, and merge what they learn into the parent operation.

    Args:
        parent: An ``Operation``; any other object learns nothing.
    """
    attached = AttachedContext(context.set_value(PARENT_OPERATION, parent))
    try:
        yield
    finally:
        attached.detach()


@contextmanager
def suppressed() -> Iterator[None]:
    """Record neither spans nor points of calls in the block."""
    attached = AttachedContext(context.set_value(_SUPPRESSED_TOO, True))
    try:
        yield
    finally:
        attached.detach()
