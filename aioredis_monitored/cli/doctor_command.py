"""The command ``doctor``: what is wrong between this machine and its Redis.

Exit codes: 0, no fault, even with warnings and with what is unknown; 1, a fault; 2, the configuration or the command
line cannot be used; 130, it was interrupted.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from threading import Thread
from typing import Any, Final

from aioredis_monitored.cli.doctor.examination import examine
from aioredis_monitored.cli.findings import Finding, as_json, as_text, has_fault, worst_last
from aioredis_monitored.cli.settings import (
    Settings,
    add_settings,
    environment_of,
    problems_of,
    read_settings,
)
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.queue.consumer import QueueKeys

_FAULT: Final = 1
_UNUSABLE: Final = 2
_INTERRUPTED: Final = 130
_DEFAULT_SECONDS: Final = 20.0


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong between this machine and its Redis",
        description="Say what is so and what is wrong between this machine and the Redis of the REDIS_... variables, "
        "the worst last, with what to do. It changes nothing at the server; what the user has no right to see is "
        "unknown, and no fault.",
        epilog="Exit codes: 0, no fault; 1, a fault; 2, the configuration or the command line cannot be used.",
    )
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=_DEFAULT_SECONDS,
        help=f"how long all checks may take together; default {_DEFAULT_SECONDS:g}",
    )
    parser.add_argument(
        "--queue",
        metavar="NAME",
        type=_queue,
        action="append",
        default=[],
        help="a queue that the application has there; may be given several times",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    try:
        settings = read_settings(environment_of(options.env_file), options.prefix)
        findings = _examined(settings, options.queue, options.timeout)
    except ConfigurationError as error:
        return _print(problems_of(error), _UNUSABLE, as_object=options.json)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _print(findings, _FAULT if has_fault(findings) else 0, as_object=options.json)


def _print(findings: Sequence[Finding], code: int, *, as_object: bool) -> int:
    ordered = worst_last(findings)
    sys.stdout.write(as_json(ordered, code) if as_object else as_text(ordered))
    return code


def _examined(settings: Settings, queues: Sequence[str], seconds: float) -> list[Finding]:
    async def run() -> list[Finding]:
        asyncio.get_running_loop().set_default_executor(_DaemonThreads())
        return await examine(settings, queues, seconds)

    # The findings say it; without a handler, Python would print what the pool logs.
    logger, silent = logging.getLogger("aioredis_monitored"), logging.NullHandler()
    logger.addHandler(silent)
    try:
        return asyncio.run(run())
    finally:
        logger.removeHandler(silent)


class _DaemonThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, for which the end of the process does not wait.

    A name that is never resolved would keep the event loop and the process from ending.
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Begin a call."""
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - the caller gets it
                    future.set_exception(error)

        Thread(target=run, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do not wait."""


# Errors about these do not repeat the value: a password may have got there.


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (isfinite(seconds) and seconds > 0):
        raise argparse.ArgumentTypeError("must be a number of seconds, more than 0")
    return seconds


def _queue(text: str) -> str:
    try:
        QueueKeys(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be the name of a queue") from None
    return text
