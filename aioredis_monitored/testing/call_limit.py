"""What the marker ``redis_calls`` of the pytest plugin does: it fails a test that makes too many calls."""

from collections.abc import Generator
from typing import Any, Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from aioredis_monitored._telemetry import semconv
from aioredis_monitored._telemetry.instruments import SCOPE
from aioredis_monitored.testing.capture import Recording, TelemetryCapture, line_of

_FIXTURE: Final = "redis_telemetry"


def check(item: pytest.Item, marker: pytest.Mark) -> None:
    """Fail a test whose marker cannot be used, or which makes no calls that are counted."""
    most = marker.kwargs.get("max")
    if marker.args or set(marker.kwargs) != {"max"} or not isinstance(most, int) or isinstance(most, bool) or most < 0:
        arguments = [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
        given = f"@pytest.mark.redis_calls({', '.join(arguments)})"
        pytest.fail(f"{given}: it takes a whole number, such as @pytest.mark.redis_calls(max=3)", pytrace=False)
    # One of a class or a module is also about tests that make no calls.
    if marker in item.own_markers and _FIXTURE not in getattr(item, "fixturenames", ()):
        pytest.fail(
            "@pytest.mark.redis_calls counts the calls on redis_pool, and on pools that are made with the providers of "
            "redis_telemetry: the test must have one of these fixtures, or redis_client, as a parameter",
            pytrace=False,
        )


def enforced(item: pytest.Item, marker: pytest.Mark) -> Generator[None, Any, None]:
    """Run a test as a hook wrapper, and fail it if it passes with more calls than its marker allows."""
    capture: TelemetryCapture | None = getattr(item, "funcargs", {}).get(_FIXTURE)
    if capture is None:
        yield
        return
    with capture.block() as block:
        outcome = yield
    most = marker.kwargs["max"]
    if outcome.excinfo is None and (problem := _problem(block, most)):
        try:
            pytest.fail(problem, pytrace=False)
        except pytest.fail.Exception as failure:
            outcome.force_exception(failure)


def _problem(block: Recording, most: int) -> str | None:
    # Not points: those of polls, of locks and of waits for messages, depend on time.
    calls = [span for span in block.spans if _is_call(span)]
    if len(calls) <= most:
        return None
    listed = "\n".join(line_of(span, (semconv.DB_QUERY_TEXT, semconv.ERROR_TYPE)) for span in calls)
    number = f"{len(calls)} Redis call{'' if len(calls) == 1 else 's'}"
    return f"{number}, but @pytest.mark.redis_calls(max={most}):\n{listed}"


def _is_call(span: ReadableSpan) -> bool:
    is_ours = span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE
    # What sends nothing, such as an empty pipeline, is none.
    is_empty = (span.attributes or {}).get(semconv.DB_OPERATION_BATCH_SIZE) == 0
    return is_ours and span.kind is not SpanKind.CONSUMER and not is_empty
