"""Which calls a shared connection owes replies to, and what becomes of them; nothing here does I/O or reads a clock."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf
from typing import Any, Final

import hiredis
from redis.exceptions import ConnectionError, ResponseError  # noqa: A004

from aioredis_monitored._commands.traits import traits_of
from aioredis_monitored._multiplexer.futures import AttemptFailed, BatchFuture, CommandFuture, ReplyObserver

# What a parser returns when it needs more bytes: every other value can be a reply.
NO_REPLY: Final = object()
# What may be in flight on one connection: it keeps any server busy, and bounds the memory that a stopped one costs.
MAX_BYTES: Final = 16 * 2**20
MAX_PENDING: Final = 16_384
# What servers answer to a request that is over proto-max-bulk-len, or has too many arguments.
_LIMITS: Final = frozenset({"Protocol error: invalid bulk length", "Protocol error: invalid multibulk length"})


class InFlight:
    """The calls of one connection in the order in which they are written, which is that of the replies.

    Args:
        timeout: Seconds that a reply may take from the moment in which its call was written; ``None`` for ever.

    Attributes:
        calls: Those that the connection still owes a reply.
        unwritten: How many of them, the last ones, are not written yet.
        unwritten_size: Their bytes.
        size: The bytes of all of them.
        replied: When the last reply came.
        refusal: The last reply, if it is the error with which a server ends a connection: it has run nothing of what
            stands behind it.
        heard: The replies that a listener wants to know of, for whoever receives them to tell.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.pending: deque[CommandFuture | BatchFuture] = deque()
        self.unwritten = self.unwritten_size = 0
        self.size = 0
        self.last_reply_at = -1.0
        self.protocol_error: ResponseError | None = None
        self.completed: list[tuple[ReplyObserver, Any]] = []
        self._batches: deque[list[float]] = deque()  # [when it was written, how many calls of it are left]

    def add(self, call: CommandFuture | BatchFuture) -> bool:
        """Queue a call behind all others; return whether there is room for a further one."""
        self.pending.append(call)
        self.unwritten += 1
        self.unwritten_size += call.size
        self.size += call.size
        return self.size < MAX_BYTES and len(self.pending) < MAX_PENDING

    def is_full(self) -> bool:
        """Whether no further call may be added."""
        return self.size >= MAX_BYTES or len(self.pending) >= MAX_PENDING

    def prepend(self, call: CommandFuture) -> None:
        """Queue a call in front of all others, of which none may be written."""
        self.pending.appendleft(call)
        self.unwritten += 1
        self.unwritten_size += call.size
        self.size += call.size

    def write(self, count: int, now: float) -> None:
        """Note that the first ``count`` of the unwritten calls are written now."""
        if count == self.unwritten:
            self.unwritten_size = 0
        else:
            first = len(self.pending) - self.unwritten
            self.unwritten_size -= sum(call.size for call in islice(self.pending, first, first + count))
        self.unwritten -= count
        self._batches.append([now, count])

    def dispatch(self, parse: Callable[[], Any], now: float) -> int:  # noqa: C901 - in one: every call more costs
        """Hand every reply that has come to the call it belongs to; return how many calls that completes.

        Args:
            parse: Returns the next reply, or ``NO_REPLY``.
            now: The time.

        Raises:
            LookupError: A reply has come that nobody is owed.
        """
        calls = self.pending
        owed = len(calls) - self.unwritten
        completed = 0
        call = last = None
        while True:
            reply = parse()
            if reply is NO_REPLY:
                break
            kind = reply.__class__
            if kind is hiredis.PushNotification:
                continue
            if kind is list and reply and isinstance(reply[0], ConnectionError):
                # As redis-py's parser has it.
                reply = reply[0]
            if completed == owed:
                raise LookupError("a reply that nobody asked for")
            last = reply
            call = calls[0]
            if call.__class__ is BatchFuture:
                if not call.deliver(reply, self.completed):
                    continue
            elif not call.done():
                call.set_result(reply)
                if call.observer is not None:
                    self.completed.append((call.observer, reply))
            else:
                call.deliver_orphan(reply)
            calls.popleft()
            self.size -= call.size
            completed += 1
        if call is not None:
            self.last_reply_at = now
            self.protocol_error = last if last.__class__ is ResponseError and _ends_connection(call, last) else None
            if completed:
                self._complete(completed)
        return completed

    def _complete(self, count: int) -> None:
        batches = self._batches
        while count:
            batch = batches[0]
            if batch[1] > count:
                batch[1] -= count
                return
            count -= int(batch[1])
            batches.popleft()

    def overdue(self, now: float) -> Iterator[CommandFuture | BatchFuture]:
        """The calls whose reply takes longer than it may."""
        if self.timeout is None:
            return
        limit = now - self.timeout
        calls = iter(self.pending)
        for written, count in self._batches:
            if written > limit:
                return
            for call in islice(calls, int(count)):
                if not call.done():
                    yield call

    def oldest_written_at(self) -> float:
        """When the oldest call was written that is owed a reply; ``inf`` if none is."""
        return self._batches[0][0] if self._batches else inf

    def is_stalled(self, now: float) -> bool:
        """Whether replies are owed, and none came for as long as one may take."""
        if self.timeout is None or not self._batches:
            return False
        return max(self.last_reply_at, self._batches[0][0]) <= now - self.timeout

    def next_timeout(self, now: float) -> float | None:
        """When to look again for overdue calls; ``None`` if no call is written."""
        if self.timeout is None or not self._batches:
            return None
        ends = (start + self.timeout for start in (self.last_reply_at, *(written for written, _ in self._batches)))
        return min((end for end in ends if end > now), default=now + self.timeout)

    def has_waiters(self, now: float) -> bool:
        """Whether somebody waits for one of the replies, or would take it; of a stuck connection, nobody would."""
        if any(not call.done() and not call.is_internal for call in self.pending):
            return True
        return not self.is_stalled(now) and any(call.on_orphan is not None for call in self.pending)

    def fail(self, call: CommandFuture | BatchFuture, error: Exception, *, may_have_run: bool = True) -> None:
        """Tell a call that is written that its reply will not come."""
        lost = AttemptFailed(error, written=may_have_run)
        call.set_result(lost)
        if call.observer is not None:
            self.completed.append((call.observer, lost))

    def fail_written(self, error: Callable[[], Exception]) -> list[CommandFuture | BatchFuture]:
        """Tell every call that is written that its reply will not come; return those that are not written."""
        written = len(self.pending) - self.unwritten
        for call in islice(self.pending, written):
            if call.done():
                continue
            if self.protocol_error is not None and isinstance(call, BatchFuture) and call.replies:
                # It is one of its commands that the server has refused.
                self.fail(call, self.protocol_error)
            else:
                self.fail(call, error(), may_have_run=self.protocol_error is None)
        unwritten = list(islice(self.pending, written, None))
        self.pending.clear()
        self._batches.clear()
        self.unwritten = self.unwritten_size = self.size = 0
        return unwritten


def is_protocol_error(error: ResponseError) -> bool:
    """Whether a server hangs up after it has answered so, and runs nothing of what stands behind."""
    return str(error).startswith("Protocol error")


def _ends_connection(call: CommandFuture | BatchFuture, error: ResponseError) -> bool:
    """Whether a server that answers so hangs up."""
    if not is_protocol_error(error):
        return False
    args = call.args if isinstance(call, CommandFuture) else call.commands[len(call.replies) - 1]
    # A script may say anything, and what stands behind it may have run by the time the connection ends. But a script's
    # arguments may be too long as well, and no other error of a script has just these words.
    return str(error) in _LIMITS or not traits_of(args).runs_code
