"""Calls that are parts of an operation and have no record of their own: neither a span nor a point."""

from redis.asyncio.connection import AbstractConnection

from aioredis_monitored.sockets import Peer
from aioredis_monitored.telemetry.operation import Certainty, Operation


class Part:
    """A call without a record of its own: where its time went, it tells the one that it is a part of.

    Attributes:
        certain: Set as an operation's is, and of no consequence.
    """

    certain: Certainty = False

    def __init__(self, whole: Operation) -> None:
        whole.goes_on()
        self._whole = whole

    def waited(self, seconds: float, connecting: float) -> None:
        """Take note of a wait."""
        self._whole.waited(seconds, connecting)

    def reached(self, connection: AbstractConnection) -> None:
        """Take note of the connection that is to be used."""
        self._whole.reached(connection)

    def answered(self, reply: object, now: float, peer: Peer | None) -> None:  # noqa: ARG002 - as an operation is told
        """Take note of who has answered."""
        self._whole.absorb(self._whole.call, 0.0, 0.0, 0.0, peer)


# Who is told how a call goes.
Observer = Operation | Part
