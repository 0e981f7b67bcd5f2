"""No signal shows a secret: commands of the whole table with secrets as all values, messages, locks and passwords."""

import asyncio
import logging
from contextlib import suppress
from inspect import iscoroutine
from itertools import takewhile

import command_table
import pytest
import redis.asyncio
import redis.exceptions
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from support.sentences import Sentence

from aioredis_monitored import (
    ConfigurationError,
    MessageQueue,
    MonitoredRedisConnection,
    RedisConfig,
    RedisContextFactory,
)
from aioredis_monitored._commands.traits import _BLOCKING, counts_connection_writes
from aioredis_monitored.config.telemetry import TelemetryOptions
from aioredis_monitored.testing import RedisServer, TelemetryCapture

WORD, NUMBER = "hunter2", 773155018926
VALUES = (
    WORD,
    WORD.upper(),
    f"{WORD} \N{KEY}\n",
    WORD.encode(),
    WORD.encode() + b" \xff",
    bytearray(WORD, "ascii"),
    memoryview(WORD.encode()),
    NUMBER,
    NUMBER / 10**12,
)
SECRETS = frozenset({WORD, str(NUMBER)})
KEY, TEMPLATE = "cust0mer:", "t3mplate"  # neither is part of another word

EXCLUDED = {
    "CLIENT KILL": "ends the connections of the other calls",
    "CLIENT PAUSE": "the other calls would wait",
    "CLIENT REPLY": "is not answered, and neither is what follows",
    "CONFIG RESETSTAT": "the server would forget what it was called with, by which we count",
    "PFSELFTEST": "takes the server a second",
    "SCRIPT DEBUG": "what follows it is a debugging session",
    "PSYNC": "makes a replica of its connection, for which FAILOVER holds all writes back",
    "SHUTDOWN": "the server is needed",
    "SYNC": "is answered with the whole database, and not in the protocol",
    **dict.fromkeys(
        ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"),
        "is answered with messages, which only pubsub() reads",
    ),
}
# These are shown in attributes by design: db.stored_procedure.name, messaging.destination.name.
SHOWN = {
    **dict.fromkeys(("EVALSHA", "EVALSHA_RO"), "sha1"),
    **dict.fromkeys(("FCALL", "FCALL_RO"), "function"),
    "PUBLISH": "channel",
    "SPUBLISH": "shardchannel",
}
UNKNOWN = ("NOSUCH", "nosuch.command", "CONFIG NOSUCH", "CLIENT NOSUCH", "SETNX2")
PAIRS = frozenset({"HMSET", "HSET", "MSET", "MSETNX"})
PASSES = 3


class Signals:
    """All signals that one pool sends, through a separate SDK, and Python's logs and warnings meanwhile."""

    def __init__(self, caplog, recwarn):
        caplog.set_level(logging.DEBUG)
        self._logged, self._warned, self._metrics = caplog, recwarn, InMemoryMetricReader()
        self.telemetry = TelemetryCapture(self._metrics)

    @property
    def logged(self):
        return self._logged.text

    def showing(self, secrets, *others):
        """Return the signals, or other texts, that contain one of these secrets."""
        texts = [
            *(span.to_json(indent=None) for span in self.telemetry.spans),
            # As exported, with exemplars.
            repr(self._metrics.get_metrics_data()),
            *(f"{record.name} {record.getMessage()} {record.__dict__}" for record in self._logged.records),
            self._logged.text,
            *(str(warning.message) for warning in self._warned),
            *others,
        ]
        found = ((text, text.lower().find(secret)) for text in texts for secret in secrets)
        return {text[max(0, at - 60) : at + 60] for text, at in found if at >= 0}


@pytest.fixture
def signals(caplog, recwarn):
    signals = Signals(caplog, recwarn)
    with signals.telemetry:
        yield signals


class Fuzz:
    """Sends random commands with a client, whatever they return or raise."""

    def __init__(self, client, grammars):
        self._client = client
        self.grammars = {name: grammar for name, grammar in grammars.items() if name not in EXCLUDED}
        self.calls = 0

    async def throw(self, chance):
        """Send every command twice, all concurrently: alone, and in a batch with others."""
        sentences = [self._sentence(name, grammar, chance) for name, grammar in self.grammars.items()]
        sentences += [(*name.split(), KEY, *chance.choices(VALUES, k=3)) for name in UNKNOWN]
        sentences = [_spelled(args, chance) for args in sentences]
        chance.shuffle(sentences)
        self.calls += 2 * len(sentences)
        calls = [self._client.execute_command(*args) for args in sentences]
        # Some are refused outside a pipeline, and another command in a batch may keep it from being sent.
        calls += [
            self._execute(self._client.pipeline(None), [args], raise_on_error=False)
            for args in sentences
            if counts_connection_writes(args)
        ]
        while sentences:
            batch = [sentences.pop() for _ in range(min(len(sentences), chance.randint(1, 9)))]
            pipe = self._client.pipeline(chance.choice([None, "batch"]), chance.choice([True, False]))
            calls.append(self._execute(pipe, batch, raise_on_error=chance.choice([True, False])))
        await asyncio.gather(*calls, return_exceptions=True)

    async def _execute(self, pipe, batch, *, raise_on_error):
        for args in batch:
            if iscoroutine(queued := pipe.execute_command(*args)):  # after WATCH
                with suppress(Exception):
                    await queued
        await pipe.execute(raise_on_error)

    def _sentence(self, name, grammar, chance):
        def value_of(argument):
            if name in _BLOCKING and argument["name"] in ("timeout", "milliseconds"):
                return _BLOCKING[name][1] / 1000  # a millisecond
            if argument["name"] == SHOWN.get(name):
                return "shown"
            # With valid numbers, MIGRATE would connect to the secret's address.
            return WORD if name == "MIGRATE" else chance.choice(VALUES)

        args = Sentence(name, grammar, chance, value_of, key=KEY).args
        # With an extra value, a value is where the next name should be.
        return [*args, WORD] if name in PAIRS and chance.random() < 0.5 else args


def _spelled(args, chance):
    """Return the command in another spelling: words in one string, in lower case, as bytes; sometimes cut short."""
    words = len(list(takewhile(lambda arg: isinstance(arg, str) and arg.split() == [arg], args)))
    joined = chance.choice([1, chance.randint(1, words)])
    name, rest = " ".join(args[:joined]), args[joined:]
    if chance.random() < 0.1:
        rest = rest[: chance.randint(0, len(rest))]
    rest = [arg.encode() if isinstance(arg, str) and chance.random() < 0.2 else arg for arg in rest]
    return chance.choice([name, name, name.lower(), name.encode()]), *rest


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"hot_keys": 1}, KEY),
        pytest.param({"show_keys": False}, " ?", marks=pytest.mark.slow),
        pytest.param({"key_template": lambda _: TEMPLATE, "hot_keys": 1}, TEMPLATE, marks=pytest.mark.slow),
    ],
    ids=["keys are shown", "keys are hidden", "keys have a template"],
)
async def test_commands_reveal_no_secret_in_any_signal(make_pool, signals, options, keys):
    telemetry = signals.telemetry
    secrets = SECRETS if keys is KEY else SECRETS | {KEY}
    options = TelemetryOptions(repeated_calls=1, **options)
    loop = asyncio.get_running_loop()
    with RedisServer("--hz", "500") as server:  # how often it checks which blocked clients have timed out
        async with (
            redis.asyncio.Redis.from_url(server.url, decode_responses=True) as inspector,
            make_pool(server.url, telemetry=options, **telemetry.providers) as pool,
        ):
            request = telemetry.tracer_provider.get_tracer("test").start_span("request")
            client = RedisContextFactory(pool).make_object_for_context("redis", request)
            fuzz = Fuzz(client, await command_table.read_grammars(inspector))

            @settings(max_examples=PASSES, phases=[Phase.generate])  # no seed is simpler than another
            @given(chance=st.randoms(use_true_random=True))
            def check(chance):
                asyncio.run_coroutine_threadsafe(fuzz.throw(chance), loop).result()
                assert set() == signals.showing(secrets)

            await asyncio.to_thread(check)
            request.end()
            hottest = {hot.key for hot in pool.telemetry.hot_keys.top(1000)} - {""}  # MIGRATE … KEYS has an empty key
            assert set() == signals.showing(secrets, repr(pool), repr(client), repr(client.pipeline()), *hottest)
            # By the server's count, which includes refused commands.
            counted = await inspector.info("commandstats")

    called = {name.removeprefix("cmdstat_").replace("|", " ").upper() for name in counted}
    print(f"{fuzz.calls} calls")
    assert set() == fuzz.grammars.keys() - called
    assert 2000 < fuzz.calls < 2 * sum(row["calls"] + row["rejected_calls"] for row in counted.values())
    # A check that the signals do show text: the keys' prefix is in them.
    assert set() != signals.showing({keys})
    assert all(key.startswith(keys) for key in hottest)
    assert bool(options.hot_keys) == bool(hottest)


async def test_messages_and_lock_tokens_are_in_no_signal(make_pool, server, signals):
    pool = make_pool(server.url, **signals.telemetry.providers)
    client = MonitoredRedisConnection(connection_pool=pool)
    async with MessageQueue("orders", pool) as queue, client.pubsub() as subscription:
        await subscription.subscribe("news")
        assert "subscribe" == (await subscription.get_message(timeout=5))["type"]
        await client.publish("news", WORD)
        published = await subscription.get_message(timeout=5)
        await queue.put(WORD.encode())
        received = await queue.get(timeout=5)
    async with client.lock("lock", timeout=5) as lock:
        token = lock.local.token.decode()

    assert [WORD.encode()] * 2 == [published["data"], received]
    assert set() == signals.showing({WORD, token}, repr(queue), repr(subscription), repr(lock))
    assert len(signals.telemetry.spans) > 4


async def test_password_is_in_no_signal(make_pool, signals):
    def pool_of(url, **arguments):
        return make_pool(url, **arguments, **signals.telemetry.providers)

    texts = []
    with RedisServer("--requirepass", WORD) as server:
        async with pool_of(server.url.replace("redis://", f"redis://:{WORD}@")) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await client.execute_command("AUTH", WORD)
            await client.config_set("requirepass", WORD)
            await client.eval(f"return '{WORD}'", 1, "key", WORD)
            await client.set("key", WORD)
            for failing in (
                client.lpush("key", WORD),
                client.execute_command("NOSUCH", WORD),
                client.pipeline().lpush("key", WORD).get("key").execute(),
                client.pipeline(False).execute_command("NOSUCH", WORD).get("key").execute(),
                client.execute_command("AUTH", "user", f"{WORD}x"),
            ):
                with pytest.raises(redis.exceptions.RedisError) as failed:
                    await failing
                # Redis quotes the arguments of an unknown command, and redis-py passes its text on.
                if "unknown command" not in str(failed.value):
                    texts += [str(failed.value), repr(failed.value.args)]
            wrong = pool_of(server.url, password=f"{WORD}x")
            with pytest.raises(redis.exceptions.AuthenticationError) as refused:
                await wrong.ping()
            texts += [repr(pool), repr(client), repr(wrong), repr(client.pipeline()), repr(refused.value)]

    assert set() == signals.showing({WORD}, *texts)
    assert 10 == len(signals.telemetry.spans)


async def test_password_of_file_or_provider_is_in_no_signal(make_pool, signals, tmp_path, until):
    class Provider(redis.CredentialProvider):
        async def get_credentials_async(self):
            return ("default", f"{WORD}x")

    path, texts = tmp_path / "password", []
    path.write_text(f"{WORD}\n")
    with RedisServer("--requirepass", WORD) as server:

        def pool_of(**arguments):
            return make_pool(server.url, **arguments, **signals.telemetry.providers)

        async with pool_of(password_file=path) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await client.set("key", "value")
            for content in (
                f"{WORD}\0".encode(),
                f"\ufeff{WORD}".encode(),
                WORD.encode() + b"\xff",
                WORD.encode("utf-16"),
            ):
                path.write_bytes(content)
                await pool.disconnect()
                assert b"value" == await client.get("key")
                with pytest.raises(ConfigurationError) as refused:
                    pool_of(password_file=path)
                texts += [str(refused.value), repr(refused.value), repr(refused.value.__context__)]
            config = RedisConfig.from_mapping({"url": server.url, "password_file": _written(path, WORD)}, "")
            texts += [
                repr(pool),
                repr(client),
                repr(pool.connection_kwargs),
                repr(config),
                repr(config.pool_arguments()),
            ]
        path.write_text(f"{WORD}x")
        wrong = [pool_of(password_file=path), pool_of(credential_provider=Provider())]
        for pool in wrong:
            with pytest.raises(redis.exceptions.AuthenticationError) as refused:
                await pool.ping()
            texts += [str(refused.value), repr(refused.value), repr(pool.connection_kwargs)]
        queue = MessageQueue("mail", wrong[1])
        consuming = asyncio.create_task(queue.consume(_handled, concurrency=1))
        await until(lambda: "AuthenticationError" in signals.logged)
        consuming.cancel()
        await asyncio.wait([consuming])

    assert set() == signals.showing({WORD}, *texts)
    # The log names the file and the consumer's error.
    assert {str(path).lower()[-8:], "authenticationerror"} == {
        shown for shown in (str(path).lower()[-8:], "authenticationerror") if signals.showing({shown})
    }


def _written(path, text):
    path.write_text(text)
    return path


async def _handled(message):
    """Do nothing with a message."""
