"""The command ``config check``: whether a configuration can be used, without connecting.

Exit codes: 0, it can be used, even if a name seems mistyped; 2, it cannot.
"""

import argparse
import sys
from typing import Any

from aioredis_monitored.cli.findings import as_json, as_text, has_fault, worst_last
from aioredis_monitored.cli.settings import check_pools, environment_of, pool_prefix, problems_of
from aioredis_monitored.errors import ConfigurationError

_UNUSABLE = 2


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    config = commands.add_parser("config", help="check a configuration without connecting")
    check = config.add_subparsers(required=True, metavar="check").add_parser(
        "check",
        help="say everything that is wrong with a configuration",
        description="Say everything that is wrong with the REDIS_... variables, without connecting.",
        epilog="Exit codes: 0, the configuration can be used, with or without warnings; 2, it cannot.",
    )
    check.add_argument("--env-file", metavar="FILE", help="lines NAME=value, in place of the environment")
    check.add_argument(
        "--prefix", type=pool_prefix, metavar="PREFIX", help="check one pool: redis., or redis.NAME.; default all"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        findings = check_pools(environment_of(options.env_file), options.prefix)
    except ConfigurationError as error:
        findings = problems_of(error)
    findings = worst_last(findings)
    code = _UNUSABLE if has_fault(findings) else 0
    sys.stdout.write(as_json(findings, code) if options.json else as_text(findings))
    return code
