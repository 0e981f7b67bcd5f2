"""The shared connection: the calls of all callers in an event loop, sent together and answered in order."""

from aioredis_monitored._multiplexer.futures import (
    AttemptFailed,
    BatchFuture,
    CommandFuture,
    DeadlineExceeded,
    ReplyObserver,
)
from aioredis_monitored._multiplexer.inflight import is_protocol_error
from aioredis_monitored._multiplexer.multiplexer import ISOLATE_AFTER, Multiplexer, supports_multiplexing
from aioredis_monitored._multiplexer.pipeline_adapter import PipelineAdapter, ReplyReader

__all__ = [
    "ISOLATE_AFTER",
    "AttemptFailed",
    "BatchFuture",
    "CommandFuture",
    "DeadlineExceeded",
    "Multiplexer",
    "PipelineAdapter",
    "ReplyObserver",
    "ReplyReader",
    "is_protocol_error",
    "supports_multiplexing",
]
