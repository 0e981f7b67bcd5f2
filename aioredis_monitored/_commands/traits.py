"""The traits of commands: whether they block, alter their connection, and may run twice.

The table says which commands are read-only. The rest is kept by hand, because servers do not say it, or are wrong:
Redis 7.0 does not list WAIT as blocking, and gives ``CLIENT REPLY`` the flags of ``CLIENT ID`` and ``SELECT`` those of
``ECHO``. Unknown commands get the most conservative traits.
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
    """What decides whether a command may share a connection, and whether it may be retried.

    Attributes:
        shareable: Whether it may be sent on a connection that others use at the same time: it is in the table, does not
            block, does not alter its connection, and need not overtake other commands.
        alters_connection: Whether it may leave its connection altered, and unusable for other callers.
        retry_safe: Whether running it twice does no more than running it once.
        runs_code: Whether it runs a script or a function, which may fail after some of its effects.
    """

    shareable: bool
    alters_connection: bool
    retry_safe: bool
    runs_code: bool


def _block_option(arguments: Sequence[object]) -> object:
    """Return the value of the option BLOCK; a group, a consumer or a stream may be called BLOCK too."""
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

# The argument that says how long the server may wait, and its unit. Servers say neither, and Redis 7.0 does not list
# WAIT as blocking.
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

# After these, the connection differs from those that the pool makes.
_ALTERS_CONNECTION = frozenset(
    {
        "ASKING",  # the next command may be answered for a slot that moves
        "AUTH",  # switches to another user
        "CLIENT CACHING",  # the next command decides what is tracked
        "CLIENT CAPA",  # the server redirects instead of failing
        "CLIENT IMPORT-SOURCE",  # expired keys are visible
        "CLIENT NO-EVICT",  # the server no longer drops this client when memory is short
        "CLIENT NO-TOUCH",  # reads no longer count for eviction
        "CLIENT REPLY",  # turns replies off
        "CLIENT SETINFO",  # sets another library in CLIENT LIST
        "CLIENT SETNAME",  # sets another name in CLIENT LIST
        "CLIENT TRACKING",  # adds invalidation messages to the replies
        "CLUSTER SYNCSLOTS",  # becomes a link between nodes
        "DEBUG",  # its sub-commands are not documented
        "DISCARD",  # ends a transaction
        "EXEC",  # ends a transaction, and every watch
        "HELLO",  # switches to another protocol, user or name
        "MONITOR",  # adds every command of every client to the replies
        "MULTI",  # what follows is queued
        "PSUBSCRIBE",  # adds messages to the replies
        "PSYNC",  # becomes a replica's link
        "PUNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "QUIT",  # closes the connection
        "READONLY",  # a cluster's replica answers reads
        "READWRITE",  # a cluster's replica no longer answers reads
        "REPLCONF",  # belongs to a replica's link
        "RESET",  # no user, no name, RESP2, database 0
        "SCRIPT DEBUG",  # the next EVAL starts a debugging session
        "SELECT",  # switches to another database
        "SHUTDOWN",  # has no reply when it succeeds
        "SSUBSCRIBE",  # adds messages to the replies
        "SUBSCRIBE",  # adds messages to the replies
        "SUNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "SYNC",  # becomes a replica's link
        "UNSUBSCRIBE",  # ends subscriptions; its replies may be several
        "UNWATCH",  # ends every watch
        "WATCH",  # the next EXEC may be refused
    }
)
# These do not alter the connection, but must not be queued behind the command that they end.
_OUT_OF_BAND = frozenset(
    {
        "CLIENT UNPAUSE",  # commands that wait for the end of the pause would block it
        "FUNCTION KILL",  # the function that runs too long would block it
        "SCRIPT KILL",  # the script that runs too long would block it
    }
)
# Servers do not list these as read-only, but running them twice does no harm.
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
        "ECHO",  # replies with its argument
        "INFO",  # reports
        "LASTSAVE",  # reports
        "PING",  # replies with its argument
        "PUBSUB CHANNELS",  # reports
        "PUBSUB NUMPAT",  # reports
        "PUBSUB NUMSUB",  # reports
        "ROLE",  # reports
        "SCRIPT EXISTS",  # reports
        "SCRIPT LOAD",  # the second one finds the script
        "TIME",  # reports
        "WATCH",  # watches the same keys again
    }
)
_RUNS_CODE = frozenset({"EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO"})
# These block only if BLOCK is among their arguments.
_MAY_BLOCK = frozenset({"XREAD", "XREADGROUP"})
# These count the writes of their own connection (https://redis.io/docs/latest/commands/wait/).
_COUNTS_CONNECTION_WRITES = frozenset({"WAIT", "WAITAOF"})

_POLLS_FOR_DATA = _BLOCKING.keys() - _COUNTS_CONNECTION_WRITES

_UNKNOWN = Traits(shareable=False, alters_connection=True, retry_safe=False, runs_code=True)
# A command of a module, which has a dot in its name: modules cannot alter a connection.
_MODULE = _UNKNOWN._replace(alters_connection=False)


def _traits(name: str) -> Traits:
    blocks = name in _BLOCKING and name not in _MAY_BLOCK
    return Traits(
        shareable=name not in _ALTERS_CONNECTION | _OUT_OF_BAND and not blocks,
        alters_connection=name in _ALTERS_CONNECTION,
        retry_safe=name in _RETRY_SAFE or ("readonly" in TABLE[name].flags and not blocks),
        runs_code=name in _RUNS_CODE,
    )


_TRAITS = {name: _traits(name) for name in TABLE}
_CONTAINERS = {name.partition(" ")[0] for name in TABLE if " " in name}
# Commands whose traits do not depend on their arguments: one lookup finds almost every call.
FIXED_TRAITS = {name: traits for name, traits in _TRAITS.items() if name not in _MAY_BLOCK | _CONTAINERS}


def traits_of(args: Sequence[Any]) -> Traits:
    """Return the traits of a command; the most conservative ones if it is not in the table."""
    name = args[0] if args else None
    if type(name) is str and (known := FIXED_TRAITS.get(name)) is not None:
        return known
    if isinstance(name, str | bytes) and len(name) > MAX_NAME_LENGTH:
        return _UNKNOWN
    call = parse_command(args)
    name = call.name.upper()
    traits = _TRAITS.get(name)
    # parse_command finds an unknown sub-command, which may do anything, under the name of its container.
    if traits is None or (name in _CONTAINERS and call.total):
        return _MODULE if "." in name else _UNKNOWN
    if name in _MAY_BLOCK and any(_word(argument) == "BLOCK" for argument in call.arguments):
        return traits._replace(shareable=False, retry_safe=False)
    return traits


def _word(argument: object) -> str:
    # Servers compare words as C strings, up to the first zero byte.
    return argument_text(argument, MAX_WORD_LENGTH).partition("\0")[0].upper()


def traits_of_batch(batch: Collection[Sequence[Any]]) -> Traits:
    """Return the traits of commands that are sent, and retried, together.

    Like a script, the batch may fail after some of its effects, unless all its commands are retry-safe.
    """
    each = [traits_of(args) for args in batch]
    retry_safe = all(traits.retry_safe for traits in each)
    return Traits(
        shareable=all(traits.shareable for traits in each),
        alters_connection=any(traits.alters_connection for traits in each),
        retry_safe=retry_safe,
        runs_code=not retry_safe,
    )


def counts_connection_writes(args: Sequence[Any]) -> bool:
    """Return whether the reply depends on the writes of the connection that the command is sent on."""
    return operation_name(args).upper() in _COUNTS_CONNECTION_WRITES


def polls_for_data(args: Sequence[Any]) -> bool:
    """Return whether consumers call the command over and over to wait or look for data."""
    return operation_name(args).upper() in _POLLS_FOR_DATA


def blocking_timeout(args: Sequence[Any]) -> float | None:
    """Return the seconds for which the server may delay the reply.

    Returns:
        ``math.inf`` if there is no limit; ``None`` if the server replies at once, also if the time is not valid.
    """
    name = args[0] if args else None
    if type(name) is str and name in FIXED_TRAITS and name not in _BLOCKING:
        return None
    blocking = _BLOCKING.get(operation_name(args).upper())
    if blocking is None:
        return None
    argument, units_per_second = blocking
    try:
        seconds = float(argument_text(argument(parse_command(args).arguments), MAX_WORD_LENGTH)) / units_per_second
    except (IndexError, ValueError):
        return None
    if seconds == 0:
        return math.inf
    return seconds if 0 < seconds < math.inf else None
