"""What a command is: the table of commands, and what a call's arguments are in its terms.

Every function takes the arguments of ``execute_command``: the name, in any case, as ``str`` or bytes, with or without
its sub-command in the same string, and what follows it. The facts are in ``table.json``, which
``tests/command_table.py`` writes from what a server says about itself: an object per command, sub-commands under their
full name (``CONFIG GET``). Positions count from 0 at the first argument after the full name; what is left out is empty,
false or 0.

``keys``, ``fields``
    Where keys and the names of hash fields stand: see ``Span``, whose attributes these objects hold.
``incomplete``
    There can be more keys than ``keys`` tells, because the server cannot tell either (``SORT … STORE``) or might
    take a password for one (``MIGRATE … AUTH2``).
``words``, ``words_from``
    The command's own words (``NX``, ``LIMIT``), and the first position at which one can stand.
``flags``
    Which of ``blocking``, ``readonly`` and ``write`` the server calls it.
"""

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

PLACEHOLDER = "?"
# Longer than every name, word or number that means something to a server; the rest of a longer argument is not read.
MAX_WORD_LENGTH = 64
# redis-py takes a whole command in one string; more than this of it is not read.
MAX_NAME_LENGTH = 65_536


class KeySpec(NamedTuple):
    """Where some arguments stand: the key specification of ``COMMAND INFO``, without what no command uses.

    The first of them stands at ``start``, or after the first ``keyword`` from there on, or after the number there that
    tells how many there are if they are ``counted``. The last stands ``last`` arguments after the first, or that many
    from the end if it is negative, the end being that of the first of ``share`` equal parts.
    """

    start: int
    keyword: str = ""
    counted: bool = False
    last: int = 0
    share: int = 1
    step: int = 1

    def positions(self, arguments: Sequence[object], total: int) -> range:
        """Where they stand among ``total`` arguments, of which ``arguments`` are the first.

        Raises:
            IndexError, ValueError: The arguments are not as the server would want them.
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
    """A row of the table; that of a command which is not in it is empty."""

    keys: tuple[KeySpec, ...] = ()
    fields: tuple[KeySpec, ...] = ()
    words: frozenset[str] = frozenset()
    words_from: int = 0
    flags: frozenset[str] = frozenset()


class ParsedCommand(NamedTuple):
    """A command as it is sent: all that follows the name is an argument, wherever the application put it."""

    name: str
    info: CommandInfo
    arguments: Sequence[object]
    total: int

    def positions(self, spans: Iterable[KeySpec]) -> set[int]:
        """Where the arguments stand that these are about.

        Raises:
            IndexError, ValueError: The arguments are not as the server would want them.
        """
        return {position for span in spans for position in span.positions(self.arguments, self.total)}


def _read_table() -> dict[str, CommandInfo]:
    rows = json.loads(resources.files(__package__).joinpath("table.json").read_text("utf-8"))
    return {
        name: CommandInfo(
            keys=tuple(KeySpec(**span) for span in row.get("keys", ())),
            fields=tuple(KeySpec(**span) for span in row.get("fields", ())),
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
# What almost every command is found in, with one look: a name that no sub-command can follow.
_COMPLETE = frozenset(TABLE.keys() - _CONTAINERS)
# … and that calls no procedure: the same name is always the same operation.
SIMPLE = _COMPLETE - _PROCEDURES


def operation_name(args: Sequence[Any]) -> str:
    """The name of the command as the application gave it, with its sub-command and without arguments.

    Of a command that is not in the table it is the first word, cut to 64 characters.
    """
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return name
    return parse_command(args, limit=3).name


def stored_procedure(args: Sequence[Any]) -> str | None:
    """The digest of the script or the name of the function that the command calls; ``None`` if it calls neither."""
    name = args[0] if args else None
    if type(name) is str and name in SIMPLE:
        return None
    call = parse_command(args, limit=3)
    if call.name.upper() not in _PROCEDURES or not call.arguments:
        return None
    return quote(argument_text(call.arguments[0], MAX_WORD_LENGTH))


def channel_of(args: Sequence[Any]) -> object | None:
    """The channel that the command publishes to; ``None`` if it does not publish."""
    call = parse_command(args, limit=2)
    return call.arguments[0] if call.name.upper() in PUBLISHING and call.arguments else None


def keys_of(args: Sequence[Any], limit: int) -> list[object]:
    """The keys among the first ``most`` arguments; none of a command that is not in the table or was given wrongly."""
    call = parse_command(args, limit)
    try:
        return [call.arguments[position] for position in sorted(call.positions(call.info.keys))]
    except (IndexError, ValueError):
        return []


def parse_command(args: Sequence[Any], limit: int | None = None) -> ParsedCommand:
    """Take the command apart, looking at no more than ``most`` of ``args``."""
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return ParsedCommand(name, TABLE[name], args[1:limit], len(args) - 1)
    # redis-py splits the first argument, and sends each of its words as an argument of its own.
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
    """A number that a server would take, which refuses much that Python takes."""
    digits = argument_text(argument, MAX_WORD_LENGTH)
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("not a count")
    return int(digits)


def argument_text(argument: object, limit: int) -> str:
    """The beginning of an argument as redis-py would send it, ``?`` for what redis-py would refuse."""
    try:
        if isinstance(argument, str):
            return escape_surrogates(str.__getitem__(argument, slice(limit)))
        if isinstance(argument, (bytes, bytearray, memoryview)):
            return bytes(memoryview(argument)[:limit]).decode(errors="backslashreplace")
        if isinstance(argument, (int, float)):
            return repr(argument)[:limit]
    except Exception:  # noqa: BLE001 - an application may pass anything; it is redis-py that refuses it, not telemetry
        return PLACEHOLDER
    return PLACEHOLDER


def escape_surrogates(text: str) -> str:
    """The text with escapes for what no exporter could send: a lone surrogate, as JSON may bring it."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def quote(text: str) -> str:
    """Quote what could be taken for two arguments or cannot be printed, as ``redis-cli`` would have it typed."""
    if text and text.isprintable() and " " not in text:
        return text
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'
