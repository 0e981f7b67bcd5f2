"""The Lua scripts of a queue: one file each, which documents its arguments and result."""

from importlib.resources import files

import pytest

from aioredis_monitored.queue import scripts

LOADED = {name: script for name, script in vars(scripts).items() if isinstance(script, scripts.LuaScript)}
FILES = {file.name: file.read_text("utf-8") for file in files("aioredis_monitored.queue").joinpath("lua").iterdir()}


def test_each_file_is_a_script():
    assert sorted(FILES) == sorted(f"{name.lower()}.lua" for name in LOADED)


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_what_its_script_is_given_and_returns(name):
    comment, code = FILES[name].split("\n\n", 1)

    assert all(line.startswith("--") for line in comment.splitlines())
    assert "-- KEYS: 1 " in comment
    assert ("-- ARGV: " in comment) == ("ARGV[" in code or "ipairs(ARGV)" in code)
    assert "\n-- Returns " in comment


@pytest.mark.parametrize("script", LOADED.values(), ids=LOADED)
async def test_comments_are_not_sent(client, script):
    assert "--" not in script.text
    assert script.text.isascii()
    # The server compiles the script, and knows it by the digest that is sent.
    digest = await client.script_load(script.text)
    assert ("EVALSHA", digest, 1, "key", 2) == script.evalsha(["key"], [2])
    assert ("EVAL", script.text, 1, "key", 2) == script.eval(["key"], [2])
