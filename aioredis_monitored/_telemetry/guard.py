"""Telemetry failures never reach callers, and what tells points apart is bounded."""

import logging
from typing import Final

from aioredis_monitored._telemetry.semconv import OTHER

LOGGER: Final = logging.getLogger("aioredis_monitored.telemetry")
_logged: set[str] = set()


def log_error(trouble: BaseException) -> None:
    """Take note of what an exporter, a processor, a sampler, a view or a hook has raised; the caller's call goes on.

    Whatever it is, Redis did not raise it: not even a cancellation is one.
    """
    if isinstance(trouble, KeyboardInterrupt | SystemExit):
        raise trouble
    kind = f"{type(trouble).__module__}.{type(trouble).__qualname__}"
    if kind not in _logged:
        _logged.add(kind)
        # Neither its text nor its traceback: both may quote the attributes of the span.
        log_warning("Telemetry failed with %s; calls go on, further failures of this kind are not logged", kind)


def log_warning(text: str, *args: object) -> None:
    """Log a warning, whatever the application's filters and handlers make of it."""
    try:
        LOGGER.warning(text, *args)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001, S110 - this was the place to tell it
        pass


class CardinalityLimit:
    """The first so many different values; one value stands for all others.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: set[str] = set()

    def cap(self, value: str) -> str:
        """The value, or ``_OTHER`` if it came too late."""
        if value in self._values:
            return value
        if len(self._values) >= self._most:
            return OTHER
        self._values.add(value)
        return value
