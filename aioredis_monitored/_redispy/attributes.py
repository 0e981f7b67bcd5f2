"""RESP3 attributes, which hiredis counts as replies, taken out of what a server sends.

An attribute stands in front of a reply, or of an element of one, and belongs to no call
(https://redis.io/docs/latest/develop/reference/protocol-spec/#attributes). hiredis returns it as a reply of its own, or
counts it as an element: from then on every reply would be another caller's.
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
# Servers send a few dozen bytes.
_MAX_BYTES: Final = 65_536
_INCOMPLETE: Final = object()
# A whole reply, which a reader returns as it is only if no other one has begun.
_TRUE: Final = b"#t\r\n"
# What makes a bar at a line's beginning an attribute's, as far as it has come. Any other is data, which may be full of
# bars, or what no server sends, which the reader refuses.
_LENGTH: Final = rb"(?=-?\d{1,20}\r\n|-?\d{0,20}\r?\Z)"
_FIRST_BAR: Final = re.compile(rb"\|" + _LENGTH)
_NEXT_BAR: Final = re.compile(rb"\n\|" + _LENGTH)


class AttributeFilter:
    """Reads replies without attributes from a hiredis reader.

    The reader itself shows what a ``|`` at a line's beginning is. Fed up to there and asked for replies until there is
    none, it either waits for the rest of a value, whose beginning it keeps; or it has used up all, which makes the next
    byte the type of what follows.

    It stands in for the reader. Where every call counts, the reader may be used directly as long as nothing is
    ``pending`` and what has come cannot hold an attribute: it neither begins with a ``|`` or a line feed nor has a
    ``|`` behind a line's end. Then ``last_byte`` has to be set.

    Args:
        reader: The reader.
        no_reply: What it returns if it needs more bytes.

    Attributes:
        pending: Whether an attribute has come before its reply, or there are bytes that were not given to the reader.
        last_byte: What came last; a line's end at the beginning.
    """

    def __init__(self, reader: hiredis.Reader, no_reply: object) -> None:
        self._reader = reader
        self._no_reply = no_reply
        self._attribute = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._is_inside = False
        # Whether an attribute has come in front of, or in, a reply that was not returned yet.
        self._has_come = False
        self._size = 0
        self._is_line = True
        self._chunk = b""
        # From where on the reader does not have the chunk, and from where on it was not looked at.
        self._fed = self._seen = 0
        self._begins_line = True
        self.pending = False
        self.last_byte = LINE_FEED

    def feed(self, chunk: bytes) -> None:
        """Take what has come, after all replies before it were asked for."""
        if self.pending or chunk[0] in {BAR, LINE_FEED} or b"\r\n|" in chunk:
            self._chunk, self._fed, self._seen = chunk, 0, 0
            self._begins_line = self.last_byte == LINE_FEED
            self.pending = True
        else:
            self._reader.feed(chunk)
        self.last_byte = chunk[-1]

    def has_data(self) -> bool:
        """Whether a reply or an attribute has begun, as far as the reader knows; ``pending`` may outlast its reply."""
        return self._has_part() or self._reader.has_data()

    def _has_part(self) -> bool:
        return self._is_inside or self._has_come or self._fed < len(self._chunk)

    def is_between_replies(self) -> bool:
        """Whether nothing but whole replies has come, all of which were read: then the next one is the next call's.

        A reader does not say whether it waits for elements of an array, so it is given a reply of ours. What has begun
        is lost with that: ask only where no reply is owed, and close the connection then.
        """
        if self.pending and self._has_part():
            return False
        self._reader.feed(_TRUE)
        try:
            return self._reader.gets() is True
        except Exception:  # noqa: BLE001 - each reader has its own
            return False

    def gets(self, *arguments: Any) -> Any:
        """The next reply, as the reader returns it.

        Raises:
            ValueError: It is uncertain where an attribute ends.
            hiredis.ProtocolError: The bytes are none that a server sends.
        """
        if not self.pending:
            return self._reader.gets(*arguments)
        while True:
            if not self._is_inside:
                reply = self._reader.gets(*arguments)
                if reply is not self._no_reply:
                    self._has_come = False
                    return reply
                if self._fed < self._seen and not self._reader.has_data():
                    # It has all up to a bar, and nothing is left of that.
                    self._is_inside, self._seen = True, self._fed
            if self._fed == len(self._chunk):
                self.pending = self._is_inside or self._has_come
                return self._no_reply
            if self._is_inside:
                self._skip()
            else:
                self._feed_to_bar()

    def _feed_to_bar(self) -> None:
        """Give the reader what stands before the next line that begins with a ``|``, and look no further."""
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
        """Skip a line of an attribute, or the part of it that has come."""
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
            self._is_inside, self._has_come, self._size, self._is_line = False, True, 0, True
        self._fed = self._seen = end


class AttributeFreeParser(_AsyncHiredisParser):
    """redis-py's parser without attributes, for the connections that it reads itself."""

    def on_connect(self, connection: AbstractConnection) -> None:
        """Begin to read a connection."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._reader: Any = AttributeFilter(self._reader, NOT_ENOUGH_DATA)

    def is_between_replies(self) -> bool:
        """Whether the next reply is the next call's; see ``AttributeFilter``."""
        return bool(self._reader.is_between_replies())


def is_between_replies(connection: AbstractConnection) -> bool:
    """Whether the next reply on a connection that owes none is the next call's, as far as its parser says.

    One for which it is not must be closed; see ``AttributeFilter``.
    """
    parser = parser_of(connection)
    return not isinstance(parser, AttributeFreeParser) or parser.is_between_replies()
