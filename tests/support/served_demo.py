"""The demo's shop, served by a process of its own."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def served(url, *arguments):
    """Serve the shop in a process of its own; yield the process and its URL."""
    command = [sys.executable, "-m", "aioredis_monitored", "demo", "--serve", "0", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"} | ({} if url is None else {"REDIS_URL": url})
    with subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process, re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        finally:
            process.kill()
