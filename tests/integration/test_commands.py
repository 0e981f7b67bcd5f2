"""The command table agrees with real servers."""

import json
import time

import command_table
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis, ResponseError
from redis.asyncio import Redis as AsyncRedis
from support.sentences import Sentence

from aioredis_monitored._commands import table as commands
from aioredis_monitored._commands import traits
from aioredis_monitored._commands.table import operation_name
from aioredis_monitored._commands.traits import blocking_timeout
from aioredis_monitored._telemetry.query_text import query_text

ROWS = json.loads(command_table.TABLE.read_text())

SECRET = "hunter2"


@pytest.fixture
def inspector(server):
    with Redis.from_url(server.url, decode_responses=True) as inspector:
        yield inspector


@pytest.fixture
async def async_inspector(server):
    async with AsyncRedis.from_url(server.url, decode_responses=True) as inspector:
        yield inspector


@pytest.fixture
async def grammars(async_inspector):
    return await command_table.read_grammars(async_inspector)


# Rows that differ between redis-server 7.0 and Valkey 9.1.
REDIS_7_0 = {"WAIT": {"flags": "blocking"}}  # it blocks anyway, as the test of blocking_timeout shows


async def test_command_table_matches_the_server(async_inspector):
    live = await command_table.read_table(async_inspector)
    if (await async_inspector.info("server")).get("server_name") == "valkey":
        assert command_table.as_text(live) == command_table.TABLE.read_text()
        return
    for name, row in live.items():
        assert set(row.pop("words", "").split()) <= set(ROWS[name].get("words", "").split()), name
        # Later words can stand where no word of 7.0 can, and ZRANK had no words before WITHSCORE.
        row.pop("words_from", None)
        expected = {column: value for column, value in ROWS[name].items() if column not in ("words", "words_from")}
        assert {**row, **REDIS_7_0.get(name, {})} == expected, name


def keys_of(args):
    call = commands.parse_command(args)
    spans = [span.positions(call.arguments, call.total) for span in call.info.keys]
    return sorted(str(call.arguments[position]) for span in spans for position in span)


def server_keys_of(inspector, args):
    try:
        return sorted(inspector.execute_command("COMMAND GETKEYS", *args))
    except ResponseError as error:
        return [] if "no key arguments" in str(error) else None


def skip_without(inspector, name):
    if not inspector.execute_command("COMMAND INFO", name)[0]:
        pytest.skip(f"this server has no {name}")


@pytest.mark.parametrize(
    "command",
    [
        "GET a",
        "MSET a 1 b 2",
        "MSETEX 2 a 1 b 2 NX",
        "DEL a b c",
        "BLPOP a b 0",
        "BITOP AND a b c",
        "OBJECT ENCODING a",
        "MEMORY USAGE a SAMPLES 5",
        "XGROUP CREATE a group $ MKSTREAM",
        "EVAL script 2 a b c",
        "EVAL script 0 a",
        "FCALL function 1 a b",
        "XREAD COUNT 2 STREAMS a b 0 0",
        "XREADGROUP GROUP group streams BLOCK 5 STREAMS a b > >",
        "ZUNIONSTORE a 2 b c WEIGHTS 1 2",
        "ZINTERCARD 2 a b LIMIT 1",
        "LMPOP 2 a b LEFT COUNT 2",
        "BLMPOP 0 2 a b LEFT",
        "GEORADIUS a 1 2 3 m STORE b",
        "GEORADIUS a 1 2 3 m COUNT 5 STOREDIST b",
        "GEORADIUSBYMEMBER a member 3 m ASC STORE b",
        "MIGRATE host 6379 a 0 100 COPY AUTH2 keys password",
        "PFMERGE a b c",
        "LCS a b LEN",
        "PUBLISH a b",
        "SPUBLISH a b",
        "CLIENT ID",
    ],
)
def test_key_positions_match_those_of_the_server(inspector, command):
    args = command.split()
    skip_without(inspector, args[0])

    assert keys_of(args) == server_keys_of(inspector, args)


@pytest.mark.parametrize(
    ("args", "known", "unknown"),
    [
        (["SORT", "a", "BY", "b_*", "GET", "c_*", "STORE", "d"], ["a"], ["d"]),
        (["MIGRATE", "host", 6379, "", 0, 100, "KEYS", "a", "b"], [""], ["a", "b"]),
    ],
)
def test_keys_unknown_to_the_table_are_marked_incomplete_and_hidden(inspector, args, known, unknown):
    assert ROWS[args[0]]["incomplete"]
    assert keys_of(args) == known
    assert set(unknown) <= set(server_keys_of(inspector, args))
    assert query_text(args).split().count("?") >= len(unknown)


def test_query_text_hides_values_of_every_command_grammar(inspector, grammars):
    @settings(max_examples=20)
    @given(chance=st.randoms(use_true_random=True))
    def check(chance):
        for name, grammar in grammars.items():
            sentence = Sentence(name, grammar, chance, lambda _: SECRET)
            text = query_text(sentence.args, limit=10_000)

            assert operation_name(sentence.args) == name
            assert SECRET not in text, text
            assert len(text.split()) >= len(sentence.args)
            if not ROWS[name].get("incomplete"):
                assert keys_of(sentence.args) == sorted(sentence.keys), text
                seen = server_keys_of(inspector, sentence.args)
                assert seen in (None, sorted(sentence.keys)), text
            if name != "XADD":
                assert set(sentence.fields) <= set(text.split()), text

    check()


WAIT = 0.05
BLOCKING_CALLS = {
    "BLMOVE": "BLMOVE a b LEFT RIGHT 0.05",
    "BLMPOP": "BLMPOP 0.05 1 a LEFT",
    "BLPOP": "BLPOP a b 0.05",
    "BRPOP": "BRPOP a b 0.05",
    "BRPOPLPUSH": "BRPOPLPUSH a b 0.05",
    "BZMPOP": "BZMPOP 0.05 1 a MIN",
    "BZPOPMAX": "BZPOPMAX a 0.05",
    "BZPOPMIN": "BZPOPMIN a 0.05",
    "WAIT": "WAIT 1 50",
    "WAITAOF": "WAITAOF 0 1 50",
    "XREAD": "XREAD BLOCK 50 STREAMS block $",
    "XREADGROUP": "XREADGROUP GROUP block block COUNT 1 BLOCK 50 STREAMS stream >",
}


@pytest.mark.parametrize("name", traits._BLOCKING)
def test_blocking_commands_block_for_their_blocking_timeout(inspector, name):
    skip_without(inspector, name)
    inspector.xgroup_create("stream", "block", mkstream=True)
    args = BLOCKING_CALLS[name].split()

    started = time.perf_counter()
    inspector.execute_command(*args)
    elapsed = time.perf_counter() - started

    assert blocking_timeout(args) == WAIT
    # If milliseconds were taken for seconds, it would take fifty.
    assert WAIT * 0.9 < elapsed < WAIT + 15
