"""What events and answers of sentinels amount to, with a clock that the tests set."""

from math import inf

import pytest

from aioredis_monitored._topology.sentinel import (
    BELIEF_SECONDS,
    REPLICA_EVENTS,
    Answer,
    Change,
    Election,
    PrimaryTracker,
    answer_of,
    elect,
)

OLD, NEW, THIRD = ("10.0.0.1", 6379), ("10.0.0.2", 6379), ("10.0.0.3", 6379)
SWITCH = ("+switch-master", "mymaster 10.0.0.1 6379 10.0.0.2 6379")
PROMOTING = ("+failover-state-send-slaveof-noone", "slave 10.0.0.2:6379 10.0.0.2 6379 @ mymaster 10.0.0.1 6379")
PROMOTED = ("+promoted-slave", "slave 10.0.0.2:6379 10.0.0.2 6379 @ mymaster 10.0.0.1 6379")
ABORTED = ("-failover-abort-slave-timeout", "master mymaster 10.0.0.1 6379")
NEW_SENTINEL = ("+sentinel", "sentinel 8f1 10.0.0.9 26379 @ mymaster 10.0.0.1 6379")
MOVED_SENTINEL = ("+sentinel-address-switch", "master mymaster 10.0.0.1 6379 ip 10.0.0.9 port 26379 for 8f1")


def answer(sentinel, primary, epoch=0):
    return Answer(sentinel, primary, epoch, {})


@pytest.fixture
def tracker():
    """Return a tracker whose primary is the old one."""
    tracker = PrimaryTracker("mymaster", hold_seconds=2.0)
    assert Change.NONE is tracker.on_election(Election(OLD, 3, 3, 3), 0.0)
    return tracker


# Elections.


@pytest.mark.parametrize(
    ("answers", "known", "primary", "is_certain", "is_representative"),
    [
        ([], 3, None, False, False),
        ([answer("a", OLD)], 1, OLD, True, True),
        ([answer("a", OLD)], 3, OLD, False, False),
        ([answer("a", OLD), answer("b", OLD)], 3, OLD, True, True),
        ([answer("a", OLD), answer("b", OLD), answer("c", NEW, 9)], 3, OLD, True, True),
        ([answer("a", OLD, 1), answer("b", NEW, 2)], 3, NEW, False, True),
        ([answer("a", NEW, 2), answer("b", OLD, 1)], 2, NEW, False, True),
        ([answer("a", None), answer("b", None), answer("c", NEW)], 3, NEW, False, True),
        ([answer("a", None)], 1, None, False, True),
        # One sentinel under two addresses has one vote.
        ([answer("a", OLD), answer("a", OLD), answer("b", NEW, 1)], 2, NEW, False, True),
    ],
)
def test_election_is_won_by_the_majority_or_else_the_highest_epoch(
    answers, known, primary, is_certain, is_representative
):
    election = elect(answers, known)

    assert primary == election.primary
    assert (is_certain, is_representative) == (election.is_certain, election.is_representative)


def test_answer_is_read_from_the_replies_of_a_sentinel():
    others = [["name", "b", "ip", "10.0.0.8", "port", "26379", "runid", "8f1"], ["name", "without an address"]]
    master = ["name", "mymaster", "config-epoch", "7"]

    expected = Answer("a", OLD, 7, {"8f1": ("10.0.0.8", 26379)})
    assert expected == answer_of("a", ["10.0.0.1", "6379"], master, others)


@pytest.mark.parametrize("reply", [None, [], ["10.0.0.1"], ["", "6379"], ["10.0.0.1", "none"], Exception("ERR")])
def test_answer_without_an_address_names_no_primary(reply):
    assert Answer("a", None, 0, {}) == answer_of("a", reply, Exception("ERR"), Exception("ERR"))


def replica(port, **fields):
    fields = {"ip": "10.0.0.2", "port": str(port), "flags": "slave", "master_link_status": "ok"} | fields
    return [word for name, value in fields.items() for word in (name.replace("_", "-"), value)]


def test_answer_has_the_replicas_that_are_up_and_in_sync():
    listed = [
        replica(1),
        replica(2, flags="s_down,slave"),
        replica(3, flags="slave,o_down"),
        replica(4, flags="slave,disconnected"),
        replica(5, master_link_status="err"),
        replica(6, ip=""),
        ["ip", "10.0.0.2", "port", "7"],
        "nonsense",
    ]

    assert frozenset({("10.0.0.2", 1)}) == answer_of("a", None, None, None, listed).replicas
    assert frozenset() == answer_of("a", None, None, None, Exception("ERR")).replicas


def test_replica_is_in_sync_if_most_sentinels_say_so_that_name_the_primary():
    both, one = frozenset({NEW, THIRD}), frozenset({NEW})

    def in_sync(*answers):
        return elect([Answer(str(number), *each) for number, each in enumerate(answers)], 3).replicas

    assert one == in_sync((OLD, 0, {}, both), (OLD, 0, {}, one))
    assert both == in_sync((OLD, 0, {}, both), (OLD, 0, {}, both), (OLD, 0, {}, frozenset()))
    # Another primary's sentinel does not count, and a primary is no replica.
    assert one == in_sync((OLD, 0, {}, one), (OLD, 0, {}, one), (THIRD, 0, {}, frozenset({OLD})))
    assert frozenset() == in_sync((OLD, 0, {}, frozenset({OLD})))


# Events.


@pytest.mark.parametrize("event", [SWITCH, PROMOTED])
def test_announced_primary_is_switched_to_and_believed_for_a_while(tracker, event):
    assert Change.SWITCH is tracker.on_event(*event, 10.0)

    assert NEW == tracker.primary == tracker.believed(10.0 + BELIEF_SECONDS - 0.1)
    assert tracker.believed(10.0 + BELIEF_SECONDS) is None


def test_sentinels_that_lag_do_not_bring_the_old_primary_back(tracker):
    tracker.on_event(*PROMOTED, 10.0)

    assert Change.NONE is tracker.on_election(Election(OLD, 2, 3, 3), 10.5)
    assert NEW == tracker.primary
    assert Change.SWITCH is tracker.on_election(Election(OLD, 2, 3, 3), 10.0 + BELIEF_SECONDS)
    assert OLD == tracker.primary


def test_switch_announced_by_several_sentinels_is_one(tracker):
    changes = [tracker.on_event(*event, 10.0) for event in (PROMOTED, SWITCH, SWITCH)]

    assert [Change.SWITCH, Change.NONE, Change.NONE] == changes


def test_hold_ends_with_the_promotion(tracker):
    assert Change.HOLD is tracker.on_event(*PROMOTING, 10.0)
    assert 12.0 == tracker.held_until

    assert Change.SWITCH is tracker.on_event(*PROMOTED, 10.4)
    assert -inf == tracker.held_until


@pytest.mark.parametrize("reason", ["slave-timeout", "no-good-slave", "not-elected"])
def test_hold_ends_with_an_abort_and_the_next_failover_holds_again(tracker, reason):
    tracker.on_event(*PROMOTING, 10.0)

    assert Change.RESUME is tracker.on_event(f"-failover-abort-{reason}", ABORTED[1], 10.2)
    assert -inf == tracker.held_until
    assert OLD == tracker.primary
    assert Change.HOLD is tracker.on_event(*PROMOTING, 10.3)


def test_hold_is_not_prolonged_by_a_second_announcement(tracker):
    tracker.on_event(*PROMOTING, 10.0)

    assert Change.NONE is tracker.on_event(*PROMOTING, 11.0)
    assert 12.0 == tracker.held_until


def test_each_failover_that_begins_is_a_generation(tracker):
    before = tracker.generation
    tracker.on_event(*PROMOTING, 10.0)
    tracker.on_event(*PROMOTING, 10.1)

    assert before + 1 == tracker.generation


def test_promotion_that_is_over_holds_nothing(tracker):
    tracker.on_event(*SWITCH, 10.0)

    assert Change.NONE is tracker.on_event(*PROMOTING, 10.1)


def test_election_during_a_hold_switches_to_nothing(tracker):
    tracker.on_event(*PROMOTING, 10.0)

    assert Change.NONE is tracker.on_election(Election(THIRD, 2, 3, 3), 10.1)
    assert OLD == tracker.primary


def test_election_of_the_replica_for_which_calls_are_held_ends_the_hold(tracker):
    tracker.on_event(*PROMOTING, 10.0)

    assert Change.SWITCH is tracker.on_election(Election(NEW, 2, 3, 3), 10.6)
    assert -inf == tracker.held_until


def test_election_without_half_of_the_sentinels_switches_to_nothing(tracker):
    assert Change.NONE is tracker.on_election(Election(NEW, 1, 1, 3), 10.0)
    assert Change.SWITCH is tracker.on_election(Election(NEW, 1, 2, 4), 10.0)


def test_first_primary_that_is_known_replaces_none():
    tracker = PrimaryTracker("mymaster", hold_seconds=2.0)

    assert Change.NONE is tracker.on_event(*SWITCH, 10.0)
    assert NEW == tracker.believed(10.0)


def test_event_about_a_primary_that_is_none_asks_the_sentinels(tracker):
    tracker.on_election(Election(THIRD, 3, 3, 3), 10.0)

    assert [Change.ASK] * 2 == [tracker.on_event(*event, 10.1) for event in (SWITCH, PROMOTED)]
    assert THIRD == tracker.primary
    assert Change.SWITCH is tracker.on_election(Election(NEW, 2, 3, 3), 10.2)


def test_old_event_ends_no_belief(tracker):
    tracker.on_event(*SWITCH, 10.0)
    tracker.on_event("+switch-master", "mymaster 10.0.0.2 6379 10.0.0.3 6379", 11.0)

    # The sentinels that lag would say that it is right.
    assert Change.NONE is tracker.on_event(*SWITCH, 11.1)
    assert THIRD == tracker.believed(11.1)
    assert Change.ASK is tracker.on_event(*SWITCH, 11.0 + BELIEF_SECONDS)


@pytest.mark.parametrize("event", [SWITCH, PROMOTED])
def test_failover_back_is_believed_if_its_beginning_was_announced(tracker, event):
    tracker.on_election(Election(NEW, 3, 3, 3), 10.0)
    tracker.on_election(Election(OLD, 3, 3, 3), 20.0)

    assert Change.ASK is tracker.on_event(*event, 30.0)
    assert Change.HOLD is tracker.on_event(*PROMOTING, 30.1)
    assert Change.SWITCH is tracker.on_event(*event, 30.5)
    assert NEW == tracker.believed(30.5)


def test_failover_back_is_believed_after_the_server_was_a_replica(tracker):
    tracker.on_election(Election(NEW, 3, 3, 3), 10.0)
    tracker.on_election(Election(OLD, 3, 3, 3), 20.0)
    tracker.refute(NEW, 21.0)

    assert Change.SWITCH is tracker.on_event(*SWITCH, 30.0)


@pytest.mark.parametrize("event", [NEW_SENTINEL, MOVED_SENTINEL])
def test_sentinels_are_asked_when_one_is_new_or_has_moved(tracker, event):
    assert Change.ASK is tracker.on_event(*event, 10.0)


@pytest.mark.parametrize("channel", REPLICA_EVENTS)
def test_replicas_are_asked_for_after_an_event_about_one(tracker, channel):
    event = "slave 10.0.0.2:6379 10.0.0.2 6379 @ mymaster 10.0.0.1 6379"

    assert Change.ASK is tracker.on_event(channel, event, 10.0)
    assert Change.NONE is tracker.on_event(channel, event.replace("mymaster", "other"), 10.0)


@pytest.mark.parametrize("event", [SWITCH, PROMOTED, PROMOTING, ABORTED, NEW_SENTINEL, MOVED_SENTINEL])
def test_event_about_another_service_changes_nothing(tracker, event):
    channel, data = event

    assert Change.NONE is tracker.on_event(channel, data.replace("mymaster", "other"), 10.0)
    assert (OLD, -inf) == (tracker.primary, tracker.held_until)


@pytest.mark.parametrize("data", ["", "mymaster", "mymaster 10.0.0.1 6379 10.0.0.2", "mymaster a b c d", "@ @ @ @ @ @"])
@pytest.mark.parametrize("channel", ["+switch-master", "+promoted-slave", "+failover-state-send-slaveof-noone", "+x"])
def test_event_that_cannot_be_read_changes_nothing(tracker, channel, data):
    assert Change.NONE is tracker.on_event(channel, data, 10.0)
    assert (OLD, -inf) == (tracker.primary, tracker.held_until)


# What a server says itself.


def test_announced_primary_that_is_a_replica_is_not_believed_again_soon(tracker):
    tracker.on_event(*SWITCH, 10.0)
    tracker.refute(NEW, 10.1)

    assert tracker.believed(10.1) is None
    assert Change.SWITCH is tracker.on_election(Election(OLD, 2, 3, 3), 10.2)
    assert [Change.NONE] * 3 == [tracker.on_event(*event, 10.3) for event in (SWITCH, PROMOTED, PROMOTING)]
    assert Change.SWITCH is tracker.on_event(*SWITCH, 20.0)


def test_another_server_that_is_a_replica_changes_no_belief(tracker):
    tracker.on_event(*SWITCH, 10.0)
    tracker.refute(OLD, 10.1)

    assert NEW == tracker.believed(10.1)


def test_forgetting_ends_belief_and_hold(tracker):
    tracker.on_event(*SWITCH, 10.0)
    tracker.on_event(*PROMOTING[:1], PROMOTING[1].replace("10.0.0.2", "10.0.0.3"), 10.0)
    tracker.forget()

    assert (None, None, -inf) == (tracker.primary, tracker.believed(10.0), tracker.held_until)
