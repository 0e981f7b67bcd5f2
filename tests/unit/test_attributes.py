"""RESP3 attributes are removed from any stream, in chunks of any size, and nothing else is."""

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioredis_monitored._redispy.attributes import AttributeFilter

NO_REPLY = object()


def encoded(value):  # noqa: PLR0911 - a line for each type
    match value:
        case None:
            return b"_\r\n"
        case bool():
            return b"#t\r\n" if value else b"#f\r\n"
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))
        case Attributed(pairs, bare):
            return b"|%d\r\n" % (len(pairs) // 2) + b"".join(map(encoded, pairs)) + encoded(bare)
        case Status(text):
            return b"+%b\r\n" % text


class Attributed:
    """A value behind an attribute."""

    __match_args__ = ("pairs", "bare")

    def __init__(self, pairs, bare):
        self.pairs, self.bare = [each for pair in pairs for each in pair], bare


class Status:
    """A simple string."""

    __match_args__ = ("text",)

    def __init__(self, text):
        self.text = text


def without_attributes(value):
    match value:
        case list():
            return [without_attributes(each) for each in value]
        case Attributed(_, bare):
            return without_attributes(bare)
        case Status(text):
            return text
    return value


PARTS = [b"\r\n|", b"|", b"|1\r\n", b"$1\r\na\r\n", b"\n|", b"\r", b"\n", b"-1", b"|12"]
TRICKY = st.lists(st.sampled_from(PARTS), max_size=6).map(b"".join)
TEXT = st.sampled_from([b"OK", b"|", b"|1", b"a|"]).map(Status)
BARE = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.binary(max_size=8), TRICKY, TEXT)
PLAIN = st.recursive(BARE, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    BARE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(Attributed, st.lists(st.tuples(TRICKY, PLAIN), min_size=1, max_size=2), inner),
    ),
    max_leaves=6,
)


def parse_chunks(chunks):
    """Return what is read of a stream that arrives in these chunks."""
    attributes = AttributeFilter(hiredis.Reader(notEnoughData=NO_REPLY), NO_REPLY)
    replies = []
    for chunk in chunks:
        attributes.feed(chunk)
        while (reply := attributes.gets()) is not NO_REPLY:
            replies.append(reply)
    return replies, attributes


@settings(max_examples=300)
@given(st.lists(VALUES, max_size=5), st.lists(st.integers(1, 7), min_size=1))
def test_attribute_filter_removes_attributes_at_any_chunk_boundary(values, sizes):
    stream, chunks = b"".join(map(encoded, values)), []
    while stream:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(stream[:size])
        stream = stream[size:]

    replies, attributes = parse_chunks(chunks)

    assert [without_attributes(value) for value in values] == replies
    assert not attributes.has_data()
    assert attributes.is_between_replies()


class CountingReader(hiredis.Reader):
    """A reader that counts its chunks."""

    pieces = 0

    def feed(self, *arguments):
        self.pieces += 1
        return super().feed(*arguments)


@pytest.mark.parametrize("line", [b"\r\n| a | b |", b"\r\n|", b"\n|", b"\n|1|\r"])
def test_attribute_filter_feeds_text_full_of_bars_in_one_piece(line):
    value = line * 5_000
    reader = CountingReader(notEnoughData=NO_REPLY)
    attributes = AttributeFilter(reader, NO_REPLY)

    attributes.feed(encoded(value))

    assert [value, NO_REPLY] == [attributes.gets(), attributes.gets()]
    assert reader.pieces == 1


@pytest.mark.parametrize("length", [b"x", b"", b"01"])
def test_attribute_filter_raises_on_malformed_attribute_length(length):
    with pytest.raises((hiredis.ProtocolError, ValueError)):
        parse_chunks([b"|" + length + b"\r\n$1\r\na\r\n:1\r\n"])


def test_attribute_filter_accepts_consecutive_attributes():
    attribute = b"|1\r\n$3\r\nttl\r\n:3600\r\n"

    replies, _ = parse_chunks([attribute + attribute + b"$1\r\nx\r\n" + attribute + b":1\r\n"])

    assert [b"x", 1] == replies


def test_attribute_filter_raises_on_nested_attribute():
    with pytest.raises(ValueError, match="in an attribute"):
        parse_chunks([b"|1\r\n$1\r\na\r\n|1\r\n$1\r\na\r\n:1\r\n:2\r\n"])


def test_attribute_filter_raises_on_attribute_over_64_kib():
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        parse_chunks([b"|1\r\n$3\r\nttl\r\n$99999\r\n", *[b"x" * 1000] * 99])


@pytest.mark.parametrize("rest", [b"", b":1\r\n", b"|1\r\n"])
@pytest.mark.parametrize("chunks", [[b"$1\r\nx\r", b"\n"], [b"$4\r\na\r\n|\r\n"]], ids=["line feed", "bar"])
def test_has_data_is_true_only_if_bytes_follow_the_reply(chunks, rest):
    attributes = AttributeFilter(hiredis.Reader(notEnoughData=NO_REPLY), NO_REPLY)
    replies = []
    for chunk in [*chunks[:-1], chunks[-1] + rest]:
        attributes.feed(chunk)
        # As redis-py reads: it stops at the first reply, and looks for more before the next call.
        replies.append(attributes.gets())

    assert NO_REPLY is not replies[-1]
    assert bool(rest) == attributes.has_data()


@given(VALUES, st.data())
def test_partial_reply_is_not_between_replies_at_any_cut(value, data):
    stream = encoded(value)
    cut = data.draw(st.integers(1, len(stream) - 1))

    replies, attributes = parse_chunks([stream[:cut]])

    assert [] == replies
    assert not attributes.is_between_replies()
