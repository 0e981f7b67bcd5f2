"""What the queue commands print of an age, a text and a table."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored.cli.queue_report import age_text, count_text, error_text, json_text, printable, table_lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (0.99, "0 s"),
        (59.99, "59 s"),
        (60, "1 min"),
        (252, "4 min 12 s"),
        (3600, "1 h"),
        (3605, "1 h 5 s"),
        (7384, "2 h 3 min"),
        (86400 * 3 + 4 * 3600 + 60, "3 d 4 h"),
    ],
)
def test_age_is_given_in_two_units(seconds, text):
    assert text == age_text(seconds)


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text):
    assert printable(text).isprintable()


@given(st.binary())
def test_printable_bytes_have_nothing_that_a_terminal_obeys(data):
    assert printable(data.decode(errors="backslashreplace")).isprintable()


@given(st.text() | st.text("\x00\x1b\x7f\x9b\u202e"))
def test_json_has_nothing_that_a_terminal_obeys_and_means_the_same(text):
    shown = json_text({"payload": text})

    assert shown.isascii()
    assert shown.isprintable()
    assert {"payload": text} == json.loads(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\xfcber \u2192 \u6f22", "\xfcber \u2192 \u6f22"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("two\r\nlines\ttab", "two\\r\\nlines\\ttab"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable_text_shows_what_it_escapes(text, shown):
    assert shown == printable(text)


def test_table_is_aligned_but_for_what_ends_a_line():
    assert ["A    B", "xx   long text", "yyy  "] == table_lines(["A", "B"], [["xx", "long text"], ["yyy", ""]])


def test_number_of_things_has_the_right_plural():
    assert ["0 messages", "1 message", "2 messages"] == [count_text(count, "message") for count in range(3)]


@pytest.mark.parametrize(
    ("error", "text"), [(OSError("one\ntwo\x1b"), "one\ntwo\\x1b"), (TimeoutError(), "TimeoutError")]
)
def test_error_has_its_lines_or_else_its_name(error, text):
    assert text == error_text(error)
