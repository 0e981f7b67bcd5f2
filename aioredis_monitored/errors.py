"""The errors that this package raises beside redis-py's own; tracebacks and ``error.type`` show their public name."""

import sys
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, RedisError


class MonitoredRedisError(Exception):
    """Base of every error that is this package's and not redis-py's."""

    __module__ = "aioredis_monitored"

    def __repr__(self) -> str:
        # redis-py's own leaves the text out.
        return Exception.__repr__(self)


class ConfigurationError(MonitoredRedisError, ValueError):
    """The configuration cannot be used; ``problems`` holds every ``(key, reason)``, the message a line for each."""

    __module__ = "aioredis_monitored"

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{key}: {reason}" for key, reason in problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.problems


class TimedOutError(MonitoredRedisError, TimeoutError):
    """A queue stayed empty for as long as the caller was willing to wait; an unreachable server never raises this."""

    __module__ = "aioredis_monitored"


class LeaseLostError(MonitoredRedisError):
    """A message is no longer held: another consumer got it when the lease had ended, or it was deleted."""

    __module__ = "aioredis_monitored"


class PoolClosedError(MonitoredRedisError, RedisConnectionError):
    """The pool was closed; enter it again with ``async with`` to open it again."""

    __module__ = "aioredis_monitored"


class PoolExhaustedError(MonitoredRedisError, MaxConnectionsError):
    """No connection became free, or too much was in flight on the shared one, for as long as a call may wait."""

    __module__ = "aioredis_monitored"


class DedicatedConnectionError(MonitoredRedisError, RedisError):
    """The command is about its own connection, and was called where every call may get another one.

    Or a queue is used on a ``client()`` that has selected another database than that of its pool.
    """

    __module__ = "aioredis_monitored"


class PinnedConnectionLostError(MonitoredRedisError, RedisConnectionError):
    """A handle has lost the connection that it keeps to, and with it what its calls have changed or counted there.

    Or it was closed, or the pipeline reset, while a call of it was in flight.
    """

    __module__ = "aioredis_monitored"


class ReplyDecodingError(MonitoredRedisError, RedisError, UnicodeDecodeError):
    """A reply is not in the encoding of a client with ``decode_responses``; ``object`` has its bytes."""

    __module__ = "aioredis_monitored"

    def __init__(self, *details: Any) -> None:
        UnicodeDecodeError.__init__(self, *details)
        super().__init__(*details)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class EventLoopError(MonitoredRedisError, RuntimeError):
    """A pool was used from another event loop than the one that it belongs to."""

    __module__ = "aioredis_monitored"


class NoComponentsError(MonitoredRedisError, LookupError):
    """``redis_connection`` was called while no ``Components`` is in use in this event loop."""

    __module__ = "aioredis_monitored"


def cause_of(error: BaseException) -> BaseException | None:
    """What an error came from; what its caller is handling is every error's context, and none of its business."""
    cause = error.__cause__ or error.__context__
    return None if cause is sys.exc_info()[1] else cause


def decoding_error(error: UnicodeDecodeError) -> ReplyDecodingError:
    """The error to raise in place of Python's, at the same place."""
    return ReplyDecodingError(*error.args).with_traceback(error.__traceback__)
