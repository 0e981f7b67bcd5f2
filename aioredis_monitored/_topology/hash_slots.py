"""The hash slot of a key (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""

from binascii import crc_hqx

SLOTS = 16384


def key_slot(key: object) -> int:
    """Return the slot of a key, between 0 and 16383: the CRC16 of its hash tag, or of the whole key if it has none.

    The hash tag is what stands between the first ``{`` and the first ``}`` after it, unless that is empty.

    The key is encoded as redis-py does, in UTF-8: a cluster's pool has no other ``encoding``. What redis-py refuses to
    send, such as ``None``, has slot 0, so that the caller gets redis-py's error; so has text that only certain
    ``encoding_errors`` can encode, for which the server's MOVED leads to the right node.
    """
    try:
        data = key.encode() if type(key) is str else key if type(key) is bytes else _encoded(key)
    except ValueError:
        return 0
    if b"{" in data:
        start = data.index(b"{") + 1
        end = data.find(b"}", start)
        if end > start:
            data = data[start:end]
    return crc_hqx(data, 0) & 0x3FFF


def _encoded(key: object) -> bytes:
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, (bytes, bytearray, memoryview)):
        return bytes(key)
    return repr(key).encode() if isinstance(key, (int, float)) else b""
