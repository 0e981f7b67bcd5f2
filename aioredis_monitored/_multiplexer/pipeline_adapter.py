"""A connection as redis-py's pipeline wants it, whose commands are one run on the shared connection."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from aioredis_monitored._multiplexer.futures import AttemptFailed, ReplyObserver
from aioredis_monitored._multiplexer.multiplexer import Multiplexer


class PipelineAdapter:
    """Has what ``Pipeline._execute_pipeline`` and ``Pipeline._execute_transaction`` use of a connection.

    Args:
        multiplexer: The shared connection.
        decode: Decodes replies.
        seconds: How long all may take; ``None`` for no bound but those of each reply.
        listener: Told what becomes of the run.
        losses: Of a further attempt, how many connections the batch was written to and lost.
    """

    himport_registry = None

    def __init__(
        self,
        multiplexer: Multiplexer,
        decode: Callable[[Any], Any],
        seconds: float | None,
        listener: ReplyObserver | None,
        losses: int,
    ) -> None:
        self._multiplexer = multiplexer
        self._decode = decode
        self._seconds = seconds
        self._listener = listener
        self._losses = losses
        self._replies: Iterator[Any] = iter(())

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[tuple[Any, ...]]:
        """The commands as they are: it is the shared connection that packs."""
        return [tuple(args) for args in commands]

    async def send_packed_command(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send the commands and wait for all replies.

        Raises:
            Lost: They will not come.
        """
        run = self._multiplexer.send_batch(commands, self._listener, self._losses)
        replies = await (run if self._seconds is None else run.wait_for(self._seconds))
        if isinstance(replies, AttemptFailed):
            raise replies
        self._replies = iter(replies)

    async def read_response(self, disable_decoding: bool = False) -> Any:
        """The next reply, raised if it is an error."""
        reply = next(self._replies)
        if isinstance(reply, Exception):
            raise reply
        return reply if disable_decoding else self._decode(reply)
