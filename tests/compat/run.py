"""Run the tests of libraries that take a ``redis.asyncio.Redis``, once with redis-py's client and once with ours.

``nox -s compat`` runs it for each library in a separate virtual environment, with the published library and its
requirements, but redis-py 8.1, whatever it pins. The tests come from the library's sdist; where it has none that use
Redis, or few, ``calls_of_<library>.py`` makes the library's calls. ``replacing.py`` substitutes the client. No code of
these libraries is kept here.

redis-py's own tests of its cluster client run in the same way, on a cluster. ``differences_<library>.toml`` lists those
that fail with ours, with the reason, and those that do so ``at_times``.

It fails if a test that passes with redis-py's client fails with ours, three times in a row as some tests measure time,
and is not listed; if a listed one passes; or if fewer tests than expected pass with redis-py's, since nothing would
then be compared. No test that needs Redis is left out: those that replace private methods of redis-py (four of arq's)
fail on redis-py 8.1 itself.

The documentation says of each library in ``works_inside.toml`` how to hand our client in, which is done here, how to
install both, which is done as well, and what was found, which is in ``results.json``. The run fails if that file says
other than what is found, also when a newer version of the library is published: ``--write`` notes it. No other test
depends on the file's figures, so that a library's release fails no commit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Self

import installing
import results

from aioredis_monitored.testing import ClusterServers, RedisServer

HERE = Path(__file__).parent
WORKS_INSIDE = tomllib.loads((HERE / "works_inside.toml").read_text("utf-8"))
_FURTHER_RUNS = 2


@dataclass
class Library:
    """One library, and how to run its tests.

    Attributes:
        least: The minimum of tests that redis-py's client must pass.
        paths: The tests in the sdist; empty if ours replace them.
        arguments: Further arguments for pytest; ``{url}`` is the server's URL.
        stand_ins: Files to copy to the tests, by their names there.
        written: What the tests say, such as ``localhost:6379``, and what they have to say: ``{server.host}`` and so on.
        environment: Further environment variables.
        distribution: The name under which it is published; empty if that is its name here.
        is_on_cluster: Whether its tests need a cluster.
    """

    least: int
    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    stand_ins: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    distribution: str = ""
    is_on_cluster: bool = False


# Without the settings of the sdist, which ask for measuring coverage or for plugins.
_UNSET = ("-o", "addopts=")

LIBRARIES = {
    "aiocache": Library(
        164,
        ("tests/acceptance", "tests/ut/backends/test_redis.py"),
        (*_UNSET, "-m", "not memcached", "-k", "redis"),
        stand_ins={"conftest.py": "aiocache_conftest.py"},
    ),
    "aiogram": Library(220, ("tests/test_fsm",), ("--redis", "{url}/0")),
    "aiohttp-session": Library(
        16,
        ("tests/test_redis_storage.py",),
        _UNSET,
        stand_ins={"tests/conftest.py": "aiohttp_session_conftest.py"},
    ),
    "arq": Library(160, ("tests",)),
    "bullmq": Library(36),
    "cashews": Library(
        400,
        ("tests",),
        (*_UNSET, "-k", "redis or clientside or client_side"),
        stand_ins={"tests/conftest.py": "cashews_conftest.py"},
    ),
    "channels-redis": Library(
        43,
        ("tests/test_core.py", "tests/test_pubsub.py"),
        stand_ins={"tests/conftest.py": "channels_redis_conftest.py"},
        written={"localhost:6379": "{server.host}:{server.port}"},
    ),
    "faststream": Library(22),
    "limits": Library(
        36,
        ("tests/aio",),
        (*_UNSET, "-m", "redis", "-W", "ignore::pytest.PytestUnknownMarkWarning"),
        {"tests/conftest.py": "limits_conftest.py"},
        {"localhost:7379": "{server.host}:{server.port}", "/tmp/limits.redis.sock": "{server.unix_socket_path}"},  # noqa: S108 - written there
        {"ASYNC_REDIS_IMPLEMENTATION": "redispy"},
    ),
    "litestar": Library(45),
    "redis-py-cluster": Library(
        200,
        ("tests/test_asyncio/test_cluster.py",),
        ("--redis-url", "{url}", "--redis-cluster-nodes", "6"),
        distribution="redis",
        is_on_cluster=True,
    ),
    "saq": Library(100, ("tests",), stand_ins={"tests/helpers.py": "saq_helpers.py"}),
    "starsessions": Library(9),
    "taskiq-redis": Library(20),
}


def sdist_of(name: str, directory: Path) -> Path:
    """Unpack the installed version's sdist, without the package, so that the tests import the installed one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name]
    subprocess.run([*command, "--dest", directory, f"{name}=={version(name)}"], check=True)  # noqa: S603 - pip
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    (root,) = (path for path in directory.iterdir() if path.is_dir())
    shutil.rmtree(root / name.replace("-", "_"), ignore_errors=True)
    return root


def calls_of(name: str) -> Path:
    """Return the path of the tests that make a library's calls, which may not exist."""
    return HERE / f"calls_of_{name.replace('-', '_')}.py"


def tests_of(name: str, directory: Path, server: RedisServer) -> tuple[Path, list[str]]:
    """Put a library's tests into a directory; return where they run, and their paths there."""
    library = LIBRARIES[name]
    # In another directory than the settings of our tests.
    root = sdist_of(library.distribution or name, directory) if library.paths else directory
    tests = list(library.paths)
    calls = calls_of(name)
    if calls.exists():
        shutil.copy(calls, root)
        tests.append(calls.name)
    for place, source in library.stand_ins.items():
        shutil.copy(HERE / "stand_ins" / source, root / place)
    for path in root.glob("tests/**/*.py"):
        text = path.read_text("utf-8")
        for written, here in library.written.items():
            text = text.replace(written, here.format(server=server))
        path.write_text(text, "utf-8")
    return root, tests


def differences_of(name: str) -> dict[str, bool]:
    """Return the tests that are listed as failing with our client, without their parameters, and whether they must."""
    path = HERE / f"differences_{name}.toml"
    if not path.exists():
        return {}
    listed = tomllib.loads(path.read_text("utf-8"))["difference"]
    return {test: not each.get("at_times", False) for each in listed for test in each["tests"]}


def without_parameters(test: str) -> str:
    """Return a test's class and name, as the lists of differences have them."""
    return test.partition("[")[0].partition("::")[2]


@dataclass
class Outcomes:
    """What a run of pytest has found.

    Attributes:
        by_test: The outcome of each test, by its name: ``passed``, ``skipped`` or ``failed``.
        sending: The tests that have sent something to a server with redis-py's client.
    """

    by_test: dict[str, str] = field(default_factory=dict)
    sending: set[str] = field(default_factory=set)

    def add(self, later: Self) -> None:
        """Replace the outcomes of tests that have run again."""
        self.by_test |= later.by_test
        self.sending |= later.sending

    def with_outcome(self, outcome: str) -> list[str]:
        """Return the tests that have this outcome."""
        return [test for test, found in self.by_test.items() if found == outcome]


def outcomes_of(library: Library, tests: list[str], root: Path, server: RedisServer, client: str) -> Outcomes:
    """Run the tests with one of the clients."""
    written = root / f"outcomes of {client}.json"
    # A run that ends early has no outcomes, and not those of the run before.
    written.unlink(missing_ok=True)
    environment = {
        **os.environ,
        **library.environment,
        "PYTHONPATH": os.pathsep.join([*map(str, (HERE, HERE / "stand_ins", root)), os.environ.get("PYTHONPATH", "")]),
        "COMPAT_CLIENT": client,
        "COMPAT_OUTCOMES": str(written),
        "COMPAT_URL": server.url,
        "COMPAT_HOST": server.host,
        "COMPAT_PORT": str(server.port),
    }
    arguments = [argument.format(url=server.url) for argument in library.arguments]
    # Open resources at the end of a suite, and calls of deprecated methods, do not depend on the client.
    warnings = ["DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning"]
    arguments += [f"-Wignore::{warning}" for warning in warnings]
    plugins = ["-p", "replacing", "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    # pytest parses the source that it shows. On Python 3.11 that fails if a finalizer parses as well, and ends pytest.
    options = ["-q", "--timeout", "60", "--tb", "line"]
    command = [sys.executable, "-m", "pytest", *options, *plugins, *arguments, *tests]
    subprocess.run(command, cwd=root, env=environment, check=False)  # noqa: S603 - pytest
    if not written.exists():
        return Outcomes()
    found = json.loads(written.read_text("utf-8"))
    return Outcomes(found["outcomes"], set(found["sending"]))


@dataclass(frozen=True)
class Comparison:
    """How a library's tests went.

    Attributes:
        compared: The number of tests that pass with redis-py's client, and use it.
        passed: The number of these that pass with ours.
        is_as_listed: Whether exactly those fail with ours that are listed as different.
    """

    compared: int
    passed: int
    is_as_listed: bool


def compare(name: str, only: list[str], server: RedisServer) -> Comparison:
    """Run a library's tests with both clients."""
    library = LIBRARIES[name]
    differences = differences_of(name)
    with tempfile.TemporaryDirectory() as directory:
        root, tests = tests_of(name, Path(directory), server)
        theirs, ours = (outcomes_of(library, [*tests, *only], root, server, client) for client in ("redis-py", "ours"))
        # A test that fails at times must not be counted at times.
        for _ in range(_FURTHER_RUNS):
            if failing := theirs.with_outcome("failed"):
                theirs.add(outcomes_of(library, failing, root, server, "redis-py"))
        passed = set(theirs.with_outcome("passed"))
        compared = sorted(test for test in passed if without_parameters(test) not in differences)
        worse = [test for test in compared if ours.by_test.get(test) != "passed"]
        for _ in range(_FURTHER_RUNS):
            if worse:
                print(f"{name}: once more: {', '.join(worse)}", flush=True)
                ours.add(outcomes_of(library, worse, root, server, "ours"))
                worse = [test for test in compared if ours.by_test.get(test) != "passed"]
    for test in worse:
        print(f"{name}: passes with redis-py's client, and not with ours: {test}")
    failing = passed - set(ours.with_outcome("passed"))
    failing_names = set(map(without_parameters, failing))
    # A test that does not run with redis-py's client here says nothing.
    certain = {test for test, is_certain in differences.items() if is_certain}
    better = sorted(certain & set(map(without_parameters, passed)) - failing_names)
    for test in better:
        print(f"{name}: is listed as different, and passes with our client: {test}")
    # A test that differs at times would be counted at times.
    counted = {test for test in passed & theirs.sending if differences.get(without_parameters(test), True)}
    print(f"{len(passed)} tests pass with redis-py's client, of which {len(counted)} use it")
    listed = len(differences.keys() & failing_names)
    print(f"{listed} differ as listed, {len(worse)} others failed, {len(better)} should not be listed", flush=True)
    is_enough = len(passed) >= (1 if only else library.least)
    return Comparison(len(counted), len(counted - failing), is_enough and not worse and not better)


def is_handed_in(name: str, server: RedisServer) -> bool:
    """Hand both clients in as the documentation shows; return whether the library uses them as that says."""
    command = [sys.executable, HERE / "handing_in.py", name]
    environment = {**os.environ, "COMPAT_URL": server.url}
    runs = [
        subprocess.run(command, env={**environment, "COMPAT_CLIENT": client}, check=False)  # noqa: S603 - our own
        for client in ("ours", "redis-py")
    ]
    return all(run.returncode == 0 for run in runs)


def is_installed(name: str) -> bool:
    """Install both packages as the documentation says; return whether that gives the newest ones."""
    noted = WORKS_INSIDE[name]
    wanted = {package: version(package) for package in (name, "redis")}
    found = installing.versions_installed(noted["install"], list(wanted), noted["code"])
    overridden = installing.version_with_override(noted["requires"])
    if found != wanted or overridden != version(name):
        print(f"{name}: {noted['install']} gives {found}, the override {overridden}, and the newest are {wanted}")
    return found == wanted and overridden == version(name)


def is_as_noted(name: str, compared: Comparison, *, writes: bool) -> bool:
    """Return whether the file says what was found, or write that."""
    found = results.Result(
        version=version(name),
        redis=version("redis"),
        has_own=bool(LIBRARIES[name].paths),
        has_calls=calls_of(name).exists(),
        compared=compared.compared,
        passed=compared.passed,
        resolved=installing.version_with_ours(WORKS_INSIDE[name]["requires"]),
    )
    if writes:
        results.write(name, found)
    differing = results.differing(name, found)
    for line in differing:
        print(f'{line}; nox -s "compat({name})" -- --write notes it')
    return not differing


def check(name: str, only: list[str], *, writes: bool) -> bool:
    """Compare both clients in a library, and what the documentation says of it; return whether all is well."""
    library = LIBRARIES[name]
    print(f"{name} {version(library.distribution or name)} on redis-py {version('redis')}", flush=True)
    with ExitStack() as stack:
        if library.is_on_cluster:
            server: RedisServer = stack.enter_context(ClusterServers()).nodes[0]
        else:
            server = stack.enter_context(RedisServer())
        compared = compare(name, only, server)
        if only or name not in WORKS_INSIDE:
            return compared.is_as_listed
        # All are asked, so that one run says all that is wrong.
        is_well = [compared.is_as_listed, is_handed_in(name, server), is_installed(name)]
    return all(is_well) and is_as_noted(name, compared, writes=writes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a library's tests with redis-py's client and with ours.")
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--write", action="store_true", help="note in results.json what is found")
    parser.add_argument("only", nargs="*", help="further arguments of pytest, such as -k NAME; only tests run then")
    asked, further = parser.parse_known_args()
    sys.exit(0 if check(asked.library, [*asked.only, *further], writes=asked.write) else 1)
