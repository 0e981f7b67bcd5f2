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


def batch_of(loop, length, size=1):
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


class InFlightMachine(RuleBasedStateMachine):
    """Calls arrive, are written, answered, late, cancelled and lost in any order; a list has the expected outcomes."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.inflight = InFlight(TIMEOUT)
        self.expected_calls, self.all_expected = [], []
        self.now = 0.0
        self.replied = -1.0

    def teardown(self):
        spin(self.loop)
        for expected in self.all_expected:
            assert expected.handed == expected.orphaned
        self.loop.close()

    def written(self):
        return [expected for expected in self.expected_calls if expected.written_at is not None]

    def queue(self, call, length=1, orphaned=None, *, first=False):
        expected = Expected(call, length, [] if orphaned is None else orphaned)
        self.all_expected.append(expected)
        self.expected_calls.insert(0 if first else len(self.expected_calls), expected)
        return expected

    @rule(size=st.integers(0, 2 * inflight.MAX_BYTES), has_orphan=st.booleans())
    def add_command(self, size, has_orphan):
        handed = []
        call = reply_of(self.loop, size, handed.append if has_orphan else None)
        expected = self.queue(call, orphaned=handed)
        assert self.inflight.add(call) == (sum(each.call.size for each in self.expected_calls) < inflight.MAX_BYTES)
        assert expected.call is self.inflight.pending[-1]

    @rule(length=st.integers(1, 4), size=st.integers(0, 100))
    def add_batch(self, length, size):
        call = batch_of(self.loop, length, size)
        self.queue(call, length)
        self.inflight.add(call)

    @precondition(lambda self: not self.written())
    @rule()
    def prepend_health_check(self):
        call = reply_of(self.loop, 0)
        self.queue(call, first=True)
        self.inflight.prepend(call)

    @precondition(lambda self: len(self.written()) < len(self.expected_calls))
    @rule(data=st.data())
    def write_some(self, data):
        unwritten = self.expected_calls[len(self.written()) :]
        count = data.draw(st.integers(1, len(unwritten)))
        for expected in unwritten[:count]:
            expected.written_at = self.now
        self.inflight.write(count, self.now)

    # In eighths of a second, which floats represent exactly.
    @rule(eighths=st.integers(1, 20))
    def advance_clock(self, eighths):
        self.now += eighths / 8

    @precondition(lambda self: self.expected_calls)
    @rule(data=st.data())
    def cancel_caller(self, data):
        expected = data.draw(st.sampled_from(self.expected_calls))
        if expected.call.cancel():
            expected.outcome = ["left"]

    @precondition(lambda self: self.written())
    @rule(data=st.data())
    def receive_replies(self, data):
        missing = sum(expected.length - len(expected.replies) for expected in self.written())
        replies = data.draw(st.lists(st.one_of(REPLIES, st.just(PUSH)), max_size=missing))
        completed = 0
        for reply in (reply for reply in replies if reply is not PUSH):
            head = self.expected_calls[0]
            head.replies.append(reply)
            self.replied = self.now
            if len(head.replies) < head.length:
                continue
            if head.outcome is None:
                head.outcome = [head.replies if isinstance(head.call, BatchFuture) else reply]
            elif head.call.on_orphan:
                head.handed.append(reply)
            del self.expected_calls[0]
            completed += 1

        assert completed == self.inflight.dispatch(parser(*replies), self.now)
        spin(self.loop)

    @rule()
    def expire_overdue(self):
        late = [each for each in self.written() if each.outcome is None and each.due() <= self.now]
        assert [each.call for each in late] == list(self.inflight.overdue(self.now))
        for expected in late:
            expected.outcome = ["late"]
            expected.call.set_result("late")

    @rule()
    def close_connection(self):
        written = [each.call for each in self.written()]
        waiting = [call for call in written if not call.done()]
        errors = []

        def error():
            errors.append(ConnectionError())
            return errors[-1]

        unwritten = self.inflight.fail_written(error)

        assert [each.call for each in self.expected_calls[len(written) :]] == unwritten
        assert [(True, error) for error in errors] == [(c.result().may_have_run, c.result().error) for c in waiting]
        assert len(waiting) == len(set(map(id, errors)))
        for expected in self.expected_calls[: len(written)]:
            expected.outcome = expected.outcome or [expected.call.result()]
        self.expected_calls = []

    @invariant()
    def counters_match_pending_calls(self):
        state = self.inflight
        assert [each.call for each in self.expected_calls] == list(state.pending)
        assert len(self.expected_calls) - len(self.written()) == state.unwritten
        assert sum(each.call.size for each in self.expected_calls) == state.size
        assert sum(each.call.size for each in self.expected_calls[len(self.written()) :]) == state.unwritten_size
        assert (state.size >= inflight.MAX_BYTES) == state.is_full()

    @invariant()
    def outcomes_match_expected_ones(self):
        for expected in self.all_expected:
            if expected.outcome == ["left"]:
                assert expected.call.cancelled()
            elif expected.outcome is not None:
                assert expected.outcome[0] is expected.call.result() or expected.outcome[0] == expected.call.result()

    @invariant()
    def stalls_after_timeout_without_reply(self):
        written = self.written()
        stuck = bool(written) and self.now - max(self.replied, written[0].written_at) >= TIMEOUT
        assert stuck == self.inflight.is_stalled(self.now)
        assert (written[0].written_at if written else math.inf) == self.inflight.oldest_written_at()
        awaited = any(not each.call.done() for each in self.expected_calls)
        assert (
            awaited or (not stuck and any(each.call.on_orphan for each in self.expected_calls))
        ) == self.inflight.has_waiters(self.now)

    @invariant()
    def next_timeout_is_neither_late_nor_early(self):
        check = self.inflight.next_timeout(self.now)
        if not self.written():
            assert check is None
            return
        assert self.now < check <= self.now + TIMEOUT
        ends = [each.due() for each in self.written() if each.outcome is None and each.due() > self.now]
        assert check <= min(ends, default=check)


InFlightMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_inflight_matches_its_model_in_any_order_of_events = InFlightMachine.TestCase


def test_inflight_raises_on_unexpected_reply(loop):
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
def test_inflight_failure_reports_whether_the_call_was_written(loop, is_written):
    owes, call, left = InFlight(TIMEOUT), reply_of(loop), reply_of(loop)
    owes.add(left)
    owes.add(call)
    left.cancel()
    if is_written:
        owes.write(2, 0.0)

    unwritten = owes.fail_written(lambda: ConnectionError("gone"))

    assert ([] if is_written else [left, call]) == unwritten
    assert is_written == (call.done() and isinstance(call.result(), AttemptFailed) and call.result().may_have_run)
    assert (0, 0, 0) == (owes.size, owes.unwritten, len(owes.pending))


def test_inflight_has_no_overdue_calls_without_timeout(loop):
    owes, call = InFlight(None), reply_of(loop)
    owes.add(call)
    owes.write(1, 0.0)

    assert ([], False, None, True) == (
        list(owes.overdue(1e9)),
        owes.is_stalled(1e9),
        owes.next_timeout(1e9),
        owes.has_waiters(1e9),
    )


def test_batch_has_one_timeout_for_all_its_replies(loop):
    owes, run = InFlight(TIMEOUT), batch_of(loop, 3)
    owes.add(run)
    owes.write(1, 0.0)
    for number in range(2):
        owes.dispatch(parser(number), 0.9)

    assert ([], [run]) == (list(owes.overdue(0.9)), list(owes.overdue(1.0)))


REFUSAL = ResponseError("Protocol error: invalid bulk length")


def test_inflight_calls_behind_protocol_error_and_close_count_as_not_executed(loop):
    owes, calls = InFlight(TIMEOUT), [reply_of(loop) for _ in range(3)]
    batch = batch_of(loop, 2)
    for call in (*calls, batch):
        owes.add(call)
    owes.write(4, 0.0)

    owes.dispatch(parser(b"x", REFUSAL), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert (b"x", REFUSAL) == (calls[0].result(), calls[1].result())
    assert [False, False] == [call.result().may_have_run for call in (calls[2], batch)]


def test_batch_with_protocol_error_fails_with_the_servers_error(loop):
    owes, batch, behind = InFlight(TIMEOUT), batch_of(loop, 3), reply_of(loop)
    owes.add(batch)
    owes.add(behind)
    owes.write(2, 0.0)

    owes.dispatch(parser(b"x", REFUSAL), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert (True, REFUSAL) == (batch.result().may_have_run, batch.result().error)
    assert not behind.result().may_have_run


@pytest.mark.parametrize("text", ["invalid bulk length", "invalid multibulk length"])
@pytest.mark.parametrize("is_batch", [False, True])
def test_script_with_oversized_argument_fails_like_any_command(loop, is_batch, text):
    owes, call, behind = InFlight(TIMEOUT), reply_of(loop), reply_of(loop)
    if is_batch:
        call = batch_of(loop, 2)
        call.commands = [("FCALL", "f", 0, "x"), ("ECHO", "x")]
    else:
        call.args = ("EVALSHA", "sha", 0, "x")
    for each in (call, behind):
        owes.add(each)
    owes.write(2, 0.0)

    owes.dispatch(parser(ResponseError(f"Protocol error: {text}")), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert not behind.result().may_have_run
    assert text in str(call.result().error if is_batch else call.result())


@pytest.mark.parametrize("case", ["a reply came behind it", "a script said it", "a batch's script said it"])
def test_inflight_calls_behind_ambiguous_protocol_error_count_as_written(loop, case):
    owes, call, behind = InFlight(TIMEOUT), reply_of(loop), [reply_of(loop), reply_of(loop)]
    replies = [ResponseError("Protocol error: invalid bulk length, says the script")]
    if case == "a script said it":
        call.args = ("EVAL", "return redis.error_reply('ERR Protocol error')", 0)
    elif case == "a batch's script said it":
        call = batch_of(loop, 2)
        call.commands = [("FCALL", "f", 0), ("ECHO", "x")]
    else:
        replies = [REFUSAL, b"x"]
    for each in (call, *behind):
        owes.add(each)
    owes.write(3, 0.0)

    owes.dispatch(parser(*replies), 0.5)
    owes.fail_written(lambda: ConnectionError("gone"))

    assert behind[1].result().may_have_run


def test_inflight_room_is_bounded_in_bytes_and_calls(loop):
    owes = InFlight(TIMEOUT)
    assert owes.add(reply_of(loop, inflight.MAX_BYTES - 1))
    assert not owes.add(reply_of(loop, 1))
    assert owes.is_full()
    owes = InFlight(TIMEOUT)

    room = [owes.add(reply_of(loop, 0)) for _ in range(inflight.MAX_PENDING)]

    assert [True] * (inflight.MAX_PENDING - 1) + [False] == room
    assert owes.is_full()
