"""The shared connection: the calls of all callers in an event loop, sent together and answered in order."""

from aioredis_monitored.multiplexer.inflight import is_refusal
from aioredis_monitored.multiplexer.multiplexer import ALONE, Multiplexer, can_share
from aioredis_monitored.multiplexer.replies import Late, Listener, Lost, Reply
from aioredis_monitored.multiplexer.ride import Ride

__all__ = ["ALONE", "Late", "Listener", "Lost", "Multiplexer", "Reply", "Ride", "can_share", "is_refusal"]
