"""The tracer and the meter of one pool, and the attributes that all its calls share."""

from typing import Final

from opentelemetry import metrics, trace

from aioredis_monitored._version import __version__
from aioredis_monitored.telemetry import semconv
from aioredis_monitored.telemetry.attributes import Server

SCOPE: Final = "aioredis_monitored"

# The conventions advise 1 ms as the lowest bound, which is slower than most Redis calls: two finer ones go before it.
DURATION_BOUNDS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class Telemetry:
    """Where the calls on one pool are reported: a tracer, ``db.client.operation.duration`` and the server's attributes.

    Args:
        server: The server that the pool connects to.
        tracer_provider: Default: the global one, also when it is set later.
        meter_provider: Default: the global one, also when it is set later.
    """

    def __init__(
        self,
        server: Server,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self.server = server
        self.metric_attributes = {
            name: value for name, value in server.attributes.items() if name != semconv.NETWORK_TRANSPORT
        }
        self.tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, semconv.SCHEMA_URL)
        meter = metrics.get_meter(SCOPE, __version__, meter_provider, semconv.SCHEMA_URL)
        self.operation_duration = meter.create_histogram(
            semconv.DB_CLIENT_OPERATION_DURATION,
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS,
        )
