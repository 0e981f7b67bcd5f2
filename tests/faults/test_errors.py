"""Fault 15: every error that a server may answer has its type, costs one attempt, and harms no connection."""

import operator
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio
import redis.exceptions

from aioredis_monitored.testing import RedisServer

LOGINS = {"cmdstat_auth", "cmdstat_hello"}
DURATION = "db.client.operation.duration"


class ErrorCase(NamedTuple):
    """An error that a server answers.

    Attributes:
        status: The prefix of the reply.
        error: The exception that is raised.
        arrange: Makes the server answer ``call`` with the error, given an administrator's client.
        call: The call that gets the error.
        cure: Ends the error.
        keeps: Whether the client keeps its connection after the error.
        options: The server's options.
    """

    status: str
    error: type[Exception]
    arrange: Callable[[redis.Redis], object]
    call: Callable[[redis.asyncio.Redis], Coroutine[Any, Any, Any]]
    cure: Callable[[redis.Redis], object]
    keeps: bool = True
    options: tuple[str, ...] = ()


def nothing(admin):
    """Change nothing: the next call differs anyway."""


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


def start(admin, *args):
    """Send a command whose reply is never read."""
    admin.connection_pool.get_connection().send_command(*args)


def be_busy(admin):
    start(admin, "CONFIG", "SET", "lua-time-limit", 1)
    admin.ping()  # connects before the server refuses connections
    start(admin, "EVAL", "while true do end", 0)


def end_script(admin):
    def has_ended():
        with suppress(redis.exceptions.ResponseError):
            return admin.ping()

    admin.script_kill()
    wait_until(has_ended)


def load(admin):
    admin.config_set("key-load-delay", 1000)
    admin.config_set("loading-process-events-interval-bytes", 1024)
    admin.mset({f"key:{number}": "v" * 100 for number in range(4_000)})
    start(admin, "DEBUG", "RELOAD")
    wait_until(lambda: admin.info("persistence")["loading"])


def finish_loading(admin):
    admin.config_set("key-load-delay", 0)
    wait_until(lambda: not admin.info("persistence")["loading"])


def fail_to_save(admin):
    Path(admin.config_get("dir")["dir"], admin.config_get("dbfilename")["dbfilename"]).mkdir()
    admin.config_set("save", "3600 1")
    admin.config_set("stop-writes-on-bgsave-error", "yes")
    admin.bgsave()
    wait_until(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")


CASES = [
    ErrorCase(
        "OOM",
        redis.exceptions.OutOfMemoryError,
        lambda admin: admin.config_set("maxmemory", 1),
        lambda client: client.set("key", "value"),
        lambda admin: admin.config_set("maxmemory", 0),
    ),
    ErrorCase(
        "READONLY",
        redis.exceptions.ReadOnlyError,
        lambda admin: admin.replicaof("127.0.0.1", 1),
        lambda client: client.set("key", "value"),
        lambda admin: admin.replicaof("NO", "ONE"),
        keeps=False,  # the name may now lead to another server
    ),
    ErrorCase(
        "NOPERM",
        redis.exceptions.NoPermissionError,
        lambda admin: admin.execute_command("ACL", "SETUSER", "default", "-set"),
        lambda client: client.set("key", "value"),
        lambda admin: admin.execute_command("ACL", "SETUSER", "default", "+set"),
    ),
    ErrorCase(
        "WRONGTYPE",
        redis.exceptions.ResponseError,
        lambda admin: admin.rpush("key", "element"),
        lambda client: client.incr("key"),
        nothing,
    ),
    ErrorCase(
        "MISCONF",
        redis.exceptions.ResponseError,
        fail_to_save,
        lambda client: client.set("key", "value"),
        lambda admin: admin.config_set("save", ""),  # else the server would try to save when it stops
    ),
    ErrorCase(
        "NOSCRIPT",
        redis.exceptions.NoScriptError,
        nothing,
        lambda client: client.evalsha("0" * 40, 0),
        nothing,
    ),
    ErrorCase(
        "BUSY",
        redis.exceptions.ResponseError,
        be_busy,
        lambda client: client.set("key", "value"),
        end_script,
    ),
    ErrorCase(
        "LOADING",
        redis.exceptions.BusyLoadingError,
        load,
        # A write may get a TimeoutError: the loading server is slow, and the deadline cuts an attempt short.
        lambda client: client.get("key"),
        finish_loading,
        options=("--enable-debug-command", "yes"),
    ),
]


def error_types(telemetry):
    """Return the ``error.type`` of the last span, and those of all points of the duration."""
    points = telemetry.tally(DURATION, "error.type")
    return telemetry.spans[-1].attributes.get("error.type"), points.keys() - {""}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.status)
async def test_error_reply_raises_its_type_and_keeps_connection_usable(make_client, telemetry, multiplex, case):
    with RedisServer(*case.options) as server, redis.Redis.from_url(server.url) as admin:
        client = make_client(server.url, is_recorded=True, socket_timeout=60, retries=2)
        connection = await client.client_id()
        case.arrange(admin)

        with pytest.raises(case.error) as caught:
            await case.call(client)

        assert case.error is type(caught.value)
        assert (case.status, {case.status}) == error_types(telemetry)
        case.cure(admin)
        assert await client.set("other", "value") is True
        # On dedicated connections, redis-py closes a connection that answers LOADING.
        keeps = case.keeps and (multiplex or case.status != "LOADING")
        assert keeps == (connection == await client.client_id())
        await client.connection_pool.aclose()


def handshakes(admin):
    """Return how many connections and authentication attempts the server has counted."""
    calls = [details["calls"] for name, details in admin.info("commandstats").items() if name in LOGINS]
    return admin.info("stats")["total_connections_received"], sum(calls)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(("password", "status"), [("wrong", "WRONGPASS"), (None, "NOAUTH")])
async def test_wrong_or_missing_password_is_tried_once(make_client, telemetry, password, status, protocol):
    with RedisServer("--requirepass", "right") as server, redis.Redis.from_url(server.url, password="right") as admin:
        client = make_client(server.url, is_recorded=True, password=password, protocol=protocol)
        before = handshakes(admin)

        with pytest.raises(redis.exceptions.AuthenticationError):
            await client.set("key", "value")

        assert (status, {status}) == error_types(telemetry)
        # Without a password, RESP2 needs no handshake.
        assert (1, int(password is not None or protocol == 3)) == tuple(map(operator.sub, handshakes(admin), before))
        admin.config_set("requirepass", password or "")
        assert await client.set("key", "value") is True
        await client.connection_pool.aclose()
