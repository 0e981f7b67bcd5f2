"""Changing credentials: refused ones are requested once more everywhere, and nothing else costs a second AUTH."""

import asyncio
import logging
import ssl
from contextlib import suppress
from itertools import chain, repeat

import blockbuster
import pytest
import redis.asyncio
import redis.exceptions
from redis.auth.token import SimpleToken
from redis.credentials import CredentialProvider, StreamingCredentialProvider, UsernamePasswordCredentialProvider
from support.consuming import blocked, held
from support.scripted import scripted
from support.sharing import UNRECORDED, begun, until_blocked

from aioredis_monitored import (
    ConfigurationError,
    MessageQueue,
    MonitoredRedisConnection,
    config_from_env,
    pool_from_config,
)
from aioredis_monitored.queue.worker import _auth_backoff

USER = "app"
REFUSED = redis.exceptions.AuthenticationError


class Tokens(CredentialProvider):
    """A provider that returns one password after the other, and the last one from then on.

    Args:
        passwords: The passwords to return.
        at_once: The number of first requests that are answered together.
    """

    def __init__(self, *passwords, at_once=1):
        self._passwords = chain(passwords, repeat(passwords[-1]))
        self._missing, self._together = at_once, asyncio.Event()
        self.asked = 0

    async def get_credentials_async(self):
        self.asked += 1
        password = next(self._passwords)
        self._missing -= 1
        if self._missing <= 0:
            self._together.set()
        await self._together.wait()
        return (USER, password)


class Alternating(CredentialProvider):
    """A provider whose token has just expired."""

    def __init__(self):
        self.asked = 0

    async def get_credentials_async(self):
        self.asked += 1
        return (USER, "fresh" if self.asked % 2 == 0 else "expired")


class Account:
    """A user of the server, and the server's counters since the test began."""

    def __init__(self, inspector):
        self._inspector = inspector
        self.set_password("fresh")
        inspector.config_resetstat()

    def set_password(self, password):
        self._inspector.acl_setuser(
            USER,
            enabled=True,
            reset_passwords=True,
            passwords=[f"+{password}"],
            commands=["+@all"],
            keys=["*"],
            channels=["*"],
        )

    def counted(self, *commands, what="calls"):
        stats = self._inspector.info("commandstats")
        return sum(stats.get(f"cmdstat_{command}", {}).get(what, 0) for command in commands)

    @property
    def attempts(self):
        """Return how often credentials were sent; RESP3 sends them with HELLO."""
        return self.counted("auth", "hello")

    @property
    def refusals(self):
        return self.counted("auth", "hello", what="failed_calls")

    def kill(self):
        """Close all connections except the inspector's."""
        for client in self._inspector.client_list():
            if client["user"] == USER:
                self._inspector.client_kill_filter(_id=client["id"])


@pytest.fixture
def account(inspector):
    yield Account(inspector)
    inspector.acl_deluser(USER)


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
def protocol(request):
    return request.param


@pytest.fixture
def client_with(make_client, server):
    def make(provider=None, **arguments):
        credentials = {} if provider is None else {"credential_provider": provider}
        return make_client(server.url, **credentials, **arguments)

    return make


# --- Refused credentials are requested once more ---


async def test_expired_token_fails_no_concurrent_call(client_with, account, inspector, protocol, multiplex):
    inspector.mset({str(number): number for number in range(20)})
    # Each call has a dedicated connection unless they share one.
    connections = 1 if multiplex else 20
    tokens = Tokens(*["expired"] * connections, "fresh", at_once=connections)
    client = client_with(tokens, protocol=protocol)

    replies = await asyncio.gather(*(client.get(number) for number in range(20)))

    assert [str(number).encode() for number in range(20)] == replies
    assert (2 * connections, connections) == (account.attempts, account.refusals)
    assert 2 * connections == tokens.asked


@pytest.mark.parametrize("kind", ["password", "static provider", "provider", "password_file"])
async def test_unchanged_credentials_are_sent_once_when_refused(client_with, account, protocol, tmp_path, kind):
    (tmp_path / "password").write_text("wrong\n")
    provider = Tokens("wrong")
    client = client_with(
        protocol=protocol,
        **{
            "password": {"username": USER, "password": "wrong"},
            "static provider": {"credential_provider": UsernamePasswordCredentialProvider(USER, "wrong")},
            "provider": {"credential_provider": provider},
            "password_file": {"username": USER, "password_file": tmp_path / "password"},
        }[kind],
    )

    with pytest.raises(REFUSED, match="invalid username-password pair"):
        await client.get("key")
    assert (1, 1) == (account.attempts, account.refusals)
    with pytest.raises(REFUSED):
        await client.connection_pool.ping()
    assert 2 == account.attempts
    assert provider.asked == (4 if kind == "provider" else 0)


async def test_credential_provider_is_asked_at_most_twice_per_connection(client_with, account, protocol):
    tokens = Tokens("expired", "expired too", "fresh")
    client = client_with(tokens, protocol=protocol)

    with pytest.raises(REFUSED):
        await client.get("key")
    assert (2, 2) == (tokens.asked, account.attempts)
    assert await client.get("key") is None
    assert (3, 3) == (tokens.asked, account.attempts)


async def test_valid_credentials_are_requested_and_sent_once(client_with, account, protocol):
    tokens = Tokens("fresh")
    client = client_with(tokens, protocol=protocol)
    for _ in range(10):
        await client.set("key", "value")

    assert (1, 1, 0) == (tokens.asked, account.attempts, account.refusals)


async def test_expired_token_is_renewed_on_every_dedicated_connection(client_with, account, inspector, protocol):
    client = client_with(Alternating(), protocol=protocol, decode_responses=True)
    inspector.rpush("list", "element")
    assert ["list", "element"] == list(await client.blpop("list", timeout=5))
    async with client.client() as handle:
        assert USER == await handle.acl_whoami()
    async with client.pipeline() as pipe:
        await pipe.watch("key")
        pipe.multi()
        pipe.set("key", "value")
        assert [True] == await pipe.execute()
    async with client.lock("lock", timeout=5):
        assert 1 == await client.exists("lock")
    async with client.pubsub() as subscription:
        await subscription.subscribe("news")
        assert "subscribe" == (await subscription.get_message(timeout=5))["type"]
        assert 1 == await client.publish("news", "hello")
        assert "hello" == (await subscription.get_message(timeout=5))["data"]

    assert 0 < account.refusals == account.attempts / 2


async def test_expired_token_is_renewed_when_a_subscription_reconnects(client_with, account, protocol, until):
    client = client_with(Alternating(), protocol=protocol, decode_responses=True)
    async with client.pubsub() as subscription:
        await subscription.subscribe("news")
        await subscription.get_message(timeout=5)
        account.kill()
        with suppress(redis.exceptions.ConnectionError):
            await subscription.get_message(timeout=5)
        while (message := await subscription.get_message(timeout=0.05)) is None or message["type"] != "message":
            await client.publish("news", "hello")

    # The callback of a successful connect is called once.
    assert 2 == account.counted("subscribe")


@pytest.mark.parametrize("kind", ["get", "take"])
async def test_expired_token_is_renewed_on_the_queues_other_connections(
    client_with, account, inspector, protocol, until, kind
):
    client = client_with(Alternating(), protocol=protocol)
    # A renewal has a part of the lease: here one that a busy machine does not use up.
    queue = MessageQueue("mail", client, lease=5)
    # The side channel unblocks the call that is left.
    (waiting,) = await begun(queue.get() if kind == "get" else queue.take().__aenter__())
    await until_blocked(inspector)
    waiting.cancel()
    await asyncio.wait([waiting])
    await until(lambda: not blocked(inspector))
    await queue.put(b"message")
    async with queue.take() as message:
        assert b"message" == message
        # Without a shared connection, the lease is renewed on another connection.
        renewed = account.counted("zadd", "set", "pexpire", "eval", "evalsha")
        await until(lambda: account.counted("zadd", "set", "pexpire", "eval", "evalsha") > renewed)

    assert [] == held(inspector)
    # A connection for a renewal may still be connecting, or was given up between the two.
    await until(lambda: account.refusals > 0 and abs(2 * account.refusals - account.attempts) <= 1)


@pytest.mark.parametrize(
    "refusal",
    [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "ERR invalid username-password pair",
        "ERR invalid password",
        "ERR Invalid password given",
        "NOAUTH Authentication required.",
    ],
)
async def test_refused_credentials_are_detected_in_the_words_of_every_server(make_client, refusal):
    sent = []

    def answer(connection, args):
        if args[0] == b"AUTH":
            sent.append((connection, args[2]))
            return b"+OK\r\n" if args[2] == b"fresh" else f"-{refusal}\r\n".encode()
        return b"$5\r\nvalue\r\n"

    async with scripted(answer) as port:
        client = make_client(f"redis://127.0.0.1:{port}", protocol=2, credential_provider=Tokens("expired", "fresh"))
        assert b"value" == await client.get("key")
        await client.connection_pool.aclose()

    assert [(1, b"expired"), (2, b"fresh")] == sent


async def test_other_handshake_error_is_not_taken_for_refused_credentials(client_with, account, protocol):
    tokens = Tokens("fresh")
    client = client_with(tokens, protocol=protocol, db=99)

    with pytest.raises(redis.exceptions.ResponseError, match="DB index is out of range"):
        await client.get("key")
    assert (1, 1) == (tokens.asked, account.attempts)


async def test_connect_function_runs_again_after_refused_credentials(client_with, account, protocol):
    called = []

    async def shake_hands(connection):
        called.append(connection)
        await connection.on_connect()

    client = client_with(Tokens("expired", "fresh"), protocol=protocol, redis_connect_func=shake_hands)

    assert await client.set("key", "value")
    assert (2, 1) == (len(called), account.refusals)


async def test_connect_function_may_be_a_plain_function(client_with):
    called = []

    def begin(connection):
        called.append(connection)
        connection._get_parser().on_connect(connection)

    client = client_with(Tokens("fresh"), redis_connect_func=begin, protocol=2)

    assert await client.set("key", "value")
    assert 1 == len(called)


async def test_server_lost_between_two_handshakes_raises_connection_error(make_client, own_server, multiplex):
    class Killing(Tokens):
        async def get_credentials_async(self):
            if self.asked == 1:
                own_server.kill()
            return await super().get_credentials_async()

    client = make_client(own_server.url, credential_provider=Killing("expired", "fresh"), retries=0)

    with pytest.raises(redis.exceptions.ConnectionError, match=r"^Error while connecting again: ") as caught:
        await client.get("key")
    assert not isinstance(caught.value, REFUSED)
    assert 0 == client.connection_pool.stats().used


async def test_credential_provider_error_reaches_the_caller_and_leaves_no_connection(client_with, account):
    class Failing(Tokens):
        async def get_credentials_async(self):
            if self.asked == 1:
                raise LookupError("no token")
            return await super().get_credentials_async()

    provider = Failing("expired")
    client = client_with(provider)

    with pytest.raises(LookupError, match="no token"):
        await client.get("key")
    provider.asked = 2
    with pytest.raises(REFUSED):
        await client.get("key")
    assert "0 used, 0 idle" in repr(client.connection_pool)


@pytest.mark.parametrize("ticks", range(12))
async def test_cancelled_handshake_keeps_the_credential_provider(client_with, account, protocol, ticks):
    tokens = Tokens("expired", "fresh")
    client = client_with(tokens, protocol=protocol)
    (call,) = await begun(client.get("key"))
    for _ in range(ticks):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])

    assert await client.get("key") is None
    pool = client.connection_pool
    assert {tokens} == {each.credential_provider for each in (*pool._available_connections, *pool._in_use_connections)}


# --- Streaming providers ---


class Streaming(StreamingCredentialProvider):
    """A provider that pushes tokens to its listeners, as redis-entraid does."""

    def __init__(self, password):
        self.password, self.callbacks = password, []

    def on_next(self, callback):
        self.callbacks.append(callback)

    def on_error(self, callback):
        pass

    def is_streaming(self):
        return True

    async def get_credentials_async(self):
        return (USER, self.password)

    async def push(self, password):
        self.password = password
        for callback in self.callbacks:
            await callback(token(password))


def token(password, user=USER):
    return SimpleToken(password, 2**62, 0, {"oid": user})


async def test_pushed_credentials_reach_all_connections(server, account, protocol, multiplex, until):
    provider = Streaming("fresh")
    async with MonitoredRedisConnection(
        host=server.host, port=server.port, credential_provider=provider, protocol=protocol, multiplex=multiplex
    ) as client:
        await client.set("key", "value")
        account.set_password("newer")
        await provider.push("newer")
        account_before = account.refusals
        assert b"value" == await client.get("key")
        account.kill()
        assert b"value" == await client.get("key")

    assert 0 == account_before == account.refusals


async def test_pushed_credentials_refused_while_connecting_lose_no_call(make_pool, server, account):
    class Pushing(Tokens):
        async def get_credentials_async(self):
            if not self.asked:
                await pool.re_auth_callback(token("wrong"))
            return await super().get_credentials_async()

    provider = Pushing("fresh")
    pool = make_pool(server.url, credential_provider=provider)
    client = MonitoredRedisConnection(connection_pool=pool)

    assert [None] * 20 == await asyncio.gather(*(client.get("key") for _ in range(20)))
    assert (2, 1) == (provider.asked, account.refusals)


# --- Consuming ---


async def test_worker_waits_until_credentials_are_accepted(client_with, account, until, caplog):
    handled = []

    async def handler(message):
        handled.append(message)

    tokens = Streaming("fresh")
    queue = MessageQueue("mail", client_with(tokens, **UNRECORDED))
    working = asyncio.create_task(queue.consume(handler, concurrency=3))
    try:
        await queue.put(b"before")
        await until(lambda: handled == [b"before"])
        account.set_password("newer")
        account.kill()
        await until(lambda: account.refusals >= 6)
        await until(lambda: caplog.text.count("server unavailable, retrying: AuthenticationError") >= 3)
        assert not working.done()
        tokens.password = "newer"
        await queue.put(b"after")
        await until(lambda: handled == [b"before", b"after"], 30)
    finally:
        working.cancel()
        await asyncio.wait([working])


async def test_worker_loops_retry_refused_credentials_together(make_pool, server, account, until, caplog):
    async def handler(message):
        pass

    tokens = Streaming("fresh")
    queue = MessageQueue("mail", make_pool(server.url, credential_provider=tokens, **UNRECORDED))
    loops, rounds = 8, 5
    working = asyncio.create_task(queue.consume(handler, concurrency=loops))
    try:
        await queue.put(b"message")
        account.set_password("newer")
        account.kill()
        await until(lambda: caplog.text.count("retrying: AuthenticationError") >= loops * rounds, 30)
    finally:
        working.cancel()
        await asyncio.wait([working])

    # At first each loop may use a new connection when it waits for messages.
    assert rounds - 1 <= account.refusals < loops * rounds * 3 / 4


async def test_worker_survives_an_ack_with_refused_credentials(client_with, account, inspector, until, caplog):
    handled = []

    async def handler(message):
        handled.append(message)
        if len(handled) == 1:
            account.set_password("newer")
            account.kill()

    tokens = Streaming("fresh")
    queue = MessageQueue("mail", client_with(tokens, **UNRECORDED), lease=1)
    inspector.rpush("mail", "message")
    working = asyncio.create_task(queue.consume(handler, concurrency=1))
    try:
        await until(lambda: "handled, but the acknowledgement failed: AuthenticationError" in caplog.text, 20)
        tokens.password = "newer"
        await until(lambda: handled == [b"message"] * 2 and not held(inspector), 30)
    finally:
        working.cancel()
        await asyncio.wait([working])


async def test_worker_ends_on_an_ack_with_a_refused_static_password(client_with, account, inspector):
    async def handler(message):
        account.set_password("newer")
        account.kill()

    queue = MessageQueue("mail", client_with(username=USER, password="fresh", **UNRECORDED), lease=1)
    inspector.rpush("mail", "message")
    working = asyncio.create_task(queue.consume(handler, concurrency=1))
    await asyncio.wait([working], timeout=30)

    assert isinstance(working.exception(), REFUSED)


@pytest.mark.parametrize("provides", [{"password": "fresh"}, {"credential_provider": True}])
async def test_worker_ends_when_a_static_password_is_refused(client_with, account, until, provides):
    credentials = {"username": USER, **provides}
    if "credential_provider" in provides:
        credentials = {"credential_provider": UsernamePasswordCredentialProvider(USER, "fresh")}
    queue = MessageQueue("mail", client_with(**credentials, **UNRECORDED))

    async def handler(message):
        pass

    working = asyncio.create_task(queue.consume(handler, concurrency=1))
    await queue.client.ping()
    account.set_password("newer")
    account.kill()
    await asyncio.wait([working], timeout=30)

    assert isinstance(working.exception(), REFUSED)


def test_auth_backoff_grows_to_half_a_minute():
    assert _auth_backoff(1) <= 0.1
    assert all(15 <= _auth_backoff(failures) <= 30 for failures in (20, 50, 10_000))


# --- A password file ---


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "password"
    path.write_text("fresh\n")
    return path


def replace(path, content):
    """Replace the file as Kubernetes does: it is never half written."""
    new = path.with_name("new")
    new.write_bytes(content)
    new.replace(path)


async def test_password_file_is_read_at_every_connect(
    client_with, account, inspector, path, protocol, multiplex, until
):
    client = client_with(username=USER, password_file=path, protocol=protocol)
    inspector.set("key", "value")
    replies, is_over = [], asyncio.Event()

    async def call():
        while not is_over.is_set():
            replies.append(await client.get("key"))

    callers = await begun(*(call() for _ in range(10)))
    made = 0
    for number in range(5):
        before = len(replies)
        await until(lambda before=before: len(replies) > before + 100)
        password = f"newer-{number}"
        replace(path, f"{password}\r\n".encode())
        account.set_password(password)
        made += sum(each["user"] == USER for each in inspector.client_list())
        account.kill()
    before = len(replies)
    await until(lambda: len(replies) > before + 100)
    is_over.set()
    await asyncio.gather(*callers)
    made += sum(each["user"] == USER for each in inspector.client_list())

    assert {b"value"} == set(replies)
    assert 6 <= made
    if multiplex:
        assert (made, 0) == (account.attempts, account.refusals)
    else:
        # A connection that was being made with the old password requests a new one.
        assert account.refusals <= account.attempts / 2


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff", b"\xef\xbb\xbffresh", b"fresh\0"], ids=repr)
async def test_password_file_without_a_password_keeps_the_last_good_one(
    client_with, account, path, protocol, caplog, content
):
    client = client_with(username=USER, password_file=path, protocol=protocol)
    await client.set("key", "value")
    for _ in range(2):
        replace(path, b"newer\n")
        account.set_password("newer")
        account.kill()
        assert b"value" == await client.get("key")
        assert [] == caplog.messages
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        for _ in range(3):
            account.kill()
            assert b"value" == await client.get("key")
        # One log record until the file is valid again.
        assert [("aioredis_monitored.credentials", logging.WARNING)] == [each[:2] for each in caplog.record_tuples]
        assert caplog.messages[0] == (
            f"Password file {str(path)!r}: it must be the path of a readable file that holds a password, in UTF-8 "
            "without BOM and NUL; the last good password is used"
        )
        caplog.clear()
    assert 0 == account.refusals


async def test_password_file_is_read_again_when_changed_during_the_handshake(make_client, path):
    sent = []

    def answer(connection, args):
        if args[0] == b"AUTH":
            sent.append(args[1:])
            if args[1] == b"fresh":
                replace(path, b"newer\n")
                return b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
            return b"+OK\r\n"
        return b"$5\r\nvalue\r\n"

    async with scripted(answer) as port:
        client = make_client(f"redis://127.0.0.1:{port}", protocol=2, password_file=path)
        assert b"value" == await client.get("key")
        await client.connection_pool.aclose()

    assert [[b"fresh"], [b"newer"]] == sent


async def test_password_file_is_not_read_in_the_event_loop(client_with, account, path):
    client = client_with(username=USER, password_file=path)
    await client.set("key", "value")
    account.kill()
    with blockbuster.blockbuster_ctx():
        assert b"value" == await client.get("key")


@pytest.mark.parametrize("content", [b"pass word", b"pass word\n", b"pass word\r\n", b"pass word\n\n"])
async def test_password_file_ends_at_its_first_line_break(server, account, path, content):
    account.set_password("pass word")
    path.write_bytes(content)
    client = MonitoredRedisConnection(
        host=server.host, port=server.port, username=USER, password_file=path, decode_responses=True
    )
    async with client:
        assert USER == await client.acl_whoami()


async def test_password_file_is_configured_by_variable_and_overridden_by_argument(server, account, path):
    environ = {"REDIS_URL": server.url, "REDIS_USERNAME": USER, "REDIS_PASSWORD_FILE": str(path)}
    config = config_from_env(environ)
    path.write_text("wrong")
    async with pool_from_config(config) as pool:
        with pytest.raises(REFUSED):
            await pool.ping()
    for argument in ({"password": "fresh"}, {"credential_provider": Tokens("fresh")}):
        async with pool_from_config(config, **argument) as pool:
            await pool.ping()


async def test_missing_password_file_raises_config_error(server, tmp_path):
    with pytest.raises(ConfigurationError, match=r"^password_file: must be the path of a readable file"):
        MonitoredRedisConnection(host=server.host, password_file=tmp_path / "missing")


# --- TLS that does not verify the server ---


@pytest.mark.parametrize("value", ["none", ssl.CERT_NONE, None], ids=repr)
async def test_pool_without_server_verification_logs_a_warning(caplog, value):
    pool_from_config({"redis.url": "rediss://h"}, name="cache", ssl_cert_reqs=value)

    assert [("aioredis_monitored.pool", logging.WARNING)] == [each[:2] for each in caplog.record_tuples]
    assert caplog.messages[0].startswith("pool 'cache': ssl_cert_reqs is none, so that anyone on the network can pose")


@pytest.mark.parametrize("arguments", [{}, {"ssl_cert_reqs": "required"}, {"ssl_check_hostname": False}])
async def test_pool_with_server_verification_logs_nothing(caplog, arguments):
    pool_from_config({"redis.url": "rediss://h"}, **arguments)
    pool_from_config({"redis.url": "redis://h"})

    assert [] == caplog.messages


# --- Errors of a provider whose own server is unavailable ---


class Failing(CredentialProvider):
    """A provider that raises twice, as when its server is unavailable or another caller has cancelled its request."""

    def __init__(self, error):
        self._errors = [error, error]

    async def get_credentials_async(self):
        if self._errors:
            raise self._errors.pop()
        return (USER, "fresh")


@pytest.mark.parametrize("error", [OSError, TimeoutError, asyncio.CancelledError])
async def test_credential_provider_outage_is_retried_like_an_unreachable_server(client_with, account, error):
    client = client_with(Failing(error))
    async with asyncio.timeout(30):
        assert [True] * 3 == await asyncio.gather(*(client.set(f"key:{number}", "value") for number in range(3)))


async def test_credential_provider_error_text_is_not_repeated(client_with, account):
    client = client_with(Failing(OSError("token hunter2")), retries=0)
    with pytest.raises(redis.exceptions.ConnectionError, match="gave no credentials: OSError") as raised:
        await client.get("key")
    assert "hunter2" not in str(raised.value)
