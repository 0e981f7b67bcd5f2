"""The rights of the user, tried on a connection of its own; each try leaves the server as it was.

What is refused adds an entry to the server's ACL log. Those of a queue are asked for in a script, which adds none.
"""

import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from uuid import uuid4

from redis.exceptions import NoScriptError, ResponseError
from redis.utils import str_if_bytes

from aioredis_monitored.cli.doctor.subject import Server, is_refused
from aioredis_monitored.cli.findings import Finding, fault, ok, unknown, warning
from aioredis_monitored.queue.consumer import QueueKeys

_PAGE: Final = "https://aioredis-monitored.readthedocs.io/en/latest/guides/production.html"


class _Right(NamedTuple):
    """A right that the client needs.

    Attributes:
        name: What ``ACL SETUSER`` calls it, without the plus.
        command: A command that needs it, and changes nothing; it may fail.
        use: What it is for.
        for_queues: Whether queues need it.
        for_all: Whether it is a warning without queues too, as locks need it.
    """

    name: str
    command: tuple[Any, ...]
    use: str
    for_queues: bool = True
    for_all: bool = True


_UNKNOWN_SHA: Final = "0" * 40
# None of these changes anything: no client has the id 0, and the script is unknown, or is none.
_RIGHTS: Final = (
    _Right("client|id", ("CLIENT", "ID"), "waits of queues that are cancelled", for_all=False),
    _Right("client|unblock", ("CLIENT", "UNBLOCK", 0), "waits of queues that are cancelled", for_all=False),
    _Right("evalsha", ("EVALSHA", _UNKNOWN_SHA, 0), "locks and scripts"),
    _Right("eval", ("EVAL", "this is no script", 0), "locks and scripts"),
    _Right("script|load", ("SCRIPT", "LOAD", "this is no script"), "locks and scripts"),
    _Right("client|tracking", ("CLIENT", "TRACKING", "OFF"), "invalidation messages", for_queues=False, for_all=False),
)
# What a queue and its scripts call; in place of a key is the name that QueueKeys has for it.
QUEUE_COMMANDS: Final = (
    "BLMOVE queue processing LEFT RIGHT 0",
    "BLPOP queue 0",
    "DEL processing",
    "EXISTS processing",
    "HDEL deliveries field",
    "HINCRBY deliveries field 1",
    "HLEN deliveries",
    "HMGET deliveries field",
    "LINDEX processing 0",
    "LLEN queue",
    "LMOVE processing queue RIGHT LEFT",
    "LMOVE queue processing LEFT RIGHT",
    "LPOP queue",
    "LPUSH queue value",
    "LRANGE processing 0 0",
    "LRANGE dead 0 0",
    "LTRIM dead 0 0",
    "PERSIST queue",
    "RPUSH queue value",
    "RPUSH dead value",
    "SET sweeper value",
    "TIME",
    "UNLINK processing",
    "ZADD consumers 0 value",
    "ZCARD consumers",
    "ZRANGE consumers 0 0",
    "ZRANGEBYSCORE consumers 0 0",
    "ZREM consumers value",
    "ZSCORE consumers value",
)
_ASK: Final = """#!lua flags=no-writes
local refused = {}
for _, each in ipairs(cjson.decode(ARGV[1])) do
    if not redis.acl_check_cmd(unpack(each)) then
        table.insert(refused, each[1])
    end
end
return refused"""


async def check_rights(server: Server) -> list[Finding]:
    """Try what the client needs."""
    found: list[Finding] = []
    refused: list[_Right] = []
    allowed: list[_Right] = []
    for right in _RIGHTS:
        reply = await server.ask(*right.command)
        if is_refused(reply):
            refused.append(right)
        elif isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError) and "unknown" in str(reply):
            found.append(warning("rights", f"the server does not know {_name(right)}", "use Redis 7.0 or later"))
        else:
            allowed.append(right)
    if needed := [each for each in refused if server.subject.queues and each.for_queues]:
        found.append(fault("rights", f"queues need {_names(needed)}", _give(each.name for each in needed)))
    for right in refused:
        text = f"the user may not call {_name(right)}, which is for {right.use}"
        if right.for_all and right not in needed:
            found.append(warning("rights", text, _give([right.name])))
        elif right not in needed:
            found.append(ok("rights", text))
    if allowed:
        found.append(ok("rights", f"the user may call {_names(allowed)}"))
    return found


async def check_queue_rights(server: Server) -> list[Finding]:
    """Ask what the user may do with the keys of the queues."""
    found = []
    for queue in server.subject.queues:
        calls = list(calls_of(QueueKeys(queue)))
        reply = await server.ask("EVAL", _ASK, 0, json.dumps(calls))
        if is_refused(reply):
            found.append(unknown("queue rights", f"those for the queue {queue}", "+eval"))
        elif isinstance(reply, ResponseError):
            found.append(unknown("queue rights", f"those for the queue {queue}", "Redis 7.0 or later"))
        elif reply:
            refused = ", ".join(dict.fromkeys(str(str_if_bytes(each)) for each in reply))
            text = f"for the queue {queue}, the user may not call {refused}"
            found.append(fault("queue rights", text, f"give it the commands and keys of a queue's user: {_PAGE}"))
        else:
            found.append(ok("queue rights", f"the user may do all that the queue {queue} needs"))
    return found


def calls_of(keys: QueueKeys) -> Iterable[list[str]]:
    """Return the words of all commands that a queue calls."""
    names = {
        "queue": keys.queue,
        "consumers": keys.consumers,
        "deliveries": keys.deliveries,
        "dead": keys.dead,
        "sweeper": keys.sweeper,
        "processing": keys.processing(uuid4().hex),
    }
    for line in QUEUE_COMMANDS:
        yield [names.get(word, word) for word in line.split()]


def _name(right: _Right) -> str:
    return right.name.replace("|", " ").upper()


def _names(rights: Iterable[_Right]) -> str:
    return ", ".join(map(_name, rights))


def _give(rights: Iterable[str]) -> str:
    return f"ACL SETUSER with {' '.join(f'+{each}' for each in rights)}: {_PAGE}"
