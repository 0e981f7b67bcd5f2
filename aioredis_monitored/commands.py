"""What a command is: its name, which of its arguments may be shown, how long the server may hold back its reply.

Every function takes the arguments of ``execute_command``: the name, in any case, as ``str`` or bytes, with or without
its sub-command in the same string, and what follows it. The facts are in ``commands.json``, which
``tests/command_table.py`` writes from what a server says about itself: an object per command, sub-commands under their
full name (``CONFIG GET``). Positions count from 0 at the first argument after the full name; what is left out is empty,
false or 0.

``keys``, ``fields``
    Where keys and the names of hash fields stand: see ``_Span``, whose attributes these objects hold.
``incomplete``
    There can be more keys than ``keys`` tells, because the server cannot tell either (``SORT … STORE``) or might
    take a password for one (``MIGRATE … AUTH2``).
``words``, ``words_from``
    The command's own words (``NX``, ``LIMIT``), and the first position at which one can stand.
``flags``
    Which of ``blocking``, ``readonly`` and ``write`` the server calls it.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from operator import itemgetter
from typing import Any, NamedTuple

_HIDDEN = "?"
_ELLIPSIS = "…"
# Longer than every name, word or number that means something to a server; the rest of a longer argument is not read.
_LONGEST_WORD = 64
# redis-py takes a whole command in one string; more than this of it is not read.
_LONGEST_NAME = 65_536


class _Span(NamedTuple):
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
            words = [_text(argument, _LONGEST_WORD).upper() for argument in arguments[first:]]
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


class _Command(NamedTuple):
    keys: tuple[_Span, ...] = ()
    fields: tuple[_Span, ...] = ()
    words: frozenset[str] = frozenset()
    words_from: int = 0


class _Call(NamedTuple):
    """A command as it is sent: all that follows the name is an argument, wherever the application put it."""

    name: str
    command: _Command
    arguments: Sequence[object]
    total: int


def _read_table() -> dict[str, _Command]:
    rows = json.loads(resources.files(__package__).joinpath("commands.json").read_text("utf-8"))
    return {
        name: _Command(
            keys=tuple(_Span(**span) for span in row.get("keys", ())),
            fields=tuple(_Span(**span) for span in row.get("fields", ())),
            words=frozenset(row.get("words", "").split()),
            words_from=row.get("words_from", 0),
        )
        for name, row in rows.items()
    }


def _block_option(arguments: Sequence[object]) -> object:
    """The value of BLOCK; a group, a consumer or a stream may be called BLOCK too."""
    rest = iter(arguments)
    for argument in rest:
        match _text(argument, _LONGEST_WORD).upper():
            case "BLOCK":
                return next(rest, None)
            case "GROUP":
                next(rest, None)
                next(rest, None)
            case "STREAMS":
                break
    return None


_FIRST, _LAST = itemgetter(0), itemgetter(-1)
_SECONDS, _MILLISECONDS = 1, 1000

# Which argument says how long the server may wait, and its unit. Servers do not tell either, and Redis 7.0 does not
# call WAIT blocking.
_WAITS: dict[str, tuple[Callable[[Sequence[object]], object], int]] = {
    "BLMOVE": (_LAST, _SECONDS),  # until the source has an element
    "BLMPOP": (_FIRST, _SECONDS),  # until one of the lists has an element
    "BLPOP": (_LAST, _SECONDS),  # until one of the lists has an element
    "BRPOP": (_LAST, _SECONDS),  # until one of the lists has an element
    "BRPOPLPUSH": (_LAST, _SECONDS),  # until the source has an element
    "BZMPOP": (_FIRST, _SECONDS),  # until one of the sorted sets has a member
    "BZPOPMAX": (_LAST, _SECONDS),  # until one of the sorted sets has a member
    "BZPOPMIN": (_LAST, _SECONDS),  # until one of the sorted sets has a member
    "WAIT": (_LAST, _MILLISECONDS),  # until enough replicas have the connection's writes
    "WAITAOF": (_LAST, _MILLISECONDS),  # until enough servers have the connection's writes on their disks
    "XREAD": (_block_option, _MILLISECONDS),  # until one of the streams has an entry
    "XREADGROUP": (_block_option, _MILLISECONDS),  # until one of the streams has an entry that the group did not get
}
_PROCEDURES = frozenset({"EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"})

_TABLE = _read_table()
_UNKNOWN = _Command()
_CONTAINERS = {name.partition(" ")[0] for name in _TABLE if " " in name}
# What almost every command is found in, with one look: a name that no sub-command can follow, and, on top of that, a
# command that answers at once and calls no procedure.
_COMPLETE = frozenset(_TABLE.keys() - _CONTAINERS)
_ORDINARY = _COMPLETE - _WAITS.keys() - _PROCEDURES


def operation_name(args: Sequence[Any]) -> str:
    """The name of the command as the application gave it, with its sub-command and without arguments.

    Of a command that is not in the table it is the first word, cut to 64 characters.
    """
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return name
    return _call(args, most=3).name


def stored_procedure(args: Sequence[Any]) -> str | None:
    """The digest of the script or the name of the function that the command calls; ``None`` if it calls neither."""
    name = args[0] if args else None
    if type(name) is str and name in _ORDINARY:
        return None
    call = _call(args, most=3)
    if call.name.upper() not in _PROCEDURES or not call.arguments:
        return None
    return _printable(_text(call.arguments[0], _LONGEST_WORD))


def server_wait(args: Sequence[Any]) -> float | None:
    """The seconds for which the server may hold back the reply, ``math.inf`` if that is for ever.

    Returns:
        ``None`` if it answers at once, also because the time that was given is none.
    """
    name = args[0] if args else None
    if type(name) is str and name in _ORDINARY:
        return None
    wait = _WAITS.get(operation_name(args).upper())
    if wait is None:
        return None
    argument, units_per_second = wait
    try:
        seconds = float(_text(argument(_call(args).arguments), _LONGEST_WORD)) / units_per_second
    except (IndexError, ValueError):
        return None
    if seconds == 0:
        return math.inf
    return seconds if 0 < seconds < math.inf else None


def query_text(args: Sequence[Any], *, limit: int = 1024) -> str:
    """The command as one would type it into ``redis-cli``, with ``?`` for every value: ``HSET user:1 name ? age ?``.

    Keys, hash fields and the command's own words are shown, all else is hidden; everything is hidden if the command is
    not in the table, or if the arguments do not fit it. A value shows only where one of the command's own words could
    stand, and only if it is that very word. It never raises, and looks at no more than it can show.

    Args:
        args: The arguments of ``execute_command``.
        limit: The most characters to return; what is longer ends with an ellipsis.
    """
    # An argument and the space before it take two characters, so that these are more than there is room for.
    call = _call(args, most=limit // 2 + 2)
    parts = [call.name]
    room = limit - len(call.name)
    for part in _shown(call, limit):
        parts.append(part)
        room -= len(part) + 1
        if room < 0:
            break
    text = " ".join(parts)
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def _call(args: Sequence[Any], most: int | None = None) -> _Call:
    """Take the command apart, looking at no more than ``most`` of ``args``."""
    name = args[0] if args else None
    if type(name) is str and name in _COMPLETE:
        return _Call(name, _TABLE[name], args[1:most], len(args) - 1)
    # redis-py splits the first argument, and sends each of its words as an argument of its own.
    words = _text(name, _LONGEST_NAME).encode(errors="backslashreplace").split() or [_HIDDEN.encode()]
    sent = [*words, *args[1:most]]
    total = len(words) + len(args) - 1
    name = words[0].decode()[:_LONGEST_WORD]
    if name.upper() in _CONTAINERS and len(sent) > 1:
        full_name = f"{name} {_text(sent[1], _LONGEST_WORD)}"
        if command := _TABLE.get(full_name.upper()):
            return _Call(full_name, command, sent[2:], total - 2)
    return _Call(name, _TABLE.get(name.upper(), _UNKNOWN), sent[1:], total - 1)


def _shown(call: _Call, limit: int) -> Iterator[str]:
    """What to show for each argument."""
    spans = (*call.command.keys, *call.command.fields)
    words, words_from = call.command.words, call.command.words_from
    try:
        visible = {position for span in spans for position in span.positions(call.arguments, call.total)}
    except (IndexError, ValueError):
        visible, words = set(), frozenset()
    for position, argument in enumerate(call.arguments):
        if position in visible:
            # A character takes up to four bytes: with less, a key could seem to end where it was cut.
            yield _printable(_text(argument, 4 * limit))
        elif words and position >= words_from and (word := _text(argument, _LONGEST_WORD)).upper() in words:
            yield word
        else:
            yield _HIDDEN


def _count(argument: object) -> int:
    """A number that a server would take, which refuses much that Python takes."""
    digits = _text(argument, _LONGEST_WORD)
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("not a count")
    return int(digits)


def _text(argument: object, most: int) -> str:
    """The beginning of an argument as redis-py would send it, ``?`` for what redis-py would refuse."""
    try:
        if isinstance(argument, str):
            return str.__getitem__(argument, slice(most))
        if isinstance(argument, (bytes, bytearray, memoryview)):
            return bytes(memoryview(argument)[:most]).decode(errors="backslashreplace")
        if isinstance(argument, (int, float)):
            return repr(argument)[:most]
    except Exception:  # noqa: BLE001 - an application may pass anything; it is redis-py that refuses it, not telemetry
        return _HIDDEN
    return _HIDDEN


def _printable(text: str) -> str:
    """Quote what could be taken for two arguments or cannot be printed, as ``redis-cli`` would have it typed."""
    if text and text.isprintable() and " " not in text:
        return text
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'
