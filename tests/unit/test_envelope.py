"""The envelope returns what was put into it, and takes nothing else for an envelope."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored.envelope import seal, unseal

CARRIERS = st.dictionaries(st.text(), st.text())
START = seal(b"", {}).partition(b"{}")[0]


@given(st.binary(), CARRIERS)
def test_envelope_round_trips_payload_and_carrier(payload, carrier):
    assert (payload, carrier) == unseal(seal(payload, carrier))


@given(st.text(), CARRIERS, st.sampled_from(["utf-8", "latin-1", "ascii"]), st.sampled_from(["ignore", "replace"]))
def test_envelope_round_trips_after_decoding_to_text(payload, carrier, encoding, errors):
    sent = payload.encode(encoding, errors)

    assert (sent.decode(encoding), carrier) == unseal(seal(sent, carrier).decode(encoding))


@given(st.binary())
def test_unseal_returns_bytes_without_envelope_unchanged(data):
    assert (data, None) == unseal(data)


@given(st.text())
def test_unseal_returns_text_without_envelope_unchanged(data):
    assert (data, None) == unseal(data)


@given(st.binary())
def test_unseal_never_raises_on_bytes_that_start_like_an_envelope(data):
    payload, carrier = unseal(START + data)

    assert (START + data, None) == (payload, carrier) or data.endswith(payload)


@given(st.binary(), CARRIERS, CARRIERS)
def test_unseal_removes_only_the_outermost_envelope(payload, inner, outer):
    sealed = seal(payload, inner)

    assert (sealed, outer) == unseal(seal(sealed, outer))


@given(st.binary(), st.dictionaries(st.text(), st.text(), min_size=1), st.data())
def test_unseal_returns_truncated_header_as_payload(payload, carrier, data):
    sealed = seal(b"", carrier)
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]

    assert (cut, None) == unseal(cut)
    assert (cut.decode(), None) == unseal(cut.decode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_unseal_returns_json_that_is_no_carrier_as_payload(value):
    looks_like_it = START + json.dumps(value).encode() + b"\x02payload"
    is_carrier = isinstance(value, dict) and all(isinstance(each, str) for each in value.values())

    assert ((b"payload", value) if is_carrier else (looks_like_it, None)) == unseal(looks_like_it)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"number": 1}',
        b'{"list": []}',
        b"[]",
        b'"text"',
        b"NaN",
        b"1" * 5_000,
        b'{"a": "\xff"}',
        '{"ä": ""}'.encode(),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-8-sig"),
    ],
)
def test_unseal_returns_malformed_envelope_as_payload(header):
    data = START + header + b"\x02payload"

    assert (data, None) == unseal(data)
    assert (data.decode("latin-1"), None) == unseal(data.decode("latin-1"))


@pytest.mark.parametrize(
    "payload", [bytearray(b"payload"), memoryview(b"payload"), memoryview(b"-p-a-y-l-o-a-d")[1::2]]
)
def test_seal_accepts_any_bytes_like_payload(payload):
    assert (b"payload", {"a": "b"}) == unseal(seal(payload, {"a": "b"}))


@pytest.mark.parametrize("carrier", [{"a": 1}, {1: "a"}, {"a": None}])
def test_seal_raises_on_carrier_that_is_not_text_to_text(carrier):
    with pytest.raises(TypeError, match="text to text"):
        seal(b"", carrier)


def test_envelope_header_of_a_trace_context_is_under_100_bytes():
    carrier = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}

    assert 100 > len(seal(b"", carrier))
