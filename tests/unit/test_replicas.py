"""Which replica is chosen for a call, of those that have answered or failed before, and the way back to the primary.

Without a server.
"""

import time
from collections import Counter

import pytest
import redis.exceptions
from support.internals import set_suspicion_of_servers

from aioredis_monitored import MonitoredClusterPool, MonitoredConnectionPool, PoolClosedError
from aioredis_monitored._multiplexer import AttemptFailed
from aioredis_monitored.pool.node_pool import ClosingPools
from aioredis_monitored.pool.redirects import ClusterRoute
from aioredis_monitored.pool.replicas import ReplicaRoute, Replicas, SuspectedServers, seconds_at_replica
from aioredis_monitored.pool.retry import RetryPolicy

DEADLINE = 30.0
FIRST, SECOND = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


@pytest.fixture
def replicas():
    """Return two replicas."""
    replicas = Replicas("name", {})
    replicas.update(frozenset({FIRST, SECOND}))
    return replicas


@pytest.fixture
def suspected(monkeypatch):
    """Return suspected servers, none yet, which stay suspected for the whole test."""
    set_suspicion_of_servers(monkeypatch, 3600)
    return SuspectedServers()


def pool_at(address):
    host, port = address
    return MonitoredConnectionPool(host=host, port=port)


# Which one is chosen.


def test_pools_are_named_after_that_of_the_service(replicas):
    assert {"name@10.0.0.1:6379", "name@10.0.0.2:6379"} == {pool.name for pool in replicas}


def test_none_is_chosen_without_replicas():
    assert Replicas("name", {}).choose() is None


def test_replicas_are_chosen_at_random(replicas):
    counts = Counter(replicas.choose() for _ in range(400))

    assert set(replicas) == set(counts)
    # Out of bounds with a probability below one in a billion.
    assert all(130 < count < 270 for count in counts.values())


@pytest.mark.parametrize(
    "error",
    [
        redis.exceptions.ConnectionError("refused"),
        redis.exceptions.TimeoutError("no reply"),
        redis.exceptions.BusyLoadingError("loading"),
        redis.exceptions.MasterDownError("link down"),
        redis.exceptions.AuthenticationError("no such user"),
    ],
)
def test_replica_that_could_not_serve_a_call_gets_none(replicas, error):
    failing, other = replicas
    replicas.on_failed(failing, error)

    assert {other} == {replicas.choose() for _ in range(60)}
    replicas.on_failed(other, error)
    assert replicas.choose() is None


@pytest.mark.parametrize("text", ["WRONGTYPE other type", "ERR syntax error", "NOPERM no permission"])
def test_error_about_the_command_makes_no_replica_suspected(replicas, text):
    for pool in replicas:
        replicas.on_failed(pool, redis.exceptions.ResponseError(text))

    assert set(replicas) == {replicas.choose() for _ in range(60)}


def test_replica_that_has_failed_gets_one_call_and_further_ones_after_its_reply(replicas, monkeypatch):
    failing, other = replicas
    set_suspicion_of_servers(monkeypatch, -1)
    replicas.on_failed(failing, redis.exceptions.ConnectionError())
    set_suspicion_of_servers(monkeypatch, 3600)

    assert 1 == [replicas.choose() for _ in range(60)].count(failing)
    # As each call does that succeeds.
    failing.retry_policy.server_unreachable = False
    deadline = time.monotonic() + DEADLINE
    while replicas.choose() is not failing:
        assert time.monotonic() < deadline
    assert {failing, other} == {replicas.choose() for _ in range(60)}


async def test_failure_of_a_replica_that_has_left_does_not_count_for_the_one_at_its_address(replicas):
    failing = next(each for each in replicas if each.connection_kwargs["host"] == FIRST[0])
    replicas.update(frozenset())
    replicas.update(frozenset({FIRST}))
    replicas.on_failed(failing, redis.exceptions.ConnectionError())

    assert list(replicas) == [replicas.choose()]
    await replicas.aclose()


async def test_replica_that_was_suspected_gets_calls_as_soon_as_the_pool_is_opened_again(replicas):
    for pool in replicas:
        replicas.on_failed(pool, redis.exceptions.ConnectionError())
    await replicas.aclose()
    replicas.update(frozenset({FIRST}))

    assert list(replicas) == [replicas.choose()]
    await replicas.aclose()


def test_server_is_suspected_for_a_while(suspected, monkeypatch):
    assert FIRST not in suspected
    suspected.add(FIRST)
    assert FIRST in suspected
    assert SECOND not in suspected
    set_suspicion_of_servers(monkeypatch, -1)
    suspected.add(FIRST)

    assert FIRST not in suspected


def test_replica_that_answers_a_refresh_gets_the_call_that_tries_it_at_once(suspected):
    failing = pool_at(FIRST)
    suspected.on_replica_failed(failing, redis.exceptions.ConnectionError())
    assert suspected.choose_replica([failing]) is None
    suspected.discard(FIRST)

    assert [failing, None] == [suspected.choose_replica([failing]) for _ in range(2)]
    # That call has failed, too: further answers to refreshes have no other one made.
    suspected.on_replica_failed(failing, redis.exceptions.MasterDownError("link down"))
    suspected.discard(FIRST)
    assert suspected.choose_replica([failing]) is None


def test_silent_replica_gets_calls_as_soon_as_it_answers(suspected):
    silent = pool_at(FIRST)
    suspected.add(FIRST)
    assert suspected.choose_replica([silent]) is None
    suspected.discard(FIRST)

    assert [silent] * 3 == [suspected.choose_replica([silent]) for _ in range(3)]


def test_other_server_at_the_address_of_one_that_has_left_is_not_suspected(suspected):
    failing, other = pool_at(FIRST), pool_at(FIRST)
    suspected.on_replica_failed(failing, redis.exceptions.ConnectionError())
    suspected.forget(FIRST)

    assert FIRST not in suspected
    assert suspected.choose_replica([other]) is other


# The way back to the primary.


@pytest.mark.parametrize(("deadline", "left", "expected"), [(8, None, 4), (8, 5, 4), (8, 3, 3), (None, None, None)])
def test_replica_has_half_of_the_deadline(deadline, left, expected):
    assert expected == seconds_at_replica(RetryPolicy(3, 0.1, deadline), left)


def test_primary_is_asked_at_once_after_the_replica_and_then_its_own_route_decides():
    primary, replica, failed = pool_at(FIRST), pool_at(SECOND), []
    route = ReplicaRoute(primary, replica, lambda *failure: failed.append(failure))
    error = redis.exceptions.ResponseError("NOPERM no permission")

    assert primary.retry_policy is route.retry_policy
    assert not route.is_connected()
    assert 0 == route.follow(AttemptFailed(error, may_have_run=True))
    assert [(replica, error)] == failed
    assert route.follow(AttemptFailed(error, may_have_run=True)) is None
    assert 1 == len(failed)


async def test_redirect_of_a_replica_is_followed_and_no_failure():
    cluster, failed = MonitoredClusterPool([FIRST]), []
    replica = cluster.cluster_topology.pool_at(SECOND)
    primary = ClusterRoute(cluster, lambda: cluster.pool_of_slot(1), None, pool=replica)
    route = ReplicaRoute(primary, replica, lambda *failure: failed.append(failure))

    assert 0 == route.follow(AttemptFailed(redis.exceptions.MovedError("1 10.0.0.3:6379"), may_have_run=True))
    assert not failed
    assert ("10.0.0.3", 6379) == cluster.cluster_topology.address_of(cluster.pool_of_slot(1))
    await cluster.aclose()


# Pools that close in the background.


async def test_pool_that_is_closed_is_forgotten(until):
    closing, pool = ClosingPools(), pool_at(FIRST)
    closing.close(pool)
    assert [pool] == list(closing)
    await until(lambda: not list(closing))

    with pytest.raises(PoolClosedError):
        await pool.get_connection()


async def test_closing_waits_for_all_pools_and_forgets_them():
    closing, pools = ClosingPools(), [pool_at(FIRST), pool_at(SECOND)]
    closing.close(pools[0])
    closing.add(pools)
    assert set(pools) == set(closing)
    await closing.aclose()

    assert not list(closing)
    for pool in pools:
        with pytest.raises(PoolClosedError):
            await pool.get_connection()
