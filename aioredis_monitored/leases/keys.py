"""The keys of a queue, all in one slot of a cluster."""


class Keys:
    """The keys of a queue.

    Args:
        queue: That of its list.

    Attributes:
        queue: The list.
        consumers: The set of consumers that may hold something.
        counts: The hash of how often messages were delivered in vain.
        dead: The list of those for which that was too often.
        sweeper: Exists while somebody looks after what the dead have held.

    Raises:
        ValueError: The other keys could not be in its slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).
    """

    def __init__(self, queue: str) -> None:
        before, brace, rest = queue.partition("{")
        tag, end, _ = rest.partition("}")
        has_tag = bool(brace and end)
        if has_tag != bool(tag and end) or (not has_tag and "}" in before + rest):
            message = f"the braces in a queue's name have to be those of a hash tag: {queue!r}"
            raise ValueError(message)
        self._prefix = queue if has_tag else f"{{{queue}}}"
        self.queue = queue
        self.consumers = f"{self._prefix}:c"
        self.counts = f"{self._prefix}:n"
        self.dead = f"{self._prefix}:dead"
        self.sweeper = f"{self._prefix}:sweeper"

    def heartbeat(self, consumer: str) -> str:
        """The key that exists while the consumer lives."""
        return f"{self.consumers}:{consumer}"

    def taken(self, consumer: str) -> str:
        """The list of what it holds."""
        return f"{self._prefix}:p:{consumer}"
