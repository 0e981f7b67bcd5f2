"""Matches the replies of a shared connection with the calls that are owed them; no I/O, no clock."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from typing import Any, Final

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._multiplexer.futures import AttemptFailed, BatchFuture, CallFuture, CommandFuture, ReplyObserver

# What a parser returns when it needs more bytes; every other value can be a reply.
NO_REPLY: Final = object()
# The limits of what is in flight on one connection: they keep any server busy, and bound the memory that a stopped
# server costs.
MAX_BYTES: Final = 16 * 2**20
MAX_PENDING: Final = 16_384
# What servers answer to a command that exceeds proto-max-bulk-len, or has too many arguments.
_LIMITS: Final = frozenset({"Protocol error: invalid bulk length", "Protocol error: invalid multibulk length"})


class InFlight:
    """The calls of one connection in the order in which they are written, which is that of the replies.

    Args:
        timeout: Seconds from the write of a call to its reply; ``None`` for no limit.

    Attributes:
        pending: The calls that are owed a reply, the oldest first.
        unwritten: How many of them, the last ones, are not written yet.
        unwritten_size: The bytes of those.
        size: The bytes of all of them.
        last_reply_at: When the last reply was read; -1 before the first.
        protocol_error: The last reply, if it is the error with which a server ends a connection: the server has not run
            the calls after it.
        completed: The observers of calls that have their reply or failed, and the outcome; the reader notifies them.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.pending: deque[CallFuture] = deque()
        self.unwritten = self.unwritten_size = 0
        self.size = 0
        self.last_reply_at = -1.0
        self.protocol_error: ResponseError | None = None
        self.completed: list[tuple[ReplyObserver, Any]] = []
        # Of each write: when it was, and how many of its calls are owed a reply.
        self._writes: deque[list[float]] = deque()

    def add(self, call: CallFuture) -> bool:
        """Append a call; return whether there is room for another one."""
        self.pending.append(call)
        self.unwritten += 1
        self.unwritten_size += call.size
        self.size += call.size
        return self.size < MAX_BYTES and len(self.pending) < MAX_PENDING

    def prepend(self, call: CommandFuture) -> None:
        """Put a call before all others, none of which may be written."""
        self.pending.appendleft(call)
        self.unwritten += 1
        self.unwritten_size += call.size
        self.size += call.size

    def is_full(self) -> bool:
        """Whether there is no room for another call."""
        return self.size >= MAX_BYTES or len(self.pending) >= MAX_PENDING

    def write(self, count: int, now: float) -> None:
        """Note that the first ``count`` of the unwritten calls are written now."""
        if count == self.unwritten:
            self.unwritten_size = 0
        else:
            first = len(self.pending) - self.unwritten
            self.unwritten_size -= sum(call.size for call in islice(self.pending, first, first + count))
        self.unwritten -= count
        self._writes.append([now, count])

    def dispatch(self, parse: Callable[[], Any], now: float) -> int:  # noqa: C901, PLR0912 - further functions cost calls
        """Give every reply that has arrived to its call; return how many calls that completes.

        Args:
            parse: Returns the next reply, or ``NO_REPLY``.
            now: The time.

        Raises:
            LookupError: A reply belongs to no call.
        """
        calls = self.pending
        owed = len(calls) - self.unwritten
        count = 0
        call = last = None
        completed = self.completed
        while True:
            reply = parse()
            if reply is NO_REPLY:
                break
            kind = reply.__class__
            if kind is bytes and count != owed and calls[0].__class__ is CommandFuture and not calls[0].done():
                # Nearly all replies, past all other questions.
                last, call = reply, calls.popleft()
                call.set_result(reply)
                if call.observer is not None:
                    completed.append((call.observer, reply))
                self.size -= call.size
                count += 1
                continue
            if kind is hiredis.PushNotification:
                continue
            if kind is list and reply and isinstance(reply[0], RedisConnectionError):
                # As redis-py's parser does.
                reply = reply[0]
            if count == owed:
                raise LookupError("a reply that belongs to no call")
            last = reply
            call = calls[0]
            if call.__class__ is not CommandFuture and isinstance(call, BatchFuture):
                if not call.deliver(reply, completed):
                    continue
            elif not call.done():
                call.set_result(reply)
                if call.observer is not None:
                    completed.append((call.observer, reply))
            else:
                call.deliver_orphan(reply)
            calls.popleft()
            self.size -= call.size
            count += 1
        if call is not None:
            self.last_reply_at = now
            self.protocol_error = last if last.__class__ is ResponseError and _ends_connection(call, last) else None
            if count:
                self._complete(count)
        return count

    def _complete(self, count: int) -> None:
        writes = self._writes
        while count:
            write = writes[0]
            if write[1] > count:
                write[1] -= count
                return
            count -= int(write[1])
            writes.popleft()

    def overdue(self, now: float) -> Iterator[CallFuture]:
        """Yield the calls that are awaited and whose reply is late."""
        if self.timeout is None:
            return
        limit = now - self.timeout
        calls = iter(self.pending)
        for written_at, count in self._writes:
            if written_at > limit:
                return
            for call in islice(calls, int(count)):
                if not call.done():
                    yield call

    def oldest_written_at(self) -> float:
        """When the oldest call that is owed a reply was written; ``inf`` if there is none."""
        return self._writes[0][0] if self._writes else inf

    def is_stalled(self, now: float) -> bool:
        """Whether replies are owed, and none arrived within ``timeout``."""
        if self.timeout is None or not self._writes:
            return False
        return max(self.last_reply_at, self._writes[0][0]) <= now - self.timeout

    def silent_since(self) -> float:
        """Since when replies are owed and none has arrived; ``inf`` if none is owed."""
        return max(self.last_reply_at, self._writes[0][0]) if self._writes else inf

    def next_timeout(self, now: float) -> float | None:
        """When to look for overdue calls next; ``None`` if no call is written."""
        if self.timeout is None or not self._writes:
            return None
        ends = (start + self.timeout for start in (self.last_reply_at, *(written_at for written_at, _ in self._writes)))
        return min((end for end in ends if end > now), default=now + self.timeout)

    def has_waiters(self, now: float) -> bool:
        """Whether a reply is awaited, or is expected and has an orphan handler."""
        if any(not call.done() and not call.is_internal for call in self.pending):
            return True
        return not self.is_stalled(now) and any(call.on_orphan is not None for call in self.pending)

    def fail(self, call: CallFuture, error: Exception, *, may_have_run: bool = True) -> None:
        """Fail a written call."""
        failure = AttemptFailed(error, may_have_run=may_have_run)
        call.set_result(failure)
        if call.observer is not None:
            self.completed.append((call.observer, failure))

    def fail_written(self, error: Callable[[], Exception]) -> list[CallFuture]:
        """Fail every written call with an error of its own; remove all calls, and return the unwritten ones."""
        written = len(self.pending) - self.unwritten
        for call in islice(self.pending, written):
            if call.done():
                continue
            if self.protocol_error is not None and isinstance(call, BatchFuture) and call.replies:
                # The server has refused one of its commands.
                self.fail(call, self.protocol_error)
            else:
                self.fail(call, error(), may_have_run=self.protocol_error is None)
        unwritten = list(islice(self.pending, written, None))
        self.pending.clear()
        self._writes.clear()
        self.unwritten = self.unwritten_size = self.size = 0
        return unwritten


def is_protocol_error(error: ResponseError) -> bool:
    """Whether a server closes the connection after this answer, and runs none of the calls after it."""
    return str(error).startswith("Protocol error")


def _ends_connection(call: CallFuture, error: ResponseError) -> bool:
    if not is_protocol_error(error):
        return False
    args = call.args if isinstance(call, CommandFuture) else call.commands[len(call.replies) - 1]
    # A script can return any error while the calls after it run. Its arguments can exceed the limits as well, and no
    # other error of a script has exactly these texts.
    return str(error) in _LIMITS or not traits_of(args).runs_code
