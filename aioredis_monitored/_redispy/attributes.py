"""Removes RESP3 attributes, which hiredis counts as replies, from what a server sends.

An attribute precedes a reply, or an element of one, and belongs to no call
(https://redis.io/docs/latest/develop/reference/protocol-spec/#attributes). hiredis returns it as a reply, or counts it
as an element: after one, each call would get the reply of another.
"""

import re
from typing import Any, Final

import hiredis
from redis._parsers import _AsyncHiredisParser
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio.connection import AbstractConnection

from aioredis_monitored._redispy.sockets import parser_of

BAR: Final = ord("|")
LINE_FEED: Final = ord("\n")
# The size limit of an attribute; servers send a few dozen bytes.
_MAX_BYTES: Final = 65_536
_INCOMPLETE: Final = object()
# A complete reply, which a reader returns unchanged only between replies.
_TRUE: Final = b"#t\r\n"
# What follows the bar of an attribute at the beginning of a line, as far as it has arrived. Any other bar is data, or
# violates the protocol, which the reader reports.
_LENGTH: Final = rb"(?=-?\d{1,20}\r\n|-?\d{0,20}\r?\Z)"
_FIRST_BAR: Final = re.compile(rb"\|" + _LENGTH)
_NEXT_BAR: Final = re.compile(rb"\n\|" + _LENGTH)


class AttributeFilter:
    """Reads replies without attributes from a hiredis reader.

    The reader itself shows what a ``|`` at the beginning of a line is. When it has all bytes up to there and has
    returned all replies, it either holds the beginning of a value and waits for the rest, or holds nothing, so that the
    next byte is the type of the next value.

    It replaces the reader. On the hot path, the reader may be used directly as long as nothing is ``pending`` and the
    chunk cannot contain an attribute: it does not begin with a ``|`` or a line feed, and has no ``|`` after a line's
    end. ``last_byte`` must be set then.

    Args:
        reader: The hiredis reader.
        no_reply: What it returns if it needs more bytes.

    Attributes:
        pending: Whether an attribute was read before its reply, or there are bytes that the reader does not have.
        last_byte: The last byte that has arrived; initially a line feed.
    """

    def __init__(self, reader: hiredis.Reader, no_reply: object) -> None:
        self._reader = reader
        self._no_reply = no_reply
        self._attribute = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._is_inside = False
        # Whether an attribute precedes, or is in, a reply that is not returned yet.
        self._precedes_reply = False
        self._size = 0
        self._is_line = True
        self._chunk = b""
        # The ends of what the reader has of the chunk, and of what was searched for bars.
        self._fed = self._seen = 0
        self._begins_line = True
        self.pending = False
        self.last_byte = LINE_FEED

    def feed(self, chunk: bytes) -> None:
        """Take a chunk, after all replies in the chunks before it were read."""
        if self.pending or chunk[0] in {BAR, LINE_FEED} or b"\r\n|" in chunk:
            self._chunk, self._fed, self._seen = chunk, 0, 0
            self._begins_line = self.last_byte == LINE_FEED
            self.pending = True
        else:
            self._reader.feed(chunk)
        self.last_byte = chunk[-1]

    def has_data(self) -> bool:
        """Whether a part of a reply or of an attribute has arrived, as far as the reader knows.

        ``pending`` may stay true after its reply.
        """
        return self._has_part() or self._reader.has_data()

    def _has_part(self) -> bool:
        return self._is_inside or self._precedes_reply or self._fed < len(self._chunk)

    def is_between_replies(self) -> bool:
        """Whether only complete replies have arrived and all were read, so that the next one is that of the next call.

        A reader does not show whether it waits for the elements of an array, so it is fed a complete reply. That
        corrupts a partial reply: call it only where no reply is owed, and close the connection if it returns false.
        """
        if self.pending and self._has_part():
            return False
        self._reader.feed(_TRUE)
        try:
            return self._reader.gets() is True
        except Exception:  # noqa: BLE001 - the class depends on the reader
            return False

    def gets(self, *arguments: Any) -> Any:
        """Return the next reply, as the reader does.

        Raises:
            ValueError: The end of an attribute is unknown: it contains another one, or is too large.
            hiredis.ProtocolError: The bytes do not follow the protocol.
        """
        if not self.pending:
            return self._reader.gets(*arguments)
        while True:
            if not self._is_inside:
                reply = self._reader.gets(*arguments)
                if reply is not self._no_reply:
                    self._precedes_reply = False
                    return reply
                if self._fed < self._seen and not self._reader.has_data():
                    # It has all bytes before the bar, and has used them up.
                    self._is_inside, self._seen = True, self._fed
            if self._fed == len(self._chunk):
                self.pending = self._is_inside or self._precedes_reply
                return self._no_reply
            if self._is_inside:
                self._skip()
            else:
                self._feed_to_bar()

    def _feed_to_bar(self) -> None:
        """Give the reader the bytes before the next line that begins with a ``|``, and search no further."""
        chunk, start, seen = self._chunk, self._fed, self._seen
        if seen == 0 and self._begins_line and _FIRST_BAR.match(chunk):
            bar = 0
        else:
            found = _NEXT_BAR.search(chunk, max(0, seen - 1))
            bar = len(chunk) if found is None else found.end() - 1
        if start < bar:
            self._reader.feed(chunk, start, bar - start)
        self._fed, self._seen = bar, min(bar + 1, len(chunk))

    def _skip(self) -> None:
        """Skip a line of an attribute, or the part of it that has arrived."""
        chunk, at = self._chunk, self._fed
        if chunk[at] == BAR and self._is_line and self._size and not self._attribute.has_data():
            raise ValueError("an attribute in an attribute")
        end = chunk.find(b"\n", at) + 1 or len(chunk)
        self._is_line = chunk[end - 1] == LINE_FEED
        self._size += end - at
        if self._size > _MAX_BYTES:
            message = f"an attribute of more than {_MAX_BYTES} bytes"
            raise ValueError(message)
        self._attribute.feed(chunk, at, end - at)
        if self._attribute.gets() is not _INCOMPLETE:
            self._is_inside, self._precedes_reply, self._size, self._is_line = False, True, 0, True
        self._fed = self._seen = end


class AttributeFreeParser(_AsyncHiredisParser):
    """redis-py's parser without attributes, for the connections that redis-py reads."""

    def on_connect(self, connection: AbstractConnection) -> None:
        """Prepare for reading from a connection."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]  # redis-py declares no types
        self._reader: Any = AttributeFilter(self._reader, NOT_ENOUGH_DATA)

    def is_between_replies(self) -> bool:
        """As ``AttributeFilter.is_between_replies``."""
        return bool(self._reader.is_between_replies())


def is_between_replies(connection: AbstractConnection) -> bool:
    """Whether the next reply on a connection that is owed none is that of the next call.

    Other parsers than ``AttributeFreeParser`` cannot tell, and count as ready. Close the connection if it returns
    false; see ``AttributeFilter``.
    """
    parser = parser_of(connection)
    return not isinstance(parser, AttributeFreeParser) or parser.is_between_replies()
