"""Shows queues every second: redrawn in place in a terminal, a line for each of them elsewhere."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, cast

from redis.exceptions import RedisError

from aioredis_monitored.cli.queue_report import Look, age_text, error_text, json_text, printable, queue_fields
from aioredis_monitored.cli.settings import pool_of
from aioredis_monitored.queue.inspection import QueueStats
from aioredis_monitored.queue.queue import MessageQueue

_INTERVAL_SECONDS: Final = 1.0
_NEEDS_EXTRA: Final = (
    'redrawing in place needs an extra: pip install "aioredis_monitored[demo]"; without it, add --json or "| cat"'
)


def watch(options: argparse.Namespace) -> int:
    """Show queues every second; return the exit code if that cannot begin.

    Raises:
        redis.exceptions.RedisError: The server cannot be used at the beginning; later, that is shown.
        asyncio.CancelledError: SIGTERM or SIGHUP ended it.
        KeyboardInterrupt: SIGINT did.
    """
    if options.json or not sys.stdout.isatty():
        return asyncio.run(_watch(options, _print_json if options.json else _print_lines))
    try:
        from aioredis_monitored.cli.queue_screen import QueueScreen  # noqa: PLC0415 - the extra's packages may be missing
    except ImportError as error:
        sys.stderr.write(f"{_NEEDS_EXTRA} ({error})\n")
        return 2
    with QueueScreen() as screen:
        return asyncio.run(_watch(options, screen.show))


async def _watch(options: argparse.Namespace, show: Callable[[Look], None]) -> NoReturn:
    # As Ctrl-C does, so that the terminal is left in order.
    task = cast("asyncio.Task[Any]", asyncio.current_task())
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with pool_of(options) as pool:
        queues = [MessageQueue(name, pool) for name in dict.fromkeys(options.names)]
        look = await _look(queues)
        while True:
            show(look)
            await asyncio.sleep(_INTERVAL_SECONDS)
            try:
                look = await _look(queues)
            except (RedisError, OSError) as error:
                look = look._replace(problem=error_text(error))


async def _look(queues: list[MessageQueue]) -> Look:
    stats = await asyncio.gather(*(queue.stats() for queue in queues))
    return Look(dict(zip((queue.name for queue in queues), stats, strict=True)), datetime.now(UTC))


def _print_lines(look: Look) -> None:
    now = f"{datetime.now():%H:%M:%S}"  # noqa: DTZ005 - local time, for people
    lines = [f"{now} {_line(name, stats)}" for name, stats in look.queues.items()]
    _print([f"{now} {look.problem}"] if look.problem else lines)


def _line(name: str, stats: QueueStats) -> str:
    oldest = f", oldest {age_text(stats.oldest_age)}" if stats.depth else ""
    return (
        f"{printable(name)}: depth {stats.depth}, held {stats.held}, dead {stats.dead}{oldest}, "
        f"consumers {stats.consumers}"
    )


def _print_json(look: Look) -> None:
    if look.problem:
        objects: list[dict[str, Any]] = [{"problem": look.problem}]
    else:
        objects = [queue_fields(name, stats) for name, stats in look.queues.items()]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _print([json_text({"time": now, **each}) for each in objects])


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
