"""The keys of a queue: all in one slot of a cluster, and none of them another queue's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from aioredis_monitored.queue.consumer import QueueKeys

CONSUMERS = ["0" * 32, "0123456789abcdef" * 2]
INNER = [":c", ":n", ":dead", ":sweeper", *(f":p:{consumer}" for consumer in CONSUMERS)]

plain = st.text(st.sampled_from("ab:{}ü\n"), min_size=1, max_size=6) | st.text(min_size=1)
names = st.recursive(
    plain,
    lambda inner: st.one_of(
        inner.map("{{{}}}".format),
        st.builds("{}{}{}".format, inner, st.sampled_from(["", ":"]), st.sampled_from(INNER)),
    ),
    max_leaves=4,
)


def keys_of(name):
    """Return all keys that a queue with that name may have, or ``None`` if the name is invalid."""
    try:
        keys = QueueKeys(name)
    except ValueError:
        return None
    return {keys.queue, keys.consumers, keys.deliveries, keys.dead, keys.sweeper, *map(keys.processing, CONSUMERS)}


@given(names, names)
def test_queue_keys_of_two_queues_never_overlap(one, other):
    keys, others = keys_of(one), keys_of(other)
    if one != other and keys is not None and others is not None:
        assert set() == keys & others


@given(names)
def test_queue_name_raises_when_equal_to_a_key_of_another_queue(name):
    keys = keys_of(name)
    for key in (keys or {name}) - {name}:
        with pytest.raises(ValueError, match="is a key of the queue"):
            QueueKeys(key)


@given(names)
def test_queue_keys_are_distinct_and_in_one_hash_slot(name):
    keys = keys_of(name)
    if keys is not None:
        assert 5 + len(CONSUMERS) == len(keys)
        assert {key_slot(name.encode(errors="surrogatepass"))} == {
            key_slot(key.encode(errors="surrogatepass")) for key in keys
        }


@pytest.mark.parametrize(
    "name",
    ["a", "{a}", "a:dead", "a::dead", "{a}:dead:c", "{a}:", "{a}::", "{a}:p", "{a}:p:1", "{a}:dead ", "{a}b:dead", "c"],
)
def test_queue_name_that_only_resembles_a_key_is_accepted(name):
    assert name == QueueKeys(name).queue
