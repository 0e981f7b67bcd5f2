"""RESP3 attributes, which hiredis counts as replies, taken out of what a server sends.

An attribute stands in front of a reply, or of an element of one, and belongs to no call
(https://redis.io/docs/latest/develop/reference/protocol-spec/#attributes). hiredis returns it as a reply of its own, or
counts it as an element: from then on every reply would be another caller's.
"""

from collections.abc import Callable
from typing import Final

import hiredis

_BAR: Final = ord("|")
_LINE_FEED: Final = ord("\n")
# Servers send a few dozen bytes.
_MAX_BYTES: Final = 65_536
_INCOMPLETE: Final = object()


class AttributeFilter:
    """Feeds a hiredis reader with all but the attributes, in the chunks in which they come.

    The reader itself shows what a ``|`` at a line's beginning is. Fed up to there, it either waits for the rest of a
    value, whose beginning it keeps; or it has used up all, which makes the next byte the type of what follows.

    Args:
        reader: The reader.
        drain: Takes all replies from the reader that are complete.

    Attributes:
        is_inside: Whether an attribute has begun and is not complete: what follows must be fed here.
    """

    def __init__(self, reader: hiredis.Reader, drain: Callable[[], object]) -> None:
        self._reader = reader
        self._drain = drain
        self._attribute = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._size = 0
        self._is_line = True
        self.is_inside = False

    def feed(self, chunk: bytes, *, is_line: bool) -> None:
        """Feed what has come.

        Args:
            chunk: The bytes.
            is_line: Whether a line begins with them.

        Raises:
            ValueError: It is uncertain where an attribute ends.
            hiredis.ProtocolError: The bytes are none that a server sends.
        """
        fed = at = 0
        while at < len(chunk):
            if self.is_inside:
                fed = at = self._skip(chunk, at)
                continue
            bar = _next_bar(chunk, at, is_line=is_line)
            if bar < 0:
                break
            self._feed(chunk, fed, bar)
            self.is_inside = not self._reader.has_data()
            fed, at = bar, bar if self.is_inside else bar + 1
        self._feed(chunk, fed, len(chunk))

    def _feed(self, chunk: bytes, start: int, end: int) -> None:
        if start < end:
            self._reader.feed(chunk, start, end - start)
            self._drain()

    def _skip(self, chunk: bytes, at: int) -> int:
        """Skip a line of an attribute, or the part of it that has come; return where that ends."""
        if chunk[at] == _BAR and self._is_line and self._size and not self._attribute.has_data():
            raise ValueError("an attribute in an attribute")
        end = chunk.find(b"\n", at) + 1 or len(chunk)
        self._is_line = chunk[end - 1] == _LINE_FEED
        self._size += end - at
        if self._size > _MAX_BYTES:
            message = f"an attribute of more than {_MAX_BYTES} bytes"
            raise ValueError(message)
        self._attribute.feed(chunk, at, end - at)
        if self._attribute.gets() is not _INCOMPLETE:
            self.is_inside, self._size = False, 0
        return end


def _next_bar(chunk: bytes, at: int, *, is_line: bool) -> int:
    """Where the next line that begins with a ``|`` does; -1 if there is none."""
    if at == 0 and is_line and chunk[0] == _BAR:
        return 0
    line_feed = chunk.find(b"\n|", max(0, at - 1))
    return line_feed if line_feed < 0 else line_feed + 1
