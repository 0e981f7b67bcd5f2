"""Whether the caller's context asks instrumentations to be silent."""

from typing import Final

from opentelemetry import context
from opentelemetry.context import Context

# The API has no public name for it, and OpenTelemetry's own instrumentations write a second one beside it.
SUPPRESSED: Final = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
SUPPRESSED_TOO: Final = "suppress_instrumentation"


def is_suppressed(here: Context) -> bool:
    """Whether instrumentations are asked to be silent."""
    return bool(here.get(SUPPRESSED) or here.get(SUPPRESSED_TOO))
