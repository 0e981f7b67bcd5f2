"""Which sentinels are known, and where each is reached, by what names are resolved to and sentinels answer."""

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError

from aioredis_monitored._topology.known_sentinels import KnownSentinels, Sentinel
from aioredis_monitored._topology.sentinel import Answer

GIVEN, OTHER = ("sentinels.example", 26379), ("other.example", 26379)
ONE, TWO, THREE = ("10.0.0.1", 26379), ("10.0.0.2", 26379), ("10.0.0.3", 26379)


def answer(sentinel, **others):
    return Answer(sentinel, None, 0, others)


def known_at(*addresses):
    """Return what is known when the given name has these addresses."""
    known = KnownSentinels([GIVEN], lambda *address: address)
    known.on_resolved(GIVEN, addresses)
    return known


def learn(known, place, answer, *, keeps_identity=False):
    known.learn(place, answer, keeps_identity=keeps_identity)


def addresses(known):
    return [each.address for each in known.sentinels]


# Names.


def test_each_given_name_without_an_address_counts_as_a_sentinel():
    known = KnownSentinels([GIVEN, OTHER, GIVEN], lambda *address: address)

    assert 2 == known.count()
    assert [] == known.sentinels == known.problems()
    assert known.may_have_moved(GIVEN)


def test_problems_name_what_is_being_resolved_cannot_be_and_does_not_answer():
    known = KnownSentinels([GIVEN, OTHER], lambda *address: address)
    known.on_resolving(GIVEN)
    known.on_resolving(OTHER)
    known.on_unresolved(OTHER, "no such name")
    # As long as it is resolved again, why it could not be is said.
    known.on_resolving(OTHER)
    assert ["sentinels.example:26379: its name is being resolved", "other.example:26379: no such name"] == (
        known.problems()
    )

    known.on_resolved(GIVEN, [("::1", 26379)])
    known.on_resolved(OTHER, [TWO])
    known.sentinels[0].on_failure(OSError())
    known.on_resolving(GIVEN)
    assert ["[::1]:26379: OSError"] == known.problems()


def test_name_may_have_moved_if_one_of_its_addresses_does_not_answer():
    known = known_at(ONE, TWO)
    assert not known.may_have_moved(GIVEN)
    known.sentinels[1].on_failure(OSError("refused"))
    assert known.may_have_moved(GIVEN)
    known.sentinels[1].on_answer()
    assert not known.may_have_moved(GIVEN)


def test_former_addresses_of_a_name_are_forgotten():
    known = known_at(ONE, TWO)
    kept = known.sentinels[1]
    known.on_resolved(GIVEN, [TWO, THREE])

    assert [TWO, THREE] == addresses(known)
    assert kept is known.sentinels[0]


def test_address_that_is_announced_first_and_given_later_is_known_once():
    known = known_at(ONE)
    learn(known, known.sentinels[0], answer("a", b=TWO))
    known.on_resolved(GIVEN, [ONE, TWO])

    assert [ONE, TWO] == addresses(known)
    assert [GIVEN, GIVEN] == [each.given_as for each in known.sentinels]


# What sentinels answer.


def test_sentinel_makes_others_known_at_the_addresses_that_it_announces():
    known = KnownSentinels([GIVEN], lambda host, port: ("127.0.0.1", port + int(host[-1])))
    known.on_resolved(GIVEN, [ONE])
    for _ in range(2):
        learn(known, known.sentinels[0], answer("a", b=TWO, c=THREE))

    assert [ONE, ("127.0.0.1", 26381), ("127.0.0.1", 26382)] == addresses(known)
    assert ["a", "b", "c"] == [each.identity for each in known.sentinels]
    assert [False, True, True] == [each.is_announced for each in known.sentinels]
    assert 3 == known.count()


def test_given_address_stands_for_the_sentinel_that_was_reached_last_unless_another_one_is_followed_there():
    known = known_at(ONE)
    [place] = known.sentinels
    learn(known, place, answer("a"))
    learn(known, place, answer("b"))
    assert "b" == place.identity
    learn(known, place, answer("c"), keeps_identity=True)
    assert "b" == place.identity


def test_announced_address_stands_for_the_sentinel_that_is_announced_there():
    known = known_at(ONE)
    learn(known, known.sentinels[0], answer("a", b=TWO))
    learn(known, known.sentinels[1], answer("c"))

    assert ["a", "b"] == [each.identity for each in known.sentinels]


def test_given_address_that_others_announce_gets_the_identity_of_its_sentinel():
    known = known_at(ONE, TWO)
    first, second = known.sentinels
    # A sentinel before 6.2 does not say who it is.
    learn(known, second, answer(second.identity_in(ValueError("unknown subcommand"))))
    assert second.unknown_identity == second.identity
    learn(known, first, answer("a", b=TWO))

    assert ["a", "b"] == [each.identity for each in known.sentinels]
    assert [False, True] == [each.is_announced for each in known.sentinels]


def test_sentinel_that_is_known_at_two_addresses_counts_once():
    known = known_at(ONE, TWO)
    learn(known, known.sentinels[0], answer("a", b=THREE))
    assert 2 == known.count()
    learn(known, known.sentinels[1], answer("b"))

    assert [ONE, TWO, THREE] == addresses(known)
    assert 2 == known.count()


@pytest.mark.parametrize(("reply", "identity"), [("b", "b"), (None, "a"), (ValueError("no such command"), "a")])
def test_identity_is_what_the_sentinel_says_or_else_what_is_announced(reply, identity):
    assert identity == Sentinel(*ONE, identity="a").identity_in(reply)


def test_address_that_no_sentinel_announces_any_more_is_forgotten():
    known = known_at(ONE)
    [given] = known.sentinels
    learn(known, given, answer("a", b=TWO, c=THREE))
    moved = answer("a", b=("10.0.0.9", 26379))
    learn(known, given, moved)
    known.forget_unlisted([moved])

    assert [ONE, ("10.0.0.9", 26379)] == addresses(known)


def test_given_address_that_no_sentinel_announces_any_more_is_kept_as_one_that_is_not_announced():
    known = known_at(ONE, TWO)
    first, second = known.sentinels
    learn(known, first, answer("a", b=TWO))
    known.forget_unlisted([answer("a", b=TWO)])
    assert second.is_announced
    known.forget_unlisted([answer("a")])

    assert [first, second] == known.sentinels
    assert not second.is_announced


def test_sentinel_that_has_answered_alone_stays_where_it_was_announced():
    known = known_at(ONE)
    learn(known, known.sentinels[0], answer("a", b=TWO))
    known.forget_unlisted([answer("b")])

    assert [ONE, TWO] == addresses(known)


# Where a sentinel may be reached.


def test_sentinel_that_does_not_answer_may_be_reached_behind_a_given_address_that_is_not_announced():
    known = known_at(ONE)
    [given] = known.sentinels
    learn(known, given, answer("a", b=TWO))
    announced = known.sentinels[1]
    assert known.shared_place(announced) is None
    announced.on_failure(OSError("refused"))
    assert given is known.shared_place(announced)
    # One that others announce is that of one sentinel.
    learn(known, announced, answer("b", a=ONE))
    assert known.shared_place(announced) is None


def test_given_address_that_does_not_answer_is_not_replaced_by_another_one():
    known = known_at(ONE, TWO)
    for each, identity in zip(known.sentinels, "ab", strict=True):
        learn(known, each, answer(identity))
        each.on_failure(OSError("refused"))

    assert known.shared_place(known.sentinels[0]) is None


@pytest.mark.parametrize(
    ("error", "refuses", "is_refusal"),
    [
        (AuthenticationError("WRONGPASS"), True, True),
        (NoPermissionError("NOPERM"), False, True),
        (OSError("refused"), False, False),
    ],
)
def test_refused_credentials_and_rights_are_told_from_other_problems(error, refuses, is_refusal):
    sentinel = Sentinel(*ONE)
    sentinel.on_failure(error)
    assert (str(error), refuses) == (sentinel.problem, sentinel.refuses_credentials)
    assert is_refusal == (sentinel.refusal is error)
    sentinel.on_answer()
    assert ("", None, False) == (sentinel.problem, sentinel.refusal, sentinel.refuses_credentials)
