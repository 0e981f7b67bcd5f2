"""What the queue commands print: text for people, and dictionaries that become JSON."""

import json
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from aioredis_monitored.queue.inspection import DeadLetter, QueueStats

HEADINGS = ("QUEUE", "DEPTH", "HELD", "DEAD", "OLDEST", "CONSUMERS")
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Look(NamedTuple):
    """What was seen of the queues.

    Attributes:
        queues: The queues by name, as they were last seen.
        seen_at: When they were seen.
        problem: Why they could not be looked at since; empty if they could.
    """

    queues: dict[str, QueueStats]
    seen_at: datetime
    problem: str = ""


def queue_cells(name: str, stats: QueueStats) -> list[str]:
    """Return the row of a queue below ``HEADINGS``."""
    counts = (stats.depth, stats.held, stats.dead)
    oldest = age_text(stats.oldest_age) if stats.depth else "-"
    return [printable(name), *map(str, counts), oldest, str(stats.consumers)]


def queue_fields(name: str, stats: QueueStats) -> dict[str, Any]:
    """Return a queue as JSON shows it."""
    return {
        "queue": name,
        "depth": stats.depth,
        "held": stats.held,
        "dead": stats.dead,
        "oldest_age": stats.oldest_age,
        "consumers": stats.consumers,
    }


def letter_cells(number: int, letter: DeadLetter) -> list[str]:
    """Return the row of a dead letter: number, bytes, age, and its payload if it has one."""
    cells = [str(number), str(letter.size), age_text(letter.age)]
    if letter.payload is not None:
        cells.append(printable(letter.payload.decode(errors="backslashreplace")))
    return cells


def letter_fields(number: int, letter: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as JSON shows it; a payload that is not UTF-8 is there as Base64."""
    fields: dict[str, Any] = {"number": number, "size": letter.size, "age": letter.age}
    if letter.payload is not None:
        try:
            fields["payload"] = letter.payload.decode()
        except UnicodeDecodeError:
            fields["payload_base64"] = b64encode(letter.payload).decode()
    return fields


def json_text(value: Any, indent: int | None = None) -> str:
    """Return JSON with escapes for all that a terminal does not print as it is."""
    # JSON itself escapes all but this one that are not printable ASCII.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def printable(text: str) -> str:
    """Return a text in one line, with escapes for all that a terminal does not print as it is."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def count_text(count: int, noun: str) -> str:
    """Return a number of things, such as ``1 message``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def error_text(error: Exception) -> str:
    """Return what an error says, or else what it is, each of its lines printable."""
    return "\n".join(map(printable, str(error).splitlines())) or type(error).__name__


def age_text(seconds: float | None) -> str:
    """Return an age in its two largest units."""
    if seconds is None:
        return "unknown"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table, a line for each row, with columns that are aligned; the last one may be of any length."""
    table = [list(headings), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in table), strict=True)]
    return ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in table]
