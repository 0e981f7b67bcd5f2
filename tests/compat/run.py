"""Run the tests of libraries that take a ``redis.asyncio.Redis``, once with redis-py's client and once with ours.

``nox -s compat`` runs it for each library in a separate virtual environment, with the published library and its
requirements, but redis-py 8.1, whatever it pins. The tests come from the library's sdist; where the sdist has none,
``calls_of_<library>.py`` makes the library's calls. ``replacing.py`` substitutes the client. No code of these libraries
is kept here.

redis-py's own tests of its cluster client run in the same way, on a cluster. ``differences_<library>.toml`` lists those
that fail with ours, with the reason, and those that do so ``at_times``.

It fails if a test that passes with redis-py's client fails with ours, three times in a row as some tests measure time,
and is not listed; if a listed one passes; or if fewer tests than expected pass with redis-py's, since nothing would
then be compared. No test is left out: those of the six libraries that replace private methods of redis-py (four of
arq's) fail on redis-py 8.1 itself.
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

from aioredis_monitored.testing import ClusterServers, RedisServer

HERE = Path(__file__).parent
_FURTHER_RUNS = 2


@dataclass
class Library:
    """One library, and how to run its tests.

    Attributes:
        least: The minimum of tests that redis-py's client must pass.
        paths: The tests in the sdist; empty if ours replace them.
        arguments: Further arguments for pytest; ``{url}`` is the server's URL.
        stand_ins: Files to copy to the tests, by their names there.
        distribution: The name under which it is published; empty if that is its name here.
        is_on_cluster: Whether its tests need a cluster.
    """

    least: int
    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    stand_ins: dict[str, str] = field(default_factory=dict)
    distribution: str = ""
    is_on_cluster: bool = False


LIBRARIES = {
    "aiogram": Library(220, ("tests/test_fsm",), ("--redis", "{url}/0")),
    "arq": Library(160, ("tests",)),
    "bullmq": Library(36),
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
}


def sdist_of(name: str, directory: Path) -> Path:
    """Unpack the installed version's sdist, without the package, so that the tests import the installed one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", directory, f"{name}=={version(name)}"], check=True)  # noqa: S603 - pip
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    (root,) = (path for path in directory.iterdir() if path.is_dir())
    shutil.rmtree(root / name)
    return root


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


def outcomes_of(library: Library, tests: list[str], root: Path, server: RedisServer, client: str) -> dict[str, str]:
    """Run the tests with one of the clients; return each test's outcome by name."""
    written = root / f"outcomes of {client}.json"
    environment = {
        **os.environ,
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
    return json.loads(written.read_text()) if written.exists() else {}


def compare(name: str, only: list[str]) -> bool:
    """Run a library's tests with both clients; return whether ours does as well."""
    library = LIBRARIES[name]
    published = library.distribution or name
    differences = differences_of(name)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        if library.is_on_cluster:
            server: RedisServer = stack.enter_context(ClusterServers()).nodes[0]
        else:
            server = stack.enter_context(RedisServer())
        root, tests = Path(directory), [f"calls_of_{name}.py"]
        if library.paths:
            root, tests = sdist_of(published, root), list(library.paths)
        else:
            # In another directory than the settings of our tests.
            shutil.copy(HERE / tests[0], root)
        for place, source in library.stand_ins.items():
            shutil.copy(HERE / "stand_ins" / source, root / place)
        theirs, ours = (outcomes_of(library, [*tests, *only], root, server, client) for client in ("redis-py", "ours"))
        passed = [test for test, outcome in theirs.items() if outcome == "passed"]
        compared = [test for test in passed if without_parameters(test) not in differences]
        worse = [test for test in compared if ours.get(test) != "passed"]
        for _ in range(_FURTHER_RUNS):
            if worse:
                print(f"{name}: once more: {', '.join(worse)}", flush=True)
                ours |= outcomes_of(library, worse, root, server, "ours")
                worse = [test for test in compared if ours.get(test) != "passed"]
    for test in worse:
        print(f"{name}: passes with redis-py's client, and not with ours: {test}")
    failing = {without_parameters(test) for test in passed if ours.get(test) != "passed"}
    # A test that does not run with redis-py's client here says nothing.
    certain = {test for test, is_certain in differences.items() if is_certain}
    better = sorted(certain & {without_parameters(test) for test in passed} - failing)
    for test in better:
        print(f"{name}: is listed as different, and passes with our client: {test}")
    print(
        f"{name} {version(published)} on redis-py {version('redis')}: {len(passed)} tests pass with redis-py's client"
    )
    listed = len(differences.keys() & failing)
    print(f"{listed} differ as listed, {len(worse)} others failed, {len(better)} should not be listed")
    return not (worse or better) and len(passed) >= (1 if only else library.least)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a library's tests with redis-py's client and with ours.")
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("only", nargs="*", help="further arguments of pytest, such as -k NAME")
    asked, further = parser.parse_known_args()
    sys.exit(0 if compare(asked.library, [*asked.only, *further]) else 1)
