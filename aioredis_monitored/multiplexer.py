"""The shared connection: the calls of all callers in an event loop, sent together and answered in order."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from copy import copy
from typing import Any, Final, Protocol, cast
from weakref import ref

import hiredis
from redis._defaults import DEFAULT_SOCKET_TIMEOUT
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface
from redis.exceptions import ConnectionError  # noqa: A004

from aioredis_monitored.commands import TABLE
from aioredis_monitored.errors import PoolClosedError, PoolExhaustedError
from aioredis_monitored.inflight import Lost, Reply, Run
from aioredis_monitored.line import LARGE, Line

_MOST_LARGE_KEYS: Final = 1024
# So many waiting calls are not worth looking for those that have left.
_PURGE: Final = 1024

_ONE_WORD = frozenset(name for name in TABLE if " " not in name)


class Lender(Protocol):
    """Where the connections come from."""

    timeout: float | None

    def check_usable(self) -> None:
        """Raise if it cannot be used in the running event loop."""

    def closed_error(self) -> PoolClosedError:
        """What a call on a closed pool raises."""

    async def get_connection(self) -> AbstractConnection:
        """Borrow a connection."""

    def discard(self, connection: AbstractConnection) -> None:
        """Take back a borrowed connection that is closed."""


class _Lane:
    """One line at a time, and the calls that wait until it is connected or has room."""

    def __init__(
        self, lender: Lender, pack: Callable[[Reply | Run], bytes], learn: Callable[[Reply | Run], None]
    ) -> None:
        self.line: Line | None = None
        self.waiting: deque[tuple[float, Reply | Run]] = deque()
        self.line_was_slowed = learn
        # Not the pool itself: the event loop refers to the line, and a forgotten pool would never be noticed.
        self._lender = ref(lender)
        self._timeout = lender.timeout
        self._pack = pack
        self._lines: set[Line] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._purge_at = _PURGE

    def send(self, call: Reply | Run, packed: bytes) -> None:
        """Send a call when it is its turn."""
        line = self.line
        if line is not None and not self.waiting and line.inflight.has_room(call.size):
            line.send(call, packed)
        else:
            self._wait(call)

    def _wait(self, call: Reply | Run) -> None:
        if len(self.waiting) >= self._purge_at:
            # Those who have left must not fill the memory behind one who stays.
            self.waiting = deque(entry for entry in self.waiting if not entry[1].done())
            self._purge_at = 2 * len(self.waiting) + _PURGE
        loop = call.get_loop()
        self.waiting.append((loop.time(), call))
        if self._timer is None:
            self._watch(loop)
        self.line_has_room()

    def line_has_room(self) -> None:
        """Send what waits, first come, first served."""
        while self.waiting:
            call = self.waiting[0][1]
            if call.done():
                self.waiting.popleft()
            elif self.line is None:
                if self._connecting is None:
                    self._connecting = call.get_loop().create_task(self._connect(), context=Context())
                return
            elif self.line.inflight.has_room(call.size):
                self.waiting.popleft()
                self.line.send(call, self._pack(call))
            else:
                return

    async def _connect(self) -> None:
        lender = self._lender()
        if lender is None:
            return
        try:
            self.line = Line(await lender.get_connection(), self)
            self._lines.add(self.line)
        except Exception as error:  # noqa: BLE001 - it is for those who wait
            self._lose(error)
        finally:
            self._connecting = None
        self.line_has_room()

    def line_retired(self, line: Line) -> None:
        """Connect anew for the next call."""
        if self.line is line:
            self.line = None
            self.line_has_room()

    def line_ended(self, line: Line) -> None:
        """Give the connection back."""
        self._lines.discard(line)
        lender = self._lender()
        if lender is not None:
            lender.discard(line.connection)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self.waiting and self._timeout is not None:
            self._timer = loop.call_at(self.waiting[0][0] + self._timeout, self._expire, context=Context())

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        text = f"no room on the shared connection in {self._timeout} s"
        while self.waiting and (self.waiting[0][1].done() or self.waiting[0][0] + (self._timeout or 0) <= loop.time()):
            self._waiting_ends(PoolExhaustedError(text))
        self._watch(loop)

    def _lose(self, error: Exception) -> None:
        for _ in range(len(self.waiting)):
            # One for each: raising an error writes into it.
            own = copy(error)
            own.__cause__ = error.__cause__ or error.__context__
            self._waiting_ends(own)

    def _waiting_ends(self, error: Exception) -> None:
        _, call = self.waiting.popleft()
        if not call.done():
            call.set_result(Lost(error, written=False))

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials on every line."""
        for line in self._lines:
            line.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(len(line.inflight.calls) for line in self._lines)

    async def aclose(self, error: Exception) -> None:
        """Let what is written come to its end, for ``socket_timeout`` at most."""
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        self._lose(error)
        lines = list(self._lines)
        for line in lines:
            line.retire()
        if lines:
            await asyncio.wait(
                [line.ended for line in lines], timeout=lines[0].inflight.timeout or DEFAULT_SOCKET_TIMEOUT
            )
        for line in lines:
            line.end(lambda: ConnectionError("closed before the reply came"))


class Multiplexer:
    """Sends commands and runs of commands of any number of callers on one connection, large ones on a second one.

    Args:
        lender: Where the connections come from.
        packer: A connection that is never connected; it packs what hiredis cannot.
        bulk: Whether there may be a second connection.
    """

    def __init__(self, lender: Lender, packer: AbstractConnection, *, bulk: bool) -> None:
        self._lender = ref(lender)
        self._packer = packer
        encoder = packer.encoder
        self._is_utf8 = encoder.encoding.lower() in {"utf-8", "utf8"} and encoder.encoding_errors == "strict"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._large_keys: dict[tuple[Any, Any], None] = {}
        self._main = _Lane(lender, self._pack_again, self._learn)
        self._bulk = _Lane(lender, self._pack_again, self._learn) if bulk else self._main

    def send(self, args: Sequence[Any], *, raw: bool = False, orphan: Callable[[Any], object] | None = None) -> Reply:
        """Send one command.

        Args:
            args: The command, one that shares.
            raw: Do not decode the reply, also where the connection decodes.
            orphan: Gets the reply if the caller no longer awaits it.

        Returns:
            A future of the reply as it was parsed: error replies are values, and so is ``Lost``.

        Raises:
            redis.exceptions.DataError: An argument cannot be sent.
            PoolClosedError, EventLoopError: The pool cannot be used.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        packed = self._pack(args)
        reply = Reply(loop=loop)
        reply.args, reply.raw, reply.orphan, reply.size = args, raw, orphan, len(packed)
        if reply.size > LARGE or (self._large_keys and self._is_large(args)):
            self._bulk.send(reply, packed)
        else:
            self._main.send(reply, packed)
        return reply

    def run(self, commands: Sequence[Sequence[Any]], raws: Sequence[bool] = ()) -> Run:
        """Send several commands in one piece; see ``send``."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        run = Run(loop=loop)
        run.commands, run.raws, run.replies, run.progressed = commands, raws, [], 0.0
        packed = self._pack_again(run)
        run.size = len(packed)
        (self._bulk if run.size > LARGE else self._main).send(run, packed)
        return run

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        lender = self._lender()
        if lender is not None:
            lender.check_usable()
        self._loop = loop

    def _pack(self, args: Sequence[Any]) -> bytes:
        # hiredis does not take a name of several words apart, and knows no encoding but UTF-8.
        if self._is_utf8 and args[0] in _ONE_WORD:
            try:
                return cast("bytes", hiredis.pack_command(cast("Any", args)))
            except TypeError:
                pass  # redis-py takes more types, and refuses others with its own error
        return b"".join(self._packer.pack_command(*args))

    def _pack_again(self, call: Reply | Run) -> bytes:
        return self._pack(call.args) if isinstance(call, Reply) else b"".join(map(self._pack, call.commands))

    def _is_large(self, args: Sequence[Any]) -> bool:
        try:
            return tuple(args[:2]) in self._large_keys
        except TypeError:
            return False

    def _learn(self, call: Reply | Run) -> None:
        """Remember whose reply was large: it is likely to be large again."""
        if isinstance(call, Reply) and len(call.args) > 1:
            with suppress(TypeError):
                self._large_keys[tuple(call.args[:2])] = None
            if len(self._large_keys) > _MOST_LARGE_KEYS:
                del self._large_keys[next(iter(self._large_keys))]

    def renew(self) -> None:
        """Send further calls on new connections."""
        for lane in {self._main, self._bulk}:
            if lane.line is not None:
                lane.line.retire()

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls."""
        for lane in {self._main, self._bulk}:
            lane.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(lane.in_flight() for lane in {self._main, self._bulk})

    def waiting(self) -> int:
        """How many calls wait for a connection, or for room on it."""
        return sum(len(lane.waiting) for lane in {self._main, self._bulk})

    async def aclose(self, error: Exception) -> None:
        """Refuse calls that wait, and let those that are written come to their end, for ``socket_timeout`` at most."""
        for lane in {self._main, self._bulk}:
            await lane.aclose(error)
