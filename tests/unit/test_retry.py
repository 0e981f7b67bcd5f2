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


def server_error(kind, code="CODE"):
    return kind("said by the server", status_code=code)


MAX_CLIENTS = errors.ConnectionError("max number of clients reached", status_code="ERR")
# error, and the traits with which it is retried if the command was (certainly not run, maybe run).
RULES = [
    (errors.ConnectionError("lost"), ALL, [READ, READS]),
    (errors.TimeoutError("late"), ALL, [READ, READS]),
    (server_error(errors.BusyLoadingError), ALL, [READ, WRITE, READS]),
    (server_error(errors.ReadOnlyError), ALL, [READ, WRITE, READS]),
    (server_error(errors.MasterDownError), ALL, [READ, WRITE, READS]),
    (server_error(errors.ClusterDownError), ALL, [READ, WRITE, READS]),
    (server_error(errors.TryAgainError), ALL, [READ, WRITE, READS]),
    (errors.TryAgainError("Multiple keys request during rehashing of slot", status_code="TRYAGAIN"), ALL, ALL),
    (errors.ClusterDownError("Hash slot not served", status_code="CLUSTERDOWN"), ALL, ALL),
    (errors.ClusterDownError("Command # 1 (INCR ?) of pipeline caused error: The cluster is down"), ALL, ALL),
    (MAX_CLIENTS, ALL, [READ, WRITE, READS]),
    (server_error(errors.AuthenticationError), [], []),
    (server_error(errors.AuthenticationWrongNumberOfArgsError), [], []),
    (server_error(errors.AuthorizationError), [], []),
    (server_error(errors.NoPermissionError), [], []),
    (server_error(errors.ResponseError), [], []),
    (server_error(errors.OutOfMemoryError), [], []),
    (server_error(errors.NoScriptError), [], []),
    (server_error(errors.ConnectionError), [], []),
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
    ("error", "if_not_run", "if_maybe_run"),
    RULES,
    ids=[f"{n}-{type(rule[0]).__name__}" for n, rule in enumerate(RULES)],
)
def test_retry_policy_permits_retries_by_error_traits_and_whether_it_may_have_run(error, if_not_run, if_maybe_run):
    def may(traits, *, may_have_run):
        policy = RetryPolicy(20, 0.02, 5.0)
        return policy.next_delay(error, may_have_run=may_have_run, traits=traits, failures=1, elapsed=0) is not None

    assert [traits in if_not_run for traits in ALL] == [may(traits, may_have_run=False) for traits in ALL]
    assert [traits in if_maybe_run for traits in ALL] == [may(traits, may_have_run=True) for traits in ALL]


def delay_after_failure(policy, error=None, *, may_have_run=False, traits=WRITE, failures=1, elapsed=0.0):
    error = error or errors.ConnectionError("lost")
    return policy.next_delay(error, may_have_run=may_have_run, traits=traits, failures=failures, elapsed=elapsed)


def test_backoff_doubles_up_to_half_a_second_with_half_of_each_delay_random():
    policy = RetryPolicy(20, 0.02, None)

    delays = [[delay_after_failure(policy, failures=failures) for _ in range(200)] for failures in range(1, 11)]

    for most, some in zip([0.02, 0.04, 0.08, 0.16, 0.32, *[0.5] * 5], delays, strict=True):
        assert most / 2 <= min(some) < max(some) <= most


def test_retry_policy_starts_no_attempt_after_the_deadline():
    assert delay_after_failure(RetryPolicy(20, 0.02, 1.0), elapsed=0.97) is not None
    assert delay_after_failure(RetryPolicy(20, 0.02, 1.0), elapsed=0.99) is None
    assert delay_after_failure(RetryPolicy(20, 0.02, 1.0), elapsed=1.5) is None


def test_retries_bound_attempts_with_and_without_a_deadline():
    for deadline in (None, 5.0):
        assert delay_after_failure(RetryPolicy(3, 0.02, deadline), failures=3) is not None
        assert delay_after_failure(RetryPolicy(3, 0.02, deadline), failures=4) is None
        assert delay_after_failure(RetryPolicy(0, 0.02, deadline)) is None


@pytest.mark.parametrize(
    ("error", "may_have_run", "starts"),
    [
        (errors.ConnectionError("refused"), False, True),
        (errors.TimeoutError("connecting"), False, True),
        (server_error(errors.BusyLoadingError), True, True),
        (errors.TimeoutError("late"), True, False),
        (errors.ConnectionError("cut"), True, False),
    ],
)
def test_server_is_unreachable_after_a_deadline_of_attempts_that_did_not_execute(error, may_have_run, starts):
    policy = RetryPolicy(20, 0.02, 1.0)
    assert delay_after_failure(policy, error, may_have_run=may_have_run, traits=READ, elapsed=0.5) is not None
    # One attempt after a long wait for a slot.
    assert delay_after_failure(policy, error, may_have_run=may_have_run, traits=READ, elapsed=1.0) is None
    assert not policy.server_unreachable

    assert delay_after_failure(policy, error, may_have_run=may_have_run, traits=READ, elapsed=1.0, failures=2) is None

    assert starts == policy.server_unreachable
    assert starts == (delay_after_failure(policy, error, may_have_run=may_have_run, traits=READ) is None)


def test_error_that_is_never_retried_does_not_mark_server_unreachable():
    policy = RetryPolicy(20, 0.02, 1.0)

    assert delay_after_failure(policy, server_error(errors.AuthenticationError), elapsed=2.0) is None

    assert not policy.server_unreachable
