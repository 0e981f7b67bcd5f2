"""The options of telemetry, checked; those that reduce noise are about spans, and metrics stay complete."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aioredis_monitored.config.readers import MIN_SHARE, command_name, is_share
from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.timespan import parse_timespan


@dataclass(frozen=True, kw_only=True)
class TelemetryOptions:
    """How a pool reports to OpenTelemetry: ``MonitoredConnectionPool(telemetry=TelemetryOptions(…))``.

    Attributes:
        require_parent: Whether a call gets a span only if there is a parent span; default ``False``.
        include_commands: The commands that get spans, in any case: ``{"GET", "CONFIG GET"}``, or ``{"CONFIG"}`` with
            all its sub-commands. A batch gets one if one of its commands does. Default ``None``, for all.
        exclude_commands: The commands that get no span; a batch gets none if none of its commands does. Default none.
        slow_only: The duration from which a call gets a span, in seconds or as a timespan such as ``5 ms``; failed
            calls get one in any case. Default ``None``, for all. A command that publishes with ``propagate=True`` gets
            one: its span is sent along before its duration is known.
        keep: Beside what failed, or was slow by ``slow_only``, the share of all other calls that get a span, from 0 to
            1. The calls of one trace get theirs all, or none: a hash of the trace id decides, which is independent of
            the SDK's samplers. Each of these spans has ``aioredis_monitored.adjusted_count``: the number of calls that
            it stands for, if that is more than one. A command that publishes with ``propagate=True`` counts as slow if
            there is a ``slow_only``, as its span is sent along before its duration is known. Default ``None``: all of
            them, or none with ``slow_only``.
        show_keys: Whether ``db.query.text`` shows keys and hash fields instead of ``?``, and whether telemetry shows
            channels; default ``True``.
        key_template: Returns the template of a key, ``user:{id}`` for ``user:17``. The query text shows it in place of
            the key, and spans and points have it as ``aioredis_monitored.key.template``. It is called for keys and
            channels, more than once for every call, so it has to be fast, and should return a few hundred different
            templates; the key is hidden if it raises. Default ``None``.
        span_name: Returns the name of a span for the attributes that all such calls have, such as
            ``db.operation.name``; it may be called for every call. Default ``None``, for the conventions' name.
        repeated_calls: The number of calls of one command above which a request reports it as repeated; default 20.
        hot_keys: The share of the calls whose keys are counted, from 0 to 1, for ``pool.telemetry.hot_keys`` and its
            gauge, which shows keys, or their templates; default 0.
        direct: Whether spans and points are handed to the OpenTelemetry SDK directly, where nothing that shows depends
            on it; default ``True``. ``False`` records them by the API alone, which takes several times as long.

    Raises:
        ConfigurationError: Values cannot be used; it names every one of them.
    """

    require_parent: bool = False
    include_commands: Collection[str] | None = None
    exclude_commands: Collection[str] = ()
    slow_only: float | str | timedelta | None = None
    keep: float | None = None
    show_keys: bool = True
    key_template: Callable[[str], str] | None = None
    span_name: Callable[[Mapping[str, Any]], str] | None = None
    repeated_calls: int = 20
    hot_keys: float = 0.0
    direct: bool = True

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, read in _READERS.items():
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except (TypeError, ValueError) as error:
                problems.append((name, str(error)))
        if self.hot_keys and not self.show_keys and self.key_template is None:
            problems.append(
                ("hot_keys", "shows keys, which show_keys=False hides; set it to 0, or give a key_template")
            )
        if problems:
            raise ConfigurationError(*problems)


def _names(value: Any) -> frozenset[str]:
    if (
        isinstance(value, str)
        or not isinstance(value, Iterable)
        or not all(isinstance(name, str) and name.strip() for name in value)
    ):
        raise TypeError("must be a collection of command names")
    return frozenset(map(command_name, value))


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, got {value!r}")
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError("must be a function that returns text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"must be a number of calls, at least 1, got {value!r}")
    return value


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not is_share(value):
        raise ValueError(f"must be a share of the calls, 0 or from {MIN_SHARE:f} to 1, got {value!r}")
    return float(value)


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "require_parent": _switch,
    "include_commands": _optional(_names),
    "exclude_commands": _names,
    "slow_only": _optional(parse_timespan),
    "keep": _optional(_share),
    "show_keys": _switch,
    "key_template": _optional(_function),
    "span_name": _optional(_function),
    "repeated_calls": _count,
    "hot_keys": _share,
    "direct": _switch,
}
