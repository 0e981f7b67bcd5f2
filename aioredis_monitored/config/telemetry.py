"""What users choose about telemetry, checked; what is about noise is about spans, metrics stay complete."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aioredis_monitored.errors import ConfigurationError
from aioredis_monitored.timespan import parse_timespan

_LEAST_SHARE = 0.000_001


@dataclass(frozen=True, kw_only=True)
class TelemetryOptions:
    """How a pool reports to OpenTelemetry: ``MonitoredConnectionPool(telemetry=TelemetryOptions(…))``.

    Attributes:
        require_parent: Whether a call gets a span only below another one; default ``False``.
        include_commands: The commands that get spans, in any case: ``{"GET", "CONFIG GET"}``, or ``{"CONFIG"}`` with
            all its sub-commands. A batch gets one if one of its commands does. Default ``None``, for all.
        exclude_commands: The commands that get none; a batch gets none if all of its commands do not. Default none.
        slow_only: A call gets a span only if it has failed or took so long, in seconds or as a timespan such as
            ``5 ms``; default ``None``, for all. What publishes with ``propagate=True`` always gets one: it is sent
            along before anybody knows how long that takes.
        show_keys: Whether ``db.query.text`` shows keys and hash fields, or ``?``, and whether anything shows channels;
            default ``True``.
        key_template: Makes of a key what many keys have in common, ``user:{id}`` of ``user:17``. The query text has
            that in place of the key, spans and points have it as ``aioredis_monitored.key.template``. It is asked more
            than once for every call, so it has to be quick, and should know a few hundred templates; when it raises,
            the key is hidden. It is asked about channels as well. Default ``None``.
        span_name: Names spans by the attributes that all such calls have, such as ``db.operation.name``, in place of
            the conventions' name; it may be called for every call. Default ``None``.
        repeated_calls: The number of calls of one command above which a request reports it as repeated; default 20.
        hot_keys: Of how many calls the keys are counted, from 0 to 1, for ``pool.telemetry.hot_keys`` and its gauge,
            which shows keys, or their templates; default 0.

    Raises:
        ConfigurationError: Values cannot be used; it names every one of them.
    """

    require_parent: bool = False
    include_commands: Collection[str] | None = None
    exclude_commands: Collection[str] = ()
    slow_only: float | str | timedelta | None = None
    show_keys: bool = True
    key_template: Callable[[str], str] | None = None
    span_name: Callable[[Mapping[str, Any]], str] | None = None
    repeated_calls: int = 20
    hot_keys: float = 0.0

    def __post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        for name, read in _READERS.items():
            try:
                object.__setattr__(self, name, read(getattr(self, name)))
            except (TypeError, ValueError) as error:
                problems.append((name, str(error)))
        if self.hot_keys and not self.show_keys and self.key_template is None:
            problems.append(("hot_keys", "shows keys, which show_keys=False hides; a key_template would do"))
        if problems:
            raise ConfigurationError(*problems)


def _names(value: Any) -> frozenset[str]:
    if isinstance(value, str) or not all(isinstance(name, str) and name.strip() for name in value):
        raise TypeError("must be several names of commands")
    return frozenset(" ".join(name.upper().split()) for name in value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, not {value!r}")
    return value


def _function(value: Any) -> Any:
    if not callable(value):
        raise TypeError("must be a function that returns text")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"must be a number of calls, at least 1, not {value!r}")
    return value


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not (value == 0 or _LEAST_SHARE <= value <= 1):
        raise ValueError(f"must be a share of the calls, 0 or from {_LEAST_SHARE:f} to 1, not {value!r}")
    return float(value)


def _optional(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_READERS: dict[str, Callable[[Any], Any]] = {
    "require_parent": _switch,
    "include_commands": _optional(_names),
    "exclude_commands": _names,
    "slow_only": _optional(parse_timespan),
    "show_keys": _switch,
    "key_template": _optional(_function),
    "span_name": _optional(_function),
    "repeated_calls": _count,
    "hot_keys": _share,
}
