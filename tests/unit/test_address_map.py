"""Servers that announce one address and are reached at another are found; a map that cannot be meant is refused."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioredis_monitored.config.address_map import AddressMap
from aioredis_monitored.config.schema import OPTIONS


@pytest.mark.parametrize(
    ("text", "announced", "reached"),
    [
        ("10.0.0.1:6379=proxy:7000", ("10.0.0.1", 6379), ("proxy", 7000)),
        (" 10.0.0.1:1 = proxy:7000 ,\n10.0.0.1:2=proxy:7001", ("10.0.0.1", 2), ("proxy", 7001)),
        ("10.0.0.1:6379=proxy:7000", ("10.0.0.1", 6380), ("10.0.0.1", 6380)),
        ("10.0.0.1:6379=proxy:7000", ("10.0.0.2", 6379), ("10.0.0.2", 6379)),
        ("10.0.0.1:*=proxy:*", ("10.0.0.1", 13000), ("proxy", 13000)),
        ("10.0.0.1:*=proxy:*", ("10.0.0.2", 13000), ("10.0.0.2", 13000)),
        ("*:*=name.example:*", ("10.0.0.1", 13000), ("name.example", 13000)),
        ("Node-1.Example:1=Proxy:2", ("node-1.example", 1), ("Proxy", 2)),
        ("node-1.example:1=proxy:2", ("NODE-1.example", 1), ("proxy", 2)),
        ("[fd00::1]:6379=[::1]:7000", ("fd00::1", 6379), ("::1", 7000)),
        ("[fd00:0::1]:*=proxy:*", ("FD00:0:0::1", 5), ("proxy", 5)),
        ("*:*=[0::1]:*", ("h", 5), ("::1", 5)),
    ],
)
def test_address_map_resolves_announced_address(text, announced, reached):
    assert reached == AddressMap.read(text).resolve(*announced)


@pytest.mark.parametrize("order", [1, -1])
def test_address_map_prefers_exact_entries_to_wildcards_in_any_order(order):
    mapping = AddressMap.read(",".join(["a:1=exact:9", "a:*=host:*", "*:*=any:*"][::order]))

    assert [("exact", 9), ("host", 2), ("any", 1)] == [
        mapping.resolve("a", 1),
        mapping.resolve("a", 2),
        mapping.resolve("b", 1),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "a:1=b:2,", "a:1", "a=b", "a:1=b", "a=b:1", "a:1=b:2=c:3", "a:1 b:2", "=b:1", "a:1="),
        *("a:0=b:1", "a:1=b:65536", "a:x=b:1", "a:1=b:-1", "a:٣=b:1", ":1=b:1", "a:1=:1"),
        *("::1:6379=b:1", "[h]:1=b:1", "a..b:1=b:1", "a:1=b c:1", "[::1:1=b:1"),
        # Several servers would become one.
        *("a:*=b:1", "*:*=b:1", "*:1=b:1", "*:1=b:*"),
        # A host cannot be kept, and a single port is written twice.
        *("a:1=*:1", "a:*=*:*", "a:1=b:*", "*:*=*:*"),
        *("a:1=b:1,a:1=c:1", "a:1=b:1,A:1=b:1", "[::1]:1=b:1,[0::1]:1=b:1"),
    ],
)
def test_address_map_raises_on_text_of_another_form(text):
    with pytest.raises(ValueError, match=r"^must be pairs such as '[^']*', joined by commas; [^\[]*$"):
        OPTIONS["address_map"].read(text)


@pytest.mark.parametrize("value", [None, 5, b"a:1=b:1", ["a:1=b:1"], {5: "b:1"}, {"a:1": ("b", 1)}])
def test_address_map_raises_on_values_of_another_type(value):
    with pytest.raises(ValueError, match=r"^must be pairs"):
        OPTIONS["address_map"].read(value)


HOSTS = st.from_regex(r"[a-z0-9]{1,5}(\.[a-z0-9]{1,5}){0,2}", fullmatch=True) | st.ip_addresses().map(str)
ADDRESSES = st.tuples(HOSTS, st.integers(1, 65_535))


def shown(address):
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@given(st.dictionaries(ADDRESSES, ADDRESSES, min_size=1, max_size=5), ADDRESSES)
def test_address_map_of_any_addresses_resolves_each_of_them(targets, other):
    mapping = AddressMap.read({shown(announced): shown(reached) for announced, reached in targets.items()})

    assert targets == {announced: mapping.resolve(*announced) for announced in targets}
    assert targets.get(other, other) == mapping.resolve(*other)
    assert mapping == AddressMap.read(",".join(f"{shown(a)}={shown(b)}" for a, b in targets.items()))


ENDS = st.text("*:[]a1. ", max_size=6)


@given(st.text() | st.lists(st.tuples(ENDS, ENDS).map("=".join)).map(",".join) | st.dictionaries(ENDS, ENDS))
def test_address_map_of_any_text_is_read_or_raises_value_error(value):
    try:
        mapping = AddressMap.read(value)
    except ValueError:
        mapping = None

    assert mapping is None or mapping.entries


def test_equal_address_maps_compare_and_hash_equal():
    one, other = AddressMap.read("a:1=b:1, c:*=d:*"), AddressMap.read({"c:*": "d:*", "A:1": "b:1"})

    assert {one} == {other, AddressMap.read(one), copy.deepcopy(one)}
    assert one != AddressMap.read("a:1=b:1")
    assert ("d", 7) == copy.copy(one).resolve("c", 7)
