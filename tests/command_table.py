"""Write ``_commands/table.json``, the table of commands, from the answers of a running server."""

import asyncio
import json
import sys
from itertools import takewhile
from pathlib import Path

from redis.asyncio import Redis

import aioredis_monitored
from aioredis_monitored.testing import RedisServer

TABLE = Path(aioredis_monitored.__file__).parent / "_commands" / "table.json"

_FLAGS = {"blocking", "readonly", "write"}
_KEY_SPEC_DEFAULTS = {"keyword": "", "counted": False, "last": 0, "share": 1, "step": 1}


async def read_table(client):
    """Return the table's rows by name; ``client`` decodes responses."""
    infos = await client.execute_command("COMMAND INFO")
    grammars = await read_grammars(client)
    return {name: _row(info, grammars[name]) for name, info in sorted(_with_subcommands(infos))}


async def read_grammars(client):
    """Return the ``arguments`` of ``COMMAND DOCS`` by full command name; ``client`` decodes responses."""
    return dict(_grammars(await client.execute_command("COMMAND DOCS")))


def as_text(table):
    """Return the table as JSON with one line per command, so that a diff shows which commands changed."""
    lines = (f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in table.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _with_subcommands(infos):
    for info in infos:
        name, subcommands = info[0], info[9]
        yield _full_name(name), info
        yield from _with_subcommands(subcommands)


def _grammars(docs):
    for name, doc in docs.items():
        yield _full_name(name), doc.get("arguments", [])
        yield from _grammars(doc.get("subcommands", {}))


def _full_name(name):
    return name.replace("|", " ").upper()


def _row(info, grammar):
    name, flags, specifications = info[0], info[2], info[8]
    # The server lists shard channels as keys, as they have a slot; PUBLISH does not show its channel either.
    specifications = [spec for spec in specifications if "not_key" not in spec["flags"]]
    known = [spec for spec in specifications if _is_complete(spec)]
    words = sorted(set(_words(grammar)))
    row = {
        "flags": " ".join(sorted(_FLAGS.intersection(flags))),
        "keys": [_key_spec(spec, len(name.split("|"))) for spec in known],
        "incomplete": len(known) < len(specifications),
        "fields": _field_specs(grammar),
        "words": " ".join(words),
        "words_from": len(list(takewhile(_is_fixed, grammar))) if words else 0,
    }
    return {column: value for column, value in row.items() if value}


def _is_complete(spec):
    return spec["begin_search"]["type"] != "unknown" and "incomplete" not in spec["flags"]


def _key_spec(spec, words_of_name):
    begin, find = spec["begin_search"]["spec"], spec["find_keys"]["spec"]
    if "keynumidx" in find:
        assert (find["keynumidx"], find["firstkey"]) == (0, 1), "a count that stands elsewhere"
        end = {"counted": True}
    else:
        end = {"last": find["lastkey"], "share": find["limit"] or 1}
    start = begin["index"] if "index" in begin else begin["startfrom"]
    assert start > 0, "a search from the end"
    return _spec(start=start - words_of_name, keyword=begin.get("keyword", ""), step=find["keystep"], **end)


def _field_specs(grammar):
    """Return where hash fields are: right after fixed arguments, or counted after the word FIELDS."""
    fixed = list(takewhile(lambda argument: _is_fixed(argument) and not _field_step(argument), grammar))
    rest = grammar[len(fixed) :]
    for argument in rest:
        if argument.get("token") == "FIELDS":
            step = _field_step(argument["arguments"][1])
            return [_spec(start=len(fixed), keyword="FIELDS", counted=True, step=step)]
    if rest and (step := _field_step(rest[0])):
        return [_spec(start=len(fixed), last=-1 if "multiple" in rest[0].get("flags", ()) else 0, step=step)]
    return []


def _field_step(argument):
    names = [part["name"] for part in argument.get("arguments", [argument])]
    return len(names) if names[0] == "field" else 0


def _spec(**spec):
    return {key: value for key, value in spec.items() if value != _KEY_SPEC_DEFAULTS.get(key)}


def _is_fixed(argument):
    """Return whether the argument is always exactly one word."""
    may_vary = {"optional", "multiple"}.intersection(argument.get("flags", ()))
    return not may_vary and argument["type"] != "block" and not list(_words([argument]))


def _words(grammar):
    for argument in grammar:
        yield from argument.get("token", "").upper().split()
        yield from _words(argument.get("arguments", []))


async def _write_table(url):
    async with Redis.from_url(url, decode_responses=True) as client:
        TABLE.write_text(as_text(await read_table(client)), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_write_table(sys.argv[1]))
    else:
        with RedisServer() as server:
            asyncio.run(_write_table(server.url))
