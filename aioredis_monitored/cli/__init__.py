"""The command line: python -m aioredis_monitored, or aioredis-monitored.

A command is a module with ``add_parser``, which declares its arguments and loads nothing that is optional or slow.

Exit codes: 0, what was asked for is so; 1, it is not, or Redis cannot be used; 2, the command line or the configuration
cannot be used, or an extra is missing; 130, it was interrupted.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Final, NoReturn

from aioredis_monitored._version import __version__
from aioredis_monitored.cli import config_command, demo_command, doctor_command, queue_command

_UNRECOGNIZED: Final = "unrecognized arguments:"
# What argparse repeats.
_VALUE: Final = re.compile(r"(invalid choice|ignored explicit argument)[: ]+'.*?'(?= \(|$)", re.DOTALL)
_USER_INFO: Final = re.compile(r"//[^\s]*@")
_EPILOG = """\
Redis is the one in REDIS_URL and the other REDIS_... variables. Where to begin:
  aioredis-monitored config check    what is wrong with the configuration, without connecting
  aioredis-monitored doctor          what is wrong between this machine and its Redis
  aioredis-monitored demo            what the telemetry looks like, on an embedded server
  aioredis-monitored queue ls        which message queues there are
  aioredis-monitored COMMAND --help  what a command does
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors repeat no password."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and an error, and exit with 2."""
        if message.startswith(_UNRECOGNIZED):
            # Such as "-a" and a password, as redis-cli has it.
            names = [each.partition("=")[0] for each in message.split() if each.startswith("--")]
            message = f"{_UNRECOGNIZED} {', '.join(names) or '(not repeated, as it may be a password)'}"
        super().error(_USER_INFO.sub("//", _VALUE.sub(r"\1", message)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = _Parser(
        prog="aioredis-monitored",
        description="Redis client with OpenTelemetry.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (config_command, demo_command, doctor_command, queue_command):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    if not {"", str(Path.cwd())} & set(sys.path):
        # As with "python -m", and servers: what the configuration names may be there.
        sys.path.insert(0, str(Path.cwd()))
    if isinstance(sys.stdout, TextIOWrapper):
        # What is shown may have characters that the terminal's encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as head has. Python would fail once more, at its exit, at writing the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code
