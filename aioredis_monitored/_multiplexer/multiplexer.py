"""Packs calls, and sends each on the shared connection for it: main, bulk for large values, or that for retries."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import monotonic, perf_counter
from typing import Any, Final, TypeVar
from weakref import ref

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.auth.token import TokenInterface

from aioredis_monitored._commands.table import TABLE
from aioredis_monitored._multiplexer.connection import LARGE_BYTES
from aioredis_monitored._multiplexer.futures import (
    AskingFuture,
    BatchFuture,
    CallFuture,
    CommandFuture,
    DeadlineExceeded,
    ReplyObserver,
)
from aioredis_monitored._multiplexer.manager import ConnectionManager, ConnectionSource
from aioredis_monitored._redispy.connections import has_standard_io

_Batch = TypeVar("_Batch", bound=BatchFuture)

# How many connections may break with a call in flight before it is isolated.
ISOLATE_AFTER: Final = 2
# The keys whose replies were large, and their length.
_MAX_LARGE_KEYS: Final = 1024
_MAX_LARGE_KEY_LENGTH: Final = 1024
_MIN_RETIRE_INTERVAL_SECONDS: Final = 0.5
# Of GET, the most usual command: such ones are packed past the checks of arguments.
_NAME_AND_KEY: Final = 2
_ONE_WORD: Final = frozenset(name for name in TABLE if " " not in name)


def supports_multiplexing(connection: AbstractConnection) -> bool:
    """Whether connections of this kind can be written to and read from without redis-py's own methods.

    Those cost ten times as much as everything else, and there is no public way around them.
    """
    config = connection.maint_notifications_config
    return has_standard_io(connection) and not (config and config.enabled)


class Multiplexer:
    """Sends the calls of all callers on one shared connection, and large ones on a second one.

    A call that a server answers by closing the connection must not be repeated on a connection that others use, and the
    server does not say which of the calls in flight it was. So the calls of a broken connection that may be repeated
    share one further connection, which new calls do not use. If that breaks too, each is repeated alone, on a dedicated
    connection, one after the other (``isolated``).

    Args:
        source: The pool that connections come from, which is referenced weakly.
        packer: A connection that is never connected; it packs what hiredis cannot.
        bulk: Whether a second connection may be used for large values.
    """

    def __init__(self, source: ConnectionSource, packer: AbstractConnection, *, bulk: bool) -> None:
        self._source = ref(source)
        self._packer = packer
        encoder = packer.encoder
        is_utf8 = encoder.encoding.lower() in {"utf-8", "utf8"} and encoder.encoding_errors == "strict"
        self._packed_by_hiredis = _ONE_WORD if is_utf8 else frozenset()
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
            args: The command, one that is shareable.
            on_orphan: Takes the reply if the caller no longer awaits it. Default ``None``: it is dropped.
            observer: Learns the outcome if the caller awaits it; default ``None``.
            losses: How many connections broke while the call was in flight on them; default ``None`` for none.

        Returns:
            A future of the reply as hiredis parsed it, bytes not decoded. Error replies are values, and so is
            ``AttemptFailed``.

        Raises:
            redis.exceptions.DataError: An argument cannot be sent.
            PoolClosedError: The pool is closed.
            EventLoopError: The pool belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind_event_loop(loop)
        if len(args) == _NAME_AND_KEY and args[1].__class__ is str and args[0] in self._packed_by_hiredis:
            packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]  # it takes tuples of any length
        else:
            packed = self._pack(args)
        reply = CommandFuture(loop=loop)
        reply.args, reply.size, reply.observer = args, len(packed), observer
        reply.is_queued, reply.queued_at, reply.on_cancel = False, 0.0, None
        if on_orphan is not None:
            reply.on_orphan = on_orphan
        manager = self._main
        if losses:
            manager = self._retries
        elif reply.size > LARGE_BYTES or (self._large_keys and self._is_large(args)):
            manager = self._manager_for_large()
        if manager.ready is not None:
            manager.ready.send(reply, packed)
        else:
            if _has_mutable_args(args):
                reply.packed = packed
            manager.enqueue(reply)
        return reply

    def send_batch(
        self,
        commands: Sequence[tuple[Any, ...]],
        observer: ReplyObserver | None = None,
        losses: int | None = None,
        kind: type[_Batch] = BatchFuture,  # type: ignore[assignment]  # the default of a type variable
    ) -> _Batch:
        """Send several commands in one piece.

        Args:
            commands: The commands.
            observer: As for ``send``.
            losses: As for ``send``.
            kind: The class of the future; default ``BatchFuture``.

        Returns:
            A future of the list of replies, which are as those of ``send``, or of ``AttemptFailed``.

        Raises:
            redis.exceptions.DataError: An argument cannot be sent.
            PoolClosedError: The pool is closed.
            EventLoopError: The pool belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind_event_loop(loop)
        batch = kind(loop=loop)
        batch.commands, batch.replies, batch.observer = commands, [], observer
        batch.is_queued, batch.queued_at, batch.on_cancel = False, 0.0, None
        packed = b"".join(map(self._pack, commands))
        batch.size = len(packed)
        manager = self._manager_for_large() if batch.size > LARGE_BYTES else self._main
        if losses:
            manager = self._retries
        if manager.ready is not None:
            manager.ready.send(batch, packed)
        else:
            if any(map(_has_mutable_args, commands)):
                batch.packed = packed
            manager.enqueue(batch)
        return batch

    def send_asking(
        self,
        args: tuple[Any, ...],
        on_orphan: Callable[[Any], object] | None = None,
        observer: ReplyObserver | None = None,
        losses: int | None = None,
    ) -> AskingFuture:
        """Send one command to a node that takes over the slot of its keys, as ``send`` does.

        ASKING and the command are in one piece, as it holds for the next command on its connection.
        """
        reply = self.send_batch([("ASKING",), args], observer, losses, AskingFuture)
        reply.on_orphan = on_orphan
        return reply

    @asynccontextmanager
    async def isolated(self, seconds: float | None) -> AsyncIterator[float | None]:
        """Wait until no other call is isolated.

        Args:
            seconds: How long the attempt may take; ``None`` for no limit.

        Yields:
            How many of the seconds are left; ``None`` for no limit.

        Raises:
            DeadlineExceeded: Other calls took all the time.
        """
        began = monotonic()
        try:
            # By the clock alone: no attempt may begin after the deadline.
            async with asyncio.timeout(seconds):
                await self._isolation.acquire()
        except TimeoutError:
            raise DeadlineExceeded(may_have_run=False) from None
        try:
            yield None if seconds is None else seconds - (monotonic() - began)
        finally:
            self._isolation.release()

    def _bind_event_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        source = self._source()
        if source is not None:
            source.check_open()
        self._loop = loop

    # Packing.

    def _pack(self, args: tuple[Any, ...]) -> bytes:
        # hiredis does not split command names of several words, encodes text as UTF-8 only, and reads beyond the end of
        # a memoryview that is not contiguous.
        if args[0] in self._packed_by_hiredis and memoryview not in map(type, args):
            try:
                packed: bytes = hiredis.pack_command(args)
            except TypeError:
                pass  # redis-py accepts more types, and rejects others with its own error
            else:
                return packed
        # redis-py counts the items of a memoryview, and would announce fewer bytes than it sends.
        views = (argument.tobytes() if isinstance(argument, memoryview) else argument for argument in args)
        return b"".join(self._packer.pack_command(*views))

    def _repack(self, call: CallFuture) -> bytes:
        if call.packed is not None:
            return call.packed
        return self._pack(call.args) if isinstance(call, CommandFuture) else b"".join(map(self._pack, call.commands))

    # Large values.

    def _manager_for_large(self) -> ConnectionManager:
        source = self._source()
        can_connect = source is not None and source.has_free_connection()
        return self._bulk if self._bulk.connection is not None or can_connect else self._main

    def _is_large(self, args: Sequence[Any]) -> bool:
        try:
            return tuple(args[:2]) in self._large_keys
        except TypeError:
            return False

    def _remember_large(self, call: CallFuture) -> None:
        """Remember the key of a large reply: the next reply is likely to be large as well."""
        key = call.args[1] if isinstance(call, CommandFuture) and len(call.args) > 1 else None
        if isinstance(call, CommandFuture) and isinstance(key, str | bytes) and len(key) <= _MAX_LARGE_KEY_LENGTH:
            self._large_keys[tuple(call.args[:2])] = None
            if len(self._large_keys) > _MAX_LARGE_KEYS:
                del self._large_keys[next(iter(self._large_keys))]

    # All connections.

    def write_pending(self) -> None:
        """Write now what would be written at the end of this tick, on each connection that has room."""
        for manager in (self._main, self._bulk):
            if manager.ready is not None:
                manager.ready.write_pending()

    def retire_connections(self, older_than: float) -> None:
        """Send further calls on other connections than those made before ``older_than`` of the monotonic clock."""
        now = monotonic()
        if now - self._retired_at < _MIN_RETIRE_INTERVAL_SECONDS:
            # Many callers that retry at the same time need one new connection.
            return
        for manager in self._managers:
            if manager.connection is not None and manager.connection.connected_at < older_than:
                self._retired_at = now
                manager.connection.retire()

    def silent_seconds(self) -> float:
        """For how long replies are owed, and none has arrived on one of the connections; 0 if none is owed."""
        return max(0.0, perf_counter() - min(manager.silent_since() for manager in self._managers))

    def close_silent(self, seconds: float, error: Callable[[], Exception]) -> None:
        """Close the connections on which replies are owed, and none has arrived for so long."""
        for manager in self._managers:
            manager.close_silent(perf_counter() - seconds, error)

    def retire_all(self) -> None:
        """Send further calls on other connections than those that there are now."""
        for manager in self._managers:
            if manager.connection is not None:
                manager.connection.retire()

    def re_authenticate(self, token: TokenInterface) -> None:
        """Send new credentials between the calls."""
        for manager in self._managers:
            manager.re_authenticate(token)

    def in_flight(self) -> int:
        """How many calls are owed a reply."""
        return sum(manager.in_flight() for manager in self._managers)

    def queued(self) -> int:
        """How many calls wait for a connection, or for room on it."""
        return sum(not call.done() for manager in self._managers for call in list(manager.queued))

    async def aclose(self, error: Exception) -> None:
        """Fail queued calls, wait for the replies to written ones for ``socket_timeout`` or else 5 s, and close."""
        for manager in self._managers:
            manager.close(error)
        await asyncio.gather(*(manager.drain() for manager in self._managers))


def _has_mutable_args(args: Sequence[Any]) -> bool:
    return any(isinstance(argument, bytearray | memoryview) for argument in args)
