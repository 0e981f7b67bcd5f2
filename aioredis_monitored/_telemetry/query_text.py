"""The query text: the part of a command that telemetry may show, which is its keys and keywords, and no value."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aioredis_monitored._commands.table import (
    MAX_WORD_LENGTH,
    PLACEHOLDER,
    SIMPLE,
    TABLE,
    KeySpec,
    ParsedCommand,
    argument_text,
    parse_command,
    quote,
)

_MAX_LENGTH = 1024
_ELLIPSIS = "…"
_PLACEHOLDER_WORD = f" {PLACEHOLDER}"
_MAX_FAST_ARGUMENTS = 16
# The number of arguments of a command that has nothing but a key.
_NAME_AND_KEY = 2
# Commands whose arguments are a key and then nothing but values: most calls are found with one lookup.
KEY_AND_VALUES = frozenset(
    name
    for name, row in TABLE.items()
    if row.keys == (KeySpec(0),) and not row.fields and not row.words and name in SIMPLE
)
# The maximum number of characters beside the key.
_MAX_REST_LENGTH = max(map(len, KEY_AND_VALUES)) + _MAX_FAST_ARGUMENTS * len(_PLACEHOLDER_WORD)


def query_text(
    args: Sequence[Any],
    *,
    limit: int = _MAX_LENGTH,
    key_text: Callable[[object], str] | None = None,
    shows_fields: bool = True,
) -> str:
    """Return the command in the syntax of ``redis-cli``, with ``?`` for every value: ``HSET user:1 name ? age ?``.

    It shows keys, hash fields and the keywords of the command, and hides all other arguments; it hides all arguments of
    a command that is not in the table, or whose arguments do not fit it. A value that equals a keyword shows where that
    keyword may stand. It never raises, and reads no more than it can show.

    Args:
        args: The arguments of ``execute_command``.
        limit: The maximum number of characters; a longer text is cut and ends with an ellipsis.
        key_text: Returns what to show for a key; default ``None``, for the key itself.
        shows_fields: Whether hash fields are shown; default ``True``.
    """
    if key_text is None and args and type(args[0]) is str and args[0] in KEY_AND_VALUES:
        return text_of_key_and_values(args, limit)
    return _text(args, limit, key_text, shows_fields=shows_fields)


def text_of_key_and_values(args: Sequence[Any], limit: int = _MAX_LENGTH) -> str:
    """Return the ``query_text`` of a command that is one of ``KEY_AND_VALUES``."""
    count = len(args)
    if 1 < count < _MAX_FAST_ARGUMENTS:
        key = args[1]
        if type(key) is str and 0 < len(key) < limit - _MAX_REST_LENGTH and key.isprintable() and " " not in key:
            return (
                f"{args[0]} {key}"
                if count == _NAME_AND_KEY
                else f"{args[0]} {key}{_PLACEHOLDER_WORD * (count - _NAME_AND_KEY)}"
            )
    return _text(args, limit)


def _text(
    args: Sequence[Any], limit: int, key_text: Callable[[object], str] | None = None, *, shows_fields: bool = True
) -> str:
    # An argument takes two characters at least, with the space before it: these are more than there is room for.
    command = parse_command(args, limit=limit // 2 + 2)
    parts = [command.name]
    room = limit - len(command.name)
    for part in _shown(command, limit, key_text, shows_fields=shows_fields):
        parts.append(part)
        room -= len(part) + 1
        if room < 0:
            break
    return _cut(" ".join(parts), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def _shown(
    command: ParsedCommand, limit: int, key_text: Callable[[object], str] | None, *, shows_fields: bool
) -> Iterator[str]:
    """Yield what to show for each argument."""
    words, words_from = command.info.words, command.info.words_from
    try:
        keys, fields = command.positions(command.info.keys), command.positions(command.info.fields)
    except (IndexError, ValueError):
        keys, fields, words = set(), set(), frozenset()
    for position, argument in enumerate(command.arguments):
        if position in keys and key_text is not None:
            yield quote(key_text(argument))
        elif position in keys or (position in fields and shows_fields):
            # A character takes up to four bytes: with fewer, a key could seem to end where it was cut.
            yield quote(argument_text(argument, 4 * limit))
        elif words and position >= words_from and (word := argument_text(argument, MAX_WORD_LENGTH)).upper() in words:
            yield word
        else:
            yield PLACEHOLDER
