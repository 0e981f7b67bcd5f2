"""The slots of a pool: which connection is idle or acquired, and which caller gets the next one, without I/O."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)


class Slots(Generic[C]):
    """As many connections as a pool may have, and the callers that wait for one of them.

    Callers get slots in the order in which they came; in redis-py, a caller that asks again and again overtakes those
    that wait. One slot can be reserved, for the shared connection. While that is replaced, its predecessor may still
    hold the reserved slot; the new one then gets the next slot that is free, before all other callers.

    Every decision follows one rule (``_has_slot``) and is made at once: while a slot is free, no caller waits for it.

    Args:
        max_connections: The number of slots.
        make: Makes a connection; called if a caller gets a slot while no connection is idle.

    Attributes:
        max_connections: The number of slots (see ``resize``).
        idle: The connections that no caller has; the last one is acquired next.
        acquired: The connections that callers have, the shared ones included.
        waiters: The callers that wait for a slot, the oldest first.
        reserved_waiters: The callers that wait with ``reserved``, the oldest first.
    """

    def __init__(self, max_connections: int, make: Callable[[], C]) -> None:
        self.max_connections = max_connections
        self._make = make
        self._clear()

    def _clear(self) -> None:
        # New objects: a call that began before goes on with the old ones.
        self.idle: list[C] = []
        self.acquired: set[C] = set()
        self.waiters: deque[asyncio.Future[C]] = deque()
        self.reserved_waiters: deque[asyncio.Future[C]] = deque()
        self._discarded: set[C] = set()
        self._reconnected: set[C] = set()
        self._has_reservation = False
        self._reserved_connection: C | None = None

    def reserve_slot(self) -> None:
        """Reserve one of the slots for ``acquire(…, reserved=True)``."""
        self._has_reservation = True

    def acquire(self, *, reserved: bool = False) -> C | None:
        """Acquire an idle connection, or a new one.

        Args:
            reserved: Whether the connection may take the reserved slot.

        Returns:
            The connection; ``None`` if the caller must wait (see ``enqueue``).
        """
        return self._take(reserved=reserved) if self._has_slot(reserved=reserved) else None

    def _has_slot(self, *, reserved: bool) -> bool:
        is_kept = not reserved and self.is_reserved_slot_free()
        return len(self.acquired) + is_kept < self.max_connections

    def is_reserved_slot_free(self) -> bool:
        """Whether a slot is reserved, and no connection holds it."""
        return self._has_reservation and self._reserved_connection is None

    def _take(self, *, reserved: bool) -> C:
        connection = self.idle.pop() if self.idle else self._make()
        self.acquired.add(connection)
        if reserved:
            self._reserved_connection = connection
        return connection

    def has_free_slot(self) -> bool:
        """Whether ``acquire`` would return a connection."""
        return self._has_slot(reserved=False)

    def resize(self, max_connections: int) -> None:
        """Change the number of slots; callers that wait get those that are added."""
        self.max_connections = max_connections
        self._wake_waiters()

    def enqueue(self, loop: asyncio.AbstractEventLoop, *, reserved: bool = False) -> asyncio.Future[C]:
        """Add a caller to those that wait.

        Args:
            loop: The event loop of the caller.
            reserved: As of ``acquire``.

        Returns:
            A future of the connection. Its caller must call ``leave`` when it stops waiting for any other reason.
        """
        waiter: asyncio.Future[C] = loop.create_future()
        (self.reserved_waiters if reserved else self.waiters).append(waiter)
        return waiter

    def leave(self, waiter: asyncio.Future[C]) -> C | None:
        """Remove a caller that no longer waits.

        Returns:
            The connection that was already assigned to it, which must be released; ``None`` if none was.
        """
        for queue in (self.reserved_waiters, self.waiters):
            if waiter in queue:
                queue.remove(waiter)
                return None
        is_served = waiter.done() and not waiter.cancelled() and waiter.exception() is None
        return waiter.result() if is_served else None

    def release(self, connection: C, *, is_connected: bool) -> None:
        """Take a connection back, and assign its slot to the caller that has waited longest.

        Args:
            connection: One of ``acquired``.
            is_connected: Whether it is connected: those that are, are acquired before those that are not.
        """
        self.acquired.remove(connection)
        self._discarded.discard(connection)
        self._reconnected.discard(connection)
        if connection is self._reserved_connection:
            self._reserved_connection = None
        self.idle.insert(len(self.idle) if is_connected else 0, connection)
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        for queue, reserved in ((self.reserved_waiters, True), (self.waiters, False)):
            while queue and self._has_slot(reserved=reserved):
                waiter = queue.popleft()
                if not waiter.done():
                    # With the connection: a caller that comes before the waiter resumes would take the slot.
                    waiter.set_result(self._take(reserved=reserved))

    def waiter_count(self) -> int:
        """Return how many callers wait; may be called in another thread."""
        # Each copy is made in one step.
        return sum(not waiter.done() for waiter in (*self.reserved_waiters, *self.waiters))

    def discard_on_release(self, connection: C) -> None:
        """Mark an acquired connection as altered: it is to be closed when it is released."""
        self._discarded.add(connection)

    def will_discard(self, connection: C) -> bool:
        """Whether a connection is marked by ``discard_on_release``."""
        return connection in self._discarded

    def mark_reconnected(self, connection: C) -> None:
        """Mark an acquired connection as connected anew since it was acquired."""
        self._reconnected.add(connection)

    def was_reconnected(self, connection: C) -> bool:
        """Whether a connection is marked by ``mark_reconnected``."""
        return connection in self._reconnected

    def forget(self, connection: C) -> None:
        """Remove the marks of a connection that was acquired before a ``reset``."""
        self._discarded.discard(connection)
        self._reconnected.discard(connection)

    def reset(self, closed_error: Callable[[], Exception]) -> tuple[C, ...]:
        """Begin anew, without connections and reservation; every caller that waits gets an error.

        Args:
            closed_error: Makes the error, one for each caller.

        Returns:
            The connections that there were, the acquired ones first.
        """
        connections = (*self.acquired, *self.idle)
        waiters = (*self.reserved_waiters, *self.waiters)
        self._clear()
        for waiter in waiters:
            # A closed event loop runs no callers.
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_exception(closed_error())
        return connections
