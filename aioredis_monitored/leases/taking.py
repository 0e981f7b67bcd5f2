"""One take, from the fetching of its messages to their acknowledgement or return."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from aioredis_monitored.errors import TimedOutError
from aioredis_monitored.leases.leases import Leases
from aioredis_monitored.leases.scripts import HEAD, TAIL

if TYPE_CHECKING:
    from aioredis_monitored.leases.consumer import Consumer
    from aioredis_monitored.telemetry.messaging import Processing

T_co = TypeVar("T_co", covariant=True)


class Taking(Generic[T_co]):
    """``async with`` it: leaving acknowledges, an error gives back to the tail, a cancellation to the head.

    Args:
        leases: Of the queue.
        count: How many messages to take at most; ``None`` for the first one.
        seconds: How long to wait for the first one; ``math.inf`` for ever, 0 not at all.
        shape: Makes of them what the block gets.
    """

    def __init__(self, leases: Leases, count: int | None, seconds: float, shape: Callable[[list[bytes]], T_co]) -> None:
        self._leases = leases
        self._count = count
        self._seconds = seconds
        self._shape = shape
        self._is_entered = False
        self._held: tuple[Consumer, Processing] | None = None

    async def __aenter__(self) -> T_co:
        if self._is_entered:
            raise RuntimeError("a take holds one message at a time: call take() again for another one")
        self._is_entered, consumer = True, None
        try:
            consumer = await self._leases.take(self._count, self._seconds)
        finally:
            self._is_entered = consumer is not None
        if consumer is None:
            raise TimedOutError("Timed out waiting for the message queue.")
        processing = self._leases.process(consumer)
        processing.__enter__()
        self._held = consumer, processing
        return self._shape(consumer.messages)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        consumer, processing = cast("tuple[Consumer, Processing]", self._held)
        self._is_entered, self._held = False, None
        processing.__exit__(kind, error, traceback)
        if error is None:
            await self._leases.acknowledge(consumer)
        else:
            await self._leases.give_back(consumer, TAIL if isinstance(error, Exception) else HEAD)
