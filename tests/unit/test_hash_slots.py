"""The slot of a key is the one that redis-py and the cluster specification give it."""

from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import DataError
from redis.asyncio.connection import Encoder
from redis.crc import key_slot as slot_of_redis_py

from aioredis_monitored._topology.hash_slots import SLOTS, key_slot

ENCODER = Encoder("utf-8", "strict", decode_responses=False)
# Braces are frequent enough to form tags, empty ones among them.
BRACED = st.lists(st.sampled_from(["{", "}", "a", "é", "{}", "user:1"]), max_size=8).map("".join)
TEXT = st.one_of(BRACED, st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
KEYS = st.one_of(TEXT, TEXT.map(str.encode), st.binary(max_size=20), st.integers(), st.floats())


class Key(StrEnum):
    TAGGED = "{user}:1"


@given(KEYS)
def test_key_slot_matches_redis_py_for_any_key(key):
    assert slot_of_redis_py(ENCODER.encode(key)) == key_slot(key)


@given(st.one_of(TEXT.map(str.encode), st.binary(max_size=20)))
def test_key_slot_is_the_same_for_every_type_of_bytes(key):
    assert [key_slot(key)] * 2 == [key_slot(bytearray(key)), key_slot(memoryview(key))]


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("{a}b", "a"),
        ("x{a}{b}", "a"),
        ("{{a}}", "{a"),
        ("}{a}", "a"),
        ("{a", "{a"),
        ("a}", "a}"),
        (Key.TAGGED, "user"),
        (b"{\xff}1", b"\xff"),
    ],
)
def test_key_slot_is_that_of_the_hash_tag(key, tag):
    assert key_slot(tag) == key_slot(key)


@pytest.mark.parametrize("key", ["{}a", "a{}{b}"])
def test_empty_hash_tag_does_not_count(key):
    assert slot_of_redis_py(key.encode()) == key_slot(key)
    assert key_slot("b") != key_slot(key)


def test_key_slot_of_the_specification_example():
    # Its appendix gives 0x31C3 as the CRC16 of 123456789.
    assert 0x31C3 % SLOTS == key_slot("123456789")


@pytest.mark.parametrize("key", [None, object(), ["a"], "\ud800", pytest.param(10**5000, id="too long")])
def test_what_redis_py_refuses_to_send_has_slot_0(key):
    with pytest.raises((DataError, ValueError)):
        ENCODER.encode(key)
    assert key_slot(key) == 0
