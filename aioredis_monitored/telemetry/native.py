"""redis-py's own metrics of commands, which stay silent for our clients: what they would count is counted here."""

from redis.observability.config import MetricGroup
from redis.observability.providers import get_observability_instance

from aioredis_monitored.telemetry.trouble import warn

_told: list[str] = []
_SILENCE = "redis-py's own command metrics are on; they leave out the clients of this package, which records the same"


def heed_native_metrics() -> None:
    """Say, once, that redis-py's own metrics of commands are on and stay silent for our clients."""
    manager = get_observability_instance().get_provider_manager()
    if _told or manager is None or not manager.config.is_enabled():
        return
    if MetricGroup.COMMAND in manager.config.metric_groups:
        _told.append(_SILENCE)
        warn(_SILENCE)
