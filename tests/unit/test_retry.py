"""Only commands that did not execute are retried: the policy, without I/O."""

import ssl

import pytest
from redis import exceptions as errors

from aioredis_monitored import DedicatedConnectionError, PinnedConnectionLostError, PoolClosedError, PoolExhaustedError
from aioredis_monitored._commands.traits import traits_of, traits_of_batch
from aioredis_monitored.pool.retry import RetryPolicy

READ, WRITE, SCRIPT = traits_of(["GET"]), traits_of(["INCR"]), traits_of(["EVAL"])
READS, MIXED = traits_of_batch([["GET"], ["PING"]]), traits_of_batch([["GET"], ["INCR"]])
ALL = [READ, WRITE, SCRIPT, READS, MIXED]


def caused_by(cause, error):
    error.__cause__ = cause
    return error


def answer(kind, code="CODE"):
    return kind("said by the server", status_code=code)


MAX_CLIENTS = errors.ConnectionError("max number of clients reached", status_code="ERR")
# error, and the traits with which it is retried if the command was (not written, written).
RULES = [
    (errors.ConnectionError("lost"), ALL, [READ, READS]),
    (errors.TimeoutError("late"), ALL, [READ, READS]),
    (answer(errors.BusyLoadingError), ALL, [READ, WRITE, READS]),
    (answer(errors.ReadOnlyError), ALL, [READ, WRITE, READS]),
    (answer(errors.MasterDownError), ALL, [READ, WRITE, READS]),
    (answer(errors.ClusterDownError), ALL, [READ, WRITE, READS]),
    (answer(errors.TryAgainError), ALL, [READ, WRITE, READS]),
    (MAX_CLIENTS, ALL, [READ, WRITE, READS]),
    (answer(errors.AuthenticationError), [], []),
    (answer(errors.AuthenticationWrongNumberOfArgsError), [], []),
    (answer(errors.AuthorizationError), [], []),
    (answer(errors.NoPermissionError), [], []),
    (answer(errors.ResponseError), [], []),
    (answer(errors.OutOfMemoryError), [], []),
    (answer(errors.NoScriptError), [], []),
    (answer(errors.ConnectionError), [], []),
    (errors.DataError("no"), [], []),
    (errors.WatchError("no"), [], []),
    (errors.InvalidResponse("no"), [], []),
    (PoolClosedError("no"), [], []),
    (PinnedConnectionLostError("no"), [], []),
    (PoolExhaustedError("no"), [], []),
    (DedicatedConnectionError("no"), [], []),
    (caused_by(ssl.SSLCertVerificationError("no"), errors.ConnectionError("tls")), [], []),
    (caused_by(ssl.SSLEOFError("cut"), errors.ConnectionError("tls")), ALL, [READ, READS]),
    (caused_by(OSError("refused"), errors.ConnectionError("tcp")), ALL, [READ, READS]),
    (UnicodeDecodeError("utf-8", b"", 0, 1, "no"), [], []),
]


# The policy.


@pytest.mark.parametrize(
    ("error", "unwritten", "written"), RULES, ids=[f"{n}-{type(rule[0]).__name__}" for n, rule in enumerate(RULES)]
)
def test_what_may_be_tried_again(error, unwritten, written):
    def may(traits, *, was_written):
        policy = RetryPolicy(20, 0.02, 5.0)
        return policy.next_delay(error, written=was_written, traits=traits, failures=1, elapsed=0) is not None

    assert [traits in unwritten for traits in ALL] == [may(traits, was_written=False) for traits in ALL]
    assert [traits in written for traits in ALL] == [may(traits, was_written=True) for traits in ALL]


def failed(policy, error=None, *, written=False, traits=WRITE, failures=1, elapsed=0.0):
    error = error or errors.ConnectionError("lost")
    return policy.next_delay(error, written=written, traits=traits, failures=failures, elapsed=elapsed)


def test_pauses_double_up_to_half_a_second_and_half_of_each_is_random():
    policy = RetryPolicy(20, 0.02, None)

    pauses = [[failed(policy, failures=failures) for _ in range(200)] for failures in range(1, 11)]

    for most, some in zip([0.02, 0.04, 0.08, 0.16, 0.32, *[0.5] * 5], pauses, strict=True):
        assert most / 2 <= min(some) < max(some) <= most


def test_no_attempt_begins_after_the_deadline():
    assert failed(RetryPolicy(20, 0.02, 1.0), elapsed=0.97) is not None
    assert failed(RetryPolicy(20, 0.02, 1.0), elapsed=0.99) is None
    assert failed(RetryPolicy(20, 0.02, 1.0), elapsed=1.5) is None


def test_retries_bound_the_attempts_with_and_without_a_deadline():
    for deadline in (None, 5.0):
        assert failed(RetryPolicy(3, 0.02, deadline), failures=3) is not None
        assert failed(RetryPolicy(3, 0.02, deadline), failures=4) is None
        assert failed(RetryPolicy(0, 0.02, deadline)) is None


@pytest.mark.parametrize(
    ("error", "written", "starts"),
    [
        (errors.ConnectionError("refused"), False, True),
        (errors.TimeoutError("connecting"), False, True),
        (answer(errors.BusyLoadingError), True, True),
        (errors.TimeoutError("late"), True, False),
        (errors.ConnectionError("cut"), True, False),
    ],
)
def test_an_outage_starts_when_a_whole_deadline_was_in_vain(error, written, starts):
    policy = RetryPolicy(20, 0.02, 1.0)
    assert failed(policy, error, written=written, traits=READ, elapsed=0.5) is not None
    # One attempt after a long wait for a slot.
    assert failed(policy, error, written=written, traits=READ, elapsed=1.0) is None
    assert not policy.server_unreachable

    assert failed(policy, error, written=written, traits=READ, elapsed=1.0, failures=2) is None

    assert starts == policy.server_unreachable
    assert starts == (failed(policy, error, written=written, traits=READ) is None)


def test_what_is_never_tried_again_says_nothing_about_an_outage():
    policy = RetryPolicy(20, 0.02, 1.0)

    assert failed(policy, answer(errors.AuthenticationError), elapsed=2.0) is None

    assert not policy.server_unreachable
