"""At most once: messages are popped for good, and restored if their caller is cancelled."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from aioredis_monitored._execution.fetch import MAX_WAIT_SECONDS
from aioredis_monitored.queue.scripts import RESTORE_POP
from aioredis_monitored.queue.telemetry import QueueTelemetry

_LOGGER: Final = logging.getLogger("aioredis_monitored.queue")


class PopFetch:
    """Pops the messages at the head of a list (see ``Fetch``).

    Args:
        queue: The key of the list.
        telemetry: The queue's.
        count: How many at most; default ``None``, for one.
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
        """See ``Fetch``; whole seconds, as older servers refuse fractions."""
        return (("BLPOP", self._queue, math.ceil(seconds)),)

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """See ``Fetch``."""
        (reply,) = replies
        return None if reply is None else [reply[1]]

    def restore_commands(self, found: Any) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``; LPUSH comes first, as a user who may pop need not be one who may run scripts."""
        messages = tuple(reversed(found))
        return ("LPUSH", self._queue, *messages), RESTORE_POP.eval((self._queue,), messages)

    def on_unsettled(self) -> None:
        """See ``Fetch``; count and log the loss."""
        self._telemetry.on_unsettled()
        _LOGGER.warning("queue %r: a message that a cancelled get() was receiving may be lost", self._queue)
