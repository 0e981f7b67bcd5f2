"""When and where to connect next to follow a sentinel, with a clock and pauses that the tests set."""

import pytest

from aioredis_monitored._topology.follow_schedule import REFUSED_SECONDS, FollowSchedule
from aioredis_monitored._topology.known_sentinels import Sentinel

OWN, SHARED = Sentinel("10.0.0.1", 26379), Sentinel("10.0.0.2", 26379)
# What the backoffs of the schedule return, at least.
FAILED, MISSED = 100.0, 200.0


@pytest.fixture
def schedule():
    return FollowSchedule(backoff=lambda failures: FAILED + failures, miss_backoff=lambda misses: MISSED + misses)


def test_first_connection_is_made_at_once_to_its_own_address(schedule):
    assert 0.0 == schedule.pause
    assert OWN is schedule.choose(OWN, SHARED, 0.0)


def test_pause_grows_with_each_failure_until_the_sentinel_is_followed(schedule):
    pauses = []
    for _ in range(3):
        schedule.on_failure()
        pauses.append(schedule.pause)
    assert [FAILED + 1, FAILED + 2, FAILED + 3] == pauses
    schedule.on_followed()
    assert (0, FAILED) == (schedule.failures, schedule.pause)
    schedule.on_failure()
    assert (1, FAILED + 1) == (schedule.failures, schedule.pause)


def test_refused_credentials_are_sent_again_much_later(schedule):
    schedule.on_failure(is_refused=True)
    assert REFUSED_SECONDS == schedule.pause
    schedule.on_failure()
    assert FAILED + 2 == schedule.pause


def test_sentinel_that_is_followed_elsewhere_is_connected_to_as_soon_as_it_is_not(schedule):
    schedule.on_failure()
    schedule.on_followed_elsewhere()
    assert 0.0 == schedule.pause


def test_shared_address_is_tried_after_a_failure_if_there_is_one(schedule):
    schedule.on_failure()
    assert OWN is schedule.choose(OWN, None, 0.0)
    assert SHARED is schedule.choose(OWN, SHARED, 0.0)


def test_shared_address_is_tried_again_after_a_pause_and_its_own_meanwhile(schedule):
    schedule.on_failure()
    assert SHARED is schedule.choose(OWN, SHARED, 1000.0)
    assert OWN is schedule.choose(OWN, SHARED, 1000.0 + MISSED - 1)
    assert SHARED is schedule.choose(OWN, SHARED, 1000.0 + MISSED)


def test_pauses_of_a_shared_address_grow_after_each_four_connections_until_the_sentinel_is_followed():
    counts = []
    schedule = FollowSchedule(backoff=lambda _: FAILED, miss_backoff=lambda count: counts.append(count) or 0.0)
    schedule.on_failure()
    for _ in range(9):
        assert SHARED is schedule.choose(OWN, SHARED, 0.0)
    assert [0, 0, 0, 1, 1, 1, 1, 2, 2] == counts
    schedule.on_followed()
    schedule.on_failure()
    schedule.choose(OWN, SHARED, 0.0)
    assert 0 == counts[-1]


def test_pauses_of_its_own_address_grow_after_each_four_connections_that_reach_another_sentinel(schedule):
    pauses = []
    for _ in range(9):
        schedule.choose(OWN, None, 0.0)
        schedule.on_other()
        pauses.append(schedule.pause)
    assert [MISSED + count for count in (0, 0, 0, 1, 1, 1, 1, 2, 2)] == pauses
    assert 0 == schedule.failures


def test_another_sentinel_at_a_shared_address_delays_its_own_address_no_further(schedule):
    schedule.on_failure()
    for now in range(9):
        assert SHARED is schedule.choose(OWN, SHARED, 1000.0 * now)
        schedule.on_other()
        assert MISSED == schedule.pause
