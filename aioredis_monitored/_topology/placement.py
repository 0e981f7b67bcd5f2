"""Where a command goes in a cluster: a reviewed list, with a reason for each command that has no keys.

Servers give hints too (``request_policy`` in ``COMMAND INFO``). They are not used: they send PING to every shard, so
that one dead shard fails every PING, they split MSET, which is then no longer atomic, and they differ between servers.

A call with keys goes to their slot. A command that the table does not know is taken to have its key in its first
argument. If that is wrong, a server that knows the keys answers MOVED without running the command, and if there are no
keys, any node will do; the same first argument always leads to the same node.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cache, reduce
from itertools import chain
from operator import add, itemgetter
from typing import Any, NamedTuple

from aioredis_monitored._commands.table import (
    MAX_WORD_LENGTH,
    TABLE,
    KeySpec,
    ParsedCommand,
    argument_text,
    operation_name,
    parse_command,
)
from aioredis_monitored._topology.hash_slots import SLOTS, key_slot
from aioredis_monitored.errors import ClusterRoutingError, CrossSlotError


class Kind(Enum):
    """The kinds of placements; the values are what the documentation says."""

    SLOT = "the primary of a slot"
    ANY = "any primary"
    SPLIT = "a part to each slot"
    ALL_PRIMARIES = "all primaries"
    ALL_NODES = "all nodes"
    CURSOR = "one primary after the other; the cursor names it"
    NAMED_NODE = "the node that the caller names"
    CROSS_SLOT = "raises `CrossSlotError`"
    REFUSED = "raises `ClusterRoutingError`"


class Combination(Enum):
    """How several nodes' replies become the one that a single server would send; the values are documentation."""

    FIRST = "the first one; all are alike"
    SUM = "their sum"
    LARGEST = "the largest"
    SMALLEST_OF_EACH = "for each argument the smallest"
    CONCATENATED = "one after the other"
    UNION = "all elements, each once"
    SUM_OF_EACH = "for each channel the sum"
    ONE_SUCCEEDED = "the first that is no error"
    IN_ORDER = "values in the order of the keys"


class Placement(NamedTuple):
    """Where a command goes.

    Attributes:
        kind: The kind of the placement.
        slot: The slot of all its keys, of ``SLOT``; of ``ANY`` the slot whose primary is preferred, if any.
        combination: How replies are combined; only of ``SPLIT``, ``ALL_PRIMARIES`` and ``ALL_NODES``.
        reason: Why, for errors and the documentation; empty if the keys decide.
        is_guess: Whether the slot is that of what may not be a key.
    """

    kind: Kind
    slot: int | None = None
    combination: Combination | None = None
    reason: str = ""
    is_guess: bool = False


class Part(NamedTuple):
    """A part of a command whose keys are in several slots.

    Attributes:
        slot: The slot of its keys.
        args: The command.
        positions: Where its keys stand among the keys of the whole, from 0.
    """

    slot: int
    args: tuple[Any, ...]
    positions: list[int]


def _any(reason: str) -> Placement:
    return Placement(Kind.ANY, reason=reason)


def _all_primaries(combination: Combination, reason: str) -> Placement:
    return Placement(Kind.ALL_PRIMARIES, combination=combination, reason=reason)


def _all_nodes(combination: Combination, reason: str) -> Placement:
    return Placement(Kind.ALL_NODES, combination=combination, reason=reason)


def _named_node(reason: str) -> Placement:
    return Placement(Kind.NAMED_NODE, reason=reason)


def _refused(reason: str) -> Placement:
    return Placement(Kind.REFUSED, reason=reason)


def _slot(reason: str) -> Placement:
    return Placement(Kind.SLOT, reason=reason)


_FIRST = Combination.FIRST
_SUM = Combination.SUM

# Commands that alter their connection, and transactions, are decided where connections are chosen; whatever node that
# connection belongs to will do.
REVIEWED: dict[str, Placement] = {
    "ACL CAT": _any("every node has the same categories"),
    "ACL DELUSER": _all_nodes(Combination.LARGEST, "each node has its own users"),
    "ACL DRYRUN": _any("users are the same everywhere"),
    "ACL GENPASS": _any("needs nothing of the node"),
    "ACL GETUSER": _any("users are the same everywhere"),
    "ACL LIST": _any("users are the same everywhere"),
    "ACL LOAD": _all_nodes(_FIRST, "each node has its own users"),
    "ACL LOG": _all_nodes(Combination.CONCATENATED, "each node has its own log"),
    "ACL SAVE": _all_nodes(_FIRST, "each node has its own file"),
    "ACL SETUSER": _all_nodes(_FIRST, "each node has its own users"),
    "ACL USERS": _any("users are the same everywhere"),
    "ACL WHOAMI": _any("connections to all nodes have the same user"),
    "ASKING": _any("alters its connection"),
    "AUTH": _any("alters its connection"),
    "BGREWRITEAOF": _all_primaries(_FIRST, "each primary has a part of the data"),
    "BGSAVE": _all_primaries(_FIRST, "each primary has a part of the data"),
    "CLIENT CACHING": _any("alters its connection"),
    "CLIENT CAPA": _any("alters its connection"),
    "CLIENT GETNAME": _any("reports about its connection"),
    "CLIENT GETREDIR": _any("reports about its connection"),
    "CLIENT ID": _named_node("ids repeat across nodes, so an id without its node may be another client's"),
    "CLIENT IMPORT-SOURCE": _any("alters its connection"),
    "CLIENT INFO": _any("reports about its connection"),
    "CLIENT KILL": _all_nodes(_SUM, "clients are connected to any node; with ID, the caller names the node"),
    "CLIENT LIST": _all_nodes(Combination.CONCATENATED, "each node has its own; with ID, the caller names the node"),
    "CLIENT NO-EVICT": _any("alters its connection"),
    "CLIENT NO-TOUCH": _any("alters its connection"),
    "CLIENT PAUSE": _all_nodes(_FIRST, "clients are connected to any node"),
    "CLIENT REPLY": _any("alters its connection"),
    "CLIENT SETINFO": _any("alters its connection"),
    "CLIENT SETNAME": _any("alters its connection"),
    "CLIENT TRACKING": _any("alters its connection"),
    "CLIENT TRACKINGINFO": _any("reports about its connection"),
    "CLIENT UNBLOCK": _named_node("ids repeat across nodes, so it might end the wait of another client"),
    "CLIENT UNPAUSE": _all_nodes(_FIRST, "clients are connected to any node"),
    "CLUSTER ADDSLOTS": _named_node("gives slots to the node"),
    "CLUSTER ADDSLOTSRANGE": _named_node("gives slots to the node"),
    "CLUSTER BUMPEPOCH": _named_node("changes the node's epoch"),
    "CLUSTER CANCELSLOTMIGRATIONS": _named_node("cancels migrations of the node"),
    "CLUSTER COUNT-FAILURE-REPORTS": _any("reports what the node knows of another"),
    "CLUSTER COUNTKEYSINSLOT": _slot("the argument is the slot"),
    "CLUSTER DELSLOTS": _named_node("makes the node forget slots"),
    "CLUSTER DELSLOTSRANGE": _named_node("makes the node forget slots"),
    "CLUSTER FAILOVER": _named_node("makes the node a primary"),
    "CLUSTER FLUSHSLOT": _slot("the argument is the slot"),
    "CLUSTER FLUSHSLOTS": _named_node("makes the node forget slots"),
    "CLUSTER FORGET": _named_node("makes the node forget another"),
    "CLUSTER GETKEYSINSLOT": _slot("the argument is the slot"),
    "CLUSTER GETSLOTMIGRATIONS": _named_node("reports migrations of the node"),
    "CLUSTER INFO": _any("every node knows the cluster"),
    "CLUSTER KEYSLOT": _any("every node computes the same"),
    "CLUSTER LINKS": _named_node("reports the node's links"),
    "CLUSTER MEET": _any("the node passes it on to the others"),
    "CLUSTER MIGRATESLOTS": _named_node("moves slots away from the node"),
    "CLUSTER MYID": _named_node("reports the node's id"),
    "CLUSTER MYSHARDID": _named_node("reports the id of the node's shard"),
    "CLUSTER NODES": _any("every node knows the cluster"),
    "CLUSTER REPLICAS": _any("every node knows the cluster"),
    "CLUSTER REPLICATE": _named_node("makes the node a replica"),
    "CLUSTER RESET": _named_node("makes the node leave the cluster"),
    "CLUSTER SAVECONFIG": _named_node("writes the node's file"),
    "CLUSTER SET-CONFIG-EPOCH": _named_node("changes the node's epoch"),
    "CLUSTER SETSLOT": _named_node("source and target of a migration get different ones"),
    "CLUSTER SHARDS": _any("every node knows the cluster"),
    "CLUSTER SLAVES": _any("every node knows the cluster"),
    "CLUSTER SLOT-STATS": _named_node("reports, and ranks, slots of the node"),
    "CLUSTER SLOTS": _any("every node knows the cluster"),
    "CLUSTER SYNCSLOTS": _named_node("makes the connection a link between nodes"),
    "COMMAND": _any("every node has the same commands"),
    "COMMAND COUNT": _any("every node has the same commands"),
    "COMMAND DOCS": _any("every node has the same commands"),
    "COMMAND GETKEYS": _any("every node has the same commands"),
    "COMMAND GETKEYSANDFLAGS": _any("every node has the same commands"),
    "COMMAND INFO": _any("every node has the same commands"),
    "COMMAND LIST": _any("every node has the same commands"),
    "COMMANDLOG GET": _all_nodes(Combination.CONCATENATED, "each node has its own log"),
    "COMMANDLOG LEN": _all_nodes(_SUM, "each node has its own log"),
    "COMMANDLOG RESET": _all_nodes(_FIRST, "each node has its own log"),
    "CONFIG GET": _any("settings are the same everywhere"),
    "CONFIG RESETSTAT": _all_nodes(_FIRST, "each node has its own statistics"),
    "CONFIG REWRITE": _all_nodes(_FIRST, "each node has its own file"),
    "CONFIG SET": _all_nodes(_FIRST, "each node has its own settings"),
    "DBSIZE": _all_primaries(_SUM, "each primary has a part of the keys"),
    "DEBUG": _named_node("its sub-commands are about the node"),
    "DISCARD": _any("belongs to a transaction, whose keys choose the node"),
    "ECHO": _any("needs nothing of the node"),
    "EXEC": _any("belongs to a transaction, whose keys choose the node"),
    "FAILOVER": _refused("the nodes choose their primaries; use CLUSTER FAILOVER"),
    "FLUSHALL": _all_primaries(_FIRST, "each primary has a part of the data"),
    "FLUSHDB": _all_primaries(_FIRST, "each primary has a part of the data"),
    "FUNCTION DELETE": _all_primaries(_FIRST, "each primary has its own functions, and replicates them"),
    "FUNCTION DUMP": _any("functions are the same everywhere"),
    "FUNCTION FLUSH": _all_primaries(_FIRST, "each primary has its own functions, and replicates them"),
    "FUNCTION KILL": _all_primaries(Combination.ONE_SUCCEEDED, "the function runs at one of them"),
    "FUNCTION LIST": _any("functions are the same everywhere"),
    "FUNCTION LOAD": _all_primaries(_FIRST, "each primary has its own functions, and replicates them"),
    "FUNCTION RESTORE": _all_primaries(_FIRST, "each primary has its own functions, and replicates them"),
    "FUNCTION STATS": _any("reports about one node"),
    "HELLO": _any("alters its connection"),
    "INFO": _any("reports about one node"),
    "KEYS": _all_primaries(Combination.UNION, "each primary has a part of the keys"),
    "LASTSAVE": _any("reports about one node"),
    "LATENCY DOCTOR": _any("reports about one node"),
    "LATENCY GRAPH": _any("reports about one node"),
    "LATENCY HISTOGRAM": _any("reports about one node"),
    "LATENCY HISTORY": _any("reports about one node"),
    "LATENCY LATEST": _any("reports about one node"),
    "LATENCY RESET": _all_nodes(_SUM, "each node has its own statistics"),
    "LOLWUT": _any("needs nothing of the node"),
    "MEMORY DOCTOR": _any("reports about one node"),
    "MEMORY MALLOC-STATS": _any("reports about one node"),
    "MEMORY PURGE": _all_nodes(_FIRST, "each node has its own memory"),
    "MEMORY STATS": _any("reports about one node"),
    "MODULE LIST": _any("modules are the same everywhere"),
    "MODULE LOAD": _named_node("loads a file of the node's machine"),
    "MODULE LOADEX": _named_node("loads a file of the node's machine"),
    "MODULE UNLOAD": _named_node("unloads a module of the node"),
    "MONITOR": _named_node("shows the commands of the node"),
    "MULTI": _any("belongs to a transaction, whose keys choose the node"),
    "PFSELFTEST": _any("needs nothing of the node"),
    "PING": _any("needs nothing of the node"),
    "PSUBSCRIBE": _any("messages of PUBLISH reach every node"),
    "PSYNC": _named_node("makes the connection a replica's link"),
    "PUBLISH": _any("messages of PUBLISH reach every node; the slot of the channel keeps those of a channel in order"),
    "PUBSUB CHANNELS": _all_nodes(Combination.UNION, "subscribers are connected to any node"),
    "PUBSUB NUMPAT": _all_nodes(_SUM, "subscribers are connected to any node"),
    "PUBSUB NUMSUB": _all_nodes(Combination.SUM_OF_EACH, "subscribers are connected to any node"),
    "PUBSUB SHARDCHANNELS": _all_nodes(Combination.UNION, "subscribers are connected to the nodes of their slots"),
    "PUBSUB SHARDNUMSUB": _all_nodes(Combination.SUM_OF_EACH, "subscribers are connected to the nodes of their slots"),
    "PUNSUBSCRIBE": _any("messages of PUBLISH reach every node"),
    "QUIT": _any("alters its connection"),
    "RANDOMKEY": _any("a key of one node, as in redis-py"),
    "READONLY": _any("alters its connection"),
    "READWRITE": _any("alters its connection"),
    "REPLCONF": _named_node("makes the connection a replica's link"),
    "REPLICAOF": _refused("the nodes choose their primaries; use CLUSTER REPLICATE"),
    "RESET": _any("alters its connection"),
    "ROLE": _any("reports about one node"),
    "SAVE": _all_primaries(_FIRST, "each primary has a part of the data"),
    "SCAN": Placement(Kind.CURSOR, reason="each primary has a part of the keys"),
    "SCRIPT DEBUG": _any("alters its connection"),
    "SCRIPT EXISTS": _all_primaries(Combination.SMALLEST_OF_EACH, "it must be everywhere, as any may get the EVALSHA"),
    "SCRIPT FLUSH": _all_primaries(_FIRST, "each primary has its own scripts"),
    "SCRIPT KILL": _all_primaries(Combination.ONE_SUCCEEDED, "the script runs at one of them"),
    "SCRIPT LOAD": _all_primaries(_FIRST, "any of them may get the EVALSHA"),
    "SCRIPT SHOW": _any("scripts are the same everywhere"),
    "SELECT": _any("alters its connection"),
    "SHUTDOWN": _named_node("ends the node"),
    "SLAVEOF": _refused("the nodes choose their primaries; use CLUSTER REPLICATE"),
    "SLOWLOG GET": _all_nodes(Combination.CONCATENATED, "each node has its own log"),
    "SLOWLOG LEN": _all_nodes(_SUM, "each node has its own log"),
    "SLOWLOG RESET": _all_nodes(_FIRST, "each node has its own log"),
    "SSUBSCRIBE": _slot("a shard channel has a slot, as a key"),
    "SUBSCRIBE": _any("messages of PUBLISH reach every node"),
    "SUNSUBSCRIBE": _slot("a shard channel has a slot, as a key"),
    "SWAPDB": _refused("each node would swap its own databases only"),
    "SYNC": _named_node("makes the connection a replica's link"),
    "TIME": _any("reports about one node"),
    "UNSUBSCRIBE": _any("messages of PUBLISH reach every node"),
    "UNWATCH": _any("belongs to a transaction, whose keys choose the node"),
    "WAIT": _refused("it counts the replicas of one node; use it on a client() handle, whose writes go to one node"),
    "WAITAOF": _refused("it counts the replicas of one node; use it on a client() handle, whose writes go to one node"),
}
_CONTAINERS = {name.partition(" ")[0] for name in TABLE if " " in name} - REVIEWED.keys()
REVIEWED |= dict.fromkeys(sorted(_CONTAINERS), _any("an unknown sub-command, which most servers refuse"))
REVIEWED |= {name: _any("explains the command") for name in TABLE if name.endswith(" HELP")}

# Commands that do for each key what they do for one: split, they lose nothing but that all keys change at once.
SPLIT: dict[str, Placement] = {
    "DEL": Placement(Kind.SPLIT, combination=_SUM, reason="each key is deleted on its own"),
    "EXISTS": Placement(Kind.SPLIT, combination=_SUM, reason="each key is counted on its own"),
    "MGET": Placement(Kind.SPLIT, combination=Combination.IN_ORDER, reason="each key is read on its own"),
    "TOUCH": Placement(Kind.SPLIT, combination=_SUM, reason="each key is touched on its own"),
    "UNLINK": Placement(Kind.SPLIT, combination=_SUM, reason="each key is deleted on its own"),
}

# What to do if keys are in several slots; a hash tag always helps.
CROSS_SLOT_ADVICE = {
    "MSET": "use mset_nonatomic(), or give the keys a common hash tag, as in {user:1}:name and {user:1}:mail",
    "SSUBSCRIBE": "subscribe to the channels one by one, or give them a common hash tag",
    "SUNSUBSCRIBE": "unsubscribe from the channels one by one, or give them a common hash tag",
    "XREAD": "read the streams in separate calls, or give them a common hash tag",
    "XREADGROUP": "read the streams in separate calls, or give them a common hash tag",
}
_HASH_TAG_ADVICE = "give the keys a common hash tag, as in {user:1}:name and {user:1}:mail"

# What the server routes by its first argument although that is no key: a shard channel, and a cursor with a hash tag.
_ROUTED_BY_FIRST_ARGUMENT = frozenset({"CLUSTERSCAN", "SPUBLISH"})

# Names of one word, in upper case, that go to the slot of their first argument: most calls. The router looks here
# before it asks ``placement_of``, if the name is a ``str`` and has an argument. SORT may have a second key.
FIRST_KEY = _ROUTED_BY_FIRST_ARGUMENT | {
    name for name, info in TABLE.items() if info.keys == (KeySpec(start=0),) and " " not in name and name != "SORT"
}

# What reads the same at a replica, apart from what has not arrived there yet. Excluded:
_NEVER_FROM_REPLICA = frozenset(
    {
        "EVALSHA_RO",  # the replica may not have the script
        "EVAL_RO",  # a script may read keys that it does not declare
        "FCALL_RO",  # as EVAL_RO
        "HSCAN",  # a cursor belongs to the node that made it
        "OBJECT FREQ",  # each node counts its own reads
        "OBJECT IDLETIME",  # each node counts its own reads
        "SSCAN",  # as HSCAN
        "TOUCH",  # is about the node that evicts
        "XREAD",  # may block
        "ZSCAN",  # as HSCAN
    }
)
REPLICA_READS = frozenset(
    name for name, info in TABLE.items() if "readonly" in info.flags and info.keys and name not in _NEVER_FROM_REPLICA
)

# Where keys stand among the arguments, of commands all of whose arguments are keys, apart from the first or last ones.
_KEY_SLICES = {
    name: slice(info.keys[0].start + 1, info.keys[0].last + 1 or None)
    for name, info in TABLE.items()
    if info.keys in {(KeySpec(start=0, last=-1),), (KeySpec(start=0, last=-2),)} and " " not in name
}
# Where the number of keys stands, of commands with one list of keys that their number precedes.
_KEY_COUNTS = {
    name: info.keys[0].start + 1
    for name, info in TABLE.items()
    if info.keys in {(KeySpec(start=0, counted=True),), (KeySpec(start=1, counted=True),)} and " " not in name
}


def placement_of(args: Sequence[Any]) -> Placement:
    """Return where a command goes; arguments that no server accepts go to any node, whose error says why.

    A handle that is pinned to a connection has its node already: only its first command is placed.

    Args:
        args: The arguments of ``execute_command``.
    """
    name = args[0] if args else None
    if type(name) is str:
        if name in FIRST_KEY and len(args) > 1:
            return _at_slot(key_slot(args[1]))
        if (keys := _KEY_SLICES.get(name)) is not None:
            return _at_slot_of(name, args[keys])
        if (at := _KEY_COUNTS.get(name)) is not None and len(args) > at:
            count = args[at]
            if type(count) is int and 0 <= count < len(args) - at:
                return _at_slot_of(name, args[at + 1 : at + 1 + count])
    return _placement_of_parsed(parse_command(args))


def _placement_of_parsed(call: ParsedCommand) -> Placement:
    name = call.name.upper()
    if (by_arguments := _BY_ARGUMENTS.get(name)) is not None:
        return by_arguments(call)
    if (reviewed := REVIEWED.get(name)) is not None:
        return reviewed
    if name not in TABLE:
        return _guess(call.arguments[:1])
    return _at_slot_of(name, [call.arguments[position] for position in _key_positions(name, call)])


def routing_error(args: Sequence[Any], placement: Placement) -> ClusterRoutingError:
    """Return the error to raise for a command that does not go to one node, where it would have to."""
    name = operation_name(args).upper()
    if placement.kind is Kind.CROSS_SLOT:
        return CrossSlotError(f"{name} has keys in several slots: {placement.reason}")
    if placement.kind is Kind.SPLIT:
        return CrossSlotError(f"{name} has keys in several slots, and is to go to one node: {_HASH_TAG_ADVICE}")
    if placement.kind is Kind.NAMED_NODE:
        return ClusterRoutingError(f"{name} needs a node: {placement.reason}; name the node by target_nodes=")
    if placement.kind is Kind.REFUSED:
        return ClusterRoutingError(f"{name} is refused in a cluster: {placement.reason}")
    return ClusterRoutingError(f"{name} goes to several nodes: call it outside pipelines and transactions")


def split(args: Sequence[Any]) -> list[Part]:
    """Split a command that ``placement_of`` calls ``SPLIT``, in the order in which its slots appear."""
    call = parse_command(args)
    positions: dict[int, list[int]] = {}
    for position, key in enumerate(call.arguments):
        positions.setdefault(key_slot(key), []).append(position)
    return [
        Part(slot, (call.name, *(call.arguments[position] for position in found)), found)
        for slot, found in positions.items()
    ]


def combine(placement: Placement, replies: Sequence[Any], parts: Sequence[Part] = ()) -> Any:
    """Combine the replies of several nodes into the one that a single server would send.

    Args:
        placement: The command's, of the kinds ``SPLIT``, ``ALL_PRIMARIES`` and ``ALL_NODES``.
        replies: What the nodes replied, at least one, before redis-py's callbacks parse it. Errors among them are
            values: the first one is returned, except of ``ONE_SUCCEEDED``.
        parts: What ``split`` has returned, in the order of the replies.
    """
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    if placement.combination is Combination.ONE_SUCCEEDED and len(errors) < len(replies):
        return next(reply for reply in replies if not isinstance(reply, Exception))
    if errors:
        return errors[0]
    if placement.combination is Combination.IN_ORDER:
        return _in_order(replies, parts)
    return _COMBINE.get(placement.combination, itemgetter(0))(replies)


def batch_slot(commands: Iterable[Sequence[Any]]) -> int | None:
    """Return the slot of a transaction; ``None`` if it has no keys.

    Raises:
        CrossSlotError: Its keys are in several slots.
        ClusterRoutingError: One of its commands concerns several nodes, or one that the caller must name.
    """
    slot = guess = None
    first = ""
    for number, args in enumerate(commands, start=1):
        placement = placement_of(args)
        command = f"command {number} ({operation_name(args).upper()})"
        if placement.kind in {Kind.SPLIT, Kind.CROSS_SLOT}:
            raise CrossSlotError(f"{command} of the transaction has keys in several slots: {_HASH_TAG_ADVICE}")
        if placement.kind not in {Kind.SLOT, Kind.ANY}:
            raise ClusterRoutingError(
                f"{command} of the transaction would run at the node of its keys only: call it outside the transaction"
            )
        if placement.kind is Kind.ANY:
            continue
        if placement.is_guess:
            guess = placement.slot if guess is None else guess
        elif slot is None:
            slot, first = placement.slot, command
        elif placement.slot != slot:
            raise CrossSlotError(f"{first} and {command} of the transaction have keys in two slots: {_HASH_TAG_ADVICE}")
    return guess if slot is None else slot


def may_read_from_replica(args: Sequence[Any]) -> bool:
    """Return whether the command only reads keys, and reads the same at a replica that has all writes."""
    name = args[0] if args else None
    return (type(name) is str and name in REPLICA_READS) or operation_name(args).upper() in REPLICA_READS


@cache
def _at_slot(slot: int) -> Placement:
    return Placement(Kind.SLOT, slot)


def _at_slot_of(name: str, keys: Sequence[object]) -> Placement:
    slots = [key_slot(key) for key in keys]
    if not slots:
        return _any("has no keys")
    if slots.count(slots[0]) == len(slots):
        return _at_slot(slots[0])
    return SPLIT.get(name) or Placement(Kind.CROSS_SLOT, reason=CROSS_SLOT_ADVICE.get(name, _HASH_TAG_ADVICE))


def _guess(arguments: Sequence[object]) -> Placement:
    if not arguments:
        return _any("is unknown")
    return Placement(Kind.SLOT, key_slot(arguments[0]), reason="is unknown", is_guess=True)


def _key_positions(name: str, call: ParsedCommand) -> Sequence[int]:
    if (find := _KEY_FINDERS.get(name)) is not None:
        return find(call.arguments)
    specs = call.info.keys
    try:
        if len(specs) == 1:
            return specs[0].positions(call.arguments, call.total)
        return [position for spec in specs for position in spec.positions(call.arguments, call.total)]
    except (IndexError, ValueError):
        return ()


def _words(arguments: Sequence[object]) -> list[str]:
    return [argument_text(argument, MAX_WORD_LENGTH).upper() for argument in arguments]


def _keys_of_sort(arguments: Sequence[object]) -> list[int]:
    """Return the key and that of STORE; a server refuses BY and GET patterns that are not in the key's slot."""
    words = _words(arguments)
    position, stored = 1, []
    while position < len(words):
        if words[position] == "STORE":
            stored = [position + 1]
        position += {"BY": 2, "GET": 2, "LIMIT": 3, "STORE": 2}.get(words[position], 1)
    return [found for found in [0, *stored] if found < len(words)]


def _keys_of_migrate(arguments: Sequence[object]) -> list[int]:
    """Return the key, or if that is empty those after KEYS, a word that may be a password too."""
    words = _words(arguments)
    position = len(words) if "".join(words[2:3]) else 5
    while position < len(words):
        if words[position] == "KEYS":
            return list(range(position + 1, len(words)))
        position += {"AUTH": 2, "AUTH2": 3}.get(words[position], 1)
    return [found for found in [2] if found < len(words)]


_KEY_FINDERS: dict[str, Callable[[Sequence[object]], list[int]]] = {
    "MIGRATE": _keys_of_migrate,
    "SORT": _keys_of_sort,
}


def _by_slot_number(call: ParsedCommand) -> Placement:
    number = argument_text(call.arguments[0], MAX_WORD_LENGTH) if call.arguments else ""
    if number.isascii() and number.isdigit() and int(number) < SLOTS:
        return _at_slot(int(number))
    return _any("has no slot")


def _by_channels(call: ParsedCommand) -> Placement:
    return _at_slot_of(call.name.upper(), call.arguments)


def _publish(call: ParsedCommand) -> Placement:
    return REVIEWED["PUBLISH"]._replace(slot=key_slot(call.arguments[0]) if call.arguments else None)


def _by_first_argument(call: ParsedCommand) -> Placement:
    return _at_slot_of(call.name.upper(), call.arguments[:1])


def _by_client_filter(call: ParsedCommand) -> Placement:
    name = call.name.upper()
    if {"ID", "NOT-ID"}.intersection(_words(call.arguments[::2])):
        return _named_node("ids repeat across nodes, so an id without its node may be another client's")
    if name == "CLIENT KILL" and call.total == 1:
        # The old form, CLIENT KILL address, fails where no client has the address.
        return REVIEWED[name]._replace(combination=Combination.ONE_SUCCEEDED)
    return REVIEWED[name]


def _acl_log(call: ParsedCommand) -> Placement:
    is_reset = "RESET" in _words(call.arguments[:1])
    return REVIEWED["ACL LOG"]._replace(combination=_FIRST) if is_reset else REVIEWED["ACL LOG"]


def _by_index_name(call: ParsedCommand) -> Placement:
    # FT.AGGREGATE, which makes the cursor, was sent by the name of the index too.
    return _guess(call.arguments[1:2])


_BY_ARGUMENTS: dict[str, Callable[[ParsedCommand], Placement]] = {
    "ACL LOG": _acl_log,
    "CLIENT KILL": _by_client_filter,
    "CLIENT LIST": _by_client_filter,
    "CLUSTER COUNTKEYSINSLOT": _by_slot_number,
    "CLUSTER FLUSHSLOT": _by_slot_number,
    "CLUSTER GETKEYSINSLOT": _by_slot_number,
    "FT.CURSOR": _by_index_name,
    "PUBLISH": _publish,
    **dict.fromkeys(_ROUTED_BY_FIRST_ARGUMENT, _by_first_argument),
    "SSUBSCRIBE": _by_channels,
    "SUNSUBSCRIBE": _by_channels,
}


def _sum_of_each(replies: Sequence[Sequence[Any]]) -> list[Any]:
    totals: dict[Any, int] = {}
    for reply in replies:
        for name, count in zip(reply[::2], reply[1::2], strict=True):
            totals[name] = totals.get(name, 0) + count
    return [item for pair in totals.items() for item in pair]


# The others return the first reply.
_COMBINE: dict[Combination | None, Callable[[Sequence[Any]], Any]] = {
    Combination.SUM: sum,
    Combination.LARGEST: max,
    Combination.SMALLEST_OF_EACH: lambda replies: [min(each) for each in zip(*replies, strict=True)],
    Combination.CONCATENATED: lambda replies: reduce(add, replies),
    Combination.UNION: lambda replies: list(dict.fromkeys(chain.from_iterable(replies))),
    Combination.SUM_OF_EACH: _sum_of_each,
}


def _in_order(replies: Sequence[Sequence[Any]], parts: Sequence[Part]) -> list[Any]:
    values = {
        position: value
        for reply, part in zip(replies, parts, strict=True)
        for position, value in zip(part.positions, reply, strict=True)
    }
    return [values[position] for position in range(len(values))]
