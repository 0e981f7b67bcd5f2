"""Packing calls, and sending each on the connection that suits it: the main one, or the one for large values."""

import asyncio
import builtins
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final
from weakref import ref

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface

from aioredis_monitored._commands.table import TABLE
from aioredis_monitored._multiplexer.connection import LARGE_BYTES
from aioredis_monitored._multiplexer.futures import (
    BatchFuture,
    CommandFuture,
    ConnectionSource,
    DeadlineExceeded,
    ReplyObserver,
)
from aioredis_monitored._multiplexer.manager import ConnectionManager
from aioredis_monitored._redispy.connections import has_standard_io

_MAX_LARGE_KEYS: Final = 1024
_MAX_LARGE_KEY_LENGTH: Final = 1024

# Seconds between one renewal and the next.
_MIN_RETIRE_INTERVAL_SECONDS: Final = 0.5

# The number of lost connections after which a call goes alone, on a connection of its own.
ISOLATE_AFTER: Final = 2

_ONE_WORD = frozenset(name for name in TABLE if " " not in name)


def supports_multiplexing(connection: AbstractConnection) -> bool:
    """Whether connections of this kind can be written to and read from past redis-py's own methods.

    These cost ten times as much as all else, and there is no public way round them.
    """
    config = connection.maint_notifications_config
    return has_standard_io(connection) and not (config and config.enabled)


class Multiplexer:
    """Sends commands and runs of commands of any number of callers on one connection, large ones on a second one.

    What a server answers by hanging up must not be repeated on a connection that others use, and which of the calls in
    flight it was, it does not say. Those that may be repeated go together over one further connection, which no new
    call uses; if that is lost as well, they go one at a time, each on a connection of its own (``alone``).

    Args:
        lender: Where the connections come from.
        packer: A connection that is never connected; it packs what hiredis cannot.
        bulk: Whether there may be a second connection.
    """

    def __init__(self, source: ConnectionSource, packer: AbstractConnection, *, bulk: bool) -> None:
        self._source = ref(source)
        self._packer = packer
        encoder = packer.encoder
        is_utf8 = encoder.encoding.lower() in {"utf-8", "utf8"} and encoder.encoding_errors == "strict"
        self._for_hiredis = _ONE_WORD if is_utf8 else frozenset()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._large_keys: dict[tuple[Any, Any], None] = {}
        self._main = ConnectionManager(source, self._repack, self._remember_large)
        self._bulk = (
            ConnectionManager(source, self._repack, self._remember_large, overflow=self._main) if bulk else self._main
        )
        self._retries = ConnectionManager(source, self._repack, self._remember_large, is_temporary=True)
        self._managers = {self._main, self._bulk, self._retries}
        self._isolation = asyncio.Lock()
        self._retired_at = -_MIN_RETIRE_INTERVAL_SECONDS

    def send(
        self,
        args: tuple[Any, ...],
        on_orphan: Callable[[Any], object] | None = None,
        observer: ReplyObserver | None = None,
        losses: int | None = None,
    ) -> CommandFuture:
        """Send one command.

        Args:
            args: The command, one that shares.
            orphan: Gets the reply if the caller no longer awaits it.
            listener: Told what becomes of the call, if the caller awaits it.
            losses: How many connections the call was written to and lost.

        Returns:
            A future of the reply as it was parsed, bytes not decoded: error replies are values, and so is ``Lost``.

        Raises:
            redis.exceptions.DataError: An argument cannot be sent.
            PoolClosedError, EventLoopError: The pool cannot be used.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind_event_loop(loop)
        packed = self._pack(args)
        reply = CommandFuture(loop=loop)
        reply.args, reply.size, reply.observer = args, len(packed), observer
        reply.is_queued, reply.queued_at, reply.on_cancel = False, 0.0, None
        if on_orphan is not None:
            reply.on_orphan = on_orphan
        lane = self._main
        if losses:
            lane = self._retries
        elif reply.size > LARGE_BYTES or (self._large_keys and self._is_large(args)):
            lane = self._manager_for_large()
        if lane.ready is not None:
            lane.ready.send(reply, packed)
        else:
            if _has_mutable_args(args):
                reply.packed = packed
            lane.enqueue(reply)
        return reply

    def send_batch(
        self, commands: Sequence[tuple[Any, ...]], observer: ReplyObserver | None = None, losses: int | None = None
    ) -> BatchFuture:
        """Send several commands in one piece; see ``send``."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind_event_loop(loop)
        run = BatchFuture(loop=loop)
        run.commands, run.replies, run.observer = commands, [], observer
        run.is_queued, run.queued_at, run.on_cancel = False, 0.0, None
        packed = b"".join(map(self._pack, commands))
        run.size = len(packed)
        lane = self._manager_for_large() if run.size > LARGE_BYTES else self._main
        if losses:
            lane = self._retries
        if lane.ready is not None:
            lane.ready.send(run, packed)
        else:
            if any(map(_has_mutable_args, commands)):
                run.packed = packed
            lane.enqueue(run)
        return run

    @asynccontextmanager
    async def isolated(self, seconds: float | None) -> AsyncIterator[float | None]:
        """Take turns with all other calls that go alone.

        Args:
            seconds: How long the attempt may take; ``None`` for no bound.

        Yields:
            How much of that is left.

        Raises:
            Late: The turn did not come in time.
        """
        began = monotonic()
        try:
            # By the clock: no attempt begins when the time is over.
            async with asyncio.timeout(seconds):
                await self._isolation.acquire()
        except builtins.TimeoutError:
            raise DeadlineExceeded(written=False) from None
        try:
            yield None if seconds is None else seconds - (monotonic() - began)
        finally:
            self._isolation.release()

    def _manager_for_large(self) -> ConnectionManager:
        lender = self._source()
        can_connect = lender is not None and lender.has_free_connection()
        return self._bulk if self._bulk.connection is not None or can_connect else self._main

    def _bind_event_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        lender = self._source()
        if lender is not None:
            lender.check_open()
        self._loop = loop

    def _pack(self, args: tuple[Any, ...]) -> bytes:
        # hiredis does not take a name of several words apart, knows no encoding but UTF-8, and reads past the end of a
        # memoryview whose bytes are not in one piece.
        if args[0] in self._for_hiredis and memoryview not in map(type, args):
            try:
                return hiredis.pack_command(args)  # type: ignore[no-any-return]
            except TypeError:
                pass  # redis-py takes more types, and refuses others with its own error
        # redis-py counts a memoryview's items, and would announce fewer bytes than it sends.
        views = (argument.tobytes() if isinstance(argument, memoryview) else argument for argument in args)
        return b"".join(self._packer.pack_command(*views))

    def _repack(self, call: CommandFuture | BatchFuture) -> bytes:
        if call.packed is not None:
            return call.packed
        return self._pack(call.args) if isinstance(call, CommandFuture) else b"".join(map(self._pack, call.commands))

    def _is_large(self, args: Sequence[Any]) -> bool:
        try:
            return tuple(args[:2]) in self._large_keys
        except TypeError:
            return False

    def _remember_large(self, call: CommandFuture | BatchFuture) -> None:
        """Remember whose reply was large: it is likely to be large again."""
        key = call.args[1] if isinstance(call, CommandFuture) and len(call.args) > 1 else None
        if isinstance(call, CommandFuture) and isinstance(key, str | bytes) and len(key) <= _MAX_LARGE_KEY_LENGTH:
            self._large_keys[tuple(call.args[:2])] = None
            if len(self._large_keys) > _MAX_LARGE_KEYS:
                del self._large_keys[next(iter(self._large_keys))]

    def write_pending(self) -> None:
        """Write at once what would be written at the end of this tick, where there is a connection with room."""
        for lane in (self._main, self._bulk):
            if lane.ready is not None:
                lane.ready.write_pending()

    def retire_connections(self, older_than: float) -> None:
        """Send further calls on other connections than those made before that time of the monotonic clock."""
        now = monotonic()
        if now - self._retired_at < _MIN_RETIRE_INTERVAL_SECONDS:
            # Not for each of many callers that try again.
            return
        for lane in self._managers:
            if lane.connection is not None and lane.connection.connected_at < older_than:
                self._retired_at = now
                lane.connection.retire()

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls."""
        for lane in self._managers:
            lane.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(lane.in_flight() for lane in self._managers)

    def queued(self) -> int:
        """How many calls wait for a connection, or for room on it."""
        return sum(not call.done() for lane in self._managers for call in list(lane.queued))

    async def aclose(self, error: Exception) -> None:
        """Refuse calls that wait, and let those that are written end, within ``socket_timeout`` or else 5 s."""
        for lane in self._managers:
            lane.close(error)
        await asyncio.gather(*(lane.drain() for lane in self._managers))


def _has_mutable_args(args: Sequence[Any]) -> bool:
    return any(isinstance(argument, bytearray | memoryview) for argument in args)
