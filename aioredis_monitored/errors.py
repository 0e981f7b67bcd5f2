"""The errors that this package raises in addition to redis-py's; tracebacks and ``error.type`` show public names."""

import sys
from contextlib import suppress
from copy import copy
from typing import Any

from redis.exceptions import (
    ClusterCrossSlotError,
    CrossSlotTransactionError,
    MaxConnectionsError,
    RedisClusterException,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError


class MonitoredRedisError(Exception):
    """Base of all errors of this package."""

    __module__ = "aioredis_monitored"

    def __repr__(self) -> str:
        # The repr of redis-py's errors lacks the text.
        return Exception.__repr__(self)


class ConfigurationError(MonitoredRedisError, ValueError):
    """The configuration cannot be used; ``problems`` has every ``(key, reason)``, and the message a line for each."""

    __module__ = "aioredis_monitored"

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{key}: {reason}" for key, reason in problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.problems


class TimedOutError(MonitoredRedisError, TimeoutError):
    """A queue stayed empty for the caller's timeout; an unreachable server never raises this."""

    __module__ = "aioredis_monitored"


class LeaseLostError(MonitoredRedisError):
    """A lease has been lost: another consumer got the message after the lease ended, or the message was deleted."""

    __module__ = "aioredis_monitored"


class PoolClosedError(MonitoredRedisError, RedisConnectionError):
    """The pool is closed; ``async with`` opens it again."""

    __module__ = "aioredis_monitored"


class PoolExhaustedError(MonitoredRedisError, MaxConnectionsError):
    """No connection became free, or the shared one had no room, within the pool's ``timeout``."""

    __module__ = "aioredis_monitored"


class DedicatedConnectionError(MonitoredRedisError, RedisError):
    """The command needs a dedicated connection, and was called where each call may get another connection.

    Or a queue is used on a ``client()`` that has selected another database than its pool's.
    """

    __module__ = "aioredis_monitored"


class PinnedConnectionLostError(MonitoredRedisError, RedisConnectionError):
    """A client or pipeline has lost its pinned connection, with the state that its calls have set there.

    Or it was closed, or the pipeline was reset, while one of its calls was in flight; also subscriptions were closed.
    """

    __module__ = "aioredis_monitored"


class ReplyDecodingError(MonitoredRedisError, RedisError, UnicodeDecodeError):
    """A reply is not in the encoding of a client with ``decode_responses``; ``object`` holds its bytes."""

    __module__ = "aioredis_monitored"

    def __init__(self, *details: Any) -> None:
        UnicodeDecodeError.__init__(self, *details)
        super().__init__(*details)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class ClusterRoutingError(MonitoredRedisError, RedisError, RedisClusterException):
    """A cluster has no node that could run the command alone, or the caller must name the node; nothing was sent."""

    __module__ = "aioredis_monitored"


class CrossSlotError(ClusterRoutingError, ClusterCrossSlotError, CrossSlotTransactionError):
    """The keys of a command or of a transaction are in several slots of a cluster; nothing was sent."""

    __module__ = "aioredis_monitored"


class EventLoopError(MonitoredRedisError, RuntimeError):
    """A pool was used in another event loop than the one that it belongs to."""

    __module__ = "aioredis_monitored"


class NoComponentsError(MonitoredRedisError, LookupError):
    """A function with ``redis_connection`` was called while no ``Components`` is in use in this event loop."""

    __module__ = "aioredis_monitored"


def cause_of(error: BaseException) -> BaseException | None:
    """Return the error's cause, ignoring an exception that the caller was already handling."""
    cause = error.__cause__ or error.__context__
    return None if cause is sys.exc_info()[1] else cause


def copied(error: Exception) -> Exception:
    """Return a copy of an error that several callers get, each one of its own: raising an error changes it."""
    with suppress(Exception):  # some classes cannot be copied
        each = copy(error)
        each.__cause__ = error.__cause__ or error.__context__
        return each
    return error


def decoding_error(error: UnicodeDecodeError) -> ReplyDecodingError:
    """Return the error to raise in place of Python's, with its traceback."""
    return ReplyDecodingError(*error.args).with_traceback(error.__traceback__)
