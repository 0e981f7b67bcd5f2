"""Tokens that expire: they are renewed in time on all connections of all pools, and a refused one is sent once."""

import asyncio
import gc
import threading
import time
import weakref
from contextlib import AsyncExitStack, suppress

import blockbuster
import pytest
import redis.asyncio
import redis.exceptions
from redis.auth.err import RequestTokenErr
from redis.auth.token import SimpleToken
from redis.auth.token_manager import RetryPolicy, TokenManagerConfig
from redis_entraid.cred_provider import EntraIdCredentialsProvider
from support.sharing import UNRECORDED
from support.tokens import Authority, connections_of

from aioredis_monitored import (
    MessageQueue,
    MonitoredConnectionPool,
    MonitoredRedisConnection,
    pool_from_config,
)
from aioredis_monitored._credentials import tokens
from aioredis_monitored._credentials.tokens import TokenProvider

REFUSED = redis.exceptions.AuthenticationError
SECRET = "hunter2"  # part of no message
DEADLINE = 60.0


@pytest.fixture
async def issuing(inspector):
    """Make authorities whose tokens the server accepts, and count what is sent from now on."""
    inspector.config_resetstat()
    authorities = []

    def make(*inspectors, **options):
        authorities.append(Authority(*(inspectors or (inspector,)), **options))
        return authorities[-1]

    yield make
    for authority in authorities:
        authority.close()


def entraid(authority):
    """Return redis-entraid's provider, which renews a token at the same part of its life as ours."""
    return EntraIdCredentialsProvider(authority, TokenManagerConfig(0.5, 0, 100, RetryPolicy(1, 1)))


def own(authority):
    """Return the provider that ``credentials=aws`` and ``credentials=entra`` make."""
    return TokenProvider("test", authority.request_token)


PROVIDERS = pytest.mark.parametrize("provider_of", [entraid, own])


def counted(inspector, what="calls"):
    """Return how often credentials were sent."""
    stats = inspector.info("commandstats")
    return sum(stats.get(f"cmdstat_{command}", {}).get(what, 0) for command in ("auth", "hello"))


def all_renewed(inspector, before):
    """Whether the same connections as before all have the token of one later user."""
    now = connections_of(inspector)
    return now.keys() == before.keys() and len(set(now.values())) == 1 and not set(now.values()) & set(before.values())


# --- All pools of a provider ---


async def test_redis_py_alone_renews_the_newest_client_of_a_streaming_provider(server, inspector, issuing, until):
    provider = entraid(issuing(lifetime=1, forgets=False))
    async with AsyncExitStack() as stack:
        for _ in range(2):
            client = redis.asyncio.Redis(host=server.host, port=server.port, credential_provider=provider)
            await (await stack.enter_async_context(client)).ping()
        (older, user), (newer, _) = sorted(connections_of(inspector).items(), key=lambda each: int(each[0]))
        first = connections_of(inspector)
        # An idle connection is renewed when it is used.
        await until(lambda: connections_of(inspector)[newer] != first[newer])

        # If this fails, redis-py has learned what the package does for its pools.
        assert user == connections_of(inspector)[older]


@PROVIDERS
async def test_renewal_reaches_the_shared_connection_of_every_pool_at_once(
    make_pool, server, inspector, issuing, provider_of, until
):
    provider = provider_of(issuing(lifetime=1, forgets=False))
    pools = [make_pool(server.url, credential_provider=provider) for _ in range(3)]
    for pool in pools:
        await pool.ping()
    before = connections_of(inspector)
    assert 3 == len(before)

    await until(lambda: all_renewed(inspector, before))
    before = connections_of(inspector)
    await until(lambda: all_renewed(inspector, before))


async def test_renewal_reaches_a_pool_that_is_made_of_anothers_arguments(make_pool, server, inspector, issuing, until):
    pool = make_pool(server.url, credential_provider=own(issuing(lifetime=1, forgets=False)))
    async with MonitoredConnectionPool(**pool.connection_kwargs, **UNRECORDED) as other:
        await other.ping()
        before = connections_of(inspector)
        await until(lambda: all_renewed(inspector, before))


@PROVIDERS
async def test_clients_and_subscriptions_leave_renewals_to_the_pools(server, inspector, issuing, provider_of, until):
    provider = provider_of(issuing(lifetime=1, forgets=False))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            pool_from_config({"redis.url": server.url}, credential_provider=provider, **UNRECORDED)
        )
        client = MonitoredRedisConnection(connection_pool=pool)
        await client.ping()
        before = connections_of(inspector)
        # With redis-py alone, each of these would take the place of the pool's callback.
        other = MonitoredRedisConnection(host=server.host, port=server.port, credential_provider=provider, protocol=3)
        await (await stack.enter_async_context(other)).ping()
        subscription = await stack.enter_async_context(other.pubsub())
        await subscription.subscribe("news")
        handle = await stack.enter_async_context(other.client())
        await handle.ping()

        await until(lambda: before.items() & connections_of(inspector).items() == set())
        assert before.keys() <= connections_of(inspector).keys()


@PROVIDERS
async def test_renewal_reaches_every_node_of_a_cluster(cluster, issuing, provider_of, until):
    nodes = [redis.Redis.from_url(node.url) for node in cluster.nodes]
    authority = issuing(*nodes, lifetime=1.5, forgets=False)
    provider = provider_of(authority)
    try:
        async with pool_from_config({"redis.url": cluster.url}, credential_provider=provider, **UNRECORDED) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await asyncio.gather(*(client.set(f"key:{number}", number) for number in range(50)))
            primaries = [redis.Redis(host=node.host, port=node.port) for node in pool.primaries()]
            before = [connections_of(each) for each in primaries]
            assert all(before)
            for each, there in zip(primaries, before, strict=True):
                await until(lambda each=each, there=there: not there.items() & connections_of(each).items())
                assert there.keys() & connections_of(each).keys()
            for each in primaries:
                each.close()
    finally:
        authority.close()
        for each in nodes:
            each.close()


@PROVIDERS
async def test_renewal_reaches_primary_and_replicas_under_sentinel(sentinels, issuing, provider_of, until):
    servers = [redis.Redis.from_url(each.url) for each in sentinels.data]
    authority = issuing(*servers, lifetime=1.5, forgets=False)
    config = {"redis.url": sentinels.url, "redis.read_from": "replica"}
    try:
        async with pool_from_config(config, credential_provider=provider_of(authority), **UNRECORDED) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            await client.set("key", "value")

            def users():
                return [set(connections_of(each).values()) for each in servers]

            async def read_everywhere():
                while not all(users()):
                    await asyncio.gather(*(client.get("key") for _ in range(10)))

            await asyncio.wait_for(read_everywhere(), 30)
            before = set.union(*users())
            await until(lambda: not before & set.union(*users()) and all(users()))
    finally:
        authority.close()
        for each in servers:
            each.close()


@PROVIDERS
@pytest.mark.parametrize("decode_responses", [True, False])
async def test_renewal_reaches_a_subscription_between_its_messages(
    make_pool, server, inspector, issuing, provider_of, decode_responses
):
    provider = provider_of(issuing(lifetime=1))
    pool = make_pool(server.url, credential_provider=provider, decode_responses=decode_responses)
    async with MonitoredRedisConnection(connection_pool=pool).pubsub() as subscription:
        await subscription.subscribe("news")
        assert "subscribe" == (await subscription.get_message(timeout=30))["type"]
        (connection,) = connections_of(inspector)
        users, received, number = set(), [], 0
        deadline = time.monotonic() + 60
        while len(users) < 4:
            assert time.monotonic() < deadline
            number += 1
            inspector.publish("news", str(number))
            # Now and then a reply to AUTH comes first.
            while (message := await subscription.get_message(timeout=0.05)) is not None:
                received.append(message)
            users.add(connections_of(inspector).get(connection))

    assert None not in users
    assert {"message"} == {each["type"] for each in received}
    sent = [str(each) for each in range(1, number + 1)]
    assert sent[: len(received)] == [each["data"] if decode_responses else each["data"].decode() for each in received]
    assert number - len(received) <= 1


async def test_renewal_wakes_no_listener(make_pool, server, inspector, issuing, until):
    pool = make_pool(server.url, credential_provider=own(issuing(lifetime=1)))
    heard = []

    async def listen(subscription):
        async for message in subscription.listen():
            heard.append(message["data"])  # noqa: PERF401 - while it goes on

    async with MonitoredRedisConnection(connection_pool=pool).pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe("news")
        listening = asyncio.create_task(listen(subscription))
        (before,) = connections_of(inspector).items()
        for _ in range(3):
            await until(lambda before=before: before not in connections_of(inspector).items())
            assert before[0] in connections_of(inspector)
            before = (before[0], connections_of(inspector)[before[0]])
        inspector.publish("news", "hello")
        await until(lambda: heard == [b"hello"])
        listening.cancel()
        await asyncio.wait([listening])


async def test_refused_renewal_makes_the_subscription_anew(make_pool, server, inspector, issuing, until):
    authority = issuing(lifetime=4, forgets=False)
    provider = own(authority)
    pool = make_pool(server.url, credential_provider=provider)
    async with MonitoredRedisConnection(connection_pool=pool).pubsub() as subscription:
        await subscription.subscribe("news")
        (connection,) = connections_of(inspector)
        await subscription.re_auth_callback(SimpleToken(SECRET, -1, 0, {"oid": "app-1"}))
        received = []
        while not any(each["type"] == "message" for each in received):
            inspector.publish("news", "hello")
            if (message := await subscription.get_message(timeout=0.05)) is not None:
                received.append(message)

        assert connection not in connections_of(inspector)
        assert 1 == len(connections_of(inspector))


async def test_connection_that_a_subscription_gives_back_is_not_connected_again(
    make_pool, server, inspector, issuing, until
):
    pool = make_pool(server.url, credential_provider=own(issuing(lifetime=1, forgets=False)))
    async with MonitoredRedisConnection(connection_pool=pool).pubsub() as subscription:
        await subscription.subscribe("news")
        before = connections_of(inspector)
        await until(lambda: all_renewed(inspector, before))
        made = inspector.info("stats")["total_connections_received"]

    assert made == inspector.info("stats")["total_connections_received"]


async def test_pool_that_fails_to_use_a_token_keeps_it_from_no_other_pool(
    make_pool, server, inspector, issuing, until, caplog
):
    class Broken(MonitoredConnectionPool):
        async def re_auth_callback(self, token):
            raise LookupError(SECRET)

    provider = entraid(issuing(lifetime=1, forgets=False))
    async with Broken(host=server.host, port=server.port, credential_provider=provider, **UNRECORDED) as broken:
        await broken.ping()
        pool = make_pool(server.url, credential_provider=provider)
        (only,) = connections_of(inspector)
        await pool.ping()
        before = {each: user for each, user in connections_of(inspector).items() if each != only}
        for _ in range(2):
            await until(lambda before=before: not before.items() & connections_of(inspector).items())
            before = {each: user for each, user in connections_of(inspector).items() if each in before}
            assert before

    assert "could not use renewed credentials: LookupError" in caplog.text
    assert SECRET not in caplog.text


@PROVIDERS
async def test_renewal_reaches_a_handle_before_its_next_call(make_pool, server, inspector, issuing, provider_of):
    pool = make_pool(server.url, credential_provider=provider_of(issuing(lifetime=1)), multiplex=False)
    async with MonitoredRedisConnection(connection_pool=pool).client() as handle:
        # Lost, it would not be replaced.
        await handle.select(1)
        (connection,) = connections_of(inspector)
        users = set()
        deadline = time.monotonic() + 60
        while len(users) < 4:
            assert time.monotonic() < deadline
            assert await handle.set("key", "value")
            users.add(connections_of(inspector).get(connection))
            async with handle.pipeline() as pipe:
                assert [True, b"value"] == await pipe.set("key", "value").get("key").execute()

    assert None not in users


async def test_renewal_that_a_handle_is_refused_is_one_error(make_pool, server, inspector, issuing):
    pool = make_pool(server.url, credential_provider=own(issuing()), multiplex=False)
    async with MonitoredRedisConnection(connection_pool=pool).client() as handle:
        await handle.set("key", "value")
        await pool.re_auth_callback(SimpleToken(SECRET, -1, 0, {"oid": "app-1"}))
        with pytest.raises(REFUSED, match="invalid username-password pair"):
            await handle.get("key")
        assert b"value" == await handle.get("key")


async def test_provider_that_gives_up_renewing_is_logged(make_pool, server, issuing, until, caplog):
    authority = issuing(lifetime=1, forgets=False)
    pool = make_pool(server.url, credential_provider=entraid(authority))
    await pool.ping()
    authority.error = RequestTokenErr(SECRET)
    await until(lambda: "failed to renew its credentials, and may not try again: RequestTokenErr" in caplog.text)
    authority.error = None
    await pool.disconnect()
    await pool.ping()

    assert SECRET not in caplog.text


async def test_subscription_of_resp2_goes_on_when_its_token_has_expired(make_pool, server, inspector, issuing):
    pool = make_pool(server.url, credential_provider=own(issuing(lifetime=1)), protocol=2)
    async with MonitoredRedisConnection(connection_pool=pool).pubsub() as subscription:
        await subscription.subscribe("news")
        (connection,) = connections_of(inspector)
        deadline = time.monotonic() + 60
        received = []
        while connection in connections_of(inspector) or received[-1:] != ["message"]:
            assert time.monotonic() < deadline
            inspector.publish("news", "hello")
            if (message := await subscription.get_message(timeout=0.05)) is not None:
                received.append(message["type"])

    assert {"subscribe", "message"} == set(received)


def test_pools_of_several_event_loops_share_a_provider(server, inspector):
    """The second one runs in a thread beside the first."""
    outcome = []

    async def use(provider, is_renewed, *, is_over):
        async with pool_from_config({"redis.url": server.url}, credential_provider=provider, **UNRECORDED) as pool:
            client = MonitoredRedisConnection(connection_pool=pool)
            connection = str(await client.client_id())
            outcome.append(connection)
            first = connections_of(inspector)[connection]
            deadline = time.monotonic() + 30
            while connections_of(inspector)[connection] == first and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            outcome.append(connections_of(inspector)[connection] != first)
            is_renewed.set()
            while not is_over.is_set() and time.monotonic() < deadline:
                await asyncio.sleep(0.01)

    async def main():
        authority = Authority(inspector, lifetime=1, forgets=False)
        provider = own(authority)
        ours, theirs = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(use(provider, theirs, is_over=ours)))
        thread.start()
        try:
            await use(provider, ours, is_over=theirs)
        finally:
            await asyncio.to_thread(thread.join)
            authority.close()

    asyncio.run(main())

    assert 2 == outcome.count(True)


# --- Under load ---


async def no_call_fails(make_pool, server, inspector, issuing, provider_of, seconds):
    authority = issuing(lifetime=1)
    provider = provider_of(authority)
    clients = [
        MonitoredRedisConnection(connection_pool=make_pool(server.url, credential_provider=provider, **UNRECORDED))
        for _ in range(2)
    ]
    for client in clients:
        await client.ping()
    shared = connections_of(inspector).keys()
    is_over, failed, calls = asyncio.Event(), [], 0

    async def call(client, name):
        nonlocal calls
        while not is_over.is_set():
            try:
                assert await client.set(name, "value")
                assert b"value" == await client.get(name)
                async with client.pipeline() as pipe:
                    assert [3, True] == await pipe.rpush(f"list:{name}", *"abc").delete(f"list:{name}").execute()
                # On connections of their own, that are idle in between.
                async with client.pipeline() as pipe:
                    await pipe.watch(name)
                    pipe.multi()
                    assert [b"value"] == await pipe.get(name).execute()
                assert await client.blpop(f"empty:{name}", timeout=0.05) is None
            except Exception as error:  # noqa: BLE001 - what it is about
                failed.append(error)
            calls += 5

    loads = [asyncio.create_task(call(clients[number % 2], f"key:{number}")) for number in range(20)]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not failed:
        await asyncio.sleep(0.05)
    present = connections_of(inspector)
    is_over.set()
    await asyncio.gather(*loads)

    assert [] == failed
    assert calls > 100
    # These have outlived all tokens but the last.
    assert shared <= present.keys()
    assert len(authority.issued) > seconds / 2


@PROVIDERS
async def test_tokens_that_expire_every_second_fail_no_call(make_pool, server, inspector, issuing, provider_of):
    await no_call_fails(make_pool, server, inspector, issuing, provider_of, 5)


@pytest.mark.slow
@PROVIDERS
async def test_tokens_that_expire_every_second_for_a_minute_fail_no_call(
    make_pool, server, inspector, issuing, provider_of
):
    await no_call_fails(make_pool, server, inspector, issuing, provider_of, 60)


# --- Refused for good ---


async def test_revoked_token_is_sent_once_for_each_call_that_connects(make_client, server, inspector, issuing):
    authority = issuing()
    client = make_client(server.url, credential_provider=own(authority))
    await client.set("key", "value")
    authority.refuse()
    before = counted(inspector)

    for number in range(1, 5):
        with pytest.raises(REFUSED, match=r"^invalid username-password pair or user is disabled\.$"):
            await client.get("key")
        assert number == counted(inspector) - before == counted(inspector, "failed_calls")
        # What was refused is not sent again: each is another token.
        assert number == len(authority.issued)


async def test_worker_sends_a_revoked_token_once_for_each_backoff(make_pool, server, inspector, issuing, until, caplog):
    authority = issuing()
    pool = make_pool(server.url, credential_provider=own(authority), **UNRECORDED)

    async def handler(message):
        pass

    working = asyncio.create_task(MessageQueue("mail", pool).consume(handler, concurrency=1))
    try:
        await until(lambda: len(connections_of(inspector)) >= 2)
        authority.refuse()
        await until(lambda: caplog.text.count("server unavailable, retrying: AuthenticationError") >= 6)
        assert not working.done()
        retries, refusals = caplog.text.count("retrying: AuthenticationError"), counted(inspector, "failed_calls")
    finally:
        working.cancel()
        await asyncio.wait([working])

    # At first, the loop's and the shared connection are made at the same time; the last may not be logged yet.
    assert retries - 1 <= refusals <= retries + 3


async def test_new_token_is_used_after_a_refusal_that_its_lifetime_did_not_announce(
    make_client, server, inspector, issuing
):
    authority = issuing()
    client = make_client(server.url, credential_provider=own(authority))
    await client.set("key", "value")
    authority.revoke(*authority.issued)

    with suppress(REFUSED):
        await client.get("key")
    assert b"value" == await client.get("key")
    assert 2 == len(authority.issued)


# --- The provider ---


async def test_connections_that_are_made_together_share_a_request(make_pool, server, issuing):
    authority = issuing()
    pool = make_pool(server.url, credential_provider=own(authority), multiplex=False)
    client = MonitoredRedisConnection(connection_pool=pool)
    await asyncio.gather(*(client.ping() for _ in range(20)))

    assert ["app-1"] == authority.issued


async def test_token_is_not_requested_in_the_event_loop(make_client, server, issuing):
    client = make_client(server.url, credential_provider=own(issuing()))
    with blockbuster.blockbuster_ctx():
        assert await client.set("key", "value")


async def test_renewal_that_fails_is_tried_again_and_logged_once(make_pool, server, inspector, issuing, until, caplog):
    authority = issuing(lifetime=4, forgets=False)
    pool = make_pool(server.url, credential_provider=own(authority))
    await pool.ping()
    before = connections_of(inspector)
    authority.error = OSError(SECRET)
    await until(lambda: authority.failed >= 2)
    authority.error = None
    await until(lambda: all_renewed(inspector, before))

    failed = "the credentials 'test' gave no token: OSError"
    assert [f"{failed}; it is tried again, and a token that is still valid is used meanwhile"] == caplog.messages


@pytest.fixture
def grow_older(monkeypatch):
    """Make tokens older than they are."""
    age = 0.0

    def grow(seconds):
        nonlocal age
        age += seconds

    monkeypatch.setattr(tokens, "monotonic", lambda: time.monotonic() + age)
    return grow


async def test_valid_token_is_used_while_no_new_one_can_be_had(make_client, server, issuing, grow_older):
    authority = issuing(lifetime=1000)
    client = make_client(server.url, credential_provider=own(authority), retries=0)
    await client.set("key", "value")
    authority.error = OSError(SECRET)
    for age in (600, 300):
        grow_older(age)
        await client.connection_pool.disconnect()
        assert b"value" == await client.get("key")
    grow_older(200)
    await client.connection_pool.disconnect()
    with pytest.raises(redis.exceptions.ConnectionError, match=r"the credentials 'test' gave no token: OSError$"):
        await client.get("key")

    assert ["app-1"] == authority.issued


async def test_connection_that_is_made_renews_a_token_when_half_of_its_life_is_over(
    make_client, server, inspector, issuing, grow_older
):
    authority = issuing(lifetime=1000)
    client = make_client(server.url, credential_provider=own(authority))

    async def connect_after(seconds):
        grow_older(seconds)
        await client.connection_pool.disconnect()
        await client.ping()
        return set(connections_of(inspector).values())

    assert {"app-1"} == await connect_after(0)
    assert {"app-1"} == await connect_after(490)
    # The present one is valid for long enough: the connection does not wait.
    assert {"app-1"} == await connect_after(20)
    # It is issued in a thread, and taken over in the event loop then.
    async with asyncio.timeout(DEADLINE):
        while await connect_after(0) != {"app-2"}:
            pass
    assert ["app-1", "app-2"] == authority.issued
    assert {"app-3"} == await connect_after(760)


async def test_unreachable_authority_counts_as_an_unreachable_server(make_client, server, issuing, until):
    authority = issuing()
    authority.error = OSError(SECRET)
    client = make_client(server.url, credential_provider=own(authority), socket_timeout=60)
    call = asyncio.create_task(client.set("key", "value"))
    await until(lambda: authority.failed >= 3)
    authority.error = None

    assert await call


async def test_token_that_has_expired_raises_an_error_about_the_clock(make_client, server):
    provider = TokenProvider("test", lambda: SimpleToken(SECRET, time.time() * 1000 - 1, 0, {"oid": "app"}))
    client = make_client(server.url, credential_provider=provider, retries=0)
    with pytest.raises(redis.exceptions.ConnectionError, match="gave a token that has expired; is this machine"):
        await client.ping()


async def test_what_wraps_an_error_is_not_named_in_its_place(make_client, server):
    def request_token():
        try:
            raise PermissionError(SECRET)
        except PermissionError as error:
            raise RequestTokenErr(error)  # noqa: B904 - as redis-entraid does

    client = make_client(server.url, credential_provider=TokenProvider("test", request_token), retries=0)
    with pytest.raises(redis.exceptions.ConnectionError, match=r"gave no token: PermissionError$"):
        await client.ping()


async def test_connections_are_authenticated_again_in_half_the_time_that_the_server_keeps_them(
    make_pool, server, inspector, issuing, until
):
    authority = issuing(forgets=False)
    pool = make_pool(server.url, credential_provider=TokenProvider("test", authority.request_token, 1.0))
    await pool.ping()
    before = connections_of(inspector)

    await until(lambda: all_renewed(inspector, before))


async def test_token_that_has_not_changed_is_not_sent_again(make_pool, server, inspector, issuing, until):
    authority = issuing()
    kept, requests = authority.request_token(), 0

    def request_token():
        # As azure-identity does, until the token is about to expire.
        nonlocal requests
        requests += 1
        now = time.time() * 1000
        return SimpleToken(kept.get_value(), now + 500, now, kept.claims)

    pool = make_pool(server.url, credential_provider=TokenProvider("test", request_token))
    await pool.ping()
    sent = counted(inspector)
    await until(lambda: requests >= 4)

    assert sent == counted(inspector)


async def test_provider_without_a_pool_renews_no_longer(server, issuing, until):
    authority = issuing(lifetime=0.4, forgets=False)
    provider = own(authority)
    pool = pool_from_config({"redis.url": server.url}, credential_provider=provider, **UNRECORDED)
    async with pool:
        await pool.ping()
        await until(lambda: len(authority.issued) >= 3)
    gone = weakref.ref(provider)
    del provider, pool
    await until(lambda: gc.collect() >= 0 and gone() is None)


def test_provider_renews_in_the_next_event_loop(server, inspector):
    authority = Authority(inspector, lifetime=1, forgets=False)
    provider = own(authority)

    async def main():
        pool = pool_from_config({"redis.url": server.url}, credential_provider=provider, **UNRECORDED)
        async with pool, asyncio.timeout(30):
            await pool.ping()
            before = connections_of(inspector)
            while not all_renewed(inspector, before):
                await asyncio.sleep(0.01)

    try:
        for _ in range(2):
            asyncio.run(main())
    finally:
        authority.close()
