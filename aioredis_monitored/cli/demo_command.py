"""The arguments of ``demo``; what it runs needs an extra."""

import argparse
import os
import sys
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

_DEFAULT_PORT = 8000
_MAX_PORT = 65535
_NEEDS_EXTRA = 'the demo needs an extra: pip install "aioredis_monitored[demo]"'


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="run a small web shop and show its Redis telemetry",
        description="Run a small web shop on an embedded server, or on the one in REDIS_URL, and show its telemetry.",
    )
    parser.add_argument(
        "--otlp", metavar="URL", type=_otlp_url, help="send it to a collector as well, such as http://localhost:4318"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="on an embedded cluster, of which a slot moves and a node dies, whatever REDIS_URL says",
    )
    parser.add_argument(
        "--serve",
        metavar="PORT",
        type=_port,
        nargs="?",
        const=_DEFAULT_PORT,
        help="serve the shop on this port of 127.0.0.1, by default 8000, with a page that shows the last requests",
    )
    parser.set_defaults(run=_run)


def _port(text: str) -> int:
    with suppress(ValueError):
        if 0 <= (port := int(text)) <= _MAX_PORT:
            return port
    message = f"must be a port from 0 to {_MAX_PORT}, where 0 is any that is free"
    raise argparse.ArgumentTypeError(message)


def _otlp_url(text: str) -> str:
    """Return the base URL of a collector's OTLP/HTTP receiver, without a slash at its end."""
    with suppress(ValueError):  # as for a port that is no number
        url = urlsplit(text)
        if url.scheme in {"http", "https"} and url.hostname and (url.port is None or url.port):
            return text.rstrip("/")
    # Not repeated: it may have a password.
    raise argparse.ArgumentTypeError("must be a URL such as http://localhost:4318")


def _run(options: argparse.Namespace) -> int:
    try:
        from aioredis_monitored.cli.demo import run  # noqa: PLC0415 - the extra's packages may be missing
    except ImportError as error:
        sys.stderr.write(f"{_NEEDS_EXTRA} ({error})\n")
        return 2
    return run(os.environ, options.otlp, on_cluster=options.cluster, port=options.serve)
