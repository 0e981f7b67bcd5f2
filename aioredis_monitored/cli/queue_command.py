"""The arguments of ``queue``, and the commands that look at queues once or change them."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError
from redis.utils import str_if_bytes

from aioredis_monitored._execution.routing import reading_primaries
from aioredis_monitored.cli.queue_report import (
    HEADINGS,
    count_text,
    error_text,
    json_text,
    letter_cells,
    letter_fields,
    printable,
    queue_cells,
    queue_fields,
    table_lines,
)
from aioredis_monitored.cli.queue_watch import watch
from aioredis_monitored.cli.settings import add_settings, pool_of
from aioredis_monitored.client.client import MonitoredRedisConnection
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.pool.pool import MonitoredConnectionPool
from aioredis_monitored.queue.consumer import QueueKeys, queue_of
from aioredis_monitored.queue.inspection import DeadLetter, QueueInspector, QueueStats
from aioredis_monitored.queue.queue import MessageQueue

_INTERRUPTED: Final = 130  # the exit code that shells report after Ctrl-C
_SCAN_NOTE: Final = (
    "found by SCAN: queues with consumers, held messages or dead letters; any other queue is a list like all lists"
)
# What all keys of queues beside their lists have in common; and how many keys the server looks at in one step.
_KEY_PATTERN: Final = "*}*:*"
_SCAN_COUNT: Final = 1000
# How many dead letters the server reads in one step, without and with their payloads.
_LETTERS_PAGE: Final = 100
_PAYLOADS_PAGE: Final = 10


def add_parser(commands: Any) -> None:
    """Add the commands to the command line."""
    queue = commands.add_parser(
        "queue",
        help="look at message queues, requeue or drop dead letters",
        description="Look at message queues, and move or delete dead letters.",
        epilog=(
            "Exit codes: 0, it is done; 1, Redis cannot be used or refuses, or the answer to drop was no; 2, the "
            "command line or the configuration cannot be used, or an extra is missing; 130, interrupted."
        ),
    )
    actions = queue.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sentence = f"{text[0].upper()}{text[1:]}."
        parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=sentence)
        add_settings(parser)
        parser.set_defaults(run=lambda options: _run(run, options))
        return parser

    listing = add("ls", _list, "list queues that have consumers, held messages or dead letters, by SCAN")
    listing.add_argument("--json", action="store_true", help="print a JSON array")

    show = add("show", _show, "show what a queue holds, and how many consumers are alive")
    show.add_argument("name", type=_queue_name, metavar="NAME", help="the queue")
    show.add_argument("--json", action="store_true", help="print a JSON object")

    dead = add("dead", _dead, "show the size and the age of dead letters, the oldest first")
    dead.add_argument("name", type=_queue_name, metavar="NAME", help="the queue")
    dead.add_argument("--count", type=_positive, default=20, metavar="N", help="how many (default: %(default)s)")
    dead.add_argument("--payload", action="store_true", help="show their payloads as well, which may be personal data")
    dead.add_argument("--json", action="store_true", help="print a JSON object")

    requeue = add("requeue", _requeue, "move dead letters to the tail of their queue, the oldest first")
    requeue.add_argument("name", type=_queue_name, metavar="NAME", help="the queue")
    requeue.add_argument("--count", type=_positive, metavar="N", help="how many (default: all)")

    drop = add("drop", _drop, "delete dead letters, or all that waits in a queue as well")
    drop.add_argument("name", type=_queue_name, metavar="NAME", help="the queue")
    what = drop.add_mutually_exclusive_group(required=True)
    what.add_argument("--dead", action="store_true", help="delete its dead letters")
    what.add_argument(
        "--all",
        action="store_true",
        help="delete its dead letters and the messages that wait; not those that consumers hold",
    )
    drop.add_argument("--yes", action="store_true", help="do not ask")

    watching = add("watch", watch, "show queues every second, until Ctrl-C")
    watching.add_argument("names", type=_queue_name, nargs="+", metavar="NAME", help="a queue")
    watching.add_argument("--json", action="store_true", help="print a JSON object for each queue, one on a line")


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command and return its exit code; print what prevents it."""
    try:
        return command(options)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _INTERRUPTED
    except BrokenPipeError:
        # No fault of Redis, as other OSErrors.
        raise
    except ConfigurationError as error:
        sys.stderr.write(f"{error_text(error)}\n")
        return 2
    except ResponseError as error:
        sys.stderr.write(f"Redis refused it: {error_text(error)}\n")
        return 1
    except (RedisError, OSError) as error:
        sys.stderr.write(f"Redis cannot be used: {error_text(error)}\n")
        return 1


def _list(options: argparse.Namespace) -> int:
    found, refused = asyncio.run(_find_queues(options))
    if options.json:
        _print([json_text([queue_fields(name, stats) for name, stats in found], indent=2)])
    else:
        _print(table_lines(HEADINGS, [queue_cells(name, stats) for name, stats in found]))
        _print([f"({_SCAN_NOTE})"])
    if refused:
        sys.stderr.write(f"Redis refused to show these: {', '.join(map(_quoted, refused))}\n")
    return 1 if refused else 0


async def _find_queues(options: argparse.Namespace) -> tuple[list[tuple[str, QueueStats]], list[str]]:
    """Return what the queues hold, and the names of those that the user has no right to look at."""
    found, refused = [], []
    async with pool_of(options) as pool:
        for name in sorted(await _scan_names(pool)):
            try:
                stats = await MessageQueue(name, pool).stats()
            except ResponseError as error:
                # Otherwise they are keys of another program.
                if "WRONGTYPE" not in str(error):
                    refused.append(name)
                continue
            if stats.consumers or stats.held or stats.dead:
                found.append((name, stats))
    return found, refused


async def _scan_names(pool: MonitoredConnectionPool) -> set[str]:
    names = set()
    # A replica may lag.
    client = reading_primaries(MonitoredRedisConnection(connection_pool=pool))
    async for key in client.scan_iter(_KEY_PATTERN, _SCAN_COUNT):
        # What is no text becomes the key of a queue that holds nothing.
        name = queue_of(str_if_bytes(key))
        if name is not None and _is_queue_name(name):
            names.add(name)
    return names


def _show(options: argparse.Namespace) -> int:
    stats = asyncio.run(_stats(options))
    if options.json:
        _print([json_text(queue_fields(options.name, stats), indent=2)])
    else:
        _print(table_lines(HEADINGS, [queue_cells(options.name, stats)]))
    return 0


async def _stats(options: argparse.Namespace) -> QueueStats:
    async with pool_of(options) as pool:
        return await MessageQueue(options.name, pool).stats()


def _dead(options: argparse.Namespace) -> int:
    total, letters = asyncio.run(_read_letters(options))
    numbered = list(enumerate(letters, 1))
    if options.json:
        found = {"dead": total, "letters": [letter_fields(*each) for each in numbered]}
        _print([json_text(found, indent=2)])
        return 0
    headings = ["NUMBER", "BYTES", "AGE", *(["PAYLOAD"] if options.payload else [])]
    _print(table_lines(headings, [letter_cells(*each) for each in numbered]))
    if total > len(letters):
        _print([f"({total - len(letters)} more: --count {total} shows all)"])
    return 0


async def _read_letters(options: argparse.Namespace) -> tuple[int, list[DeadLetter]]:
    page = _PAYLOADS_PAGE if options.payload else _LETTERS_PAGE
    letters: list[DeadLetter] = []
    async with pool_of(options) as pool:
        inspector = QueueInspector(MessageQueue(options.name, pool).client, QueueKeys(options.name))
        while True:
            count = min(page, options.count - len(letters))
            total, found = await inspector.dead_letters(len(letters), count, with_payloads=options.payload)
            letters += found
            if not found or len(letters) == options.count:
                return total, letters


def _requeue(options: argparse.Namespace) -> int:
    moved = asyncio.run(_move_letters(options))
    _print([f"requeued {count_text(moved, 'dead letter')} of the queue {_quoted(options.name)}"])
    return 0


async def _move_letters(options: argparse.Namespace) -> int:
    async with pool_of(options) as pool:
        return await MessageQueue(options.name, pool).requeue_dead(options.count)


def _drop(options: argparse.Namespace) -> int:
    if not options.yes and not sys.stdin.isatty():
        sys.stderr.write("drop deletes messages, and asks before; without a terminal to ask on, it needs --yes\n")
        return 2
    stats = asyncio.run(_stats(options))
    queue = f"the queue {_quoted(options.name)}"
    if not stats.dead and not (options.all and stats.depth):
        _print([f"nothing to drop in {queue}"])
        return 0
    waiting = f"all messages that wait ({stats.depth} now) and " if options.all else ""
    if not options.yes and not _agrees(f"Delete {waiting}{count_text(stats.dead, 'dead letter')} of {queue}?"):
        _print(["nothing was dropped"])
        return 1
    dropped = asyncio.run(_delete(options, stats.dead))
    waited = "all messages that waited and " if options.all else ""
    _print([f"dropped {waited}{count_text(dropped, 'dead letter')} of {queue}"])
    if options.all and stats.held:
        _print([f"({count_text(stats.held, 'message')} that consumers held before may come back to it)"])
    return 0


async def _delete(options: argparse.Namespace, dead: int) -> int:
    """Delete no more dead letters than the question was about, and return how many."""
    async with pool_of(options) as pool:
        queue = MessageQueue(options.name, pool)
        dropped = await queue.drop_dead(dead) if dead else 0
        if options.all:
            await queue.unlink()
        return dropped


def _agrees(question: str) -> bool:
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _quoted(name: str) -> str:
    return f"'{printable(name)}'"


def _is_queue_name(text: str) -> bool:
    try:
        QueueKeys(text)
    except ValueError:
        return False
    return True


def _queue_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a queue needs a name")
    try:
        text.encode()
        return QueueKeys(text).queue
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError("it must be a whole number of at least 1")
    return int(text)
