"""Which replica is chosen for a call, of those that have answered or failed before; without a server."""

from collections import Counter

import pytest
import redis.exceptions
from support.internals import set_suspension_of_replicas

from aioredis_monitored.pool.replicas import Replicas

FIRST, SECOND = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


@pytest.fixture
def replicas():
    """Return two replicas."""
    replicas = Replicas("name", {})
    replicas.update(frozenset({FIRST, SECOND}))
    return replicas


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
def test_error_about_the_command_suspends_no_replica(replicas, text):
    for pool in replicas:
        replicas.on_failed(pool, redis.exceptions.ResponseError(text))

    assert set(replicas) == {replicas.choose() for _ in range(60)}


def test_replica_that_has_failed_gets_one_call_and_further_ones_after_its_reply(replicas, monkeypatch):
    failing, other = replicas
    set_suspension_of_replicas(monkeypatch, -1)
    replicas.on_failed(failing, redis.exceptions.ConnectionError())
    set_suspension_of_replicas(monkeypatch, 3600)

    assert 1 == [replicas.choose() for _ in range(60)].count(failing)
    replicas.on_answered(failing)
    assert {failing, other} == {replicas.choose() for _ in range(60)}
