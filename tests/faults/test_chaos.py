"""A queue's consumers are killed, disconnected and frozen; and the program that does it detects what goes wrong."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from support import chaos

ASKED = chaos.parsed(["--messages=1000", "--kills=3", "--client-kills=4", "--freezes=2", "--lease=1"])
IN_ORDER = chaos.Figures(
    messages=1000,
    processed=1000,
    lost=0,
    unknown=0,
    duplicates=5,
    kills=3,
    kills_of_holders=1,
    client_kills=4,
    clients_killed=40,
    cuts_told=9,
    freezes=2,
    lease_lost_due=2,
    lease_lost_told=2,
    lease_lost_in_all=3,
    recoveries=3,
    recovery_max=2.5,
    recovery_median=1.0,
    longest_held=2.6,
    crashes=0,
    left=[],
    seconds=20.0,
)


def run(*words):
    """Run the program; return its exit code and figures."""
    command = [sys.executable, chaos.__file__, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300, check=False)  # noqa: S603 - this Python
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(330)
def test_queue_loses_nothing_when_consumers_are_killed_cut_or_frozen():
    faults = {"kills": 10, "client_kills": 10, "freezes": 2}
    words = [f"--{name.replace('_', '-')}={count}" for name, count in faults.items()]
    # Recovery by other means than the lease would take half a minute, the default.
    code, figures = run("--messages=2000", *words, "--lease=2", "--handed-over=20", "--seconds=20", "--patience=60")

    assert ([], 0) == (figures["failures"], code), figures
    assert {"processed": 2000, "lost": 0, "left": [], **faults} == {
        name: figures[name] for name in ("processed", "lost", "left", *faults)
    }


@pytest.mark.slow
def test_chaos_run_reports_messages_lost_by_get():
    words = "--way=get --messages=100 --kills=4 --client-kills=0 --freezes=0 --lease=1 --seconds=3 --patience=3"
    code, figures = run(*words.split())

    # Two kills hit a consumer that waits with a message; the others lose a message by chance.
    assert 2 <= figures["lost"]
    assert (4, 0, 1) == (figures["kills"], figures["kills_of_holders"], code)
    assert f"lost: {figures['lost']} instead of 0" in figures["failures"]


def test_chaos_check_accepts_correct_figures():
    assert [] == chaos.failures(IN_ORDER, ASKED)


@pytest.mark.parametrize(
    ("wrong", "expected_failures"),
    [
        ({"processed": 0, "lost": 1000}, ["processed: 0 instead of 1000", "lost: 1000 instead of 0"]),
        ({"lost": 1}, ["lost: 1 instead of 0"]),
        ({"unknown": 1}, ["unknown: 1 instead of 0"]),
        ({"duplicates": 6}, ["duplicates: 6, more than 5"]),
        ({"kills": 2}, ["kills: 2 instead of 3"]),
        ({"kills_of_holders": 0}, ["kills_of_holders: 0, less than 1"]),
        ({"client_kills": 3}, ["client_kills: 3 instead of 4"]),
        ({"freezes": 1}, ["freezes: 1 instead of 2"]),
        ({"lease_lost_told": 1}, ["lease_lost_told: 1 instead of 2"]),
        ({"lease_lost_due": 1, "lease_lost_told": 1}, ["lease_lost_due: 1, less than 2"]),
        ({"recovery_max": 2.6}, ["recovery_max: 2.6, more than 2.5"]),
        ({"recovery_max": math.inf}, ["recovery_max: inf, more than 2.5"]),
        ({"longest_held": 3.7}, ["longest_held: 3.7, more than 3.6"]),
        ({"crashes": 1}, ["crashes: 1 instead of 0"]),
        ({"left": ["1 dead messages"]}, ["left: ['1 dead messages'] instead of []"]),
    ],
    ids=str,
)
def test_chaos_check_rejects_each_wrong_figure(wrong, expected_failures):
    assert expected_failures == chaos.failures(replace(IN_ORDER, **wrong), ASKED)


def history_of(*events):
    history = chaos.History()
    for event in events:
        history.add(*event)
    return history


def test_chaos_figures_count_repeated_reports_once():
    history = history_of(
        (1.0, "taken", "m", "a", "w1"),
        (1.1, "taken", "m", "a", "w1"),  # its reply was cut off
        (1.2, "done", "m", "a", "w1"),
        (1.3, "done", "m", "a", "w1"),
        (1.4, "taken", "n", "b", "w1"),
        (1.5, "cut", "", "", "w1"),
    )
    figures = chaos.reckon({"m", "n"}, history, chaos.Faults(), 0)

    assert (1, 1, 0, 0, 1) == (
        figures.processed,
        figures.lost,
        figures.unknown,
        figures.duplicates,
        figures.cuts_told,
    )
    assert 1 == chaos.reckon({"m"}, history, chaos.Faults(), 0).unknown


@pytest.fixture
def frozen():
    """Return a consumer that froze at 2 with a message, which another one got at 3.5; the first woke up at 5."""
    history = history_of(
        (1.0, "taken", "m", "a", "w1"),
        (3.5, "taken", "m", "b", "w2"),
        (3.6, "done", "m", "b", "w2"),
        (5.1, "done", "m", "a", "w1"),
    )
    return history, chaos.Orphan(history.deliveries["m"]["a"], since=2.0, thawed=5.0)


def test_chaos_figures_expect_lease_lost_report_of_frozen_consumer(frozen):
    history, orphan = frozen

    def figures():
        figures = chaos.reckon({"m"}, history, chaos.Faults(orphans=[orphan]), 0)
        return figures.duplicates, figures.recovery_max, figures.lease_lost_due, figures.lease_lost_told

    assert (1, 1.5, 1, 0) == figures()
    history.add(5.2, "lease lost", "m", "a", "w1")
    assert (1, 1.5, 1, 1) == figures()


def test_chaos_recovery_ends_when_message_reaches_frozen_consumer():
    history = history_of((1.0, "taken", "m", "a", "w1"), (7.0, "taken", "m", "b", "w2"))
    orphan = chaos.Orphan(history.deliveries["m"]["a"], since=2.0, seen_elsewhere=4.5)

    assert 2.5 == history.recovery(orphan)


@pytest.mark.parametrize(
    ("done", "thawed", "recovery"),
    [
        (None, math.inf, math.inf),  # killed, and the message was not delivered again
        (2.001, math.inf, None),  # killed when the acknowledgement was on its way
        (None, 5.0, math.inf),
        (5.1, 5.0, math.inf),  # frozen, and the message was not delivered again until it woke up
        (2.001, 5.0, None),
    ],
)
def test_chaos_recovery_is_infinite_without_redelivery_unless_done(done, thawed, recovery):
    history = history_of((1.0, "taken", "m", "a", "w1"))
    delivery = history.deliveries["m"]["a"]
    delivery.done = done

    assert recovery == history.recovery(chaos.Orphan(delivery, since=2.0, thawed=thawed))
