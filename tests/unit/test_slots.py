"""Which caller gets which slot of a pool: any order of events, without I/O."""

import asyncio
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioredis_monitored import PoolClosedError
from aioredis_monitored.pool.slots import Slots

MOST = 4


class Caller:
    """A caller that has requested a slot, and waits, has a connection, or has left."""

    def __init__(self, *, reserved, waiter=None, connection=None):
        self.reserved, self.waiter, self.connection = reserved, waiter, connection
        self.has_left = False

    def is_served(self):
        return self.waiter.done() and not self.waiter.cancelled() and self.waiter.exception() is None

    def is_waiting(self):
        return self.waiter is not None and not self.waiter.done()


class AnyOrder(RuleBasedStateMachine):
    """Callers request, wait, give up and release in any order, and the pool is reset in between."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.numbers = count()
        self.callers = []  # in the order of their requests, without those that have released or left

    @initialize(most=st.integers(1, MOST), has_reservation=st.booleans())
    def a_pool_is_made(self, most, has_reservation):
        self.slots = Slots(most, self.make)
        self.has_reservation = has_reservation and most > 1
        if self.has_reservation:
            self.slots.reserve_slot()

    def teardown(self):
        try:
            self.no_slot_is_lost()
        finally:
            self.loop.close()

    def no_slot_is_lost(self):
        for caller in list(self.callers):
            if caller.waiter is not None:
                caller.waiter.cancel()
                self.leave(caller)
        for caller in list(self.callers):
            self.release(caller, is_connected=False)
        assert [set(), 0] == [self.slots.acquired, self.slots.waiter_count()]
        kept = int(self.has_reservation)
        got = [self.slots.acquire() for _ in range(self.slots.max_connections + 1)]
        assert [None] * (1 + kept) == [connection for connection in got if connection is None]
        assert kept == (self.slots.acquire(reserved=True) is not None)

    def make(self):
        return f"connection {next(self.numbers)}"

    def having(self):
        return [caller for caller in self.callers if caller.connection is not None]

    def waiting(self, *, reserved):
        return [caller for caller in self.callers if caller.reserved == reserved and caller.is_waiting()]

    def free(self):
        """Return how many slots are free for any caller."""
        holder = any(caller.reserved for caller in self.having())
        holder |= any(caller.reserved and caller.waiter and caller.is_served() for caller in self.callers)
        kept = self.slots.is_reserved_slot_free()
        assert self.has_reservation or not kept
        # A caller that requested the reserved slot may have its connection in it; otherwise that slot is free.
        assert holder or kept == self.has_reservation
        return self.slots.max_connections - len(self.slots.acquired) - kept

    @rule(reserved=st.booleans())
    def a_caller_asks(self, reserved):
        reserved &= self.has_reservation
        has_free_slot, has_reserved_slot = self.slots.has_free_slot(), self.slots.is_reserved_slot_free()
        others = self.waiting(reserved=reserved)
        connection = self.slots.acquire(reserved=reserved)
        if not reserved:
            assert has_free_slot == (connection is not None)
        if connection is not None:
            # Never before a caller that waits for the same.
            assert not others
            self.callers.append(Caller(reserved=reserved, connection=connection))
            return
        assert not (reserved and has_reserved_slot)
        self.callers.append(Caller(reserved=reserved, waiter=self.slots.enqueue(self.loop, reserved=reserved)))

    @precondition(lambda self: any(c.waiter is not None and c.is_served() for c in self.callers))
    @rule(data=st.data())
    def a_waiter_resumes(self, data):
        served = [caller for caller in self.callers if caller.waiter is not None and caller.is_served()]
        caller = data.draw(st.sampled_from(served))
        caller.connection, caller.waiter = caller.waiter.result(), None

    @precondition(lambda self: any(c.waiter is not None and not c.waiter.cancelled() for c in self.callers))
    @rule(data=st.data())
    def a_caller_is_cancelled(self, data):
        callers = [caller for caller in self.callers if caller.waiter is not None and not caller.waiter.cancelled()]
        caller = data.draw(st.sampled_from(callers))
        # Has no effect on a served caller, which learns of its cancellation when it resumes.
        caller.waiter.cancel()
        caller.has_left = True

    @precondition(lambda self: any(caller.has_left for caller in self.callers))
    @rule(data=st.data())
    def a_cancelled_caller_leaves(self, data):
        self.leave(data.draw(st.sampled_from([caller for caller in self.callers if caller.has_left])))

    def leave(self, caller):
        if caller.waiter is None:
            # The caller had resumed before.
            self.release(caller, is_connected=True)
            return
        connection = self.slots.leave(caller.waiter)
        assert caller.is_served() == (connection is not None)
        assert caller.waiter not in (*self.slots.waiters, *self.slots.reserved_waiters)
        self.callers.remove(caller)
        if connection is not None:
            self.give_back(connection, is_connected=True)

    @precondition(lambda self: self.having())
    @rule(data=st.data(), is_connected=st.booleans(), is_altered=st.booleans(), is_reconnected=st.booleans())
    def a_caller_releases(self, data, is_connected, is_altered, is_reconnected):
        caller = data.draw(st.sampled_from(self.having()))
        if is_altered:
            self.slots.discard_on_release(caller.connection)
        if is_reconnected:
            self.slots.mark_reconnected(caller.connection)
        assert [is_altered, is_reconnected] == [
            self.slots.will_discard(caller.connection),
            self.slots.was_reconnected(caller.connection),
        ]
        self.release(caller, is_connected=is_connected)

    def release(self, caller, *, is_connected):
        connection = caller.connection
        self.callers.remove(caller)
        self.give_back(connection, is_connected=is_connected)
        assert not self.slots.will_discard(connection)
        assert not self.slots.was_reconnected(connection)
        if connection in self.slots.idle:
            assert connection == self.slots.idle[-1 if is_connected else 0]

    def give_back(self, connection, *, is_connected):
        for_the_reserved_slot = self.waiting(reserved=True)
        self.slots.release(connection, is_connected=is_connected)
        # Before all others.
        assert all(caller.is_served() for caller in for_the_reserved_slot[:1])

    @precondition(lambda self: self.slots.waiter_count() > 1 and self.slots.max_connections < MOST)
    @rule()
    def the_pool_grows(self):
        self.slots.resize(self.slots.max_connections + 1)

    @precondition(lambda self: len(self.callers) > MOST)
    @rule()
    def the_pool_is_reset(self):
        before = self.slots.idle, self.slots.acquired
        waiting = [caller for caller in self.callers if caller.is_waiting()]
        errors = []

        def closed_error():
            errors.append(PoolClosedError("closed"))
            return errors[-1]

        connections = self.slots.reset(closed_error)

        assert sorted(connections) == sorted([*before[0], *before[1]])
        assert [caller.waiter.exception() for caller in waiting if caller.reserved] == errors[
            : sum(caller.reserved for caller in waiting)
        ]
        assert {id(caller.waiter.exception()) for caller in waiting} == set(map(id, errors))
        assert len(errors) == len(waiting)
        for caller in self.callers:
            if caller.waiter is not None and not caller.is_served():
                assert self.slots.leave(caller.waiter) is None
            elif caller.waiter is not None:
                # The caller's connection is the old pool's.
                assert caller.waiter.result() not in self.slots.acquired
        self.callers = []
        if self.has_reservation:
            self.slots.reserve_slot()
        assert [[], set()] == [self.slots.idle, self.slots.acquired]

    @invariant()
    def no_slot_is_given_twice(self):
        held = [caller.connection or caller.waiter.result() for caller in self.callers if self.has_slot(caller)]
        assert len(held) == len(set(held))
        assert set(held) == self.slots.acquired
        assert not self.slots.acquired & set(self.slots.idle)
        assert len(self.slots.acquired) + len(self.slots.idle) <= self.slots.max_connections

    def has_slot(self, caller):
        return caller.connection is not None or caller.is_served()

    @invariant()
    def no_caller_waits_while_there_is_a_slot_for_it(self):
        assert self.free() >= 0
        assert self.slots.has_free_slot() == (self.free() > 0)
        if self.waiting(reserved=False):
            assert self.free() == 0
        if self.waiting(reserved=True):
            assert len(self.slots.acquired) == self.slots.max_connections

    @invariant()
    def callers_are_served_in_the_order_in_which_they_came(self):
        for reserved in (True, False):
            waiters = [caller for caller in self.callers if caller.reserved == reserved and caller.waiter is not None]
            waiters = [caller.waiter for caller in waiters if not caller.waiter.cancelled()]
            is_served = [waiter.done() for waiter in waiters]
            assert sorted(is_served, reverse=True) == is_served
            queue = self.slots.reserved_waiters if reserved else self.slots.waiters
            assert [waiter for waiter in waiters if not waiter.done()] == [each for each in queue if not each.done()]
        waiting = [caller for caller in self.callers if caller.is_waiting()]
        assert len(waiting) == self.slots.waiter_count()


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=50)
test_slots_are_assigned_fairly_in_any_order_of_events = AnyOrder.TestCase


def test_reset_ignores_waiters_of_a_closed_event_loop():
    loop = asyncio.new_event_loop()
    slots = Slots(1, object)
    slots.acquire()
    waiter = slots.enqueue(loop)
    loop.close()
    slots.reset(lambda: PoolClosedError("closed"))

    assert not waiter.done()
    assert slots.leave(waiter) is None
