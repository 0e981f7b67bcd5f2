"""The envelope of a message that carries a trace context: a header before the payload, for bytes and for text."""

import json
from collections.abc import Mapping
from typing import Any, AnyStr

# ASCII's own characters for the start of a heading and the start of the text. JSON escapes both, so that the header
# cannot hold its end; no text, JSON, XML, pickle, gzip or image begins like this.
_START = "\x01aioredis_monitored/1"
_END = "\x02"


def seal(payload: bytes | bytearray | memoryview, carrier: Mapping[str, str]) -> bytes:
    """Put a payload, encoded as it would be sent without an envelope, into one.

    Args:
        payload: What ``unseal`` gives back, unchanged; it may be an envelope itself.
        carrier: What a propagator has injected.

    Raises:
        TypeError: The carrier holds something else than text; ``unseal`` would take that for a payload.
    """
    if not _is_carrier(carrier):
        raise TypeError("a carrier maps text to text")
    header = json.dumps(dict(carrier), separators=(",", ":"))
    return b"".join(((_START + header + _END).encode("ascii"), bytes(payload)))


def unseal(data: AnyStr) -> tuple[AnyStr, dict[str, str] | None]:
    """Take the outermost envelope off: the payload, and the carrier or ``None`` if there was no envelope.

    What merely looks like one is a payload. It never raises.

    Args:
        data: A message, as it was sent or as a connection has decoded it.
    """
    if isinstance(data, str):
        return _unsealed(data, _START, _END)
    return _unsealed(data, _START.encode("ascii"), _END.encode("ascii"))


def _unsealed(data: AnyStr, start: AnyStr, end: AnyStr) -> tuple[AnyStr, dict[str, str] | None]:
    if not data.startswith(start):
        return data, None
    header, has_ended, payload = data[len(start) :].partition(end)
    carrier = _read(header) if has_ended else None
    return (data, None) if carrier is None else (payload, carrier)


def _read(header: str | bytes) -> dict[str, str] | None:
    if not header.isascii():
        return None
    try:
        # As text: in bytes, JSON might be of any encoding.
        carrier = json.loads(header if isinstance(header, str) else header.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return carrier if isinstance(carrier, dict) and _is_carrier(carrier) else None


def _is_carrier(carrier: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, str) for name, value in carrier.items())
