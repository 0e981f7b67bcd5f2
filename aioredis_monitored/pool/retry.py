"""Retry or raise: only a call that certainly did not run is retried; decided without I/O."""

import ssl
from collections.abc import Callable
from typing import Final

from redis import exceptions
from redis.backoff import EqualJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from aioredis_monitored._commands.traits import Traits
from aioredis_monitored.errors import PinnedConnectionLostError, PoolClosedError, cause_of

# A server that has come back is found within this time.
MAX_DELAY_SECONDS: Final = 0.5
_NOT_EXECUTED = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
# What a node of a cluster answers before it runs anything, of a script or a transaction as well. A script may end with
# such an error, but not with these texts.
_REFUSED_BY_CLUSTER: Final = (
    "Hash slot not served",
    "Multiple keys request during rehashing of slot",
    "The cluster is down",
)
_MAX_CLIENTS: Final = "max number of clients reached"
# The replies to blocking commands when the server becomes a replica, and those of a server that runs a slow script, or
# is short of replicas or of disk space.
_TRANSIENT_PREFIXES: Final = ("UNBLOCKED ", "BUSY ", "NOREPLICAS ", "MISCONF ")
# A call is written once on the shared connection, once with others that have lost that connection, and once alone (see
# ``ISOLATE_AFTER`` of the multiplexer).
_MAX_LOSSES: Final = 2
# More doublings change no delay; from 1,024 on, redis-py computes a power of two that no float holds.
_MAX_DOUBLINGS: Final = 64
# Waiting changes none of these.
_PERMANENT = (AuthenticationError, AuthorizationError, PinnedConnectionLostError, PoolClosedError)
_NEVER_RETRIED = (*_PERMANENT, MaxConnectionsError)


def exponential_backoff(first: float, cap: float) -> Callable[[int], float]:
    """Make a backoff whose delays double with each failure; up to half of each is random.

    Args:
        first: Seconds of the first delay, at most.
        cap: Seconds of the longest delay, at most.

    Returns:
        A function that returns the seconds to wait after a number of failures.
    """
    policy = EqualJitterBackoff(cap=cap, base=first / 2)
    return lambda failures: float(policy.compute(min(failures, _MAX_DOUBLINGS)))


class RetryPolicy:
    """Which calls on one pool are retried, and whether its server is unreachable.

    A call is retried if the server certainly did not run it: nothing of it was written, or the server answered that it
    does not serve now. A call that was written and not answered is retried only if running it twice does no harm. When
    calls have failed for a whole deadline, later ones get one attempt each until one succeeds.

    Args:
        retries: The most retries of one call; 0 for none.
        backoff: Seconds of the first delay, of which up to half is random; it doubles with each failure, to 0.5 s.
        deadline: Seconds from a call's beginning within which an attempt may start; ``None`` for no bound.

    Attributes:
        server_unreachable: Whether calls have failed for a whole deadline, and none has succeeded since.
        deadline: Seconds from a call's beginning within which an attempt may start; ``None`` for no bound.
        backoff: Returns the seconds to wait after a number of failures.
    """

    def __init__(self, retries: int, backoff: float, deadline: float | None) -> None:
        self.server_unreachable = False
        self.deadline = deadline
        self._retries = retries
        self.backoff = exponential_backoff(backoff, MAX_DELAY_SECONDS)

    def next_delay(
        self, error: Exception, *, may_have_run: bool, traits: Traits, failures: int, elapsed: float, losses: int = 0
    ) -> float | None:
        """Return the seconds to wait before the next attempt; ``None`` if the error is to be raised.

        Args:
            error: The error of the last attempt.
            may_have_run: Whether the server may have received the call.
            traits: The traits of the command.
            failures: The number of failed attempts, at least 1.
            elapsed: Seconds since the call's beginning.
            losses: The number of connections that were lost after the call was written to them, at most 3; default 0.
                A command that the server answers by hanging up must not be repeated until the deadline.
        """
        if losses > _MAX_LOSSES or not is_retryable(error, may_have_run=may_have_run, traits=traits):
            return None
        delay = self.backoff(failures)
        is_late = self.deadline is not None and elapsed + delay >= self.deadline
        is_over = is_late if self.deadline is not None else failures > self._retries
        says_it_is_away = not isinstance(error, ClusterDownError) and (not may_have_run or is_error_reply(error))
        if is_over and failures > 1 and says_it_is_away:
            # One slow reply, or one attempt after a long wait for a connection, would say nothing about the next call;
            # nor does a slot that no node serves about other slots.
            self.server_unreachable = True
        if self.server_unreachable or failures > self._retries or is_late:
            return None
        return delay


def is_transient(error: Exception) -> bool:
    """Whether an error may pass by itself: the server is unreachable, answers that it does not serve now, or restarts.

    A server that restarts between the loading of a script and its call answers that it does not know the script.
    """
    if isinstance(error, _PERMANENT) or _is_tls_refusal(cause_of(error)):
        return False
    transient = (exceptions.ConnectionError, exceptions.TimeoutError, NoScriptError, OutOfMemoryError, *_NOT_EXECUTED)
    return isinstance(error, transient) or str(error).startswith(_TRANSIENT_PREFIXES)


def is_retryable(error: Exception, *, may_have_run: bool, traits: Traits) -> bool:
    """Whether a call that has failed with this error may be made again."""
    if isinstance(error, _NEVER_RETRIED) or _is_tls_refusal(cause_of(error)):
        return False
    if is_refused_by_cluster(error):
        return True
    if isinstance(error, _NOT_EXECUTED) or str(error) == _MAX_CLIENTS:
        # A script may have written before it got the error.
        return not (may_have_run and traits.runs_code)
    is_broken = isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError) and not is_error_reply(error)
    return is_broken and (not may_have_run or traits.retry_safe)


def is_refused_by_cluster(error: Exception) -> bool:
    """Whether a node of a cluster has run nothing of a call, whatever that is, and may run it later."""
    # A pipeline adds the number of the command to the text.
    is_its_error = isinstance(error, ClusterDownError | TryAgainError)
    return is_its_error and any(text in str(error) for text in _REFUSED_BY_CLUSTER)


def is_connection_loss(error: Exception) -> bool:
    """Whether the connection was closed without a reply."""
    return isinstance(error, exceptions.ConnectionError) and not is_error_reply(error)


def _is_tls_refusal(cause: BaseException | None) -> bool:
    """Whether either side has refused TLS, as it will in the next attempt."""
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def is_error_reply(error: Exception) -> bool:
    """Whether the error is a reply of the server; redis-py makes connection errors of some."""
    return isinstance(error, ResponseError) or getattr(error, "status_code", None) is not None
