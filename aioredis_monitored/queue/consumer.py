"""The consumers of a queue, as Redis knows them: their ids, their keys, and how messages get to them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import uuid4

from aioredis_monitored._execution.fetch import MAX_WAIT_SECONDS
from aioredis_monitored.queue import scripts
from aioredis_monitored.queue.telemetry import QueueTelemetry

# The keys of a queue beside its list: `{name}:…`, or `name::…` if the name has a hash tag, so that the queues `a` and
# `{a}` have none in common.
_INNER: Final = re.compile(r"(?s)(?:\{([^}]+)\}:|(.*\}.*)::)(?:c|n|dead|sweeper|p:[0-9a-f]{32})")


class QueueKeys:
    """The keys of a queue.

    Args:
        queue: That of its list.

    Attributes:
        queue: The list.
        consumers: The sorted set of consumers that may hold something, each with the deadline of its lease, in
            milliseconds since 1970 by the server's clock.
        counts: The hash of how often messages were delivered in vain.
        dead: The list of those for which that was too often.
        sweeper: Exists for a while after what the dead have held was looked after.

    Raises:
        ValueError: The other keys could not be in its slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags),
            or the name is one of the other keys of another queue.
    """

    def __init__(self, queue: str) -> None:
        before, brace, rest = queue.partition("{")
        tag, end, _ = rest.partition("}")
        has_tag = bool(brace and end)
        if has_tag != bool(tag and end) or (not has_tag and "}" in before + rest):
            message = f"the braces in a queue's name have to be those of a hash tag: {queue!r}"
            raise ValueError(message)
        if (inner := _INNER.fullmatch(queue)) is not None:
            message = f"{queue!r} is a key of the queue {inner[1] or inner[2]!r}: choose another name"
            raise ValueError(message)
        self._prefix = f"{queue}::" if has_tag else f"{{{queue}}}:"
        self.queue = queue
        self.consumers = f"{self._prefix}c"
        self.deliveries = f"{self._prefix}n"
        self.dead = f"{self._prefix}dead"
        self.sweeper = f"{self._prefix}sweeper"

    def processing(self, consumer: str) -> str:
        """The list of what a consumer holds, by its id: 32 lower-case hexadecimal digits."""
        return f"{self._prefix}p:{consumer}"


class LeaseConfig(NamedTuple):
    """On what terms messages are held.

    Attributes:
        lease: For how many seconds a consumer lives without a word.
        max_deliveries: After how many deliveries a message is dead; ``None`` for never.
    """

    lease: float
    max_deliveries: int | None

    @property
    def milliseconds(self) -> int:
        """The lease, as Redis wants it."""
        return int(self.lease * 1000)


class Consumer:
    """A holder of messages; it has at most one take in flight.

    Its id is used again only if nothing about it is in doubt: a message that a reply which was lost has brought stays
    under it, and comes back when the lease that nobody renews has ended.

    Args:
        keys: Those of the queue.
        terms: On what terms it holds messages.
        id: What Redis knows it by; default something new.

    Attributes:
        id: What Redis knows it by.
        taken: The key of the list of what it holds.
        messages: What it holds.
        carriers: What came with them.
        is_batch: Whether these could have been any number.
        may_have_past: Whether anything was ever delivered in vain.
        is_doubted: Whether it was in vain that one tried to acknowledge them.
    """

    __slots__ = (
        "_keys",
        "_terms",
        "carriers",
        "id",
        "is_batch",
        "outcome_unknown",
        "may_be_redelivery",
        "messages",
        "processing",
    )

    def __init__(self, keys: QueueKeys, terms: LeaseConfig, id: str | None = None) -> None:  # noqa: A002 - what it is
        self._keys = keys
        self._terms = terms
        self.id = id or uuid4().hex
        self.processing = keys.processing(self.id)
        self.messages: list[bytes] = []
        self.carriers: list[Mapping[str, str]] = []
        self.is_batch = False
        self.outcome_unknown = False
        self.may_be_redelivery = False

    def take_arguments(self, count: int) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Keys and arguments of the script that takes so many messages."""
        keys = (self._keys.queue, self._keys.consumers, self.processing, self._keys.deliveries)
        return keys, (self.id, self._terms.milliseconds, count)

    def nack_arguments(self, side: str, *, counts: bool, force: bool) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """Keys and arguments of the script that gives back what it holds.

        Args:
            side: The end of the queue, ``HEAD`` or ``TAIL``.
            counts: Whether it was a delivery.
            may_live: Whether it is done even if the consumer lives.
        """
        keys = self._keys
        where = (keys.queue, keys.consumers, self.processing, keys.deliveries, keys.dead)
        return where, (self.id, side, int(counts), self._terms.max_deliveries or 0, int(force))

    def delivery_keys(self) -> tuple[str, str]:
        """What it holds, and what is known of that: the keys of the scripts that look back, or delete it."""
        return self.processing, self._keys.deliveries


def register_command(keys: QueueKeys, terms: LeaseConfig, consumers: Iterable[Consumer]) -> tuple[Any, ...]:
    """The command by which consumers are known, and live for a lease from then on.

    It carries the script: with a server that has forgotten it, what follows would run all the same.
    """
    return ("EVAL", scripts.REGISTER, 1, keys.consumers, terms.milliseconds, *(consumer.id for consumer in consumers))


class LeaseFetch:
    """Fetches messages into the list of a consumer (see ``Fetch``).

    Args:
        consumer: Who takes them.
        keys: Those of the queue.
        terms: On what terms they are held.
        count: How many at most; ``None`` for the first one.
        telemetry: Of the queue.
        sha: Of the script that takes what is there.
    """

    def __init__(
        self,
        consumer: Consumer,
        keys: QueueKeys,
        terms: LeaseConfig,
        count: int | None,
        telemetry: QueueTelemetry,
        sha: str,
    ) -> None:
        self._consumer = consumer
        self._keys = keys
        self._terms = terms
        self._count = count or 1
        self.is_batch = count is not None
        self.messaging = telemetry.take
        self.on_empty = telemetry.on_empty
        self._script: tuple[str, str] = ("EVALSHA", sha)
        # It ends before the lease does, in whose time the consumer must be seen to live.
        self.max_wait = min(MAX_WAIT_SECONDS, terms.lease / 3)

    def poll_command(self) -> tuple[Any, ...]:
        """See ``Fetch``."""
        keys, arguments = self._consumer.take_arguments(self._count)
        return (*self._script, len(keys), *keys, *arguments)

    def send_script(self) -> None:
        """Send the script from now on: the server does not know it, or has forgotten it."""
        self._script = ("EVAL", scripts.TAKE)

    def parse_poll(self, reply: Any) -> Any:
        """See ``Fetch``."""
        messages, self._consumer.may_be_redelivery = reply
        return messages or None

    def blocking_commands(self, seconds: float) -> Sequence[tuple[Any, ...]]:
        """See ``Fetch``: also who was frozen meanwhile is known, and lives, before it can have anything.

        And behind that, as FLUSHALL may have come meanwhile: who dies with the message in its hands must be known then.
        """
        registering = register_command(self._keys, self._terms, (self._consumer,))
        taking = ("BLMOVE", self._keys.queue, self._consumer.processing, "LEFT", "RIGHT", seconds)
        return registering, taking, registering, ("EXISTS", self._keys.deliveries)

    def parse_blocking(self, replies: Sequence[Any]) -> Any:
        """See ``Fetch``."""
        _, message, _, self._consumer.may_be_redelivery = replies
        return None if message is None else [message]

    def restore_commands(self, found: Any) -> Sequence[tuple[Any, ...]]:  # noqa: ARG002 - Redis knows
        """See ``Fetch``: nobody has seen it, which is no delivery."""
        keys, arguments = self._consumer.nack_arguments(scripts.HEAD, counts=False, force=True)
        return (("EVAL", scripts.NACK, len(keys), *keys, *arguments),)

    def on_unsettled(self) -> None:
        """See ``Fetch``: it comes back when the lease has ended, as that of a dead one does."""
