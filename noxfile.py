"""The sessions that CI and developers run; ``nox -l`` lists them."""

import json
import os
import shutil
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

PYPROJECT = nox.project.load_toml("pyproject.toml")
# The Python that runs nox is always included, so that "nox -s tests" never passes without running a test.
PYTHONS = sorted({*nox.project.python_versions(PYPROJECT), "{}.{}".format(*sys.version_info)})

# Requirements of the libraries and of their tests; see tests/compat/run.py.
COMPAT = {
    "aiocache": ["aiocache[redis]", "marshmallow", "pytest-mock"],
    "aiogram": ["aiogram[redis]", "aresponses", "motor", "pycryptodomex", "pymongo", "pytest-mock", "pytz"],
    "aiohttp-session": ["aiohttp-session[aioredis]", "pytest-aiohttp", "pytest-mock"],
    "arq": ["arq[watch]", "dirty-equals", "msgpack", "pydantic", "pytest-mock", "pytz", "tzdata"],
    "bullmq": ["bullmq"],
    "cashews": ["cashews[redis]", "fastapi", "httpx", "hypothesis"],
    "channels-redis": ["channels-redis", "cryptography", "async-timeout"],
    "faststream": ["faststream[redis]"],
    "limits": ["limits[redis]", "pytest-lazy-fixtures", "pytest-benchmark", "pytest-mock", "valkey"],
    "litestar": ["litestar[redis]"],
    "redis-py-cluster": ["coverage", "packaging"],
    "saq": ["saq[redis,web]", "httpx", "psycopg[binary,pool]", "starlette", "time-machine"],
    "starsessions": ["starsessions[redis]", "httpx", "itsdangerous"],
    "taskiq-redis": ["taskiq-redis"],
}

# More workers than cores, as tests mostly wait; each worker has its own server, and idle ones take tests from others.
IN_PARALLEL = ["-n", str(min(3 * (os.cpu_count() or 1), 12)), "--dist", "worksteal"]

nox.needs_version = ">=2025.11"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "typing"]


def install(session: nox.Session, package: list[str], *groups: str) -> None:
    """Install the package and the dependency groups of pyproject.toml."""
    session.install(*package, *nox.project.dependency_groups(PYPROJECT, *groups))


def tests_requirements(*names: str) -> list[str]:
    """Return the tests' requirements with these names."""
    requirements = map(Requirement, nox.project.dependency_groups(PYPROJECT, "tests"))
    return [str(each) for each in requirements if each.name in names]


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest, with bytecode written: its workers and the programs that tests start import the same modules."""
    session.run("pytest", *arguments, env={"PYTHONDONTWRITEBYTECODE": None})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests except slow ones, and the coverage gate; further arguments go to pytest and replace both."""
    install(session, ["-e", ".[demo]"], "tests")
    if session.posargs:
        run_pytest(session, *session.posargs)
    else:
        run_pytest(session, *IN_PARALLEL, "-m", "not slow", "--cov", "--cov-report=", "--cov-fail-under=0")
        session.run("coverage", "report")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: storms of cancellations and kills, soak, chaos, long waits, Prometheus, benchmarks.

    Further arguments go to pytest.
    """
    install(session, ["-e", ".[demo]"], "tests")
    if session.posargs:
        run_pytest(session, "-m", "slow", *session.posargs)
        return
    # Six of them at a time may each take minutes, where two cores have more to do.
    soak = "tests/faults/test_soak.py"
    run_pytest(session, *IN_PARALLEL, "-m", "slow", "--timeout", "600", f"--ignore={soak}")
    # Beside others, its faults would outlast a subscription's timeout.
    run_pytest(session, "-m", "slow", soak)


@nox.session
def build(session: nox.Session) -> None:
    """Run the tests against the built wheel, in a directory from which the working copy cannot be imported."""
    session.install("build", "twine")
    directory = Path(session.create_tmp()).resolve()
    shutil.rmtree(directory)
    session.run("python", "-m", "build", "--outdir", str(directory))
    # A README that the package index cannot render is an error.
    session.run("twine", "check", "--strict", *map(str, sorted(directory.iterdir())))
    (wheel,) = directory.glob("*.whl")
    install(session, [f"aioredis_monitored[demo] @ {wheel.as_uri()}", "--force-reinstall"], "tests")
    for name in ("tests", "benchmarks", "docs"):
        shutil.copytree(name, directory / name)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "pyproject.toml"):
        shutil.copy(name, directory)
    session.chdir(directory)
    session.run("pytest", *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, spelling and the direction of imports."""
    install(session, ["-e", "."], "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the package with mypy, and its public types and the documents' examples with mypy and pyright, strictly."""
    install(session, ["-e", ".[demo]"], "typing")
    # The packages that the documents' examples import.
    frameworks = ("aiohttp", "django", "fastapi", "litestar", "quart", "sanic")
    clients = ("httpx2", "opentelemetry-instrumentation-redis", "pytest", "sanic-testing")
    session.install(*tests_requirements(*frameworks, *clients))
    examples = Path(session.create_tmp()).resolve() / "examples"
    shutil.rmtree(examples, ignore_errors=True)
    examples.mkdir()
    session.run("python", "tests/support/example_modules.py", str(examples))
    # Examples define functions that the reader's application calls, and call what frameworks' types do not tell.
    lenient = {"reportUnusedFunction": False, "reportUnknownMemberType": False}
    strict = {"include": ["."], "typeCheckingMode": "strict", **lenient}
    (examples / "pyrightconfig.json").write_text(json.dumps(strict), "utf-8")
    session.run("mypy")
    session.run("mypy", "tests/typing")
    session.run("pyright")
    session.run("mypy", str(examples))
    session.run("pyright", "--project", str(examples))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning or a broken reference is an error."""
    install(session, ["-e", "."], "docs")
    session.run("sphinx-build", "-EnW", "--keep-going", "-b", "html", "docs", f"{session.create_tmp()}/html")


@nox.session
def redispy_next(session: nox.Session) -> None:
    """Test the undocumented parts of redis-py that the package uses, on redis-py's newest version or pre-release.

    A version that pyproject.toml admits must pass. Users do not get other versions, such as a pre-release or the next
    major version, and a release elsewhere must not make a commit fail: with ``-- --report``, as in CI, the failure of
    such a version is only shown.
    """
    requirements = tests_requirements("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "trustme")
    session.install("-e", ".[demo]", *requirements)
    # Also a version that pyproject.toml does not admit; pip then prints a warning.
    session.install("--pre", "--upgrade", "redis[hiredis]")
    version = session.run(
        "python", "-c", "import importlib.metadata as m; print(m.version('redis'), end='')", silent=True
    )
    (supported,) = (each for each in map(Requirement, PYPROJECT["project"]["dependencies"]) if each.name == "redis")
    is_supported = supported.specifier.contains(str(version))
    session.log(f"redis-py {version}, which pyproject.toml {'admits' if is_supported else 'does not admit'}")
    codes = [0] if is_supported or "--report" not in session.posargs else range(256)
    session.run("pytest", "-rf", "tests/integration/test_redispy_contract.py", success_codes=codes)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill, disconnect and freeze a queue's consumers, 220 times in all; ``-- --help`` lists the options."""
    session.install("-e", ".[demo]")
    session.run("python", "tests/support/chaos.py", *session.posargs)


@nox.session
def chaos_cluster(session: nox.Session) -> None:
    """Move slots, and kill, freeze, replace, add and remove nodes of a cluster under load.

    Then the same to a queue, and failovers of servers under Sentinel, whose figures pytest prints. Further arguments go
    to the first program, and leave the others out: ``-- --help``.
    """
    install(session, ["-e", ".[demo]"], "tests")
    session.run("python", "-m", "support.cluster_chaos", *session.posargs, env={"PYTHONPATH": "tests"})
    if not session.posargs:
        session.run("python", "-m", "support.cluster_queue_chaos", env={"PYTHONPATH": "tests"})
        run_pytest(session, "-m", "slow", "-rP", "--timeout", "900", "tests/faults/test_sentinel.py")


@nox.session
def soak(session: nox.Session) -> None:
    """Run 200 tasks with the client through 15 minutes of faults, on asyncio and uvloop; ``-- --help`` for less."""
    session.install("-e", ".[demo]", "uvloop>=0.22")
    session.run("python", "tests/support/soak.py", *session.posargs)


@nox.session
@nox.parametrize("library", sorted(COMPAT), ids=sorted(COMPAT))
def compat(session: nox.Session, library: str) -> None:
    """Run a library's tests with redis-py's client and with this package's; all take about half an hour."""
    # arq's tests use the event_loop fixture of older versions. pip fetches the sdists.
    session.install("--upgrade", "pip", "uv", "pytest<9", "pytest-asyncio<1", "pytest-timeout", *COMPAT[library])
    # Last, as some libraries require an older redis-py.
    session.install("-e", ".[demo]")
    session.run("python", "tests/compat/run.py", library, *session.posargs)


@nox.session(python=PYTHONS)
def conform(session: nox.Session) -> None:
    """Compare what is recorded directly with what the API records; ``-- --help`` lists the options.

    On the newest SDK, 5,000 combinations take some ten minutes on two cores.
    """
    install(session, ["-e", ".[demo]"], "tests")
    session.run("python", "-m", "support.conform", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def mutants(session: nox.Session) -> None:
    """Show that ``conform`` finds faults in what records directly, each in up to 2,400 combinations, or ``-- 100``."""
    install(session, ["-e", ".[demo]"], "tests")
    session.run("python", "-m", "support.mutants", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
@nox.parametrize("sdk", ["1.39.0", "1.40.0", "1.41.1", "1.42.1", "1.43.0", "1.44.0", "1.45.0", "1.45.1"])
def conform_public(session: nox.Session, sdk: str) -> None:
    """Show that versions of the SDK that are not known go the public way."""
    install(session, ["-e", ".[demo]"], "tests")
    session.install(f"opentelemetry-sdk=={sdk}", "opentelemetry-exporter-otlp-proto-common")
    session.run("python", "-m", "support.conform", "100", "--public", *session.posargs, env={"PYTHONPATH": "tests"})


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo."""
    session.install("-e", ".[demo]")
    session.run("python", "-m", "aioredis_monitored", "demo", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """Test the demo's page in headless Chromium, of Debian; ``-- --screenshot`` draws the tutorial's picture."""
    chromium = shutil.which("chromium")
    if chromium is None:
        session.error("there is no chromium on PATH: Debian has it in its package of that name")
    screenshot = "docs/_static/demo.png" if "--screenshot" in session.posargs else ""
    install(session, ["-e", ".[demo]", "playwright"], "tests")
    session.run(
        "pytest",
        "tests/browser/check_page.py",
        env={"CHROMIUM": chromium, "AIOREDIS_MONITORED_SCREENSHOT": screenshot},
    )


@nox.session
def commands(session: nox.Session) -> None:
    """Generate the command table from the embedded server."""
    session.install("-e", ".[demo]")
    session.run("python", "tests/command_table.py")


@nox.session(python=PYTHONS)
def digests(session: nox.Session) -> None:
    """Note that the newest SDK is known, for this Python; run ``conform`` before and after."""
    session.install("-e", ".")
    session.run("python", "tests/sdk_digests.py")
    # Without docstrings, which are constants, functions have other bytecode.
    session.run("python", "-OO", "tests/sdk_digests.py")


@nox.session
def stubs(session: nox.Session) -> None:
    """Generate the types of a pipeline's commands from redis-py's signatures."""
    session.install("-e", ".")
    session.run("python", "tests/pipeline_stub.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the client's speed beside redis-py, other clients and the limit; ``-- --quick`` for a first look."""
    install(session, [".[demo]"], "bench")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def bench_queue(session: nox.Session) -> None:
    """Measure the message queue beside BLPOP and other libraries' workers; ``-- --quick`` for a first look."""
    session.install(".[demo]")
    session.run("python", "benchmarks/queue_run.py", *session.posargs)


@nox.session
def bench_cluster(session: nox.Session) -> None:
    """Measure the client on clusters beside redis-py's and other cluster clients; ``-- --quick`` for a first look."""
    install(session, [".[demo]"], "bench")
    session.run("python", "benchmarks/cluster_run.py", *session.posargs)
