"""The keys of a queue, and its consumers: who they are to Redis, and what they hold."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from uuid import uuid4

from aioredis_monitored._commands.table import argument_text
from aioredis_monitored.queue.scripts import REGISTER

# The keys of a queue beside its list: `{name}:…`, or `name::…` if the name has a hash tag, so that the queues `a` and
# `{a}` have none in common.
_INNER: Final = re.compile(r"(?s)(?:\{([^}]+)\}:|(.*\}.*)::)(?:c|n|dead|sweeper|p:[0-9a-f]{32})")
_MAX_ID_LENGTH: Final = 64


class QueueKeys:
    """The keys of a queue.

    Args:
        queue: The key of the queue's list.

    Attributes:
        queue: The list.
        consumers: The sorted set of consumers that may hold messages; a score is the deadline of a lease, in
            milliseconds since 1970 by the server's clock.
        deliveries: The hash of delivery counts, of deliveries without an acknowledgement.
        dead: The list of dead letters, which were delivered too often.
        sweeper: Exists for a while after the leases of all consumers were checked.

    Raises:
        ValueError: The other keys could not be in the list's slot
            (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags), or the name is one
            of the other keys of another queue.
    """

    def __init__(self, queue: str) -> None:
        before, brace, rest = queue.partition("{")
        tag, end, _ = rest.partition("}")
        has_tag = bool(brace and end)
        if has_tag != bool(tag and end) or (not has_tag and "}" in before + rest):
            message = f"the braces in a queue's name must be those of a hash tag: {queue!r}"
            raise ValueError(message)
        if (other := queue_of(queue)) is not None:
            message = f"{queue!r} is a key of the queue {other!r}: choose another name"
            raise ValueError(message)
        self._prefix = f"{queue}::" if has_tag else f"{{{queue}}}:"
        self.queue = queue
        self.consumers = f"{self._prefix}c"
        self.deliveries = f"{self._prefix}n"
        self.dead = f"{self._prefix}dead"
        self.sweeper = f"{self._prefix}sweeper"

    def processing(self, consumer_id: str) -> str:
        """Return the key of a consumer's processing list; an id is 32 lower-case hexadecimal digits."""
        return f"{self._prefix}p:{consumer_id}"


class LeaseConfig(NamedTuple):
    """The lease of a queue's consumers, and its limit of deliveries.

    Attributes:
        lease: Seconds after which the lease of a consumer expires unless it is renewed.
        max_deliveries: Deliveries after which a message is a dead letter; ``None`` for never.
    """

    lease: float
    max_deliveries: int | None

    @property
    def milliseconds(self) -> int:
        """The lease in milliseconds."""
        return int(self.lease * 1000)


class Consumer:
    """A holder of messages; it has at most one take in flight.

    It takes again only after an acknowledgement whose outcome is known. Otherwise its processing list may have a
    message from a reply that never arrived: that is redelivered when the lease, which is not renewed, expires.

    Args:
        keys: The queue's.
        config: The lease and the limit of deliveries.
        consumer_id: What Redis knows it by; default a new id.

    Attributes:
        id: What Redis knows it by.
        processing: The key of its processing list.
        messages: The messages that it holds.
        carriers: What their envelopes carried.
        is_batch: Whether it took any number of messages, by ``take_many``.
        may_be_redelivery: Whether any message of the queue has a delivery count.
    """

    __slots__ = ("_config", "_keys", "carriers", "id", "is_batch", "may_be_redelivery", "messages", "processing")

    def __init__(self, keys: QueueKeys, config: LeaseConfig, consumer_id: str | None = None) -> None:
        self._keys = keys
        self._config = config
        self.id = consumer_id or uuid4().hex
        self.processing = keys.processing(self.id)
        self.messages: list[bytes] = []
        self.carriers: list[Mapping[str, str]] = []
        self.is_batch = False
        self.may_be_redelivery = False

    def take_arguments(self, count: int) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Return keys and arguments of the script that takes up to ``count`` messages."""
        keys = self._keys
        return (
            (keys.queue, keys.consumers, self.processing, keys.deliveries),
            (self.id, self._config.milliseconds, count),
        )

    def nack_arguments(
        self, side: str, *, is_delivery: bool, recovers: bool
    ) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Return keys and arguments of the script that requeues what it holds.

        Args:
            side: The end of the queue, ``HEAD`` or ``TAIL``.
            is_delivery: Whether it counts as a delivery.
            recovers: Whether the consumer is dead: nothing is done unless its lease has expired.
        """
        keys = self._keys
        return (
            (keys.queue, keys.consumers, self.processing, keys.deliveries, keys.dead),
            (self.id, side, int(is_delivery), self._config.max_deliveries or 0, int(recovers)),
        )

    def delivery_keys(self) -> tuple[str, str]:
        """Return the keys of the scripts that look up its message's delivery counts, or delete what it holds."""
        return self.processing, self._keys.deliveries


def queue_of(key: str) -> str | None:
    """Return the name of the queue that has this key beside its list; ``None`` if no queue has."""
    inner = _INNER.fullmatch(key)
    return None if inner is None else inner[1] or inner[2]


def id_in(reply: object) -> str:
    """Return the id of a consumer that a reply has, decoded or not; other programs may have added what is none."""
    return argument_text(reply, _MAX_ID_LENGTH)


def register_command(keys: QueueKeys, config: LeaseConfig, consumers: Iterable[Consumer]) -> tuple[Any, ...]:
    """Return the command that registers consumers, or renews their leases.

    It carries the script: an unknown EVALSHA would fail, and the commands behind it would run all the same.
    """
    return REGISTER.eval((keys.consumers,), (config.milliseconds, *(consumer.id for consumer in consumers)))
