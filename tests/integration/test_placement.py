"""Slots, keys and combined replies agree with a real server in cluster mode."""

import time
from itertools import product

import command_table
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis as AsyncRedis
from support.internals import keys_in_order
from support.sentences import Sentence

from aioredis_monitored._commands.table import TABLE
from aioredis_monitored._topology.hash_slots import key_slot
from aioredis_monitored._topology.placement import Kind, combine, placement_of
from aioredis_monitored.testing import RedisServer

DEADLINE = 30.0
# The server takes two seconds to open a new cluster.
POLL = 0.01


@pytest.fixture(scope="module")
def node():
    """Yield the only node of a cluster, which serves all slots."""
    with RedisServer("--cluster-enabled", "yes") as running, redis.Redis.from_url(running.url) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + DEADLINE
        while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline, "the cluster did not become ready"
            time.sleep(POLL)
        yield running


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def client(request, node):
    with redis.Redis.from_url(node.url, protocol=request.param) as client:
        yield client
        client.flushall()
        client.script_flush()


@pytest.fixture
async def grammars(node):
    async with AsyncRedis.from_url(node.url, decode_responses=True) as client:
        return await command_table.read_grammars(client)


@pytest.fixture
def connection(node):
    with redis.Redis.from_url(node.url, single_connection_client=True) as client:
        yield client.connection


def reply_to(connection, *args):
    """Send a command, and return the reply before redis-py's callbacks parse it; an error is a value."""
    connection.send_command(*args)
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


BRACED = st.lists(st.sampled_from(["{", "}", "a", "é", "{}", "user:1"]), max_size=8).map("".join)


def test_key_slot_matches_the_server_for_any_key(connection):
    @given(st.one_of(BRACED, st.binary(max_size=30), st.integers(), st.floats()))
    def check(key):
        assert reply_to(connection, "CLUSTER", "KEYSLOT", key) == key_slot(key)

    check()


def test_keys_in_order_match_those_of_the_server_for_every_command_grammar(connection, grammars):
    compared = set()

    @settings(max_examples=20)
    @given(chance=st.randoms(use_true_random=True))
    def check(chance):
        for name, grammar in grammars.items():
            args = Sentence(name, grammar, chance, lambda _: "1").args
            reply = reply_to(connection, "COMMAND", "GETKEYS", *args)
            if isinstance(reply, list):
                compared.add(name)
                assert reply == [key.encode() for key in keys_in_order(args)], args

    check()

    with_keys = {name for name in grammars if name in TABLE and TABLE[name].keys}
    assert with_keys - compared <= {"PFDEBUG", "RESTORE-ASKING"}


@pytest.mark.parametrize(
    "command",
    [
        "SORT a BY STORE GET STORE LIMIT 0 5 STORE b",
        "SORT a STORE b STORE c",
        "SORT a",
        "SORT_RO a BY b GET c",
        "MIGRATE host 6379 a 0 100 COPY",
        "MIGRATE host 6379 a 0 100 REPLACE AUTH2 KEYS b",
        "MIGRATE host 6379 a 0 100 AUTH KEYS",
    ],
)
def test_keys_in_unusual_places_match_those_of_the_server(connection, command):
    args = command.split()

    assert reply_to(connection, "COMMAND", "GETKEYS", *args) == [key.encode() for key in keys_in_order(args)]


def test_keys_of_migrate_match_those_of_the_server(connection):
    args = ["MIGRATE", "host", 6379, "", 0, 100, "AUTH2", "user", "keys", "KEYS", "a", "b"]
    reply = reply_to(connection, "COMMAND", "GETKEYS", *args)

    # Redis 7.0 takes the password for the word KEYS.
    assert reply in ([b"a", b"b"], [b"KEYS", b"a", b"b"])
    assert keys_in_order(args) == ["a", "b"]


def test_server_refuses_for_their_slots_the_commands_that_are_split_or_raise_here(connection, grammars):
    verdicts = {Kind.SLOT: set(), Kind.CROSS_SLOT: set(), Kind.SPLIT: set()}

    @settings(max_examples=20)
    @given(chance=st.randoms(use_true_random=True))
    def check(chance):
        for (name, grammar), key in product(grammars.items(), ["key", "{tag}"]):
            sentence = Sentence(name, grammar, chance, lambda _: "1", key=key)
            if not sentence.keys:
                continue
            # In a transaction that is discarded, the server looks at the keys and runs nothing.
            reply_to(connection, "MULTI")
            reply = reply_to(connection, *sentence.args)
            reply_to(connection, "DISCARD")
            kind = placement_of(sentence.args).kind
            if reply == b"QUEUED" and name != "MSETEX":  # Valkey 9.1 accepts its keys in several slots of one node
                assert kind is Kind.SLOT, sentence.args
                verdicts[kind].add(name)
            elif isinstance(reply, redis.exceptions.ClusterCrossSlotError):
                assert kind in {Kind.CROSS_SLOT, Kind.SPLIT}, sentence.args
                verdicts[kind].add(name)

    check()

    assert len(verdicts[Kind.SLOT]) > 150
    assert {"MSET", "RENAME", "BLPOP", "XREAD", "ZUNION"} <= verdicts[Kind.CROSS_SLOT]
    assert verdicts[Kind.SPLIT] == {"DEL", "EXISTS", "MGET", "TOUCH", "UNLINK"}


@pytest.mark.parametrize("command", ["SPUBLISH channel message", "SSUBSCRIBE channel", "SSUBSCRIBE {a}1 {a}2"])
def test_server_routes_shard_channels_by_the_slot_of_their_placement(connection, command):
    slot = placement_of(command.split()).slot
    # Without that slot, and with all others.
    reply_to(connection, "CONFIG", "SET", "cluster-require-full-coverage", "no")
    reply_to(connection, "CLUSTER", "DELSLOTS", slot)
    try:
        reply = reply_to(connection, *command.split())
    finally:
        reply_to(connection, "CLUSTER", "ADDSLOTS", slot)
        reply_to(connection, "CONFIG", "SET", "cluster-require-full-coverage", "yes")

    assert isinstance(reply, redis.exceptions.ClusterDownError)
    assert str(reply) == "Hash slot not served"


# Commands to several nodes, which a test may run at a server.
TO_SEVERAL = [
    "ACL DELUSER unknown",
    "ACL LOG",
    "ACL LOG RESET",
    "ACL SETUSER default on",
    "CLIENT KILL TYPE pubsub",
    "CLIENT LIST",
    "CLIENT UNPAUSE",
    "CONFIG RESETSTAT",
    "CONFIG SET slowlog-max-len 100",
    "DBSIZE",
    "FLUSHALL",
    "FUNCTION FLUSH",
    "KEYS *",
    "LATENCY RESET",
    "MEMORY PURGE",
    "PUBSUB CHANNELS",
    "PUBSUB NUMPAT",
    "PUBSUB NUMSUB a b",
    "PUBSUB SHARDCHANNELS",
    "PUBSUB SHARDNUMSUB a b",
    "SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db unknown",
    "SCRIPT FLUSH",
    "SLOWLOG GET",
    "SLOWLOG LEN",
    "SLOWLOG RESET",
]


@pytest.mark.parametrize("command", TO_SEVERAL)
def test_combined_reply_is_parsed_as_that_of_one_server(client, command):
    client.mset({"{a}1": 1, "{a}2": 2})
    client.script_load("return 1")
    args = command.split()
    placement = placement_of(args)
    with client.client() as handle:
        replies = [reply_to(handle.connection, *args) for _ in range(3)]

    assert placement.kind in {Kind.ALL_PRIMARIES, Kind.ALL_NODES}
    assert not [reply for reply in replies if isinstance(reply, Exception)]
    parse = client.response_callbacks.get(
        " ".join(args[:2]), client.response_callbacks.get(args[0], lambda reply: reply)
    )
    alone, combined = parse(replies[0]), parse(combine(placement, replies))
    assert type(alone) is type(combined)
    if isinstance(alone, list) and alone:
        assert type(alone[0]) is type(combined[0])


def test_combined_kill_is_an_error_only_if_no_node_ran_the_script(client):
    placement = placement_of(["SCRIPT KILL"])
    with client.client() as handle:
        refused = reply_to(handle.connection, "SCRIPT", "KILL")

    assert combine(placement, [refused, refused]) is refused
    assert combine(placement, [refused, b"OK"]) == b"OK"


def test_cursor_of_clusterscan_leads_through_the_slots(connection):
    if not reply_to(connection, "COMMAND", "INFO", "CLUSTERSCAN")[0]:
        pytest.skip("this server has no CLUSTERSCAN")
    cursor, _ = reply_to(connection, "CLUSTERSCAN", "0", "SLOT", "42")

    assert placement_of(["CLUSTERSCAN", cursor]).slot == 42


def test_server_refuses_sort_patterns_that_leave_the_slot(connection):
    for command in ["SORT a BY weight_*", "SORT a GET value_*"]:
        assert placement_of(command.split()).slot == key_slot("a")
        assert isinstance(reply_to(connection, *command.split()), redis.ResponseError)
