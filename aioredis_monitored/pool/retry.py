"""Retry or raise: only what surely did not run is tried again, decided without I/O."""

import ssl
from collections.abc import Callable
from typing import Final

from redis.backoff import EqualJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,  # noqa: A004
    MasterDownError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)

from aioredis_monitored._commands.traits import Traits
from aioredis_monitored.errors import PinnedConnectionLostError, PoolClosedError, cause_of

# The longest pause: a server that has come back is found within it.
MAX_DELAY_SECONDS: Final = 0.5
_NOT_EXECUTED = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_MAX_CLIENTS: Final = "max number of clients reached"
# Said to whoever waits when the server becomes a replica; by a server that runs somebody's script, or is short of
# replicas or of disk space.
_TRANSIENT_PREFIXES: Final = ("UNBLOCKED ", "BUSY ", "NOREPLICAS ", "MISCONF ")
# A call is written once on the shared connection, once together with others that were lost with that, and once alone.
_MAX_LOSSES: Final = 2
# With so many, every pause is the longest; from 1,024 on, redis-py computes a power of two that no float holds.
_MAX_DOUBLINGS: Final = 64
# No pause changes these.
_PERMANENT = (AuthenticationError, AuthorizationError, PinnedConnectionLostError, PoolClosedError)
_NEVER_RETRIED = (*_PERMANENT, MaxConnectionsError)


def exponential_backoff(first: float, cap: float) -> Callable[[int], float]:
    """Pauses that double with each failure, of which up to half is random.

    Args:
        first: Seconds of the first one, at most.
        longest: Seconds of the longest one.

    Returns:
        A function that gives the seconds after so many failures.
    """
    policy = EqualJitterBackoff(cap=cap, base=first / 2)
    return lambda failures: float(policy.compute(min(failures, _MAX_DOUBLINGS)))


class RetryPolicy:
    """When the calls on one pool are tried again, and whether its server is out of reach.

    A call is tried again if the server surely did not run it: nothing of it was written, or the server answered that it
    does not serve now. If it was written and not answered, that holds only where running it twice does no harm. When
    calls have tried in vain for a whole deadline, later ones get one attempt each until one succeeds.

    Args:
        retries: The most further attempts of one call; 0 for none.
        backoff: Seconds of the first pause, of which up to half is random; it doubles with each failure, to 0.5 s.
        deadline: Seconds from a call's beginning in which an attempt may start; ``None`` for no such bound.
    """

    def __init__(self, retries: int, backoff: float, deadline: float | None) -> None:
        self.server_unreachable = False
        self.deadline = deadline
        self._retries = retries
        self._backoff = exponential_backoff(backoff, MAX_DELAY_SECONDS)

    def next_delay(
        self, error: Exception, *, written: bool, traits: Traits, failures: int, elapsed: float, losses: int = 0
    ) -> float | None:
        """Seconds to wait before the next attempt; ``None`` if the error is to be raised.

        Args:
            error: What the last attempt raised.
            written: Whether any of it was handed to the transport.
            traits: Those of the command.
            failures: The attempts that have failed, at least 1.
            elapsed: Seconds since the call's beginning.
            losses: How many connections the call was written to and lost, at most 3; default 0. What a server answers
                by hanging up must not be repeated for as long as there is time.
        """
        if losses > _MAX_LOSSES or not _is_retryable(error, written=written, traits=traits):
            return None
        delay = self._backoff(failures)
        is_late = self.deadline is not None and elapsed + delay >= self.deadline
        is_over = is_late if self.deadline is not None else failures > self._retries
        if is_over and failures > 1 and (not written or is_error_reply(error)):
            # A reply that merely took too long would say nothing about the next call, nor would one attempt after a
            # long wait for its turn.
            self.server_unreachable = True
        if self.server_unreachable or failures > self._retries or is_late:
            return None
        return delay


def is_transient(error: Exception) -> bool:
    """Whether an error may pass by itself: the server cannot be reached, or says that it does not serve now.

    Or it has forgotten a script as soon as it was told it, as one does that is started anew.
    """
    if isinstance(error, _PERMANENT) or _is_tls_refusal(cause_of(error)):
        return False
    passing = (ConnectionError, TimeoutError, NoScriptError, OutOfMemoryError, *_NOT_EXECUTED)
    return isinstance(error, passing) or str(error).startswith(_TRANSIENT_PREFIXES)


def _is_retryable(error: Exception, *, written: bool, traits: Traits) -> bool:
    if isinstance(error, _NEVER_RETRIED) or _is_tls_refusal(cause_of(error)):
        return False
    if isinstance(error, _NOT_EXECUTED) or str(error) == _MAX_CLIENTS:
        # What a script has done before the error came is done.
        return not (written and traits.runs_code)
    is_broken = isinstance(error, ConnectionError | TimeoutError) and not is_error_reply(error)
    return is_broken and (not written or traits.retry_safe)


def is_connection_loss(error: Exception) -> bool:
    """Whether the connection has ended without an answer."""
    return isinstance(error, ConnectionError) and not is_error_reply(error)


def _is_tls_refusal(cause: BaseException | None) -> bool:
    """Whether TLS was refused by either side, which the next attempt will not change."""
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def is_error_reply(error: Exception) -> bool:
    """Whether the server said it; redis-py makes some of its replies connection errors."""
    return isinstance(error, ResponseError) or getattr(error, "status_code", None) is not None
