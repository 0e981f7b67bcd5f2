"""Which pool a command uses: the arguments that say so, and the pool, configured by the environment."""

import argparse

from aioredis_monitored.config.env import config_from_env
from aioredis_monitored.pool.pool import MonitoredConnectionPool, pool_from_config


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which pool is meant."""
    parser.add_argument(
        "--prefix",
        type=_prefix,
        default="redis.",
        metavar="PREFIX",
        help="what the pool's keys begin with, such as redis.jobs. for REDIS_JOBS_URL (default: %(default)s)",
    )


def pool_of(options: argparse.Namespace) -> MonitoredConnectionPool:
    """Return the pool that is meant; the caller opens and closes it.

    Raises:
        ConfigurationError: The environment does not configure it.
    """
    # Commands decode what they show: a key or a message of another program need not be text.
    return pool_from_config(config_from_env(), options.prefix, decode_responses=False)


def _prefix(text: str) -> str:
    if not text.endswith("."):
        raise argparse.ArgumentTypeError(f"it must end with a dot: {text!r}")
    return text
