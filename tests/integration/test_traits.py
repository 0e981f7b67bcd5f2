"""What commands do to their connection, shown on real servers."""

import asyncio
import contextlib

import pytest
import redis
from support.sharing import until_answered

from aioredis_monitored import MonitoredRedisConnection
from aioredis_monitored._commands import traits
from aioredis_monitored.testing import RedisServer

# Fields of a connection that depend only on its past.
_HISTORY = {"addr", "age", "argv-mem", "avg-len-exec", "avg-len-recv", "cmd", "events", "id", "idle", "io-thread"}
_HISTORY |= {"laddr", "fd", "multi-mem", "obl", "omem", "qbuf", "qbuf-free", "rbp", "rbs"}
_HISTORY |= {"oll"}  # codespell:ignore oll
_HISTORY |= {"tot-cmds", "tot-mem", "tot-net-in", "tot-net-out", "read-events", "parse-batch-cmd-sum", "watch"}

SILENT = "no reply"
GONE = "the connection is gone"


class Evidence:
    """A representative call of a command that alters its connection, and how its effect shows.

    Args:
        call: The command.
        seen: The field of CLIENT LIST that changes, the answer to a further call, or ``GONE``.
        before: Commands to send first.
        then: The further call.
        cluster: Whether only a cluster's node accepts the command.
    """

    def __init__(self, call, seen, *before, then=None, cluster=False):
        self.args, self.seen, self.cluster = tuple(call.split()), seen, cluster
        self.before = [tuple(text.split()) for text in before]
        self.then = tuple(then.split()) if then else None


UNSEEN = None  # the server does not show it; each use has its reason
EVIDENCE = {
    "ASKING": Evidence("ASKING", UNSEEN, cluster=True),  # has an effect on a key in a slot that is being migrated
    "AUTH": Evidence("AUTH other secret", "user"),
    # For the next command only.
    "CLIENT CACHING": Evidence(
        "CLIENT CACHING YES",
        UNSEEN,
        "HELLO 3",
        "CLIENT TRACKING ON OPTIN",  # codespell:ignore
    ),
    "CLIENT CAPA": Evidence("CLIENT CAPA redirect", "capa"),
    "CLIENT IMPORT-SOURCE": Evidence("CLIENT IMPORT-SOURCE ON", "flags", "CONFIG SET import-mode yes"),
    "CLIENT NO-EVICT": Evidence("CLIENT NO-EVICT ON", "flags"),
    "CLIENT NO-TOUCH": Evidence("CLIENT NO-TOUCH ON", "flags"),
    "CLIENT REPLY": Evidence("CLIENT REPLY OFF", SILENT, then="PING"),
    "CLIENT SETINFO": Evidence("CLIENT SETINFO LIB-NAME x", "lib-name"),
    "CLIENT SETNAME": Evidence("CLIENT SETNAME x", "name"),
    "CLIENT TRACKING": Evidence("CLIENT TRACKING ON", "flags", "HELLO 3"),
    "CLUSTER SYNCSLOTS": Evidence("CLUSTER SYNCSLOTS CAPA x", UNSEEN, cluster=True),  # needs a slot migration
    "DEBUG": Evidence("DEBUG SLEEP 0", UNSEEN),  # its subcommands are not documented
    "DISCARD": Evidence("DISCARD", "flags", "MULTI"),
    "EXEC": Evidence("EXEC", "flags", "MULTI"),
    "HELLO": Evidence("HELLO 3", "resp"),
    "MONITOR": Evidence("MONITOR", "flags"),
    "MULTI": Evidence("MULTI", b"QUEUED", then="PING"),
    "PSUBSCRIBE": Evidence("PSUBSCRIBE c", "psub"),
    "PSYNC": Evidence("PSYNC ? -1", "flags"),
    "PUNSUBSCRIBE": Evidence("PUNSUBSCRIBE c", "psub", "PSUBSCRIBE c"),
    "QUIT": Evidence("QUIT", GONE),
    "READONLY": Evidence("READONLY", "flags", cluster=True),
    "READWRITE": Evidence("READWRITE", "flags", "READONLY", cluster=True),
    "REPLCONF": Evidence("REPLCONF listening-port 1", UNSEEN),  # has an effect when the connection becomes a replica's
    "RESET": Evidence("RESET", "db", "SELECT 1"),
    "SCRIPT DEBUG": Evidence("SCRIPT DEBUG YES", UNSEEN),  # the next EVAL starts a dialogue
    "SELECT": Evidence("SELECT 1", "db"),
    "SHUTDOWN": Evidence("SHUTDOWN NOSAVE", GONE),
    "SSUBSCRIBE": Evidence("SSUBSCRIBE c", "ssub"),
    "SUBSCRIBE": Evidence("SUBSCRIBE c", "sub"),
    "SUNSUBSCRIBE": Evidence("SUNSUBSCRIBE c", "ssub", "SSUBSCRIBE c"),
    "SYNC": Evidence("SYNC", "flags"),
    "UNSUBSCRIBE": Evidence("UNSUBSCRIBE c", "sub", "SUBSCRIBE c"),
    "UNWATCH": Evidence("UNWATCH", b"PONG", "WATCH k", then="other SET k v | MULTI | PING | EXEC"),
    "WATCH": Evidence("WATCH k", None, then="other SET k v | MULTI | PING | EXEC"),
}
RETRY_SAFE_ARGUMENTS = {
    "CLIENT LIST": ["ID", "1"],
    "COMMAND DOCS": ["GET"],
    "COMMAND INFO": ["GET"],
    "CONFIG GET": ["maxmemory"],
    "ECHO": ["x"],
    "PUBSUB NUMSUB": ["c"],
    "SCRIPT EXISTS": ["0" * 40],
    "SCRIPT LOAD": ["return 1"],
    "WATCH": ["key"],
}


@pytest.fixture(scope="module")
def scratch():
    with RedisServer("--enable-debug-command", "yes") as running:
        yield running


@pytest.fixture(scope="module")
def interpreter():
    # Another server than the one that ran SCRIPT DEBUG: Valkey 9.1 crashes at the next EVAL.
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def cluster_node():
    with RedisServer("--cluster-enabled", "yes") as running:
        yield running


@pytest.fixture
def at(scratch, cluster_node, own_server_of):
    def choose(name):
        if name == "SHUTDOWN":
            return own_server_of()
        return cluster_node if EVIDENCE[name].cluster else scratch

    return choose


@pytest.fixture
def own_server_of():
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(RedisServer())


@pytest.fixture
def raw():
    """Make raw connections of redis-py; close them at the end."""
    made = []

    def make(server):
        made.append(redis.Connection(server.host, server.port, protocol=2, socket_timeout=2))
        made[-1].connect()
        return made[-1]

    yield make
    for connection in made:
        connection.disconnect()


def ask(connection, *args):
    """Return the reply, whatever it is."""
    try:
        connection.send_command(*args)
        return connection.read_response(disconnect_on_error=False)
    except redis.TimeoutError:
        return SILENT
    except redis.RedisError as error:
        return error


def state(inspector, identity):
    """Return the server's view of a connection, without its past."""
    try:
        clients = {int(info["id"]): info for info in inspector.client_list()}
    except redis.ConnectionError:
        return GONE
    if identity not in clients:
        return GONE
    return {field: value for field, value in clients[identity].items() if field not in _HISTORY}


def is_unknown_here(name, reply):
    """Return whether this server has no such command, or refuses it now."""
    words = ("unknown", "Unknown", "wrong number of arguments for 'client", "import mode", "syntax error")
    return name in EVIDENCE and isinstance(reply, redis.ResponseError) and any(word in str(reply) for word in words)


def test_evidence_covers_every_altering_command():
    assert EVIDENCE.keys() == traits._ALTERS_CONNECTION


@pytest.mark.parametrize("name", EVIDENCE)
def test_altering_command_alters_its_connection(name, at, raw):
    evidence = EVIDENCE[name]
    connection, inspector = raw(server := at(name)), redis.Redis.from_url(server.url, decode_responses=True)
    inspector.acl_setuser("other", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
    identity = ask(connection, "CLIENT", "ID")
    for args in evidence.before:
        ask(connection, *args)
    before = state(inspector, identity)

    reply = ask(connection, *evidence.args)

    with contextlib.closing(inspector):
        if is_unknown_here(name, reply):
            pytest.skip(f"not here: {reply}")
        if evidence.seen == GONE:
            assert GONE == state(inspector, identity)
        elif name in {"WATCH", "UNWATCH"}:
            inspector.set("k", "v")
            ask(connection, "MULTI")
            ask(connection, "PING")
            assert (None if name == "WATCH" else [b"PONG"]) == ask(connection, "EXEC")
        elif evidence.then:
            assert evidence.seen == ask(connection, *evidence.then)
        elif evidence.seen:
            assert before[evidence.seen] != state(inspector, identity)[evidence.seen]
        else:
            assert not isinstance(reply, redis.AuthenticationError)


@pytest.mark.parametrize("multiplex", [True, False])
@pytest.mark.parametrize("name", sorted(EVIDENCE.keys() - {"SHUTDOWN"}))
async def test_altering_command_leaves_an_unaltered_connection_to_other_calls(make_pool, at, until, name, multiplex):
    args, server = EVIDENCE[name].args, at(name)
    pool = make_pool(server.url, protocol=2, socket_timeout=0.4, client_name="tested", multiplex=multiplex)
    client = MonitoredRedisConnection(connection_pool=pool)
    with redis.Redis.from_url(server.url, decode_responses=True) as inspector:
        observer = inspector.client_id()

        def states():
            identities = {int(info["id"]) for info in inspector.client_list()} - {observer}
            return [state(inspector, identity) for identity in identities]

        unaltered = state(inspector, await until_answered(client.client_id))
        with contextlib.suppress(redis.RedisError):
            await client.execute_command(*args)
        if name != "WATCH":  # a pipeline does not queue WATCH
            with contextlib.suppress(redis.RedisError):
                await client.pipeline(transaction=False).execute_command(*args).execute()

        assert [b"value"] * 3 == await asyncio.gather(*(until_answered(lambda: client.echo("value")) for _ in range(3)))

        await until(lambda: all(shown == unaltered for shown in states()))
        assert unaltered["name"] == "tested"


async def test_shutdown_returns_and_later_calls_raise_connection_error(make_pool, own_server):
    client = MonitoredRedisConnection(connection_pool=make_pool(own_server.url, retries=0))

    await client.shutdown(nosave=True)

    with pytest.raises(redis.ConnectionError):
        await client.get("key")


@pytest.mark.parametrize("name", sorted(traits._RETRY_SAFE))
def test_retry_safe_command_leaves_no_trace_when_repeated(scratch, raw, name):
    connection, inspector = raw(scratch), redis.Redis.from_url(scratch.url, decode_responses=True)
    with contextlib.closing(inspector):
        inspector.set("key", "value")
        args = (*name.split(), *RETRY_SAFE_ARGUMENTS.get(name, []))
        identity = ask(connection, "CLIENT", "ID")
        first = ask(connection, *args)
        before = state(inspector, identity), ask(connection, "DEBUG", "DIGEST"), inspector.dbsize()

        second = ask(connection, *args)

        assert not isinstance(first, redis.RedisError)
        assert type(first) is type(second)
        assert before == (state(inspector, identity), ask(connection, "DEBUG", "DIGEST"), inspector.dbsize())


@pytest.mark.parametrize("name", sorted(traits._RUNS_CODE))
def test_code_that_returns_an_error_may_have_written_unless_read_only(raw, interpreter, name):
    connection = raw(interpreter)
    write = "redis.call('INCR', 'written')"
    code = f"{'local x =' if name.endswith('_RO') else write} 1; return {{err='MINE'}}".replace(") 1;", ");")
    digest = ask(connection, "SCRIPT", "LOAD", code).decode()
    flags = ", flags={'no-writes'}" if name.endswith("_RO") else ""
    library = f"#!lua name=l\nredis.register_function{{function_name='f', callback=function() {code} end{flags}}}"
    assert b"l" == ask(connection, "FUNCTION", "LOAD", "REPLACE", library)
    ask(connection, "SET", "written", 0)

    reply = ask(connection, name, {"EVAL": code, "EVALSHA": digest, "FCALL": "f"}[name.removesuffix("_RO")], 0)

    assert "MINE" in str(reply)
    assert (b"0" if name.endswith("_RO") else b"1") == ask(connection, "GET", "written")


async def test_out_of_band_command_overtakes_the_calls_that_wait_for_it(make_pool, interpreter):
    client = MonitoredRedisConnection(connection_pool=make_pool(interpreter.url))
    await client.config_set("lua-time-limit", 1)
    library = "#!lua name=l\nredis.register_function('f', function() while true do end end)"
    await client.function_load(library, replace=True)
    endings = {
        "CLIENT UNPAUSE": (client.client_pause, 10_000, False),
        "SCRIPT KILL": (client.eval, "while true do end", 0),
        "FUNCTION KILL": (client.fcall, "f", 0),
    }
    assert endings.keys() == traits._OUT_OF_BAND

    for name, (begin, *arguments) in endings.items():
        calls = [asyncio.ensure_future(call) for call in (begin(*arguments), client.set("key", name))]
        for _ in range(3):
            await asyncio.sleep(0)
        deadline = asyncio.get_running_loop().time() + 3
        while not calls[1].done():
            assert asyncio.get_running_loop().time() < deadline
            with contextlib.suppress(redis.ResponseError):  # not started, or already ended
                await client.execute_command(name)
        begun, written = await asyncio.gather(*calls, return_exceptions=True)
        assert (True, name == "CLIENT UNPAUSE") == (written, begun is True)


@pytest.mark.parametrize("word", ["BLOCK", "bLock", b"block", memoryview(b"BLOCK"), "BLOCK\0", "BLOCK\0" + "x" * 99])
async def test_block_option_in_any_accepted_spelling_delays_no_other_call(client, word):
    waiting = asyncio.ensure_future(client.execute_command("XREAD", word, "200", "STREAMS", "s", "$"))

    pinged = [await client.ping() for _ in range(5)]

    assert [True] * 5 == pinged
    assert not waiting.done()
    assert not await waiting
