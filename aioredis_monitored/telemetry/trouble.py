"""What goes wrong in telemetry stays here: no call fails because an exporter, a sampler or a hook does."""

import logging
from typing import Final

LOGGER: Final = logging.getLogger("aioredis_monitored.telemetry")
_reported: set[str] = set()


def report(trouble: BaseException) -> None:
    """Take note of what an exporter, a processor, a sampler, a view or a hook has raised; the caller's call goes on.

    Whatever it is, Redis did not raise it: not even a cancellation is one.
    """
    if isinstance(trouble, KeyboardInterrupt | SystemExit):
        raise trouble
    kind = f"{type(trouble).__module__}.{type(trouble).__qualname__}"
    if kind not in _reported:
        _reported.add(kind)
        # Neither its text nor its traceback: both may quote the attributes of the span.
        warn("Telemetry failed with %s; calls go on, further failures of this kind are not logged", kind)


def warn(text: str, *args: object) -> None:
    """Log a warning, whatever the application's filters and handlers make of it."""
    try:
        LOGGER.warning(text, *args)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # noqa: BLE001, S110 - this was the place to tell it
        pass
