"""The Lua scripts of a queue: one file each, which documents its arguments and result."""

from importlib.resources import files

import pytest

from aioredis_monitored.queue import scripts

LOADED = {name: script for name, script in vars(scripts).items() if isinstance(script, scripts.LuaScript)}
FILES = {file.name: file.read_text("utf-8") for file in files("aioredis_monitored.queue").joinpath("lua").iterdir()}


def test_every_lua_file_belongs_to_a_script():
    assert sorted(FILES) == sorted(f"{name.lower()}.lua" for name in LOADED)


@pytest.mark.parametrize("name", FILES)
def test_lua_file_documents_keys_arguments_and_return_value(name):
    comment, code = FILES[name].split("\n\n", 1)

    assert all(line.startswith("--") for line in comment.splitlines())
    assert "-- KEYS: 1 " in comment
    assert ("-- ARGV: " in comment) == ("ARGV[" in code or "ipairs(ARGV)" in code)
    assert "\n-- Returns " in comment


@pytest.mark.parametrize("script", LOADED.values(), ids=LOADED)
async def test_script_is_sent_without_comments_under_its_own_digest(client, script):
    assert "--" not in script.text
    assert script.text.isascii()
    # The server compiles the script, and knows it by the digest that is sent.
    digest = await client.script_load(script.text)
    assert ("EVALSHA", digest, 1, "key", 2) == script.evalsha(["key"], [2])
    assert ("EVAL", script.text, 1, "key", 2) == script.eval(["key"], [2])
