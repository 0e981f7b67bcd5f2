"""The table of commands: where their keys, hash fields and keywords stand.

Every function takes the arguments of ``execute_command``: the name, in any case, as ``str`` or bytes, with or without
its sub-command in the same string, and what follows it. ``tests/command_table.py`` generates ``table.json`` from what a
server says about its commands: an object for each command, sub-commands under their full name (``CONFIG GET``).
Positions count from 0 at the first argument after the full name; what is empty, false or 0 is left out.

``keys``, ``fields``
    Where keys and names of hash fields stand; the objects hold the attributes of ``KeySpec``.
``incomplete``
    The command may have further keys, because the server does not know them either (``SORT … STORE``) or could take a
    password for a key (``MIGRATE … AUTH2``).
``words``, ``words_from``
    The keywords of the command (``NX``, ``LIMIT``), and the first position where one can stand.
``flags``
    Those of ``blocking``, ``readonly`` and ``write`` that the server lists.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

PLACEHOLDER = "?"
# Longer than every name, keyword and number of a command; the rest of a longer argument is not read.
MAX_WORD_LENGTH = 64
# redis-py accepts a whole command in one string; the rest of a longer string is not read.
MAX_NAME_LENGTH = 65_536


class KeySpec(NamedTuple):
    """The positions of some arguments: a key specification of ``COMMAND INFO``, without what no command uses.

    Attributes:
        start: The position of the first one, or where the search for it starts.
        keyword: The first one stands after this keyword, if it is given.
        counted: Whether their number precedes them.
        last: The distance of the last one from the first; if negative, from the end of the first part.
        share: The number of equal parts that the arguments are divided into.
        step: The distance between two of them.
    """

    start: int
    keyword: str = ""
    counted: bool = False
    last: int = 0
    share: int = 1
    step: int = 1

    def positions(self, arguments: Sequence[object], total: int) -> range:
        """Return their positions.

        Args:
            arguments: The first arguments of the command.
            total: The number of all its arguments.

        Raises:
            IndexError, ValueError: The server would refuse the arguments.
        """
        first = self.start
        if self.keyword:
            words = [argument_text(argument, MAX_WORD_LENGTH).upper() for argument in arguments[first:]]
            if self.keyword not in words:
                return range(0)
            first += words.index(self.keyword) + 1
        if self.counted:
            first += 1
            end = first + _count(arguments[first - 1]) * self.step
        elif self.last < 0:
            end = first + (total - first) // self.share + self.last + 1
        else:
            end = first + self.last + 1
        if end > total or (end - first) % self.step or (total - first) % self.share:
            raise ValueError(f"{total} arguments do not fit {self}")
        return range(first, end, self.step)[: len(arguments)]


class CommandInfo(NamedTuple):
    """A row of the table; unknown commands have an empty one."""

    keys: tuple[KeySpec, ...] = ()
    fields: tuple[KeySpec, ...] = ()
    words: frozenset[str] = frozenset()
    words_from: int = 0
    flags: frozenset[str] = frozenset()


class ParsedCommand(NamedTuple):
    """A command as it is sent.

    Attributes:
        name: The full name, in the application's case.
        info: The row of the table.
        arguments: The first arguments, counted from the full name on.
        total: The number of all arguments.
    """

    name: str
    info: CommandInfo
    arguments: Sequence[object]
    total: int

    def positions(self, specs: Iterable[KeySpec]) -> set[int]:
        """Return the positions of the arguments that these specifications are about.

        Raises:
            IndexError, ValueError: The server would refuse the arguments.
        """
        return {position for spec in specs for position in spec.positions(self.arguments, self.total)}


def _read_table() -> dict[str, CommandInfo]:
    rows = json.loads(resources.files(__package__).joinpath("table.json").read_text("utf-8"))
    return {
        name: CommandInfo(
            keys=tuple(KeySpec(**spec) for spec in row.get("keys", ())),
            fields=tuple(KeySpec(**spec) for spec in row.get("fields", ())),
            words=frozenset(row.get("words", "").split()),
            words_from=row.get("words_from", 0),
            flags=frozenset(row.get("flags", "").split()),
        )
        for name, row in rows.items()
    }


_PROCEDURES = frozenset({"EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"})
PUBLISHING = frozenset({"PUBLISH", "SPUBLISH"})

TABLE = _read_table()
_UNKNOWN = CommandInfo()
_CONTAINERS = {name.partition(" ")[0] for name in TABLE if " " in name}
# Names that no sub-command can follow: one lookup finds almost every command.
_COMPLETE = frozenset(TABLE.keys() - _CONTAINERS)
# Those of them that call no procedure: the same name is always the same operation.
SIMPLE = _COMPLETE - _PROCEDURES


def operation_name(args: Sequence[Any]) -> str:
    """Return the name of the command in the application's case, with its sub-command.

    Of a command that is not in the table, it is the first word, cut to 64 characters.
    """
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return name
    return parse_command(args, limit=3).name


def stored_procedure(args: Sequence[Any]) -> str | None:
    """Return the digest of the script or the name of the function that the command calls; ``None`` if it calls none."""
    name = args[0] if args else None
    if type(name) is str and name in SIMPLE:
        return None
    call = parse_command(args, limit=3)
    if call.name.upper() not in _PROCEDURES or not call.arguments:
        return None
    return quote(argument_text(call.arguments[0], MAX_WORD_LENGTH))


def channel_of(args: Sequence[Any]) -> object | None:
    """Return the channel that the command publishes to; ``None`` if it does not publish."""
    call = parse_command(args, limit=2)
    return call.arguments[0] if call.name.upper() in PUBLISHING and call.arguments else None


def keys_of(args: Sequence[Any], limit: int) -> list[object]:
    """Return the keys among the first ``limit`` of ``args``; none if the command is unknown or does not fit its row."""
    call = parse_command(args, limit)
    try:
        return [call.arguments[position] for position in sorted(call.positions(call.info.keys))]
    except (IndexError, ValueError):
        return []


def parse_command(args: Sequence[Any], limit: int | None = None) -> ParsedCommand:
    """Parse a command, reading no more than the first ``limit`` of ``args``; default ``None``, for all."""
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return ParsedCommand(name, TABLE[name], args[1:limit], len(args) - 1)
    # redis-py splits the first argument, and sends each of its words as a separate argument.
    words = argument_text(name, MAX_NAME_LENGTH).encode(errors="backslashreplace").split() or [PLACEHOLDER.encode()]
    sent = [*words, *args[1:limit]]
    total = len(words) + len(args) - 1
    name = words[0].decode()[:MAX_WORD_LENGTH]
    if name.upper() in _CONTAINERS and len(sent) > 1:
        full_name = f"{name} {argument_text(sent[1], MAX_WORD_LENGTH)}"
        if command := TABLE.get(full_name.upper()):
            return ParsedCommand(full_name, command, sent[2:], total - 2)
    return ParsedCommand(name, TABLE.get(name.upper(), _UNKNOWN), sent[1:], total - 1)


def _count(argument: object) -> int:
    """Return a number as a server reads it, which is stricter than Python."""
    digits = argument_text(argument, MAX_WORD_LENGTH)
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("not a count")
    return int(digits)


def argument_text(argument: object, limit: int) -> str:
    """Return the beginning of an argument as redis-py sends it, ``?`` for an argument that redis-py refuses."""
    try:
        if isinstance(argument, str):
            return escape_surrogates(str.__getitem__(argument, slice(limit)))
        if isinstance(argument, (bytes, bytearray, memoryview)):
            return bytes(memoryview(argument)[:limit]).decode(errors="backslashreplace")
        if isinstance(argument, (int, float)):
            return repr(argument)[:limit]
    except Exception:  # noqa: BLE001 - an application may pass anything; redis-py refuses it, and not telemetry
        return PLACEHOLDER
    return PLACEHOLDER


def escape_surrogates(text: str) -> str:
    """Escape lone surrogates, which JSON may contain and no exporter can send."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def quote(text: str) -> str:
    """Quote text with spaces or unprintable characters, in the syntax of ``redis-cli``."""
    if text and text.isprintable() and " " not in text:
        return text
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'
