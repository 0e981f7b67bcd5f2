"""The shared connection: the calls of all callers in an event loop, sent together and answered in order."""

from aioredis_monitored._multiplexer.futures import Late, Listener, Lost, Reply
from aioredis_monitored._multiplexer.inflight import is_refusal
from aioredis_monitored._multiplexer.multiplexer import ALONE, Multiplexer, can_share
from aioredis_monitored._multiplexer.pipeline_adapter import Ride

__all__ = ["ALONE", "Late", "Listener", "Lost", "Multiplexer", "Reply", "Ride", "can_share", "is_refusal"]
