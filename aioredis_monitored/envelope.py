"""Envelopes of messages that carry a trace context: a header before the payload, for bytes and for text."""

import json
from collections.abc import Mapping
from typing import Any, AnyStr

# ASCII's control characters for the start of a heading and the start of a text. JSON escapes both, so a header cannot
# contain its end; no text, JSON, XML, pickle, gzip or image begins like this.
_START = "\x01aioredis_monitored/1"
_END = "\x02"


def seal(payload: bytes | bytearray | memoryview, carrier: Mapping[str, str]) -> bytes:
    """Put a payload into an envelope.

    Args:
        payload: The payload, encoded; ``unseal`` returns it unchanged. It may be an envelope itself.
        carrier: What a propagator has injected.

    Raises:
        TypeError: The carrier contains values that are not text; ``unseal`` would return the envelope as a payload.
    """
    if not _is_carrier(carrier):
        raise TypeError("the carrier must map text to text")
    header = json.dumps(dict(carrier), separators=(",", ":"))
    return b"".join(((_START + header + _END).encode("ascii"), bytes(payload)))


def unseal(data: AnyStr) -> tuple[AnyStr, dict[str, str] | None]:
    """Remove the outermost envelope; never raise.

    Args:
        data: A message, as it was sent or as a connection has decoded it.

    Returns:
        The payload, and the carrier. Without a valid envelope, the message and ``None``.
    """
    if isinstance(data, str):
        return _split(data, _START, _END)
    return _split(data, _START.encode("ascii"), _END.encode("ascii"))


def _split(data: AnyStr, start: AnyStr, end: AnyStr) -> tuple[AnyStr, dict[str, str] | None]:
    if not data.startswith(start):
        return data, None
    header, has_ended, payload = data[len(start) :].partition(end)
    carrier = _read(header) if has_ended else None
    return (data, None) if carrier is None else (payload, carrier)


def _read(header: str | bytes) -> dict[str, str] | None:
    if not header.isascii():
        return None
    try:
        # As text: JSON in bytes may have any encoding.
        carrier = json.loads(header if isinstance(header, str) else header.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return carrier if isinstance(carrier, dict) and _is_carrier(carrier) else None


def _is_carrier(carrier: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, str) for name, value in carrier.items())
