"""The arguments of ``demo``; what it runs needs an extra."""

import argparse
import os
import sys
from typing import Any

_NEEDS_EXTRA = 'the demo needs an extra: pip install "aioredis_monitored[demo]"'


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="run a small web shop and show its Redis telemetry",
        description="Run a small web shop on an embedded server, or on the one in REDIS_URL, and show its telemetry.",
    )
    parser.add_argument("--otlp", metavar="URL", help="send it to a collector as well, such as http://localhost:4318")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="on an embedded cluster, of which a slot moves and a node dies, whatever REDIS_URL says",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        from aioredis_monitored.cli.demo import run  # noqa: PLC0415 - the extra's packages may be missing
    except ImportError as error:
        sys.stderr.write(f"{_NEEDS_EXTRA} ({error})\n")
        return 2
    return run(os.environ, options.otlp, on_cluster=options.cluster)
