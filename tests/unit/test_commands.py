"""The command table's answers about commands, and that no text that it allows is a secret."""

import json
import math
import tracemalloc

import command_table
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored._commands import traits
from aioredis_monitored._commands.table import operation_name, stored_procedure
from aioredis_monitored._commands.traits import blocking_timeout
from aioredis_monitored._telemetry.query_text import query_text

ROWS = json.loads(command_table.TABLE.read_text())

SECRET = "hunter2"


def test_blocking_timeouts_cover_exactly_the_commands_flagged_blocking():
    assert {name for name, row in ROWS.items() if "blocking" in row.get("flags", "")} == traits._BLOCKING.keys()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("GET", "k"), "GET k"),
        (("SET", "k", SECRET, "EX", 10, "NX"), "SET k ? EX ? NX"),
        (("SET", "k", "NX"), "SET k ?"),
        (("SET k hunter2",), "SET k ?"),
        ((b"set", b"k", b"v", "get"), "set k ? get"),
        (("GET", "user:1", SECRET), "GET user:1 ?"),
        (("HMSET", "myhash", "field1", SECRET, "field2", SECRET), "HMSET myhash field1 ? field2 ?"),
        (("HGET", b"h", bytearray(b"f")), "HGET h f"),
        (("HDEL", "h", "f", 5, 1.5), "HDEL h f 5 1.5"),
        (("HINCRBY", "h", "f", 5), "HINCRBY h f ?"),
        (("HSETEX", "h", "EX", 5, "FIELDS", 2, "f", SECRET, "g", SECRET), "HSETEX h EX ? FIELDS ? f ? g ?"),
        (("XADD", "s", "MAXLEN", "~", 5, "*", "f", SECRET), "XADD s MAXLEN ~ ? * ? ?"),
        (("CONFIG", "SET", "requirepass", SECRET), "CONFIG SET ? ?"),
        (("config set", "requirepass", SECRET), "config set ? ?"),
        (("CONFIG hunter2",), "CONFIG ?"),
        (("CLIENT SETNAME", SECRET), "CLIENT SETNAME ?"),
        (("AUTH", SECRET), "AUTH ?"),
        (("HELLO", 3, "AUTH", "user", SECRET, "SETNAME", "n"), "HELLO ? AUTH ? ? SETNAME ?"),
        (("ACL SETUSER", "user", "on", ">hunter2"), "ACL SETUSER ? ? ?"),
        (("EVAL", SECRET, 1, "k", SECRET), "EVAL ? ? k ?"),
        (("EVAL", SECRET, 0, SECRET), "EVAL ? ? ?"),
        (("MIGRATE", "h", 1, "k", 0, 9, "AUTH2", "u", SECRET), "MIGRATE ? ? k ? ? AUTH2 ? ?"),
        (("PUBLISH", "channel", SECRET), "PUBLISH ? ?"),
        (("FOO", SECRET, SECRET), "FOO ? ?"),
        (("FOO hunter2",), "FOO ?"),
        # Keys with unusual characters, and bytes that are not text.
        (("GET", "a key"), 'GET "a key"'),
        (("GET", ""), 'GET ""'),
        (("GET", 'a\n"b"'), r'GET "a\n\"b\""'),
        (("GET", "clé"), "GET clé"),
        (("GET", b"\xff"), r"GET \xff"),
        # Invalid arguments are hidden.
        (("EVAL", SECRET, 5, SECRET), "EVAL ? ? ?"),
        (("EVAL", SECRET, "one", SECRET), "EVAL ? ? ?"),
        (("EVAL", SECRET, -1, SECRET), "EVAL ? ? ?"),
        (("EVAL", SECRET, " 1", SECRET), "EVAL ? ? ?"),
        (("EVAL", SECRET), "EVAL ?"),
        (("MSET", "k", SECRET, SECRET), "MSET ? ? ?"),
        (("HSET", "h", "f", SECRET, SECRET), "HSET ? ? ? ?"),
        (("XREAD", "STREAMS", "a", "b", SECRET), "XREAD ? ? ? ?"),
        (("HGETEX", "h", "FIELDS", 2, "f"), "HGETEX ? ? ? ?"),
        (("RENAME", "a"), "RENAME ?"),
        # redis-py refuses these, but only later.
        (("GET", None), "GET ?"),
        ((None, "k"), "? ?"),
        (("", "GET", "k"), "? ? ?"),
        ((), "?"),
    ],
)
def test_query_text_shows_keys_and_hides_values(args, text):
    assert query_text(args) == text


LONG = {
    "keys and values": ("MSET", *["k", "v"] * 100_000),
    "keys": ("DEL", *["k"] * 100_000),
    "counted keys": ("EVAL", "script", 100_000, *["k"] * 100_000),
    "values": ("SADD", "k", *["v"] * 100_000),
    "unknown": ("FOO", *["v"] * 100_000),
    "hardly too many": ("F", *["v"] * 512),
    "long keys": ("DEL", *["k" * 10_000] * 1000),
    "a key": ("SET", "k" * 10_000_000, "v" * 10_000_000),
    "bytes": ("SET", b"k" * 10_000_000, b"v" * 10_000_000),
    "wide characters": ("GET", "🔑".encode() * 1024),
    "one string": ("GET " + "k" * 10_000_000,),
}


@pytest.mark.parametrize("args", LONG.values(), ids=LONG)
def test_long_query_text_is_truncated_before_being_built(args):
    tracemalloc.start()
    text = query_text(args)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(text) == 1024
    assert text.endswith("…")
    assert peak < 500_000


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("GET", "k"), "GET"),
        (("get", "k"), "get"),
        ((b"GeT", "k"), "GeT"),
        ((bytearray(b"GET"), "k"), "GET"),
        (("CONFIG", "GET", "x"), "CONFIG GET"),
        (("CONFIG GET", "x"), "CONFIG GET"),
        ((b"config", memoryview(b"get"), "x"), "config get"),
        (("config  get x",), "config get"),
        (("CONFIG",), "CONFIG"),
        (("CONFIG", SECRET), "CONFIG"),
        (("SET k hunter2",), "SET"),
        (("JSON.SET", "k", "$", "1"), "JSON.SET"),
        (("JSON.SET k",), "JSON.SET"),
        (("X" * 100,), "X" * 64),
        (("\ud800",), r"\ud800"),
        ((), "?"),
    ],
)
def test_operation_name_is_command_and_subcommand(args, name):
    assert operation_name(args) == name


@pytest.mark.parametrize(
    ("args", "procedure"),
    [
        (("EVALSHA", "c0ffee", 0), "c0ffee"),
        ((b"evalsha_ro", b"c0ffee", 0), "c0ffee"),
        (("FCALL", "function", 1, "k"), "function"),
        (("FCALL_RO function 0",), "function"),
        (("EVALSHA",), None),
        (("EVAL", "script", 0), None),
        (("get", "k"), None),
        (("GET", "k"), None),
    ],
)
def test_stored_procedure_is_digest_or_function_name(args, procedure):
    assert stored_procedure(args) == procedure


@pytest.mark.parametrize(
    ("args", "seconds"),
    [
        (("GET", "k"), None),
        (("get", "k"), None),
        (("BLPOP", "k", 0), math.inf),
        ((b"blpop", b"k", b"0.0"), math.inf),
        (("BLPOP k 7",), 7),
        (("BLMPOP", 1.5, 1, "k", "LEFT"), 1.5),
        (("XREAD", b"BLOCK", 0, b"STREAMS", "s", "$"), math.inf),
        (("XREAD", "STREAMS", "block", "0"), None),
        (("XREADGROUP", "GROUP", "block", "streams", "STREAMS", "s", ">"), None),
        (("XREADGROUP", "BLOCK", 5, "GROUP", "g", "c", "STREAMS", "s", ">"), 0.005),
        (("XREAD", "BLOCK"), None),
        (("XREAD", "COUNT", 1), None),
        (("BLPOP", "k", "soon"), None),
        (("BLPOP", "k", None), None),
        (("BLPOP", "k", -1), None),
        (("BLPOP", "k", "nan"), None),
        (("BLPOP", "k", "inf"), None),
        (("BLPOP",), None),
        ((), None),
    ],
)
def test_blocking_timeout_is_the_seconds_a_command_blocks(args, seconds):
    assert blocking_timeout(args) == seconds


class Hostile:
    @property
    def __class__(self):
        raise RuntimeError

    def _refuse(self, *_):
        raise RuntimeError

    __str__ = __repr__ = __eq__ = __hash__ = __len__ = __getitem__ = __bool__ = _refuse


class HostileStr(str):
    __slots__ = ()
    __str__ = __repr__ = __eq__ = __hash__ = __len__ = upper = encode = Hostile._refuse

    def __getitem__(self, _):
        return 0


class HostileInt(int):
    __str__ = __repr__ = __eq__ = __hash__ = __index__ = __bool__ = Hostile._refuse


ANYTHING = st.one_of(
    st.sampled_from([*ROWS, "FIELDS", "STREAMS", "BLOCK", "1", 10**5000]),
    st.builds(Hostile),
    st.builds(HostileStr, st.just("GET")),
    st.builds(HostileInt, st.just(1)),
    st.text(st.characters()),
    st.binary(),
    st.binary().map(bytearray),
    st.binary().map(memoryview),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.lists(st.integers()),
)


@given(args=st.lists(ANYTHING, max_size=12).map(tuple), limit=st.integers(1, 64))
def test_command_helpers_never_raise_on_any_arguments(args, limit):
    text = query_text(args, limit=limit)

    assert len(text) <= limit
    for sent in (text, operation_name(args), stored_procedure(args) or ""):
        sent.encode()
    assert blocking_timeout(args) is None or blocking_timeout(args) > 0
