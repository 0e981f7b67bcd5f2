"""Decoding replies as redis-py's connections do, but for one caller at a time."""

from typing import Any

_LIKE_ASCII = frozenset({"ascii", "latin-1", "latin1", "utf-8", "utf8"})


def decoded(reply: Any, encoding: str, errors: str) -> Any:
    """The reply with all bytes in it decoded, however deep.

    Raises:
        UnicodeDecodeError: Some of them are not in this encoding.
    """
    if isinstance(reply, bytes):
        return reply.decode(encoding, errors)
    if isinstance(reply, list):
        return [decoded(item, encoding, errors) for item in reply]
    if isinstance(reply, dict):
        return {decoded(key, encoding, errors): decoded(value, encoding, errors) for key, value in reply.items()}
    return reply


def surely_decodes(reply: Any, encoding: str) -> bool:
    """Whether the reply can be decoded, as far as that is told without doing it."""
    if isinstance(reply, bytes):
        return reply.isascii() and encoding.lower() in _LIKE_ASCII
    return reply is None or isinstance(reply, int | float)
