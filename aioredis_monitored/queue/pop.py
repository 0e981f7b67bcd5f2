"""Popping messages for good, which is at most once, but not lost when the caller leaves."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from aioredis_monitored._execution.fetch import MAX_WAIT_SECONDS
from aioredis_monitored.queue.telemetry import QueueTelemetry

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")
# A server that is out of memory refuses LPUSH, but in a script only as the first write. KEYS: queue. ARGV: messages,
# the last one first.
_PUT_BACK: Final = """
redis.call('LTRIM', KEYS[1], 0, -1)
for _, message in ipairs(ARGV) do redis.call('LPUSH', KEYS[1], message) end
"""


class PopFetch:
    """Fetches the messages at the head of a list (see ``Fetch``).

    Args:
        queue: The key of the list.
        telemetry: Of the queue.
        count: How many at most; default ``None``, for the first one.
    """

    max_wait = MAX_WAIT_SECONDS

    def __init__(self, queue: str, telemetry: QueueTelemetry, count: int | None = None) -> None:
        self._queue = queue
        self._telemetry = telemetry
        self._count = count
        self.messaging = telemetry.get
        self.on_empty = telemetry.on_empty
        self.is_batch = count is not None

    def poll_command(self) -> tuple[Any, ...]:
        """See ``Fetch``."""
        return ("LPOP", self._queue) if self._count is None else ("LPOP", self._queue, self._count)

    def parse_poll(self, reply: Any) -> Any:
        """See ``Fetch``."""
        return [reply] if isinstance(reply, bytes) else reply

    def blocking_commands(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; older servers take no fractions of seconds."""
        return (("BLPOP", self._queue, math.ceil(seconds)),)

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """See ``Fetch``."""
        (reply,) = replies
        return None if reply is None else [reply[1]]

    def restore_commands(self, found: Any) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; a user who may pop need not be one who may run scripts."""
        messages = tuple(reversed(found))
        return ("LPUSH", self._queue, *messages), ("EVAL", _PUT_BACK, 1, self._queue, *messages)

    def on_unsettled(self) -> None:
        """See ``Fetch``."""
        self._telemetry.on_unsettled()
        _LOGGER.warning("queue %r: what was on its way to a get that was cancelled may be lost", self._queue)
