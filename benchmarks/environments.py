"""Make the virtual environments of the peers, and describe the machine."""

import os
import platform
import subprocess
import sys
import venv
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis

PEERS = {
    "glide": ["valkey-glide>=2.6", "uvloop>=0.22"],
    "coredis": ["coredis[otel]>=6.9", "uvloop>=0.22"],
    # Several need an older redis-py than this package; all that use redis-py get its faster parser, hiredis.
    "arq": ["arq>=0.28"],
    "saq": [
        "saq[redis]>=0.26.4",
        "hiredis>=3.5",
        "typing-extensions",
    ],  # missing in SAQ's requirements
    "taskiq": ["taskiq-redis>=1.2.4", "hiredis>=3.5"],
    "streaq": ["streaq>=7.2"],
    "rq": ["rq>=3.0", "hiredis>=3.5"],
}
NAMED_VERSIONS = ("redis", "hiredis", "uvloop", "opentelemetry-sdk", "opentelemetry-instrumentation-redis")


def pythons(wanted: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Make missing environments; return each one's Python by name, and the reasons why others could not be made."""
    found, failed = {"current": sys.executable}, {}
    for name in wanted & PEERS.keys():
        # Inside this environment, so that both are removed together.
        directory = Path(sys.prefix, "peers", name)
        python = str(directory / "bin" / "python")
        try:
            if not Path(python).exists():
                venv.create(directory, with_pip=True)
            command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PEERS[name]]
            subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)  # noqa: S603 - this project's list
            found[name] = python
        except subprocess.CalledProcessError as error:
            failed[name] = (error.stderr or str(error)).strip().splitlines()[-1]
    return found, failed


def machine(url: str, packages: Iterable[str] = NAMED_VERSIONS) -> dict[str, Any]:
    """Describe the machine, the server and the packages of the run."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        server = client.info("server")
    name = server.get("server_name", "redis")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": f"{name} {server.get(f'{name}_version', server['redis_version'])}",
        "packages": {package: version(package) for package in packages},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
