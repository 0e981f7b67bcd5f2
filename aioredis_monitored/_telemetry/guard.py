"""What keeps telemetry harmless: its failures never reach callers, and the attributes of points have few values."""

import logging
from types import TracebackType
from typing import Final

from aioredis_monitored._telemetry.semconv import OTHER

LOGGER: Final = logging.getLogger("aioredis_monitored.telemetry")
_logged: set[str] = set()


class _Guard:
    """Context manager that logs what telemetry raises in its block; code after the block runs in any case.

    The hot path has ``try`` and ``log_error`` instead, which cost no call.
    """

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        log_error(error)
        return True


guarded: Final = _Guard()


def log_error(error: BaseException) -> None:
    """Log what an exporter, a processor, a sampler, a view or a hook has raised, once for each class of exception.

    The error is not one of Redis, so the caller's call continues, even if it is a ``CancelledError``.

    Raises:
        KeyboardInterrupt, SystemExit: The error is one of these.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    if kind not in _logged:
        _logged.add(kind)
        # Neither its text nor its traceback: both may quote the attributes of the span.
        log_safely(
            logging.WARNING, "Telemetry failed with %s; calls go on, further failures of this kind are not logged", kind
        )


def log_safely(level: int, text: str, *args: object) -> None:
    """Log a message; an error of the application's filters and handlers is ignored."""
    try:
        LOGGER.log(level, text, *args)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001, S110 - the log is where it would be reported
        pass


class CardinalityLimit:
    """Passes a limited number of different values; ``_OTHER`` stands for all further ones.

    Args:
        limit: The maximum number of different values.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[str] = set()

    def cap(self, value: str) -> str:
        """Return the value, or ``_OTHER`` if it is new and the limit is reached."""
        if value in self._values:
            return value
        if len(self._values) >= self._limit:
            return OTHER
        self._values.add(value)
        return value
