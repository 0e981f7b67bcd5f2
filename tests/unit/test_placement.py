"""Where commands go in a cluster, and what becomes of the replies."""

import copy
import shlex

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st
from redis.cluster import RedisCluster
from redis.exceptions import ClusterCrossSlotError, CrossSlotTransactionError, RedisClusterException
from support.internals import keys_in_order

from aioredis_monitored import ClusterRoutingError, CrossSlotError, MonitoredRedisError
from aioredis_monitored._commands.table import TABLE, keys_of
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored._topology.placement import (
    CROSS_SLOT_ADVICE,
    FIRST_KEY,
    REPLICA_READS,
    REVIEWED,
    SPLIT,
    Combination,
    Kind,
    batch_slot,
    combine,
    may_read_from_replica,
    placement_of,
    routing_error,
    split,
)

SOME = st.one_of(
    st.sampled_from(
        ["a", "{a}1", "{a}2", "b", "0", "1", "2", "STREAMS", "STORE", "KEYS", "ID", "RESET", "AUTH2", "BY"]
    ),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.binary(max_size=4).map(bytearray),
    st.binary(max_size=4).map(memoryview),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.builds(object),
    st.just("\ud800"),
    st.just(10**5000),
)
NAMES = st.sampled_from(sorted(TABLE)).flatmap(
    lambda name: st.sampled_from([[name], name.split(), [name.lower()], [name.encode()], [f" {name} "]])
)
CALLS = st.one_of(
    st.lists(SOME, max_size=5), st.tuples(NAMES, st.lists(SOME, max_size=7)).map(lambda parts: [*parts[0], *parts[1]])
)


def kind_of(command):
    return placement_of(command.split()).kind


def slot_of(command):
    placement = placement_of(shlex.split(command))
    assert placement.kind is Kind.SLOT, placement
    return placement.slot


# The lists.


def test_every_command_without_keys_is_reviewed():
    keyless = {name for name, info in TABLE.items() if not info.keys}

    assert keyless - REVIEWED.keys() == {"CLUSTERSCAN", "SPUBLISH"}
    assert set() == REVIEWED.keys() - keyless
    assert {"CLUSTERSCAN", "SPUBLISH"} <= FIRST_KEY


@pytest.mark.parametrize("names", [SPLIT, CROSS_SLOT_ADVICE, FIRST_KEY, REPLICA_READS])
def test_placement_lists_name_only_commands_of_the_table(names):
    assert set() == set(names) - TABLE.keys()


@pytest.mark.parametrize("placement", {**REVIEWED, **SPLIT}.values(), ids={**REVIEWED, **SPLIT}.keys())
def test_reviewed_placement_has_a_reason_and_says_how_replies_are_combined(placement):
    assert placement.reason
    is_sent_to_several = placement.kind in {Kind.SPLIT, Kind.ALL_PRIMARIES, Kind.ALL_NODES}
    assert is_sent_to_several == (placement.combination is not None)


# One slot.


@given(CALLS)
@example(["PUBLISH", None])
def test_placement_never_raises_on_any_arguments(args):
    placement = placement_of(args)

    # A command for any primary may prefer that of a slot.
    assert (placement.kind is Kind.SLOT) == (placement.slot is not None and placement.kind is not Kind.ANY)
    assert placement.slot is None or 0 <= placement.slot < 16384
    may_read_from_replica(args)
    keys_in_order(args)
    if placement.kind is Kind.SPLIT:
        split(args)
    if placement.kind in {Kind.CROSS_SLOT, Kind.NAMED_NODE, Kind.REFUSED}:
        routing_error(args, placement)


@given(st.sampled_from(sorted(FIRST_KEY)), SOME, st.lists(SOME, max_size=3))
def test_command_of_first_key_goes_to_the_slot_of_its_first_argument(name, key, more):
    expected = (Kind.SLOT, key_slot(key))

    assert expected == placement_of([name, key, *more])[:2]
    # The general way, which other spellings take, leads to the same slot.
    assert expected == placement_of([name.lower(), key, *more])[:2]


@given(st.sampled_from(sorted(TABLE.keys() - {"SORT", "MIGRATE"})), st.lists(SOME, max_size=6))
def test_fast_and_general_ways_place_alike(name, arguments):
    general = placement_of([name.lower(), *arguments])
    slots = {key_slot(key) for key in keys_of([name, *arguments], 99)}

    assert general == placement_of([name, *arguments])
    if len(slots) > 1:
        assert general.kind in {Kind.SPLIT, Kind.CROSS_SLOT}
    elif slots:
        assert general[:2] == (Kind.SLOT, *slots)


@pytest.mark.parametrize(
    "command",
    [
        "GET {a}1",
        "get {a}1",
        "OBJECT ENCODING {a}1",
        "XGROUP CREATE {a}1 g $",
        "MGET {a}1 {a}2",
        "BLPOP {a}1 {a}2 0",
        "EVAL script 2 {a}1 {a}2 b",
        "FCALL f 1 {a}1 b",
        "XREAD COUNT 2 STREAMS {a}1 {a}2 0 0",
        "XREADGROUP GROUP b c STREAMS {a}1 >",
        "ZUNIONSTORE {a}1 2 {a}2 {a}3",
        "BITOP AND {a}1 {a}2 {a}3",
        "GEORADIUS {a}1 1 2 3 m STORE {a}2",
        "SORT {a}1 BY b LIMIT 0 5 GET c STORE {a}2",
        "SORT {a}1 BY STORE GET STORE",
        "SORT_RO {a}1 BY b GET c",
        "MIGRATE h 1 {a}1 0 5 COPY AUTH2 KEYS b",
        "MIGRATE h 1 '' 0 5 AUTH KEYS REPLACE KEYS {a}1 {a}2",
        "MIGRATE h 1 {a}1 0 5 KEYS b",
        "SPUBLISH {a}1 message",
        "SSUBSCRIBE {a}1 {a}2",
        "SUNSUBSCRIBE {a}1",
        "CLUSTERSCAN 0-{a}-5",
    ],
)
def test_command_goes_to_the_slot_of_its_keys(command):
    assert key_slot("a") == slot_of(command)


@pytest.mark.parametrize("name", ["COUNTKEYSINSLOT 42", "GETKEYSINSLOT 42 10", "FLUSHSLOT 42"])
def test_command_about_a_slot_goes_to_that_slot(name):
    assert slot_of(f"CLUSTER {name}") == 42


@pytest.mark.parametrize("number", ["16384", "-1", "x", "٣", ""])
def test_command_about_no_slot_goes_to_any_primary(number):
    assert placement_of(["CLUSTER COUNTKEYSINSLOT", number]).kind is Kind.ANY


@pytest.mark.parametrize(
    ("args", "slot"),
    [
        (("JSON.GET", "a", "$"), "a"),
        ((b"json.get", "a"), "a"),
        (("NEW a",), "a"),
        (("FT.AGGREGATE", "index", "*"), "index"),
        (("FT.CURSOR", "READ", "index", 5), "index"),
    ],
)
def test_unknown_command_goes_to_the_slot_of_what_may_be_its_key(args, slot):
    assert (Kind.SLOT, key_slot(slot), True) == (placement_of(args).kind, placement_of(args).slot, True)
    assert placement_of(args).is_guess


@pytest.mark.parametrize(
    "args",
    [
        ("PING",),
        ("info", "server"),
        ("RANDOMKEY",),
        ("CONFIG GET", "*"),
        ("EVAL", "script", 0, "a"),
        ("EVALSHA", "digest", "0"),
        ("FCALL", "f", 0),
        ("CLUSTER KEYSLOT", "a"),
        ("PUBLISH", "a", "b"),
        ("CLIENT FOO", "a"),
        ("XINFO FOO", "a"),
        ("FT._LIST",),
        ("UNKNOWN",),
        (),
        (None,),
        ("SUNSUBSCRIBE",),
        # No server accepts these.
        ("GET",),
        ("MGET",),
        ("MSET", "a"),
        ("BLPOP", "a"),
        ("EVAL", "script"),
        ("EVAL", "script", 3, "a"),
        ("EVAL", "script", -1, "a"),
        ("EVAL", "script", True, "a"),
        ("XREAD", "STREAMS", "a"),
    ],
)
def test_command_without_keys_goes_to_any_primary(args):
    assert placement_of(args).kind is Kind.ANY


# Several nodes.


@pytest.mark.parametrize(
    ("command", "kind", "combination"),
    [
        ("FLUSHALL", Kind.ALL_PRIMARIES, Combination.FIRST),
        ("DBSIZE", Kind.ALL_PRIMARIES, Combination.SUM),
        ("KEYS *", Kind.ALL_PRIMARIES, Combination.UNION),
        ("SCRIPT LOAD x", Kind.ALL_PRIMARIES, Combination.FIRST),
        ("SCRIPT EXISTS x", Kind.ALL_PRIMARIES, Combination.SMALLEST_OF_EACH),
        ("SCRIPT KILL", Kind.ALL_PRIMARIES, Combination.ONE_SUCCEEDED),
        ("FUNCTION LOAD x", Kind.ALL_PRIMARIES, Combination.FIRST),
        ("CONFIG SET a b", Kind.ALL_NODES, Combination.FIRST),
        ("ACL LOG", Kind.ALL_NODES, Combination.CONCATENATED),
        ("ACL LOG 5", Kind.ALL_NODES, Combination.CONCATENATED),
        ("ACL LOG reset", Kind.ALL_NODES, Combination.FIRST),
        ("PUBSUB NUMSUB a", Kind.ALL_NODES, Combination.SUM_OF_EACH),
        ("CLIENT LIST", Kind.ALL_NODES, Combination.CONCATENATED),
        ("CLIENT LIST TYPE normal", Kind.ALL_NODES, Combination.CONCATENATED),
        ("CLIENT LIST ID 1 2", Kind.NAMED_NODE, None),
        ("CLIENT KILL 127.0.0.1:1", Kind.ALL_NODES, Combination.ONE_SUCCEEDED),
        ("CLIENT KILL USER id", Kind.ALL_NODES, Combination.SUM),
        ("CLIENT KILL TYPE normal id 5", Kind.NAMED_NODE, None),
        ("CLIENT KILL NOT-ID 5", Kind.NAMED_NODE, None),
        ("CLIENT UNBLOCK 5", Kind.NAMED_NODE, None),
        ("CLIENT ID", Kind.NAMED_NODE, None),
        ("SCAN 0", Kind.CURSOR, None),
        ("WAIT 1 0", Kind.REFUSED, None),
        ("SWAPDB 0 1", Kind.REFUSED, None),
    ],
)
def test_command_that_concerns_several_nodes_is_placed_as_reviewed(command, kind, combination):
    placement = placement_of(command.split())

    assert (kind, combination) == (placement.kind, placement.combination)


@pytest.mark.parametrize("name", ["DEL", "UNLINK", "EXISTS", "TOUCH", "MGET"])
def test_command_is_split_only_if_its_keys_are_in_several_slots(name):
    assert kind_of(f"{name} {{a}}1 {{a}}2") is Kind.SLOT
    assert kind_of(f"{name} a b") is Kind.SPLIT
    assert kind_of(f"{name.lower()} a b") is Kind.SPLIT


@pytest.mark.parametrize(("args", "first"), [(["MGET", "b"], "b"), (["mget b"], b"b")])
def test_split_groups_keys_by_slot_in_the_order_of_their_first_appearance(args, first):
    name = args[0].split()[0]

    assert split([*args, "a", "{b}1", "c", "b"]) == [
        (key_slot("b"), (name, first, "{b}1", "b"), [0, 2, 4]),
        (key_slot("a"), (name, "a"), [1]),
        (key_slot("c"), (name, "c"), [3]),
    ]


@given(st.lists(st.one_of(st.text(max_size=3), st.binary(max_size=3), st.integers(0, 9)), min_size=1))
def test_split_mget_is_combined_in_the_order_of_its_keys(keys):
    parts = split(["MGET", *keys])
    replies = [[("value of", key) for key in part.args[1:]] for part in parts]

    assert [("value of", key) for key in keys] == combine(SPLIT["MGET"], replies, parts)
    assert all(key_slot(key) == part.slot for part in parts for key in part.args[1:])
    assert len({part.slot for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("command", "replies", "combined"),
    [
        ("DEL a b", [1, 0], 1),
        ("FLUSHALL", [b"OK", b"OK"], b"OK"),
        ("DBSIZE", [3, 4], 7),
        ("KEYS *", [[b"a", b"b"], [b"b", b"c"]], [b"a", b"b", b"c"]),
        ("SCRIPT EXISTS x y z", [[1, 1, 0], [1, 0, 0]], [1, 0, 0]),
        ("ACL DELUSER a", [1, 2], 2),
        ("SLOWLOG GET", [[[1, 2]], [], [[1, 2]]], [[1, 2], [1, 2]]),
        ("CLIENT LIST", [b"id=1\n", b"id=1\n"], b"id=1\nid=1\n"),
        ("CLIENT LIST", ["id=1\n", "id=2\n"], "id=1\nid=2\n"),
        ("PUBSUB NUMSUB a b", [[b"a", 1, b"b", 0], [b"a", 2, b"b", 5]], [b"a", 3, b"b", 5]),
    ],
)
def test_replies_are_combined_into_the_one_that_a_single_server_would_send(command, replies, combined):
    assert combined == combine(placement_of(command.split()), replies)


# redis-py parses replies of each node first; a client that is no RedisCluster gets what a single server would send.
PLACED_OTHERWISE = {"CLIENT SETNAME", "CLIENT UNBLOCK", "PING", "SCAN", "WAIT"}
COUNTS = {"PUBSUB NUMSUB", "PUBSUB SHARDNUMSUB"}
PARSED = {
    "DBSIZE": [3, 4],
    "KEYS": [[b"a", b"b"], [b"c"]],
    "PUBSUB CHANNELS": [[b"a"], [b"b", b"a"]],
    "PUBSUB SHARDCHANNELS": [[b"a"], [b"b"]],
    "PUBSUB NUMPAT": [1, 2],
    "SCRIPT EXISTS": [[True, True], [True, False]],
    "SCRIPT LOAD": ["digest", "digest"],
}


@pytest.mark.parametrize("name", sorted(RedisCluster.RESULT_CALLBACKS.keys() - PLACED_OTHERWISE - COUNTS))
def test_combined_replies_equal_those_of_redis_py_cluster_class(name):
    replies = PARSED.get(name, [True, True])

    theirs = RedisCluster.RESULT_CALLBACKS[name](name, dict(enumerate(replies)))
    ours = combine(placement_of([name]), replies)

    # redis-py's unions have no order.
    assert (theirs if name == "SCRIPT EXISTS" or type(theirs) is not list else sorted(theirs)) == ours


@pytest.mark.parametrize("name", ["PUBSUB NUMSUB", "PUBSUB SHARDNUMSUB"])
def test_combined_counts_of_subscribers_equal_those_of_redis_py_cluster_class(name):
    replies = [[b"a", 1], [b"a", 2, b"b", 3]]
    parse = redis.Redis().response_callbacks[name]

    theirs = RedisCluster.RESULT_CALLBACKS[name](name, dict(enumerate(map(parse, replies))))

    assert theirs == parse(combine(placement_of([name]), replies))


def test_first_error_is_the_combined_reply():
    error = redis.ResponseError("no")

    assert combine(placement_of(["DBSIZE"]), [1, error, redis.ResponseError("later")]) is error
    assert combine(SPLIT["MGET"], [error, [b"1"]], split(["MGET", "a", "b"])) is error


@pytest.mark.parametrize("name", ["SCRIPT KILL", "FUNCTION KILL"])
def test_success_of_one_node_is_the_combined_reply_of_a_kill(name):
    error = redis.ResponseError("NOTBUSY")

    assert combine(placement_of([name]), [error, b"OK", error]) == b"OK"
    assert combine(placement_of([name]), [error, redis.ResponseError("NOTBUSY")]) is error


# Refused.


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("MSET a 1 b 2", "mset_nonatomic()"),
        ("MSETNX a 1 b 2", "hash tag"),
        ("MSETEX 2 a 1 b 2", "hash tag"),
        ("RENAME a b", "hash tag"),
        ("COPY a b", "hash tag"),
        ("BITOP AND a b c", "hash tag"),
        ("SORT a STORE b", "hash tag"),
        ("SUNION a b", "hash tag"),
        ("BLPOP a b 0", "hash tag"),
        ("XREAD STREAMS a b 0 0", "separate calls"),
        ("SSUBSCRIBE a b", "one by one"),
        ("WATCH a b", "hash tag"),
        ("EVAL script 2 a b", "hash tag"),
        ("MIGRATE h 1 '' 0 5 KEYS a b", "hash tag"),
    ],
)
def test_command_with_keys_in_several_slots_is_refused_with_advice(command, advice):
    args = shlex.split(command)
    placement = placement_of(args)
    error = routing_error(args, placement)

    assert placement.kind is Kind.CROSS_SLOT
    assert type(error) is CrossSlotError
    assert str(error).startswith(f"{args[0]} has keys in several slots: ")
    assert advice in str(error)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (
            "client unblock 5",
            "CLIENT UNBLOCK needs a node: ids repeat across nodes, so it might",
        ),
        ("WAIT 1 0", "WAIT is refused in a cluster: it counts the replicas of one node; use it on a client() handle"),
    ],
)
def test_error_says_why_a_command_is_refused_and_what_to_do(command, text):
    error = routing_error(command.split(), placement_of(command.split()))

    assert type(error) is ClusterRoutingError
    assert str(error).startswith(text)


@pytest.mark.parametrize("base", [MonitoredRedisError, redis.RedisError, RedisClusterException])
def test_routing_errors_are_caught_as_redis_py_errors(base):
    assert issubclass(ClusterRoutingError, base)
    assert issubclass(CrossSlotError, base)


@pytest.mark.parametrize("base", [redis.ResponseError, ClusterCrossSlotError, CrossSlotTransactionError])
def test_cross_slot_error_is_caught_as_the_error_of_a_server_and_of_a_pipeline(base):
    assert issubclass(CrossSlotError, base)


@pytest.mark.parametrize("error", [CrossSlotError("text"), ClusterRoutingError("text")])
def test_routing_error_is_copied_and_shows_its_text(error):
    assert repr(error) == repr(copy.copy(error))
    assert f"{type(error).__name__}('text')" == repr(error)
    assert str(error) == "text"


# Transactions.


@pytest.mark.parametrize(
    ("commands", "slot"),
    [
        ([], None),
        (["PING", "EVAL script 0"], None),
        (["PING", "GET {a}1", "MGET {a}2 {a}3"], key_slot("a")),
        (["JSON.GET b", "GET a"], key_slot("a")),
        (["GET a", "JSON.GET b"], key_slot("a")),
        (["JSON.GET b", "JSON.GET c"], key_slot("b")),
    ],
)
def test_batch_slot_is_that_of_all_keys(commands, slot):
    assert slot == batch_slot([command.split() for command in commands])


@pytest.mark.parametrize(
    ("commands", "error", "text"),
    [
        (
            ["PING", "SET secret 1", "get {other}"],
            CrossSlotError,
            "command 2 (SET) and command 3 (GET) of the transaction have keys in two slots: ",
        ),
        (["MGET secret other"], CrossSlotError, "command 1 (MGET) of the transaction has keys in several slots: "),
        (["GET a", "RENAME secret b"], CrossSlotError, "command 2 (RENAME) of the transaction has keys in several "),
        (["DBSIZE"], ClusterRoutingError, "command 1 (DBSIZE) of the transaction would run at the node of its keys "),
        (["SCAN 0"], ClusterRoutingError, "command 1 (SCAN) of the transaction would run at the node of its keys "),
    ],
)
def test_batch_with_keys_in_several_slots_is_refused_without_showing_them(commands, error, text):
    with pytest.raises(error) as caught:
        batch_slot([command.split() for command in commands])

    assert type(caught.value) is error
    assert str(caught.value).startswith(text)
    assert "secret" not in str(caught.value)


# Replicas.


@pytest.mark.parametrize("command", ["GET a", "get a", "MGET a b", "XRANGE a - +", "SORT_RO a", "OBJECT ENCODING a"])
def test_read_may_go_to_a_replica(command):
    assert may_read_from_replica(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "SET a 1",
        "GETEX a",
        "SCAN 0",
        "HSCAN a 0",
        "sscan a 0",
        "ZSCAN a 0",
        "CLUSTERSCAN 0",
        "EVAL_RO s 1 a",
        "EVALSHA_RO s 1 a",
        "FCALL_RO f 1 a",
        "XREAD BLOCK 0 STREAMS a 0",
        "XREADGROUP GROUP g c STREAMS a >",
        "BLPOP a 0",
        "TOUCH a",
        "OBJECT FREQ a",
        "DBSIZE",
        "KEYS *",
        "PUBSUB CHANNELS",
        "WATCH a",
        "JSON.GET a",
        "",
    ],
)
def test_what_is_not_the_same_at_a_replica_goes_to_the_primary(command):
    assert not may_read_from_replica(command.split())


@pytest.mark.parametrize("name", ["SPUBLISH", "spublish", b"SPUBLISH"], ids=repr)
def test_message_for_a_shard_channel_goes_to_the_slot_of_the_channel(name):
    placement = placement_of((name, "{channel}", "message"))

    assert (Kind.SLOT, key_slot("channel")) == (placement.kind, placement.slot)
