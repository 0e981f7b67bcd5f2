"""Decoding replies as redis-py's connections do, but for one caller at a time."""

from typing import Any


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
