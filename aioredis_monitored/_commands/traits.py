"""What a command does beside its reply: wait, alter its connection, leave a mark when it runs twice.

The table tells which commands are read-only. The rest is kept by hand, because servers do not tell it, or tell it
wrongly: Redis 7.0 does not call WAIT blocking, gives ``CLIENT REPLY`` the flags of ``CLIENT ID`` and ``SELECT`` those
of ``ECHO``. What neither knows gets the careful answer to every question.
"""

import math
from collections.abc import Callable, Collection, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from aioredis_monitored._commands.table import (
    MAX_NAME_LENGTH,
    MAX_WORD_LENGTH,
    TABLE,
    argument_text,
    operation_name,
    parse_command,
)


class Traits(NamedTuple):
    """What one needs to know before a command is sent on a connection that others use, or is sent again.

    Attributes:
        shares: It may be sent on a connection that others use at the same time.
        alters: It may leave its connection altered, so that nobody else may use that afterwards.
        repeatable: Running it twice does no more than running it once.
        runs_code: It runs a script or a function, whose error may come after some of it was done.
    """

    shareable: bool
    alters_connection: bool
    retry_safe: bool
    runs_code: bool


def _block_option(arguments: Sequence[object]) -> object:
    """The value of BLOCK; a group, a consumer or a stream may be called BLOCK too."""
    rest = iter(arguments)
    for argument in rest:
        match argument_text(argument, MAX_WORD_LENGTH).upper():
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
_BLOCKING: dict[str, tuple[Callable[[Sequence[object]], object], int]] = {
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

# After these the connection is no longer as the pool made it.
_ALTERS_CONNECTION = frozenset(
    {
        "ASKING",  # the next command may be answered for a slot that moves
        "AUTH",  # another user
        "CLIENT CACHING",  # the next command decides what is tracked
        "CLIENT CAPA",  # the server redirects instead of failing
        "CLIENT IMPORT-SOURCE",  # expired keys are visible
        "CLIENT NO-EVICT",  # the server no longer drops this client when memory is short
        "CLIENT NO-TOUCH",  # reads no longer count for eviction
        "CLIENT REPLY",  # replies stay away
        "CLIENT SETINFO",  # another library in CLIENT LIST
        "CLIENT SETNAME",  # another name in CLIENT LIST
        "CLIENT TRACKING",  # invalidation messages among the replies
        "CLUSTER SYNCSLOTS",  # becomes a link between nodes
        "DEBUG",  # what its sub-commands do is documented nowhere
        "DISCARD",  # ends a transaction
        "EXEC",  # ends a transaction, and every watch
        "HELLO",  # another protocol, user or name
        "MONITOR",  # every command of every client among the replies
        "MULTI",  # what follows is queued
        "PSUBSCRIBE",  # messages among the replies
        "PSYNC",  # becomes a replica's link
        "PUNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "QUIT",  # closes the connection
        "READONLY",  # a cluster's replica answers reads
        "READWRITE",  # a cluster's replica no longer answers reads
        "REPLCONF",  # belongs to a replica's link
        "RESET",  # no user, no name, RESP2, database 0
        "SCRIPT DEBUG",  # the next EVAL starts a debugging session
        "SELECT",  # another database
        "SHUTDOWN",  # has no reply when it succeeds
        "SSUBSCRIBE",  # messages among the replies
        "SUBSCRIBE",  # messages among the replies
        "SUNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "SYNC",  # becomes a replica's link
        "UNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "UNWATCH",  # ends every watch
        "WATCH",  # the next EXEC may be refused
    }
)
# These leave the connection as it is, but must not queue up behind what they are to end.
_OUT_OF_BAND = frozenset(
    {
        "CLIENT UNPAUSE",  # a command that waits for the end of the pause would hold it back
        "FUNCTION KILL",  # the function that runs too long would hold it back
        "SCRIPT KILL",  # the script that runs too long would hold it back
    }
)
# Not read-only by the server's word, and yet running them twice does no harm.
_RETRY_SAFE = frozenset(
    {
        "CLIENT GETNAME",  # reports
        "CLIENT ID",  # reports
        "CLIENT INFO",  # reports
        "CLIENT LIST",  # reports
        "COMMAND",  # reports
        "COMMAND COUNT",  # reports
        "COMMAND DOCS",  # reports
        "COMMAND INFO",  # reports
        "CONFIG GET",  # reports
        "ECHO",  # answers what it was asked
        "INFO",  # reports
        "LASTSAVE",  # reports
        "PING",  # answers what it was asked
        "PUBSUB CHANNELS",  # reports
        "PUBSUB NUMPAT",  # reports
        "PUBSUB NUMSUB",  # reports
        "ROLE",  # reports
        "SCRIPT EXISTS",  # reports
        "SCRIPT LOAD",  # the second time finds the script there
        "TIME",  # reports
        "WATCH",  # watches what it watches already
    }
)
_RUNS_CODE = frozenset({"EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO"})
# They wait only if BLOCK is among their arguments.
_MAY_BLOCK = frozenset({"XREAD", "XREADGROUP"})
# They count the writes of their own connection (https://redis.io/docs/latest/commands/wait/).
_COUNTS_CONNECTION_WRITES = frozenset({"WAIT", "WAITAOF"})

_POLLS_FOR_DATA = _BLOCKING.keys() - _COUNTS_CONNECTION_WRITES

_UNKNOWN = Traits(shareable=False, alters_connection=True, retry_safe=False, runs_code=True)
# A module's command, by the dot in its name: modules cannot alter a connection.
_MODULE = _UNKNOWN._replace(alters_connection=False)


def _traits(name: str) -> Traits:
    waits = name in _BLOCKING
    return Traits(
        shareable=name not in _ALTERS_CONNECTION | _OUT_OF_BAND and (not waits or name in _MAY_BLOCK),
        alters_connection=name in _ALTERS_CONNECTION,
        retry_safe=name in _RETRY_SAFE or ("readonly" in TABLE[name].flags and (not waits or name in _MAY_BLOCK)),
        runs_code=name in _RUNS_CODE,
    )


_TRAITS = {name: _traits(name) for name in TABLE}
_CONTAINERS = {name.partition(" ")[0] for name in TABLE if " " in name}
# What almost every call is found in, with one look: its traits do not hang on its arguments.
_FIXED_TRAITS = {name: traits for name, traits in _TRAITS.items() if name not in _MAY_BLOCK | _CONTAINERS}


def traits_of(args: Sequence[Any]) -> Traits:
    """The traits of a call; those of a command that is not in the table are the careful ones."""
    name = args[0] if args else None
    if type(name) is str and (known := _FIXED_TRAITS.get(name)) is not None:
        return known
    if isinstance(name, str | bytes) and len(name) > MAX_NAME_LENGTH:
        return _UNKNOWN
    call = parse_command(args)
    name = call.name.upper()
    traits = _TRAITS.get(name)
    # An unknown sub-command, which may do anything, is found under the name of the commands that it is one of.
    if traits is None or (name in _CONTAINERS and call.total):
        return _MODULE if "." in name else _UNKNOWN
    if name in _MAY_BLOCK and any(_word(argument) == "BLOCK" for argument in call.arguments):
        return traits._replace(shareable=False, retry_safe=False)
    return traits


def _word(argument: object) -> str:
    # Servers compare as C does, to the first zero byte.
    return argument_text(argument, MAX_WORD_LENGTH).partition("\0")[0].upper()


def traits_of_batch(batch: Collection[Sequence[Any]]) -> Traits:
    """The traits of commands that are sent, and sent again, all together or not at all.

    An error may come after some of them were done, unless all of them may be repeated.
    """
    each = [traits_of(args) for args in batch]
    repeatable = all(traits.retry_safe for traits in each)
    return Traits(
        shareable=all(traits.shareable for traits in each),
        alters_connection=any(traits.alters_connection for traits in each),
        retry_safe=repeatable,
        runs_code=not repeatable,
    )


def counts_connection_writes(args: Sequence[Any]) -> bool:
    """Whether the command is about the writes of the very connection that it is sent on."""
    return operation_name(args).upper() in _COUNTS_CONNECTION_WRITES


def polls_for_data(args: Sequence[Any]) -> bool:
    """Whether the command is one that consumers wait or look for data with, over and over."""
    return operation_name(args).upper() in _POLLS_FOR_DATA


def blocking_timeout(args: Sequence[Any]) -> float | None:
    """The seconds for which the server may hold back the reply, ``math.inf`` if that is for ever.

    Returns:
        ``None`` if it answers at once, also because the time that was given is none.
    """
    name = args[0] if args else None
    if type(name) is str and name in _FIXED_TRAITS and name not in _BLOCKING:
        return None
    wait = _BLOCKING.get(operation_name(args).upper())
    if wait is None:
        return None
    argument, units_per_second = wait
    try:
        seconds = float(argument_text(argument(parse_command(args).arguments), MAX_WORD_LENGTH)) / units_per_second
    except (IndexError, ValueError):
        return None
    if seconds == 0:
        return math.inf
    return seconds if 0 < seconds < math.inf else None
