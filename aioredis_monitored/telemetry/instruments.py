"""The tracer and the meter of one pool, whether anybody listens to them, and what their calls have in common."""

from collections.abc import Sequence
from typing import Any, Final

from opentelemetry import metrics, trace

from aioredis_monitored._version import __version__
from aioredis_monitored.commands import SIMPLE
from aioredis_monitored.telemetry import semconv
from aioredis_monitored.telemetry.attributes import Call, Server, command_call

SCOPE: Final = "aioredis_monitored"

# The conventions advise 1 ms as the lowest bound, which is slower than most Redis calls: two finer ones go before it.
DURATION_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class Telemetry:
    """Where the calls on one pool are reported: a tracer, ``db.client.operation.duration`` and the server's attributes.

    Args:
        server: The server that the pool connects to.
        tracer_provider: Default: the global one, also when it is set later.
        meter_provider: Default: the global one, also when it is set later.

    Attributes:
        is_traced: Whether spans are started, as far as ``is_heard`` has seen.
        is_measured: Whether points are recorded, as far as ``is_heard`` has seen.
    """

    def __init__(
        self,
        server: Server,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self.server = server
        self.tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, semconv.SCHEMA_URL)
        meter = metrics.get_meter(SCOPE, __version__, meter_provider, semconv.SCHEMA_URL)
        self.operation_duration = meter.create_histogram(
            semconv.DB_CLIENT_OPERATION_DURATION,
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
        self._awaits_tracer = isinstance(self.tracer, trace.ProxyTracer)
        self._awaits_meter = getattr(self.operation_duration, "_real_instrument", self) is None
        self.is_traced = not self._awaits_tracer and not isinstance(self.tracer, trace.NoOpTracer)
        self.is_measured = not self._awaits_meter and not isinstance(self.operation_duration, metrics.NoOpHistogram)
        self._calls: dict[str, Call] = {}

    def is_heard(self) -> bool:
        """Whether spans or points go anywhere; while nobody listens, nothing is built.

        The API's own way to find out costs more than all else that a command does here, hence the private attributes;
        should they go away, calls are recorded for nobody.
        """
        if self._awaits_tracer and getattr(trace, "_TRACER_PROVIDER", self) is not None:
            self._awaits_tracer, self.is_traced = False, True
        if self._awaits_meter and getattr(self.operation_duration, "_real_instrument", self) is not None:
            self._awaits_meter, self.is_measured = False, True
        return self.is_traced or self.is_measured

    def command_call(self, args: Sequence[Any]) -> Call:
        """One command; those that differ only in their arguments are described once."""
        name = args[0] if args else None
        if type(name) is str and name in SIMPLE:
            call = self._calls.get(name)
            if call is None:
                call = self._calls[name] = command_call(self.server, args)
            return call
        return command_call(self.server, args)
