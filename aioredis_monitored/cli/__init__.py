"""The command line: python -m aioredis_monitored, or aioredis-monitored.

A command is a module with ``add_parser``, which declares its arguments and loads nothing that is optional or slow.

Exit codes: 0, what was asked for is so; 1, it is not, or Redis cannot be used; 2, the command line or the configuration
cannot be used, or an extra is missing; 130, it was interrupted.
"""

import argparse
from collections.abc import Sequence

from aioredis_monitored._version import __version__
from aioredis_monitored.cli import demo_command, queue_command

_EPILOG = """\
Redis is the one in REDIS_URL and the other REDIS_... variables. Where to begin:
  aioredis-monitored demo            what the telemetry looks like, on an embedded server
  aioredis-monitored queue ls        which message queues there are
  aioredis-monitored COMMAND --help  what a command does
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="aioredis-monitored",
        description="Redis client with OpenTelemetry.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo_command, queue_command):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code
