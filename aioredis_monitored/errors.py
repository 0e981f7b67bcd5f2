"""The errors that this package raises beside redis-py's own."""

from redis.exceptions import ConnectionError as RedisConnectionError


class MonitoredRedisError(Exception):
    """Base of every error that is this package's and not redis-py's."""


class ConfigurationError(MonitoredRedisError, ValueError):
    """The configuration cannot be used; ``problems`` holds every ``(key, reason)``, the message a line for each."""

    def __init__(self, *problems: tuple[str, str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{key}: {reason}" for key, reason in problems))


class TimedOutError(MonitoredRedisError, TimeoutError):
    """A queue stayed empty for as long as the caller was willing to wait; an unreachable server never raises this."""


class PoolClosedError(MonitoredRedisError, RedisConnectionError):
    """The pool was closed; enter it again with ``async with`` to open it again."""


class EventLoopError(MonitoredRedisError, RuntimeError):
    """A pool was used from another event loop than the one that it belongs to."""


class NoComponentsError(MonitoredRedisError, LookupError):
    """``redis_connection`` was called while no ``Components`` is in use in this event loop."""
