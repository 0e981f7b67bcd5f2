"""What the marker ``redis_calls`` of the pytest plugin does: it fails a test that makes too many calls."""

from collections.abc import Generator
from typing import Any, Final

import pytest

from aioredis_monitored._telemetry import semconv
from aioredis_monitored.testing.capture import Recording, TelemetryCapture

_FIXTURE: Final = "redis_telemetry"


def check(item: pytest.Item, marker: pytest.Mark) -> None:
    """Fail a test whose marker cannot be used, or which makes no calls that are counted."""
    most = marker.kwargs.get("max")
    if marker.args or set(marker.kwargs) != {"max"} or not isinstance(most, int) or isinstance(most, bool) or most < 0:
        arguments = [*map(repr, marker.args), *(f"{name}={value!r}" for name, value in marker.kwargs.items())]
        given = f"@pytest.mark.redis_calls({', '.join(arguments)})"
        pytest.fail(f"{given}: it takes a whole number, such as @pytest.mark.redis_calls(max=3)", pytrace=False)
    if _FIXTURE not in getattr(item, "fixturenames", ()):
        pytest.fail(
            "@pytest.mark.redis_calls counts the calls on redis_pool, and on pools that are made with the providers of "
            "redis_telemetry: the test must have one of these fixtures, or redis_client, as a parameter",
            pytrace=False,
        )


def enforced(item: pytest.Item, marker: pytest.Mark) -> Generator[None, Any, None]:
    """Run a test as a hook wrapper, and fail it if it passes with more calls than its marker allows."""
    capture: TelemetryCapture = getattr(item, "funcargs", {})[_FIXTURE]
    with capture.block() as block:
        outcome = yield
    most = marker.kwargs["max"]
    if outcome.excinfo is None and (problem := _problem(block, most)):
        try:
            pytest.fail(problem, pytrace=False)
        except pytest.fail.Exception as failure:
            outcome.force_exception(failure)


def _problem(block: Recording, most: int) -> str | None:
    calls = round(sum(block.tally(semconv.DB_CLIENT_OPERATION_DURATION).values()))
    if calls <= most:
        return None
    listed = block.tree(semconv.DB_QUERY_TEXT, semconv.ERROR_TYPE)
    return f"{calls} Redis calls, but @pytest.mark.redis_calls(max={most}):\n{listed}"
