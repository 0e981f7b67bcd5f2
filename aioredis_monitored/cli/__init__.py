"""The command line: python -m aioredis_monitored, or aioredis-monitored."""

import argparse
import os
import sys
from collections.abc import Sequence

_NEEDS_EXTRA = 'the demo needs an extra: pip install "aioredis_monitored[demo]"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="aioredis-monitored", description="Redis client with OpenTelemetry.")
    demo = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "demo",
        help="run a small web shop and show its Redis telemetry",
        description="Run a small web shop on an embedded server, or on the one in REDIS_URL, and show its telemetry.",
    )
    demo.add_argument("--otlp", metavar="URL", help="send it to a collector as well, such as http://localhost:4318")
    demo.add_argument(
        "--cluster",
        action="store_true",
        help="on an embedded cluster, of which a slot moves and a node dies, whatever REDIS_URL says",
    )
    options = parser.parse_args(arguments)
    try:
        from aioredis_monitored.cli.demo import run  # noqa: PLC0415 - the extra's packages may be missing
    except ImportError as error:
        sys.stderr.write(f"{_NEEDS_EXTRA} ({error})\n")
        return 2
    return run(os.environ, options.otlp, on_cluster=options.cluster)
