"""What a failure means in the terms of the semantic conventions."""

import re
from typing import Final, NamedTuple

from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError, WatchError  # noqa: A004

from aioredis_monitored.errors import cause_of
from aioredis_monitored.telemetry import semconv

_ERROR_PREFIX: Final = re.compile(r"[A-Z][A-Z0-9_]{0,31}(?= |$)")


class Failure(NamedTuple):
    """How a call failed: ``error.type``, and the prefix of the server's error reply if there was one."""

    error_type: str
    status_code: str | None
    is_error: bool

    def attributes(self) -> dict[str, str]:
        """What a span and a point of a failed call have in common."""
        attributes = {semconv.ERROR_TYPE: self.error_type}
        if self.status_code is not None:
            attributes[semconv.DB_RESPONSE_STATUS_CODE] = self.status_code
        return attributes


def failure_of(error: BaseException) -> Failure | None:
    """Classify an exception; ``None`` means that it is no failure.

    ``error.type`` is the prefix of Redis's error reply (``WRONGTYPE``), or else the class with its module, as the
    SDK writes ``exception.type``: ``redis.exceptions.ConnectionError`` is not the builtin ``ConnectionError``.
    A cancellation gives a type but is no error; a ``WatchError`` is the answer that optimistic locking asks for, unless
    redis-py raises it in place of a broken connection's error.
    """
    if isinstance(error, WatchError):
        broken = cause_of(error)
        return failure_of(broken) if isinstance(broken, ConnectionError | TimeoutError) else None
    code = _status_code(error)
    cls = type(error)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return Failure(code or name, code, isinstance(error, Exception))


def _status_code(error: BaseException) -> str | None:
    # Error classes of an application may have forgotten their base's constructor, or have something else by this name.
    code = getattr(error, "status_code", None) if isinstance(error, RedisError) else None
    if code is None and isinstance(error, ResponseError) and error.args:
        # redis-py strips and keeps only the prefixes it has a class for; all others still lead the text.
        code = error.args[0]
    match = _ERROR_PREFIX.match(code) if isinstance(code, str) else None
    return None if match is None else match[0]
