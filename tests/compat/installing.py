"""What happens if a library and this package are installed together; each question is answered by uv or pip, today."""

import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
_UV = (sys.executable, "-m", "uv")
OVERRIDE = "redis[hiredis]>=8.1,<9"


def _run(*command: str | Path, **options: Path) -> str:
    # The package under test must not be imported from the working copy.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, **options)  # noqa: S603 - uv, pip
    if done.returncode:
        message = f"{' '.join(map(str, command))} failed:\n{done.stderr}"
        raise RuntimeError(message)
    return done.stdout


def _pinned(text: str, name: str) -> str:
    """Return the version to which a list of requirements pins a name."""
    found = re.search(rf"^{re.escape(name)}==(\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def version_with_ours(requires: str) -> str:
    """Return the version of a library that a resolver takes if it is asked for the library and this package."""
    name = requires.partition("[")[0].replace("_", "-")
    python = "{}.{}".format(*sys.version_info)
    with tempfile.TemporaryDirectory() as directory:
        asked = Path(directory, "requirements.in")
        asked.write_text(f"{requires}\naioredis_monitored @ {PACKAGE.as_uri()}\n", "utf-8")
        compiling = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--no-annotate",
            "--python-version",
            python,
        ]
        return _pinned(_run(*compiling, asked), name)


def version_with_override(requires: str) -> str:
    """Return the version of a library that uv locks beside this package with the override."""
    name = requires.partition("[")[0].replace("_", "-")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(
            f"""
[project]
name = "service"
version = "0"
requires-python = ">=3.11"
dependencies = ["aioredis_monitored", "{requires}"]

[tool.uv]
override-dependencies = ["{OVERRIDE}"]

[tool.uv.sources]
aioredis_monitored = {{ path = "{PACKAGE}" }}
""",
            "utf-8",
        )
        _run(sys.executable, "-m", "uv", "lock", "--quiet", "--project", directory)
        exported = _run(
            sys.executable, "-m", "uv", "export", "--quiet", "--frozen", "--no-hashes", "--project", directory
        )
        return _pinned(exported, name)


def versions_installed(commands: list[str], names: list[str], code: str) -> dict[str, str]:
    """Run commands of pip in a fresh environment, then a library's code up to its imports; return versions by name."""
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "bin", "python")
        for command in commands:
            words = [str(PACKAGE) if word == "aioredis_monitored" else word for word in command.split()]
            assert words[:2] == ["pip", "install"], command
            _run(python, "-m", "pip", "install", "--quiet", *words[2:], cwd=Path(directory))
        imports = "\n".join(line for line in code.splitlines() if line.startswith(("from ", "import ")))
        asking = f"import json\nfrom importlib.metadata import version\n{imports}\n"
        asking += f"print(json.dumps({{name: version(name) for name in {names!r}}}))"
        found: dict[str, str] = json.loads(_run(python, "-c", asking, cwd=Path(directory)).splitlines()[-1])
        return found
