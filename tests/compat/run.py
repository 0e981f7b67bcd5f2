"""Run the own tests of libraries that take a ``redis.asyncio.Redis``, once with redis-py's client and once with ours.

``nox -s compat`` runs it for each library, in a virtual environment of its own: the library as it is published, with
what it requires, but redis-py 8.1, whatever it pins. Its tests are taken from its sdist; for the libraries whose sdists
hold none, ``calls_of_<library>.py`` makes the calls that they make. The client gets in by ``replacing.py``. No code of
these libraries is kept here.

It fails if a test fails with our client that passes with redis-py's, three times in a row since some of them measure
time, or if redis-py's passes fewer than are expected, which would mean that nothing was compared. No test had to be
left out: those that replace private methods of redis-py (four of arq's) fail on redis-py 8.1 itself.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from aioredis_monitored.testing import RedisServer

HERE = Path(__file__).parent
_FURTHER_RUNS = 2


@dataclass
class Library:
    """What is run of a library.

    Attributes:
        least: How many tests redis-py's client must pass.
        paths: Its tests, in its sdist; none if ours stand for them.
        arguments: Further arguments of pytest; ``{url}`` is the server's.
        stand_ins: What is copied to its tests, by the file's name there.
    """

    least: int
    paths: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    stand_ins: dict[str, str] = field(default_factory=dict)


LIBRARIES = {
    "aiogram": Library(220, ("tests/test_fsm",), ("--redis", "{url}/0")),
    "arq": Library(160, ("tests",)),
    "bullmq": Library(36),
    "litestar": Library(45),
    "saq": Library(100, ("tests",), stand_ins={"tests/helpers.py": "saq_helpers.py"}),
    "starsessions": Library(9),
}


def sdist_of(name: str, directory: Path) -> Path:
    """Unpack the sdist of the version that is installed; without the package, so that the installed one is tested."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--dest", directory, f"{name}=={version(name)}"], check=True)  # noqa: S603 - pip
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(directory, filter="data")
    (root,) = (path for path in directory.iterdir() if path.is_dir())
    shutil.rmtree(root / name)
    return root


def outcomes_of(library: Library, tests: list[str], root: Path, server: RedisServer, client: str) -> dict[str, str]:
    """Run the tests with one of the clients, and return the outcome of each by its name."""
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
    # What suites leave open at their end, and call although redis-py has renamed it, is as it is with either client.
    warnings = ["DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning"]
    arguments += [f"-Wignore::{warning}" for warning in warnings]
    plugins = ["-p", "replacing", "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "60", *plugins, *arguments, *tests]
    subprocess.run(command, cwd=root, env=environment, check=False)  # noqa: S603 - pytest
    return json.loads(written.read_text()) if written.exists() else {}


def compare(name: str, only: list[str]) -> bool:
    """Run a library's tests with both clients; return whether ours is as good."""
    library = LIBRARIES[name]
    with tempfile.TemporaryDirectory() as directory, RedisServer() as server:
        root, tests = Path(directory), [f"calls_of_{name}.py"]
        if library.paths:
            root, tests = sdist_of(name, root), list(library.paths)
        else:
            # Elsewhere than the settings of our own tests.
            shutil.copy(HERE / tests[0], root)
        for place, source in library.stand_ins.items():
            shutil.copy(HERE / "stand_ins" / source, root / place)
        theirs, ours = (outcomes_of(library, [*tests, *only], root, server, client) for client in ("redis-py", "ours"))
        passed = [test for test, outcome in theirs.items() if outcome == "passed"]
        worse = [test for test in passed if ours.get(test) != "passed"]
        for _ in range(_FURTHER_RUNS):
            if worse:
                print(f"{name}: once more: {', '.join(worse)}", flush=True)
                ours |= outcomes_of(library, worse, root, server, "ours")
                worse = [test for test in passed if ours.get(test) != "passed"]
    for test in worse:
        print(f"{name}: passes with redis-py's client, and not with ours: {test}")
    print(f"{name} {version(name)} on redis-py {version('redis')}: {len(passed)} tests pass with redis-py's client")
    print(f"{len(passed) - len(worse)} passed, {len(worse)} failed")
    return not worse and (bool(only) or len(passed) >= library.least)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a library's tests with redis-py's client and with ours.")
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("only", nargs="*", help="further arguments of pytest, such as -k NAME")
    asked, further = parser.parse_known_args()
    sys.exit(0 if compare(asked.library, [*asked.only, *further]) else 1)
