"""The keys of a queue, all in one slot of a cluster, and none of them another queue's."""

import re
from typing import Final

# The keys of a queue beside its list: `{name}:…`, or `name::…` if the name has a hash tag, so that the queues `a` and
# `{a}` have none in common.
_INNER: Final = re.compile(r"(?s)(?:\{([^}]+)\}:|(.*\}.*)::)(?:c|n|dead|sweeper|p:[0-9a-f]{32})")


class Keys:
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
        self.counts = f"{self._prefix}n"
        self.dead = f"{self._prefix}dead"
        self.sweeper = f"{self._prefix}sweeper"

    def taken(self, consumer: str) -> str:
        """The list of what a consumer holds, by its id: 32 lower-case hexadecimal digits."""
        return f"{self._prefix}p:{consumer}"
