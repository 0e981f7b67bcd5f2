"""Lets redis-py's pipeline send its batch on the shared connection."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aioredis_monitored._multiplexer.futures import AttemptFailed, BatchFuture, ReplyObserver
from aioredis_monitored._multiplexer.multiplexer import Multiplexer


class ReplyReader:
    """Replies that have arrived, read as from a connection.

    Args:
        replies: The replies, in which errors are values.
        decode: Decodes replies.
    """

    def __init__(self, replies: Iterable[Any], decode: Callable[[Any], Any]) -> None:
        self._replies = iter(replies)
        self._decode = decode

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """Return the next reply, or raise it if it is an error."""
        reply = next(self._replies)
        if isinstance(reply, Exception):
            raise reply
        return reply if disable_decoding else self._decode(reply)


class PipelineAdapter(ReplyReader):
    """Has what ``Pipeline._execute_pipeline`` and ``Pipeline._execute_transaction`` use of a connection.

    Args:
        multiplexer: Sends the batch.
        decode: Decodes replies.
        seconds: How long the batch may take; ``None`` for no limit but ``socket_timeout``.
        observer: Learns the outcome; ``None`` for none.
        losses: How many connections broke while the batch was in flight on them.
        is_asking: Whether ASKING precedes the batch, a transaction; default ``False``.
    """

    # redis-py prepares HIMPORT fieldsets on connections that have a registry.
    himport_registry = None

    def __init__(
        self,
        multiplexer: Multiplexer,
        decode: Callable[[Any], Any],
        seconds: float | None,
        observer: ReplyObserver | None,
        losses: int,
        *,
        is_asking: bool = False,
    ) -> None:
        super().__init__((), decode)
        self._multiplexer = multiplexer
        self._seconds = seconds
        self._observer = observer
        self._losses = losses
        self._is_asking = is_asking

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[tuple[Any, ...]]:
        """Return the commands unpacked: the multiplexer packs them."""
        return [tuple(args) for args in commands]

    async def send_packed_command(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send the commands and wait for all replies.

        Raises:
            AttemptFailed: The replies will not come.
        """
        if self._is_asking:
            commands = [("ASKING",), *commands]
        batch: BatchFuture = self._multiplexer.send_batch(commands, self._observer, self._losses)
        replies = await (batch if self._seconds is None else batch.wait_for(self._seconds))
        if isinstance(replies, AttemptFailed):
            raise replies
        self._replies = iter(replies[1:] if self._is_asking else replies)
