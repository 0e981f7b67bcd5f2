"""The calls to which a connection owes replies: any order of events, without I/O, compared with a plain list."""

import asyncio
import math
from collections import deque

import hiredis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from redis.exceptions import ResponseError

from aioredis_monitored._multiplexer import inflight
from aioredis_monitored._multiplexer.futures import AttemptFailed, BatchFuture, CommandFuture
from aioredis_monitored._multiplexer.inflight import NO_REPLY, InFlight

TIMEOUT = 1.0
PUSH = hiredis.PushNotification([b"invalidate", [b"key"]])
REPLIES = st.one_of(
    st.integers(), st.none(), st.binary(max_size=3), st.builds(ValueError), st.just([]), st.just([None])
)


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def reply_of(loop, size=1, orphan=None):
    reply = CommandFuture(loop=loop)
    reply.args, reply.size, reply.observer = ("ECHO", "x"), size, None
    reply.is_queued, reply.queued_at, reply.on_cancel = False, 0.0, None
    if orphan is not None:
        reply.on_orphan = orphan
    return reply


def run_of(loop, length, size=1):
    run = BatchFuture(loop=loop)
    run.commands, run.replies, run.size, run.observer = [("ECHO", "x")] * length, [], size, None
    run.is_queued, run.queued_at, run.on_cancel = False, 0.0, None
    return run


def parser(*replies):
    left = deque([*replies, NO_REPLY])
    return left.popleft


def spin(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


class Expected:
    """The expected outcome of one call."""

    def __init__(self, call, length, orphaned):
        self.call, self.length, self.orphaned = call, length, orphaned
        self.written_at = None
        self.replies = []
        self.handed = []
        self.outcome = None  # what its caller should get, in a list; None while it waits

    def due(self):
        return self.written_at + TIMEOUT


class AnyOrder(RuleBasedStateMachine):
    """Calls arrive, are written, answered, late, cancelled and lost in any order; a list has the expected outcomes."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.inflight = InFlight(TIMEOUT)
        self.owed, self.everyone = [], []
        self.now = 0.0
        self.replied = -1.0

    def teardown(self):
        spin(self.loop)
        for expected in self.everyone:
            assert expected.handed == expected.orphaned
        self.loop.close()

    def written(self):
        return [expected for expected in self.owed if expected.written_at is not None]

    def queue(self, call, length=1, orphaned=None, *, first=False):
        expected = Expected(call, length, [] if orphaned is None else orphaned)
        self.everyone.append(expected)
        self.owed.insert(0 if first else len(self.owed), expected)
        return expected

    @rule(size=st.integers(0, 2 * inflight.MAX_BYTES), has_orphan=st.booleans())
    def a_command_comes(self, size, has_orphan):
        handed = []
        call = reply_of(self.loop, size, handed.append if has_orphan else None)
        expected = self.queue(call, orphaned=handed)
        assert self.inflight.add(call) == (sum(each.call.size for each in self.owed) < inflight.MAX_BYTES)
        assert expected.call is self.inflight.pending[-1]

    @rule(length=st.integers(1, 4), size=st.integers(0, 100))
    def a_run_comes(self, length, size):
        call = run_of(self.loop, length, size)
        self.queue(call, length)
        self.inflight.add(call)

    @precondition(lambda self: not self.written())
    @rule()
    def a_health_check_overtakes(self):
        call = reply_of(self.loop, 0)
        self.queue(call, first=True)
        self.inflight.prepend(call)

    @precondition(lambda self: len(self.written()) < len(self.owed))
    @rule(data=st.data())
    def some_are_written(self, data):
        unwritten = self.owed[len(self.written()) :]
        count = data.draw(st.integers(1, len(unwritten)))
        for expected in unwritten[:count]:
            expected.written_at = self.now
        self.inflight.write(count, self.now)

    # In eighths of a second, which floats represent exactly.
    @rule(eighths=st.integers(1, 20))
    def time_passes(self, eighths):
        self.now += eighths / 8

    @precondition(lambda self: self.owed)
    @rule(data=st.data())
    def a_caller_leaves(self, data):
        expected = data.draw(st.sampled_from(self.owed))
        if expected.call.cancel():
            expected.outcome = ["left"]

    @precondition(lambda self: self.written())
    @rule(data=st.data())
    def replies_come(self, data):
        missing = sum(expected.length - len(expected.replies) for expected in self.written())
        replies = data.draw(st.lists(st.one_of(REPLIES, st.just(PUSH)), max_size=missing))
        completed = 0
        for reply in (reply for reply in replies if reply is not PUSH):
            head = self.owed[0]
            head.replies.append(reply)
            self.replied = self.now
            if len(head.replies) < head.length:
                continue
            if head.outcome is None:
                head.outcome = [head.replies if isinstance(head.call, BatchFuture) else reply]
            elif head.call.on_orphan:
                head.handed.append(reply)
            del self.owed[0]
            completed += 1

        assert completed == self.inflight.dispatch(parser(*replies), self.now)
        spin(self.loop)

    @rule()
    def late_ones_are_given_up(self):
        late = [each for each in self.written() if each.outcome is None and each.due() <= self.now]
        assert [each.call for each in late] == list(self.inflight.overdue(self.now))
        for expected in late:
            expected.outcome = ["late"]
            expected.call.set_result("late")

    @rule()
    def the_connection_ends(self):
        written = [each.call for each in self.written()]
        waiting = [call for call in written if not call.done()]
        errors = []

        def error():
            errors.append(ConnectionError())
            return errors[-1]

        unwritten = self.inflight.fail_written(error)

        assert [each.call for each in self.owed[len(written) :]] == unwritten
        assert [(True, error) for error in errors] == [(c.result().written, c.result().error) for c in waiting]
        assert len(waiting) == len(set(map(id, errors)))
        for expected in self.owed[: len(written)]:
            expected.outcome = expected.outcome or [expected.call.result()]
        self.owed = []

    @invariant()
    def what_is_counted_is_what_is_owed(self):
        state = self.inflight
        assert [each.call for each in self.owed] == list(state.pending)
        assert len(self.owed) - len(self.written()) == state.unwritten
        assert sum(each.call.size for each in self.owed) == state.size
        assert sum(each.call.size for each in self.owed[len(self.written()) :]) == state.unwritten_size
        assert (state.size >= inflight.MAX_BYTES) == state.is_full()

    @invariant()
    def everyone_has_what_they_should(self):
        for expected in self.everyone:
            if expected.outcome == ["left"]:
                assert expected.call.cancelled()
            elif expected.outcome is not None:
                assert expected.outcome[0] is expected.call.result() or expected.outcome[0] == expected.call.result()

    @invariant()
    def it_is_stuck_if_it_owes_replies_and_none_came_for_the_timeout(self):
        written = self.written()
        stuck = bool(written) and self.now - max(self.replied, written[0].written_at) >= TIMEOUT
        assert stuck == self.inflight.is_stalled(self.now)
        assert (written[0].written_at if written else math.inf) == self.inflight.oldest_written_at()
        awaited = any(not each.call.done() for each in self.owed)
        assert (awaited or (not stuck and any(each.call.on_orphan for each in self.owed))) == self.inflight.has_waiters(
            self.now
        )

    @invariant()
    def nobody_is_looked_after_too_late_or_in_vain(self):
        check = self.inflight.next_timeout(self.now)
        if not self.written():
            assert check is None
            return
        assert self.now < check <= self.now + TIMEOUT
        ends = [each.due() for each in self.written() if each.outcome is None and each.due() > self.now]
        assert check <= min(ends, default=check)


AnyOrder.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_replies_go_to_whom_they_belong_whatever_happens = AnyOrder.TestCase


def test_a_reply_that_nobody_is_owed_is_an_error(loop):
    owes = InFlight(TIMEOUT)
    with pytest.raises(LookupError, match="belongs to no call"):
        owes.dispatch(parser(b"x"), 0.0)
    written, unwritten = reply_of(loop), reply_of(loop)
    owes.add(written)
    owes.write(1, 0.0)
    owes.add(unwritten)

    with pytest.raises(LookupError, match="belongs to no call"):
        owes.dispatch(parser(b"mine", b"x"), 0.0)

    assert (b"mine", False) == (written.result(), unwritten.done())


@pytest.mark.parametrize("is_written", [True, False])
def test_a_lost_call_is_told_whether_it_was_written(loop, is_written):
    owes, call, left = InFlight(TIMEOUT), reply_of(loop), reply_of(loop)
    owes.add(left)
    owes.add(call)
    left.cancel()
    if is_written:
        owes.write(2, 0.0)

    unwritten = owes.fail_written(lambda: ConnectionError("gone"))

    assert ([] if is_written else [left, call]) == unwritten
    assert is_written == (call.done() and isinstance(call.result(), AttemptFailed) and call.result().written)
    assert (0, 0, 0) == (owes.size, owes.unwritten, len(owes.pending))


def test_without_a_timeout_nothing_is_late(loop):
    owes, call = InFlight(None), reply_of(loop)
    owes.add(call)
    owes.write(1, 0.0)

    assert ([], False, None, True) == (
        list(owes.overdue(1e9)),
        owes.is_stalled(1e9),
        owes.next_timeout(1e9),
        owes.has_waiters(1e9),
    )


def test_the_replies_to_a_run_have_one_time_for_all(loop):
    owes, run = InFlight(TIMEOUT), run_of(loop, 3)
    owes.add(run)
    owes.write(1, 0.0)
    for number in range(2):
        owes.dispatch(parser(number), 0.9)

    assert ([], [run]) == (list(owes.overdue(0.9)), list(owes.overdue(1.0)))


REFUSAL = ResponseError("Protocol error: invalid bulk length")


def test_what_stands_behind_a_refusal_and_the_end_did_not_run(loop):
    owes, calls = InFlight(TIMEOUT), [reply_of(loop) for _ in range(3)]
    batch = run_of(loop, 2)
    for call in (*calls, batch):
        owes.add(call)
    owes.write(4, 0.0)

    owes.dispatch(parser(b"x", REFUSAL), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert (b"x", REFUSAL) == (calls[0].result(), calls[1].result())
    assert [False, False] == [call.result().written for call in (calls[2], batch)]


def test_a_batch_that_holds_what_was_refused_gets_the_servers_error(loop):
    owes, batch, behind = InFlight(TIMEOUT), run_of(loop, 3), reply_of(loop)
    owes.add(batch)
    owes.add(behind)
    owes.write(2, 0.0)

    owes.dispatch(parser(b"x", REFUSAL), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert (True, REFUSAL) == (batch.result().written, batch.result().error)
    assert not behind.result().written


@pytest.mark.parametrize("text", ["invalid bulk length", "invalid multibulk length"])
@pytest.mark.parametrize("is_batch", [False, True])
def test_a_script_whose_arguments_are_too_long_is_refused_as_any_command(loop, is_batch, text):
    owes, call, behind = InFlight(TIMEOUT), reply_of(loop), reply_of(loop)
    if is_batch:
        call = run_of(loop, 2)
        call.commands = [("FCALL", "f", 0, "x"), ("ECHO", "x")]
    else:
        call.args = ("EVALSHA", "sha", 0, "x")
    for each in (call, behind):
        owes.add(each)
    owes.write(2, 0.0)

    owes.dispatch(parser(ResponseError(f"Protocol error: {text}")), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert not behind.result().written
    assert text in str(call.result().error if is_batch else call.result())


@pytest.mark.parametrize("case", ["a reply came behind it", "a script said it", "a batch's script said it"])
def test_a_refusal_that_may_be_none_says_nothing(loop, case):
    owes, call, behind = InFlight(TIMEOUT), reply_of(loop), [reply_of(loop), reply_of(loop)]
    replies = [ResponseError("Protocol error: invalid bulk length, says the script")]
    if case == "a script said it":
        call.args = ("EVAL", "return redis.error_reply('ERR Protocol error')", 0)
    elif case == "a batch's script said it":
        call = run_of(loop, 2)
        call.commands = [("FCALL", "f", 0), ("ECHO", "x")]
    else:
        replies = [REFUSAL, b"x"]
    for each in (call, *behind):
        owes.add(each)
    owes.write(3, 0.0)

    owes.dispatch(parser(*replies), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert behind[1].result().written


def test_room_is_bounded_in_bytes_and_in_calls(loop):
    owes = InFlight(TIMEOUT)
    assert owes.add(reply_of(loop, inflight.MAX_BYTES - 1))
    assert not owes.add(reply_of(loop, 1))
    assert owes.is_full()
    owes = InFlight(TIMEOUT)

    room = [owes.add(reply_of(loop, 0)) for _ in range(inflight.MAX_PENDING)]

    assert [True] * (inflight.MAX_PENDING - 1) + [False] == room
    assert owes.is_full()
