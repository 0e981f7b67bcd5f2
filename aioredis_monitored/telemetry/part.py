"""Calls that are parts of an operation and have no record of their own: neither a span nor a point."""

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored.sockets import Peer
from aioredis_monitored.telemetry.operation import Operation


class Part(Operation):
    """A call without a record of its own: where its time went, it tells the one that it is a part of."""

    def __init__(self, whole: Operation) -> None:
        # Nothing of what its base would record.
        whole.goes_on()
        self._whole = whole

    def waited(self, seconds: float, connecting: float) -> None:
        """Take note of a wait."""
        self._whole.waited(seconds, connecting)

    def reached(self, connection: AbstractConnection) -> None:
        """Take note of the connection that is to be used."""
        self._whole.reached(connection)

    def answered(self, reply: object, now: float, peer: Peer | None) -> None:  # noqa: ARG002 - its base's signature
        """Take note of who has answered."""
        self._whole.absorb(self._whole.call, 0.0, 0.0, 0.0, peer)
