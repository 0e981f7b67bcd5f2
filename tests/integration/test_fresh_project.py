"""A project that has installed the package with its extra ``testing``, and nothing else."""

import os
import subprocess
import venv

import pytest
from support.example_modules import ROOT, blocks

TESTS = ROOT / "tests" / "typing" / "plugin.py"
PAGE = ROOT / "docs" / "guides" / "testing.md"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def project(tmp_path):
    """Make an environment with the package, and a project with tests; return what runs a module in it."""
    venv.create(tmp_path / "venv", with_pip=True)
    directory = tmp_path / "project"
    directory.mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "PYTEST"))}

    def run(*arguments):
        command = [tmp_path / "venv" / "bin" / "python", "-m", *arguments]
        done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
        assert 0 == done.returncode, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(*requirements):
        run("pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", *requirements)

    # Where the wheel is tested, it lies in the place of the sources.
    wheels = list(ROOT.glob("*.whl"))
    install(f"aioredis_monitored[testing] @ {(wheels[0] if wheels else ROOT).as_uri()}")
    (directory / "test_cart.py").write_text(TESTS.read_text("utf-8"), "utf-8")
    return run, install, directory


def test_fresh_project_has_tests_that_pass_alone_in_parallel_and_under_mypy(project):
    run, install, directory = project
    count = TESTS.read_text("utf-8").count("\ndef test_")

    assert f"{count} passed in" in run("pytest", "-q", "-W", "error")

    install("pytest-xdist", "pytest-asyncio", "mypy")
    assert f"{count} passed in" in run("pytest", "-q", "-W", "error", "-p", "no:asyncio", "-n", "2")

    examples = [text for text in blocks(PAGE, "python") if "def test_" in text or "redis_config:" in text]
    (directory / "test_page.py").write_text("\n\n".join(examples), "utf-8")
    run("mypy", "--strict", ".")
    options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    examples_count = sum(text.count("def test_") for text in examples)
    assert f"{examples_count} passed in" in run("pytest", "-q", "-W", "error", *options, "test_page.py")
